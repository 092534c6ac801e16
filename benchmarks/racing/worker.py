"""A process that runs one system, and the other end of it.

Each system has a process of its own, so that none inherits another's thread pools, allocator or caches. The process
opens its model and then does what it is told, a line of JSON each time, with a line of JSON: it sleeps while another
is measured.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.gpu import systems as gpu_systems
from benchmarks.load.processes import resident_mb
from benchmarks.racing import systems
from benchmarks.racing.child import Child
from distilqa.bundle import Bundle

KINDS: dict[str, Callable[[Path, int], Callable[[Any], object]]] = {**systems.KINDS, **gpu_systems.KINDS}

# Ids below this are in every vocabulary.
_IDS = 1000


@dataclass(frozen=True, slots=True)
class System:
    """A kind of `benchmarks.racing.systems` or `benchmarks.gpu.systems`, and the model that it opens."""

    kind: str
    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """What its process has in its environment besides."""
        return systems.PYTORCH_ALLOCATOR if self.kind.startswith("pytorch") else {}


def bundled(bundle: Path) -> dict[str, System]:
    """The variants of a bundle, by name."""
    variants = Bundle.open(bundle).manifest.variants
    return {name: System("bundled", bundle / variant.file) for name, variant in variants.items()}


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """So many windows of so many tokens in a run.

    ``at_once`` are under way, each in a lane that does ``each`` of them, one after another.
    """

    windows: int
    tokens: int
    at_once: int = field(default=1)
    each: int = field(default=1)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shape that says so of itself."""
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        return cls(*numbers)

    def __str__(self) -> str:
        lanes = f", {self.at_once} at once" if self.at_once > 1 else ""
        return f"{self.windows}x{self.tokens}{lanes}" + (f", {self.each} each" if self.each > 1 else "")

    @property
    def runs(self) -> int:
        """How many runs are timed as one."""
        return self.at_once * self.each

    def lengths(self, seed: int) -> list[int]:
        """How many tokens each window has."""
        return [self.tokens] * self.windows


@dataclass(frozen=True, slots=True)
class Mix(Shape):
    """Windows of other lengths in each round, drawn from a ``pool``; ``tokens`` is about its mean."""

    pool: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.windows}x{self.tokens} on average"

    def lengths(self, seed: int) -> list[int]:
        return random.Random(seed).choices(self.pool, k=self.windows)


class Worker(Child):
    """A system in a process of its own, from ``with`` on. Raises SystemFailed."""

    def __init__(self, system: System, threads: int) -> None:
        arguments = (system.kind, str(system.path), str(threads))
        super().__init__(system.kind, "benchmarks.racing.worker", *arguments, environment=system.environment)

    def run(self, shape: Shape, seed: int, runs: int) -> list[float]:
        """Seconds of each of so many runs of random ids, after one that warms up."""
        told = {"lengths": shape.lengths(seed), "at_once": shape.at_once, "each": shape.each}
        seconds: list[float] = self.do({**told, "seed": seed, "runs": runs})
        return seconds

    def resident_mb(self) -> float:
        """Memory that the process has in RAM, in megabytes (10^6 bytes)."""
        return resident_mb(self.pid)


def timed(run: Callable[[Any], object], command: Mapping[str, Any]) -> list[float]:
    """Do what `Worker.run` tells: the seconds of each run but the first."""
    chance, lengths = np.random.default_rng(command["seed"]), command["lengths"]
    # Windows of one length are an array, which is all that most systems take.
    same = len(set(lengths)) == 1
    windows: Any = (
        chance.integers(0, _IDS, (len(lengths), lengths[0]))
        if same
        else [chance.integers(0, _IDS, length) for length in lengths]
    )
    at_once, each = command["at_once"], command["each"]
    seconds = []
    for _ in range(command["runs"] + 1):
        began = time.perf_counter()
        if at_once > 1:
            list(_lanes(at_once).map(run, [windows] * at_once * each))
        else:
            run(windows)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


@cache
def _lanes(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def main() -> None:
    """The process: opens the model, then obeys."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.racing.worker")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    replies, sys.stdout = sys.stdout, sys.stderr  # some libraries print
    run = KINDS[arguments.kind](arguments.path, arguments.threads)
    print("null", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(run, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
