"""What faces the callers: gRPC, from binding the address to the last reply. The model may be here or elsewhere."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

import grpc

from distilqa.errors import BindError, Unavailable
from distilqa.server import timeouts
from distilqa.server.access import Access
from distilqa.server.address import bracketed
from distilqa.server.admission import Counts, Permits
from distilqa.server.connections import Connections
from distilqa.server.health import Health
from distilqa.server.interceptor import CallersOnly
from distilqa.server.log_messages import OfCallers, describe
from distilqa.server.reflection import Reflection
from distilqa.server.service import Limits, QuestionAnswering, Served, handlers
from distilqa.server.settings import LONGEST_S, ServerSettings
from distilqa.server.statuses import Calls, Messages
from distilqa.server.tasks import first_of
from distilqa.server.timeouts import CLOSE_S, REFUSE_S, SEND_S, TAKE_S
from distilqa.server.workers import Workers

logger = logging.getLogger(__name__)

# How many calls may wait for their message, beside those in flight; and how much of it gRPC itself lets in, so that the
# limit on requests is ours to explain.
_WAITING_FACTOR = 4
_LARGEST_MESSAGE_FACTOR = 2

# What messages may have that are no requests, and those of streams beside theirs.
_OTHER_BYTES = 8192

_OF_CALLERS = OfCallers()


class FrontEnd(ABC):
    """Serves what `_open` gives. `start` it on an event loop, and `stop` it there.

    ``threads`` is how many parse, tokenise and decode. ``counts`` is what several front ends hold that share the
    address and the limits. ``calls`` counts how calls end; ``broken`` is set if it cannot go on.
    """

    def __init__(
        self, settings: ServerSettings, access: Access, *, threads: int = 1, counts: Counts | None = None
    ) -> None:
        self._settings, self._access, self._counts = settings, access, counts
        self._workers = Workers(threads)
        self._health, self._reflection = Health(settings.message_s), Reflection()
        self._service: QuestionAnswering | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._messages = Messages(within_s=settings.message_s, most=_WAITING_FACTOR * settings.max_requests)
        self.calls = Calls(self._messages)
        self._is_stopping = False
        self._forced = asyncio.Event()
        self.broken = asyncio.Event()
        self.address = self.description = ""

    async def start(self) -> None:
        """Bind, open the model, and serve; until then, calls end as UNAVAILABLE.

        ``address`` is where, and ``description`` what is served. Raises BindError, and what `_open` does.
        """
        logging.getLogger("grpc._cython.cygrpc").addFilter(_OF_CALLERS)
        callers, connections = self._access.callers, Connections(self._settings)
        self._server = grpc.aio.server(
            interceptors=() if callers is None else (CallersOnly(callers, self._model, self.calls),),
            options=_options(self._settings, connections.limit, shared=self._counts is not None),
        )
        self._server.add_generic_rpc_handlers(
            (handlers(self.calls, self._ready), self._health.handlers(), self._reflection.handlers())
        )
        self.address = self._bind()
        self._tell_health()
        await self._server.start()
        try:
            self._serve(await self._open())
        except BaseException:
            await self._server.stop(None)
            raise
        gc.collect()
        gc.freeze()  # what is there now stays, and need not be looked through again and again
        self._tell_health()
        self._keep(connections.watch())

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
                settings.max_queued_windows,
                # Or a stream that is alone here would have its own requests refused.
                min(settings.stream_requests, settings.max_requests),
                settings.stream_idle_s,
            ),
            workers=self._workers,
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
        except (RuntimeError, UnicodeError) as error:
            kind = "" if certificate is None else ", or the certificate of a kind that gRPC does not take"
            raise BindError(
                f"cannot bind {wanted}; is another server there, or the host not this machine's{kind}?"
            ) from error
        return f"{host}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish within ``grace_s`` seconds, and close.

        gRPC tells clients to call elsewhere, and ends calls that arrive in this very moment with CANCELLED, after which
        nobody tries again. So what is new is refused for a while before: then those who call often wait for their next
        try.
        """
        self._is_stopping = True
        self._tell_health()
        self._messages.give_up("the server is stopping")
        if self._service is not None:
            until = time.monotonic() + grace_s
            drained = asyncio.create_task(self._permits.drain())
            await asyncio.sleep(REFUSE_S)
            leaving = asyncio.create_task(self._server.stop(math.inf))
            await first_of(drained, forced := asyncio.create_task(self._forced.wait()), timeout_s=grace_s)
            if not drained.done():
                held = {"requests": self._permits.own_requests, "streams": self._permits.own_streams}
                logger.warning("not all calls were waited for", extra={"fields": held})
            reason = "the server stopped before this was done"
            self._workers.close(reason)
            try:
                await asyncio.wait_for(self._runner.close(reason), CLOSE_S)
            except TimeoutError:
                logger.error("a run has not ended, and is left behind")
            await first_of(drained, timeout_s=SEND_S)
            self._health.close()  # or who watches would be waited for
            await first_of(leaving, forced, timeout_s=SEND_S)
            if not self._health.watchers and not self._reflection.calls:  # it is replies that are not taken yet
                await first_of(leaving, forced, timeout_s=max(0, min(TAKE_S, until - time.monotonic())))
            forced.cancel()
            await self._server.stop(SEND_S)
            await first_of(drained, timeout_s=SEND_S)  # calls that this has cut off
            drained.cancel()
            await leaving
        else:
            self._health.close()
            await self._server.stop(SEND_S)
            self._workers.close("the server is stopping")
        for task in list(self._tasks):
            task.cancel()
            await asyncio.wait((task,))

    def force(self) -> None:
        """Let a `stop` wait no longer: calls in flight end as UNAVAILABLE."""
        self._forced.set()

    def _break(self) -> None:
        self.broken.set()
        self._tell_health()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _can_answer(self) -> bool:
        return self._service is not None and not self._is_stopping and not self.broken.is_set()

    def _tell_health(self) -> None:
        self._health.tell(self._can_answer)


