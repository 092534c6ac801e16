"""Streams of requests, by threads and by asyncio: every request that is taken from the caller gets one outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator, Mapping
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from typing import Any, TypeAlias

import grpc

from distilqa.client.call import OutgoingCall
from distilqa.client.messages import Outcome, Request, read_answers, read_message, read_model, read_status, to_message
from distilqa.errors import DistilqaError, InferenceFailed, InvalidRequest
from distilqa_protos.v1 import question_answering_pb2 as pb

_END = object()

# What gRPC says by asyncio where a message could not be sent, and how long after it the call's own end may come.
_NOT_SENT = "Internal error from Core"
_STATUS_S = 1.0

# Outcomes, and last of the replies what ended them.
_Event: TypeAlias = Outcome | DistilqaError


class Exchange:
    """What a stream takes and gives back, without how it is sent. ``names`` are those of the model that must answer.

    On the wire the requests have numbers for ids: the caller's own need not differ from each other.
    """

    def __init__(self, call: OutgoingCall, names: Mapping[str, str]) -> None:
        self._call, self._names = call, names
        self._numbers = count()
        self._asked: dict[str, tuple[Request, pb.AnswerRequest]] = {}
        self._exhausted = False
        self._raised: BaseException | None = None
        self._max_request_bytes = 0

    def begin(self, reply: pb.GetModelResponse | None) -> None:
        """A request that is far too large would not be read, and end the whole stream: so its limit is asked first."""
        self._max_request_bytes = read_model(reply).max_request_bytes

    def take(self, request: object) -> pb.AnswerStreamRequest | Outcome | None:
        """What to send, the outcome of what cannot be sent, or None after the last. Raises InvalidRequest."""
        if request is _END:
            self._exhausted = True
            return None
        if not isinstance(request, Request):
            raise InvalidRequest("requests", f"hold a {type(request).__name__}, must be of distilqa.Request")
        try:
            message = to_message(request, **self._names)
            self._check_size(message.ByteSize())
        except InvalidRequest as error:
            return Outcome(request, [], error)
        sent = pb.AnswerStreamRequest(id=str(next(self._numbers)), request=message)
        self._asked[sent.id] = request, sent.request
        return sent

    def fail(self, error: BaseException) -> None:
        """Taking raised: nothing more is taken, and what was sent is waited for."""
        self._raised = error

    def land(self, reply: pb.AnswerStreamResponse | None) -> Outcome:
        """The outcome that a reply brings. Raises InferenceFailed for a reply to nothing that waits for one."""
        reply = read_message(reply)
        if reply.id not in self._asked:
            raise InferenceFailed(f"the reply is to a request {reply.id[:40]!r}, and none of that id waits for one")
        request, asked = self._asked.pop(reply.id)
        try:
            if reply.HasField("status"):
                raise self._call.explain(read_status(reply.status))
            return Outcome(request, read_answers(reply.response, asked))
        except DistilqaError as error:
            return Outcome(request, [], error)

    def lost(self, error: DistilqaError) -> Iterator[Outcome]:
        """The outcome of each that waits for a reply, where none will come."""
        for number in list(self._asked):
            request, _ = self._asked.pop(number)
            yield Outcome(request, [], error)

    def finish(self, error: DistilqaError) -> None:
        """Raise what taking raised, or what ended the stream if not everything had been taken."""
        if self._raised is not None:
            raise self._raised
        if not self._exhausted:
            raise error

    @property
    def get_model(self) -> pb.GetModelRequest:
        return pb.GetModelRequest(**self._names)

    def _check_size(self, size: int) -> None:
        if size > self._max_request_bytes:
            raise InvalidRequest("request", f"has {size} bytes, the limit is {self._max_request_bytes}")


class Stream:
    """A stream of `Client`: a thread of gRPC's takes the requests and sends them, one of ours receives the replies."""

    def __init__(self, call: OutgoingCall, exchange: Exchange, in_flight: int) -> None:
        self._call, self._exchange = call, exchange
        self._room = threading.Semaphore(in_flight)
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._taking = threading.Lock()
        self._over = False

    def outcomes(self, requests: Iterator[object]) -> Generator[Outcome, None, None]:
        call, exchange = self._call, self._exchange
        with call.errors():
            model = call.stub.GetModel(exchange.get_model, **call.options)
        exchange.begin(model)
        with call.errors():
            replies = call.stub.AnswerStream(self._messages(requests), **call.options)
        threading.Thread(target=self._receive, args=(replies,), name="distilqa-replies", daemon=True).start()
        try:
            while isinstance(event := self._events.get(), Outcome):
                self._room.release()
                yield event
            self._stop()
            yield from _rest(self._events, exchange, event)
            if self._taking.acquire(timeout=call.left_s):  # what the caller's iterator is about to give
                self._taking.release()
            yield from _rest(self._events, exchange, event)
            exchange.finish(event)
        finally:
            self._stop()
            replies.cancel()

    def _messages(self, requests: Iterator[object]) -> Iterator[pb.AnswerStreamRequest]:
        while (message := self._take(requests)) is not None:
            yield message

    def _take(self, requests: Iterator[object]) -> pb.AnswerStreamRequest | None:
        """The next to send, once there is room for it."""
        while True:
            self._room.acquire()
            with self._taking:  # until an outcome is where it is looked for
                if self._over:
                    return None
                try:
                    taken = self._exchange.take(next(requests, _END))
                except BaseException as error:
                    self._exchange.fail(error)
                    return None
                if not isinstance(taken, Outcome):
                    return taken
                self._events.put(taken)

    def _stop(self) -> None:
        """Take no more."""
        self._over = True
        self._room.release()

    def _receive(self, replies: Any) -> None:
        end = _no_reply()
        try:
            with self._call.errors():
                for reply in replies:
                    self._events.put(self._exchange.land(reply))
        except DistilqaError as error:
            end = error
        finally:
            self._events.put(end)


