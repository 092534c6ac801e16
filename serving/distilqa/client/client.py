"""Clients of the server, synchronous and for asyncio, over one core."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from distilqa.errors import InvalidRequest, MissingDependency, Unavailable
from distilqa.text.answer import Answer
from distilqa.text.request import check_integer, check_text
from distilqa.wording import installing

try:
    import grpc
    import grpc.aio

    from distilqa.client.call import OutgoingCall
    from distilqa.client.channel import channel_to
    from distilqa.client.messages import Model, Outcome, Request, read_answers, read_model, to_message
    from distilqa.client.streams import AsyncStream, Exchange, Stream
    from distilqa.rpc import AUTHORIZATION, LONGEST_TOKEN, REQUEST_ID, REQUEST_ID_FORM
    from distilqa_protos.v1 import SERVICE
    from distilqa_protos.v1 import question_answering_pb2 as pb
    from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub
except ImportError as error:
    raise MissingDependency(f"the client's packages are not installed: {installing('client')} ({error})") from error

__all__ = ["DEFAULT_TIMEOUT_S", "AsyncClient", "Client", "Model", "Outcome", "Request"]

DEFAULT_TIMEOUT_S = 30.0
_LONGEST_TIMEOUT_S = 86400.0

_MAX_CONNECTIONS = 64

# UNAVAILABLE alone is tried again: the server did no work for it. Being refused under load is an answer. A stream is
# tried again only as long as nothing of the reply has come, and not once 256 KiB have been sent.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.enable_retries", 1),
    ("grpc.use_local_subchannel_pool", 1),  # channels to one target would share a connection
    # A server, or a way to it, that is gone without a word is found out while calls wait for it. By default it is not
    # asked a third time, until data is sent again. (keepalive_timeout_ms does nothing.)
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]

_Channel = TypeVar("_Channel", grpc.Channel, grpc.aio.Channel)


class _Base(Generic[_Channel]):
    """What the clients have in common: all but input and output. `Client` says what the arguments are."""

    _api: ClassVar[ModuleType]

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: bool = False,
        root_certificates: str | Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connections: int = 1,
        model_name: str | None = None,
        model_version: str | None = None,
    ) -> None:
        check_integer("connections", connections, 1, _MAX_CONNECTIONS)
        self._timeout_s = _timeout(timeout_s)
        self._metadata = () if token is None else ((AUTHORIZATION, f"Bearer {_token(token)}"),)
        self._names = {"model": _name("model_name", model_name), "version": _name("model_version", model_version)}
        self._tls = tls or root_certificates is not None
        self._closed = False
        self._open = channel_to(target, _OPTIONS, tls=tls, root_certificates=root_certificates)
        self._connections = connections
        self._channels: list[_Channel] = []
        self._prepare()

    def _prepare(self) -> None:
        """What is done before the first call."""
        self._open_all()

    def _open_all(self) -> None:
        self._channels = [self._open(self._api) for _ in range(self._connections)]
        self._stubs = cycle([QuestionAnsweringStub(channel) for channel in self._channels])

    def _stub(self) -> QuestionAnsweringStub:
        """On the next connection."""
        return next(self._stubs)

    def _begin(self, timeout_s: float | None, request_id: str | None = None, awaited: str = "answer") -> OutgoingCall:
        """A call on the next connection. Raises InvalidRequest, and Unavailable once closed."""
        seconds = self._timeout_s if timeout_s is None else _timeout(timeout_s)
        source = "timeout_s of the client" if timeout_s is None else "timeout_s"
        metadata = self._metadata if request_id is None else (*self._metadata, (REQUEST_ID, _request_id(request_id)))
        if self._closed:
            raise Unavailable("the client is closed")
        return OutgoingCall(
            stub=self._stub(),
            metadata=metadata,
            timeout_s=seconds,
            late=f"no {awaited} within {seconds:g} s ({source})",
            tls=self._tls,
            is_closed=lambda: self._closed,
        )

    def _begin_stream(
        self, in_flight: int, timeout_s: float | None, request_id: str | None
    ) -> tuple[OutgoingCall, Exchange]:
        check_integer("in_flight", in_flight, 1)
        call = self._begin(timeout_s, request_id, "end of the stream")
        return call, Exchange(call, self._names)


class Client(_Base[grpc.Channel]):
    """A client for threads. Use it as a context manager, or `close` it.

    ``target`` is "host:port", or a name of one of gRPC's schemes, "unix:path" say. Calls take turns on ``connections``
    connections, 1 to 64. Every call has a deadline of ``timeout_s`` seconds, retries included. Calls that the server
    did not accept because it was not there (UNAVAILABLE) are tried up to four times, within a second or two.

    ``token`` goes with every call, for a server that wants credentials. ``tls`` encrypts, and takes the server's
    certificate if an authority that gRPC knows has signed it, or one in the PEM file ``root_certificates``, which
    implies ``tls``. ``model_name`` and ``model_version`` say what must answer: where something else is served, calls
    raise ModelNotFound. Raises InvalidRequest for an argument that cannot be used.
    """

    _api: ClassVar[ModuleType] = grpc

    def answer(
        self,
        question: str,
        passages: str | Sequence[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        doc_stride: int | None = None,
        allow_no_answer: bool = False,
        align_to_words: bool = True,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[Answer]:
        """Return the ``top_k`` best answers, as `distilqa.Reader.answer` does.

        ``request_id``, 1 to 128 printable ASCII characters without spaces, is what the server's log calls the request.
        Raises the errors of `distilqa.errors`: InvalidRequest, Overloaded, DeadlineExceeded, Unavailable and so on.
        """
        options = top_k, max_answer_tokens, doc_stride, allow_no_answer, align_to_words
        request = Request("", question, passages, *options)
        asked = to_message(request, **self._names)
        call = self._begin(timeout_s, request_id)
        with call.errors():
            response = call.stub.Answer(asked, **call.options)
        return read_answers(response, asked)

    def answer_stream(
        self,
        requests: Iterable[Request],
        *,
        in_flight: int = 16,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generator[Outcome, None, None]:
        """Yield the outcome of each request as soon as it is there, in any order.

        ``requests`` is read in another thread, and at most ``in_flight`` ahead of the outcomes: it may be endless.
        ``timeout_s`` is for the whole stream. What is wrong with one request is the ``error`` of its outcome alone.

        If the stream breaks, every request that was read and not answered has an outcome with the error of the stream,
        also one that ``requests`` is only about to give, which is waited for until the deadline. Unless that was the
        end of ``requests``, the error is raised then. What ``requests`` raises is raised here, after the outcomes of
        what came before. Who leaves early ends the stream, and what was in flight is dropped.
        """
        call, exchange = self._begin_stream(in_flight, timeout_s, request_id)
        if not isinstance(requests, Iterable):
            raise _not_iterable(requests)
        return Stream(call, exchange, in_flight).outcomes(iter(requests))

    def model(self, *, timeout_s: float | None = None) -> Model:
        """What is served. Raises as `answer` does."""
        call = self._begin(timeout_s)
        with call.errors():
            response = call.stub.GetModel(pb.GetModelRequest(**self._names), **call.options)
        return read_model(response)

    def close(self) -> None:
        """End what is under way, as Unavailable."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Base[grpc.aio.Channel]):
    """`Client` for asyncio: the same arguments, and the same methods, awaited.

    It belongs to the event loop of its first call; on another, calls raise InvalidRequest.
    """

    _api: ClassVar[ModuleType] = grpc.aio

    def _prepare(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: set[Any] = set()  # those under way

    def _stub(self) -> QuestionAnsweringStub:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InvalidRequest("client", "is of asyncio, and no event loop is running here") from None
        if self._loop is None:
            self._loop = loop
            self._open_all()  # which belong to the loop too
        if self._loop is not loop:
            raise InvalidRequest("client", "belongs to the event loop of its first call, and this is another")
        return super()._stub()

    async def answer(
        self,
        question: str,
        passages: str | Sequence[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        doc_stride: int | None = None,
        allow_no_answer: bool = False,
        align_to_words: bool = True,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[Answer]:
        """As `Client.answer`."""
        options = top_k, max_answer_tokens, doc_stride, allow_no_answer, align_to_words
        request = Request("", question, passages, *options)
        asked = to_message(request, **self._names)
        call = self._begin(timeout_s, request_id)
        with call.errors():
            response = await call.stub.Answer(asked, **call.options)
        return read_answers(response, asked)

    def answer_stream(
        self,
        requests: AsyncIterable[Request] | Iterable[Request],
        *,
        in_flight: int = 16,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """As `Client.answer_stream`, but ``requests`` is read in a task of this event loop.

        That task is cancelled if the stream breaks, so nothing is waited for. Who leaves the loop early closes the
        stream by `contextlib.aclosing`, or leaves that to the event loop.
        """
        call, exchange = self._begin_stream(in_flight, timeout_s, request_id)
        return AsyncStream(call, exchange, in_flight, self._streams).outcomes(_each(requests))

    async def model(self, *, timeout_s: float | None = None) -> Model:
        """As `Client.model`."""
        call = self._begin(timeout_s)
        with call.errors():
            response = await call.stub.GetModel(pb.GetModelRequest(**self._names), **call.options)
        return read_model(response)

    async def close(self) -> None:
        """As `Client.close`."""
        self._closed = True
        for stream in tuple(self._streams):  # which closing a channel of asyncio does not end
            stream.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _each(requests: AsyncIterable[Request] | Iterable[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterable):
        return aiter(requests)
    if not isinstance(requests, Iterable):
        raise _not_iterable(requests)

    async def plain(requests: Iterator[Request]) -> AsyncIterator[Request]:
        for request in requests:
            yield request

    return plain(iter(requests))


def _not_iterable(requests: object) -> InvalidRequest:
    return InvalidRequest("requests", f"is a {type(requests).__name__}, must be an iterable of distilqa.Request")


def _token(token: str) -> str:
    """Raise InvalidRequest, which does not repeat it, for a token that no header can carry."""
    if not isinstance(token, str) or not re.fullmatch(f"[!-~]{{1,{LONGEST_TOKEN}}}", token):
        raise InvalidRequest("token", f"must be 1 to {LONGEST_TOKEN} printable ASCII characters without spaces")
    return token


def _request_id(request_id: str) -> str:
    """Raise InvalidRequest for what the server would not take for an id."""
    if not isinstance(request_id, str) or not REQUEST_ID_FORM.fullmatch(request_id):
        raise InvalidRequest("request_id", f"is {request_id!r}, must be 1 to 128 printable ASCII characters, no spaces")
    return request_id


def _name(field: str, name: str | None) -> str:
    """As requests say it. Raises InvalidRequest."""
    if name is None:
        return ""
    check_text(field, name)
    return name


def _timeout(timeout_s: float) -> float:
    """Raise InvalidRequest for a time that is no deadline: not positive, or longer than a day."""
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not number or not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise InvalidRequest("timeout_s", f"is {timeout_s!r}, must be more than 0 and at most {_LONGEST_TIMEOUT_S:g}")
    return timeout_s
