"""What faces the callers: gRPC, from binding the address to the last reply. The model may be here or elsewhere."""

from __future__ import annotations

import asyncio
import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from distilqa.errors import BindError, Unavailable
from distilqa.server import health
from distilqa.server.access import Access
from distilqa.server.address import bracketed
from distilqa.server.admission import Counts, Permits
from distilqa.server.health import Health
from distilqa.server.interceptor import CallersOnly, NoMetadata
from distilqa.server.log_messages import describe
from distilqa.server.service import Limits, QuestionAnswering, Served, handlers
from distilqa.server.settings import ServerSettings
from distilqa.server.statuses import Calls
from distilqa.server.tasks import first_of, in_thread
from distilqa.server.timeouts import CLOSE_S, SEND_S
from distilqa_protos.v1 import SERVICE

logger = logging.getLogger(__name__)

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


class FrontEnd(ABC):
    """Serves what `_open` gives. `start` it on an event loop, and `stop` it there.

    ``threads`` is how many parse, tokenise and decode. ``counts`` is what several front ends hold that share the
    address and the limits. ``calls`` counts how calls end; ``broken`` is set if it cannot go on.
    """

    def __init__(
        self, settings: ServerSettings, access: Access, *, threads: int = 1, counts: Counts | None = None
    ) -> None:
        self._settings, self._access, self._counts = settings, access, counts
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="text")
        self._health = Health()
        self._service: QuestionAnswering | None = None
        self._tasks: set[asyncio.Task[None]] = set()
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
        callers = self._access.callers
        self._server = grpc.aio.server(
            interceptors=() if callers is None else (CallersOnly(callers, self._model, self.calls),),
            options=(
                *_OPTIONS, ("grpc.max_receive_message_length", largest), ("grpc.so_reuseport", int(shared)),
            ),
        )  # fmt: skip
        self._server.add_generic_rpc_handlers((handlers(self.calls, self._ready),))
        self._health.add_to(self._server)
        reflection.enable_server_reflection((SERVICE, health.NAME, reflection.SERVICE_NAME), self._server)
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

    @abstractmethod
    async def _open(self) -> Served:
        """What is to be served; until it is there, calls wait for nothing and end as UNAVAILABLE."""

    def _serve(self, served: Served) -> None:
        settings = self._settings
        self._runner = served.runner
        self._permits = Permits(
            max_requests=settings.max_requests,
            max_bytes=settings.max_bytes,
            wait_s=served.runner.wait_s,
            counts=self._counts,
        )
        self._service = QuestionAnswering(
            served,
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
        self.description = describe(served.manifest, served.variant, served.device)

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
            if (certificate := self._access.certificate) is None:
                port = self._server.add_insecure_port(wanted)
            else:
                port = self._server.add_secure_port(wanted, grpc.ssl_server_credentials([certificate]))
        except RuntimeError as error:
            kind = "" if certificate is None else ", or the certificate of a kind that gRPC does not take"
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
                in_thread(partial(self._runner.close, "the server stopped before this was done"))
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
        await self._health.tell(self._can_answer)
