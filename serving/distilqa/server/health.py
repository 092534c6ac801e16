"""What probes are told: ``grpc.health.v1.Health``."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from distilqa_protos.v1 import SERVICE

NAME = health.SERVICE_NAME

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Whether the service can answer, and with it the server as a whole."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def tell(self, can_answer: bool) -> None:
        for name in ("", SERVICE):
            await self._servicer.set(name, _SERVING if can_answer else _NOT_SERVING)