class AsyncStream:
    """A stream of `AsyncClient`, by two tasks. ``open_calls`` has the gRPC call as long as it is under way."""

    def __init__(self, call: OutgoingCall, exchange: Exchange, in_flight: int, open_calls: set[Any]) -> None:
        self._call, self._exchange, self._open_calls = call, exchange, open_calls
        self._room = asyncio.Semaphore(in_flight)
        self._events: asyncio.Queue[_Event] = asyncio.Queue()

    async def outcomes(self, requests: AsyncIterator[object]) -> AsyncGenerator[Outcome, None]:
        call, exchange = self._call, self._exchange
        self._status: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        with call.errors():
            model = await call.stub.GetModel(exchange.get_model, **call.options)
        exchange.begin(model)
        with call.errors():
            replies = call.stub.AnswerStream(**call.options)
        replies.add_done_callback(self._note_status)
        self._open_calls.add(replies)
        sending = asyncio.create_task(self._send(replies, requests))
        receiving = asyncio.create_task(self._receive(replies))
        try:
            while isinstance(event := await self._events.get(), Outcome):
                self._room.release()
                yield event
            sending.cancel()
            await asyncio.wait((sending,))
            for outcome in _rest(self._events, exchange, event):
                yield outcome
            exchange.finish(event)
        finally:
            self._open_calls.discard(replies)
            replies.cancel()
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _send(self, replies: Any, requests: AsyncIterator[object]) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the call is over, and `_receive` learns why
            while (message := await self._take(requests)) is not None:
                await replies.write(message)
            await replies.done_writing()

    async def _take(self, requests: AsyncIterator[object]) -> pb.AnswerStreamRequest | None:
        """The next to send, once there is room for it."""
        while True:
            await self._room.acquire()
            try:
                taken = self._exchange.take(await anext(requests, _END))
            except BaseException as error:
                task = asyncio.current_task()
                if task and task.cancelling():  # it is this task that was cancelled, not what the iterator waits for
                    raise
                self._exchange.fail(error)
                return None
            if not isinstance(taken, Outcome):
                return taken
            self._events.put_nowait(taken)

    async def _receive(self, replies: Any) -> None:
        end = _no_reply()
        try:
            with self._call.errors():
                try:
                    async for reply in replies:
                        self._events.put_nowait(self._exchange.land(reply))
                except grpc.aio.AioRpcError as error:
                    if (status := await self._true(error)).code() is not grpc.StatusCode.OK:
                        raise status from None
        except DistilqaError as error:
            end = error
        finally:
            self._events.put_nowait(end)

    def _note_status(self, replies: Any) -> None:
        """Called with each status that the call is given: of a message that could not be sent too, even last."""
        if self._status.done() or (details := _result(replies.details())) == _NOT_SENT:
            return
        try:
            code = _result(replies.code())
        except KeyError as error:  # one that gRPC does not know
            self._status.set_exception(error)
            self._status.exception()  # which need not be asked for
        else:
            trailing = _result(replies.trailing_metadata())
            self._status.set_result(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details))

    async def _true(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """What ended the call, where gRPC says that a message could not be sent: that is no more than what followed."""
        if error.details() == _NOT_SENT:
            await asyncio.wait((self._status,), timeout=_STATUS_S)
        return self._status.result() if self._status.done() else error


def _result(has_it: Coroutine[Any, Any, Any]) -> Any:
    """Of a coroutine that need not wait for it."""
    try:
        has_it.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def _rest(
    events: SimpleQueue[_Event] | asyncio.Queue[_Event], exchange: Exchange, error: DistilqaError
) -> Iterator[Outcome]:
    """The outcomes that are left after the replies have ended."""
    while not events.empty():
        event = events.get_nowait()
        if isinstance(event, Outcome):
            yield event
    yield from exchange.lost(error)


def _no_reply() -> DistilqaError:
    """For what waits for a reply when the server has ended the stream as if nothing did."""
    return InferenceFailed("the server ended the stream without a reply")
