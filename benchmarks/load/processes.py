"""Processes that are measured from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from distilqa.errors import DistilqaError

# A server that says nothing for so long will not come up, and one that takes as long to stop will not.
_PATIENCE_S = 120


class ServerFailed(DistilqaError):
    """A server did not start, ended, or answered nothing."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server, at an address; ``ended`` is filled when it has stopped, with how many calls ended how, by its count."""

    address: str
    pid: int
    ended: dict[str, int] = field(default_factory=dict)


@contextmanager
def server(bundle: Path, variant: str | None = None, flags: Sequence[str] = ()) -> Iterator[Running]:
    """`distilqa serve`, but for the flags with its default settings, in a process of its own, which logs to a file."""
    command = [sys.executable, "-m", "distilqa", "serve", str(bundle), "--port", "0", "--log-format", "json", *flags]
    command += ["--variant", variant] if variant else []
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            patience = threading.Timer(_PATIENCE_S, process.kill)
            patience.start()
            found = re.search(r" on (\S+)\. ", process.stdout.readline())
            patience.cancel()
            if not found:
                log.seek(0)
                raise ServerFailed(f"the server did not start: {' '.join(log.read().split())}")
            threading.Thread(target=process.stdout.read, daemon=True).start()
            running = Running(found[1], process.pid)
            yield running
        finally:
            process.terminate()
            stopping = threading.Timer(_PATIENCE_S, process.kill)
            stopping.start()
            process.wait()
            stopping.cancel()
        log.seek(0)
        *_, last = ["", *log]
        try:
            running.ended.update(json.loads(last)["ended"])
        except (ValueError, KeyError):
            raise ServerFailed(f"the server ended with {process.returncode}: {last.strip()}") from None


def cpu_s(pid: int) -> float:
    """CPU seconds, of user and system, that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root: int) -> float:
    """The same of a process and its descendants, and of those that they have waited for."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    own = {root}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(ticks.get(pid, 0) for pid in own) / os.sysconf("SC_CLK_TCK")


def most_resident_mb(pid: int) -> float:
    """The most that a process ever had in RAM, in megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    assert found, "Linux tells it"
    return int(found[1]) * 1024 / 1e6


def resident_mb(pid: int) -> float:
    """Memory that a process has in RAM, in megabytes (10^6 bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
