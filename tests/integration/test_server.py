"""The server through real sockets: its answers, its statuses, and its end."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.servers import CLI, held_server, serving

from distilqa import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Reader,
    Unavailable,
)
from distilqa.text import spans
from distilqa.text.windows import Windower
from distilqa_export.samples import packaged_evaluation
from distilqa_protos.v1 import question_answering_pb2 as pb
from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub

QUESTION = "What does the fox jump over?"
PASSAGE = "The quick brown fox jumps over the lazy dog."
SERVICE = "distilqa.v1.QuestionAnswering"


def test_answers_as_the_reader_does(target: str, bundle: Path) -> None:
    reader = Reader(bundle)
    samples = packaged_evaluation()[:40]
    with Client(target) as client:
        for sample in samples:
            expected = reader.answer(sample.question, sample.context, top_k=3)
            assert client.answer(sample.question, sample.context, top_k=3) == expected


async def test_answers_in_company_as_alone(target: str, bundle: Path) -> None:
    """Many at once, short ones of equal length among them, get bit for bit what each gets alone."""
    reader = Reader(bundle, threads=1)
    pairs = [(sample.question, sample.context) for sample in packaged_evaluation()[:30]]
    pairs += [(QUESTION, f"The quick brown fox jumps over {number} dogs.") for number in range(10, 40)]
    async with AsyncClient(target) as client:
        served = await asyncio.gather(*(client.answer(question, passage) for question, passage in pairs))
    assert served == [reader.answer(question, passage) for question, passage in pairs]


def test_places_are_code_points_and_bytes(target: str) -> None:
    passage = "Ein schöner Fuchs 🦊 springt — über den faulen Hund. 犬 The fox jumps over the lazy dog 🐶."
    with grpc.insecure_channel(target) as channel:
        request = pb.AnswerRequest(
            question=QUESTION, passages=[pb.Passage(text="Nothing here."), pb.Passage(text=passage, id="second")]
        )
        answer = QuestionAnsweringStub(channel).Answer(request).answers[0]
    assert (answer.passage, answer.passage_id) == (1, "second")
    assert passage[answer.start : answer.end] == answer.text
    assert passage.encode()[answer.start_byte : answer.end_byte].decode() == answer.text
    assert answer.start_byte > answer.start


def test_all_options_reach_the_model(target: str, bundle: Path) -> None:
    passages = [PASSAGE * 60, "The lazy dog sleeps."]
    options: dict[str, Any] = {"top_k": 5, "max_answer_tokens": 3, "doc_stride": 7, "allow_no_answer": True}
    with Client(target) as client:
        assert client.answer(QUESTION, passages, **options) == Reader(bundle).answer(QUESTION, passages, **options)


def test_no_answer(target: str) -> None:
    with Client(target) as client:
        answers = client.answer("Who wrote Hamlet?", "xyzzy", top_k=5, allow_no_answer=True)
    assert {(answer.passage, answer.start, answer.end, answer.text) for answer in answers} == {
        (0, 0, 5, "xyzzy"),
        (None, 0, 0, ""),
    }


def test_timings_and_run_sizes_come_with_the_answer(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        passages = [pb.Passage(text=PASSAGE), pb.Passage(text=PASSAGE * 100)]
        response = QuestionAnsweringStub(channel).Answer(pb.AnswerRequest(question=QUESTION, passages=passages))
    timings = response.timings
    assert timings.windows > 2
    assert timings.run_windows >= 1
    assert min(timings.tokenize_seconds, timings.inference_seconds, timings.decode_seconds) > 0
    assert (response.model, response.version, response.variant) == ("distilbert-384-squad", "1", "cpu-int8")


async def test_model(target: str) -> None:
    with Client(target) as client:
        model = client.model()
    assert (model.name, model.version, model.variant) == ("distilbert-384-squad", "1", "cpu-int8")
    assert (model.architecture, model.parameters, model.window_tokens) == ("distilbert", 22_565_378, 384)
    async with AsyncClient(target) as client:
        assert await client.model() == model


def test_health_and_reflection(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        replies = reflection.ServerReflectionInfo(iter([request]))
        names = {service.name for service in next(replies).list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize(
    ("question", "passages", "options", "field"),
    [
        ("", [PASSAGE], {}, "question"),
        (" \n", [PASSAGE], {}, "question"),
        ("why " * 129, [PASSAGE], {}, "question"),
        ("why " * 9999, [PASSAGE], {}, "question"),
        (QUESTION, [], {}, "passages"),
        (QUESTION, [""], {}, "passages[0]"),
        (QUESTION, ["", "\0\r\n"], {}, "passages"),
        (QUESTION, ["\ud800"], {}, "passages[0]"),
        (QUESTION, [PASSAGE] * 257, {}, "passages"),
        (QUESTION, ["a " * 100_000], {}, "passages"),
        (QUESTION, ["word " * 60_000], {}, "request"),
        (QUESTION, ["word " * 250_000], {}, "request"),
        (QUESTION, [PASSAGE], {"top_k": 0}, "top_k"),
        (QUESTION, [PASSAGE], {"top_k": 101}, "top_k"),
        (QUESTION, [PASSAGE], {"top_k": -1}, "top_k"),
        (QUESTION, [PASSAGE], {"max_answer_tokens": 0}, "max_answer_tokens"),
        (QUESTION, [PASSAGE], {"doc_stride": 300}, "doc_stride"),
    ],
)
def test_invalid_requests_name_the_field(
    target: str, question: str, passages: list[str], options: dict[str, int], field: str
) -> None:
    with Client(target) as client, pytest.raises(InvalidRequest) as caught:
        client.answer(question, passages, **options)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("raw", "details"),
    [
        (b"\x1a\x02\xff\xfe", "question: is not valid UTF-8"),
        (b"\x1a\x01q\x22\x03\x0a\x01a\x22\x04\x0a\x02\xff\xfe", "passages[1].text: is not valid UTF-8"),
        (b"\x07\x07", "request: is not a distilqa.v1.AnswerRequest"),
    ],
)
def test_bytes_that_are_no_request(target: str, raw: bytes, details: str) -> None:
    with grpc.insecure_channel(target) as channel:
        method: Any = channel.unary_unary(f"/{SERVICE}/Answer")
        with pytest.raises(grpc.RpcError) as caught:
            method(raw)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, details)


@pytest.mark.parametrize(("model", "version"), [("bert", ""), ("distilbert-384-squad", "2"), ("", "0")])
def test_unknown_model(target: str, model: str, version: str) -> None:
    with grpc.insecure_channel(target) as channel:
        stub = QuestionAnsweringStub(channel)
        named: dict[str, Any] = {"model": model, "version": version}
        requests = (
            (stub.Answer, pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=PASSAGE)], **named)),
            (stub.GetModel, pb.GetModelRequest(**named)),
        )
        for method, request in requests:
            with pytest.raises(grpc.RpcError) as caught:
                method(request)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert ModelNotFound.status == "NOT_FOUND"


@pytest.mark.parametrize("limits", [{"max_requests": 1}, {"max_bytes": 100, "max_request_bytes": 100}])
async def test_no_permit(bundle: Path, limits: dict[str, int]) -> None:
    """Refused at once with advice on when to try again, and let in when the first is done."""
    async with held_server(bundle, **limits) as (server, engine), AsyncClient(server.address) as client:
        first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        with pytest.raises(Overloaded) as caught:
            await client.answer(QUESTION, PASSAGE)
        assert caught.value.retry_after_s == 0.1
        cause = caught.value.__cause__
        assert isinstance(cause, grpc.aio.AioRpcError)
        status = status_pb2.Status.FromString(dict(cause.trailing_metadata())["grpc-status-details-bin"])
        detail: any_pb2.Any = status.details[0]
        retry = error_details_pb2.RetryInfo()
        assert detail.Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == 100
        engine.release.set()
        assert (await first)[0].text == "the lazy dog"
        assert (await client.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"


async def test_a_sentence_overtakes_a_book(bundle: Path) -> None:
    """It waits for the window that runs and for one more, of the many that came before it."""
    async with held_server(bundle) as (server, engine), AsyncClient(server.address, timeout_s=300) as client:
        book = asyncio.create_task(client.answer(QUESTION, [f"{PASSAGE} " * 1000] * 5))
        await asyncio.to_thread(engine.began.wait)
        before = server._scheduler._queue.windows
        assert before > 150
        sentence = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        while server._scheduler._queue.windows == before:
            await asyncio.sleep(0.001)
        engine.release.set()
        assert (await sentence)[0].text == "the lazy dog"
        assert not book.done()
        assert min(engine.tokens) == engine.tokens[2]
        book.cancel()


async def test_a_sentence_is_not_tokenised_after_books(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that tokenise have books; one is left for the sentence, and its window is the next to run."""
    async with held_server(bundle) as (server, engine), AsyncClient(server.address, timeout_s=300) as client:
        engine.release.set()
        tokenize, go_on = Windower.tokenize, threading.Event()

        def slow(self: Windower, question: str, passages: Any, **options: Any) -> Any:
            if len(passages) == 5:
                assert go_on.wait(60)
            return tokenize(self, question, passages, **options)

        monkeypatch.setattr(Windower, "tokenize", slow)
        books = [asyncio.create_task(client.answer(QUESTION, [f"{PASSAGE} " * 200] * 5)) for _ in range(4)]
        while server._permits.requests < 4:
            await asyncio.sleep(0.001)
        assert (await client.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"
        assert not any(book.done() for book in books)
        go_on.set()
        await asyncio.gather(*books)


async def test_what_would_not_fit_the_queue_is_not_tokenised(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        held_server(bundle, max_windows=10, max_queued_windows=10) as (server, engine),
        AsyncClient(server.address) as client,
    ):
        running = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        waiting = asyncio.create_task(client.answer(QUESTION, [PASSAGE] * 4))
        while server._scheduler._queue.windows < 4:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(Windower, "tokenize", lambda *_, **__: pytest.fail("it was tokenised"))
        with pytest.raises(Overloaded, match="4 windows are waiting, and this request has about 8 ") as caught:
            await client.answer(QUESTION, f"{PASSAGE} " * 200)
        assert caught.value.retry_after_s is not None
        engine.release.set()
        await asyncio.gather(running, waiting)
        assert server.calls.outcomes == {"OK": 2, "RESOURCE_EXHAUSTED max_queued_windows": 1}


@pytest.mark.parametrize(("options", "on_the_loop"), [({}, True), ({"max_answer_tokens": 384}, False)])
async def test_what_takes_long_to_decode_holds_nobody_up(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], on_the_loop: bool
) -> None:
    """A window of 384 tokens has ten times as many spans where answers may be as long."""
    decode, threads = spans.decode, list[str]()

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return decode(*arguments, **options)

    monkeypatch.setattr(spans, "decode", noted)
    async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
        engine.release.set()
        assert await client.answer(QUESTION, f"{PASSAGE} " * 60, **options)  # type: ignore[arg-type]
    assert [not name.startswith("text") for name in threads] == [on_the_loop]


