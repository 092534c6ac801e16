"""The plots of a folder of results, as PNG and SVG: what a person reads first."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.axes import by_rate, latency
from benchmarks.claims import PYTORCH, Claims, measured_systems
from benchmarks.gpu import plots as gpu
from benchmarks.kernels import ONNXRUNTIME, OPENVINO, OPENVINO_FP32, OPTIMUM, OURS, PLAIN, Kernels
from benchmarks.load.generator import Load
from benchmarks.quality import FP32, Quality
from benchmarks.race import ratio, seconds
from benchmarks.results import Results
from benchmarks.serving import BOUNDS_S, Serving
from benchmarks.setting import BERT, DISTILBERT
from benchmarks.tables import plural
from benchmarks.worker import Shape

_COLORS = {BERT: "#9aa5b1", DISTILBERT: "#2f6fb0"}
_OURS, _OTHERS = "#2f6fb0", ("#d1603d", "#e0a030", "#5b8c5a")

# Each contender has its colour in every plot.
_CONTENDERS = {
    OPTIMUM: "#d1603d",
    ONNXRUNTIME: "#e0a030",
    OPENVINO[0]: "#5b8c5a",
    OPENVINO[1]: "#a3c585",
    FP32: "#2f6fb0",
    PLAIN: "#e0a030",
    OPENVINO_FP32: "#5b8c5a",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """``draw`` takes a figure and what a part has found."""

    name: str
    part: str
    title: str
    size: tuple[float, float]
    draw: Callable[[Any, Any], None]


def draw(results: Results, folder: Path) -> None:
    """Write each plot whose part was measured."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "white",
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
            figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{plot.name}.png", dpi=150)


def _latency(figure: Any, found: Claims) -> None:
    """Bars: both models, in PyTorch and by variant, at each shape, on one thread."""
    raced = found["races"][0]
    systems = measured_systems(raced)
    for axes, (shape, samples) in zip(
        figure.subplots(1, len(raced["samples_s"]), squeeze=False)[0], raced["samples_s"].items(), strict=True
    ):
        base = samples[f"{PYTORCH}, {BERT}"]
        for number, system in enumerate(systems):
            for shift, name in ((-0.2, BERT), (0.2, DISTILBERT)):
                own = samples[f"{system}, {name}"]
                taken = statistics.median(seconds(own)) * 1e3
                axes.barh(number + shift, taken, 0.38, color=_COLORS[name], label=None if number else name)
                faster = f"  ({ratio(own, base)['median']:.1f}x)" if own is not base else ""
                axes.text(taken, number + shift, f" {taken:.1f}{faster}", va="center", fontsize=9)
        axes.set_yticks(range(len(systems)), systems)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.set_xlabel("milliseconds a run")
        axes.set_title(f"{shape} tokens, {plural(raced['threads'], 'thread')}", fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def _speed_up(figure: Any, found: Kernels) -> None:
    """Lines over length: how many times as fast cpu-int8 is as each contender; a bar for the middle half.

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
            axes.errorbar(tokens, medians, spread, color=_CONTENDERS[name], marker="o", ms=3, elinewidth=1, label=name)
        column[1].axhline(1, color=_OURS, lw=2, label=OURS)
        column[1].set_xscale("log", base=2)
        column[1].set_xticks(tokens, [f"{one}" for one in tokens], fontsize=7)  # 384 and 512 are close
        column[1].minorticks_off()
        column[1].set_xlabel("tokens, one window")
        column[0].set_title(plural(raced["threads"], "thread"), fontsize=10)
    figure.supylabel("times as fast as the contender", fontsize=10)
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
    axes = figure.subplots()
    judged = {name: one for name, one in found["judged"].items() if name != FP32}
    for shift, key, label, color in (
        (-0.2, "moved", "elsewhere than fp32's", _OTHERS[1]),
        (0.2, "swayed", "changed by who shares the run", _OTHERS[0]),
    ):
        for number, one in enumerate(judged.values()):
            share = 100 * one[key] / found["asked"]  # type: ignore[literal-required]
            axes.barh(number + shift, share, 0.38, color=color, label=None if number else label)
            axes.text(share, number + shift, f" {share:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(judged)), judged)
    axes.invert_yaxis()
    axes.set_xlabel(f"% of {found['asked']:,} answers")
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


PLOTS = (
    Plot(
        "latency",
        "claims",
        "One run of the model (and how many times as fast as bert-base in PyTorch)",
        (10, 3.6),
        _latency,
    ),
    Plot("kernels", "kernels", "One run of the model: how much faster than others cpu-int8 is", (10, 5), _speed_up),
    Plot("rates", "serving", "Served: latency by the rate of calls", (7, 4), _rates),
    Plot("answers", "quality", "Answers that int8 puts elsewhere, and that company changes", (7, 3.2), _answers),
    Plot("runs", "runs", "One run of the model on the GPU", (12, 4.6), gpu.runs),
    Plot("throughput", "throughput", "The GPU with more to do than it can", (12, 3.6), gpu.throughput),
    Plot("traffic", "traffic", "Served from the GPU", (10, 4), gpu.traffic),
)
