"""A front end's link and the model's end of it, over a real socket, before a scheduler that does as it is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from distilqa.errors import InferenceFailed, Overloaded, Unavailable
from distilqa.scheduling.queue import WindowResult
from distilqa.server.processes.frames import CANCEL, RUN, pack_run
from distilqa.server.processes.link import Link, Requests
from distilqa.text.arrays import Int64

# After this long something hangs that must not, and the test fails. Nothing that works waits for it.
GUARD_S = 20.0


class Model:
    """A scheduler whose answers are let go one by one."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[list[int]], float | None]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.cancelled = 0
        self.changed = asyncio.Event()

    @property
    def queued_windows(self) -> int:
        return 3 * len(self.asked)

    def wait_s(self) -> float:
        return 0.125 * len(self.asked)

    async def run(self, windows: Sequence[Int64], *, deadline: float | None = None) -> list[WindowResult]:
        self.asked.append(([ids.tolist() for ids in windows], deadline))
        self.changed.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            self.changed.set()
            raise
        if self.error:
            raise self.error
        return [
            WindowResult((ids.astype(np.float32), -ids.astype(np.float32)), 0.5, 0.25, len(windows)) for ids in windows
        ]

    async def until(self, *, asked: int = 0, cancelled: int = 0) -> None:
        async with asyncio.timeout(GUARD_S):
            while len(self.asked) < asked or self.cancelled < cancelled:
                self.changed.clear()
                await self.changed.wait()


class FrontEnd:
    """A link, which can be connected to a model, and what it was told."""

    def __init__(self) -> None:
        self.losses = 0
        self.lost = asyncio.Event()
        self.link = Link(self._lose)
        self._requests: list[Requests] = []

    def _lose(self) -> None:
        self.losses += 1
        self.lost.set()

    async def connect(self, model: Model) -> Requests:
        one, other = socket.socketpair()
        requests = Requests(model)  # type: ignore[arg-type]
        await requests.attach(one)
        await self.link.attach(other)
        self._requests.append(requests)
        return requests

    def close(self) -> None:
        for requests in self._requests:
            requests._frames.close()


@pytest.fixture
async def front_end() -> AsyncIterator[FrontEnd]:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    made = FrontEnd()
    yield made
    made.close()
    await asyncio.sleep(0)
    assert problems == [], "an error in a callback of the event loop"


WINDOWS = [np.array([1, 2, 3]), np.array([4, 5])]


async def begun(coroutine: Any, model: Model, asked: int = 1) -> asyncio.Task[list[WindowResult]]:
    """As a task of which the model has heard."""
    task = asyncio.create_task(coroutine)
    await model.until(asked=asked)
    return task


async def failure(task: asyncio.Task[Any]) -> BaseException:
    (error,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), GUARD_S)
    assert isinstance(error, BaseException)
    return error