def test_a_blank_passage_is_passed_over(target: str) -> None:
    """And the reply says which."""
    with grpc.insecure_channel(target) as channel:
        request = pb.AnswerRequest(
            question=QUESTION, passages=[pb.Passage(text=text) for text in ("", PASSAGE, "\n\f ", PASSAGE)], top_k=2
        )
        reply = QuestionAnsweringStub(channel).Answer(request)
    assert [(answer.passage, answer.text) for answer in reply.answers] == [(1, "the lazy dog"), (3, "the lazy dog")]
    assert list(reply.blank_passages) == [0, 2]


def test_answers_within_words(target: str) -> None:
    with Client(target) as client:
        (whole,) = client.answer(QUESTION, PASSAGE, max_answer_tokens=1)
        pieces = client.answer("What?", "Unbelievably.", top_k=9, align_to_words=False)
        words = client.answer("What?", "Unbelievably.", top_k=9)
    assert whole.text in PASSAGE.rstrip(".").split()
    assert {word.text for word in words} == {"Unbelievably", "Unbelievably.", "."}
    assert len({piece.text for piece in pieces} - {word.text for word in words}) > 1


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_logits_that_are_no_numbers_fail_their_own_request(bundle: Path, number: float) -> None:
    async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
        engine.release.set()
        engine.spoiled = number
        with pytest.raises(InferenceFailed, match="logits that are no numbers"):
            await client.answer(QUESTION, PASSAGE)
        engine.spoiled = None
        assert (await client.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"
        assert server.calls.outcomes == {"INTERNAL": 1, "OK": 1}


async def test_as_many_windows_wait_as_may(bundle: Path) -> None:
    async with (
        held_server(bundle, max_windows=3, max_queued_windows=3) as (server, engine),
        AsyncClient(server.address) as client,
    ):
        running = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        waiting = asyncio.create_task(client.answer(QUESTION, [PASSAGE] * 2))
        while server._scheduler._queue.windows < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded, match="2 windows are waiting, and this request has 2 ") as caught:
            await client.answer(QUESTION, [PASSAGE] * 2)
        assert caught.value.retry_after_s is not None
        engine.release.set()
        for answers in await asyncio.gather(running, waiting):
            assert answers[0].text == "the lazy dog"
        assert server.calls.outcomes == {"OK": 2, "RESOURCE_EXHAUSTED max_queued_windows": 1}


