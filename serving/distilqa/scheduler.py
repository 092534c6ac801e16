"""Who runs when: permits, a queue of windows, and lanes that run them.

A request holds a permit from before it is parsed until its reply is made. Its windows become entries of one queue. A
lane is a thread that takes the next entry and runs it; there are as many as cores, so that many requests use a core
each, while a single one on an idle server uses them all through the session's own threads. Short entries of the same
length share a run, since that pays up to 64 tokens; nothing waits for company, and nothing is padded.

An entry carries its own one-shot reply. One whose caller has left or whose deadline has passed is dropped when its
turn comes, without being run.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from distilqa.engine import SHARED_RUN_TOKENS, SHARED_RUN_WINDOWS, Engine
from distilqa.errors import DeadlineExceeded, InferenceFailed, Overloaded, Unavailable
from distilqa.spans import Logits
from distilqa.windows import Int64, Window

# How far down the queue company for a short entry is looked for.
_LOOK_AHEAD = 64

logger = logging.getLogger(__name__)


class Permits:
    """Bounds the requests in flight, by count and by bytes. Used from the event loop's thread only."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.requests = 0
        self.bytes = 0
        self._draining = False
        self._idle = asyncio.Event()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold a permit for a request of ``size`` bytes.

        Raises at once: Overloaded if there is none, Unavailable once draining.
        """
        if self._draining:
            raise Unavailable("the server is stopping")
        if self.requests >= self._max_requests or self.bytes + size > self._max_bytes:
            raise Overloaded(f"{self.requests} requests with {self.bytes} bytes are in flight", retry_after_s=1.0)
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size
            if self._draining and not self.requests:
                self._idle.set()

    async def drain(self) -> None:
        """Give out no more permits, and wait until those held are back."""
        self._draining = True
        if self.requests:
            await self._idle.wait()


@dataclass(frozen=True, slots=True)
class Ran:
    """What a lane gives back for a window: (start, end) logits, and how it came by them."""

    logits: Logits
    queue_s: float
    inference_s: float
    run_windows: int


@dataclass(slots=True, eq=False)
class _Entry:
    """A window waiting for its run. ``deadline`` is in time.monotonic's seconds."""

    input_ids: Int64
    deadline: float | None
    queued: float
    reply: asyncio.Future[Ran]


class Scheduler:
    """Runs windows on an engine in ``lanes`` threads. Made and used on the event loop; `close` it at the end."""

    def __init__(self, engine: Engine, *, lanes: int) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._closed = False
        self.run_sizes: Counter[int] = Counter()
        self._lanes = [threading.Thread(target=self._lane, name=f"lane-{n}", daemon=True) for n in range(lanes)]
        for lane in self._lanes:
            lane.start()

    async def run(self, windows: Sequence[Window], *, deadline: float | None = None) -> list[Ran]:
        """Queue the windows of a request and return what each gave, in order.

        Raises DeadlineExceeded if ``deadline`` passes before the last has begun, InferenceFailed if the model fails,
        Unavailable once closed. When the caller is cancelled or one window fails, those that have not begun are
        dropped.
        """
        now = time.monotonic()
        entries = [_Entry(w.input_ids, deadline, now, self._loop.create_future()) for w in windows]
        with self._changed:
            if self._closed:
                raise Unavailable("the server is stopping")
            self._queue.extend(entries)
            self._changed.notify(len(entries))
        try:
            return await asyncio.gather(*(entry.reply for entry in entries))
        finally:
            for entry in entries:
                entry.reply.cancel()

    def close(self) -> None:
        """Let the lanes finish what they run, drop what is queued, and end them."""
        with self._changed:
            self._closed = True
            for entry in self._queue:
                self._loop.call_soon_threadsafe(entry.reply.cancel)
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _lane(self) -> None:
        while entries := self._take():
            self._run(entries)

    def _take(self) -> list[_Entry]:
        """The entries of the next run, waiting for one; empty once closed."""
        with self._changed:
            while not self._closed:
                while self._queue:
                    first = self._queue.popleft()
                    if self._wanted(first):
                        entries = [first, *self._company(first)]
                        self.run_sizes[len(entries)] += 1
                        return entries
                self._changed.wait()
            return []

    def _company(self, first: _Entry) -> list[_Entry]:
        """Take the next entries that may share a run with a short one."""
        length = len(first.input_ids)
        if length > SHARED_RUN_TOKENS:
            return []
        ahead = islice(self._queue, _LOOK_AHEAD)
        equals = list(islice((entry for entry in ahead if len(entry.input_ids) == length), SHARED_RUN_WINDOWS - 1))
        for entry in equals:
            self._queue.remove(entry)
        return [entry for entry in equals if self._wanted(entry)]

    def _wanted(self, entry: _Entry) -> bool:
        """Whether an entry is still to be run: its caller is there, and its deadline has not passed."""
        if entry.reply.cancelled():
            return False
        if entry.deadline is not None and time.monotonic() > entry.deadline:
            self._fail([entry], DeadlineExceeded("the deadline passed before the model ran"))
            return False
        return True

    def _run(self, entries: list[_Entry]) -> None:
        began = time.monotonic()
        try:
            logits = self._engine.run([entry.input_ids for entry in entries])
        except Exception:
            if len(entries) > 1:  # the fault may be one entry's: the others must not suffer for it
                for entry in entries:
                    self._run([entry])
                return
            logger.exception("the model failed on a window of %d tokens", len(entries[0].input_ids))
            self._fail(entries, InferenceFailed("the model failed on this request"))
            return
        ended = time.monotonic()
        ran = [
            Ran(pair, began - entry.queued, ended - began, len(entries))
            for entry, pair in zip(entries, logits, strict=True)
        ]
        self._loop.call_soon_threadsafe(_deliver, entries, ran)

    def _fail(self, entries: list[_Entry], error: Exception) -> None:
        self._loop.call_soon_threadsafe(_deliver_error, entries, error)


def _deliver(entries: list[_Entry], ran: list[Ran]) -> None:
    for entry, result in zip(entries, ran, strict=True):
        if not entry.reply.done():
            entry.reply.set_result(result)


def _deliver_error(entries: list[_Entry], error: Exception) -> None:
    for entry in entries:
        if not entry.reply.done():
            entry.reply.set_exception(error)
