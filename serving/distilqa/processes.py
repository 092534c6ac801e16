"""A server of several processes: front ends that share an address, and one that has the model.

This one, the parent, runs no model and takes no call. It starts the others, introduces each front end to the one that
has the model, adds up how calls end, and replaces what ends that should not: the callers of that process get
UNAVAILABLE, and nothing else suffers. What says who may call, and the tokenizer, are read once, here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from distilqa.admission import COUNTS_BYTES, map_counts
from distilqa.bundle import Bundle
from distilqa.control import Beginning, Connect, Control, Ended, Failed, Force, Ready, Stop
from distilqa.credentials import load_callers
from distilqa.errors import BindError, BrokenError, DistilqaError
from distilqa.front_end import (
    SEND_S,
    TELL_S,
    bracketed,
    describe,
    report_growth,
    tell_not_answered,
    tell_ready,
    tell_stopped,
    warn_of_address,
    warn_of_model,
)
from distilqa.model import CLOSE_S
from distilqa.reader import read_tokenizer
from distilqa.settings import ServerSettings
from distilqa.tasks import first_of, in_thread
from distilqa.tls import load_certificate

logger = logging.getLogger(__name__)

MODEL, FRONT_END = "model", "front-end"

# What a child may take to end, beyond the time for calls in flight, before it is killed.
_LAST_S = CLOSE_S + 4 * SEND_S

# Before another is begun after one that was killed as it began.
_RETRY_S = 1.0


class Processes:
    """One bundle, served by several processes. `start` it on an event loop, and `stop` it there. Raises SettingsError.

    ``outcomes`` counts how the calls of all of them ended. ``broken`` is set if they cannot go on.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._callers, self._certificate = load_callers(settings), load_certificate(settings)
        self._front_ends = [_Place(f"{FRONT_END} {own}") for own in range(settings.processes)]
        self._model = _Place(MODEL)
        self._introduction: Connect | None = None  # while the model is there
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._forced = asyncio.Event()
        self._held = ExitStack()
        self._counts = map_counts(settings.processes)
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
        manifest, tokenizer_json = bundle.manifest, read_tokenizer(bundle)
        self.address, port = self._held.enter_context(_held_address(settings))
        warn_of_address(settings, self._callers, self.address)
        warn_of_model(settings, self._callers, manifest.name)
        counts = self._held.enter_context(_shared_memory(settings.processes * COUNTS_BYTES))
        self._counts = map_counts(settings.processes, counts)
        settings = settings.model_copy(update={"port": port})
        begin = Beginning(settings, manifest, tokenizer_json, self._callers, self._certificate, counts)
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
        self._stopping = True
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

    async def _keep(self, place: _Place, begin: Beginning) -> None:
        """Have a child in a place until the server stops, or none can be had."""
        try:
            while not self._stopping:
                await self._live(place, begin)
        except Exception as error:
            self._give_up(error)

    async def _live(self, place: _Place, begin: Beginning) -> None:
        """The life of one child. Raises why there can be none."""
        if place is not self._model:
            self._counts[begin.own] = 0  # what a forerunner held
        child = place.child = _Child(place.name, begin)
        try:
            if place is not self._model:
                self._introduce(place)
            while received := await child.control.receive():
                self._hear(place, child, received[0])
        except Exception:
            child.kill()
            raise
        finally:
            status = await child.end()
            place.child = None
            if place is self._model:
                self._introduction = None
        # One that was killed as it began says nothing of the next.
        if not child.ready and not self._stopping and (status >= 0 or not self._started.done()):
            raise child.error or BrokenError(f"{place.name} ended with status {status}")
        if not self._stopping:
            self._log(logging.ERROR, "a process ended, and another takes its place", place, child, status=status)
            await asyncio.sleep(0 if child.ready else _RETRY_S)
        elif status and not child.killed:
            self._log(logging.ERROR, "a process ended before it had stopped", place, child, status=status)

    def _hear(self, place: _Place, child: _Child, message: object) -> None:
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

    def _log(self, level: int, message: str, place: _Place, child: _Child, **fields: object) -> None:
        logger.log(level, message, extra={"fields": {"process": place.name, "pid": child.pid, **fields}})

    def _introduce(self, front_end: _Place) -> None:
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
        elif not self.broken.is_set():
            expected = isinstance(error, DistilqaError)
            logger.critical("a process cannot be replaced: %s", error, exc_info=None if expected else error)
            self.broken.set()

    async def _stop(self, places: Sequence[_Place], grace_s: float) -> None:
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
        await first_of(ended, forced, timeout_s=grace_s + _LAST_S)
        if self._forced.is_set():
            for child in _children(places):
                child.control.send(Force())
            await first_of(ended, timeout_s=_LAST_S)
        for place in places:
            if place.child:
                self._log(logging.ERROR, "a process has not ended, and is killed", place, place.child)
                place.child.kill()
        forced.cancel()
        await ended

    async def _end(self) -> None:
        """Kill what is left, and let go of all."""
        self._stopping = True
        places = (*self._front_ends, self._model)
        for child in _children(places):
            child.kill()
        if keeping := [place.keeping for place in places if place.keeping]:
            await asyncio.wait(keeping)
        self._held.close()


