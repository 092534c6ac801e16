"""How calls end: the one place where errors become gRPC statuses, and where each call is counted and logged.

A call has an id, the caller's own in ``x-request-id`` or one made here, which goes back with the reply's trailing
metadata and is in every entry of the log about it. Texts of the caller are in none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self, TypeAlias, TypeVar
from urllib.parse import quote, unquote

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from distilqa.errors import DeadlineExceeded, DistilqaError, InferenceFailed, InvalidRequest, Overloaded, Unavailable
from distilqa.rpc import REQUEST_ID, REQUEST_ID_FORM, RETRY_AFTER_MS
from distilqa.scheduling.refusal import refusal

# Of an error, which may quote the caller, as trailers carry it; more of them gRPC's clients refuse at random.
_MAX_MESSAGE_BYTES = 2000
_AS_IT_IS = "".join(map(chr, range(ord(" "), ord("~") + 1))).replace("%", "")

# A caller's clock may be ahead so far, and gRPC rounds the time that a call has up, by one part in so many at most: it
# gives up at the deadline, and that looks as if it had left.
_CLOCKS_S = 0.05
_ROUNDING = 100

# How long after the end of what a caller sends gRPC may take to tell that it has left.
_GONE_S = 0.1

# Who calls, where the server knows its callers.
CALLER: ContextVar[str | None] = ContextVar("caller", default=None)

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """A call under way. ``log`` takes what to log of it.

    ``began`` and ``deadline`` are in time.monotonic's seconds, as is ``expires``: who leaves from then on does so
    because its time is over.
    """

    context: Context
    request_id: str
    began: float
    deadline: float | None
    expires: float
    log: dict[str, object]

    @classmethod
    def of(cls, context: Context) -> Self:
        now, remaining_s = time.monotonic(), context.time_remaining()
        sent = [str(value) for key, value in context.invocation_metadata() or () if key == REQUEST_ID]
        request_id = sent[0] if len(sent) == 1 and REQUEST_ID_FORM.fullmatch(sent[0]) else uuid.uuid4().hex
        deadline, expires = None, math.inf
        if remaining_s is not None:
            deadline = now + remaining_s
            expires = deadline - max(_CLOCKS_S, remaining_s / _ROUNDING)
        log: dict[str, object] = {"peer": unquote(context.peer())}  # "ipv6:%5B::1%5D:50051", say
        return cls(context, request_id, now, deadline, expires, log)

    def item(self) -> Self:
        """A request of this stream, which begins now."""
        return replace(self, began=time.monotonic(), log=dict(self.log))


class Messages:
    """Messages that calls have yet to send, in ``within_s`` seconds. gRPC itself would wait for them for ever.

    ``most`` are waited for. One too many takes the place of another, of the connection that has most of them: so they
    shut out nobody who sends his message at once, and one connection alone none of another.
    """

    def __init__(self, *, within_s: float, most: int) -> None:
        self._within_s, self._most = within_s, most
        self._waiting: dict[asyncio.Timeout, str] = {}  # of which connection
        self._given_up: dict[asyncio.Timeout, Exception] = {}
        self._closed: str | None = None

    async def receive(self, context: Context) -> bytes:
        """The message of a call.

        Raises DeadlineExceeded where it takes longer, InvalidRequest where there is none, Unavailable once given up.
        """
        if self._closed:
            raise Unavailable(self._closed)
        if len(self._waiting) >= self._most:
            [(most, _)] = Counter(self._waiting.values()).most_common(1)
            longest = next(limit for limit, connection in self._waiting.items() if connection == most)
            problem = f"{self._most} calls have not sent their message, and this one has waited for long"
            self._give_up(longest, refusal("max_requests", problem, 0))
        limit = asyncio.timeout(self._within_s)
        try:
            async with limit:
                self._waiting[limit] = context.peer()
                raw: Any = await context.read()
        except TimeoutError:
            late = DeadlineExceeded(f"no message came within {self._within_s:g} s", "message_s")
            raise self._given_up.get(limit, late) from None
        finally:
            self._waiting.pop(limit, None)
            self._given_up.pop(limit, None)
        if raw is grpc.aio.EOF:
            await asyncio.sleep(_GONE_S)  # where the caller has left, this is cancelled
            raise InvalidRequest("request", "is missing")
        return bytes(raw)

    def give_up(self, reason: str) -> None:
        """Wait for none of those that are waited for, nor for others: their calls end as Unavailable."""
        self._closed = reason
        for limit in list(self._waiting):
            self._give_up(limit, Unavailable(reason))

    def _give_up(self, limit: asyncio.Timeout, error: Exception) -> None:
        del self._waiting[limit]
        with suppress(RuntimeError):  # its time is over in this very moment
            limit.reschedule(0)
            self._given_up[limit] = error


class Calls:
    """Makes methods into gRPC's handlers, and counts in ``outcomes`` how calls and the requests of streams end.

    ``messages`` are those of calls that send one.
    """

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self.outcomes: Counter[str] = Counter()

    def unary(self, name: str, method: Callable[[bytes, IncomingCall], Awaitable[bytes]]) -> Handler:
        """A handler for a method that takes one request and gives one reply.

        For gRPC its requests are a stream, since that begins before a message is there.
        """

        async def answer(call: IncomingCall) -> bytes:
            return await method(await self._messages.receive(call.context), call)

        async def handle(_requests: object, context: Context) -> bytes | None:
            return await self._handle(name, context, answer)

        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(self, name: str, method: Callable[[IncomingCall], Awaitable[None]]) -> Handler:
        """A handler for a method that reads and writes as it likes."""

        async def handle(_requests: object, context: Context) -> None:
            await self._handle(name, context, method)

        return grpc.stream_stream_rpc_method_handler(handle)

    def refuse(self, name: str, error: Exception, **log: object) -> Handler:
        """A handler that ends with an error. As one for streams it fits all, and does not wait for a request."""

        async def refuse(call: IncomingCall) -> None:
            call.log.update(log)
            raise error

        return self.stream(name, refuse)

    def end(self, name: str, call: IncomingCall, error: BaseException | None) -> None:
        """Count and log an end: of a call, or of a request of a stream."""
        outcome = _outcome(error, call.expires)
        named = error.limit if isinstance(error, Overloaded | DeadlineExceeded) else None
        limit = {"limit": named} if named else {}
        self.outcomes[" ".join((outcome, *map(str, limit.values())))] += 1
        seconds = round(time.monotonic() - call.began, 6)
        fields = {"request_id": call.request_id, "outcome": outcome, "seconds": seconds, **limit, **call.log}
        if caller := CALLER.get():
            fields["caller"] = caller
        if isinstance(error, InvalidRequest):
            fields["field"] = error.field
        if outcome == InferenceFailed.status:
            logger.error(name, exc_info=error, extra={"fields": fields})
        else:
            logger.info(name, extra={"fields": fields})
        while error is not None:  # or what was tokenised would be there until cycles are looked for
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__

    async def _handle(
        self, name: str, context: Context, method: Callable[[IncomingCall], Awaitable[_Result]]
    ) -> _Result | None:
        call = IncomingCall.of(context)
        try:
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            reply = await method(call)
        except asyncio.CancelledError as error:
            self.end(name, call, error)
            raise
        except Exception as error:
            self.end(name, call, error)
            await _abort(call, error)
            return None
        self.end(name, call, None)
        return reply


def _outcome(error: BaseException | None, expires: float) -> str:
    if error is None:
        return "OK"
    if isinstance(error, asyncio.CancelledError):  # by gRPC: the caller left, or the deadline passed
        return DeadlineExceeded.status if time.monotonic() >= expires else "CANCELLED"
    return error.status if isinstance(error, DistilqaError) else "INTERNAL"


def to_status(error: Exception) -> status_pb2.Status:
    """What the caller is told: of our errors what they say, of any other only that it is our fault."""
    if not isinstance(error, DistilqaError):
        return status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="internal error")
    status = status_pb2.Status(code=grpc.StatusCode[error.status].value[0], message=_cut(str(error)))
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_after_s))
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status.details.append(detail)
    return status


async def _abort(call: IncomingCall, error: Exception) -> None:
    """End a call with an error's status, which raises; but not if the call was over before, its deadline passed say."""
    status = to_status(error)
    trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID, call.request_id)]
    if status.details:
        trailing.append(("grpc-status-details-bin", status.SerializeToString()))
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        trailing.append((RETRY_AFTER_MS, str(_milliseconds(error.retry_after_s))))
    (code,) = (code for code in grpc.StatusCode if code.value[0] == status.code)
    with suppress(grpc.aio.InternalError):  # a status that cannot be sent any more, of which gRPC would write a log
        await call.context.abort(code, status.message, tuple(trailing))


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _cut(message: str) -> str:
    """As much of a message as may be sent: what is not ASCII takes three bytes a byte."""
    message = message[:_MAX_MESSAGE_BYTES]
    lengths = accumulate(len(quote(one, safe=_AS_IT_IS, errors="replace")) for one in message)
    return message[: sum(length <= _MAX_MESSAGE_BYTES for length in lengths)]
