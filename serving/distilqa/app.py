"""The server's life: start, serve until told to stop, drain."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distilqa.bundle import Bundle
from distilqa.credentials import Callers
from distilqa.engine import Engine
from distilqa.errors import DistilqaError, SettingsError
from distilqa.reader import open_windower
from distilqa.scheduler import Permits, Scheduler
from distilqa.service import CallersOnly, Limits, NoMetadata, QuestionAnswering
from distilqa.settings import ServerSettings
from distilqa_protos.v1 import SERVICE

logger = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# What gRPC itself lets in, so that the limit on requests is ours to explain.
_LARGEST_MESSAGE_FACTOR = 4

# One bit an algorithm, of which the first is none.
_NO_COMPRESSION = 1

_NO_METADATA = NoMetadata()

# How long the last replies may take to be sent.
_SEND_S = 1.0


class BindError(DistilqaError):
    """The address cannot be bound."""


class Server:
    """One bundle, served. `start` it on an event loop, and `stop` it there. Raises SettingsError and BundleError."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._callers = None if settings.credentials is None else Callers.load(settings.credentials)
        self._tls = _load_tls(settings)
        self._bundle = Bundle.open(settings.bundle)
        self._windower = open_windower(self._bundle)
        self._engine = Engine(self._bundle, settings.variant, threads=settings.threads)
        logging.getLogger("grpc._cython.cygrpc").addFilter(_NO_METADATA)
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
        manifest = self._bundle.manifest
        if self._callers is not None and not self._callers.may_use(manifest.name):
            logger.warning("no caller in %s may use the model %r, which is served", settings.credentials, manifest.name)
        self._server = grpc.aio.server(
            interceptors=() if self._callers is None else (CallersOnly(self._callers, manifest.name),),
            options=(
                (
                    "grpc.max_receive_message_length",
                    min(_LARGEST_MESSAGE_FACTOR * settings.max_request_bytes, 2**31 - 1),
                ),
                # gRPC unpacks a message before it looks at its size: a megabyte of it could take all memory.
                ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share its calls
            ),
        )
        service = QuestionAnswering(
            manifest,
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
        self.address = self._bind()
        await self._server.start()
        await self._set_health(_SERVING)

    def _bind(self) -> str:
        """Bind, and return the address. Raises BindError."""
        bare = self._settings.host.strip("[]")
        host = f"[{bare}]" if ":" in bare else bare
        wanted = f"{host}:{self._settings.port}"
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(wanted)
            else:
                port = self._server.add_secure_port(wanted, self._tls)
        except RuntimeError as error:
            kind = "" if self._tls is None else ", or the certificate of a kind that gRPC does not take"
            raise BindError(
                f"cannot bind {wanted}; is another server there, or the host not this machine's{kind}?"
            ) from error
        if not _is_loopback(bare):
            if self._callers is None:
                logger.warning("without --credentials, whoever reaches %s:%d may call", host, port)
            elif self._tls is None:
                logger.warning("without --tls-certificate, tokens travel to %s:%d as plain text", host, port)
        return f"{host}:{port}"

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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _load_tls(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """What the server proves itself with, if it does. Raises SettingsError.

    Tried with `ssl` first, because gRPC takes any bytes and then fails without saying why.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return None
    chain, private = _read("tls_certificate", certificate), _read("tls_key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except ssl.SSLError as error:
        raise SettingsError(f"tls_certificate: {certificate}: holds no certificate in PEM") from error
    try:
        context.load_cert_chain(certificate, key, password="")  # without one, it would ask the terminal
    except ssl.SSLError as error:
        problem = error.reason or "it holds no key in PEM without a password"
        raise SettingsError(f"tls_key: {key}: does not go with {certificate}: {problem}") from error
    return grpc.ssl_server_credentials([(private, chain)])


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path}: {error.strerror}") from error


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
