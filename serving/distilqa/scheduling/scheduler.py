"""Lanes that run windows: threads, of which each takes the next window from the queue and runs it.

There are as many lanes as cores, and many windows use a core each; a single one on an idle server uses them all. Short
windows of the same length share a run, since that pays up to 64 tokens; nothing waits for company, and nothing is
padded. A window whose caller has left or whose deadline has passed is dropped without being run.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from distilqa.engine.base import RUN_WINDOWS, SHARED_RUN_TOKENS, SHARED_RUN_WINDOWS, Engine
from distilqa.errors import DeadlineExceeded, DistilqaError, InferenceFailed, Unavailable
from distilqa.scheduling.queue import Entry, Job, Queue, WindowResult
from distilqa.scheduling.refusal import refusal
from distilqa.text.arrays import Int64

# How much what was learnt before counts at the next run.
_MEMORY = 31 / 32

# How often it is looked whether the lanes have ended.
_LOOK_S = 0.005

logger = logging.getLogger(__name__)


class Scheduler:
    """Runs windows on an engine in ``lanes`` threads. Made and used on the event loop; `close` it at the end.

    At most ``max_queued_windows`` wait. Should a lane die of a defect, nothing runs any more: all calls raise
    Unavailable, and ``on_death`` is called, on the event loop.
    """

    def __init__(
        self, engine: Engine, *, lanes: int, max_queued_windows: int, on_death: Callable[[], None] = lambda: None
    ) -> None:
        self._engine, self._max_queued_windows, self._on_death = engine, max_queued_windows, on_death
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._queue = Queue()
        self._running = 0
        self._run_s, self._run_tokens = engine.token_s, 1.0  # of the latest runs
        self._closed: str | None = None
        self.run_sizes: Counter[int] = Counter()
        self._lanes = [threading.Thread(target=self._lane, name=f"lane-{n}", daemon=True) for n in range(lanes)]
        for lane in self._lanes:
            lane.start()

    @property
    def queued_windows(self) -> int:
        """How many windows wait."""
        return self._queue.windows

    def wait_s(self, windows: int | None = None) -> float:
        """How long a request of so many windows would wait now, by the latest runs; without, until all is run."""
        with self._changed:
            tokens = self._queue.tokens if windows is None else self._queue.tokens_ahead(windows)
            return tokens * self._run_s / self._run_tokens / len(self._lanes)

    async def run(self, windows: Sequence[Int64], *, deadline: float | None = None) -> list[WindowResult]:
        """Queue the windows of a request, each (length,) int64, and return what each gave, in order.

        ``deadline`` is in time.monotonic's seconds. Raises Overloaded at once if too many wait, or so many that it
        would pass before the last has begun; DeadlineExceeded if it does, InferenceFailed if the model fails,
        Unavailable once closed. When the caller is cancelled or one window fails, what has not begun is dropped.
        """
        now = time.monotonic()
        self._admit(len(windows), None if deadline is None else deadline - now)
        job = Job(windows, deadline, now, self._loop.create_future())
        with self._changed:
            if self._closed:
                raise Unavailable(self._closed)
            self._queue.put(job)
            self._changed.notify(len(windows))
        try:
            return await job.reply if windows else []
        finally:
            with self._changed:
                self._queue.remove(job)

    async def close(self, reason: str = "the server is stopping") -> None:
        """Let the lanes finish what they run, drop what is queued, and end them."""
        self._shut(reason)
        while any(lane.is_alive() for lane in self._lanes):  # noqa: ASYNC110 (to join them would take a thread)
            await asyncio.sleep(_LOOK_S)

    def _admit(self, windows: int, remaining_s: float | None) -> None:
        """Raises Overloaded."""
        queued = self._queue.windows
        if queued + windows > self._max_queued_windows:
            problem = f"{queued} windows are waiting, and this request has {windows}"
            raise refusal("max_queued_windows", problem, self.wait_s())
        if remaining_s is not None and queued and (wait_s := self.wait_s(windows)) > remaining_s > 0:
            problem = (
                f"about {wait_s:.1f} s of work are before this request, and its deadline is in {remaining_s:.1f} s"
            )
            raise refusal("deadline", problem, wait_s)

    def _shut(self, reason: str) -> None:
        """Take no more, and fail what is queued."""
        with self._changed:
            self._closed = self._closed or reason
            while entry := self._queue.take():
                self._queue.remove(entry.job)
                self._fail(entry.job, Unavailable(reason))
            self._changed.notify_all()

    def _lane(self) -> None:
        entries: list[Entry] = []
        try:
            while entries := self._take():
                results = self._run(entries, alone=self._is_alone())
                with self._changed:
                    self._running -= 1  # before the callers hear of it: what one asks next may be alone
                self._loop.call_soon_threadsafe(_deliver, results)
        except BaseException:
            logger.critical("a lane died: nothing is answered any more", exc_info=True)
            reason = "the server is broken; its log says why"
            for entry in entries:
                self._fail(entry.job, Unavailable(reason))
            self._shut(reason)
            self._loop.call_soon_threadsafe(self._on_death)

    def _take(self) -> list[Entry]:
        """The windows of the next run, waiting for one; empty once closed."""
        with self._changed:
            while not self._closed:
                while first := self._queue.take():
                    if self._wanted(first.job):
                        entries = [first, *self._company(first)]
                        self.run_sizes[len(entries)] += 1
                        self._running += 1
                        return entries
                self._changed.wait()
            return []

    def _company(self, first: Entry) -> list[Entry]:
        """Take the next windows that may share a run with the first."""
        length = len(first.input_ids)
        if self._engine.budget is not None:
            return list(self._fill(self._engine.budget - length))
        if length > SHARED_RUN_TOKENS:
            return []
        equals = self._queue.take_equals(length, SHARED_RUN_WINDOWS - 1)
        return [entry for entry in equals if self._wanted(entry.job)]

    def _fill(self, room: int) -> Iterator[Entry]:
        """Take the next windows while there is room for their tokens."""
        for _ in range(RUN_WINDOWS - 1):
            entry = self._queue.take_within(room)
            if entry is None:
                return
            if self._wanted(entry.job):
                room -= len(entry.input_ids)
                yield entry

    def _wanted(self, job: Job) -> bool:
        """Whether a job is still to be run: its caller is there, nothing failed, and its deadline has not passed."""
        if job.reply.done():
            return False
        if job.deadline is not None and time.monotonic() > job.deadline:
            self._queue.remove(job)
            self._fail(job, DeadlineExceeded("the deadline passed before the model ran"))
            return False
        return True

    def _is_alone(self) -> bool:
        """Whether the run that begins now is the only one, and nobody waits for a core."""
        with self._changed:
            return self._running == 1 and not self._queue.windows

    def _run(self, entries: list[Entry], *, alone: bool) -> list[tuple[Entry, WindowResult | InferenceFailed]]:
        began = time.monotonic()
        try:
            logits = self._engine.run([entry.input_ids for entry in entries], alone=alone)
        except Exception as error:
            if len(entries) > 1:  # the fault may be one window's: the others must not suffer for it
                return [result for entry in entries for result in self._run([entry], alone=False)]
            with self._changed:
                self._queue.remove(entries[0].job)
            failure = InferenceFailed("the model failed on this request")
            failure.__cause__ = error
            return [(entries[0], failure)]
        took = time.monotonic() - began
        tokens = sum(len(entry.input_ids) for entry in entries)
        with self._changed:
            # A small run on a GPU says nothing of those that work off a queue: it costs nearly what a large one does.
            if self._engine.budget is None or 2 * tokens > self._engine.budget:
                self._run_s = _MEMORY * self._run_s + took
                self._run_tokens = _MEMORY * self._run_tokens + tokens
        return [
            (entry, WindowResult(pair, began - entry.job.queued, took, len(entries)))
            for entry, pair in zip(entries, logits, strict=True)
        ]

    def _fail(self, job: Job, error: DistilqaError) -> None:
        self._loop.call_soon_threadsafe(_deliver_error, job, error)


def _deliver(results: list[tuple[Entry, WindowResult | InferenceFailed]]) -> None:
    for entry, result in results:
        job = entry.job
        if isinstance(result, InferenceFailed):
            _deliver_error(job, result)
            continue
        job.ran[entry.number] = result
        if len(job.ran) == len(job.windows) and not job.reply.done():
            job.reply.set_result([job.ran[number] for number in range(len(job.windows))])


def _deliver_error(job: Job, error: DistilqaError) -> None:
    if not job.reply.done():
        job.reply.set_exception(error)