async def test_what_cannot_be_run_in_time_is_refused_at_once(bundle: Path) -> None:
    async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
        server._scheduler._run_s = server._scheduler._run_tokens
        first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        second = asyncio.create_task(client.answer(QUESTION, PASSAGE, timeout_s=600))
        while not server._scheduler._queue.windows:
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded, match="s of work are before this request, and its deadline is in"):
            await client.answer(QUESTION, PASSAGE, timeout_s=10)
        engine.release.set()
        await asyncio.gather(first, second)
        assert server.calls.outcomes == {"OK": 2, "RESOURCE_EXHAUSTED deadline": 1}


def test_the_log_has_ids_and_no_texts(bundle: Path) -> None:
    """Of an answered call, a refused one, and a stream."""
    texts = ("Who is Xenophon?", "Xenophon keeps a secret.")
    with (
        serving([*CLI, "serve", str(bundle), "--log-format", "json"]) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        stub = QuestionAnsweringStub(channel)
        request = pb.AnswerRequest(question=texts[0], passages=[pb.Passage(text=texts[1], id="Xenophon")])
        _, call = stub.Answer.with_call(request, metadata=(("x-request-id", "mine-1"),))
        assert ("x-request-id", "mine-1") in call.trailing_metadata()
        with pytest.raises(grpc.RpcError):
            stub.Answer(pb.AnswerRequest(question=texts[0], top_k=1000, passages=[pb.Passage(text=texts[1])]))
        list(stub.AnswerStream(iter([pb.AnswerStreamRequest(id="item 7", request=request)])))
        process.terminate()
        log = process.communicate(timeout=60)[1]
    assert "Xenophon" not in log
    calls = [entry for entry in map(json.loads, log.splitlines()) if "outcome" in entry]
    assert [(entry["message"], entry["outcome"]) for entry in calls] == [
        ("Answer", "OK"),
        ("Answer", "INVALID_ARGUMENT"),
        ("AnswerStream request", "OK"),
        ("AnswerStream", "OK"),
    ]
    assert calls[0]["request_id"] == "mine-1"
    assert (calls[0]["windows"], calls[1]["field"]) == (1, "top_k")
    assert all(entry["peer"].startswith("ipv4:127.0.0.1:") for entry in calls)
    steps = sum(calls[0][f"{step}_seconds"] for step in ("tokenize", "queue", "inference", "decode"))
    assert 0 < steps < calls[0]["seconds"]
    assert len({entry["request_id"] for entry in calls}) == 3
    assert [entry.get("id") for entry in calls] == [None, None, "item 7", None]


def test_replies_are_bounded(target: str) -> None:
    """An id that comes back with each answer, and long words in nearly all of them."""
    with Client(target) as client, pytest.raises(InvalidRequest) as caught:
        client.answer(QUESTION, " ".join("\U0001f98a" * 4000 + " a" for _ in range(16)), top_k=100)
    assert caught.value.field == "top_k"
    with grpc.insecure_channel(target) as channel:
        passages = [pb.Passage(text=PASSAGE, id="x" * 257)]
        with pytest.raises(grpc.RpcError) as refused:
            QuestionAnsweringStub(channel).Answer(pb.AnswerRequest(question=QUESTION, passages=passages))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "passages[0].id: has 257 characters, the limit is 256"


def test_errors_are_bounded(target: str) -> None:
    """What is quoted fits the trailers, which gRPC's clients refuse at random from half of their limit on."""
    with grpc.insecure_channel(target) as channel:
        for name in ("m", "é", "日", "🦊", "%"):
            request = pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=PASSAGE)], model=name * 50_000)
            for _ in range(20):
                with pytest.raises(grpc.RpcError) as caught:
                    QuestionAnsweringStub(channel).Answer(request)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                assert f"'{name * 100}" in str(caught.value.details())


