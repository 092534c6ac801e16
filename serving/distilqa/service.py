"""The native gRPC service, `distilqa.v1.QuestionAnswering`, and the one place where errors become statuses.

Requests arrive here as bytes. So a permit is taken before anything is done with them, parsing stays off the event loop,
and text that is not UTF-8 gets INVALID_ARGUMENT with the field's name rather than gRPC's INTERNAL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2, duration_pb2, empty_pb2, unknown_fields
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from distilqa import spans
from distilqa.answer import Answer
from distilqa.bundle import Manifest
from distilqa.credentials import Callers
from distilqa.errors import DistilqaError, InvalidRequest, ModelNotFound, Overloaded
from distilqa.request import MAX_TOP_K, check_options
from distilqa.scheduler import Permits, Ran, Scheduler
from distilqa.windows import MAX_QUESTION_CHARACTERS, Tokenized, Windower
from distilqa_protos.v1 import SERVICE
from distilqa_protos.v1 import question_answering_pb2 as pb

logger = logging.getLogger(__name__)

# Open to all: the probes that ask for health cannot send credentials.
_HEALTH = "/grpc.health.v1.Health/"

_DEFAULT_TOP_K = 1
_DEFAULT_MAX_ANSWER_TOKENS = 15

_MAX_ID_CHARACTERS = 256

# Of an error, which may quote the caller, as trailers carry it; more of them gRPC's clients refuse at random.
_MAX_MESSAGE_BYTES = 2000
_AS_IT_IS = "".join(map(chr, range(ord(" "), ord("~") + 1))).replace("%", "")

Context = grpc.aio.ServicerContext[bytes, bytes]
Method = Callable[[bytes, Context], Awaitable[bytes]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    windows: int
    passages: int
    request_bytes: int


class QuestionAnswering:
    """Answers requests for one model. ``pool`` runs parsing, tokenising and decoding."""

    def __init__(
        self,
        manifest: Manifest,
        variant: str,
        windower: Windower,
        scheduler: Scheduler,
        *,
        permits: Permits,
        limits: Limits,
        pool: Executor,
    ) -> None:
        self._manifest, self._variant = manifest, variant
        self._windower, self._scheduler = windower, scheduler
        self._permits, self._limits, self._pool = permits, limits, pool

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Answer": grpc.unary_unary_rpc_method_handler(_with_statuses(self.answer)),
                "GetModel": grpc.unary_unary_rpc_method_handler(_with_statuses(self.get_model)),
            },
        )

    async def answer(self, raw: bytes, context: Context) -> bytes:
        """``Answer``: permit, tokenise, run, decode."""
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        loop = asyncio.get_running_loop()
        with self._permits.hold(len(raw)):
            request, tokenized, tokenize_s = await loop.run_in_executor(self._pool, self._prepare, raw)
            ran = await self._scheduler.run(tokenized.windows, deadline=deadline)
            return await loop.run_in_executor(self._pool, self._reply, request, tokenized, ran, tokenize_s)

    async def get_model(self, raw: bytes, context: Context) -> bytes:
        """``GetModel``."""
        self._check_size(raw)
        request = _parse(pb.GetModelRequest, raw)
        self._check_model(request.model, request.version)
        manifest, source = self._manifest, self._manifest.source
        return pb.GetModelResponse(
            model=manifest.name,
            version=manifest.version,
            variant=self._variant,
            checkpoint=source.checkpoint,
            revision=source.revision or "",
            architecture=manifest.architecture.type,
            parameters=manifest.architecture.parameters,
            limits=pb.Limits(
                question_tokens=self._windower.max_question_tokens,
                question_characters=MAX_QUESTION_CHARACTERS,
                passage_id_characters=_MAX_ID_CHARACTERS,
                window_tokens=manifest.window_tokens,
                windows=self._limits.windows,
                passages=self._limits.passages,
                top_k=MAX_TOP_K,
                request_bytes=self._limits.request_bytes,
            ),
        ).SerializeToString()

    def _prepare(self, raw: bytes) -> tuple[pb.AnswerRequest, Tokenized, float]:
        began = time.monotonic()
        self._check_size(raw)
        request = _parse(pb.AnswerRequest, raw)
        self._check_model(request.model, request.version)
        if len(request.passages) > self._limits.passages:
            raise InvalidRequest("passages", f"are {len(request.passages)}, the limit is {self._limits.passages}")
        for number, passage in enumerate(request.passages):
            if len(passage.id) > _MAX_ID_CHARACTERS:  # it comes back with each answer
                problem = f"has {len(passage.id)} characters, the limit is {_MAX_ID_CHARACTERS}"
                raise InvalidRequest(f"passages[{number}].id", problem)
        check_options(_top_k(request), _max_answer_tokens(request))
        tokenized = self._windower.tokenize(
            request.question,
            [passage.text for passage in request.passages],
            doc_stride=request.doc_stride if request.HasField("doc_stride") else None,
            max_windows=self._limits.windows,
        )
        return request, tokenized, time.monotonic() - began

    def _reply(self, request: pb.AnswerRequest, tokenized: Tokenized, ran: list[Ran], tokenize_s: float) -> bytes:
        began = time.monotonic()
        answers = spans.decode(
            tokenized,
            [window.logits for window in ran],
            top_k=_top_k(request),
            max_answer_tokens=_max_answer_tokens(request),
            allow_no_answer=request.allow_no_answer,
        )
        size = sum(len(answer.text.encode()) for answer in answers)
        if size > self._limits.request_bytes:
            problem = f"the answers have {size} bytes together, the limit is {self._limits.request_bytes}"
            raise InvalidRequest("top_k", problem)
        response = pb.AnswerResponse(
            answers=[_message(answer, request) for answer in answers],
            model=self._manifest.name,
            version=self._manifest.version,
            variant=self._variant,
        )
        response.timings.tokenize_seconds = tokenize_s
        response.timings.queue_seconds = max(window.queue_s for window in ran)
        response.timings.inference_seconds = max(window.inference_s for window in ran)
        response.timings.windows = len(ran)
        response.timings.run_windows = max(window.run_windows for window in ran)
        response.timings.decode_seconds = time.monotonic() - began
        return response.SerializeToString()

    def _check_size(self, raw: bytes) -> None:
        if len(raw) > self._limits.request_bytes:
            raise InvalidRequest("request", f"has {len(raw)} bytes, the limit is {self._limits.request_bytes}")

    def _check_model(self, model: str, version: str) -> None:
        served = self._manifest
        if model not in ("", served.name) or version not in ("", served.version):
            wanted = f"{model or served.name!r} version {version or 'any'}"
            raise ModelNotFound(f"{wanted} is not served here; {served.name!r} version {served.version} is")


def _top_k(request: pb.AnswerRequest) -> int:
    return request.top_k if request.HasField("top_k") else _DEFAULT_TOP_K


def _max_answer_tokens(request: pb.AnswerRequest) -> int:
    return request.max_answer_tokens if request.HasField("max_answer_tokens") else _DEFAULT_MAX_ANSWER_TOKENS


def _message(answer: Answer, request: pb.AnswerRequest) -> pb.Answer:
    if answer.passage is None:
        return pb.Answer(score=answer.score, no_answer=True)
    passage = request.passages[answer.passage]
    start_byte = len(passage.text[: answer.start].encode())
    return pb.Answer(
        text=answer.text,
        score=answer.score,
        passage=answer.passage,
        passage_id=passage.id,
        start=answer.start,
        end=answer.end,
        start_byte=start_byte,
        end_byte=start_byte + len(answer.text.encode()),
    )


_Request = TypeVar("_Request", bound=Message)


def _parse(message: type[_Request], raw: bytes) -> _Request:
    """Parse a request. Raises InvalidRequest, for text that is not UTF-8 with the field's name."""
    try:
        return message.FromString(raw)
    except DecodeError:
        field = _not_utf8(message.DESCRIPTOR, raw)
        if field is None:
            raise InvalidRequest("request", f"is not a {message.DESCRIPTOR.full_name}") from None
        raise InvalidRequest(field, "is not valid UTF-8") from None


