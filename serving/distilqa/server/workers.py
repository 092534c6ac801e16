"""Threads for what would hold the event loop up: parsing, tokenising and decoding."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, TypeVar

# A piece of work of so many bytes takes some milliseconds.
SMALL_BYTES = 8192

_Result = TypeVar("_Result")


@dataclass(order=True, slots=True)
class _Job:
    size: int
    number: int
    work: Callable[[], Any] = field(compare=False)
    done: asyncio.Future[Any] = field(compare=False)


class Workers:
    """As many threads as are asked for, and one more that books leave to sentences. Used on the event loop.

    Of what waits the smallest is next, so that the books of others do not keep a sentence waiting. A book's turn comes
    all the same: the model takes longer for any text than this does, and what is in flight is bounded.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="text")
        self._free = threads + 1
        self._numbers = count()
        self._waiting: list[_Job] = []

    async def run(self, work: Callable[[], _Result], size: int) -> _Result:
        """What some work gives. ``size`` is how much it is, in bytes of text or in what takes as long."""
        done: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, _Job(size, next(self._numbers), work, done))
        self._begin()
        try:
            return await done
        finally:
            del done  # an error holds this frame

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        while self._waiting and self._free > (self._waiting[0].size > SMALL_BYTES):
            job = heapq.heappop(self._waiting)
            if not job.done.done():  # nobody waits for it any more
                self._free -= 1
                running = asyncio.get_running_loop().run_in_executor(self._pool, job.work)
                running.add_done_callback(partial(self._end, job.done))

    def _end(self, done: asyncio.Future[Any], ran: asyncio.Future[Any]) -> None:
        self._free += 1
        error = None if ran.cancelled() else ran.exception()  # or asyncio would log what nobody waits for
        if not done.done():
            if error:
                done.set_exception(error)
            else:
                done.set_result(ran.result())
        self._begin()
