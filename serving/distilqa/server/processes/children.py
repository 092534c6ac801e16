"""The processes that a parent has: how they begin and end, and the places that they take."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from distilqa.server.processes.control import Beginning, Control
from distilqa.server.timeouts import CLOSE_S, SEND_S

# What a child may take to end, beyond the time for calls in flight, before it is killed.
LAST_S = CLOSE_S + 4 * SEND_S


# How often it is looked whether one has ended.
_LOOK_S = 0.02


class Place:
    """Where a child is, and another after it should it end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.child: Child | None = None
        self.keeping: asyncio.Task[None] | None = None
        self.short_lives = 0  # of children, one after the other


class Child:
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
                    [sys.executable, "-P", "-m", "distilqa.server.processes.child", *name.split()],
                    stdin=beginning,
                    stdout=subprocess.DEVNULL,
                    stderr=sys.stderr,  # which need not be the second descriptor
                    pass_fds=(begin.control, begin.counts_descriptor),
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            on_error.pop_all()
        self.control = Control(own)
        self.pid = self._process.pid
        self.ready = self.killed = False
        self.began, self.silences = time.monotonic(), 0
        self.error: Exception | None = None

    async def end(self) -> int:
        """Wait for its end, which it has begun. Returns its exit status."""
        until = time.monotonic() + LAST_S
        while (status := self._process.poll()) is None:  # to wait for it would take a thread
            if time.monotonic() > until:
                self.kill()
            await asyncio.sleep(_LOOK_S)
        self.control.close()
        return status

    def kill(self) -> None:
        self.killed = True
        self._process.kill()


@contextmanager
def _signals_are_the_parents() -> Iterator[None]:
    """Children that begin now take no part in what a terminal or an init system sends to all: they are told to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
