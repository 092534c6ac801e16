"""How calls end: with the status of what was raised, and quietly where nobody hears it any more."""

from __future__ import annotations

import logging
from typing import Any, cast

import grpc
import pytest

from distilqa.errors import DeadlineExceeded
from distilqa.service import Context, NoMetadata, _with_statuses


class Call:
    """A call whose status ends as gRPC's would: with ``raised``."""

    def __init__(self, raised: Exception) -> None:
        self.raised = raised
        self.statuses: list[tuple[Any, ...]] = []

    async def abort(self, *status: Any) -> None:
        self.statuses.append(status)
        raise self.raised


async def end(error: Exception, call: Call) -> bytes:
    async def method(raw: bytes, context: Context) -> bytes:
        raise error

    return await _with_statuses(method)(b"", cast(Context, call))


LATE = DeadlineExceeded("the deadline passed before the model ran")


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [
        (LATE, (grpc.StatusCode.DEADLINE_EXCEEDED, str(LATE), ()), 0),
        (ValueError("odd"), (grpc.StatusCode.INTERNAL, "internal error", ()), 1),
    ],
)
async def test_a_call_that_is_over(
    caplog: pytest.LogCaptureFixture, error: Exception, status: tuple[Any, ...], logged: int
) -> None:
    """gRPC cannot send the status, and would log what left here with what it was raised for; a defect is logged."""
    caplog.set_level(logging.DEBUG)
    call = Call(grpc.aio.InternalError("Failed to execute a batch"))
    assert await end(error, call) == b""
    assert call.statuses == [status]
    assert len([record for record in caplog.records if record.name == "distilqa.service"]) == logged


@pytest.mark.parametrize("raised", [grpc.aio.AbortError("Locally aborted."), grpc.aio.UsageError("called twice")])
async def test_nothing_else_is_swallowed(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught:
        await end(LATE, Call(raised))
    assert caught.value is raised


@pytest.mark.parametrize(("message", "logged"), [("Invalid encoding on %s", False), ("something else", True)])
def test_metadata_is_not_logged(message: str, logged: bool) -> None:
    record = logging.LogRecord("grpc", logging.ERROR, "", 0, message, ("Bearer secret",), None)
    assert NoMetadata().filter(record) == logged
