"""The clients through real sockets: streams and what breaks them, connections, and what goes with a call."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.integration.servers import CLI, held_server, serving

from distilqa import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    DistilqaError,
    InvalidRequest,
    ModelNotFound,
    Outcome,
    Overloaded,
    Reader,
    Request,
    Unavailable,
)
from distilqa.client import client as module
from distilqa.server.single_process import SingleProcess
from distilqa_export.samples import packaged_evaluation

QUESTION = "What does the fox jump over?"
PASSAGE = "The quick brown fox jumps over the lazy dog."
MODEL = "distilbert-384-squad"

both = pytest.mark.parametrize("kind", [Client, AsyncClient])


def fox(id: str) -> Request:
    return Request(id, QUESTION, PASSAGE)


def foxes() -> Iterator[Request]:
    """Without end."""
    return (fox(str(number)) for number in itertools.count())


async def in_thread(outcomes: Iterator[Outcome]) -> AsyncGenerator[Outcome, None]:
    """A stream of `Client`, read without holding up this event loop."""
    try:
        while (outcome := await asyncio.to_thread(next, outcomes, None)) is not None:
            yield outcome
    finally:
        await asyncio.to_thread(outcomes.close)  # type: ignore[attr-defined]


def stream(client: Client | AsyncClient, requests: Any, **options: Any) -> AsyncGenerator[Outcome, None]:
    """The outcomes of a stream of either client."""
    if isinstance(client, AsyncClient):
        return client.answer_stream(requests, **options)
    return in_thread(client.answer_stream(requests, **options))


async def close(client: Client | AsyncClient) -> None:
    if isinstance(client, AsyncClient):
        await client.close()
    else:
        client.close()


async def called(client: Client | AsyncClient, method: Any, *arguments: Any) -> Any:
    """What a method of either client returns."""
    return await (method(*arguments) if isinstance(client, AsyncClient) else asyncio.to_thread(method, *arguments))


async def consume(outcomes: AsyncIterator[Outcome]) -> tuple[list[Outcome], DistilqaError | None]:
    """What is left of a stream, and what it raises."""
    seen: list[Outcome] = []
    try:
        async for outcome in outcomes:
            seen.append(outcome)
    except DistilqaError as error:
        return seen, error
    return seen, None


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


@both
async def test_streams_answer_as_the_reader_does(kind: Any, target: str, bundle: Path) -> None:
    reader = Reader(bundle, threads=1)
    options: dict[str, Any] = {"top_k": 3, "max_answer_tokens": 5, "doc_stride": 7, "allow_no_answer": True}
    samples = packaged_evaluation()[:40]
    asked = [Request(sample.id, sample.question, sample.context) for sample in samples]
    asked += [Request(f"{sample.id} too", sample.question, [PASSAGE, sample.context], **options) for sample in samples]
    client = kind(target, timeout_s=60)
    outcomes, error = await consume(stream(client, asked))
    await close(client)
    assert error is None
    assert len(outcomes) == len(asked)
    answers = {outcome.id: outcome.answers for outcome in outcomes}
    for sample in samples:
        assert answers[sample.id] == reader.answer(sample.question, sample.context)
        assert answers[f"{sample.id} too"] == reader.answer(sample.question, [PASSAGE, sample.context], **options)


@both
async def test_a_bad_request_fails_alone(kind: Any, target: str) -> None:
    """Whether client or server sees it; what is too large for gRPC itself would end the stream."""
    bad = {
        "empty": (Request("empty", " ", PASSAGE), "question: is empty"),
        "none": (Request("none", QUESTION, []), "passages: "),
        "text": (Request("text", QUESTION, [PASSAGE, 3]), "passages[1]: is a int, must be a string"),  # type: ignore[list-item]
        "large": (Request("large", QUESTION, "word " * 60_000), "request: has 300"),
        "huge": (Request("huge", QUESTION, "word " * 600_000), "request: has 3000"),
        "windows": (Request("windows", QUESTION, "a " * 100_000), "passages: "),
    }
    client = kind(target)
    outcomes, error = await consume(stream(client, [fox("a"), *(request for request, _ in bad.values()), fox("b")]))
    await close(client)
    assert error is None
    found = {outcome.id: outcome for outcome in outcomes}
    assert len(found) == len(outcomes) == len(bad) + 2
    for id, (_, message) in bad.items():
        assert isinstance(found[id].error, InvalidRequest)
        assert str(found[id].error).startswith(message)
    for id in ("a", "b"):
        assert found[id].answers[0].text == "the lazy dog"


@both
async def test_who_is_refused_is_told_when_to_come_back(kind: Any, bundle: Path) -> None:
    async with held_server(bundle, max_requests=1) as (server, engine):
        client = kind(server.address)
        async with AsyncClient(server.address) as other:
            held = asyncio.create_task(other.answer(QUESTION, PASSAGE))
            await asyncio.to_thread(engine.began.wait)
            ((refused,), error) = await consume(stream(client, [fox("a")]))
            assert isinstance(refused.error, Overloaded)
            assert (refused.error.retry_after_s, error) == (0.1, None)
            engine.release.set()
            answers = await held
        again, _ = await consume(stream(client, [refused.request]))
        assert again == [Outcome(refused.request, answers)]
        await close(client)


@both
async def test_a_server_that_dies_loses_nothing(kind: Any, bundle: Path) -> None:
    """What was taken is answered or lost to Unavailable, each once, and the stream says that more was not taken."""
    taken: list[str] = []

    def requests() -> Iterator[Request]:
        for request in foxes():
            taken.append(request.id)
            yield request

    with serving([*CLI, "serve", str(bundle)]) as (process, address):
        client = kind(address, timeout_s=60)
        outcomes = stream(client, requests(), in_flight=4)
        answered = [await anext(outcomes) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        rest, error = await consume(outcomes)
        await close(client)
    assert all(outcome.answers for outcome in answered)
    assert isinstance(error, Unavailable)
    lost = [outcome.id for outcome in rest if isinstance(outcome.error, Unavailable)]
    assert 1 <= len(lost) <= 4
    assert all(outcome.answers for outcome in rest if outcome.id not in lost)
    assert sorted(outcome.id for outcome in [*answered, *rest]) == sorted(taken)


@both
async def test_a_server_that_stops_loses_nothing(kind: Any, bundle: Path) -> None:
    async with held_server(bundle, stream_requests=2) as (server, engine):
        client = kind(server.address, timeout_s=60)
        requests = [fox(str(number)) for number in range(4)]
        reading = asyncio.create_task(consume(stream(client, requests)))
        await until(lambda: server._permits.requests == 2)
        stopping = asyncio.create_task(server.stop(60))
        await until(server._permits.draining.is_set)
        engine.release.set()
        outcomes, error = await reading
        await close(client)
        await stopping
    assert error is None
    assert [bool(outcome.answers) for outcome in outcomes] == [True, True, False, False]
    assert {outcome.id for outcome in outcomes} == {"0", "1", "2", "3"}
    for outcome in outcomes[2:]:
        assert isinstance(outcome.error, Unavailable)
        assert str(outcome.error).startswith("the server is stopping")


@both
async def test_requests_are_not_read_far_ahead(kind: Any, bundle: Path) -> None:
    """Of an endless iterable, with a server that is slow and then a consumer that is."""
    numbers = itertools.count()
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        for number in numbers:
            taken += 1
            yield fox(str(number))

    async with held_server(bundle) as (server, engine):
        client = kind(server.address, timeout_s=60)
        async with aclosing(stream(client, requests(), in_flight=3)) as outcomes:
            first = asyncio.create_task(anext(outcomes))
            await until(lambda: server._permits.requests == 3)
            await asyncio.sleep(0.2)  # in which more would have come
            assert taken == 3
            engine.release.set()
            await first
            for done in range(2, 30):
                assert (await anext(outcomes)).answers
                assert taken <= done + 3
            await until(lambda: taken == 32)
            await asyncio.sleep(0.2)
            assert taken == 32
        await close(client)


@both
async def test_who_leaves_early_ends_the_stream(kind: Any, bundle: Path) -> None:
    async with held_server(bundle) as (server, engine):
        client = kind(server.address, timeout_s=60)
        outcomes = stream(client, itertools.chain([Request("bad", QUESTION, PASSAGE, top_k=0)], foxes()), in_flight=3)
        assert (await anext(outcomes)).id == "bad"
        await until(lambda: server._permits.requests == 3)
        await outcomes.aclose()
        await until(lambda: not server._permits.streams)
        assert server._permits.requests == 0
        engine.release.set()
        assert [outcome.answers[0].text async for outcome in stream(client, [fox("a")])] == ["the lazy dog"]
        await close(client)


@both
async def test_a_client_that_is_closed_meanwhile(kind: Any, bundle: Path) -> None:
    async with held_server(bundle) as (server, _):
        client = kind(server.address, timeout_s=60)
        reading = asyncio.create_task(consume(stream(client, foxes(), in_flight=3)))
        await until(lambda: server._permits.requests == 3)
        await close(client)
        outcomes, error = await reading
        await until(lambda: not server._permits.streams)
    assert isinstance(error, Unavailable)
    assert str(error) == "the client was closed during the call"
    assert [(outcome.id, outcome.error) for outcome in outcomes] == [(str(number), error) for number in range(3)]


async def test_requests_that_come_one_after_the_other(target: str) -> None:
    """Each as the answer to the one before: an answer does not wait for the next request."""
    queue: asyncio.Queue[Request | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[Request]:
        while (request := await queue.get()) is not None:
            yield request

    queue.put_nowait(fox("0"))
    seen: list[str] = []
    async with AsyncClient(target) as client:
        async for outcome in client.answer_stream(requests()):
            seen.append(outcome.id)
            queue.put_nowait(fox(str(len(seen))) if len(seen) < 5 else None)
    assert seen == ["0", "1", "2", "3", "4"]


def test_a_deadline_does_not_wait_for_the_iterator(target: str) -> None:
    held, ended = threading.Event(), list[bool]()

    def requests() -> Iterator[Request]:
        yield fox("a")
        ended.append(held.wait(60))

    with Client(target) as client:
        outcomes = client.answer_stream(requests(), timeout_s=1)
        assert next(outcomes).answers
        with pytest.raises(DeadlineExceeded, match=r"no end of the stream within 1 s"):
            next(outcomes)
    assert ended == []
    held.set()


@both
async def test_a_server_that_hangs_is_found_out(kind: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, so that its machine takes what is sent, but nobody replies."""
    hasty = {"grpc.keepalive_time_ms": 500, "grpc.http2.ping_timeout_ms": 1000}
    monkeypatch.setattr(module, "_OPTIONS", [(name, hasty.get(name, value)) for name, value in module._OPTIONS])
    with serving([*CLI, "serve", str(bundle)]) as (process, address):
        client = kind(address)
        seen = []
        async for outcome in stream(client, foxes(), timeout_s=60, in_flight=1):
            seen.append(outcome)
            if len(seen) == 1:
                process.send_signal(signal.SIGSTOP)
            if outcome.error:
                break
        assert isinstance(seen[-1].error, Unavailable)
        assert "ping timeout" in str(seen[-1].error)
        process.send_signal(signal.SIGCONT)
        await close(client)