async def test_a_request_is_run_elsewhere(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.open.clear()
    task = asyncio.create_task(front_end.link.run(WINDOWS, deadline=12.5))
    await model.until(asked=1)
    model.open.set()
    first, second = await asyncio.wait_for(task, GUARD_S)
    assert [side.tolist() for side in first.logits] == [[1, 2, 3], [-1, -2, -3]]
    assert [side.tolist() for side in second.logits] == [[4, 5], [-4, -5]]
    assert (first.queue_s, first.inference_s, first.run_windows) == (0.5, 0.25, 2)
    assert model.asked == [([[1, 2, 3], [4, 5]], 12.5)]
    assert await front_end.link.run([]) == []


async def test_of_the_queue_is_known_what_the_last_reply_said_while_more_are_to_come(front_end: FrontEnd) -> None:
    """Later it would be old, and refuse what nothing is before."""
    model = Model()
    await front_end.connect(model)
    assert (front_end.link.wait_s(), front_end.link.queued_windows) == (0, 0)
    await asyncio.wait_for(front_end.link.run(WINDOWS), GUARD_S)
    assert (front_end.link.wait_s(), front_end.link.queued_windows) == (0, 0)
    model.open.clear()
    task = asyncio.create_task(front_end.link.run(WINDOWS))
    await model.until(asked=2)
    assert (front_end.link.wait_s(), front_end.link.queued_windows) == (0.125, 3)
    task.cancel()
    await asyncio.wait((task,))
    assert (front_end.link.wait_s(), front_end.link.queued_windows) == (0, 0)
    model.open.set()


async def test_replies_find_who_asked_whatever_their_order(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.open.clear()
    tasks = [asyncio.create_task(front_end.link.run([np.full(3, n)])) for n in range(50)]
    await model.until(asked=50)
    model.open.set()
    found = await asyncio.wait_for(asyncio.gather(*tasks), GUARD_S)
    assert [int(ran.logits[0][0]) for (ran,) in found] == list(range(50))


async def test_what_went_wrong_is_told_with_its_cause(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.error = Overloaded("many windows wait", 2.5, "max_queued_windows")
    error = await failure(asyncio.create_task(front_end.link.run(WINDOWS)))
    assert isinstance(error, Overloaded)
    assert (error.retry_after_s, error.limit) == (2.5, "max_queued_windows")
    model.error = InferenceFailed("the model failed on this request")
    model.error.__cause__ = RuntimeError("a secret of the model")
    error = await failure(asyncio.create_task(front_end.link.run(WINDOWS)))
    assert isinstance(error, InferenceFailed)
    assert str(error) == "the model failed on this request"
    assert "RuntimeError: a secret of the model" in error.__notes__[0]


async def test_a_defect_is_no_secret_to_the_log(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.error = ZeroDivisionError("a defect")
    error = await failure(asyncio.create_task(front_end.link.run(WINDOWS)))
    assert isinstance(error, InferenceFailed)
    assert "a defect" not in str(error)
    assert "ZeroDivisionError: a defect" in error.__notes__[0]


async def test_who_leaves_is_not_worked_for(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.open.clear()
    leaving = await begun(front_end.link.run(WINDOWS), model)
    staying = await begun(front_end.link.run(WINDOWS), model, 2)
    leaving.cancel()
    await model.until(cancelled=1)
    model.open.set()
    assert len(await asyncio.wait_for(staying, GUARD_S)) == 2
    assert model.cancelled == 1


async def test_who_leaves_at_once_leaves_nothing_behind() -> None:
    """Both frames are there before the task has taken its first step."""
    model = Model()
    requests = Requests(model)  # type: ignore[arg-type]
    content = memoryview(b"".join(pack_run(WINDOWS, None)))
    for number in range(10):
        requests._take(RUN, number, content)
        requests._take(CANCEL, number, memoryview(b""))
    async with asyncio.timeout(GUARD_S):
        while requests._tasks:
            await asyncio.sleep(0)
    assert model.asked == []


async def test_a_connection_that_has_ended_already_is_none(front_end: FrontEnd) -> None:
    one, other = socket.socketpair()
    one.close()
    await front_end.link.attach(other)
    async with asyncio.timeout(GUARD_S):
        while front_end.link.is_attached:
            await asyncio.sleep(0)
    assert isinstance(await failure(asyncio.create_task(front_end.link.run(WINDOWS))), Unavailable)


async def test_a_reply_to_one_that_leaves_in_that_moment_is_dropped(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.open.clear()
    leaving = await begun(front_end.link.run(WINDOWS), model)
    (number,) = front_end.link._asked
    leaving.cancel()
    front_end.link._fail_all("before the task has taken its step")
    assert isinstance(await failure(leaving), asyncio.CancelledError)
    assert number not in front_end.link._asked


async def test_without_a_model_nothing_can_be_asked(front_end: FrontEnd) -> None:
    assert not front_end.link.is_attached
    assert isinstance(await failure(asyncio.create_task(front_end.link.run(WINDOWS))), Unavailable)


async def test_a_model_that_goes_takes_what_it_was_asked_with_it(front_end: FrontEnd) -> None:
    """And the next one starts anew."""
    model, another = Model(), Model()
    requests = await front_end.connect(model)
    model.open.clear()
    asking = await begun(front_end.link.run(WINDOWS), model)
    requests._frames.close()
    error = await failure(asking)
    assert isinstance(error, Unavailable)
    assert "the process that has the model has ended" in str(error)
    await asyncio.wait_for(front_end.lost.wait(), GUARD_S)
    assert (front_end.losses, front_end.link.is_attached) == (1, False)
    await front_end.connect(another)
    assert len(await asyncio.wait_for(front_end.link.run(WINDOWS), GUARD_S)) == 2


async def test_the_next_model_may_come_before_word_of_the_end(front_end: FrontEnd) -> None:
    """Then what the first was asked fails too, and the second is not taken for lost."""
    model, another = Model(), Model()
    requests = await front_end.connect(model)
    model.open.clear()
    asking = await begun(front_end.link.run(WINDOWS), model)
    await front_end.connect(another)
    assert isinstance(await failure(asking), Unavailable)
    requests._frames.close()
    await model.until(cancelled=1)
    assert front_end.link.is_attached
    assert front_end.losses == 0
    assert len(await asyncio.wait_for(front_end.link.run(WINDOWS), GUARD_S)) == 2


async def test_a_front_end_that_goes_leaves_no_work(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.open.clear()
    asking = await begun(front_end.link.run(WINDOWS), model)
    assert front_end.link._frames is not None
    front_end.link._frames.close()
    await model.until(cancelled=1)
    assert isinstance(await failure(asking), Unavailable)


async def test_once_closed_nothing_is_run(front_end: FrontEnd) -> None:
    model = Model()
    await front_end.connect(model)
    model.open.clear()
    asking = await begun(front_end.link.run(WINDOWS), model)
    await front_end.link.close("the server stopped before this was done")
    for task in (asking, asyncio.create_task(front_end.link.run(WINDOWS))):
        error = await failure(task)
        assert isinstance(error, Unavailable)
        assert str(error) == "the server stopped before this was done"
