"""What tools such as grpcurl ask for: which services and messages there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from distilqa.server import health
from distilqa_protos.v1 import SERVICE

# A tool asks a few things at once, and leaves.
_MOST_CALLS = 16
_LONGEST_S = 20.0


def enable_reflection(server: grpc.aio.Server) -> None:
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(), server)  # type: ignore[no-untyped-call]


class _Reflection(reflection_pb2_grpc.ServerReflectionServicer):
    """gRPC's own, of which there may be so many calls at a time, for so long."""

    def __init__(self) -> None:
        self._own: Any = reflection.aio.ReflectionServicer((SERVICE, health.NAME, reflection.SERVICE_NAME))
        self._calls = 0

    async def ServerReflectionInfo(  # noqa: N802
        self, requests: AsyncIterable[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        self._calls += 1
        try:
            if self._calls > _MOST_CALLS:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MOST_CALLS} such calls are under way")
            async with asyncio.timeout(_LONGEST_S):
                async for reply in self._own.ServerReflectionInfo(requests, context):
                    await context.write(reply)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"a call may last {_LONGEST_S:g} s")
        finally:
            self._calls -= 1