def _options(settings: ServerSettings, connections: int, *, shared: bool) -> list[tuple[str, int]]:
    """gRPC's. It ignores those that it does not know, so the tests look at what each of them does."""
    options = {
        # It unpacks a message before it looks at its size: a megabyte of it could take all memory. A bit an algorithm,
        # of which the first is none.
        "grpc.compression_enabled_algorithms_bitset": 1,
        "grpc.max_receive_message_length": min(
            max(_LARGEST_MESSAGE_FACTOR * settings.max_request_bytes, settings.max_request_bytes + _OTHER_BYTES),
            2**31 - 1,
        ),
        # Or a second server on the port would share its calls rather than fail.
        "grpc.so_reuseport": int(shared),
        # Clients that ask more often than this are cut off; by default, and where no call is under way, every client
        # that asks at all.
        "grpc.http2.min_ping_interval_without_data_ms": round(1000 * timeouts.LEAST_PING_S),
        "grpc.keepalive_permit_without_calls": 1,
        # Callers whose machine or network is gone are found out, so that their work is dropped, however long they wait.
        # By default nobody is asked a third time, until data is sent again. (keepalive_timeout_ms does nothing.)
        "grpc.keepalive_time_ms": 1000 * timeouts.KEEPALIVE_S,
        "grpc.http2.ping_timeout_ms": 1000 * timeouts.KEEPALIVE_ANSWER_S,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.server_handshake_timeout_ms": 1000 * timeouts.HANDSHAKE_S,
        "grpc.max_allowed_incoming_connections": connections,
        "grpc.max_concurrent_streams": settings.max_connection_calls,
        "grpc.max_connection_idle_ms": round(1000 * settings.connection_idle_s),
    }
    if settings.connection_age_s is not None:
        options["grpc.max_connection_age_ms"] = round(1000 * settings.connection_age_s)
        options["grpc.max_connection_age_grace_ms"] = round(1000 * min(settings.drain_s, LONGEST_S))
    return list(options.items())
