"""What the clients send, and what the replies mean: answers, a model, or the errors that statuses stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from distilqa.errors import (
    DeadlineExceeded,
    DistilqaError,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from distilqa.rpc import RETRY_AFTER_MS
from distilqa.text.answer import Answer
from distilqa.text.request import check_flag, check_options, check_text, list_passages
from distilqa_protos.v1 import question_answering_pb2 as pb

# How gRPC refuses a message over its limit.
_TOO_LARGE = "message larger than max"

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_ERRORS: dict[grpc.StatusCode, type[DistilqaError]] = {
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # what gRPC's server ends calls with that arrive as it closes
    grpc.StatusCode.INTERNAL: InferenceFailed,
}


@dataclass(frozen=True, slots=True)
class Request:
    """What `answer` takes, as a value. ``id`` is the caller's own name for it, of any length; it is not sent."""

    id: str
    question: str
    passages: str | Sequence[str]
    top_k: int = 1
    max_answer_tokens: int = 15
    doc_stride: int | None = None
    allow_no_answer: bool = False
    align_to_words: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request of a stream: ``answers``, or else the ``error`` that `answer` would have raised."""

    request: Request
    answers: list[Answer]
    error: DistilqaError | None = None

    @property
    def id(self) -> str:
        return self.request.id


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


def to_message(request: Request, model: str = "", version: str = "") -> pb.AnswerRequest:
    """Raises InvalidRequest for what cannot be sent."""
    texts = list_passages(request.passages)
    check_text("question", request.question)
    for number, text in enumerate(texts):
        check_text(f"passages[{number}]", text)
    check_options(request.top_k, request.max_answer_tokens, request.doc_stride)
    check_flag("allow_no_answer", request.allow_no_answer)
    check_flag("align_to_words", request.align_to_words)
    message = pb.AnswerRequest(
        model=model,
        version=version,
        question=request.question,
        passages=[pb.Passage(text=text) for text in texts],
        top_k=request.top_k,
        max_answer_tokens=request.max_answer_tokens,
        doc_stride=request.doc_stride,
        allow_no_answer=request.allow_no_answer,
    )
    if not request.align_to_words:
        message.align_to_words = False
    return message


_Response = TypeVar("_Response", pb.AnswerResponse, pb.AnswerStreamResponse, pb.GetModelResponse)


def read_message(response: _Response | None) -> _Response:
    """gRPC has none for a reply that is no message, or ends without one. Raises InferenceFailed."""
    if response is None:
        raise InferenceFailed("the reply is not a message of distilqa.v1")
    return response


def read_answers(response: pb.AnswerResponse | None, request: pb.AnswerRequest) -> list[Answer]:
    """Raises InferenceFailed for a reply that does not answer the request: who asks would rely on what it says."""
    response = read_message(response)
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


def read_model(response: pb.GetModelResponse | None) -> Model:
    response = read_message(response)
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


def read_error(error: grpc.RpcError) -> DistilqaError:
    """What the end of a call means."""
    metadata: Any = error.trailing_metadata() or ()
    advice = [str(value) for key, value in metadata if key == RETRY_AFTER_MS]
    # What is no number, or negative, says not to try again, or nothing.
    seconds = int(advice[0]) / 1000 if advice and re.fullmatch(r"[0-9]{1,9}", advice[0]) else None
    return _to_error(error.code(), error.details() or "", seconds)


def read_status(status: status_pb2.Status) -> DistilqaError:
    """What the end of a stream's request means."""
    if status.code not in _CODES:
        return unknown_status(status.code)
    return _to_error(_CODES[status.code], status.message, _retry_delay_s(status))


def unknown_status(code: object) -> DistilqaError:
    return DistilqaError(f"the server ended the call with the unknown status {code}")


def _retry_delay_s(status: status_pb2.Status) -> float | None:
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        try:
            if detail.Unpack(retry):
                return float(max(retry.retry_delay.ToMilliseconds(), 0)) / 1000
        except DecodeError:
            return None
    return None


def _to_error(code: grpc.StatusCode, details: str, retry_after_s: float | None) -> DistilqaError:
    """The error that a status stands for: the mapping of `distilqa.errors`, read backwards."""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, colon, problem = details.partition(": ")
        return InvalidRequest(field, problem) if colon else InvalidRequest("request", details or "is refused")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if _TOO_LARGE in details:  # gRPC's own refusal: trying again would not help
            return InvalidRequest("request", details)
        return Overloaded(details, retry_after_s)
    return _ERRORS[code](details) if code in _ERRORS else DistilqaError(f"{code.name}: {details}")
