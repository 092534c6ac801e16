"""What front ends and the process that has the model say to one another.

Over a local stream socket go frames: a head (the bytes that follow it, what it is, the number of the request), then

    RUN      deadline f64, windows u32, the length of each u32, ids int32    run these
    CANCEL                                                                    nobody wants it any more
    RAN      queue, then of each window queued f64, ran f64, windows of its
             run u32; all start logits f32, all end logits f32               what each gave
    FAILED   queue, pickle                                                    the error that `Scheduler.run` raised

in the machine's own order of bytes. Deadlines are in time.monotonic's seconds, which all processes of a machine share;
``queue`` is how long it was then, in seconds f64 and in windows u64. All frames of a turn of the event loop leave in
one write.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np

from distilqa.scheduling.queue import WindowResult
from distilqa.text.arrays import Float32, Int64

RUN, CANCEL, RAN, FAILED = range(4)

_HEAD = struct.Struct("=IBI")
_RUN = struct.Struct("=dI")
_QUEUE = struct.Struct("=dQ")
_WINDOW = np.dtype([("queue_s", "f8"), ("inference_s", "f8"), ("run_windows", "u4")])


class Frames(asyncio.Protocol):
    """One end of the socket. ``on_frame`` is told of each frame (kind, number, content), ``on_lost`` of the end."""

    def __init__(self, on_frame: Callable[[int, int, memoryview], None], on_lost: Callable[[], None]) -> None:
        self._on_frame, self._on_lost = on_frame, on_lost
        self._came = bytearray()
        self._leaving: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._came += data
        at = 0
        with memoryview(self._came).toreadonly() as came:
            while len(came) - at >= _HEAD.size:
                size, kind, number = _HEAD.unpack_from(came, at)
                end = at + _HEAD.size + size
                if end > len(came):
                    break
                # Bytes of its own, for what is read of it is kept for longer than the buffer.
                self._on_frame(kind, number, memoryview(bytes(came[at + _HEAD.size : end])))
                at = end
        del self._came[:at]

    def send(self, kind: int, number: int, *content: bytes) -> None:
        """Send a frame; to nobody if the other end has gone, of which `on_lost` tells."""
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._flush)
        self._leaving += (_HEAD.pack(sum(map(len, content)), kind, number), *content)

    def _flush(self) -> None:
        leaving, self._leaving = self._leaving, []
        if self._transport is not None:
            self._transport.writelines(leaving)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def pack_run(windows: Sequence[Int64], deadline: float | None) -> tuple[bytes, ...]:
    """The content of a RUN."""
    lengths = np.fromiter(map(len, windows), np.uint32, len(windows))
    head = _RUN.pack(math.nan if deadline is None else deadline, len(windows))
    return head, lengths.tobytes(), np.concatenate(windows).astype(np.int32).tobytes()


def unpack_run(content: memoryview) -> tuple[list[Int64], float | None]:
    """The windows, each (length,) int64, and the deadline."""
    deadline, windows = _RUN.unpack_from(content)
    lengths = np.frombuffer(content, np.uint32, windows, _RUN.size)
    ids = np.frombuffer(content, np.int32, offset=_RUN.size + lengths.nbytes).astype(np.int64)
    return list(_split(ids, lengths)), None if math.isnan(deadline) else deadline


def pack_ran(ran: Sequence[WindowResult], queue: tuple[float, int]) -> tuple[bytes, ...]:
    """The content of a RAN. ``queue`` is in seconds and in windows, here as below."""
    known = np.array([(one.queue_s, one.inference_s, one.run_windows) for one in ran], _WINDOW)
    starts, ends = zip(*(one.logits for one in ran), strict=True)
    return _QUEUE.pack(*queue), known.tobytes(), np.concatenate(starts).tobytes(), np.concatenate(ends).tobytes()


def unpack_ran(content: memoryview, lengths: Sequence[int]) -> list[WindowResult]:
    """What each of the windows of those lengths gave."""
    known = np.frombuffer(content, _WINDOW, len(lengths), _QUEUE.size)
    logits: Float32 = np.frombuffer(content, np.float32, offset=_QUEUE.size + known.nbytes)
    starts, ends = (_split(side, lengths) for side in logits.reshape(2, -1))
    return [
        WindowResult((start, end), *of_run) for start, end, of_run in zip(starts, ends, known.tolist(), strict=True)
    ]


def pack_failed(error: Exception, queue: tuple[float, int]) -> tuple[bytes, ...]:
    """The content of a FAILED."""
    return _QUEUE.pack(*queue), pickle.dumps(error)


def _split(values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    at = 0
    for length in lengths:
        yield values[at : at + length]
        at += length


def unpack_failed(content: memoryview) -> Exception:
    """The error."""
    error: Exception = pickle.loads(content[_QUEUE.size :])
    return error


def unpack_queue(content: memoryview) -> tuple[float, int]:
    """How long the queue was, in seconds and in windows, of a RAN or FAILED."""
    wait_s, windows = _QUEUE.unpack_from(content)
    return wait_s, windows
