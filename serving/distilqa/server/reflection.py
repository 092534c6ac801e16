"""What tools such as grpcurl ask for: which services and messages there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from distilqa.errors import InvalidRequest
from distilqa.server import health
from distilqa.server.statuses import Context, Handler
from distilqa.server.wire import parse_small
from distilqa_protos.v1 import SERVICE

# A tool asks a few things at once, and leaves.
_MOST_CALLS = 16
_LONGEST_S = 20.0


class Reflection:
    """gRPC's own, of which there may be so many calls at a time, for so long. ``calls`` are under way."""

    def __init__(self) -> None:
        self._own: Any = reflection.aio.ReflectionServicer((SERVICE, health.NAME, reflection.SERVICE_NAME))
        self.calls = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        method: Handler = grpc.stream_stream_rpc_method_handler(self._handle)
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})

    async def _handle(self, _requests: object, context: Context) -> None:
        self.calls += 1
        try:
            if self.calls > _MOST_CALLS:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MOST_CALLS} such calls are under way")
            async with asyncio.timeout(_LONGEST_S):
                async for reply in self._own.ServerReflectionInfo(_questions(context), context):
                    await context.write(reply.SerializeToString())
        except InvalidRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"a call may last {_LONGEST_S:g} s")
        finally:
            self.calls -= 1


async def _questions(context: Context) -> AsyncIterator[Any]:
    read: Any = context.read
    while (raw := await read()) is not grpc.aio.EOF:
        yield parse_small(reflection_pb2.ServerReflectionRequest, raw)
