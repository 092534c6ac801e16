"""How many cores there are to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distilqa.engine.cores import _cgroup_quota, usable_cores


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")


V1 = "5:cpu,cpuacct:/pod/box\n4:memory:/pod/box\n1:name=systemd:/pod/box\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param("0::/pod/box\n", {"pod/box/cpu.max": "150000 100000"}, 1.5, id="v2"),
        pytest.param("0::/pod/box\n", {"pod/box/cpu.max": "max 100000"}, None, id="v2 without a limit"),
        pytest.param(
            "0::/pod/box\n",
            {"pod/box/cpu.max": "400000 100000", "pod/cpu.max": "250000 100000", "cpu.max": "300000 100000"},
            2.5,
            id="v2, the one above is less",
        ),
        pytest.param(
            "0::/pod/box\n", {"pod/box/cpu.max": "max 100000", "cpu.max": "50000 100000"}, 0.5, id="v2, only the root's"
        ),
        pytest.param("0::/pod/box\n", {"other/cpu.max": "50000 100000"}, None, id="v2, another group's"),
        pytest.param("0::/pod:box:1\n", {"pod:box:1/cpu.max": "150000 100000"}, 1.5, id="v2 with colons"),
        pytest.param("0::/\n", {"cpu.max": "200000 50000"}, 4.0, id="v2 in a namespace"),
        pytest.param("0::/../../pod\n", {"cpu.max": "200000 100000"}, 2.0, id="v2 outside of its namespace"),
        pytest.param(
            V1,
            {
                "cpu,cpuacct/pod/box/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000",
                "memory/pod/box/cpu.cfs_quota_us": "1",
                "memory/pod/box/cpu.cfs_period_us": "1",
            },
            1.5,
            id="v1",
        ),
        pytest.param(
            V1,
            {"cpu,cpuacct/pod/box/cpu.cfs_quota_us": "-1", "cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000"},
            None,
            id="v1 without a limit",
        ),
        pytest.param(
            V1,
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            0.5,
            id="v1, only the root is seen",
        ),
        pytest.param(V1, {"cpu,cpuacct/cpu.cfs_quota_us": "50000"}, None, id="v1 without its period"),
        pytest.param(
            V1 + "0::/pod\n",
            {
                "cpu,cpuacct/pod/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/pod/cpu.cfs_period_us": "100000",
                "pod/cpu.max": "200000 100000",
            },
            2.0,
            id="v1 and v2",
        ),
        pytest.param(V1, {"pod/box/cpu.max": "50000 100000"}, None, id="v1, not in v2's tree"),
        pytest.param(None, {"cpu.max": "50000 100000"}, None, id="no control groups"),
    ],
)
def test_cgroup_quota(tmp_path: Path, own: str | None, files: dict[str, str], expected: float | None) -> None:
    write_tree(tmp_path / "cgroup", files)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert _cgroup_quota(tmp_path / "cgroup", tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 4), (0.5, 1), (1.0, 1), (2.9, 2), (3.0, 3), (4.0, 4), (64.0, 4)]
)
def test_usable_cores(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5, 8})
    monkeypatch.setattr("distilqa.engine.cores._cgroup_quota", lambda: quota)
    assert usable_cores() == expected


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_usable_cores_without_affinity(monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr("distilqa.engine.cores._cgroup_quota", lambda: None)
    assert usable_cores() == expected
