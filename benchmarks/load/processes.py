"""Processes that are measured from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Running:
    """A server, at an address."""

    address: str
    pid: int


@contextmanager
def server(bundle: Path) -> Iterator[Running]:
    """`distilqa serve` with its default settings, in a process of its own."""
    command = [sys.executable, "-m", "distilqa", "serve", str(bundle), "--port", "0", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" on (\S+)\. ", process.stdout.readline())
            assert found, "the server did not start"
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield Running(found[1], process.pid)
        finally:
            process.terminate()


def cpu_s(pid: int) -> float:
    """CPU seconds, of user and system, that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory that a process has in RAM, in megabytes (10^6 bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
