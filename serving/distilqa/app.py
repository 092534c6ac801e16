"""The server's life: start, serve until told to stop, drain."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distilqa import huge_pages
from distilqa.admission import Permits
from distilqa.bundle import Bundle
from distilqa.credentials import Callers
from distilqa.engine import open_engine, usable_cores
from distilqa.errors import DistilqaError, SettingsError, Unavailable
from distilqa.reader import open_windower
from distilqa.scheduler import Scheduler
from distilqa.service import CallersOnly, Limits, NoMetadata, QuestionAnswering, handlers
from distilqa.settings import ServerSettings
from distilqa.statuses import Calls
from distilqa_protos.v1 import SERVICE

logger = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_OPTIONS = (
    # gRPC unpacks a message before it looks at its size: a megabyte of it could take all memory. A bit an algorithm,
    # of which the first is none.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share its calls
    # Clients may look every ten seconds whether the server is still there; by default that gets them cut off.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # And callers whose machine or network is gone are found out, so that their work is dropped.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

# What gRPC itself lets in, so that the limit on requests is ours to explain.
_LARGEST_MESSAGE_FACTOR = 4

_NO_METADATA = NoMetadata()

# How long the last replies may take to be sent.
_SEND_S = 1.0

# How long runs of the model that are under way may take to end.
_CLOSE_S = 5.0

# How often the log tells how many were refused or failed.
_REPORT_S = 10.0


_Result = TypeVar("_Result")


class BindError(DistilqaError):
    """The address cannot be bound."""


class BrokenError(DistilqaError):
    """A lane died of a defect, so that the server can answer nothing any more."""


class Server:
    """One bundle, served. `start` it on an event loop, and `stop` it there. Raises SettingsError.

    ``broken`` is set if it cannot go on. ``calls`` counts how calls end.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._callers = (
            None if settings.credentials is None else Callers.load(settings.credentials, settings.source("credentials"))
        )
        self._tls = _load_tls(settings)
        self._threads = settings.threads or usable_cores()
        if self._threads > usable_cores():
            logger.warning("%s: this process may use %d cores only", settings.source("threads"), usable_cores())
        self._pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="text")
        self._health = health.aio.HealthServicer()
        self._service: QuestionAnswering | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: Counter[str] = Counter()
        self.calls = Calls()
        self._forced = asyncio.Event()
        self.broken = asyncio.Event()
        self.address = self.description = ""

    async def start(self) -> None:
        """Bind, load and verify the bundle, warm it up, and serve; until then, calls end as UNAVAILABLE.

        ``address`` is where, and ``description`` what is served. Raises BindError, BundleError and MissingDependency.
        """
        logging.getLogger("grpc._cython.cygrpc").addFilter(_NO_METADATA)
        largest = min(_LARGEST_MESSAGE_FACTOR * self._settings.max_request_bytes, 2**31 - 1)
        self._server = grpc.aio.server(
            interceptors=() if self._callers is None else (CallersOnly(self._callers, self._model, self.calls),),
            options=(*_OPTIONS, ("grpc.max_receive_message_length", largest)),
        )
        self._server.add_generic_rpc_handlers((handlers(self.calls, self._ready),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.address = self._bind()
        await self._set_health(_NOT_SERVING)
        await self._server.start()
        try:
            await self._load()
        except BaseException:
            await self._server.stop(None)
            raise
        gc.collect()
        gc.freeze()  # what is there now stays, and need not be looked through again and again
        await self._set_health(_SERVING)
        self._keep(self._report())
        self._keep(self._use_huge_pages())

    async def _load(self) -> None:
        settings, began = self._settings, time.monotonic()
        bundle = Bundle.open(settings.bundle)
        manifest = bundle.manifest
        windower = await in_thread(partial(open_windower, bundle))
        self._engine = await in_thread(
            partial(
                open_engine,
                bundle,
                settings.variant,
                unverified=settings.unverified == "allow",
                objective_s=settings.objective_ms / 1e3,
                threads=self._threads,
                concurrent=True,
            ),
            finish_s=_CLOSE_S,
        )
        variant = self._engine.variant
        self._scheduler = Scheduler(
            self._engine,
            lanes=self._engine.lanes,
            max_queued_windows=settings.max_queued_windows,
            on_death=lambda: self._keep(self._break()),
        )
        self._permits = Permits(
            max_requests=settings.max_requests, max_bytes=settings.max_bytes, wait_s=self._scheduler.wait_s
        )
        self._service = QuestionAnswering(
            manifest,
            variant,
            windower,
            self._scheduler,
            calls=self.calls,
            permits=self._permits,
            limits=Limits(
                settings.max_windows,
                settings.max_passages,
                settings.max_request_bytes,
                # Or a stream that is alone here would have its own requests refused.
                min(settings.stream_requests, settings.max_requests),
            ),
            pool=self._pool,
        )
        self.description = f"{manifest.name} version {manifest.version} ({variant}, {self._engine.device})"
        if self._callers is not None and not self._callers.may_use(manifest.name):
            logger.warning("no caller in %s may use the model %r, which is served", settings.credentials, manifest.name)
        logger.info(
            "ready", extra={"fields": {"address": self.address, "model": manifest.name, "version": manifest.version,
                                       "variant": variant, "seconds": round(time.monotonic() - began, 3)}}
        )  # fmt: skip

    def _ready(self) -> QuestionAnswering:
        if self._service is None:
            raise Unavailable("the server is starting")
        return self._service

    def _model(self) -> str:
        return self._ready().model

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
        if self._service is not None:
            drained = asyncio.create_task(self._permits.drain())
            await _first_of(drained, forced := asyncio.create_task(self._forced.wait()), timeout_s=grace_s)
            if not drained.done():
                logger.warning("not all calls were waited for", extra={"fields": {"requests": self._permits.requests}})
            forced.cancel()
            closing = asyncio.create_task(
                in_thread(partial(self._scheduler.close, "the server stopped before this was done"))
            )
            await _first_of(closing, timeout_s=_CLOSE_S)
            if not closing.done():
                logger.error("a run has not ended, and is left behind")
            await _first_of(drained, timeout_s=_SEND_S)
            await self._server.stop(_SEND_S)
            await _first_of(drained, timeout_s=_SEND_S)  # calls that this has cut off
            drained.cancel()
        else:
            await self._server.stop(_SEND_S)
        self._pool.shutdown(wait=False)
        self._tell()
        for task in self._tasks:
            task.cancel()
        runs = {} if self._service is None else dict(sorted(self._scheduler.run_sizes.items()))
        logger.info("stopped", extra={"fields": {"ended": dict(self.calls.outcomes), "runs_by_windows": runs}})

    def force(self) -> None:
        """Let a `stop` wait no longer: calls in flight end as UNAVAILABLE."""
        self._forced.set()

    async def _break(self) -> None:
        await self._set_health(_NOT_SERVING)
        self.broken.set()

    async def _use_huge_pages(self) -> None:
        """While the first calls are answered: it would hold up the start."""
        collapsed = await in_thread(huge_pages.collapse)
        logger.info("huge pages", extra={"fields": {"mb": round(collapsed / 1e6)}})

    async def _report(self) -> None:
        """Tell from time to time how many calls ended otherwise than with an answer, for who logs no single calls."""
        while True:
            await asyncio.sleep(_REPORT_S)
            self._tell()

    def _tell(self) -> None:
        now = Counter({outcome: count for outcome, count in self.calls.outcomes.items() if outcome != "OK"})
        if more := now - self._told:
            logger.warning("not answered", extra={"fields": {"ended": dict(more)}})
        self._told = now

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
    by_certificate, by_key = settings.source("tls_certificate"), settings.source("tls_key")
    chain, private = _read(by_certificate, certificate), _read(by_key, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except ssl.SSLError as error:
        raise SettingsError(f"{by_certificate}: {certificate}: holds no certificate in PEM") from error
    try:
        context.load_cert_chain(certificate, key, password="")  # without one, it would ask the terminal
    except ssl.SSLError as error:
        problem = error.reason or "it holds no key in PEM without a password"
        raise SettingsError(f"{by_key}: {key}: does not go with {certificate}: {problem}") from error
    return grpc.ssl_server_credentials([(private, chain)])


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path}: {error.strerror}") from error


async def serve(settings: ServerSettings, on_ready: Callable[[Server], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the drain at once.

    Raises what `Server` and its `start` do, and BrokenError if the server could not go on.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(settings)
    first = asyncio.create_task(signals.get())
    starting = asyncio.create_task(server.start())
    await _first_of(starting, first)
    if starting.done():
        await starting
        on_ready(server)
        await _first_of(first, broken := asyncio.create_task(server.broken.wait()))
        broken.cancel()
    else:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
    if first.done():
        logger.info("draining", extra={"fields": {"signal": first.result().name, "at_most_s": settings.drain_s}})
    drain = asyncio.create_task(server.stop(settings.drain_s))
    await _first_of(drain, second := asyncio.create_task(signals.get()))
    if not drain.done():
        logger.warning("forced to stop", extra={"fields": {"signal": second.result().name}})
        server.force()
    second.cancel()
    first.cancel()
    await drain
    if server.broken.is_set():
        raise BrokenError("the server is broken; its log says why")


async def in_thread(work: Callable[[], _Result], *, finish_s: float = 0.0) -> _Result:
    """What some work gives, done by a thread that holds up the end of the process no longer than who waits for it.

    Cancelled, it waits so many seconds more for the work to end: ONNX Runtime aborts a process that ends while it opens
    a model.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def deliver(give: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():
            give(outcome)

    def run() -> None:
        try:
            give, outcome = done.set_result, work()
        except BaseException as error:
            give, outcome = done.set_exception, error  # type: ignore[assignment]
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(deliver, give, outcome)

    threading.Thread(target=run, daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done], timeout=finish_s)
        done.cancel()
        raise


async def _first_of(*tasks: asyncio.Task[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
