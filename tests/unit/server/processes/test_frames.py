"""What goes between a front end and the model comes out as it went in, however the socket cuts it up."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilqa.errors import Overloaded, Unavailable
from distilqa.scheduling.queue import WindowResult
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

# After this long something hangs that must not, and the test fails. Nothing that works waits for it.
GUARD_S = 20.0

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=5)


def joined(content: tuple[bytes, ...]) -> memoryview:
    return memoryview(b"".join(content))


@given(LENGTHS, st.none() | st.floats(0, 1e9))
def test_a_run(lengths: list[int], deadline: float | None) -> None:
    windows = [np.arange(length, dtype=np.int64) + 10_000 * number for number, length in enumerate(lengths)]
    found, until = unpack_run(joined(pack_run(windows, deadline)))
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in windows]
    assert {ids.dtype for ids in found} == {np.dtype(np.int64)}
    assert until == deadline


@given(LENGTHS, st.tuples(st.floats(0, 1e6), st.integers(0, 2**32)))
def test_what_it_gave(lengths: list[int], queue: tuple[float, int]) -> None:
    """To the last bit, also of logits that lie between others in memory."""
    chance = np.random.default_rng(0)
    pairs = [chance.standard_normal((length, 2)).astype(np.float32) for length in lengths]
    ran = [WindowResult((pair[:, 0], pair[:, 1]), 0.25 + n, 1 / (3 + n), n + 1) for n, pair in enumerate(pairs)]
    content = joined(pack_ran(ran, queue))
    assert unpack_queue(content) == queue
    for sent, found in zip(ran, unpack_ran(content, lengths), strict=True):
        np.testing.assert_array_equal(found.logits, sent.logits)
        assert (found.queue_s, found.inference_s, found.run_windows) == (
            sent.queue_s, sent.inference_s, sent.run_windows,
        )  # fmt: skip


@pytest.mark.parametrize("error", [Overloaded("much", 2.5, "max_queued_windows"), Unavailable("gone")])
def test_why_it_gave_nothing(error: Exception) -> None:
    error.add_note("for the log")
    content = joined(pack_failed(error, (1.5, 7)))
    found = unpack_failed(content)
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
    assert unpack_queue(content) == (1.5, 7)


class Received:
    """The frames that come to one end, and whether the other has gone."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes]] = []
        self.lost = asyncio.Event()
        self.came = asyncio.Event()
        self.end = Frames(self._take, self.lost.set)

    def _take(self, kind: int, number: int, content: memoryview) -> None:
        self.frames.append((kind, number, bytes(content)))
        self.came.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(GUARD_S):
            while len(self.frames) < count:
                self.came.clear()
                await self.came.wait()


SENT = [(RUN, 7, (b"abc", b"", b"defg")), (CANCEL, 2**32 - 1, ()), (RAN, 0, (bytes(300_000),)), (FAILED, 1, (b"x",))]


@pytest.mark.parametrize("pieces", [1, 3, 10_000, 10**9])
async def test_frames_arrive_whole_and_in_order(pieces: int) -> None:
    """Whatever pieces they come in."""
    written: list[bytes] = []
    sender, receiver = Frames(lambda *_: None, lambda: None), Received()
    sender.connection_made(Recorder(written))
    for kind, number, content in SENT:
        sender.send(kind, number, *content)
    await asyncio.sleep(0)
    (stream,) = written
    for at in range(0, len(stream), pieces):
        receiver.end.data_received(stream[at : at + pieces])
    assert receiver.frames == [(kind, number, b"".join(content)) for kind, number, content in SENT]


class Recorder(asyncio.Transport):
    """Notes each write."""

    def __init__(self, written: list[bytes]) -> None:
        self._written = written

    def writelines(self, data: Any) -> None:
        self._written.append(b"".join(data))


async def test_one_end_hears_that_the_other_has_gone() -> None:
    """What was sent before still arrives; what is sent then, to nobody, is no error."""
    loop, (one, other) = asyncio.get_running_loop(), socket.socketpair()
    here, there = Received(), Received()
    await loop.create_unix_connection(lambda: here.end, sock=one)
    await loop.create_unix_connection(lambda: there.end, sock=other)
    here.end.send(RUN, 1, b"last")
    await there.until(1)
    here.end.close()
    await asyncio.wait_for(there.lost.wait(), GUARD_S)
    assert there.frames == [(RUN, 1, b"last")]
    there.end.send(RAN, 1, b"nobody")
    await asyncio.sleep(0)
