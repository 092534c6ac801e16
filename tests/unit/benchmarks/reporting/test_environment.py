"""What is said of the machine, and whether others use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from benchmarks.load.processes import tree_cpu_s
from benchmarks.reporting.environment import Watch, environment

# Starts a process that works for a second, says its number, and waits; and leaves it.
_LEAVE = """
import subprocess, sys
work = "import os, time\\nwhile time.process_time() < 1: pass\\nprint(os.getpid(), flush=True)\\ntime.sleep(60)"
subprocess.Popen([sys.executable, "-c", work])
"""


def test_the_environment_can_be_stored_and_is_complete() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["packages"].keys() >= {"onnxruntime", "torch", "openvino", "nncf", "numpy", "grpcio"}
    assert found["cores"] >= 1
    assert found["allocator_of_pytorch"].keys() == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


@pytest.mark.parametrize(
    ("spent", "contended"),
    [
        # seconds, busy, stolen, ours
        ((10.0, 20.0, 0.0, 19.9), False),
        ((10.0, 20.0, 0.0, 18.0), True),
        ((10.0, 19.0, 20.0, 19.0), True),
        ((10.0, 5.0, 0.0, 6.0), False),
    ],
)
def test_a_contended_machine_is_told(
    spent: tuple[float, ...], contended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([(1.0, 2.0, 3.0, 4.0), tuple(map(sum, zip((1.0, 2.0, 3.0, 4.0), spent, strict=True)))])
    monkeypatch.setattr(Watch, "_look", lambda self: next(looks))
    with Watch() as watch:
        pass
    assert watch.found["contended"] is contended
    assert watch.found["others_cores"] == pytest.approx(max(0, spent[1] - spent[3]) / spent[0])


def test_the_work_of_what_was_not_started_from_here_is_seen() -> None:
    with Watch() as watch, subprocess.Popen([sys.executable, "-c", _LEAVE], stdout=subprocess.PIPE) as leaving:
        leaving.wait()
        assert leaving.stdout is not None
        left = int(leaving.stdout.readline())
    os.kill(left, signal.SIGKILL)
    assert watch.found["others_cores"] > 0.1
    assert watch.found["contended"]


def test_the_work_of_what_was_started_from_here_is_ours() -> None:
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    before = tree_cpu_s(os.getpid())
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as working:
        assert working.stdout is not None
        working.stdout.readline()
        assert tree_cpu_s(os.getpid()) - before >= 0.4
        working.kill()
