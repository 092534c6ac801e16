"""Processes that are told what to do, and what becomes of one that dies or hangs."""

from __future__ import annotations

import os

import pytest
from benchmarks.racing import child
from benchmarks.racing.child import Child, SystemFailed, in_child

from distilqa.engine.cuda.engine import DeviceLost


def lose() -> None:
    raise DeviceLost("the GPU fails on everything")


def test_work_is_done_in_a_process_of_its_own() -> None:
    assert in_child(os.getpid) != os.getpid()


def test_what_was_wrong_with_the_work_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        in_child(int, "one")


def test_a_process_that_dies_ends_nothing_else() -> None:
    with pytest.raises(SystemFailed, match="exit"):
        in_child(os._exit, 3)
    with pytest.raises(SystemFailed, match="lose: the GPU fails on everything"):
        in_child(lose)


def test_a_child_that_dies_says_why() -> None:
    with (
        pytest.raises(SystemFailed, match=r"it ended: .*No module named benchmarks\.none"),
        Child("it", "benchmarks.none"),
    ):
        pass


def test_a_child_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_PATIENCE_S", 0.3)
    with pytest.raises(SystemFailed, match="it hung for"), Child("it", "timeit", "import time; time.sleep(60)"):
        pass
