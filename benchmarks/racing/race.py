"""Systems side by side: in rounds, one after another, each in a process of its own.

A slow spell of the machine meets all of them, so what counts is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypedDict

import numpy as np

from benchmarks.racing.child import SystemFailed
from benchmarks.racing.worker import Shape, System, Worker
from distilqa.evaluation.progress import ProgressBar

# Threads that spin when a run is over are asleep after this.
SETTLE_S = 0.03

# In each turn at least so many tokens are run on a CPU, so that short runs are not one glance at the clock.
_TURN_TOKENS, _MOST_RUNS = 256, 5


class Raced(TypedDict):
    """What came of it: by shape and system, the seconds of each run of each round."""

    threads: int
    samples_s: dict[str, dict[str, list[list[float]]]]
    resident_mb: dict[str, float]
    left_out: dict[str, str]


class Ratio(TypedDict):
    """Of ratios within a round: the median, and the middle half."""

    low: float
    median: float
    high: float


def race(
    name: str,
    systems: Mapping[str, System],
    shapes: Sequence[Shape],
    *,
    threads: int,
    rounds: int,
    may_fail: bool = False,
    turn_tokens: int = _TURN_TOKENS,
    together: bool = False,
) -> Raced:
    """Run each shape on each system in each round, in an order that changes, after a round that warms up.

    Raises SystemFailed, but leaves out what fails if it may, from the shape on at which it does. Systems are opened and
    warmed up one after another, or all ``together``.
    """
    chance = random.Random(0)
    found = Raced(threads=threads, samples_s={}, resident_mb={}, left_out={})
    with ExitStack() as stack:

        def opened(system: System) -> Worker | SystemFailed:
            try:
                worker = stack.enter_context(Worker(system, threads))
                for shape in shapes:
                    worker.run(shape, seed=0, runs=0)
            except SystemFailed as error:
                return error
            return worker

        pool = stack.enter_context(ThreadPoolExecutor(len(systems) or 1)) if together else None
        workers = {}
        opening = pool.map(opened, systems.values()) if pool else map(opened, systems.values())
        for system_name, outcome in zip(systems, opening, strict=True):
            if not isinstance(outcome, SystemFailed):
                workers[system_name] = outcome
            elif may_fail:
                found["left_out"][system_name] = str(outcome)
            else:
                raise outcome
        with ProgressBar(name, rounds * len(shapes), sys.stderr) as progress:
            for place, shape in enumerate(shapes):
                samples = found["samples_s"][str(shape)] = {system_name: [] for system_name in workers}
                for number in range(rounds):
                    for system_name in chance.sample(list(workers), len(workers)):
                        time.sleep(SETTLE_S if threads > 1 else 0)
                        try:
                            took = workers[system_name].run(shape, number, turn_runs(shape, turn_tokens))
                        except SystemFailed as error:
                            if not may_fail:
                                raise
                            found["left_out"][system_name] = f"from {shape} on: {error}"
                            del workers[system_name], samples[system_name]
                        else:
                            samples[system_name].append(took)
                    progress(place * rounds + number + 1)
        found["resident_mb"] = {system_name: worker.resident_mb() for system_name, worker in workers.items()}
    return found


def turn_runs(shape: Shape, turn_tokens: int = _TURN_TOKENS) -> int:
    """How many runs a turn has."""
    return max(1, min(_MOST_RUNS, turn_tokens // (shape.windows * shape.tokens * shape.each)))


def seconds(samples: Sequence[Sequence[float]]) -> list[float]:
    """A round's time for a run: the median of its runs."""
    return [statistics.median(runs) for runs in samples]


def ratio(samples: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> Ratio:
    """How many times as long the others take."""
    ratios = [other / own for own, other in zip(seconds(samples), seconds(others), strict=True)]
    low, median, high = _middle_half(ratios)
    return Ratio(low=low, median=median, high=high)


def quartiles(samples: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Of the rounds' times for a run: the ends of the middle half, and the median between them."""
    return _middle_half(seconds(samples))


def _middle_half(values: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
    return low, median, high


def unsteadiness(raced: Raced) -> float:
    """How much a run's time varies: the width of the middle half of the rounds, as a share of their median.

    The median over systems and shapes.
    """
    widths = []
    for samples in (samples for shape in raced["samples_s"].values() for samples in shape.values()):
        low, median, high = quartiles(samples)
        widths.append((high - low) / median)
    return float(statistics.median(widths))