@pytest.mark.parametrize(
    "method",
    [
        f"/{SERVICE}/GetModel",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_what_needs_no_permit_is_small(target: str, method: str) -> None:
    """Or much of it would be in memory, or be parsed while others wait."""
    with grpc.insecure_channel(target) as channel:
        ask: Any = channel.stream_stream(method)
        with pytest.raises(grpc.RpcError) as caught:
            next(ask(iter([bytes(4097)])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "request: has 4097 bytes, the limit is 4096"


def test_a_message_is_not_unpacked(bundle: Path) -> None:
    """Compressed, 300 MiB of nothing are 300 KiB; gRPC would unpack them before it looks at the limit."""
    with serving([*CLI, "serve", str(bundle)]) as (process, address), grpc.insecure_channel(address) as channel:
        peak = peak_of(process.pid)
        for method in ("/grpc.health.v1.Health/Check", f"/{SERVICE}/Answer"):
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(300 << 20), compression=grpc.Compression.Gzip, timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "ompress" in str(caught.value.details())
        assert peak_of(process.pid) < peak + (50 << 20)
        with Client(address) as client:
            assert client.answer(QUESTION, PASSAGE)[0].text == "the lazy dog"


def peak_of(process: int) -> int:
    """The most memory that a process has had, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]


def test_no_reply_is_larger_than_a_client_takes(bundle: Path) -> None:
    """gRPC's clients take 4 MiB. The most that can be had is a hundred of the longest answers."""
    word = "\U0001f98a" * 4000
    with (
        serving([*CLI, "serve", str(bundle), "--max-request-bytes", str(8 << 20)]) as (_, address),
        Client(address) as client,
    ):
        answers = client.answer("What?", f"{word} " * 100, top_k=100)
        most = client.model().max_response_bytes
    size = sum(len(answer.text.encode()) for answer in answers)
    assert size == 100 * 16_000 < most < 4 << 20


def test_a_word_that_nobody_reads_is_no_answer(target: str) -> None:
    with Client(target) as client:
        with pytest.raises(InvalidRequest, match=r"passages\[0\]: has no word of 4,096 characters or fewer"):
            client.answer("What?", "x" * 120_000)
        assert client.answer("What?", "x" * 120_000 + " fox")[0].text == "fox"


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), None])
def test_a_client_without_a_deadline(target: str, timeout_s: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout_s"):
        Client(target, timeout_s=timeout_s)
    if timeout_s is not None:
        with Client(target) as client, pytest.raises(InvalidRequest, match="timeout_s"):
            client.answer(QUESTION, PASSAGE, timeout_s=timeout_s)


@pytest.mark.parametrize("question", [None, b"what?", 3, ["what?"]])
def test_a_question_that_is_no_text(target: str, bundle: Path, question: Any) -> None:
    with Client(target) as client:
        for answer in (client.answer, Reader(bundle).answer):
            for arguments in ((question, PASSAGE), (QUESTION, [PASSAGE, question])):
                with pytest.raises(InvalidRequest, match="must be a string"):
                    answer(*arguments)


async def test_a_client_that_is_closed_during_a_call(bundle: Path) -> None:
    """The call ends as unavailable; a task that was cancelled itself stays cancelled."""
    async with held_server(bundle) as (server, engine):
        client = AsyncClient(server.address)
        call = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        await client.close()
        with pytest.raises(Unavailable, match="closed during the call"):
            await call
        client = AsyncClient(server.address)
        call = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.sleep(0)
        call.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_closed_client(target: str) -> None:
    with Client(target) as client:
        pass
    with pytest.raises(Unavailable, match="closed"):
        client.answer(QUESTION, PASSAGE)
    async with AsyncClient(target) as other:
        pass
    with pytest.raises(Unavailable, match="closed"):
        await other.model()


async def test_work_past_its_deadline_is_not_done(bundle: Path) -> None:
    async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
        first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        with pytest.raises(DeadlineExceeded):
            await client.answer(QUESTION, PASSAGE * 20, timeout_s=0.2)
        engine.release.set()
        await first
        await client.answer(QUESTION, PASSAGE)
        assert engine.runs == [1, 1]


async def test_work_of_a_caller_who_left_is_not_done(bundle: Path) -> None:
    async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
        first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        await asyncio.to_thread(engine.began.wait)
        leaver = asyncio.create_task(client.answer(QUESTION, PASSAGE * 20))
        while not server._scheduler._queue.windows:
            await asyncio.sleep(0)
        leaver.cancel()
        while server._scheduler._queue.windows:
            await asyncio.sleep(0)
        engine.release.set()
        await first
        await client.answer(QUESTION, PASSAGE)
        assert engine.runs == [1, 1]


async def test_a_model_that_fails_fails_its_own_request(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
        engine.release.set()
        engine.failures = 1
        with pytest.raises(InferenceFailed, match=r"^the model failed on this request$"):
            await client.answer(QUESTION, PASSAGE)
        assert (await client.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_what_is_unexpected_stays_inside(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
        engine.release.set()
        monkeypatch.setattr("distilqa.text.spans.decode", None)
        with pytest.raises(InferenceFailed, match=r"^internal error$"):
            await client.answer(QUESTION, PASSAGE)
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_second_server_on_the_port_is_refused(target: str, bundle: Path) -> None:
    port = target.rpartition(":")[2]
    done = subprocess.run([*CLI, "serve", str(bundle), "--port", port], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1  # of which gRPC would talk too
    assert done.stderr.startswith(f"distilqa: cannot bind 127.0.0.1:{port}; is another server there")


def test_nobody_there() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable):
        client.answer(QUESTION, PASSAGE, timeout_s=20)


def test_a_path_that_is_no_text_ends_nothing(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        open_call: Any = channel.unary_unary
        call = open_call(b"/\xff")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=10)
    with Client(target) as client:
        assert client.answer(QUESTION, PASSAGE)
