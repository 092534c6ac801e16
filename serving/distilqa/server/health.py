"""What probes are told: ``grpc.health.v1.Health``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from distilqa.errors import DistilqaError, InvalidRequest, Overloaded
from distilqa.server.statuses import Context, receive, to_status
from distilqa_protos.v1 import SERVICE

NAME = health.SERVICE_NAME
_NAMES = ("", SERVICE)

# Anybody may ask, and watch for as long as he likes.
_MOST_CHECKS = 256
_MOST_WATCHERS = 256

_Reply = health_pb2.HealthCheckResponse


class Health:
    """Whether the service can answer, and with it the server as a whole.

    Each watcher is written to by itself, so that one who does not read keeps neither the others nor the server waiting.
    A call may take ``message_s`` seconds to say what it asks.
    """

    def __init__(self, message_s: float) -> None:
        self._message_s = message_s
        self._status: int = _Reply.NOT_SERVING
        self._changed = asyncio.Event()  # another one after each change

    def tell(self, can_answer: bool) -> None:
        self._status = _Reply.SERVING if can_answer else _Reply.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self._handle(self._check, _MOST_CHECKS)),
                "Watch": grpc.stream_stream_rpc_method_handler(self._handle(self._watch, _MOST_WATCHERS)),
            },
        )

    def _handle(
        self, method: Callable[[str, Context], Awaitable[bytes | None]], most: int
    ) -> Callable[[object, Context], Awaitable[bytes | None]]:
        """So many calls of a method at a time. For gRPC their requests are a stream, since that begins without any."""
        calls = 0

        async def handle(_requests: object, context: Context) -> bytes | None:
            nonlocal calls
            calls += 1
            try:
                if calls > most:
                    raise Overloaded(f"{most} such calls are under way")
                return await method(await self._asked(context), context)
            except DistilqaError as error:
                await context.abort(grpc.StatusCode[error.status], to_status(error).message)
                raise
            finally:
                calls -= 1

        return handle

    async def _asked(self, context: Context) -> str:
        """Of which service."""
        try:
            return health_pb2.HealthCheckRequest.FromString(await receive(context, self._message_s)).service
        except DecodeError as error:
            raise InvalidRequest("request", "is not a HealthCheckRequest") from error

    async def _check(self, service: str, context: Context) -> bytes:
        if service not in _NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service is served here")
        return _reply(self._status)

    async def _watch(self, service: str, context: Context) -> None:
        told = None
        while True:
            changed = self._changed
            status = self._status if service in _NAMES else _Reply.SERVICE_UNKNOWN
            if status != told:
                await context.write(_reply(status))
                told = status
            await changed.wait()


def _reply(status: int) -> bytes:
    return _Reply(status=status).SerializeToString()
