"""How a server of several processes steers them: what the parent says to a child, and hears of it.

A child's standard input holds what it begins with; everything after that goes over a socket of messages, pickled, each
with a connection if need be. Where the socket ends, so has the other end: no child outlives its parent.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from distilqa.bundle import Manifest
from distilqa.server.access import Access
from distilqa.server.settings import ServerSettings

# The kinds of children.
MODEL, FRONT_END = "model", "front-end"

# Far more than any message has.
_LARGEST = 1 << 17


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a child begins with. Files are read once, by the parent; but for the model, by who has it.

    ``counts_descriptor`` and ``control`` are descriptors: of the memory of `distilqa.server.admission.Counts`, and of
    the socket. ``own`` is the number of a front end.
    """

    settings: ServerSettings
    manifest: Manifest
    tokenizer_json: str
    access: Access
    counts_descriptor: int
    control: int = -1
    own: int = -1


@dataclass(frozen=True, slots=True)
class Connect:
    """To both: here is a connection to the other. ``variant`` and ``device`` are what the model has."""

    variant: str
    device: str


@dataclass(frozen=True, slots=True)
class Stop:
    """To a child: stop, after finishing what is in flight within so many seconds."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Force:
    """To a child that stops: wait no longer."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From a child. The variant and the device are known to that which has the model."""

    variant: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Alive:
    """From a child, again and again from its beginning on."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From a child that cannot begin."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Ended:
    """From a child: how many more calls have ended how, or runs of so many windows were made."""

    outcomes: Counter[str] = field(default_factory=Counter)
    run_sizes: Counter[int] = field(default_factory=Counter)


class Control:
    """One end of the socket, which must be of the kind that keeps messages apart (SOCK_SEQPACKET)."""

    def __init__(self, own: socket.socket) -> None:
        own.setblocking(False)
        self._own = own

    def send(self, message: object, *connections: socket.socket) -> None:
        """To nobody if the other end has gone, of which `receive` tells."""
        with suppress(OSError):  # also of one that reads nothing: it is as good as gone
            socket.send_fds(self._own, [pickle.dumps(message)], [one.fileno() for one in connections])

    async def receive(self) -> tuple[object, list[socket.socket]] | None:
        """The next message and its connections; None once the other end has gone."""
        loop = asyncio.get_running_loop()
        there = asyncio.Event()
        loop.add_reader(self._own, there.set)
        try:
            await there.wait()
            content, descriptors, _, _ = socket.recv_fds(self._own, _LARGEST, 1)
        except ConnectionError:
            return None
        finally:
            loop.remove_reader(self._own)
        connections = [socket.socket(fileno=one) for one in descriptors]
        return (pickle.loads(content), connections) if content else None

    def close(self) -> None:
        self._own.close()
