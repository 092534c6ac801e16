"""The server's life: start, serve until told to stop, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distilqa.bundle import Bundle
from distilqa.engine import Engine
from distilqa.errors import DistilqaError
from distilqa.reader import open_windower
from distilqa.scheduler import Permits, Scheduler
from distilqa.service import SERVICE, Limits, QuestionAnswering
from distilqa.settings import ServerSettings

logger = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# What gRPC itself lets in, so that the limit on requests is ours to explain.
_LARGEST_MESSAGE_FACTOR = 4

# How long the last replies may take to be sent.
_SEND_S = 1.0


class BindError(DistilqaError):
    """The address cannot be bound."""


class Server:
    """One bundle, served. `start` it on an event loop, and `stop` it there."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._bundle = Bundle.open(settings.bundle)
        self._windower = open_windower(self._bundle)
        self._engine = Engine(self._bundle, settings.variant, threads=settings.threads)
        self._pool = ThreadPoolExecutor(max_workers=self._engine.threads, thread_name_prefix="text")
        self._health = health.aio.HealthServicer()
        self.address = ""

    @property
    def description(self) -> str:
        manifest = self._bundle.manifest
        return f"{manifest.name} version {manifest.version} ({self._engine.variant}, {self._engine.threads} cores)"

    async def start(self) -> None:
        """Bind and serve. ``address`` is where. Raises BindError."""
        settings = self._settings
        self._scheduler = Scheduler(self._engine, lanes=self._engine.threads)
        self._permits = Permits(max_requests=settings.max_requests, max_bytes=settings.max_bytes)
        self._server = grpc.aio.server(
            options=(
                (
                    "grpc.max_receive_message_length",
                    min(_LARGEST_MESSAGE_FACTOR * settings.max_request_bytes, 2**31 - 1),
                ),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share its calls
            )
        )
        service = QuestionAnswering(
            self._bundle.manifest,
            self._engine.variant,
            self._windower,
            self._scheduler,
            permits=self._permits,
            limits=Limits(settings.max_windows, settings.max_passages, settings.max_request_bytes),
            pool=self._pool,
        )
        self._server.add_generic_rpc_handlers((service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        host = settings.host.strip("[]")
        host = f"[{host}]" if ":" in host else host
        try:
            port = self._server.add_insecure_port(f"{host}:{settings.port}")
        except RuntimeError as error:
            raise BindError(
                f"cannot bind {host}:{settings.port}; is another server there, or the host not this machine's?"
            ) from error
        await self._server.start()
        self.address = f"{host}:{port}"
        await self._set_health(_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish within ``grace_s`` seconds, and close.

        The refusing is done here and not left to gRPC, whose server ends calls that arrive as it stops with CANCELLED.
        """
        await self._set_health(_NOT_SERVING)
        try:
            await asyncio.wait_for(self._permits.drain(), grace_s)
            await self._server.stop(_SEND_S)
        except TimeoutError:
            await self._server.stop(None)
        await asyncio.to_thread(self._scheduler.close)
        self._pool.shutdown()
        logger.info("stopped; runs by their number of windows: %s", dict(sorted(self._scheduler.run_sizes.items())))

    async def abort(self) -> None:
        """End the calls in flight; a `stop` under way then completes."""
        await self._server.stop(None)

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def serve(settings: ServerSettings, on_ready: Callable[[Server], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the drain at once."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(settings)
    await server.start()
    on_ready(server)
    received = await signals.get()
    logger.info("%s: draining for at most %g s", received.name, settings.drain_s)
    drain = asyncio.create_task(server.stop(settings.drain_s))
    again = asyncio.create_task(signals.get())
    await asyncio.wait((drain, again), return_when=asyncio.FIRST_COMPLETED)
    if not drain.done():
        await server.abort()
    again.cancel()
    await drain
