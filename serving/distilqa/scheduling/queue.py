"""The windows that wait for a run, in the order in which they get one.

Requests take turns, a window each. So the windows of a book do not keep a sentence waiting: while at most R requests
wait, the k-th window of each begins after at most k * R runs, however many windows the others brought, and whoever
comes later. Among requests of one window, the first to come is the first to run.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from distilqa.text.arrays import Int64, Logits

# How far down the queue company for a short window is looked for.
LOOK_AHEAD = 64


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What a run gave for a window: (start, end) logits, and how it came by them."""

    logits: Logits
    queue_s: float
    inference_s: float
    run_windows: int


class Runner(Protocol):
    """What runs windows: the `distilqa.scheduling.scheduler.Scheduler`, or what asks one in another process."""

    @property
    def queued_windows(self) -> int:
        """How many windows wait, as far as is known here. May be asked from any thread, as `wait_s` may."""

    def wait_s(self) -> float:
        """How long what is queued will take, in seconds."""

    async def run(self, windows: Sequence[Int64], *, deadline: float | None = None) -> list[WindowResult]:
        """What each of a request's windows gives."""

    async def close(self, reason: str) -> None:
        """Run nothing more; what waits ends as Unavailable, for that reason."""


@dataclass(slots=True, eq=False)
class Job:
    """The windows of one request. ``deadline`` and ``queued`` are in time.monotonic's seconds."""

    windows: Sequence[Int64]
    deadline: float | None
    queued: float
    reply: asyncio.Future[list[WindowResult]]
    ran: dict[int, WindowResult] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """Window ``number`` of a job."""

    job: Job
    number: int

    @property
    def input_ids(self) -> Int64:
        return self.job.windows[self.number]


class Queue:
    """The jobs that have windows waiting, the one whose turn it is first. Its user keeps threads apart."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, deque[int]] = OrderedDict()
        self.windows = self.tokens = 0

    def put(self, job: Job) -> None:
        """Let a job wait for its first turn, after all that are here."""
        if job.windows:
            self._jobs[job] = deque(range(len(job.windows)))
            self.windows += len(job.windows)
            self.tokens += sum(map(len, job.windows))

    def take(self) -> Entry | None:
        """The window whose turn it is, None if none waits; its job's next turn comes after all others'."""
        if not self._jobs:
            return None
        job = next(iter(self._jobs))
        self._jobs.move_to_end(job)
        return self._take(job, self._jobs[job][0])

    def take_within(self, tokens: int) -> Entry | None:
        """The same, if it has no more tokens: nobody is passed over for a shorter one."""
        if not self._jobs:
            return None
        job, waiting = next(iter(self._jobs.items()))
        return self.take() if len(job.windows[waiting[0]]) <= tokens else None

    def take_equals(self, length: int, count: int) -> list[Entry]:
        """At most ``count`` of the next windows that have this length too. They keep nobody's turn waiting."""
        ahead = islice(self._waiting(), LOOK_AHEAD)
        equals = list(islice((entry for entry in ahead if len(entry.input_ids) == length), count))
        return [self._take(entry.job, entry.number) for entry in equals]

    def remove(self, job: Job) -> None:
        """Forget the windows of a job that still wait, if any do."""
        for number in self._jobs.pop(job, ()):
            self._leave(job, number)

    def tokens_ahead(self, windows: int) -> int:
        """How many tokens would be run before the last window of a job with so many windows, if it came now."""
        return sum(
            len(job.windows[number]) for job, waiting in self._jobs.items() for number in islice(waiting, windows)
        )

    def _take(self, job: Job, number: int) -> Entry:
        waiting = self._jobs[job]
        waiting.remove(number)
        if not waiting:
            del self._jobs[job]
        self._leave(job, number)
        return Entry(job, number)

    def _leave(self, job: Job, number: int) -> None:
        self.windows -= 1
        self.tokens -= len(job.windows[number])

    def _waiting(self) -> Iterator[Entry]:
        return (Entry(job, number) for job, waiting in self._jobs.items() for number in waiting)
