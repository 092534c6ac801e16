"""How many cores there are to use."""

from __future__ import annotations

import os
from pathlib import Path

# More than any processor has cores; a session with far more threads would not come up.
MAX_THREADS = 512


def usable_cores() -> int:
    """How many cores this process may use: its affinity, cut down to the CPU quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The least CPU quota, in cores, of this process's control group (v2, or v1) and those above it."""
    quotas = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        v1 = "cpu" in controllers.split(",")
        if controllers and not v1:
            continue
        base = root / controllers if v1 else root
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            quotas.append(_quota_v1(directory) if v1 else _quota_v2(directory))
            if directory == base:
                break
    return min((quota for quota in quotas if quota), default=None)


def _quota_v2(directory: Path) -> float | None:
    limit, _, period = _read(directory / "cpu.max").partition(" ")
    return int(limit) / int(period) if limit.isdigit() else None


def _quota_v1(directory: Path) -> float | None:
    limit, period = _read(directory / "cpu.cfs_quota_us").strip(), _read(directory / "cpu.cfs_period_us").strip()
    return int(limit) / int(period) if limit.isdigit() and period else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
