"""Who may come in: a permit for each request, bounded by count and by bytes, over all processes that let in."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from distilqa.errors import Unavailable
from distilqa.scheduling.refusal import refusal

_REQUESTS, _BYTES, _STREAMS = range(3)


class Counts:
    """What is held: a row for each process that lets in, of requests, their bytes, and streams.

    It is in memory of its own, or in that of the file behind a ``descriptor``, of `BYTES` for each process, which they
    share. ``all`` is (processes, 3) int64, and ``own`` this process's row of it.
    """

    BYTES = 3 * 8

    def __init__(self, processes: int = 1, own: int = 0, descriptor: int = -1) -> None:
        rows = np.frombuffer(mmap.mmap(descriptor, processes * self.BYTES), np.int64)
        self.all = rows.reshape(processes, 3)
        self.own = self.all[own]


class Permits:
    """Bounds the requests in flight, by count and by bytes. Used from the event loop's thread only.

    ``wait_s`` tells how long what is queued will take: what is refused is told to come back after that. Where several
    processes let in, ``counts`` is what all of them hold.
    """

    def __init__(
        self, *, max_requests: int, max_bytes: int, wait_s: Callable[[], float], counts: Counts | None = None
    ) -> None:
        self._max_requests, self._max_bytes, self._wait_s = max_requests, max_bytes, wait_s
        counts = counts or Counts()
        self._all, self._own = counts.all, counts.own
        self.draining = asyncio.Event()
        self._idle = asyncio.Event()

    @property
    def requests(self) -> int:
        """How many are in flight."""
        return int(self._all[:, _REQUESTS].sum())

    @property
    def own_requests(self) -> int:
        """How many this process has let in."""
        return int(self._own[_REQUESTS])

    @property
    def own_streams(self) -> int:
        """How many this process has open."""
        return int(self._own[_STREAMS])

    @property
    def bytes(self) -> int:
        """How many bytes they have."""
        return int(self._all[:, _BYTES].sum())

    @property
    def streams(self) -> int:
        """How many are open."""
        return int(self._all[:, _STREAMS].sum())

    def check_open(self) -> None:
        """Raises Unavailable once draining."""
        if self.draining.is_set():
            raise Unavailable("the server is stopping")

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold a permit for a request of ``size`` bytes.

        Raises at once: Overloaded if there is none, Unavailable once draining.
        """
        with self._take(requests=1, size=size):
            if self.requests > self._max_requests:
                raise refusal("max_requests", f"{self._max_requests} requests are in flight", self._wait_s())
            if (together := self.bytes) > self._max_bytes:
                problem = f"requests of {together - size} bytes are in flight, and this one has {size}"
                raise refusal("max_bytes", problem, self._wait_s())
            yield

    @contextmanager
    def hold_stream(self) -> Iterator[None]:
        """Hold one of the streams that may be open, as many as requests in flight. Raises as `hold` does."""
        with self._take(streams=1):
            if self.streams > self._max_requests:
                raise refusal("max_requests", f"{self._max_requests} streams are open", self._wait_s())
            yield

    @contextmanager
    def _take(self, *, requests: int = 0, size: int = 0, streams: int = 0) -> Iterator[None]:
        """Count first and look then: processes that do so at once never go beyond a limit; at the last place, all of
        them may be refused."""
        self.check_open()
        taken = requests, size, streams
        self._own += taken
        try:
            yield
        finally:
            self._own -= taken
            self._leave()

    def _leave(self) -> None:
        if self.draining.is_set() and not self._own[_REQUESTS] and not self._own[_STREAMS]:
            self._idle.set()

    async def drain(self) -> None:
        """Give out no more permits, and wait until those held here are back, and the streams at their end."""
        self.draining.set()
        self._leave()
        await self._idle.wait()
