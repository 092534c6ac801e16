"""Clients of the server, synchronous and for asyncio, over one core."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from distilqa.answer import Answer
from distilqa.errors import (
    DeadlineExceeded,
    DistilqaError,
    InferenceFailed,
    InvalidRequest,
    MissingDependency,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from distilqa.request import check_options, check_text

try:
    import grpc

    from distilqa_protos.v1 import question_answering_pb2 as pb
    from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub
except ImportError as error:
    raise MissingDependency(
        f"the client's packages are not installed: pip install 'distilqa[client]' ({error})"
    ) from error

DEFAULT_TIMEOUT_S = 30.0
_LONGEST_TIMEOUT_S = 86400.0

# UNAVAILABLE alone is tried again: the server did no work for it. Being refused under load is an answer.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "distilqa.v1.QuestionAnswering"}],
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
    window_tokens: int
    max_windows: int
    max_passages: int
    max_top_k: int
    max_request_bytes: int


class _Deadlines:
    """What both clients know of a call before it is made: its deadline, and that the client is open."""

    _timeout_s: float
    _closed: bool

    def _deadline(self, timeout_s: float | None) -> float:
        if self._closed:
            raise Unavailable("the client is closed")
        return self._timeout_s if timeout_s is None else _timeout(timeout_s)


class Client(_Deadlines):
    """A connection to a server, for threads. Use it as a context manager, or `close` it.

    ``target`` is "host:port". Every call has a deadline of ``timeout_s`` seconds, retries included. Calls that the
    server did not accept because it was not there (UNAVAILABLE) are tried up to four times.
    """

    def __init__(self, target: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._timeout_s = _timeout(timeout_s)
        self._closed = False
        self._channel = grpc.insecure_channel(target, options=_options())
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
            return _answers(self._stub.Answer(request, timeout=self._deadline(timeout_s)))
        except grpc.RpcError as error:
            raise _error(error) from error

    def model(self, *, timeout_s: float | None = None) -> Model:
        """What is served. Raises as `answer` does."""
        try:
            return _model(self._stub.GetModel(pb.GetModelRequest(), timeout=self._deadline(timeout_s)))
        except grpc.RpcError as error:
            raise _error(error) from error

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Deadlines):
    """`Client` for asyncio: the same methods, awaited."""

    def __init__(self, target: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._timeout_s = _timeout(timeout_s)
        self._closed = False
        self._channel = grpc.aio.insecure_channel(target, options=_options())
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
        try:
            return _answers(await self._stub.Answer(request, timeout=self._deadline(timeout_s)))
        except grpc.RpcError as error:
            raise _error(error) from error

    async def model(self, *, timeout_s: float | None = None) -> Model:
        """As `Client.model`."""
        try:
            return _model(await self._stub.GetModel(pb.GetModelRequest(), timeout=self._deadline(timeout_s)))
        except grpc.RpcError as error:
            raise _error(error) from error

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _options() -> list[tuple[str, str | int]]:
    return [("grpc.service_config", json.dumps(_RETRIES)), ("grpc.enable_retries", 1)]


def _request(
    question: str,
    passages: str | Sequence[str],
    top_k: int,
    max_answer_tokens: int,
    doc_stride: int | None,
    allow_no_answer: bool,
) -> pb.AnswerRequest:
    texts = [passages] if isinstance(passages, str) else list(passages)
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
        allow_no_answer=allow_no_answer,
    )


def _timeout(timeout_s: float) -> float:
    """Raise InvalidRequest for a time that is no deadline: not positive, or longer than a day."""
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise InvalidRequest("timeout_s", f"is {timeout_s}, must be more than 0 and at most {_LONGEST_TIMEOUT_S:g}")
    return timeout_s


def _answers(response: pb.AnswerResponse) -> list[Answer]:
    return [
        Answer(answer.text, answer.start, answer.end, answer.score, None if answer.no_answer else answer.passage)
        for answer in response.answers
    ]


def _model(response: pb.GetModelResponse) -> Model:
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
        window_tokens=limits.window_tokens,
        max_windows=limits.windows,
        max_passages=limits.passages,
        max_top_k=limits.top_k,
        max_request_bytes=limits.request_bytes,
    )


def _error(error: grpc.RpcError) -> DistilqaError:
    """The error that a status stands for: the mapping of `distilqa.errors`, read backwards."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, problem = details.partition(": ")
        return InvalidRequest(field, problem)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        metadata: Any = error.trailing_metadata() or ()
        pushback = [value for key, value in metadata if key == "grpc-retry-pushback-ms"]
        if not pushback:  # gRPC's own refusal, of a message over its limit: trying again would not help
            return InvalidRequest("request", details)
        return Overloaded(details, int(pushback[0]) / 1000)
    simple: dict[grpc.StatusCode, type[DistilqaError]] = {
        grpc.StatusCode.NOT_FOUND: ModelNotFound,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.CANCELLED: Unavailable,  # what gRPC's server ends calls with that arrive as it closes
        grpc.StatusCode.INTERNAL: InferenceFailed,
    }
    return simple[code](details) if code in simple else DistilqaError(f"{code.name}: {details}")
