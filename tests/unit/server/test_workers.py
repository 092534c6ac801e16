"""What is worked on next, and that nothing small waits for what is large."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from distilqa.errors import Unavailable
from distilqa.server.workers import SMALL_BYTES, Workers

LARGE = SMALL_BYTES + 1
GUARD_S = 20.0


class Held:
    """Work that begins when a thread has it, and ends when it is let go."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self.go_on.wait(GUARD_S)
        return threading.current_thread().name


@pytest.fixture
async def workers() -> Iterator[Workers]:  # type: ignore[misc]
    workers = Workers(2)
    yield workers
    workers.close("the test is over")


async def under_way(*held: Held) -> None:
    for one in held:
        assert await asyncio.to_thread(one.began.wait, GUARD_S)


def noting(noted: list[int], number: int) -> Callable[[], None]:
    return lambda: noted.append(number)


async def test_what_work_gives_or_raises(workers: Workers) -> None:
    assert (await workers.run(lambda: threading.current_thread().name, 1)).startswith("text")
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 // 0, 1)


class Tokenized:
    """What may be large."""


async def test_what_fails_leaves_nothing_behind(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    """Not until cycles are looked for; nor a word in the log, also where nobody waits for it any more."""
    left: list[weakref.ref[Tokenized]] = []

    def refuse() -> None:
        large = Tokenized()
        left.append(weakref.ref(large))
        raise ValueError("too much")

    async def ask() -> None:
        try:
            await workers.run(refuse, 1)
        except ValueError as error:
            traceback.clear_frames(error.__traceback__)

    gc.disable()
    try:
        await ask()
        assert left[0]() is None
        held = Held()

        def refuse_when_let_go() -> None:
            held()
            refuse()

        gone = asyncio.create_task(workers.run(refuse_when_let_go, 1))
        await under_way(held)
        gone.cancel()
        await asyncio.wait((gone,))
        held.go_on.set()
        while len(left) < 2 or left[1]():
            await asyncio.sleep(0.01)
    finally:
        gc.enable()
    gc.collect()
    assert caplog.records == []


async def test_small_work_finds_a_thread_beside_all_that_is_large(workers: Workers) -> None:
    books = [Held() for _ in range(5)]
    tasks = [asyncio.create_task(workers.run(book, LARGE)) for book in books]
    await under_way(*books[:2])
    assert await asyncio.wait_for(workers.run(lambda: "sentence", SMALL_BYTES), GUARD_S) == "sentence"
    assert not books[2].began.is_set()
    for book in books:
        book.go_on.set()
    assert len(await asyncio.gather(*tasks)) == 5


async def test_of_what_waits_the_smallest_is_next(workers: Workers) -> None:
    """And of equal work what came first; each fourth turn is the oldest's."""
    held, noted = [Held() for _ in range(3)], list[int]()
    tasks = [asyncio.create_task(workers.run(one, 1)) for one in held]
    await under_way(*held)
    sizes = {0: 30, 1: 10, 2: 20, 3: 10, 4: 5}
    waiting = [asyncio.create_task(workers.run(noting(noted, n), size)) for n, size in sizes.items()]
    await asyncio.sleep(0)
    held[0].go_on.set()
    await asyncio.gather(*waiting)
    assert noted == [0, 4, 1, 3, 2]
    for one in held:
        one.go_on.set()
    await asyncio.gather(*tasks)


async def test_what_is_large_has_its_turn_while_small_work_comes_without_end(workers: Workers) -> None:
    over = False

    async def ask() -> None:
        while not over:
            await workers.run(lambda: "sentence", 1)

    asking = [asyncio.create_task(ask()) for _ in range(12)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(workers.run(lambda: "book", LARGE), GUARD_S) == "book"
    over = True
    await asyncio.gather(*asking)


async def test_what_nobody_waits_for_any_more_is_not_done(workers: Workers) -> None:
    held, noted = [Held() for _ in range(3)], list[int]()
    tasks = [asyncio.create_task(workers.run(one, 1)) for one in held]
    await under_way(*held)
    gone, there = (asyncio.create_task(workers.run(noting(noted, n), n)) for n in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    for one in held:
        one.go_on.set()
    await asyncio.gather(there, *tasks)
    assert noted == [1]


async def test_what_nobody_waits_for_any_more_leaves_nothing_behind(workers: Workers) -> None:
    """Though it was never its turn."""
    held = [Held() for _ in range(3)]
    tasks = [asyncio.create_task(workers.run(one, 1)) for one in held]
    await under_way(*held)
    request = Tokenized()
    left = weakref.ref(request)
    waiting = asyncio.create_task(workers.run(partial(id, request), 1))
    del request
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    del waiting
    assert left() is None
    for one in held:
        one.go_on.set()
    await asyncio.gather(*tasks)


async def test_at_a_close_all_are_told(workers: Workers) -> None:
    """Also those whose work is under way, and who come later."""
    held = [Held() for _ in range(4)]
    tasks = [asyncio.create_task(workers.run(one, 1)) for one in held]
    await under_way(*held[:3])
    workers.close("it is time")
    tasks.append(asyncio.create_task(workers.run(lambda: "never", 1)))
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD_S)
    assert [str(end) for end in ends if isinstance(end, Unavailable)] == ["it is time"] * 5
    for one in held:
        one.go_on.set()


async def test_where_there_can_be_no_more_threads(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are there from the beginning."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    held = [Held() for _ in range(3)]
    tasks = [asyncio.create_task(workers.run(one, 1)) for one in held]
    while not all(one.began.is_set() for one in held):
        await asyncio.sleep(0.01)
    for one in held:
        one.go_on.set()
    await asyncio.gather(*tasks)
