"""Lanes before an engine that does as it is told: it waits, fails, and keeps what it was given.

Gates decide what is queued while a lane is busy, so the order of things never hangs on time.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distilqa.engine.base import SHARED_RUN_TOKENS, SHARED_RUN_WINDOWS
from distilqa.errors import DeadlineExceeded, InferenceFailed, Overloaded, Unavailable
from distilqa.scheduling import scheduler as scheduler_module
from distilqa.scheduling.queue import WindowResult
from distilqa.scheduling.scheduler import Scheduler
from distilqa.text.arrays import Int64, Logits

# After this long something hangs that must not, and the test fails. Nothing that works waits for it.
GUARD_S = 20.0

# The length of windows that never share a run.
LONG = SHARED_RUN_TOKENS + 1

# The label of the window that keeps a lane busy.
BUSY = 999


class Gate:
    """Where a run stops until it is let on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reached = asyncio.Event()
        self._open = threading.Event()

    async def reached(self) -> None:
        """Return when a run stands before it."""
        await asyncio.wait_for(self._reached.wait(), GUARD_S)

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self._loop.call_soon_threadsafe(self._reached.set)
        assert self._open.wait(GUARD_S), "nobody opened the gate"


class FakeEngine:
    """Windows are known by their label, the value of their tokens; their logits are the label and its negative."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, ...]] = []
        self.gates: dict[tuple[int, ...], Gate] = {}
        self.failing: set[int] = set()
        self.token_s = 0.0
        self.budget: int | None = None
        self.deadly: set[tuple[int, ...]] = set()
        self.alone: list[bool] = []

    def hold(self, *labels: int) -> Gate:
        """Let the run of just these windows wait at a gate."""
        return self.gates.setdefault(labels, Gate())

    def run(self, windows: Sequence[Int64], *, alone: bool) -> list[Logits]:
        labels = tuple(int(ids[0]) for ids in windows)
        self.runs.append(labels)
        self.alone.append(alone)
        if labels in self.deadly:
            raise SystemExit("a defect")
        if labels in self.gates:
            self.gates[labels].pass_through()
        if self.failing & set(labels):
            raise RuntimeError(f"the model broke on {labels}")
        return [(np.full(len(ids), ids[0], np.float32), np.full(len(ids), -ids[0], np.float32)) for ids in windows]


def window(label: int, length: int = LONG) -> Int64:
    return np.full(length, label, np.int64)


def labels(results: Sequence[WindowResult]) -> list[int]:
    """Whose logits these are."""
    assert all(result.logits[1][0] == -result.logits[0][0] for result in results)
    return [int(result.logits[0][0]) for result in results]


async def nothing() -> None:
    """A task of this ends after every task made before has taken its first step: has queued its windows, here."""


async def queued(*requests: Coroutine[Any, Any, list[WindowResult]]) -> list[asyncio.Task[list[WindowResult]]]:
    """The requests as tasks that have queued their windows, in this order."""
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.create_task(nothing())
    return tasks


async def finished(*tasks: asyncio.Task[Any]) -> list[Any]:
    """What the tasks gave or raised."""
    async with asyncio.timeout(GUARD_S):
        return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    yield engine
    for gate in engine.gates.values():
        gate.open()
    assert problems == [], "an error in a callback of the event loop"


@pytest.fixture
async def schedulers(engine: FakeEngine) -> AsyncIterator[Callable[[int], Scheduler]]:
    """Makes schedulers on the engine, and closes them at the end."""
    made: list[Scheduler] = []

    def make(lanes: int) -> Scheduler:
        made.append(Scheduler(engine, lanes=lanes, max_queued_windows=1000))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for gate in engine.gates.values():
        gate.open()
    for scheduler in made:
        await asyncio.wait_for(scheduler.close(), GUARD_S)


@pytest.fixture
async def scheduler(schedulers: Callable[[int], Scheduler]) -> Scheduler:
    """One lane, so that one run at a gate holds everything up."""
    return schedulers(1)


@asynccontextmanager
async def busy(scheduler: Scheduler, engine: FakeEngine) -> AsyncIterator[None]:
    """The only lane is held up while the block runs, and what it queued is run after it."""
    gate = engine.hold(BUSY)
    (blocker,) = await queued(scheduler.run([window(BUSY)]))
    await gate.reached()
    yield
    gate.open()
    await finished(blocker)
    assert engine.runs.pop(0) == (BUSY,)


class TestSharedRuns:
    @pytest.mark.parametrize("length", [1, SHARED_RUN_TOKENS])
    @pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [2]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])])
    async def test_short_windows_of_one_length_share(
        self, scheduler: Scheduler, engine: FakeEngine, length: int, count: int, sizes: list[int]
    ) -> None:
        assert (SHARED_RUN_TOKENS, SHARED_RUN_WINDOWS) == (64, 8)
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(n, length)]) for n in range(count)))
        results = await finished(*tasks)
        assert [labels(result) for result in results] == [[n] for n in range(count)]
        assert [len(run) for run in engine.runs] == sizes
        assert [n for run in engine.runs for n in run] == list(range(count))
        assert [result.run_windows for (result,) in results] == [size for size in sizes for _ in range(size)]
        assert scheduler.run_sizes == {**{size: sizes.count(size) for size in sizes}, 1: 1 + sizes.count(1)}

    @pytest.mark.parametrize("length", [SHARED_RUN_TOKENS + 1, 384])
    async def test_long_windows_never_share(self, scheduler: Scheduler, engine: FakeEngine, length: int) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(n, length)]) for n in range(3)))
        await finished(*tasks)
        assert engine.runs == [(0,), (1,), (2,)]

    async def test_different_lengths_never_share(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(n, 30 + n)]) for n in range(4)))
        await finished(*tasks)
        assert engine.runs == [(0,), (1,), (2,), (3,)]

    async def test_windows_of_one_request_share_too(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(scheduler.run([window(0, 9), window(1, 70), window(2, 9)]))
        assert labels((await finished(*tasks))[0]) == [0, 1, 2]
        assert engine.runs == [(0, 2), (1,)]

    async def test_first_come_first_run(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        """Only equals of the one whose turn it is go before theirs."""
        lengths = [100, 30, 200, 40, 30, 65, 40, 30]
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(n, length)]) for n, length in enumerate(lengths)))
        assert [labels(result) for result in await finished(*tasks)] == [[n] for n in range(len(lengths))]
        assert engine.runs == [(0,), (1, 4, 7), (2,), (3, 6), (5,)]

    async def test_a_lane_waits_for_no_company(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        for n in range(3):
            assert labels(await asyncio.wait_for(scheduler.run([window(n, 30)]), GUARD_S)) == [n]
        assert engine.runs == [(0,), (1,), (2,)]


class TestBudget:
    """Where the engine packs windows of any lengths into a run, up to so many tokens."""

    @pytest.fixture(autouse=True)
    def budget(self, engine: FakeEngine) -> None:
        engine.budget = 300

    async def test_a_run_takes_what_fits_in_turn(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        lengths = [100, 150, 80, 30, 300, 10, 290, 1]
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(n, length)]) for n, length in enumerate(lengths)))
        assert [labels(result) for result in await finished(*tasks)] == [[n] for n in range(len(lengths))]
        assert engine.runs == [(0, 1), (2, 3), (4,), (5, 6), (7,)]

    async def test_a_book_leaves_room_for_a_sentence(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(scheduler.run([window(n, 100) for n in range(4)]), scheduler.run([window(9, 20)]))
        await finished(*tasks)
        assert engine.runs == [(0, 9, 1), (2, 3)]

    async def test_what_nobody_wants_takes_no_room(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(
                scheduler.run([window(0, 100)]),
                scheduler.run([window(1, 200)], deadline=0.0),
                scheduler.run([window(2, 200)]),
            )
        kept, late, other = await finished(*tasks)
        assert isinstance(late, DeadlineExceeded)
        assert [labels(kept), labels(other)] == [[0], [2]]
        assert engine.runs == [(0, 2)]

    async def test_a_run_has_only_so_many_windows(
        self, scheduler: Scheduler, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scheduler_module, "RUN_WINDOWS", 3)
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(n, 1)]) for n in range(7)))
        await finished(*tasks)
        assert engine.runs == [(0, 1, 2), (3, 4, 5), (6,)]

    @pytest.mark.parametrize(("budget", "counts"), [(300, False), (100, True)])
    async def test_a_small_run_says_nothing_of_how_long_a_queue_takes(
        self, scheduler: Scheduler, engine: FakeEngine, clock: list[float], budget: int, counts: bool
    ) -> None:
        engine.budget = budget
        await run_for(3.0, scheduler, engine, clock)
        async with busy(scheduler, engine):
            (task,) = await queued(scheduler.run([window(1)]))
            assert (scheduler.wait_s() > 0) is counts
        await finished(task)

    async def test_one_that_is_larger_than_all_runs_alone(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(scheduler.run([window(0, 384)]), scheduler.run([window(1, 1)]))
        await finished(*tasks)
        assert engine.runs == [(0,), (1,)]


class TestLanes:
    async def test_results_come_in_the_order_of_the_windows(
        self, schedulers: Callable[[int], Scheduler], engine: FakeEngine
    ) -> None:
        """Whichever lane is done first: here the first window is the last to be done."""
        scheduler = schedulers(2)
        gate = engine.hold(0)
        first, second = await queued(scheduler.run([window(0), window(1)]), scheduler.run([window(2)]))
        await finished(second)
        assert not first.done()
        gate.open()
        assert [labels(result) for result in await finished(first, second)] == [[0, 1], [2]]

    async def test_as_many_runs_at_once_as_lanes(
        self, schedulers: Callable[[int], Scheduler], engine: FakeEngine
    ) -> None:
        scheduler = schedulers(3)
        gates = [engine.hold(n) for n in range(4)]
        (task,) = await queued(scheduler.run([window(n) for n in range(4)]))
        for gate in gates[:3]:
            await gate.reached()
        assert sorted(engine.runs) == [(0,), (1,), (2,)]
        for gate in gates:
            gate.open()
        assert labels((await finished(task))[0]) == [0, 1, 2, 3]

    async def test_no_windows(self, scheduler: Scheduler) -> None:
        assert await asyncio.wait_for(scheduler.run([]), GUARD_S) == []

    async def test_every_window_is_run_once(self, schedulers: Callable[[int], Scheduler], engine: FakeEngine) -> None:
        scheduler = schedulers(4)
        requests = [[window(10 * n + part, 20 + (n * part) % 60) for part in range(n % 7)] for n in range(60)]
        tasks = await queued(*(scheduler.run(request) for request in requests))
        expected = [[int(ids[0]) for ids in request] for request in requests]
        assert [labels(result) for result in await finished(*tasks)] == expected
        assert sorted(label for run in engine.runs for label in run) == sorted(n for part in expected for n in part)
        assert sum(size * count for size, count in scheduler.run_sizes.items()) == sum(map(len, requests))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scheduler's time in seconds, as its only item."""
    now = [1000.0]
    monkeypatch.setattr("distilqa.scheduling.scheduler.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


async def run_for(seconds: float, scheduler: Scheduler, engine: FakeEngine, clock: list[float]) -> None:
    """A run of one window that takes so long."""
    gate = engine.hold(0)
    (task,) = await queued(scheduler.run([window(0)]))
    await gate.reached()
    clock[0] += seconds
    gate.open()
    await finished(task)
    engine.runs.clear()
    engine.gates.clear()


class TestLeaving:
    async def test_cancelled_callers_windows_are_never_run(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(2 * n), window(2 * n + 1, 30)]) for n in range(3)))
            tasks[1].cancel()
            results = await finished(tasks[1])
        assert isinstance(results[0], asyncio.CancelledError)
        assert [labels(result) for result in await finished(tasks[0], tasks[2])] == [[0, 1], [4, 5]]
        assert engine.runs == [(0,), (4,), (1, 5)]

    async def test_a_caller_may_leave_while_its_window_runs(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        gate = engine.hold(1)
        leaving, staying = await queued(scheduler.run([window(1), window(2)]), scheduler.run([window(3)]))
        await gate.reached()
        leaving.cancel()
        await finished(leaving)
        gate.open()
        assert labels((await finished(staying))[0]) == [3]
        assert engine.runs == [(1,), (3,)]

    @pytest.mark.parametrize("length", [LONG, 30])
    async def test_windows_past_their_deadline_are_never_run(
        self, scheduler: Scheduler, engine: FakeEngine, clock: list[float], length: int
    ) -> None:
        deadlines = [None, clock[0] + 4.0, clock[0] + 6.0, clock[0] - 1.0]
        async with busy(scheduler, engine):
            tasks = await queued(
                *(scheduler.run([window(n, length)], deadline=deadline) for n, deadline in enumerate(deadlines))
            )
            clock[0] += 5.0
        results = await finished(*tasks)
        assert [type(result) for result in results] == [list, DeadlineExceeded, list, DeadlineExceeded]
        assert [n for run in engine.runs for n in run] == [0, 2]

    async def test_deadline_between_the_windows_of_a_request(
        self, scheduler: Scheduler, engine: FakeEngine, clock: list[float]
    ) -> None:
        gate = engine.hold(1)
        late, other = await queued(
            scheduler.run([window(1), window(2)], deadline=clock[0] + 1.0), scheduler.run([window(3)])
        )
        await gate.reached()
        clock[0] += 2.0
        gate.open()
        error, result = await finished(late, other)
        assert isinstance(error, DeadlineExceeded)
        assert labels(result) == [3]
        assert engine.runs == [(1,), (3,)]

    async def test_timings(self, scheduler: Scheduler, engine: FakeEngine, clock: list[float]) -> None:
        """By the clock of the test: 5 s in the queue, then 3 s in the model."""
        gate = engine.hold(1)
        async with busy(scheduler, engine):
            (task,) = await queued(scheduler.run([window(1)]))
            clock[0] += 5.0
        await gate.reached()
        clock[0] += 3.0
        gate.open()
        ((ran,),) = await finished(task)
        assert (ran.queue_s, ran.inference_s, ran.run_windows) == (5.0, 3.0, 1)

    @pytest.mark.parametrize("leave", ["cancelled", "late"])
    async def test_what_is_dropped_is_not_kept(
        self, scheduler: Scheduler, engine: FakeEngine, clock: list[float], leave: str
    ) -> None:
        """A short window that is dropped leaves no trace, though no other of its length ever comes."""
        async with busy(scheduler, engine):
            dropped = window(1, 30)
            trace = weakref.ref(dropped)
            (task,) = await queued(scheduler.run([dropped], deadline=clock[0] + 1.0))
            if leave == "cancelled":
                task.cancel()
                await finished(task)
            clock[0] += 2.0
            (other,) = await queued(scheduler.run([window(2, 40)]))
        await finished(task, other)
        assert engine.runs == [(2,)]
        del dropped, task
        await asyncio.create_task(nothing())  # the event loop holds on to a result for one turn
        gc.collect()
        assert trace() is None


class TestFailures:
    @pytest.mark.parametrize("length", [LONG, 30])
    async def test_a_failure_is_its_own_requests_alone(
        self, scheduler: Scheduler, engine: FakeEngine, length: int
    ) -> None:
        """Short windows share the run that fails: then each is run by itself."""
        engine.failing = {1}
        async with busy(scheduler, engine):
            tasks = await queued(*(scheduler.run([window(n, length)]) for n in range(3)))
        first, second, third = await finished(*tasks)
        assert (labels(first), labels(third)) == ([0], [2])
        assert isinstance(second, InferenceFailed)
        assert "broke" not in str(second)
        assert "broke" in str(second.__cause__)
        assert engine.runs[-3:] == [(0,), (1,), (2,)]
        assert [result.run_windows for result in (*first, *third)] == [1, 1]

    async def test_the_lane_lives_on(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        engine.failing = {0, 1, 2}
        for n in range(3):
            (result,) = await finished(*(await queued(scheduler.run([window(n)]))))
            assert isinstance(result, InferenceFailed)
        assert labels(await asyncio.wait_for(scheduler.run([window(3)]), GUARD_S)) == [3]

    async def test_what_is_left_of_a_failed_request_is_dropped(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        """And not what others asked, though it shared the run that failed."""
        engine.failing = {1}
        async with busy(scheduler, engine):
            tasks = await queued(
                scheduler.run([window(1, 30), window(2)]), scheduler.run([window(3, 30)]), scheduler.run([window(4)])
            )
        failed, *others = await finished(*tasks)
        assert isinstance(failed, InferenceFailed)
        assert [labels(result) for result in others] == [[3], [4]]
        assert engine.runs == [(1, 3), (1,), (3,), (4,)]

    async def test_several_windows_of_a_request_may_fail(
        self, schedulers: Callable[[int], Scheduler], engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The caller gets one error, and no other is left for asyncio to complain about."""
        scheduler = schedulers(2)
        engine.failing = {1, 2}
        gates = [engine.hold(n) for n in (1, 2)]
        (task,) = await queued(scheduler.run([window(1), window(2)]))
        for gate in gates:
            await gate.reached()
        for gate in gates:
            gate.open()
        assert isinstance((await finished(task))[0], InferenceFailed)
        assert labels(await asyncio.wait_for(scheduler.run([window(3), window(4)]), GUARD_S)) == [3, 4]
        del task
        gc.collect()
        assert caplog.records == []


class TestAdmission:
    async def test_as_many_windows_wait_as_may(self, engine: FakeEngine) -> None:
        """One more is refused at once, and those of a caller who leaves make room."""
        scheduler = Scheduler(engine, lanes=1, max_queued_windows=3)  # type: ignore[arg-type]
        async with busy(scheduler, engine):
            first, second = await queued(scheduler.run([window(1), window(2)]), scheduler.run([window(3)]))
            with pytest.raises(Overloaded, match="3 windows are waiting, and this request has 1 ") as caught:
                await scheduler.run([window(4)])
            assert caught.value.limit == "max_queued_windows"
            first.cancel()
            await finished(first)
            (third,) = await queued(scheduler.run([window(5), window(6)]))
        assert [labels(result) for result in await finished(second, third)] == [[3], [5, 6]]
        await scheduler.close()

    async def test_what_would_be_too_late_is_refused_at_once(
        self, scheduler: Scheduler, engine: FakeEngine, clock: list[float]
    ) -> None:
        """By the runs before it: here one took 3 s."""
        await run_for(3.0, scheduler, engine, clock)
        async with busy(scheduler, engine):
            book, sentence = await queued(scheduler.run([window(n) for n in range(1, 6)]), scheduler.run([window(6)]))
            waits = [scheduler.wait_s(), scheduler.wait_s(1), scheduler.wait_s(2)]
            assert waits == pytest.approx([18.0, 6.0, 9.0], rel=0.02)
            with pytest.raises(Overloaded, match=r"about 5\.9 s of work are before this request") as caught:
                await scheduler.run([window(7)], deadline=clock[0] + 5.8)
            assert (caught.value.limit, caught.value.retry_after_s) == ("deadline", waits[1])
            (in_time,) = await queued(scheduler.run([window(7)], deadline=clock[0] + 6.1))
        await finished(book, sentence, in_time)
        assert engine.runs == [(n,) for n in (1, 6, 7, 2, 3, 4, 5)]

    async def test_what_was_long_ago_is_forgotten(
        self, scheduler: Scheduler, engine: FakeEngine, clock: list[float]
    ) -> None:
        """Runs of 3 s, then many of 1 s."""
        await run_for(3.0, scheduler, engine, clock)
        for _ in range(100):
            await run_for(1.0, scheduler, engine, clock)
        async with busy(scheduler, engine):
            (task,) = await queued(scheduler.run([window(1)]))
            assert scheduler.wait_s() == pytest.approx(1.0, rel=0.1)
        await finished(task)

    async def test_before_the_first_run_the_engine_says_how_long_one_takes(
        self, schedulers: Callable[[int], Scheduler], engine: FakeEngine
    ) -> None:
        engine.token_s = 0.1
        scheduler = schedulers(1)
        async with busy(scheduler, engine):
            (task,) = await queued(scheduler.run([window(1, 100)]))
            assert scheduler.wait_s() == pytest.approx(10.0)
        await finished(task)

    async def test_an_idle_server_tries(self, scheduler: Scheduler, engine: FakeEngine, clock: list[float]) -> None:
        """However long the last run took: nothing is before it."""
        await run_for(3.0, scheduler, engine, clock)
        assert labels(await asyncio.wait_for(scheduler.run([window(1)], deadline=clock[0] + 0.1), GUARD_S)) == [1]


class TestAlone:
    async def test_one_on_an_idle_server_has_all_cores(
        self, schedulers: Callable[[int], Scheduler], engine: FakeEngine
    ) -> None:
        scheduler = schedulers(2)
        gate = engine.hold(1)
        (first,) = await queued(scheduler.run([window(1)]))
        await gate.reached()
        await asyncio.wait_for(scheduler.run([window(2)]), GUARD_S)
        gate.open()
        await finished(first)
        await asyncio.wait_for(scheduler.run([window(3)]), GUARD_S)
        assert (engine.runs, engine.alone) == ([(1,), (2,), (3,)], [True, False, True])

    async def test_while_others_wait_a_run_has_one_core(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        async with busy(scheduler, engine):
            tasks = await queued(scheduler.run([window(1)]), scheduler.run([window(2)]))
        await finished(*tasks)
        assert engine.alone == [True, False, True]


class TestDeath:
    async def test_a_lane_that_dies_takes_everything_with_it(
        self, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        died = asyncio.Event()
        scheduler = Scheduler(
            engine,  # type: ignore[arg-type]
            lanes=1,
            max_queued_windows=9,
            on_death=died.set,
        )
        engine.deadly = {(1,)}
        async with busy(scheduler, engine):
            tasks = await queued(scheduler.run([window(1)]), scheduler.run([window(2)]))
        for result in await finished(*tasks):
            assert isinstance(result, Unavailable)
            assert "broken" in str(result)
        await asyncio.wait_for(died.wait(), GUARD_S)
        with pytest.raises(Unavailable, match="broken"):
            await scheduler.run([window(3)])
        await asyncio.wait_for(scheduler.close(), GUARD_S)
        (record,) = caplog.records
        assert record.levelname == "CRITICAL"
        assert record.exc_info is not None


def lanes() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lane-")}


class TestClose:
    @pytest.mark.parametrize("number", [1, 3])
    async def test_ends_idle_lanes(self, engine: FakeEngine, number: int) -> None:
        before = lanes()
        scheduler = Scheduler(engine, lanes=number, max_queued_windows=1)  # type: ignore[arg-type]
        assert len(lanes() - before) == number
        await asyncio.wait_for(scheduler.close(), GUARD_S)
        assert lanes() == before

    async def test_finishes_what_runs_and_drops_what_is_queued(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        gate = engine.hold(1)
        running, *waiting = await queued(
            scheduler.run([window(1)]), scheduler.run([window(2)]), scheduler.run([window(3, 30), window(4, 30)])
        )
        await gate.reached()
        closing = asyncio.create_task(scheduler.close())
        for dropped in await finished(*waiting):
            assert isinstance(dropped, Unavailable)
        assert not closing.done()
        gate.open()
        assert labels((await finished(running))[0]) == [1]
        await finished(closing)
        assert engine.runs == [(1,)]

    async def test_twice(self, scheduler: Scheduler) -> None:
        for _ in range(2):
            await asyncio.wait_for(scheduler.close(), GUARD_S)

    async def test_a_request_that_comes_after_it_does_not_hang(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        await asyncio.wait_for(scheduler.close(), GUARD_S)
        (late,) = await queued(scheduler.run([window(1)]))
        for _ in range(10):
            await asyncio.create_task(nothing())
        hangs = not late.done()
        late.cancel()
        (result,) = await finished(late)
        assert not hangs
        assert isinstance(result, Unavailable)
        assert engine.runs == []
