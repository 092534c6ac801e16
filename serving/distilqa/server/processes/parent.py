"""A server of several processes: front ends that share an address, and one that has the model.

This one, the parent, runs no model and takes no call. It starts the others, introduces each front end to the one that
has the model, adds up how calls end, and replaces what ends that should not, or says nothing any more: the callers of
that process get UNAVAILABLE, and nothing else suffers. What says who may call, and the tokenizer, are read once, here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from distilqa.bundle import Bundle
from distilqa.errors import BrokenError, DistilqaError, SettingsError
from distilqa.server.access import Access
from distilqa.server.address import held_address
from distilqa.server.admission import Counts
from distilqa.server.log_messages import (
    describe,
    report_growth,
    tell_not_answered,
    tell_ready,
    tell_stopped,
    warn_of_address,
    warn_of_model,
)
from distilqa.server.processes.children import LAST_S, Child, Place
from distilqa.server.processes.control import (
    FRONT_END,
    MODEL,
    Beginning,
    Connect,
    Ended,
    Failed,
    Force,
    Ready,
    Stop,
)
from distilqa.server.settings import ServerSettings
from distilqa.server.tasks import first_of
from distilqa.server.timeouts import (
    ALIVE_S,
    FIRST_SILENCES,
    LONG_LIFE_S,
    LONGEST_RESTART_S,
    RESTART_S,
    SILENCES,
    TELL_S,
)

logger = logging.getLogger(__name__)


class Processes:
    """One bundle, served by several processes, on Linux. `start` it on an event loop, and `stop` it there.

    ``outcomes`` counts how the calls of all of them ended. ``broken`` is set if they cannot go on. Raises
    SettingsError.
    """

    def __init__(self, settings: ServerSettings) -> None:
        if not hasattr(os, "memfd_create"):  # nor are there sockets of the kind that is used
            raise SettingsError(f"{settings.source('processes')}: several processes need Linux")
        self._settings = settings
        self._access = Access.load(settings)
        self._front_ends = [Place(f"{FRONT_END} {own}") for own in range(settings.processes)]
        self._model = Place(MODEL)
        self._introduction: Connect | None = None  # while the model is there
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._held = ExitStack()
        self._counts = Counts(settings.processes)
        self._reporting: asyncio.Task[None] | None = None
        self.outcomes: Counter[str] = Counter()
        self.run_sizes: Counter[int] = Counter()
        self.broken = asyncio.Event()
        self.address = self.description = ""

    async def start(self) -> None:
        """Take the address, and start all; until the model is there, calls end as UNAVAILABLE.

        ``address`` is where, and ``description`` what is served. Raises BindError, BundleError and MissingDependency.
        """
        settings, began = self._settings, time.monotonic()
        bundle = Bundle.open(settings.bundle)
        manifest, tokenizer_json = bundle.manifest, bundle.read_tokenizer()
        self.address, port = self._held.enter_context(held_address(settings.host, settings.port))
        warn_of_address(settings, self._access.callers, self.address)
        warn_of_model(settings, self._access.callers, manifest.name)
        counts = self._held.enter_context(_shared_memory(settings.processes * Counts.BYTES))
        self._counts = Counts(settings.processes, descriptor=counts)
        settings = settings.model_copy(update={"port": port})
        begin = Beginning(settings, manifest, tokenizer_json, self._access, counts)
        for own, place in enumerate((*self._front_ends, self._model)):
            place.keeping = asyncio.create_task(self._keep(place, replace(begin, own=own)))
        try:
            await self._started
        except BaseException:
            await self._end()
            raise
        assert self._introduction is not None
        variant, device = self._introduction.variant, self._introduction.device
        tell_ready(self.address, manifest, variant, time.monotonic() - began, settings.processes)
        self.description = describe(manifest, variant, f"{device}, {settings.processes} front ends")
        self._reporting = asyncio.create_task(report_growth(self.outcomes, tell_not_answered, TELL_S))

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish within ``grace_s`` seconds, and close."""
        self._stopping.set()
        await self._stop(self._front_ends, grace_s)
        await self._stop([self._model], 0)
        await self._end()
        if self._reporting:
            self._reporting.cancel()
            await asyncio.wait((self._reporting,))
        tell_stopped(self.outcomes, self.run_sizes)

    def force(self) -> None:
        """Let a `stop` wait no longer: calls in flight end as UNAVAILABLE."""
        self._forced.set()

    async def _keep(self, place: Place, begin: Beginning) -> None:
        """Have a child in a place until the server stops, or none can be had."""
        try:
            while not self._stopping.is_set():
                await self._live(place, begin)
        except Exception as error:
            self._give_up(error)

    async def _live(self, place: Place, begin: Beginning) -> None:
        """The life of one child. Raises why there can be none."""
        try:
            child = place.child = Child(place.name, begin)
        except OSError as error:  # there can be no more processes or files just now
            if not self._started.done() or self._has_failed:
                raise
            wait_s = _wait_s(place, None)
            fields = {"process": place.name, "problem": str(error), "in_s": wait_s}
            logger.error("a process could not be started, which is tried again", extra={"fields": fields})
            await self._pause(wait_s)
            return
        watching = asyncio.create_task(self._watch(place, child))
        try:
            if place is not self._model:
                self._introduce(place)
            while received := await child.control.receive():
                child.silences = 0
                self._hear(place, child, received[0])
        except Exception:
            child.kill()
            raise
        finally:
            watching.cancel()
            status = await child.end()
            place.child = None
            if place is self._model:
                self._introduction = None
            else:
                self._counts.all[begin.own] = 0  # what it held
        # One that was killed as it began says nothing of the next.
        if not child.ready and not self._stopping.is_set() and (status >= 0 or not self._started.done()):
            raise child.error or BrokenError(f"{place.name} ended with status {status}")
        if not self._stopping.is_set():
            wait_s = _wait_s(place, child)
            self._log(
                logging.ERROR, "a process ended, and another takes its place", place, child, status=status, in_s=wait_s
            )
            await self._pause(wait_s)
        elif status and not child.killed:
            self._log(logging.ERROR, "a process ended before it had stopped", place, child, status=status)

    @property
    def _has_failed(self) -> bool:
        """Whether it has not started, and will not."""
        return self._started.cancelled() or (self._started.done() and self._started.exception() is not None)

    async def _pause(self, wait_s: float) -> None:
        """Unless the server stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _watch(self, place: Place, child: Child) -> None:
        """Kill a child that says nothing: one that was stopped, or hangs.

        What counts is how often this one has looked, not the time: after a pause of the whole machine nobody is late.
        """
        while child.silences <= (SILENCES if child.ready else FIRST_SILENCES):
            await asyncio.sleep(ALIVE_S)
            child.silences += 1
        self._log(logging.ERROR, "a process says nothing any more, and is killed", place, child)
        child.kill()

    def _hear(self, place: Place, child: Child, message: object) -> None:
        match message:
            case Ready(variant, device):
                child.ready = True
                if place is self._model:
                    self._introduction = Connect(variant, device)
                    for front_end in self._front_ends:
                        self._introduce(front_end)
                everyone = (*self._front_ends, self._model)
                if self._started.done():
                    self._log(logging.INFO, "a process is in its place", place, child)
                elif all(one.child and one.child.ready for one in everyone):
                    self._started.set_result(None)
            case Failed(error):
                child.error = error
            case Ended(outcomes, run_sizes):
                self.outcomes.update(outcomes)
                self.run_sizes.update(run_sizes)

    def _log(self, level: int, message: str, place: Place, child: Child, **fields: object) -> None:
        logger.log(level, message, extra={"fields": {"process": place.name, "pid": child.pid, **fields}})

    def _introduce(self, front_end: Place) -> None:
        """Connect a front end and the model, once both are there."""
        if self._introduction and self._model.child and front_end.child:
            one, other = socket.socketpair()
            with one, other:
                self._model.child.control.send(self._introduction, one)
                front_end.child.control.send(self._introduction, other)

    def _give_up(self, error: Exception) -> None:
        """One that should take another's place cannot even begin."""
        if not self._started.done():
            self._started.set_exception(error)
        elif not self._has_failed and not self.broken.is_set():
            expected = isinstance(error, DistilqaError)
            logger.critical("a process cannot be replaced: %s", error, exc_info=None if expected else error)
            self.broken.set()

    async def _stop(self, places: Sequence[Place], grace_s: float) -> None:
        """Have the children stop by themselves."""
        if not (keeping := [place.keeping for place in places if place.keeping]):
            return
        for child in _children(places):
            if child.ready:
                child.control.send(Stop(grace_s))
            else:
                child.kill()  # nobody has been served by it
        ended = asyncio.create_task(asyncio.wait(keeping))
        forced = asyncio.create_task(self._forced.wait())
        await first_of(ended, forced, timeout_s=grace_s + LAST_S)
        if self._forced.is_set():
            for child in _children(places):
                child.control.send(Force())
            await first_of(ended, timeout_s=LAST_S)
        for place in places:
            if place.child:
                self._log(logging.ERROR, "a process has not ended, and is killed", place, place.child)
                place.child.kill()
        forced.cancel()
        await ended

    async def _end(self) -> None:
        """Kill what is left, and let go of all."""
        self._stopping.set()
        places = (*self._front_ends, self._model)
        for child in _children(places):
            child.kill()
        if keeping := [place.keeping for place in places if place.keeping]:
            await asyncio.wait(keeping)
        self._held.close()


def _wait_s(place: Place, child: Child | None) -> float:
    """For how long a place stays empty: not at all, unless those who were there did not live long.

    ``child`` was the last of them, None if there could be none.
    """
    was_ready = child is not None and child.ready
    lived_s = time.monotonic() - child.began if child else 0.0
    place.short_lives = 0 if was_ready and lived_s >= LONG_LIFE_S else place.short_lives + 1
    again = place.short_lives - was_ready
    return min(RESTART_S * 2.0 ** min(again - 1, 10), LONGEST_RESTART_S) if again > 0 else 0.0


def _children(places: Sequence[Place]) -> list[Child]:
    return [place.child for place in places if place.child]


@contextmanager
def _shared_memory(size: int) -> Iterator[int]:
    """A descriptor of memory that children can map."""
    descriptor = os.memfd_create("distilqa")
    try:
        os.truncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)
