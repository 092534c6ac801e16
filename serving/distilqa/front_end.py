"""What faces the callers: gRPC, from binding the address to the last reply. The model may be here or elsewhere."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distilqa.admission import Counts, Permits
from distilqa.bundle import Manifest
from distilqa.credentials import Callers
from distilqa.errors import BindError, Unavailable
from distilqa.model import CLOSE_S
from distilqa.service import CallersOnly, Limits, NoMetadata, QuestionAnswering, Runs, handlers
from distilqa.settings import ServerSettings
from distilqa.statuses import Calls
from distilqa.tasks import first_of, in_thread
from distilqa.tls import Certificate
from distilqa.windows import Windower
from distilqa_protos.v1 import SERVICE

logger = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_OPTIONS = (
    # gRPC unpacks a message before it looks at its size: a megabyte of it could take all memory. A bit an algorithm,
    # of which the first is none.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Clients may look every ten seconds whether the server is still there; by default that gets them cut off.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # And callers whose machine or network is gone are found out, so that their work is dropped.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

# What gRPC itself lets in, so that the limit on requests is ours to explain.
_LARGEST_MESSAGE_FACTOR = 4

_NO_METADATA = NoMetadata()

_Key = TypeVar("_Key")

# How long the last replies may take to be sent.
SEND_S = 1.0

# How often the log tells how calls have ended.
TELL_S = 10.0


@dataclass(frozen=True, slots=True)
class Model:
    """What is served, and what runs its windows."""

    manifest: Manifest
    variant: str
    device: str
    windower: Windower
    runs: Runs


def describe(manifest: Manifest, variant: str, device: str) -> str:
    """What is served, for people."""
    return f"{manifest.name} version {manifest.version} ({variant}, {device})"


def tell_ready(address: str, manifest: Manifest, variant: str, seconds: float, processes: int = 1) -> None:
    """Log what is served, and by how many front ends."""
    fields = {"address": address, "model": manifest.name, "version": manifest.version, "variant": variant}
    logger.info("ready", extra={"fields": fields | {"processes": processes, "seconds": round(seconds, 3)}})


def tell_not_answered(ended: Counter[str]) -> None:
    """Log how many calls ended otherwise than with an answer, for who logs no single calls."""
    if more := {outcome: count for outcome, count in ended.items() if outcome != "OK"}:
        logger.warning("not answered", extra={"fields": {"ended": more}})


def tell_stopped(ended: Counter[str], run_sizes: Counter[int]) -> None:
    """Log what has been done."""
    fields = {"ended": dict(ended), "runs_by_windows": dict(sorted(run_sizes.items()))}
    logger.info("stopped", extra={"fields": fields})


async def report_growth(counter: Counter[_Key], tell: Callable[[Counter[_Key]], None], every_s: float) -> None:
    """Tell from time to time, and at last when this is cancelled, by how much a counter has grown."""
    told: Counter[_Key] = Counter()

    def tell_more() -> None:
        nonlocal told
        now = Counter(dict(counter))  # which other threads may change
        if growth := now - told:
            tell(growth)
        told = now

    try:
        while True:
            await asyncio.sleep(every_s)
            tell_more()
    finally:
        tell_more()


class FrontEnd(ABC):
    """Serves a model, which `_open` gives. `start` it on an event loop, and `stop` it there.

    ``certificate`` and ``callers`` are None where all is plain and anybody may call. ``counts`` and ``own`` are those
    of `distilqa.admission.Permits`, where several front ends share the address and the limits. ``calls`` counts how
    calls end, and ``tell`` is told of it from time to time. ``broken`` is set if it cannot go on.
    """

    def __init__(
        self, settings: ServerSettings, callers: Callers | None, certificate: Certificate | None, *,
        threads: int = 1, counts: Counts | None = None, own: int = 0,
        tell: Callable[[Counter[str]], None] = tell_not_answered, tell_s: float = TELL_S,
    ) -> None:  # fmt: skip
        self._settings, self._callers, self._certificate = settings, callers, certificate
        self._counts, self._own = counts, own
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="text")
        self._health = health.aio.HealthServicer()
        self._service: QuestionAnswering | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tell, self._tell_s = tell, tell_s
        self.calls = Calls()
        self._is_stopping = False
        self._forced = asyncio.Event()
        self.broken = asyncio.Event()
        self.address = self.description = ""

    async def start(self) -> None:
        """Bind, open the model, and serve; until then, calls end as UNAVAILABLE.

        ``address`` is where, and ``description`` what is served. Raises BindError, and what `_open` does.
        """
        logging.getLogger("grpc._cython.cygrpc").addFilter(_NO_METADATA)
        largest = min(_LARGEST_MESSAGE_FACTOR * self._settings.max_request_bytes, 2**31 - 1)
        shared = self._counts is not None  # or a second server on the port must fail, not share its calls
        self._server = grpc.aio.server(
            interceptors=() if self._callers is None else (CallersOnly(self._callers, self._model, self.calls),),
            options=(
                *_OPTIONS, ("grpc.max_receive_message_length", largest), ("grpc.so_reuseport", int(shared)),
            ),
        )  # fmt: skip
        self._server.add_generic_rpc_handlers((handlers(self.calls, self._ready),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.address = self._bind()
        await self._tell_health()
        await self._server.start()
        try:
            self._serve(await self._open())
        except BaseException:
            await self._server.stop(None)
            raise
        gc.collect()
        gc.freeze()  # what is there now stays, and need not be looked through again and again
        await self._tell_health()
        self._keep(report_growth(self.calls.outcomes, self._tell, self._tell_s))

    @abstractmethod
    async def _open(self) -> Model:
        """The model that is to be served; until it is there, calls wait for nothing and end as UNAVAILABLE."""

    def _serve(self, model: Model) -> None:
        settings = self._settings
        self._runs = model.runs
        self._permits = Permits(
            max_requests=settings.max_requests,
            max_bytes=settings.max_bytes,
            wait_s=model.runs.wait_s,
            counts=self._counts,
            own=self._own,
        )
        self._service = QuestionAnswering(
            model.manifest,
            model.variant,
            model.windower,
            model.runs,
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
        self.description = describe(model.manifest, model.variant, model.device)

    def _ready(self) -> QuestionAnswering:
        if self._service is None:
            raise Unavailable("the server is starting")
        return self._service

    def _model(self) -> str:
        return self._ready().model

    def _bind(self) -> str:
        """Bind, and return the address. Raises BindError."""
        host = bracketed(self._settings.host)
        wanted = f"{host}:{self._settings.port}"
        try:
            if self._certificate is None:
                port = self._server.add_insecure_port(wanted)
            else:
                port = self._server.add_secure_port(wanted, grpc.ssl_server_credentials([self._certificate]))
        except RuntimeError as error:
            kind = "" if self._certificate is None else ", or the certificate of a kind that gRPC does not take"
            raise BindError(
                f"cannot bind {wanted}; is another server there, or the host not this machine's{kind}?"
            ) from error
        return f"{host}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish within ``grace_s`` seconds, and close.

        The refusing is done here and not left to gRPC, whose server ends calls that arrive as it stops with CANCELLED.
        """
        self._is_stopping = True
        await self._tell_health()
        if self._service is not None:
            drained = asyncio.create_task(self._permits.drain())
            await first_of(drained, forced := asyncio.create_task(self._forced.wait()), timeout_s=grace_s)
            if not drained.done():
                logger.warning(
                    "not all calls were waited for", extra={"fields": {"requests": self._permits.own_requests}}
                )
            forced.cancel()
            closing = asyncio.create_task(
                in_thread(partial(self._runs.close, "the server stopped before this was done"))
            )
            await first_of(closing, timeout_s=CLOSE_S)
            if not closing.done():
                logger.error("a run has not ended, and is left behind")
            await first_of(drained, timeout_s=SEND_S)
            await self._server.stop(SEND_S)
            await first_of(drained, timeout_s=SEND_S)  # calls that this has cut off
            drained.cancel()
        else:
            await self._server.stop(SEND_S)
        self._pool.shutdown(wait=False)
        for task in list(self._tasks):
            task.cancel()
            await asyncio.wait((task,))

    def force(self) -> None:
        """Let a `stop` wait no longer: calls in flight end as UNAVAILABLE."""
        self._forced.set()

    async def _break(self) -> None:
        self.broken.set()
        await self._tell_health()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _can_answer(self) -> bool:
        return self._service is not None and not self._is_stopping and not self.broken.is_set()

    async def _tell_health(self) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, _SERVING if self._can_answer else _NOT_SERVING)


def warn_of_address(settings: ServerSettings, callers: Callers | None, address: str) -> None:
    """Log what is open that should perhaps not be."""
    if _is_loopback(settings.host.strip("[]")):
        return
    if callers is None:
        logger.warning("without --credentials, whoever reaches %s may call", address)
    elif settings.tls_certificate is None:
        logger.warning("without --tls-certificate, tokens travel to %s as plain text", address)


def warn_of_model(settings: ServerSettings, callers: Callers | None, model: str) -> None:
    """Log it where nobody may use the model."""
    if callers is not None and not callers.may_use(model):
        logger.warning("no caller in %s may use the model %r, which is served", settings.credentials, model)


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    bare = host.strip("[]")
    return f"[{bare}]" if ":" in bare else bare


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