def connections(server: SingleProcess) -> int:
    """How many TCP connections to a server of this machine are established, as Linux lists them."""
    port = int(server.address.rpartition(":")[2])
    tables = [path.read_text() for path in Path("/proc/self/net").glob("tcp*")]  # gRPC may take IPv6 for IPv4's
    return sum(len(re.findall(rf"^ *\d+: \S+ [0-9A-F]+:{port:04X} 01 ", table, re.MULTILINE)) for table in tables)


@both
@pytest.mark.parametrize("count", [1, 3])
async def test_connections(kind: Any, bundle: Path, count: int) -> None:
    async with held_server(bundle) as (server, engine):
        engine.release.set()
        client = kind(server.address, connections=count)
        for number in range(1, 7):
            await called(client, client.answer, QUESTION, PASSAGE)
            assert connections(server) == min(number, count)
        await close(client)


def test_request_ids(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distilqa.server.statuses")

    async def ask() -> None:
        async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
            engine.release.set()
            await client.answer(QUESTION, PASSAGE, request_id="one!")
            assert len([outcome async for outcome in client.answer_stream([fox("a")], request_id="two!")]) == 1
            with Client(server.address) as other:
                await asyncio.to_thread(other.answer, QUESTION, PASSAGE, request_id="three!")
                await asyncio.to_thread(lambda: list(other.answer_stream([fox("a")], request_id="four!")))

    asyncio.run(ask())
    logged = [(record.message, record.__dict__["fields"]["request_id"]) for record in caplog.records]
    for id, names in (
        ("one!", {"Answer"}),
        ("two!", {"GetModel", "AnswerStream", "AnswerStream request"}),
        ("three!", {"Answer"}),
        ("four!", {"GetModel", "AnswerStream", "AnswerStream request"}),
    ):
        assert {name for name, found in logged if found == id} == names


@both
@pytest.mark.parametrize(
    ("names", "served"),
    [
        ({"model_name": MODEL}, True),
        ({"model_name": MODEL, "model_version": "1"}, True),
        ({"model_version": "1"}, True),
        ({"model_name": "bert"}, False),
        ({"model_name": MODEL, "model_version": "2"}, False),
    ],
)
async def test_the_model_that_is_wanted(kind: Any, target: str, names: dict[str, str], served: bool) -> None:
    client = kind(target, **names)
    if served:
        assert (await called(client, client.answer, QUESTION, PASSAGE))[0].text == "the lazy dog"
        assert (await called(client, client.model)).name == MODEL
    else:
        with pytest.raises(ModelNotFound, match="is not served here"):
            await called(client, client.answer, QUESTION, PASSAGE)
        with pytest.raises(ModelNotFound, match="is not served here"):
            await called(client, client.model)
    outcomes, error = await consume(stream(client, [fox("a")]))
    assert [outcome.id for outcome in outcomes] == ["a"] * served
    assert isinstance(error, ModelNotFound) is not served
    await close(client)
