"""A process that runs one system, and the other end of it.

Each system has a process of its own, so that none inherits another's thread pools, allocator or caches. The process
opens its model and then does what it is told, a line of JSON each time, with a line of JSON: it sleeps while another
is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.load.processes import resident_mb
from benchmarks.systems import KINDS, PYTORCH_ALLOCATOR
from distilqa.bundle import Bundle
from distilqa.errors import DistilqaError

# Ids below this are in every vocabulary.
_IDS = 1000


class SystemFailed(DistilqaError):
    """A system could not be opened, or failed; the text says how."""


@dataclass(frozen=True, slots=True)
class System:
    """A kind of `benchmarks.systems`, and the model that it opens."""

    kind: str
    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """What its process has in its environment besides."""
        return PYTORCH_ALLOCATOR if self.kind.startswith("pytorch") else {}


def bundled(bundle: Path) -> dict[str, System]:
    """The variants of a bundle, by name."""
    variants = Bundle.open(bundle).manifest.variants
    return {name: System("bundled", bundle / variant.file) for name, variant in variants.items()}


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """So many windows of so many tokens in a run; ``at_once`` such runs at the same time."""

    windows: int
    tokens: int
    at_once: int = field(default=1)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shape that says so of itself."""
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.windows}x{self.tokens}" + (f", {self.at_once} at once" if self.at_once > 1 else "")


class Worker:
    """A system in a process of its own, from ``with`` on. Raises SystemFailed."""

    def __init__(self, system: System, threads: int) -> None:
        self._system, self._threads = system, threads

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.worker", self._system.kind, str(self._system.path)]
        self._said = tempfile.TemporaryFile("w+")  # what it writes to stderr, to say if it dies
        self._process = subprocess.Popen(
            [*command, str(self._threads)],
            cwd=Path(__file__).parent.parent,
            env=os.environ | self._system.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self._read()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def run(self, shape: Shape, seed: int, runs: int) -> list[float]:
        """Seconds of each of so many runs of random ids, after one that warms up."""
        seconds: list[float] = self._do(
            {"windows": shape.windows, "tokens": shape.tokens, "at_once": shape.at_once, "seed": seed, "runs": runs}
        )
        return seconds

    def resident_mb(self) -> float:
        """Memory that the process has in RAM, in megabytes (10^6 bytes)."""
        return resident_mb(self._process.pid)

    def _do(self, command: Mapping[str, object]) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells why
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = [line.strip() for line in self._said if line.strip()][-1:]
            raise SystemFailed(f"{self._system.kind} ended: {' '.join(last) or self._process.returncode}")
        return json.loads(line)


def main() -> None:
    """The process: opens the model, then obeys."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    replies, sys.stdout = sys.stdout, sys.stderr  # some libraries print
    run = KINDS[arguments.kind](arguments.path, arguments.threads)
    print("null", file=replies, flush=True)
    pools: dict[int, ThreadPoolExecutor] = {}
    for line in sys.stdin:
        command = json.loads(line)
        ids = np.random.default_rng(command["seed"]).integers(0, _IDS, (command["windows"], command["tokens"]))
        at_once = command["at_once"]
        pool = pools.setdefault(at_once, ThreadPoolExecutor(at_once)) if at_once > 1 else None
        seconds = []
        for _ in range(command["runs"] + 1):
            began = time.perf_counter()
            if pool:
                list(pool.map(run, [ids] * at_once))
            else:
                run(ids)
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds[1:]), file=replies, flush=True)


if __name__ == "__main__":
    main()