def _not_utf8(descriptor: Any, raw: bytes) -> str | None:
    """The first string field of a serialised message that is not UTF-8, as a path; None if all are."""
    try:
        unknown = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(raw))
    except DecodeError:
        return None
    seen: Counter[int] = Counter()
    for field in (unknown[index] for index in range(len(unknown))):
        known = descriptor.fields_by_number.get(field.field_number)
        if known is None or not isinstance(field.data, bytes):
            continue
        name = f"{known.name}[{seen[known.number]}]" if known.is_repeated else known.name
        seen[known.number] += 1
        if known.message_type is not None:
            if inner := _not_utf8(known.message_type, field.data):
                return f"{name}.{inner}"
        elif known.type == FieldDescriptor.TYPE_STRING:
            try:
                field.data.decode()
            except UnicodeDecodeError:
                return name
    return None


class CallersOnly(grpc.aio.ServerInterceptor):
    """Lets in known callers who may use ``model``, and everybody to the health service."""

    def __init__(self, callers: Callers, model: str) -> None:
        self._callers, self._model = callers, model

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of the call, or one that refuses it."""
        if not handler_call_details.method.startswith(_HEALTH):
            try:
                self._callers.check(_authorization(handler_call_details), self._model)
            except Exception as error:  # gRPC would send the words of any that left here
                return _refusal(error)
        return await continuation(handler_call_details)


class NoMetadata(logging.Filter):
    """Drops what gRPC logs of metadata that it cannot decode: it quotes them, and they may hold a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Invalid encoding")


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    """What the call carries. Several are joined, as HTTP joins them: together they are nobody's."""
    sent = [str(value) for key, value in details.invocation_metadata if key == "authorization"]
    return ", ".join(sent) if sent else None


