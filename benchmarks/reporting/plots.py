"""The plots of a folder of results, as PNG and SVG: what a person reads first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import plots as gpu
from benchmarks.load.generator import Load
from benchmarks.parts.claims import PYTORCH, Claims, measured_systems
from benchmarks.parts.kernels import OPENVINO, OURS, Kernels
from benchmarks.parts.quality import FP32, Quality
from benchmarks.parts.serving import BOUNDS_S, Serving
from benchmarks.racing.race import quartiles, ratio
from benchmarks.racing.worker import Shape
from benchmarks.reporting.axes import COLORS, by_rate, latency
from benchmarks.reporting.environment import device
from benchmarks.reporting.results import Results
from benchmarks.reporting.tables import plural
from benchmarks.setting import BERT, DISTILBERT

_QUIET = "#57606a"

# Of the second of two bars of a system, beside hatching: colour alone would not do for everyone, or on paper.
_FAINT = 0.45

# Of two ways of one contender.
_STYLES = {OPENVINO[1]: "--"}


@dataclass(frozen=True, slots=True)
class Plot:
    """``draw`` takes a figure and what a part has found."""

    name: str
    part: str
    title: str
    size: tuple[float, float]
    draw: Callable[[Any, Any], None]


def _caption(environment: Mapping[str, Any]) -> str:
    """What a plot that stands alone must say: the machine, and whose the variants are."""
    cores = f", {plural(environment['cores'], 'core')}" if "cores" in environment else ""
    ours = "cuda-fp16 is" if "gpu" in environment else "cpu-int8 and cpu-fp32 are"
    return f"{device(environment)}{cores}; {ours} distilqa's"


def draw(results: Results, folder: Path) -> None:
    """Write each plot whose part was measured."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "white",  # or they could not be read on a dark page
        "font.size": 10,
        "svg.hashsalt": "distilqa",  # the same file each time
    }
    with mpl.rc_context(style):
        for plot in PLOTS:
            if plot.part not in results["parts"]:
                continue
            figure = Figure(figsize=plot.size, layout="constrained")
            plot.draw(figure, results["parts"][plot.part]["found"])
            figure.suptitle(plot.title)
            figure.supxlabel(_caption(results["environment"]), fontsize=8, color=_QUIET)
            figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{plot.name}.png", dpi=150)


def _latency(figure: Any, found: Claims) -> None:
    """Bars: both models, in PyTorch and by variant, at each shape, on one thread; a line for the middle half."""
    from matplotlib.patches import Patch

    raced = found["races"][0]
    systems = measured_systems(raced)
    for axes, (shape, samples) in zip(
        figure.subplots(1, len(raced["samples_s"]), squeeze=False)[0], raced["samples_s"].items(), strict=True
    ):
        base = samples[f"{PYTORCH}, {BERT}"]
        for number, system in enumerate(systems):
            for shift, name in ((-0.2, BERT), (0.2, DISTILBERT)):
                own = samples[f"{system}, {name}"]
                low, taken, high = (1e3 * one for one in quartiles(own))
                axes.barh(
                    number + shift, taken, 0.38, xerr=[[taken - low], [high - taken]], ecolor=_QUIET,
                    color=COLORS[system], alpha=_FAINT if name == BERT else 1, hatch="///" if name == BERT else None,
                )  # fmt: skip
                faster = f"  ({ratio(own, base)['median']:.1f}x)" if own is not base else ""
                axes.text(high, number + shift, f" {taken:.1f}{faster}", va="center", fontsize=9)
        axes.set_yticks(range(len(systems)), systems)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.set_xlabel("milliseconds a run")
        axes.set_title(f"{shape} tokens, {plural(raced['threads'], 'thread')}", fontsize=10)
    axes.legend(
        handles=[Patch(facecolor=_QUIET, alpha=_FAINT, hatch="///", label=BERT), Patch(color=_QUIET, label=DISTILBERT)],
        loc="lower right", frameon=False,
    )  # fmt: skip


