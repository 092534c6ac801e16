"""How calls end: with the status of what was raised, counted and logged once, and quietly where nobody hears it."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from contextlib import suppress
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2

from distilqa.errors import (
    DeadlineExceeded,
    DistilqaError,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from distilqa.rpc import REQUEST_ID
from distilqa.server.statuses import Calls, Context, IncomingCall, Messages, to_status


class Tokenized:
    """What may be large."""


async def test_a_call_that_fails_leaves_nothing_behind() -> None:
    """Not until cycles are looked for: a text that was tokenised takes much memory."""
    left: list[weakref.ref[Tokenized]] = []

    async def refuse(_raw: bytes, _call: IncomingCall) -> bytes:
        large = Tokenized()
        left.append(weakref.ref(large))
        raise InvalidRequest("passages", "make too many windows")

    gc.disable()
    try:
        handler = make_calls().unary("Answer", refuse)
        with pytest.raises(grpc.aio.AbortError):
            await handler.stream_unary(None, cast(Context, FakeContext()))  # type: ignore[misc, arg-type]
        assert left[0]() is None
    finally:
        gc.enable()


class Silent:
    """gRPC's side of a call that sends nothing."""

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1234"

    async def read(self) -> bytes:
        await asyncio.sleep(60)
        raise AssertionError("it is not waited for")


async def test_who_is_given_up_as_its_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    messages = Messages(within_s=0.05, most=1)
    waiting = asyncio.create_task(messages.receive(cast(Context, Silent())))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.06, messages.give_up, "the server is stopping")
    time.sleep(0.1)  # noqa: ASYNC251 - both are due at once
    with pytest.raises(DeadlineExceeded):
        await waiting
    assert caplog.records == []


class FakeContext:
    """gRPC's side of a call, whose `abort` raises what gRPC's would."""

    def __init__(
        self, *, metadata: tuple[tuple[str, str], ...] = (), remaining_s: float | None = None,
        raised: Exception | None = None,
    ) -> None:  # fmt: skip
        self._metadata, self._remaining_s = metadata, remaining_s
        self._raised = raised or grpc.aio.AbortError("Locally aborted.")
        self.statuses: list[tuple[Any, ...]] = []
        self.trailing: Any = ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1234"

    def time_remaining(self) -> float | None:
        return self._remaining_s

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata

    async def read(self) -> bytes:
        return b"reply"

    async def abort(self, *status: Any) -> None:
        self.statuses.append(status)
        raise self._raised


def make_calls() -> Calls:
    return Calls(Messages(within_s=20, most=8))


