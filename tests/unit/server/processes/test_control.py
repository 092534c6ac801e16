"""What a parent and a child say to one another: whole messages, with connections, until one of them has gone."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest

from distilqa.errors import BundleError
from distilqa.server.processes.control import Connect, Control, Ended, Failed, Ready, Stop

# After this long something hangs that must not, and the test fails. Nothing that works waits for it.
GUARD_S = 20.0


Pair = tuple[Control, Control]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A parent's end and a child's."""
    parent, child = map(Control, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with closing(parent), closing(child):
        yield parent, child


async def test_messages_arrive_one_by_one(pair: Pair) -> None:
    parent, child = pair
    messages = [Ready("cpu-int8", "2 cores"), Stop(float("inf")), Ended(Counter(OK=3), Counter({1: 2}))]
    for message in messages:
        child.send(message)
    found = [await asyncio.wait_for(parent.receive(), GUARD_S) for _ in messages]
    assert found == [(message, []) for message in messages]


async def test_an_error_is_still_that_error(pair: Pair) -> None:
    parent, child = pair
    child.send(Failed(BundleError("bundle: is damaged")))
    received = await asyncio.wait_for(parent.receive(), GUARD_S)
    assert received is not None
    message, _ = received
    assert isinstance(message, Failed)
    assert (type(message.error), str(message.error)) == (BundleError, "bundle: is damaged")


async def test_a_connection_goes_with_a_message(pair: Pair) -> None:
    parent, child = pair
    one, other = socket.socketpair()
    with one, other:
        parent.send(Connect("cpu-int8", "2 cores"), one)
    received = await asyncio.wait_for(child.receive(), GUARD_S)
    assert received is not None
    message, [connection] = received
    assert message == Connect("cpu-int8", "2 cores")
    with closing(connection):
        assert connection.family is socket.AF_UNIX
        assert connection.recv(1) == b""  # the other end was closed


async def test_one_end_hears_that_the_other_has_gone(pair: Pair) -> None:
    """After what was sent before; and speaking to nobody is no error."""
    parent, child = pair
    child.send(Ready())
    child.close()
    assert await asyncio.wait_for(parent.receive(), GUARD_S) == (Ready(), [])
    assert await asyncio.wait_for(parent.receive(), GUARD_S) is None
    parent.send(Stop(0))


async def test_who_waits_for_a_message_may_be_cancelled(pair: Pair) -> None:
    parent, child = pair
    waiting = asyncio.create_task(parent.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    child.send(Ready())
    assert await asyncio.wait_for(parent.receive(), GUARD_S) == (Ready(), [])


async def test_one_that_reads_nothing_holds_nobody_up(pair: Pair) -> None:
    parent, _child = pair
    for _ in range(100_000):
        parent.send(Stop(1.0))
