"""How long runs take, and where. Machines are noisy: what is compared runs side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

from distilqa.text.arrays import Int64
from distilqa_export.gate.check import Run


def side_by_side(runs: Mapping[str, Run], windows: Sequence[Int64], rounds: int) -> dict[str, list[float]]:
    """Seconds of each model's runs, window by window in each round, so that places in the lists belong together."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for window in windows:
            for name, run in runs.items():
                began = time.perf_counter()
                run([window])
                seconds[name].append(time.perf_counter() - began)
    return seconds


def median_ratio(seconds: Sequence[float], other: Sequence[float]) -> float:
    """How many times as long the first take, at the median of runs that belong together."""
    return statistics.median(one / two for one, two in zip(seconds, other, strict=True))
