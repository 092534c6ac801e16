"""What the GPU does when there is more to do than it can: at SQuAD's lengths, and with both lanes busy.

Mixed lengths are those of SQuAD's windows, drawn anew in each round; PyTorch pads a run to its longest window. At
saturation windows have 170 tokens, about SQuAD's mean, and two lanes give the GPU one run after another, as the
server's do, in runs of the size that it chooses here, and in others. A run's operations are two for each weight (but
the embeddings') and token, and those of attention. The peak is what PyTorch's product of two large fp16 matrices of
random numbers reaches in the same rounds; beside it are the model's own products, with nothing between them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import models
from benchmarks.gpu import systems
from benchmarks.gpu.runs import (
    COMPILED,
    OURS,
    OURS_BERT,
    PEAK,
    PRODUCTS,
    PYTORCH,
    WITHOUT_GRAPHS,
    contenders,
    left_out,
    race_all,
)
from benchmarks.gpu.setting import GpuSetting
from benchmarks.racing.child import in_child
from benchmarks.racing.race import Raced, Ratio, ratio, seconds
from benchmarks.racing.worker import Mix, Shape
from benchmarks.reporting.tables import Target, faster, spread, table
from distilqa.bundle import GPU_VARIANTS, Bundle
from distilqa.engine.cuda.budget import OBJECTIVE_S
from distilqa.engine.cuda.engine import LANES, CudaEngine

MIXED = (OURS, WITHOUT_GRAPHS, COMPILED, PYTORCH, OURS_BERT)
SATURATED = (OURS, WITHOUT_GRAPHS, OURS_BERT, PEAK, PRODUCTS)

WINDOW, MIXED_WINDOWS = 170, 32
SIZES: dict[str, tuple[int, ...]] = {"full": (8, 24, 48, 96, 192), "quick": (24, 96), "tiny": ()}

# How many runs a lane has in each turn, of which the last may be without company.
_EACH = 8

# Least: times as fast as compiled PyTorch and as bert-base, windows a second, share of the peak.
FASTER, FASTER_THAN_BERT, WINDOWS_PER_S, SHARE = 1.5, 2.0, 20_000, 0.4


class Throughput(TypedDict):
    """``budget`` is how many tokens a run of the server has here, ``judged`` the shape of about so many.

    ``operations`` are of a window at saturation, of ours and of the bare products, and of the large product.
    """

    budget: int
    judged: str
    operations: dict[str, int]
    mixed: Raced
    saturated: Raced


def prepare(setting: GpuSetting) -> None:
    """Make the models."""
    contenders(setting, MIXED)


def measure(setting: GpuSetting) -> Throughput:
    budget, lengths = in_child(_budget, setting.bundle), setting.lengths()
    shape = Bundle.open(setting.bundle).manifest.architecture
    judged = _saturating(max(1, budget // WINDOW))
    sizes = SIZES[setting.extent]
    mixed = Mix(2 if setting.tiny else MIXED_WINDOWS, round(statistics.mean(lengths)), pool=tuple(lengths))
    return Throughput(
        budget=budget,
        judged=str(judged),
        operations={
            OURS: models.operations(shape, WINDOW),
            PRODUCTS: models.operations(shape, WINDOW, attention=False),
            PEAK: 2 * systems.PEAK**3,
        },
        mixed=race_all("mixed lengths", setting, MIXED, [mixed]),
        saturated=race_all("saturation", setting, SATURATED, sorted({judged, *map(_saturating, sizes)})),
    )


def _saturating(windows: int) -> Shape:
    return Shape(windows, WINDOW, at_once=LANES, each=_EACH)


def _budget(bundle: Path) -> int:
    budget = CudaEngine(Bundle.open(bundle), GPU_VARIANTS[0], objective_s=OBJECTIVE_S).budget
    assert budget is not None
    return budget


def windows_per_s(samples: Sequence[Sequence[float]], shape: str) -> float:
    """At the median of the rounds."""
    one = Shape.parse(shape)
    return one.windows * one.runs / statistics.median(seconds(samples))


def operations_per_s(found: Throughput) -> dict[str, float]:
    """What ours, the model's bare products and the large one reach at the shape that is judged."""
    samples, windows = found["saturated"]["samples_s"][found["judged"]], Shape.parse(found["judged"]).windows
    # The large product is one for a run, whatever the windows.
    return {
        name: windows_per_s(samples[name], found["judged"]) * each / (windows if name == PEAK else 1)
        for name, each in found["operations"].items()
        if name in samples
    }


