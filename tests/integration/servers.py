"""A real server in a process of its own, and one in this process whose model can be held still."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from distilqa.server.settings import ServerSettings
from distilqa.server.single_process import SingleProcess
from distilqa.text.arrays import Int64, Logits

CLI = [sys.executable, "-m", "distilqa"]


@contextmanager
def serving(command: Sequence[str], **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a command that serves on a free port; yields its process and address, and kills what is left of it."""
    environment = options.pop("env", dict(os.environ)) | {"DISTILQA_PORT": "0"}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            assert process.stdout is not None
            address = None
            while address is None and (line := process.stdout.readline()):
                address = re.search(r"^Serving .* on (\S+)\. ", line)
            assert address, process.communicate()[1]
            yield process, address[1]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # `make serve` has a server below it


class HeldEngine:
    """Stands before a server's engine: notes each run, and lets it through when told to."""

    def __init__(self, server: SingleProcess) -> None:
        self._run = server._scheduler._engine.run
        self.runs: list[int] = []
        self.tokens: list[int] = []
        self.began = threading.Event()
        self.release = threading.Event()
        self.failures = 0
        self.deadly = False
        self.spoiled: float | None = None
        server._scheduler._engine.run = self.run  # type: ignore[method-assign]

    def run(self, windows: Sequence[Int64], *, alone: bool = False) -> list[Logits]:
        if self.deadly:
            raise SystemExit("a defect")
        self.runs.append(len(windows))
        self.tokens.append(len(windows[0]))
        self.began.set()
        assert self.release.wait(timeout=60)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a secret of the model")
        logits = self._run(windows, alone=alone)
        if self.spoiled is not None:
            logits[0][0][1] = self.spoiled
        return logits


@asynccontextmanager
async def held_server(bundle: Path, **settings: Any) -> AsyncIterator[tuple[SingleProcess, HeldEngine]]:
    """A server in this process, on one core, whose runs wait for ``engine.release``."""
    server = SingleProcess(ServerSettings(bundle=bundle, port=0, threads=1, **settings))
    await server.start()
    engine = HeldEngine(server)
    try:
        yield server, engine
    finally:
        engine.release.set()
        await server.stop(0)


@contextmanager
def json_serving(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with serving([*CLI, "serve", str(bundle), "--log-format", "json", *options]) as running:
        yield running


def entries(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The log of a server that ends by itself."""
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]
