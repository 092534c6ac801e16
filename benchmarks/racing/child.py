"""A process of its own for what is measured: it does what it is told, a line of JSON each time, with a line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self, TypeVar

from benchmarks.reporting.environment import ROOT
from distilqa.engine.cuda.engine import DeviceLost
from distilqa.errors import DistilqaError

# Whoever says nothing for so long hangs: nothing that is told takes a quarter of it.
_PATIENCE_S = 300


_Result = TypeVar("_Result")


class SystemFailed(DistilqaError):
    """A system could not be opened, or failed; the text says how."""


class Child:
    """A module of the benchmarks in a process of its own, from ``with`` on; ``name`` is for errors.

    Its first line says that it is ready. Raises SystemFailed where it ends, or hangs.
    """

    def __init__(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._name, self._command = name, [sys.executable, "-m", module, *arguments]
        self._environment = os.environ | (environment or {})

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile("w+")  # what it writes to stderr, to say if it dies
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.hear()
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

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, command: Mapping[str, object]) -> Any:
        self.tell(command)
        return self.hear()

    def tell(self, command: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells why

    def hear(self) -> Any:
        assert self._process.stdout is not None
        patience = threading.Timer(_PATIENCE_S, self._process.kill)
        patience.start()
        line = self._process.stdout.readline()
        hung = not patience.is_alive()
        patience.cancel()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = [line.strip() for line in self._said if line.strip()][-1:]
            how = f"hung for {_PATIENCE_S} s" if hung else "ended"
            raise SystemFailed(f"{self._name} {how}: {' '.join(last) or self._process.returncode}")
        return json.loads(line)


def in_child(work: Callable[..., _Result], *arguments: object) -> _Result:
    """What a function gives, called in a process of its own, with which all that it opens ends.

    Raises what it raises, and SystemFailed if the process dies.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except (BrokenProcessPool, DeviceLost) as error:
            raise SystemFailed(f"{work.__name__.strip('_')}: {error}") from error