def share(found: Throughput, other: str) -> Ratio:
    """The operations a second of ours as a share of another's, as the medians within rounds have it."""
    samples, windows = found["saturated"]["samples_s"][found["judged"]], Shape.parse(found["judged"]).windows
    others = found["operations"][other] * (1 if other == PEAK else windows)
    part = found["operations"][OURS] * windows / others
    against = ratio(samples[OURS], samples[other])
    return Ratio(low=part * against["low"], median=part * against["median"], high=part * against["high"])


def targets(found: Throughput) -> list[Target]:
    """What was asked of ours against PyTorch, bert-base and the GPU."""
    ((mixed, samples),) = found["mixed"]["samples_s"].items()
    asked = [
        faster(f"{OURS} against {other}, {mixed}", ratio(samples[OURS], samples[other]), least)
        for other, least in ((COMPILED, FASTER), (OURS_BERT, FASTER_THAN_BERT))
        if other in samples
    ]
    saturated = found["saturated"]["samples_s"][found["judged"]]
    rate = windows_per_s(saturated[OURS], found["judged"])
    measure, least = f"windows of {WINDOW} tokens a second at saturation", f"at least {WINDOWS_PER_S:,}"
    asked.append(Target(measure, f"{rate:,.0f}", least, rate >= WINDOWS_PER_S, timed=True))
    if PEAK in saturated:
        reached = share(found, PEAK)
        measure, met = "share of the measured fp16 peak at saturation", reached["median"] >= SHARE
        asked.append(Target(measure, _percent(reached), f"at least {SHARE:.0%}", met, timed=True))
    return asked


def _percent(share: Ratio) -> str:
    return f"{share['median']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def report(found: Throughput) -> str:
    """Markdown: mixed lengths, saturation by the windows in a run, and how much of the GPU that is."""
    return "\n\n".join(
        [
            _mixed(found),
            f"The server's runs have up to {found['budget']:,} tokens here.",
            _saturated(found),
            _used(found),
            *left_out(found["mixed"]),
            *left_out(found["saturated"]),
        ]
    )


def _mixed(found: Throughput) -> str:
    ((mixed, samples),) = found["mixed"]["samples_s"].items()
    rows = []
    for name, own in samples.items():
        taken = statistics.median(seconds(own))
        against = "" if name == OURS else spread(ratio(samples[OURS], own))
        rows.append([name, f"{taken * 1e3:.2f}", f"{Shape.parse(mixed).windows / taken:,.0f}", against])
    return table([f"{mixed}, mixed lengths", "ms", "windows/s", f"{OURS}, times as fast"], rows)


def _saturated(found: Throughput) -> str:
    names = (OURS, WITHOUT_GRAPHS, OURS_BERT)
    rows = []
    for shape, samples in found["saturated"]["samples_s"].items():
        windows = f"{Shape.parse(shape).windows}" + " (the server's)" * (shape == found["judged"])
        rates = [f"{windows_per_s(samples[name], shape):,.0f}" if name in samples else "-" for name in names]
        rows.append([windows, *rates])
    return table([f"windows of {WINDOW} tokens in a run, {LANES} lanes; windows/s", *names], rows)


def _used(found: Throughput) -> str:
    rows = [
        [name, f"{rate / 1e12:.0f}", "" if name == OURS else _percent(share(found, name))]
        for name, rate in operations_per_s(found).items()
    ]
    return table([f"at {found['judged']}", "10^12 operations/s", f"of which {OURS} reaches"], rows)