def _refusal(error: Exception) -> Handler:
    """A handler that answers with an error. One for streams fits every method, and does not wait for a request."""

    async def refuse(_requests: object, _context: Context) -> bytes:
        raise error

    return grpc.stream_stream_rpc_method_handler(_with_statuses(refuse))


def _with_statuses(method: Method) -> Method:
    """Let a method's errors leave as gRPC statuses: ours as they say, anything else as INTERNAL and one log entry."""

    async def call(raw: bytes, context: Context) -> bytes:
        try:
            return await method(raw, context)
        except DistilqaError as error:
            message = _cut(str(error))
            await _abort(context, grpc.StatusCode[error.status], message, trailing_metadata(error))
        except Exception:
            logger.exception("unexpected error in %s", method.__name__)
            await _abort(context, grpc.StatusCode.INTERNAL, "internal error")
        return b""  # to nobody: the call is over

    return call


def _cut(message: str) -> str:
    """As much of a message as may be sent: what is not ASCII takes three bytes a byte."""
    message = message[:_MAX_MESSAGE_BYTES]
    lengths = accumulate(len(quote(one, safe=_AS_IT_IS, errors="replace")) for one in message)
    return message[: sum(length <= _MAX_MESSAGE_BYTES for length in lengths)]


async def _abort(
    context: Context, code: grpc.StatusCode, message: str, trailing: tuple[tuple[str, str | bytes], ...] = ()
) -> None:
    """End a call with a status, which raises; but not if the call was over before, its deadline passed say."""
    with suppress(grpc.aio.InternalError):  # a status that cannot be sent any more, of which gRPC would write a log
        await context.abort(code, message, trailing)


def trailing_metadata(error: DistilqaError) -> tuple[tuple[str, str | bytes], ...]:
    """When to try again, for who was refused: as google.rpc.RetryInfo, and as gRPC's own push-back."""
    if not isinstance(error, Overloaded) or error.retry_after_s is None:
        return ()
    milliseconds = round(error.retry_after_s * 1000)
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(milliseconds)
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=str(error), details=[detail])
    return (
        ("grpc-status-details-bin", status.SerializeToString()),
        ("grpc-retry-pushback-ms", str(milliseconds)),
    )
