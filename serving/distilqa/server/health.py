"""What probes are told: ``grpc.health.v1.Health``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from distilqa.errors import DistilqaError, Overloaded, Unavailable
from distilqa.server.statuses import Context, Messages, to_status
from distilqa.server.wire import parse_small
from distilqa_protos.v1 import SERVICE

NAME = health.SERVICE_NAME
_NAMES = ("", SERVICE)

# Anybody may ask, and watch for as long as he likes.
_MOST_WAITING = 64
_MOST_WATCHERS = 256

_Reply = health_pb2.HealthCheckResponse


class Health:
    """Whether the service can answer, and with it the server as a whole.

    Each watcher is written to by itself, so that one who does not read keeps neither the others nor the server waiting.
    A call may take ``message_s`` seconds to say what it asks. ``watchers`` are there.
    """

    def __init__(self, message_s: float) -> None:
        self._messages = Messages(within_s=message_s, most=_MOST_WAITING)
        self.watchers = 0
        self._status: int = _Reply.NOT_SERVING
        self._changed = asyncio.Event()  # another one after each change
        self._closed = False

    def tell(self, can_answer: bool) -> None:
        self._status = _Reply.SERVING if can_answer else _Reply.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self) -> None:
        """End the calls of those who watch."""
        self._closed = True
        self._changed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods, for `grpc.aio.Server.add_generic_rpc_handlers`.

        For gRPC their requests are a stream, since that begins before a message is there.
        """
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.stream_unary_rpc_method_handler(_or_status(self._check)),
                "Watch": grpc.stream_stream_rpc_method_handler(_or_status(self._watch)),
            },
        )

    async def _asked(self, context: Context) -> str:
        """Of which service."""
        service: str = parse_small(health_pb2.HealthCheckRequest, await self._messages.receive(context)).service
        return service

    async def _check(self, context: Context) -> bytes:
        if await self._asked(context) not in _NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service is served here")
        return _reply(self._status)

    async def _watch(self, context: Context) -> None:
        service = await self._asked(context)
        if self.watchers >= _MOST_WATCHERS:
            raise Overloaded(f"{_MOST_WATCHERS} watchers are there")
        self.watchers += 1
        try:
            await self._tell(service, context)
        finally:
            self.watchers -= 1

    async def _tell(self, service: str, context: Context) -> None:
        told = None
        while True:
            changed = self._changed
            status = self._status if service in _NAMES else _Reply.SERVICE_UNKNOWN
            if status != told:
                await context.write(_reply(status))
                told = status
            await changed.wait()
            if self._closed:
                raise Unavailable("the server is stopping")


def _or_status(method: Callable[[Context], Awaitable[bytes | None]]) -> Callable[[object, Context], Awaitable[Any]]:
    """A handler, which ends with the status of an error."""

    async def handle(_requests: object, context: Context) -> bytes | None:
        try:
            return await method(context)
        except DistilqaError as error:
            await context.abort(grpc.StatusCode[error.status], to_status(error).message)
            raise

    return handle


def _reply(status: int) -> bytes:
    return _Reply(status=status).SerializeToString()
