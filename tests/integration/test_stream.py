"""`AnswerStream` through real sockets: ids, an outcome for each request, and no more at a time than there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from tests.integration.servers import HeldEngine, held_server

from distilqa import AsyncClient, Reader
from distilqa.server.single_process import SingleProcess
from distilqa_export.samples import packaged_evaluation
from distilqa_protos.v1 import question_answering_pb2 as pb
from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub

QUESTION = "What does the fox jump over?"
PASSAGE = "The quick brown fox jumps over the lazy dog."
METHOD = "/distilqa.v1.QuestionAnswering/AnswerStream"


def item(id: str, question: str = QUESTION, passage: str = PASSAGE, **options: Any) -> pb.AnswerStreamRequest:
    return pb.AnswerStreamRequest(
        id=id, request=pb.AnswerRequest(question=question, passages=[pb.Passage(text=passage)], **options)
    )


def exchange(target: str, items: Iterable[pb.AnswerStreamRequest | bytes]) -> dict[str, pb.AnswerStreamResponse]:
    """What a stream of these brings, by id."""

    def content(one: pb.AnswerStreamRequest | bytes) -> bytes:
        return one if isinstance(one, bytes) else one.SerializeToString()

    with grpc.insecure_channel(target) as channel:
        stream: Any = channel.stream_stream(METHOD, response_deserializer=pb.AnswerStreamResponse.FromString)
        replies = list(stream(map(content, items), timeout=60))
    assert len({reply.id for reply in replies}) == len(replies)
    return {reply.id: reply for reply in replies}


def test_every_request_gets_its_answer(target: str, bundle: Path) -> None:
    reader = Reader(bundle, threads=1)
    samples = packaged_evaluation()[:60]
    replies = exchange(target, (item(str(n), one.question, one.context) for n, one in enumerate(samples)))
    assert len(replies) == len(samples)
    for number, sample in enumerate(samples):
        (answer,) = replies[str(number)].response.answers
        (expected,) = reader.answer(sample.question, sample.context)
        assert (answer.text, answer.start, answer.end, answer.score) == (
            expected.text,
            expected.start,
            expected.end,
            expected.score,
        )


async def test_what_has_no_permit_is_not_looked_into(bundle: Path) -> None:
    """But for its id. What is looked into may take its time, and much of it would be in memory meanwhile."""
    async with held_server(bundle, max_requests=1) as (server, engine), AsyncClient(server.address) as client:
        first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        replies = await asyncio.to_thread(exchange, server.address, [b"\x0a\x05bytes\x12\x03\x1a\x01\xff"])
        engine.release.set()
        await first
    assert code_pb2.Code.Name(replies["bytes"].status.code) == "RESOURCE_EXHAUSTED"


async def test_a_request_of_all_bytes_that_there_may_be(bundle: Path) -> None:
    """Its id, and what frames it, come on top."""
    request = item("x" * 256, passage=" ".join([PASSAGE] * 20))
    size = request.request.ByteSize()
    async with held_server(bundle, max_request_bytes=size, max_bytes=size) as (server, engine):
        engine.release.set()
        replies = await asyncio.to_thread(exchange, server.address, [request])
    assert "lazy dog" in replies["x" * 256].response.answers[0].text


def test_a_bad_request_ends_itself_alone(target: str) -> None:
    bad: dict[str, tuple[pb.AnswerStreamRequest | bytes, str, str]] = {
        "empty": (item("empty", question=""), "INVALID_ARGUMENT", "question: is empty"),
        "nothing": (pb.AnswerStreamRequest(id="nothing"), "INVALID_ARGUMENT", "question: is empty"),
        "model": (item("model", model="bert"), "NOT_FOUND", "'bert' version any is not served here"),
        "bytes": (
            b"\x0a\x05bytes\x12\x03\x1a\x01\xff", "INVALID_ARGUMENT", "request.question: is not valid UTF-8"),
        "long": (item("long", passage="word " * 60_000), "INVALID_ARGUMENT", "request: has 3000"),
        "": (b"\x07\x07", "INVALID_ARGUMENT", "request: is not a distilqa.v1.AnswerStreamRequest"),
        "x" * 256: (item("x" * 257), "INVALID_ARGUMENT", "id: has 257 characters, the limit is 256"),
    }  # fmt: skip
    replies = exchange(target, [item("before"), *(content for content, _, _ in bad.values()), item("after")])
    assert replies.keys() == bad.keys() | {"before", "after"}
    for id, (_, code, message) in bad.items():
        status = replies[id].status
        assert code_pb2.Code.Name(status.code) == code
        assert status.message.startswith(message)
    for id in ("before", "after"):
        assert replies[id].response.answers[0].text == "the lazy dog"


def test_a_request_that_is_too_large_is_not_looked_into(target: str) -> None:
    """It has a status of its own, and its id as far as that stands at its beginning."""
    large = pb.AnswerStreamRequest(id="large", request=pb.AnswerRequest(question=QUESTION))
    large.request.passages.add(text="\u00e9" * 150_000)
    raw = large.SerializeToString().replace("\u00e9".encode(), b"\xff\xff")
    replies = exchange(target, [raw, item("small")])
    assert replies["large"].status.message.startswith("request: has 300")
    assert replies["small"].response.answers


def test_a_stream_of_nothing(target: str) -> None:
    assert exchange(target, []) == {}


def test_replies_come_as_they_are_done(target: str) -> None:
    """A sentence that was asked after a book is answered before it."""
    book = item("book", passage=f"{PASSAGE} " * 1500)
    with grpc.insecure_channel(target) as channel:
        replies = QuestionAnsweringStub(channel).AnswerStream(iter([book, item("sentence")]), timeout=60)
        assert [reply.id for reply in replies] == ["sentence", "book"]


@asynccontextmanager
async def held_stream(bundle: Path, **settings: Any) -> AsyncIterator[tuple[SingleProcess, HeldEngine, Any]]:
    """A stream to a server whose runs are held up."""
    async with held_server(bundle, **settings) as (server, engine), grpc.aio.insecure_channel(server.address) as there:
        yield server, engine, QuestionAnsweringStub(there).AnswerStream(timeout=60)


async def test_beyond_its_room_a_stream_is_not_read(bundle: Path) -> None:
    async with held_stream(bundle, stream_requests=3) as (server, engine, stream):
        for number in range(8):
            await stream.write(item(str(number)))
        await stream.done_writing()
        while server._permits.requests < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)  # in which more would have come
        assert server._permits.requests == 3
        engine.release.set()
        assert {reply.id async for reply in stream} == {str(number) for number in range(8)}
        assert await stream.code() is grpc.StatusCode.OK


async def test_who_does_not_read_keeps_nobody_waiting(bundle: Path) -> None:
    """Replies that nobody takes fill the stream's room, and hold no permit."""
    passage, top_k = f"{'word' * 1000} " * 16, 16
    async with held_stream(bundle, stream_requests=4, max_requests=4) as (server, engine, stream):
        engine.release.set()

        async def write() -> None:
            for number in range(200):
                await stream.write(item(str(number), passage=passage, top_k=top_k))
            await stream.done_writing()

        writing = asyncio.create_task(write())
        before = -1
        while (answered := server.calls.outcomes["OK"]) > before or not answered:  # until nothing moves any more
            before = answered
            await asyncio.sleep(0.3)
        assert answered < 200
        async with AsyncClient(server.address) as other:
            assert (await other.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"
        replies = [reply async for reply in stream]
        await writing
        assert sorted(int(reply.id) for reply in replies) == list(range(200))
        assert all(len(reply.response.answers) == top_k for reply in replies)


async def test_a_model_that_fails_fails_one_request(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with held_stream(bundle, stream_requests=1) as (_, engine, stream):
        engine.release.set()
        engine.failures = 1
        for id in ("a", "b"):
            await stream.write(item(id))
        await stream.done_writing()
        first, second = [reply async for reply in stream]
    assert (first.id, first.status.code) == ("a", code_pb2.INTERNAL)
    assert first.status.message == "the model failed on this request"
    assert (second.id, second.response.answers[0].text) == ("b", "the lazy dog")
    (record,) = (record for record in caplog.records if record.exc_info)
    assert record.__dict__["fields"]["request_id"]


async def test_without_a_permit_a_request_is_told_when_to_come_back(bundle: Path) -> None:
    async with (
        held_stream(bundle, max_requests=1) as (server, engine, stream),
        AsyncClient(server.address) as other,
    ):
        held = asyncio.create_task(other.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        await stream.write(item("refused"))
        refused = await stream.read()
        assert (refused.id, refused.status.code) == ("refused", code_pb2.RESOURCE_EXHAUSTED)
        retry = error_details_pb2.RetryInfo()
        assert refused.status.details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() >= 100
        engine.release.set()
        await held
        await stream.write(item("again"))
        assert (await stream.read()).response.answers[0].text == "the lazy dog"


async def test_a_stream_alone_has_none_of_its_requests_refused(bundle: Path) -> None:
    """It is read no faster than there are permits, which `GetModel` declares."""
    async with (
        held_stream(bundle, max_requests=2, stream_requests=16) as (server, engine, stream),
        AsyncClient(server.address) as client,
    ):
        assert (await client.model()).max_stream_requests == 2
        for number in range(8):
            await stream.write(item(str(number)))
        await stream.done_writing()
        engine.release.set()
        assert all([reply.response.answers async for reply in stream])
    assert server.calls.outcomes["OK"] == 8 + 2  # the stream itself, and GetModel


async def test_a_message_that_grpc_refuses_is_no_end(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with held_stream(bundle) as (server, engine, stream):
        engine.release.set()
        await stream.write(item("a"))
        assert (await stream.read()).id == "a"
        await stream.write(item("b", passage="a" * (600 << 10)))
        assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        while sum(server.calls.outcomes.values()) < 2:
            await asyncio.sleep(0.001)
        assert server.calls.outcomes == {"OK": 1, "CANCELLED": 1}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_what_a_caller_who_left_has_asked_is_not_done(bundle: Path) -> None:
    async with held_stream(bundle) as (server, engine, stream):
        for number in range(5):
            await stream.write(item(str(number), passage=f"{PASSAGE} " * 20))
        while server._scheduler._queue.windows < 4:
            await asyncio.sleep(0.001)
        stream.cancel()
        while server._permits.requests:
            await asyncio.sleep(0.001)
        assert server._scheduler._queue.windows == 0
        engine.release.set()
        assert server._permits.streams == 0
        assert server.calls.outcomes == {"CANCELLED": 6}
    assert engine.runs == [1]


async def test_past_the_deadline_of_the_stream_nothing_is_done(bundle: Path) -> None:
    async with held_server(bundle) as (server, engine), grpc.aio.insecure_channel(server.address) as there:
        stream: Any = QuestionAnsweringStub(there).AnswerStream(timeout=0.5)
        for number in range(3):
            await stream.write(item(str(number), passage=f"{PASSAGE} " * 20))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while server._permits.streams:
            await asyncio.sleep(0.001)
        engine.release.set()
        assert server.calls.outcomes["DEADLINE_EXCEEDED"] == 4
    assert engine.runs == [1]


async def test_a_stop_finishes_what_was_read_and_then_ends_the_stream(bundle: Path) -> None:
    async with held_stream(bundle, stream_requests=2) as (server, engine, stream):
        for number in range(4):
            await stream.write(item(str(number)))
        while server._permits.requests < 2:
            await asyncio.sleep(0.001)
        stopping = asyncio.create_task(server.stop(60))
        while not server._permits.draining.is_set():
            await asyncio.sleep(0.001)
        engine.release.set()
        replies = [await stream.read() for _ in range(2)]
        assert {reply.id for reply in replies} == {"0", "1"}
        assert all(reply.response.answers for reply in replies)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping


async def test_a_stop_is_no_failure_of_a_stream_that_had_ended(bundle: Path) -> None:
    async with held_stream(bundle) as (server, engine, stream):
        for number in range(3):
            await stream.write(item(str(number)))
        await stream.done_writing()
        while server._permits.requests < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)  # until the end is there too
        stopping = asyncio.create_task(server.stop(30))
        await asyncio.sleep(0.1)
        engine.release.set()
        assert len([reply async for reply in stream]) == 3
        assert await stream.code() is grpc.StatusCode.OK
        await stopping


async def test_a_stop_waits_for_who_reads_slowly(bundle: Path) -> None:
    passage, top_k = f"{'word' * 1000} " * 16, 16
    async with held_stream(bundle, stream_requests=300, max_requests=300) as (server, engine, stream):
        engine.release.set()
        for number in range(300):
            await stream.write(item(str(number), passage=passage, top_k=top_k))
        while server.calls.outcomes["OK"] < 300:  # more than fits into the sockets
            await asyncio.sleep(0.001)
        stopping = asyncio.create_task(server.stop(60))
        await asyncio.sleep(0.2)  # in which nothing would keep it
        assert not stopping.done()
        replies = [await stream.read() for _ in range(300)]
        assert all(len(reply.response.answers) == top_k for reply in replies)
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
        await stopping


async def test_idle_streams_are_bounded_and_a_stop_ends_them(bundle: Path) -> None:
    async with held_server(bundle, max_requests=2) as (server, engine), grpc.aio.insecure_channel(server.address) as to:
        engine.release.set()
        stub = QuestionAnsweringStub(to)
        streams: list[Any] = [stub.AnswerStream(timeout=60) for _ in range(2)]
        for stream in streams:
            await stream.write(item("a"))
            assert (await stream.read()).response.answers
        refused: Any = stub.AnswerStream(timeout=60)
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await server.stop(0)
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