class _Place:
    """Where a child is, and another after it should it end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.child: _Child | None = None
        self.keeping: asyncio.Task[None] | None = None


class _Child:
    """A process of this server. ``ready`` once it does what it is for; ``error`` is why it cannot.

    Raises OSError if there can be no more processes.
    """

    def __init__(self, name: str, begin: Beginning) -> None:
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In memory and on no disk, since it may hold a key.
        with ExitStack() as on_error, other, open(os.memfd_create("distilqa"), "w+b") as beginning:
            on_error.enter_context(own)
            begin = replace(begin, control=other.fileno())
            pickle.dump(begin, beginning)
            beginning.seek(0)
            with _signals_are_the_parents():
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "distilqa.child", *name.split()],
                    stdin=beginning,
                    stdout=subprocess.DEVNULL,
                    stderr=sys.stderr,  # which need not be the second descriptor
                    pass_fds=(begin.control, begin.counts),
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            on_error.pop_all()
        self.control = Control(own)
        self.pid = self._process.pid
        self.ready = self.killed = False
        self.error: Exception | None = None

    async def end(self) -> int:
        """Wait for its end, which it has begun. Returns its exit status."""
        ending = asyncio.create_task(in_thread(self._process.wait))
        await first_of(ending, timeout_s=_LAST_S)
        if not ending.done():
            self.kill()
        self.control.close()
        return await ending

    def kill(self) -> None:
        self.killed = True
        self._process.kill()


def _children(places: Sequence[_Place]) -> list[_Child]:
    return [place.child for place in places if place.child]


@contextmanager
def _signals_are_the_parents() -> Iterator[None]:
    """Children that begin now take no part in what a terminal or an init system sends to all: they are told to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _shared_memory(size: int) -> Iterator[int]:
    """A descriptor of memory that children can map."""
    descriptor = os.memfd_create("distilqa")
    try:
        os.truncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _held_address(settings: ServerSettings) -> Iterator[tuple[str, int]]:
    """The address and its port, held for the front ends to share, so that no other server gets it. Raises BindError."""
    host, port = bracketed(settings.host), settings.port
    with ExitStack() as held:
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            absent: OSError | None = None
            holding = False
            for family, name in dict.fromkeys((family, str(name)) for family, *_, (name, *_) in found):
                try:
                    own = held.enter_context(_hold(family, name, port))
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                    absent = error  # ::1 where there is no IPv6, say, which gRPC passes over too
                else:
                    holding, port = True, own.getsockname()[1]
            if absent and not holding:
                raise absent
        except OSError as error:
            problem = f"cannot bind {host}:{port}; is another server there, or the host not this machine's?"
            raise BindError(problem) from error
        yield f"{host}:{port}", port


def _hold(family: int, name: str, port: int) -> socket.socket:
    """A socket that has the address for others to share, but does not listen. Raises OSError if another has it."""
    with ExitStack() as on_error:
        own = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
        try:
            own.bind((name, port))
        except OSError:  # perhaps there are connections yet of a server that has just ended
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((name, port))
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # only once it is ours
        on_error.pop_all()
    return own
