"""The progress bar, on a terminal and on what is none, with a clock that stands still until it is moved."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from distilqa.evaluation.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("distilqa.evaluation.progress.time", SimpleNamespace(monotonic=clock))
    return clock


def written(out: io.StringIO) -> str:
    """What was written since the last look."""
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text


def test_terminal(clock: Clock) -> None:
    out = Terminal()
    with ProgressBar("cpu-int8", 40, out) as bar:
        clock.now_s += 1
        bar(10)
        assert written(out) == "\rcpu-int8 [#####...............] 10 of 40, 10.0/s, 0:03 left\x1b[K"
        clock.now_s += 1
        bar(39)
        assert written(out) == "\rcpu-int8 [###################.] 39 of 40, 19.5/s, 0:00 left\x1b[K"
        bar(40)
        assert written(out) == "\rcpu-int8 [####################] 40 of 40, 20.0/s, 0:00 left\x1b[K\n"
    assert written(out) == ""


def test_terminal_is_not_flooded(clock: Clock) -> None:
    """Ten times a second is enough; the end is shown whenever it comes."""
    out = Terminal()
    bar = ProgressBar("x", 1000, out)
    for done in range(1, 1000):
        clock.now_s += 0.01
        bar(done)
    assert 50 <= written(out).count("\r") <= 100
    bar(1000)
    assert written(out).endswith("\x1b[K\n")


def test_no_terminal(clock: Clock) -> None:
    out = io.StringIO()
    with ProgressBar("cpu-int8", 25, out) as bar:
        for done in range(1, 26):
            clock.now_s += 3
            bar(done)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["3", "5", "8", "10", "13", "15", "18", "20", "23", "25"]
    assert lines[0] == "cpu-int8: 3 of 25, 0.3/s, 1:06 left"
    assert lines[-1] == "cpu-int8: 25 of 25, 0.3/s, 0:00 left"
    assert out.getvalue().endswith("left\n")


@pytest.mark.parametrize(("out", "end"), [(Terminal(), "\x1b[K\n"), (io.StringIO(), "left\n")])
def test_task_that_ends_early(clock: Clock, out: io.StringIO, end: str) -> None:
    """What is printed next, an error say, does not stick to the bar."""

    def task() -> None:
        with ProgressBar("x", 10, out) as bar:
            clock.now_s += 1
            bar(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task()
    assert out.getvalue().endswith(end)
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize("out", [Terminal(), io.StringIO()], ids=["terminal", "no terminal"])
def test_nothing_shown_nothing_ended(clock: Clock, out: io.StringIO) -> None:
    with ProgressBar("x", 100, out) as bar:
        bar(1)
    assert out.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("elapsed_s", [0.0, 0.5], ids=["at once", "later"])
@pytest.mark.parametrize("total", [1, 2, 9, 10, 11, 10_570, 123_456_789])
def test_any_total_comes_to_its_end(clock: Clock, terminal: bool, elapsed_s: float, total: int) -> None:
    """Also where no time has passed, and where none is done yet."""
    out = Terminal() if terminal else io.StringIO()
    bar = ProgressBar("x", total, out)
    clock.now_s += elapsed_s
    bar(0)
    clock.now_s += elapsed_s
    bar(total // 2)
    bar(total)
    text = out.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == (1 if terminal or total == 1 else 2)
    assert f" {total:,} of {total:,}, " in text.splitlines()[-1]
    assert "0:00 left" in text.splitlines()[-1]


def test_hours_are_minutes_and_thousands_are_set_apart(clock: Clock) -> None:
    out = io.StringIO()
    bar = ProgressBar("x", 100_000, out)
    clock.now_s += 1000
    bar(10_000)
    assert out.getvalue() == "x: 10,000 of 100,000, 10.0/s, 150:00 left\n"


def test_fits_80_columns(clock: Clock) -> None:
    out = Terminal()
    bar = ProgressBar("cpu-int8", 130_319, out)
    clock.now_s += 600
    bar(100_000)
    assert len(re.sub(r"\x1b\[K|\r", "", out.getvalue())) < 80
