"""Threads for what would hold the event loop up: parsing, tokenising and decoding."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, TypeVar

from distilqa.errors import Unavailable

# A piece of work of so many bytes takes some milliseconds.
SMALL_BYTES = 8192

# Of so many turns one is the oldest's: what is large would wait for ever where small work comes without end.
_TURNS = 4

_Result = TypeVar("_Result")


@dataclass(eq=False, slots=True)
class _Job:
    size: int
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class Workers:
    """As many threads as are asked for, and one more that books leave to sentences. Used on the event loop.

    Of what waits the smallest is next, so that the books of others do not keep a sentence waiting; but now and then the
    oldest is. Little may wait: permits bound it.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="text")
        _begin_all(self._pool, threads + 1)
        self._threads = threads
        self._turns = cycle(range(_TURNS))
        self._waiting: dict[_Job, None] = {}  # the oldest first
        self._running: set[_Job] = set()
        self._closed: str | None = None

    async def run(self, work: Callable[[], _Result], size: int) -> _Result:
        """What some work gives. ``size`` is how much it is, in bytes of text or in what takes as long.

        Raises Unavailable once closed.
        """
        if self._closed:
            raise Unavailable(self._closed)
        job = _Job(size, work, asyncio.get_running_loop().create_future())
        self._waiting[job] = None
        self._begin()
        try:
            return await job.done  # type: ignore[no-any-return]
        finally:
            self._waiting.pop(job, None)  # nobody waits for it any more
            del job  # an error holds this frame

    def close(self, reason: str) -> None:
        """Begin nothing more; what waits, and whoever waits for what runs, ends as Unavailable for that reason."""
        self._closed = reason
        for job in (*self._waiting, *self._running):
            if not job.done.done():
                job.done.set_exception(Unavailable(reason))
        self._waiting.clear()
        self._pool.shutdown(wait=False)

    def _begin(self) -> None:
        while job := self._next():
            del self._waiting[job]
            self._running.add(job)
            running = asyncio.get_running_loop().run_in_executor(self._pool, job.work)
            running.add_done_callback(partial(self._end, job))

    def _next(self) -> _Job | None:
        """What is begun now, if a thread is free for it."""
        if not self._waiting or len(self._running) > self._threads:
            return None
        smallest = min(self._waiting, key=lambda job: job.size)
        if sum(job.size > SMALL_BYTES for job in self._running) == self._threads:
            return smallest if smallest.size <= SMALL_BYTES else None
        return next(iter(self._waiting)) if next(self._turns) == _TURNS - 1 else smallest

    def _end(self, job: _Job, ran: asyncio.Future[Any]) -> None:
        self._running.remove(job)
        error = ran.exception()  # or asyncio would log what nobody waits for
        if not job.done.done():
            if error:
                job.done.set_exception(error)
            else:
                job.done.set_result(ran.result())
        self._begin()


def _begin_all(pool: ThreadPoolExecutor, threads: int) -> None:
    """Begin a pool's threads, which it does as work comes; but then there may be none to be had."""
    all_there = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(all_there.wait)
        all_there.wait()
    except BaseException:
        all_there.abort()
        raise