async def end(error: BaseException | None, context: FakeContext, calls: Calls | None = None) -> bytes | None:
    """Let a method end so, and return what gRPC would send, if anything."""

    async def method(raw: bytes, call: IncomingCall) -> bytes:
        if error:
            raise error
        call.log.update(windows=3)
        return raw

    handler = (calls or make_calls()).unary("Answer", method)
    reply: bytes | None = await handler.stream_unary(None, cast(Context, context))  # type: ignore[misc, arg-type]
    return reply


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Those of the only entry of the log."""
    (record,) = caplog.records
    return cast(dict[str, Any], record.__dict__["fields"])


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


KNOWN = [
    (InvalidRequest("question", "is empty"), grpc.StatusCode.INVALID_ARGUMENT),
    (ModelNotFound("no"), grpc.StatusCode.NOT_FOUND),
    (Overloaded("no"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (Unauthenticated("who?"), grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied("no"), grpc.StatusCode.PERMISSION_DENIED),
    (Unavailable("no"), grpc.StatusCode.UNAVAILABLE),
    (InferenceFailed("the model failed"), grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("error", "code"), KNOWN)
async def test_ours_say_what_they_say(error: DistilqaError, code: grpc.StatusCode) -> None:
    context = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await end(error, context)
    ((status, details, trailing),) = context.statuses
    assert (status, details) == (code, str(error))
    assert [key for key, _ in trailing] == [REQUEST_ID]


async def test_anything_else_is_our_fault_and_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    context = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await end(ValueError("odd"), context)
    ((status, details, _),) = context.statuses
    assert (status, details) == (grpc.StatusCode.INTERNAL, "internal error")
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "Answer")
    assert record.exc_info is not None
    assert fields(caplog)["request_id"] == dict(context.trailing)[REQUEST_ID]


async def test_who_is_refused_is_told_when_to_come_back(caplog: pytest.LogCaptureFixture) -> None:
    context = FakeContext()
    error = Overloaded("busy", 1.2345, "max_requests")
    with pytest.raises(grpc.aio.AbortError):
        await end(error, context)
    trailing = dict(context.statuses[0][2])
    assert trailing["grpc-retry-pushback-ms"] == "1235"
    (detail,) = to_status(error).details
    retry = error_details_pb2.RetryInfo()
    assert detail.Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1235
    assert trailing["grpc-status-details-bin"] == to_status(error).SerializeToString()
    assert (fields(caplog)["outcome"], fields(caplog)["limit"]) == ("RESOURCE_EXHAUSTED", "max_requests")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (("trace-7/a",), True),
        (("x" * 128,), True),
        (("x" * 129,), False),
        (("",), False),
        (("two words",), False),
        (("née",), False),
        (("a", "b"), False),
        ((), False),
    ],
)
async def test_the_callers_id_is_honoured(caplog: pytest.LogCaptureFixture, sent: tuple[str, ...], kept: bool) -> None:
    """It goes back with the reply, or another that was made where it cannot be used."""
    context = FakeContext(metadata=tuple((REQUEST_ID, one) for one in sent))
    assert await end(None, context) == b"reply"
    ((key, id),) = context.trailing
    assert key == REQUEST_ID
    assert (id in sent) == kept
    assert 1 <= len(id) <= 128
    assert fields(caplog).pop("seconds") >= 0
    assert fields(caplog) == {"request_id": id, "outcome": "OK", "peer": "ipv4:192.0.2.1:1234", "windows": 3}


async def test_every_end_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    calls = make_calls()
    ends = [None, None, InvalidRequest("a", "b"), Overloaded("", 1, "max_bytes"), Overloaded("", 1, "max_requests")]
    for error in ends:
        with suppress(grpc.aio.AbortError):
            await end(error, FakeContext(), calls)
    for remaining_s in (None, 60.0, -1.0):
        with pytest.raises(asyncio.CancelledError):
            await end(asyncio.CancelledError(), FakeContext(remaining_s=remaining_s), calls)
    assert calls.outcomes == {
        "OK": 2,
        "INVALID_ARGUMENT": 1,
        "RESOURCE_EXHAUSTED max_bytes": 1,
        "RESOURCE_EXHAUSTED max_requests": 1,
        "CANCELLED": 2,
        "DEADLINE_EXCEEDED": 1,
    }
    assert len(caplog.records) == len(ends) + 3


async def test_who_leaves_as_his_time_is_over_has_not_just_left() -> None:
    """Of times that gRPC's clients round up, by more the longer they are."""
    expires: list[float] = []

    async def note(_requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        call = IncomingCall.of(context)
        expires.append(call.expires - call.began)
        return b""

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("a.B", {"C": grpc.stream_unary_rpc_method_handler(note)}),)
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    timeouts = [5.001, 10.01, 99.91, 100.2, 1001.0, 10_001.0]
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/a.B/C")
        for timeout in timeouts:
            await call(b"", timeout=timeout)
    await server.stop(None)
    assert all(0.95 * timeout < one <= timeout for one, timeout in zip(expires, timeouts, strict=True)), expires


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), ValueError("odd")])
async def test_a_call_that_is_over(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """gRPC cannot send the status, and would log what left here with what it was raised for."""
    context = FakeContext(raised=grpc.aio.InternalError("Failed to execute a batch"))
    assert await end(error, context) is None
    assert len(context.statuses) == len(caplog.records) == 1


@pytest.mark.parametrize("raised", [grpc.aio.AbortError("Locally aborted."), grpc.aio.UsageError("called twice")])
async def test_nothing_else_is_swallowed(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught:
        await end(DeadlineExceeded("late"), FakeContext(raised=raised))
    assert caught.value is raised
