"""What was measured on: the machine, the versions, the commit. Numbers without it say nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from benchmarks.load.processes import tree_cpu_s
from distilqa.engine.cores import usable_cores
from distilqa.engine.processor import read_processor
from distilqa.engine.runtime import runtime_package

ROOT = Path(__file__).parents[2]

_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "openvino",
    "nncf",
    "tokenizers",
    "numpy",
    "grpcio",
)

# What a report says of what it compares with, where 8-bit products saturate.
STOCK_WEIGHTS = (
    "8-bit products saturate on this processor, which has AVX2 without VNNI. The stock int8 recipes would be wrong"
    " here, so they have weights of 7 bits (`reduce_range`, NNCF's `overflow_fix`)."
)


def environment() -> dict[str, object]:
    """All that there is to say, for JSON."""
    from benchmarks.racing.systems import PYTORCH_ALLOCATOR

    processor = read_processor()
    return {
        "cpu": processor.model,
        "features": list(processor.features),
        "int8_products": "saturate" if processor.saturates else "do not saturate",
        "cores": usable_cores(),
        "memory_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "packages": packages(),
        "allocator": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("MALLOC_", "GLIBC_"))},
        "huge_pages": _huge_pages(),
        "allocator_of_pytorch": PYTORCH_ALLOCATOR,
        "commit": commit(),
    }


def _huge_pages(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> str:
    """To whom Linux gives them: always, madvise (who asks) or never; empty where it is not known."""
    found = re.search(r"\[(\w+)\]", setting.read_text() if setting.exists() else "")
    return found[1] if found else ""


def device(environment: Mapping[str, Any]) -> str:
    """What was measured, of all that was told: the GPU, or else the processor."""
    name: str = environment.get("gpu", {}).get("name", environment["cpu"])
    return name


def machine() -> str:
    """The processor, its cores, and ONNX Runtime, in a line."""
    runtime = runtime_package()
    return f"{read_processor()}, {usable_cores()} cores, {runtime} {packages()[runtime]}"


def packages() -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that is checked out, and whether files but results differ from it; empty outside a repository."""
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{revision}-dirty" if dirty else revision


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


# Where others took more than this of one core, or the host more than this share of all, times mean little.
_OTHERS_CORES, _STOLEN_SHARE = 0.1, 0.02


class Watch:
    """Sees what others used of the cores that this process may use, and what the host took, while it is entered.

    Ours is this process and what it started.
    """

    def __enter__(self) -> Self:
        self._began = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        spent = [now - before for now, before in zip(self._look(), self._began, strict=True)]
        seconds, busy, stolen, ours = spent
        self.others_cores = max(0.0, busy - ours) / seconds
        self.stolen_share = stolen / seconds / len(os.sched_getaffinity(0))

    @property
    def found(self) -> dict[str, float | bool]:
        """For JSON; ``contended`` says whether it was too much."""
        contended = self.others_cores > _OTHERS_CORES or self.stolen_share > _STOLEN_SHARE
        return {"others_cores": self.others_cores, "stolen_share": self.stolen_share, "contended": contended}

    def _look(self) -> tuple[float, float, float, float]:
        """Seconds: of the clock, of the cores' work, stolen from them, and of our work."""
        tick = os.sysconf("SC_CLK_TCK")
        cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        times = [[int(number) for number in line[1:]] for line in lines if line[0] in cores]
        busy = sum(user + nice + system + irq + softirq for user, nice, system, _, _, irq, softirq, *_ in times)
        return time.monotonic(), busy / tick, sum(one[7] for one in times) / tick, tree_cpu_s(os.getpid())
