"""Who may come in: a permit for each request, bounded by count and by bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distilqa.errors import Overloaded, Unavailable

# Who is refused comes back no sooner than this.
_SHORTEST_WAIT_S = 0.1


def refusal(limit: str, problem: str, wait_s: float) -> Overloaded:
    """The error for a request that is one too many, by a limit, while what is queued will take ``wait_s``."""
    retry_after_s = max(wait_s, _SHORTEST_WAIT_S)
    return Overloaded(f"{problem} ({limit}); try again in {retry_after_s:.1f} s", retry_after_s, limit)


class Permits:
    """Bounds the requests in flight, by count and by bytes. Used from the event loop's thread only.

    ``wait_s`` tells how long what is queued will take: what is refused is told to come back after that.
    """

    def __init__(self, *, max_requests: int, max_bytes: int, wait_s: Callable[[], float]) -> None:
        self._max_requests, self._max_bytes, self._wait_s = max_requests, max_bytes, wait_s
        self.requests = 0
        self.bytes = 0
        self.streams = 0
        self.draining = asyncio.Event()
        self._idle = asyncio.Event()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold a permit for a request of ``size`` bytes.

        Raises at once: Overloaded if there is none, Unavailable once draining.
        """
        self._check_open()
        if self.requests >= self._max_requests:
            raise refusal("max_requests", f"{self.requests} requests are in flight", self._wait_s())
        if self.bytes + size > self._max_bytes:
            problem = f"requests of {self.bytes} bytes are in flight, and this one has {size}"
            raise refusal("max_bytes", problem, self._wait_s())
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size
            self._leave()

    @contextmanager
    def hold_stream(self) -> Iterator[None]:
        """Hold one of the streams that may be open, as many as requests in flight. Raises as `hold` does."""
        self._check_open()
        if self.streams >= self._max_requests:
            raise refusal("max_requests", f"{self.streams} streams are open", self._wait_s())
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1
            self._leave()

    def _leave(self) -> None:
        if self.draining.is_set() and not self.requests and not self.streams:
            self._idle.set()

    def _check_open(self) -> None:
        if self.draining.is_set():
            raise Unavailable("the server is stopping")

    async def drain(self) -> None:
        """Give out no more permits, and wait until those held are back, and the streams at their end."""
        self.draining.set()
        self._leave()
        await self._idle.wait()