def _speed_up(figure: Any, found: Kernels) -> None:
    """Lines over length: each contender's time against cpu-int8's; a bar for the middle half.

    A column for each number of threads; fp32 above, int8 below.
    """
    panels = figure.subplots(2, len(found["lengths"]), squeeze=False, sharex=True, sharey="row", height_ratios=(2, 3))
    for column, raced in zip(panels.T, found["lengths"], strict=True):
        shapes = raced["samples_s"]
        tokens = [Shape.parse(shape).tokens for shape in shapes]
        names = [name for name in next(iter(shapes.values())) if name != OURS]
        for name in names:
            axes = column[int("int8" in name)]
            ratios = [ratio(samples[OURS], samples[name]) for samples in shapes.values()]
            medians = [one["median"] for one in ratios]
            spread = [[abs(one[end] - one["median"]) for one in ratios] for end in ("low", "high")]
            axes.errorbar(
                tokens, medians, spread, color=COLORS[name], ls=_STYLES.get(name, "-"), marker="o", ms=3, elinewidth=1,
                label=name,
            )  # fmt: skip
        column[1].axhline(1, color=COLORS[OURS], lw=2, label=OURS)
        for axes in column:
            axes.set_ylim(bottom=0)
        column[1].set_xscale("log", base=2)
        column[1].set_xticks(tokens, [f"{one}" for one in tokens], fontsize=7)  # 384 and 512 are close
        column[1].minorticks_off()
        column[1].set_xlabel("tokens, one window")
        column[0].set_title(plural(raced["threads"], "thread"), fontsize=10)
    figure.supylabel("time against cpu-int8's", fontsize=10)
    for axes in panels[:, -1]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _rates(figure: Any, found: Serving) -> None:
    """Latency by the rate of calls, and the bounds; endless ones, of calls refused, are left out."""
    axes = figure.subplots()
    by_rate(axes, {trial["rate"]: Load.from_json(trial["load"]) for trial in found["trials"]})
    latency(axes, BOUNDS_S)
    axes.set_xlabel("calls a second (Poisson)")
    axes.legend(frameon=False)


def _answers(figure: Any, found: Quality) -> None:
    """Bars: how many answers are elsewhere than fp32's, and how many company changes."""
    from matplotlib.patches import Patch

    axes = figure.subplots()
    judged = {name: one for name, one in found["judged"].items() if name != FP32}
    for shift, key, alpha in (
        (-0.2, "moved", 1.0),
        (0.2, "swayed", _FAINT),
    ):
        for number, (name, one) in enumerate(judged.items()):
            share = 100 * one[key] / found["asked"]  # type: ignore[literal-required]
            axes.barh(number + shift, share, 0.38, color=COLORS[name], alpha=alpha, hatch="///" if alpha < 1 else None)
            axes.text(share, number + shift, f" {share:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(judged)), judged)
    axes.invert_yaxis()
    axes.set_xlabel(f"% of {found['asked']:,} answers")
    axes.set_xlim(left=0)
    axes.legend(
        handles=[
            Patch(color=_QUIET, label="elsewhere than fp32's"),
            Patch(facecolor=_QUIET, alpha=_FAINT, hatch="///", label="changed by who shares the run"),
        ],
        loc="upper right", fontsize=9, borderaxespad=0, frameon=False,
    )  # fmt: skip


PLOTS = (
    Plot(
        "latency",
        "claims",
        "One run of the model (and how many times as fast as bert-base in PyTorch)",
        (10, 3.6),
        _latency,
    ),
    Plot(
        "kernels",
        "kernels",
        "One run of the model: time against cpu-int8's (above the blue line slower, below it faster)",
        (10, 5),
        _speed_up,
    ),
    Plot("rates", "serving", "Served: latency by the rate of calls", (7, 4), _rates),
    Plot(
        "answers",
        "quality",
        "Answers of int8 models that are not fp32's, and that change with company",
        (7, 3.2),
        _answers,
    ),
    Plot("runs", "runs", "One run of the model on the GPU", (12, 4.6), gpu.runs),
    Plot("throughput", "throughput", "The GPU with more to do than it can", (12, 3.6), gpu.throughput),
    Plot("traffic", "traffic", "Served from the GPU", (10, 4), gpu.traffic),
)
