"""Clients of the server, synchronous and for asyncio, over one core."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from distilqa.answer import Answer
from distilqa.credentials import LONGEST_TOKEN
from distilqa.errors import (
    DeadlineExceeded,
    DistilqaError,
    InferenceFailed,
    InvalidRequest,
    MissingDependency,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from distilqa.request import check_options, check_text, list_passages

try:
    import grpc

    from distilqa_protos.v1 import SERVICE
    from distilqa_protos.v1 import question_answering_pb2 as pb
    from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub
except ImportError as error:
    raise MissingDependency(
        f"the client's packages are not installed: pip install 'distilqa[client]' ({error})"
    ) from error

DEFAULT_TIMEOUT_S = 30.0
_LONGEST_TIMEOUT_S = 86400.0

# gRPC's own ways to name a server, which it reads itself.
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")
_HOST_AND_PORT = re.compile(r"(\[[^\[\]/\s]+\]|[^\[\]:/\s]+):([0-9]{1,5})")

# How gRPC begins when it found nobody. It names the last address only, and on another the cause may have been TLS.
_NOT_CONNECTED = "failed to connect to all addresses"
_PLAIN_HINT = "; this client does not use TLS: does the server?"
_TLS_HINT = "; this client uses TLS: does the server, with a certificate that is trusted here?"

# How gRPC refuses a message over its limit.
_TOO_LARGE = "message larger than max"

# UNAVAILABLE alone is tried again: the server did no work for it. Being refused under load is an answer.
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


@dataclass(frozen=True, slots=True)
class Model:
    """What a server serves, and the limits it declares for a request."""

    name: str
    version: str
    variant: str
    checkpoint: str
    revision: str | None
    architecture: str
    parameters: int
    max_question_tokens: int
    max_question_characters: int
    window_tokens: int
    max_windows: int
    max_passages: int
    max_passage_id_characters: int
    max_top_k: int
    max_request_bytes: int
    max_response_bytes: int
    max_stream_requests: int
    max_stream_id_characters: int


class _Calls:
    """What both clients know of a call: its deadline, its token, that the client is open, and what a failure means."""

    def __init__(self, token: str | None, tls: bool, timeout_s: float) -> None:
        self._hint = _TLS_HINT if tls else _PLAIN_HINT
        self._timeout_s = _timeout(timeout_s)
        self._metadata = () if token is None else (("authorization", f"Bearer {_token(token)}"),)
        self._closed = False

    def _options(self, timeout_s: float | None) -> dict[str, Any]:
        if self._closed:
            raise Unavailable("the client is closed")
        return {"timeout": self._timeout_s if timeout_s is None else _timeout(timeout_s), "metadata": self._metadata}

    def _error(self, error: grpc.RpcError) -> DistilqaError:
        found = _error(error)
        if isinstance(found, Unavailable) and str(found).startswith(_NOT_CONNECTED):
            return Unavailable(f"{found}{self._hint}")
        return found


class Client(_Calls):
    """A connection to a server, for threads. Use it as a context manager, or `close` it.

    ``target`` is "host:port", or a name of one of gRPC's schemes, "unix:path" say. Every call has a deadline of
    ``timeout_s`` seconds, retries included. Calls that the server did not accept because it was not there (UNAVAILABLE)
    are tried up to four times, within a second or two.

    ``token`` goes with every call, for a server that wants credentials. ``tls`` encrypts, and takes the server's
    certificate if an authority that gRPC knows has signed it, or one in the PEM file ``root_certificates``, which
    implies ``tls``. Raises InvalidRequest for an argument that cannot be used.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: bool = False,
        root_certificates: str | Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        super().__init__(token, tls or root_certificates is not None, timeout_s)
        self._channel = _connect(target, tls, root_certificates, grpc.secure_channel, grpc.insecure_channel)
        self._stub = QuestionAnsweringStub(self._channel)

    def answer(
        self,
        question: str,
        passages: str | Sequence[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        doc_stride: int | None = None,
        allow_no_answer: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """Return the ``top_k`` best answers, as `distilqa.Reader.answer` does.

        Raises the errors of `distilqa.errors`: InvalidRequest, Overloaded, DeadlineExceeded, Unavailable and so on.
        """
        request = _request(question, passages, top_k, max_answer_tokens, doc_stride, allow_no_answer)
        try:
            return _answers(self._stub.Answer(request, **self._options(timeout_s)), request)
        except grpc.RpcError as error:
            raise self._error(error) from error

    def model(self, *, timeout_s: float | None = None) -> Model:
        """What is served. Raises as `answer` does."""
        try:
            return _model(self._stub.GetModel(pb.GetModelRequest(), **self._options(timeout_s)))
        except grpc.RpcError as error:
            raise self._error(error) from error

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Calls):
    """`Client` for asyncio: the same methods, awaited."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: bool = False,
        root_certificates: str | Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        super().__init__(token, tls or root_certificates is not None, timeout_s)
        self._channel = _connect(target, tls, root_certificates, grpc.aio.secure_channel, grpc.aio.insecure_channel)
        self._stub = QuestionAnsweringStub(self._channel)

    async def answer(
        self,
        question: str,
        passages: str | Sequence[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        doc_stride: int | None = None,
        allow_no_answer: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """As `Client.answer`."""
        request = _request(question, passages, top_k, max_answer_tokens, doc_stride, allow_no_answer)
        return _answers(await self._reply(self._stub.Answer(request, **self._options(timeout_s))), request)

    async def model(self, *, timeout_s: float | None = None) -> Model:
        """As `Client.model`."""
        return _model(await self._reply(self._stub.GetModel(pb.GetModelRequest(), **self._options(timeout_s))))

    async def _reply(self, call: Awaitable[_Response | None]) -> _Response | None:
        """What a call brings. Raises what its failure means."""
        try:
            return await call
        except grpc.RpcError as error:
            raise self._error(error) from error
        except KeyError as error:  # what grpc.aio makes of a status that it does not know
            raise DistilqaError(f"the server ended the call with the unknown status {error}") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):  # `close` ended the call, nobody the task
                raise Unavailable("the client was closed during the call") from None
            raise

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


_Response = TypeVar("_Response", pb.AnswerResponse, pb.GetModelResponse)

_Channel = TypeVar("_Channel", grpc.Channel, grpc.aio.Channel)


def _connect(
    target: str,
    tls: bool,
    root_certificates: str | Path | None,
    secure: Callable[..., _Channel],
    insecure: Callable[..., _Channel],
) -> _Channel:
    """A channel by one of gRPC's two functions for it. Raises InvalidRequest for what cannot be used."""
    _check_target(target)
    options = [
        ("grpc.service_config", json.dumps(_RETRIES)),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", -1),  # an answer may be as long as the passage that the server took
    ]
    if not tls and root_certificates is None:
        return insecure(target, options=options)
    roots = None if root_certificates is None else _roots(root_certificates)
    return secure(target, grpc.ssl_channel_credentials(roots), options=options)


def _check_target(target: str) -> None:
    """Raise InvalidRequest for a URL, and for a host without a port, which gRPC would take for port 443."""
    check_text("target", target)
    if target.startswith(_SCHEMES):
        return
    found = _HOST_AND_PORT.fullmatch(target)
    if not found or int(found[2]) > 65535:
        raise InvalidRequest("target", f'is {target!r}, must be "host:port", "localhost:50051" say')


def _roots(path: str | Path) -> bytes:
    """The file's content. Raises InvalidRequest where gRPC would only fail at the first call, without saying why."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        return Path(path).read_bytes()
    except OSError as error:
        problem = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidRequest("root_certificates", f"{path}: {problem}") from error
    except (TypeError, ValueError) as error:  # it is no path, or has a NUL
        raise InvalidRequest("root_certificates", f"{path!r}: {error}") from error


def _token(token: str) -> str:
    """Raise InvalidRequest, which does not repeat it, for a token that no header can carry."""
    if not isinstance(token, str) or not re.fullmatch(f"[!-~]{{1,{LONGEST_TOKEN}}}", token):
        raise InvalidRequest("token", f"must be 1 to {LONGEST_TOKEN} printable ASCII characters without spaces")
    return token


def _request(
    question: str,
    passages: str | Sequence[str],
    top_k: int,
    max_answer_tokens: int,
    doc_stride: int | None,
    allow_no_answer: bool,
) -> pb.AnswerRequest:
    texts = list_passages(passages)
    check_text("question", question)
    for number, text in enumerate(texts):
        check_text(f"passages[{number}]", text)
    check_options(top_k, max_answer_tokens, doc_stride)
    return pb.AnswerRequest(
        question=question,
        passages=[pb.Passage(text=text) for text in texts],
        top_k=top_k,
        max_answer_tokens=max_answer_tokens,
        doc_stride=doc_stride,
        allow_no_answer=bool(allow_no_answer),  # as the reader takes it
    )


def _timeout(timeout_s: float) -> float:
    """Raise InvalidRequest for a time that is no deadline: not positive, or longer than a day."""
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise InvalidRequest("timeout_s", f"is {timeout_s}, must be more than 0 and at most {_LONGEST_TIMEOUT_S:g}")
    return timeout_s


def _answers(response: pb.AnswerResponse | None, request: pb.AnswerRequest) -> list[Answer]:
    """Raises InferenceFailed for a reply that does not answer the request: who asks would rely on what it says."""
    response = _message(response)
    if not 1 <= len(response.answers) <= request.top_k:
        raise InferenceFailed(f"the reply has {len(response.answers)} answers, 1 to {request.top_k} were asked for")
    for answer in response.answers:
        if not _fits(answer, request):
            raise InferenceFailed(
                f"the reply has an answer that is not in what was sent: passage {answer.passage},"
                f" {answer.start} to {answer.end}, score {answer.score:g}"
            )
    return [
        Answer(answer.text, answer.start, answer.end, answer.score, None if answer.no_answer else answer.passage)
        for answer in response.answers
    ]


def _fits(answer: pb.Answer, request: pb.AnswerRequest) -> bool:
    """Whether an answer is one to the request: at its place in a passage, or none where that was allowed."""
    if not 0 <= answer.score <= 1:  # nor NaN
        return False
    if answer.no_answer:
        return request.allow_no_answer and not answer.text
    if answer.passage >= len(request.passages):
        return False
    return bool(answer.text) and request.passages[answer.passage].text[answer.start : answer.end] == answer.text


def _message(response: _Response | None) -> _Response:
    """gRPC has none for a reply that is no message, or ends without one. Raises InferenceFailed."""
    if response is None:
        raise InferenceFailed("the reply is not a message of distilqa.v1")
    return response


def _model(response: pb.GetModelResponse | None) -> Model:
    response = _message(response)
    limits = response.limits
    return Model(
        name=response.model,
        version=response.version,
        variant=response.variant,
        checkpoint=response.checkpoint,
        revision=response.revision or None,
        architecture=response.architecture,
        parameters=response.parameters,
        max_question_tokens=limits.question_tokens,
        max_question_characters=limits.question_characters,
        window_tokens=limits.window_tokens,
        max_windows=limits.windows,
        max_passages=limits.passages,
        max_passage_id_characters=limits.passage_id_characters,
        max_top_k=limits.top_k,
        max_request_bytes=limits.request_bytes,
        max_response_bytes=limits.response_bytes,
        max_stream_requests=limits.stream_requests,
        max_stream_id_characters=limits.stream_id_characters,
    )


def _retry_after_s(error: grpc.RpcError) -> float | None:
    """The server's advice, if it gives any: what is no number, or negative, says not to try again, or nothing."""
    metadata: Any = error.trailing_metadata() or ()
    advice = [str(value) for key, value in metadata if key == "grpc-retry-pushback-ms"]
    return int(advice[0]) / 1000 if advice and re.fullmatch(r"[0-9]{1,9}", advice[0]) else None


def _error(error: grpc.RpcError) -> DistilqaError:
    """The error that a status stands for: the mapping of `distilqa.errors`, read backwards."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, colon, problem = details.partition(": ")
        return InvalidRequest(field, problem) if colon else InvalidRequest("request", details or "is refused")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if _TOO_LARGE in details:  # gRPC's own refusal: trying again would not help
            return InvalidRequest("request", details)
        return Overloaded(details, _retry_after_s(error))
    simple: dict[grpc.StatusCode, type[DistilqaError]] = {
        grpc.StatusCode.NOT_FOUND: ModelNotFound,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.CANCELLED: Unavailable,  # what gRPC's server ends calls with that arrive as it closes
        grpc.StatusCode.INTERNAL: InferenceFailed,
    }
    return simple[code](details) if code in simple else DistilqaError(f"{code.name}: {details}")
