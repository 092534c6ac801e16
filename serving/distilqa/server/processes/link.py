"""Both ends of the connection between a front end and the process that has the model."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Callable, Sequence
from itertools import count

from distilqa.errors import DistilqaError, InferenceFailed, Unavailable
from distilqa.scheduling.queue import WindowResult
from distilqa.scheduling.scheduler import Scheduler
from distilqa.server.processes.frames import (
    CANCEL,
    FAILED,
    RAN,
    RUN,
    Frames,
    pack_failed,
    pack_ran,
    pack_run,
    unpack_failed,
    unpack_queue,
    unpack_ran,
    unpack_run,
)
from distilqa.text.arrays import Int64

# Requests are numbered up to this, and from 0 again: far more than are ever in flight.
_NUMBERS = 2**32

_GONE = "the process that has the model has ended"


class Link:
    """Runs windows in the process that has the model: a `Scheduler` from afar. Used on the event loop.

    ``on_lost`` is called when that process has gone. `attach` gives it a connection, also to the next such process.
    """

    def __init__(self, on_lost: Callable[[], None] = lambda: None) -> None:
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._frames: Frames | None = None
        self._numbers = count()
        self._asked: dict[int, tuple[list[int], asyncio.Future[list[WindowResult]]]] = {}
        self._wait_s, self._queued_windows = 0.0, 0
        self._closed: str | None = None

    async def attach(self, connection: socket.socket) -> None:
        """Use this connection from now on."""
        frames = Frames(self._land, lambda: self._lose(frames))
        await self._loop.create_unix_connection(lambda: frames, sock=connection)
        self._fail_all(_GONE)  # if there was one before, of whose end nobody has heard yet
        self._frames = frames if frames.is_open else None  # it may have ended by now

    @property
    def is_attached(self) -> bool:
        """Whether there is a model at the other end."""
        return self._frames is not None

    @property
    def queued_windows(self) -> int:
        """How many windows waited when last something came back; none, where nothing is to come that would say more."""
        return self._queued_windows if self._asked else 0

    def wait_s(self) -> float:
        """How long the queue was when last something came back; as `queued_windows`."""
        return self._wait_s if self._asked else 0.0

    async def run(self, windows: Sequence[Int64], *, deadline: float | None = None) -> list[WindowResult]:
        """As `Scheduler.run`. Raises Unavailable too where the process that has the model is gone, or goes."""
        if not windows:
            return []
        frames = self._frames
        if frames is None or self._closed:
            raise Unavailable(self._closed or _GONE)
        number = next(self._numbers) % _NUMBERS
        reply: asyncio.Future[list[WindowResult]] = self._loop.create_future()
        self._asked[number] = [len(ids) for ids in windows], reply
        frames.send(RUN, number, *pack_run(windows, deadline))
        try:
            return await reply
        finally:
            if self._asked.pop(number, None):  # the caller has left
                frames.send(CANCEL, number)

    async def close(self, reason: str) -> None:
        """Take no more, and fail what is not back yet."""
        self._closed = reason
        self._fail_all(reason)

    def _land(self, kind: int, number: int, content: memoryview) -> None:
        self._wait_s, self._queued_windows = unpack_queue(content)
        if not (asked := self._asked.pop(number, None)):
            return  # it was cancelled
        lengths, reply = asked
        if reply.done():  # it is being cancelled
            return
        if kind == RAN:
            reply.set_result(unpack_ran(content, lengths))
        else:
            reply.set_exception(unpack_failed(content))

    def _lose(self, frames: Frames) -> None:
        if frames is self._frames:
            self._frames = None
            self._fail_all(_GONE)
            self._on_lost()

    def _fail_all(self, reason: str) -> None:
        asked, self._asked = self._asked, {}
        for _, reply in asked.values():
            if not reply.done():
                reply.set_exception(Unavailable(reason))


class Requests:
    """What a front end asks of the scheduler in this process."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._frames = Frames(self._take, self._drop)

    async def attach(self, connection: socket.socket) -> None:
        """Take them from this connection."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._frames, sock=connection)

    def _take(self, kind: int, number: int, content: memoryview) -> None:
        if kind == RUN:
            task = self._tasks[number] = asyncio.create_task(self._run(number, content))
            # Also of one that is cancelled before it has begun.
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        elif number in self._tasks:
            self._tasks[number].cancel()

    async def _run(self, number: int, content: memoryview) -> None:
        windows, deadline = unpack_run(content)
        try:
            ran = await self._scheduler.run(windows, deadline=deadline)
        except Exception as error:
            self._frames.send(FAILED, number, *pack_failed(_told(error), self._queue))
        else:
            self._frames.send(RAN, number, *pack_ran(ran, self._queue))

    @property
    def _queue(self) -> tuple[float, int]:
        return self._scheduler.wait_s(), self._scheduler.queued_windows

    def _drop(self) -> None:
        """The front end has gone: nobody wants what it asked for."""
        for task in self._tasks.values():
            task.cancel()


def _told(error: Exception) -> Exception:
    """An error that can be sent, with what its cause was for the log."""
    sent = error if isinstance(error, DistilqaError) else InferenceFailed("the model failed on this request")
    cause = error.__cause__ if sent is error else error
    if cause is not None:
        sent.add_note("".join(traceback.format_exception(cause)))
    return sent
