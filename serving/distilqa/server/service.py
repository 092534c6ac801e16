"""The native gRPC service, `distilqa.v1.QuestionAnswering`.

Sizes come first, and a permit is taken before anything is done with the bytes of a request. What may take long is done
by threads, off the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from distilqa.bundle import Manifest
from distilqa.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, Unavailable
from distilqa.scheduling.queue import Runner, WindowResult
from distilqa.scheduling.refusal import refusal
from distilqa.server.admission import Permits
from distilqa.server.statuses import Calls, IncomingCall, to_status
from distilqa.server.wire import answer_messages, largest_response, parse, parse_small, stream_id
from distilqa.server.workers import SMALL_BYTES, Workers
from distilqa.text import spans
from distilqa.text.request import MAX_TOP_K, check_options
from distilqa.text.windows import (
    DEFAULT_DOC_STRIDE,
    MAX_ANSWER_CHARACTERS,
    MAX_QUESTION_CHARACTERS,
    Tokenized,
    Windower,
)
from distilqa_protos.v1 import SERVICE
from distilqa_protos.v1 import question_answering_pb2 as pb

_DEFAULT_TOP_K = 1
_DEFAULT_MAX_ANSWER_TOKENS = 15

_MAX_ID_CHARACTERS = 256

# So many spans are looked at at once, as small texts are parsed at once.
_FEW_SPANS = 25_000

# How many spans are looked at while a byte of text is tokenised.
_SPANS_A_BYTE = 100

# How much text a token stands for, at least as a rule.
_BYTES_A_TOKEN = 4

# The least that a passage takes of a request.
_PASSAGE_BYTES = 2

# What an `AnswerStreamRequest` has beside its request and its id.
_FRAMING_BYTES = 32

# gRPC gives a message that it finds too large as the end of the stream, and tells so long after that it was none.
_CUT_OFF_S = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, or one stream of them, may ask for."""

    windows: int
    passages: int
    request_bytes: int
    queued_windows: int
    stream_requests: int
    stream_idle_s: float


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and what runs its windows. ``device`` is what they run on, for people."""

    manifest: Manifest
    variant: str
    device: str
    windower: Windower
    runner: Runner


def handlers(calls: Calls, service: Callable[[], QuestionAnswering]) -> grpc.GenericRpcHandler:
    """The methods, for `grpc.aio.Server.add_generic_rpc_handlers`. ``service`` may raise what calls then end with."""

    def on_service(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        return lambda *arguments: method(service(), *arguments)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Answer": calls.unary("Answer", on_service(QuestionAnswering.answer)),
            "AnswerStream": calls.stream("AnswerStream", on_service(QuestionAnswering.answer_stream)),
            "GetModel": calls.unary("GetModel", on_service(QuestionAnswering.get_model)),
        },
    )


class QuestionAnswering:
    """Answers requests for one model. ``workers`` do what of parsing, tokenising and decoding may take long."""

    def __init__(self, served: Served, *, calls: Calls, permits: Permits, limits: Limits, workers: Workers) -> None:
        self._manifest, self._variant = served.manifest, served.variant
        self._windower, self._runner = served.windower, served.runner
        self._calls, self._permits, self._limits, self._workers = calls, permits, limits, workers

    @property
    def model(self) -> str:
        return self._manifest.name

    async def answer(self, raw: bytes, call: IncomingCall) -> bytes:
        """``Answer``."""
        self._check_size(len(raw))
        with self._permits.hold(len(raw)):
            response = await self._answer(len(raw), lambda: parse(pb.AnswerRequest, raw), call)
        return response.SerializeToString()

    async def answer_stream(self, call: IncomingCall) -> None:
        """``AnswerStream``: works on a bounded number of requests, and reads the next when one has been replied to."""
        room = asyncio.Semaphore(self._limits.stream_requests)
        sink = _Sink(call, self._limits.stream_idle_s)
        work = _Work()
        draining = asyncio.create_task(self._permits.draining.wait())
        try:
            with self._permits.hold_stream():
                async with asyncio.TaskGroup() as replies:
                    while raw := await _read(call, room, draining, work, self._limits.stream_idle_s):
                        work.begin(replies.create_task(self._reply(raw[0], call, room, sink)))
                        del raw  # the next may take its time
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            draining.cancel()
        if raw is None:
            raise Unavailable("the server is stopping, and has read no further than it has replied")
        await asyncio.sleep(_CUT_OFF_S)  # where that was no end, this is cancelled

    async def get_model(self, raw: bytes, _call: IncomingCall) -> bytes:
        """``GetModel``."""
        self._permits.check_open()
        request = parse_small(pb.GetModelRequest, raw)
        self._check_model(request.model, request.version)
        manifest, source, limits = self._manifest, self._manifest.source, self._limits
        names = len(f"{manifest.name}{manifest.version}{self._variant}".encode())
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
                windows=limits.windows,
                passages=limits.passages,
                top_k=MAX_TOP_K,
                request_bytes=limits.request_bytes,
                response_bytes=largest_response(
                    min(limits.request_bytes, MAX_TOP_K * 4 * MAX_ANSWER_CHARACTERS),
                    MAX_TOP_K,
                    4 * _MAX_ID_CHARACTERS,
                    names,
                    min(limits.passages, limits.request_bytes // _PASSAGE_BYTES),
                ),
                stream_requests=limits.stream_requests,
                stream_id_characters=_MAX_ID_CHARACTERS,
            ),
        ).SerializeToString()

    async def _answer(self, size: int, read: Callable[[], pb.AnswerRequest], call: IncomingCall) -> pb.AnswerResponse:
        """Read, tokenise, run, decode."""
        prepare = partial(self._prepare, read, size)
        alone = self._permits.requests == 1 and size <= SMALL_BYTES
        request, tokenized, tokenize_s = prepare() if alone else await self._workers.run(prepare, size)
        windows = [window.input_ids for window in tokenized.windows]
        ran = await self._runner.run(windows, deadline=call.deadline)
        respond = partial(self._respond, request, tokenized, ran, tokenize_s)
        spans = sum(map(len, windows)) * min(_max_answer_tokens(request), self._manifest.window_tokens)
        few = spans <= _FEW_SPANS and size <= SMALL_BYTES
        response = respond() if few else await self._workers.run(respond, spans // _SPANS_A_BYTE)
        timings = response.timings
        call.log["windows"] = timings.windows
        if response.blank_passages:
            call.log["blank_passages"] = len(response.blank_passages)
        for step in ("tokenize_seconds", "queue_seconds", "inference_seconds", "decode_seconds"):
            call.log[step] = round(getattr(timings, step), 6)
        return response

    async def _reply(self, raw: bytes, stream: IncomingCall, room: asyncio.Semaphore, sink: _Sink) -> None:
        """Reply to one request of a stream, and make room for another."""
        content = await self._content(raw, stream.item())
        del raw  # the caller may take its time
        await sink.write(content)
        room.release()

    async def _content(self, raw: bytes, call: IncomingCall) -> bytes:
        """The reply to a request of a stream, as it is sent."""
        ended = partial(self._calls.end, "AnswerStream request", call)
        id = call.log["id"] = stream_id(raw, _MAX_ID_CHARACTERS)
        try:
            self._check_size(len(raw), beside=_FRAMING_BYTES + 4 * _MAX_ID_CHARACTERS)
            with self._permits.hold(min(len(raw), self._limits.request_bytes)):
                read = partial(self._item, raw)
                # At once, where the way to another thread and back would take longer.
                item = read() if len(raw) <= SMALL_BYTES else await self._workers.run(read, len(raw))
                id = call.log["id"] = item.id
                response = await self._answer(len(raw), lambda: item.request, call)
            reply = pb.AnswerStreamResponse(id=id, response=response)
            ended(None)
        except Exception as error:
            reply = pb.AnswerStreamResponse(id=id, status=to_status(error))
            ended(error)
        except asyncio.CancelledError as error:
            ended(error)
            raise
        return reply.SerializeToString()

    def _item(self, raw: bytes) -> pb.AnswerStreamRequest:
        item = parse(pb.AnswerStreamRequest, raw)
        self._check_size(item.request.ByteSize())
        _check_id("id", item.id)
        return item

    def _expect(self, size: int) -> None:
        """Refuse what would only be refused after being tokenised, as far as its size tells. Raises Overloaded."""
        queued, limit = self._runner.queued_windows, self._limits.queued_windows
        about = size // (_BYTES_A_TOKEN * (self._manifest.window_tokens - DEFAULT_DOC_STRIDE))
        if queued and queued + about > limit:
            problem = f"{queued} windows are waiting, and this request has about {about}"
            raise refusal("max_queued_windows", problem, self._runner.wait_s())

    def _prepare(self, read: Callable[[], pb.AnswerRequest], size: int) -> tuple[pb.AnswerRequest, Tokenized, float]:
        began = time.monotonic()
        self._expect(size)
        request = read()
        self._check_model(request.model, request.version)
        if len(request.passages) > self._limits.passages:
            raise InvalidRequest("passages", f"are {len(request.passages)}, the limit is {self._limits.passages}")
        for number, passage in enumerate(request.passages):
            _check_id(f"passages[{number}].id", passage.id)
        check_options(_top_k(request), _max_answer_tokens(request))
        tokenized = self._windower.tokenize(
            request.question,
            [passage.text for passage in request.passages],
            doc_stride=request.doc_stride if request.HasField("doc_stride") else None,
            max_windows=self._limits.windows,
        )
        return request, tokenized, time.monotonic() - began

    def _respond(
        self, request: pb.AnswerRequest, tokenized: Tokenized, ran: list[WindowResult], tokenize_s: float
    ) -> pb.AnswerResponse:
        began = time.monotonic()
        answers = spans.decode(
            tokenized,
            [window.logits for window in ran],
            top_k=_top_k(request),
            max_answer_tokens=_max_answer_tokens(request),
            allow_no_answer=request.allow_no_answer,
            align_to_words=not request.HasField("align_to_words") or request.align_to_words,
        )
        size = sum(len(answer.text.encode()) for answer in answers)
        if size > self._limits.request_bytes:
            problem = f"the answers have {size} bytes together, the limit is {self._limits.request_bytes}"
            raise InvalidRequest("top_k", problem)
        response = pb.AnswerResponse(
            answers=answer_messages(answers, tokenized, [passage.id for passage in request.passages]),
            model=self._manifest.name,
            version=self._manifest.version,
            variant=self._variant,
            blank_passages=tokenized.blank_passages,
        )
        response.timings.tokenize_seconds = tokenize_s
        response.timings.queue_seconds = max(window.queue_s for window in ran)
        response.timings.inference_seconds = max(window.inference_s for window in ran)
        response.timings.windows = len(ran)
        response.timings.run_windows = max(window.run_windows for window in ran)
        response.timings.decode_seconds = time.monotonic() - began
        return response

    def _check_size(self, size: int, *, beside: int = 0) -> None:
        """``beside`` is what of the size may be no part of the request."""
        if size - beside > self._limits.request_bytes:
            raise InvalidRequest("request", f"has {size} bytes, the limit is {self._limits.request_bytes}")

    def _check_model(self, model: str, version: str) -> None:
        served = self._manifest
        if model not in ("", served.name) or version not in ("", served.version):
            wanted = f"{model or served.name!r:.200} version {version or 'any':.200}"
            raise ModelNotFound(f"{wanted} is not served here; {served.name!r} version {served.version} is")


class _Work:
    """The requests of a stream that are worked on, and since when there have been none."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_since = time.monotonic()

    def begin(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def left_s(self, idle_s: float) -> float:
        """How long it may go on, if a stream may be idle for so long."""
        return idle_s if self._tasks else self._idle_since + idle_s - time.monotonic()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._idle_since = time.monotonic()


class _Sink:
    """Where the replies of a stream go, one at a time, each of which the caller must take within ``idle_s``."""

    def __init__(self, call: IncomingCall, idle_s: float) -> None:
        self._context, self._idle_s = call.context, idle_s
        self._writing = asyncio.Lock()
        self._has_begun = False

    async def write(self, reply: bytes) -> None:
        """Raises DeadlineExceeded where it is not taken."""
        async with self._writing:
            try:
                if not self._has_begun:  # by itself, or gRPC could send no status where the first reply is not taken
                    self._has_begun = True
                    await self._context.send_initial_metadata(())
                async with asyncio.timeout(self._idle_s):
                    await self._context.write(reply)
            except TimeoutError:
                raise DeadlineExceeded(f"a reply was not taken within {self._idle_s:g} s", "stream_idle_s") from None
            except (grpc.aio.InternalError, grpc.aio.UsageError):
                pass  # the caller has left, which ends the stream


async def _read(
    call: IncomingCall, room: asyncio.Semaphore, draining: asyncio.Task[Any], work: _Work, idle_s: float
) -> tuple[bytes, ...] | None:
    """The next request of a stream, once there is room for it, or () if there are no more; None if the server stops.

    Raises DeadlineExceeded where none comes and none is worked on.
    """
    for step in (room.acquire, call.context.read):
        task: asyncio.Task[Any] = asyncio.ensure_future(step())
        try:
            while not await _any((task, draining), work.left_s(idle_s)):
                if work.left_s(idle_s) <= 0:
                    raise DeadlineExceeded(f"no request came within {idle_s:g} s", "stream_idle_s")
        finally:
            task.cancel()
        if not task.done():
            return None
    return () if task.result() is grpc.aio.EOF else (task.result(),)


async def _any(tasks: Collection[asyncio.Task[Any]], timeout_s: float) -> bool:
    """Whether one is done within so many seconds."""
    done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


def _check_id(field: str, id: str) -> None:
    """Ids come back with each answer."""
    if len(id) > _MAX_ID_CHARACTERS:
        raise InvalidRequest(field, f"has {len(id)} characters, the limit is {_MAX_ID_CHARACTERS}")


def _top_k(request: pb.AnswerRequest) -> int:
    return request.top_k if request.HasField("top_k") else _DEFAULT_TOP_K


def _max_answer_tokens(request: pb.AnswerRequest) -> int:
    return request.max_answer_tokens if request.HasField("max_answer_tokens") else _DEFAULT_MAX_ANSWER_TOKENS
