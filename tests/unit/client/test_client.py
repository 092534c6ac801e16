"""What the clients do without a server of ours: what they refuse, send, and make of what foreign servers reply."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from queue import SimpleQueue
from types import MappingProxyType, SimpleNamespace
from typing import Any, Self

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from distilqa.client import streams
from distilqa.client.call import OutgoingCall
from distilqa.client.client import _OPTIONS, _RETRIES, AsyncClient, Client, Outcome, Request
from distilqa.client.messages import read_answers, read_model, to_message
from distilqa.errors import (
    DeadlineExceeded,
    DistilqaError,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from distilqa_protos.v1 import question_answering_pb2 as pb


def asked(question: str = "Who?", passages: Any = "A fox.", **options: Any) -> pb.AnswerRequest:
    return to_message(Request("", question, passages, **options))


@pytest.mark.parametrize(
    ("question", "passages", "field"),
    [
        (None, "A fox.", "question"),
        (b"Who?", "A fox.", "question"),
        ("Who?", None, "passages"),
        ("Who?", 3, "passages"),
        ("Who?", b"A fox.", "passages"),
        ("Who?", bytearray(b"A fox."), "passages"),
        ("Who?", {"title": "A fox."}, "passages"),
        ("Who?", {"title": "A fox."}.keys(), "passages"),
        ("Who?", {"A fox.", "A dog."}, "passages"),
        ("Who?", frozenset({"A fox."}), "passages"),
        ("Who?", [None], "passages[0]"),
        ("Who?", ["A fox.", b"A fox."], "passages[1]"),
    ],
)
def test_what_is_no_text(question: Any, passages: Any, field: str) -> None:
    async def ask() -> None:
        async with AsyncClient("localhost:0") as client:
            await client.answer(question, passages)

    with Client("localhost:0") as client, pytest.raises(InvalidRequest, match="must be a string") as caught:
        client.answer(question, passages)
    assert caught.value.field == field
    with pytest.raises(InvalidRequest, match="must be a string") as caught:
        asyncio.run(ask())
    assert caught.value.field == field


def test_passages_may_be_any_several() -> None:
    for passages in (["a", "b"], ("a", "b"), iter(["a", "b"])):
        request = asked(passages=passages)
        assert [passage.text for passage in request.passages] == ["a", "b"]


FOX: dict[str, Any] = {"text": "fox", "start": 2, "end": 5, "score": 0.5}


@pytest.mark.parametrize(
    ("answer", "sound"),
    [
        (FOX, True),
        (FOX | {"text": "dog", "passage": 1}, True),
        (FOX | {"score": 1.0}, True),
        (FOX | {"passage": 1}, False),
        (FOX | {"passage": 2}, False),
        (FOX | {"passage": 2**32 - 1}, False),
        (FOX | {"text": "wolf"}, False),
        (FOX | {"start": 5, "end": 2}, False),
        (FOX | {"end": 4_000_000_000}, False),
        (FOX | {"text": "", "end": 2}, False),
        (FOX | {"score": float("nan")}, False),
        (FOX | {"score": float("inf")}, False),
        (FOX | {"score": -0.1}, False),
        ({"no_answer": True, "score": 0.5}, False),
    ],
)
def test_an_answer_that_is_none_to_the_request(answer: dict[str, Any], sound: bool) -> None:
    request = asked(passages=["A fox.", "A dog."])
    response = pb.AnswerResponse(answers=[pb.Answer(**answer)])
    if sound:
        assert read_answers(response, request)[0].text == answer["text"]
    else:
        with pytest.raises(InferenceFailed, match="the reply has an answer that is not in what was sent: passage "):
            read_answers(response, request)


def test_no_answer_where_it_was_allowed() -> None:
    request = asked(allow_no_answer=True)
    assert read_answers(pb.AnswerResponse(answers=[pb.Answer(no_answer=True, score=0.5)]), request)[0].passage is None
    with pytest.raises(InferenceFailed, match="not in what was sent"):
        read_answers(pb.AnswerResponse(answers=[pb.Answer(**FOX | {"no_answer": True})]), request)


@pytest.mark.parametrize("count", [0, 3])
def test_more_answers_than_were_asked_for_or_none(count: int) -> None:
    request = asked(top_k=2)
    with pytest.raises(InferenceFailed, match=f"the reply has {count} answers, 1 to 2 were asked for"):
        read_answers(pb.AnswerResponse(answers=[pb.Answer(**FOX)] * count), request)


class Raw(grpc.GenericRpcHandler):
    """A foreign server: replies with those bytes, whatever is asked, or ends the call with that status."""

    def __init__(self, reply: bytes, code: grpc.StatusCode | None, details: str, pushback: str | None) -> None:
        self.reply, self.code, self.details, self.pushback = reply, code, details, pushback

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if self.pushback is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", self.pushback),))
            if self.code is not None:
                context.abort(self.code, self.details)
            return self.reply

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def foreign(
    reply: bytes = b"", code: grpc.StatusCode | None = None, details: str = "", pushback: str | None = None
) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Raw(reply, code, details, pushback),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def ask_both(target: str) -> list[DistilqaError]:
    """What both clients raise there, `answer` first and then `model`."""
    raised: list[DistilqaError] = []

    async def ask() -> None:
        async with AsyncClient(target) as client:
            for call in (client.answer("Who?", "A fox."), client.model()):
                with pytest.raises(DistilqaError) as caught:
                    await call
                raised.append(caught.value)

    with Client(target) as client:
        for call in (lambda: client.answer("Who?", "A fox."), client.model):
            with pytest.raises(DistilqaError) as caught:
                call()
            raised.append(caught.value)
    asyncio.run(ask())
    return raised


@pytest.mark.parametrize("reply", [b"\xff\xff\xff", b"\n\x05\n\x03\xff\xff\xff"])
def test_replies_that_are_no_message(reply: bytes) -> None:
    with foreign(reply) as target:
        assert {type(error) for error in ask_both(target)} == {InferenceFailed}


def test_no_reply_at_all() -> None:
    """What gRPC gives where a call ends well without a message, or grpc.aio where it cannot be parsed."""
    with pytest.raises(InferenceFailed, match="is not a message"):
        read_answers(None, asked())
    with pytest.raises(InferenceFailed, match="is not a message"):
        read_model(None)


async def test_a_status_that_nobody_knows() -> None:
    async def fail(*_: object, **__: object) -> None:
        raise KeyError(99)  # as grpc.aio does

    async with AsyncClient("localhost:1") as client:
        client._stub = lambda: SimpleNamespace(Answer=fail, GetModel=fail)  # type: ignore[method-assign, assignment, return-value]
        for call in (client.answer("Who?", "A fox."), client.model()):
            with pytest.raises(DistilqaError, match="unknown status 99"):
                await call


@pytest.mark.parametrize(
    ("pushback", "seconds"),
    [
        ("1500", 1.5),
        ("0", 0.0),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("1.5", None),
        ("9" * 30, None),
        (None, None),
    ],
)
def test_advice_on_when_to_try_again(pushback: str | None, seconds: float | None) -> None:
    with foreign(code=grpc.StatusCode.RESOURCE_EXHAUSTED, details="busy", pushback=pushback) as target:
        for error in ask_both(target):
            assert isinstance(error, Overloaded)
            assert (str(error), error.retry_after_s) == ("busy", seconds)


@pytest.mark.parametrize(
    ("details", "told"), [("", "request: is refused"), ("no", "request: no"), ("top_k: is 0", "top_k: is 0")]
)
def test_what_a_foreign_server_refuses(details: str, told: str) -> None:
    with foreign(code=grpc.StatusCode.INVALID_ARGUMENT, details=details) as target:
        for error in ask_both(target):
            assert isinstance(error, InvalidRequest)
            assert str(error) == told


@pytest.mark.parametrize(
    ("field", "bad"), [("target", None), ("target", 50051), ("root_certificates", "a\0b"), ("root_certificates", 3.5)]
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_what_cannot_be_connected_by(client: Any, field: str, bad: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client(**{"target": "localhost:0", field: bad})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "target",
    [
        "",
        "localhost",
        "localhost:",
        ":50051",
        "127.0.0.1",
        "[::1]",
        "::1",
        "::1:50051",
        "localhost:http",
        "localhost:65536",
        "localhost:50051/",
        "http://localhost:50051",
        "https://localhost:50051",
        "grpc://localhost:50051",
        " localhost:50051",
        "localhost:50051\n",
    ],
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_target_without_host_or_port(client: Any, target: str) -> None:
    """Of these gRPC would take some for port 443, and fail in its own words at others when asked."""
    with pytest.raises(InvalidRequest) as caught:
        client(target)
    assert str(caught.value) == f'target: is {target!r}, must be "host:port", "localhost:50051" say'


@pytest.mark.parametrize("target", ["dns:", "dns:///", "dns://192.0.2.1", "unix:", "unix://", "ipv4:", "xds:///"])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_target_that_names_no_server(client: Any, target: str) -> None:
    with pytest.raises(InvalidRequest, match=r"target: is .*, which names no server"):
        client(target)


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "qa_server.example.com:443",
        "127.0.0.1:0",
        "[::1]:50051",
        "dns:///localhost:50051",
        "unix:/tmp/socket",
        "unix-abstract:name",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:50051",
        "xds:///service",
    ],
)
def test_targets(target: str) -> None:
    with Client(target):
        pass


@pytest.mark.parametrize(
    ("options", "hinted"),
    [({}, "server there[?] .* does not use TLS: does the"), ({"tls": True}, "server there[?] .* uses TLS: does")],
)
async def test_where_nobody_is_tls_may_be_the_cause(options: dict[str, bool], hinted: str) -> None:
    """Of several addresses gRPC names the last alone, and where a server is not at that one, hides what it said."""
    target = "ipv4:127.0.0.1:1,127.0.0.2:1"
    with Client(target, **options) as client, pytest.raises(Unavailable, match=hinted):  # type: ignore[arg-type]
        client.model()
    async with AsyncClient(target, **options) as other:  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match=hinted):
            await other.model()


def test_a_client_of_asyncio_needs_an_event_loop() -> None:
    with pytest.raises(InvalidRequest, match="client: is of asyncio, and no event loop is running here"):
        AsyncClient("localhost:1").answer_stream(items("a"))


def test_a_client_of_asyncio_has_one_event_loop() -> None:
    """That of its first call; it may be made before there is any."""
    with scripted(echo) as server:
        client = AsyncClient(server.address)

        async def ask() -> str:
            return (await client.answer("Who?", "A fox."))[0].text

        async def ask_in_a_stream() -> None:
            async for _ in client.answer_stream(items("a")):
                pass

        with asyncio.Runner() as runner:
            assert runner.run(ask()) == "fox"
            for another in (ask, ask_in_a_stream):
                with pytest.raises(InvalidRequest, match="client: belongs to the event loop of its first call"):
                    asyncio.run(another())
            assert runner.run(ask()) == "fox"
            runner.run(client.close())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("name", ["http_proxy", "grpc_proxy", None])
def test_a_proxy_may_be_in_the_way(kind: Any, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if name:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    _, error = stream(kind, "localhost:1", items("a"))
    assert isinstance(error, Unavailable)
    assert (f"{name} is set" in str(error)) == bool(name)


@pytest.mark.parametrize("field", ["allow_no_answer", "align_to_words"])
@pytest.mark.parametrize("bad", ["no", "false", None, 1])
def test_what_is_no_flag(field: str, bad: Any) -> None:
    """ "no" would be taken for yes."""
    with pytest.raises(InvalidRequest, match=f"^{field}: is {bad!r}, must be True or False$"):
        asked(**{field: bad})


def test_doc_stride_below_any() -> None:
    """What a message can carry is not the limit, which depends on the question."""
    with pytest.raises(InvalidRequest, match=r"^doc_stride: is -1, must be 0 or more$"):
        asked(doc_stride=-1)


def test_model_has_every_limit() -> None:
    fields = pb.Limits.DESCRIPTOR.fields_by_name
    limits = {name: number for number, name in enumerate(fields, start=1)}
    model = asdict(read_model(pb.GetModelResponse(limits=pb.Limits(**limits))))
    for name, number in limits.items():
        assert model[name if name == "window_tokens" else f"max_{name}"] == number


class Foreign(grpc.GenericRpcHandler):
    """A foreign server whose streams are scripted: notes what each stream read, and the metadata of each call."""

    def __init__(self, script: Callable[[Iterator[pb.AnswerStreamRequest], Any], Any], limit: int) -> None:
        self.script, self.limit = script, limit
        self.read: list[list[pb.AnswerStreamRequest]] = []
        self.models: list[pb.GetModelRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.address = ""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        self.metadata.append({key: str(value) for key, value in details.invocation_metadata})
        if details.method.endswith("GetModel"):
            return grpc.unary_unary_rpc_method_handler(self.get_model, pb.GetModelRequest.FromString)
        if details.method.endswith("AnswerStream"):
            return grpc.stream_stream_rpc_method_handler(self.answer_stream, pb.AnswerStreamRequest.FromString)
        return grpc.unary_unary_rpc_method_handler(self.answer, pb.AnswerRequest.FromString)

    def get_model(self, request: pb.GetModelRequest, _: grpc.ServicerContext) -> bytes:
        self.models.append(request)
        return pb.GetModelResponse(limits=pb.Limits(request_bytes=self.limit)).SerializeToString()

    def answer(self, request: pb.AnswerRequest, context: grpc.ServicerContext) -> bytes:
        (reply,) = self.script(iter([pb.AnswerStreamRequest(request=request)]), context)
        return bytes(reply.response.SerializeToString())

    def answer_stream(
        self, requests: Iterator[pb.AnswerStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        read: list[pb.AnswerStreamRequest] = []
        self.read.append(read)

        def noted() -> Iterator[pb.AnswerStreamRequest]:
            for request in requests:
                read.append(request)
                yield request

        for reply in self.script(noted(), context):
            yield reply if isinstance(reply, bytes) else reply.SerializeToString()


@contextmanager
def scripted(
    script: Callable[[Iterator[pb.AnswerStreamRequest], Any], Any], *, limit: int = 10_000
) -> Iterator[Foreign]:
    foreign = Foreign(script, limit)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((foreign,))
    foreign.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield foreign
    server.stop(None).wait()


def fox(request: pb.AnswerStreamRequest) -> pb.AnswerStreamResponse:
    """The right reply."""
    return pb.AnswerStreamResponse(id=request.id, response=pb.AnswerResponse(answers=[pb.Answer(**FOX)]))


def echo(requests: Iterator[pb.AnswerStreamRequest], _: object) -> Iterator[pb.AnswerStreamResponse]:
    return map(fox, requests)


def wait(_: object, context: Any) -> Iterator[pb.AnswerStreamResponse]:
    """Reply nothing, until the call is over."""
    over = threading.Event()
    if context.add_callback(over.set):
        over.wait(60)
    return iter(())


def items(*ids: str) -> list[Request]:
    return [Request(id, "Who?", "A fox.") for id in ids]


def stream(
    kind: Any, target: str, requests: Any, client_options: Mapping[str, Any] = MappingProxyType({}), **options: Any
) -> tuple[list[Outcome], Any]:
    """What a stream yields, and what it raises."""
    outcomes: list[Outcome] = []

    async def consume() -> None:
        async with AsyncClient(target, **client_options) as client:
            async for outcome in client.answer_stream(requests, **options):
                outcomes.append(outcome)

    try:
        if kind is AsyncClient:
            asyncio.run(consume())
        else:
            with Client(target, **client_options) as client:
                outcomes.extend(client.answer_stream(requests, **options))
    except BaseException as error:
        return outcomes, error
    return outcomes, None


def told(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """By id what each brought, answers and errors as text."""
    found = [(outcome.id, str(outcome.error or [answer.text for answer in outcome.answers])) for outcome in outcomes]
    assert len(dict(found)) == len(found), found
    return dict(found)


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


class Slow(SimpleQueue[Any]):
    """A thread that has something for it may be held up just then."""

    def put(self, event: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(event, Outcome):
            time.sleep(0.2)
        super().put(event, block, timeout)


def test_what_is_taken_as_the_stream_breaks_has_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what cannot be sent, which another thread tells of."""
    monkeypatch.setattr(streams, "SimpleQueue", Slow)
    broken = threading.Event()

    def requests() -> Iterator[Request]:
        yield from items("good")
        assert broken.wait(60)
        time.sleep(0.05)  # until the client knows
        yield Request("too large", "Who?", "A fox." * 10_000)

    def end(asked: Iterator[pb.AnswerStreamRequest], context: grpc.ServicerContext) -> Any:
        next(asked)
        broken.set()
        context.abort(grpc.StatusCode.INTERNAL, "broken")

    with scripted(end) as server:
        outcomes, error = stream(Client, server.address, requests())
    assert told(outcomes).keys() == {"good", "too large"}
    assert isinstance(error, InferenceFailed)


@both
def test_a_stream(kind: Any) -> None:
    with scripted(echo) as foreign:
        outcomes, error = stream(kind, foreign.address, items("a", "b", "c"))
    assert (told(outcomes), error) == (dict.fromkeys("abc", "['fox']"), None)
    assert [outcome.request for outcome in outcomes] == items("a", "b", "c")


@both
def test_a_stream_of_nothing(kind: Any) -> None:
    with scripted(echo) as foreign:
        assert stream(kind, foreign.address, []) == ([], None)


@both
def test_ids_need_not_differ_nor_fit(kind: Any) -> None:
    ids = ["same", "same", "", "x" * 1000, "\ud800"]
    with scripted(echo) as foreign:
        outcomes, _ = stream(kind, foreign.address, items(*ids))
        assert [outcome.id for outcome in outcomes] == ids
        assert len({request.id for request in foreign.read[0]}) == len(ids)


@both
def test_what_cannot_be_sent_is_an_outcome(kind: Any) -> None:
    """And ends nothing: the server sees the others alone. Also more of them than may be in flight."""
    bad: Any = [Request("text", None, "A fox."), Request("k", "Who?", "A fox.", top_k=0)]  # type: ignore[arg-type]
    bad += [Request("large", "Who?", "x" * 100), Request("surrogate", "Who?", ["\ud800"])]
    with scripted(echo, limit=100) as foreign:
        outcomes, error = stream(kind, foreign.address, [*items("a"), *bad, *items("b")], in_flight=2)
        assert [request.request.question for request in foreign.read[0]] == ["Who?"] * 2
    assert error is None
    assert told(outcomes) == {
        "a": "['fox']",
        "text": "question: is a NoneType, must be a string",
        "k": "top_k: is 0, must be 1 to 100",
        "large": "request: has 114 bytes, the limit is 100",
        "surrogate": "passages[0]: is not valid Unicode at character 0",
        "b": "['fox']",
    }
    assert all(isinstance(outcome.error, InvalidRequest) for outcome in outcomes if outcome.id not in "ab")


def status(code: int, message: str, *details: any_pb2.Any) -> dict[str, Any]:
    return {"status": status_pb2.Status(code=code, message=message, details=details)}


def retry(seconds: float) -> any_pb2.Any:
    detail, delay = any_pb2.Any(), duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return detail


BROKEN = any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
OTHER = any_pb2.Any(type_url="type.googleapis.com/google.rpc.Help")


@both
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (status(8, "busy", OTHER, retry(1.5)), Overloaded("busy", 1.5)),
        (status(8, "busy", retry(-1)), Overloaded("busy", 0.0)),
        (status(8, "busy", BROKEN), Overloaded("busy")),
        (status(8, "busy"), Overloaded("busy")),
        (status(3, "question: is empty"), InvalidRequest("question", "is empty")),
        (status(5, "no"), ModelNotFound("no")),
        (status(4, "late"), DeadlineExceeded("no end of the stream within 30 s (timeout_s of the client): late")),
        (status(99, "?"), DistilqaError("the server ended the call with the unknown status 99")),
        (status(0, ""), DistilqaError("OK: ")),
        ({}, InferenceFailed("the reply has 0 answers, 1 to 1 were asked for")),
        (
            {"response": pb.AnswerResponse(answers=[pb.Answer(**FOX | {"end": 4})])},
            InferenceFailed("the reply has an answer that is not in what was sent: passage 0, 2 to 4, score 0.5"),
        ),
    ],
)
def test_a_request_that_fails_fails_alone(kind: Any, reply: dict[str, Any], error: DistilqaError) -> None:
    def script(requests: Iterator[pb.AnswerStreamRequest], _: object) -> Iterator[pb.AnswerStreamResponse]:
        yield pb.AnswerStreamResponse(id=next(requests).id, **reply)
        yield from map(fox, requests)

    with scripted(script) as foreign:
        outcomes, raised = stream(kind, foreign.address, items("a", "b"))
    assert raised is None
    assert told(outcomes) == {"a": str(error), "b": "['fox']"}
    found = outcomes[0].error
    assert type(found) is type(error)
    assert getattr(found, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def breaking(
    end: Callable[[pb.AnswerStreamRequest, Any], Iterable[pb.AnswerStreamResponse | bytes]], *, reads: int | None = 3
) -> Callable[[Iterator[pb.AnswerStreamRequest], Any], Iterator[pb.AnswerStreamResponse | bytes]]:
    """Replies to the first request, reads some more or all, and then ends."""

    def script(requests: Iterator[pb.AnswerStreamRequest], context: Any) -> Iterator[pb.AnswerStreamResponse | bytes]:
        yield fox(first := next(requests))
        for _ in itertools.islice(requests, reads):
            pass
        yield from end(first, context)

    return script


def abort(_: object, context: Any) -> Iterator[pb.AnswerStreamResponse]:
    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
    yield from ()


ENDS: list[tuple[Any, str]] = [
    (abort, "gone"),
    (lambda *_: (), "the server ended the stream without a reply"),
    (lambda first, _: [fox(first)], "the reply is to a request '0', and none of that id waits for one"),
    (
        lambda *_: [pb.AnswerStreamResponse(id="x" * 99)],
        f"the reply is to a request '{'x' * 40}', and none of that id waits for one",
    ),
    (lambda *_: [b"\xff"], "eserializing|not a message"),
]


def lost(outcomes: list[Outcome], why: str) -> list[str]:
    """The ids, if those after the first have all this error."""
    assert outcomes[0].answers
    for outcome in outcomes[1:]:
        assert isinstance(outcome.error, Unavailable | InferenceFailed)
        assert re.search(why, str(outcome.error))
    return [outcome.id for outcome in outcomes]


@both
@pytest.mark.parametrize(("end", "why"), ENDS)
def test_a_stream_that_breaks_loses_nothing(kind: Any, end: Any, why: str) -> None:
    with scripted(breaking(end, reads=None)) as foreign:
        outcomes, error = stream(kind, foreign.address, items(*"abcd"))
    assert lost(outcomes, why) == list("abcd")
    assert error is None


@both
def test_a_message_that_cannot_be_sent_does_not_hide_why(kind: Any) -> None:
    """What gRPC says by asyncio of a message that meets the end of its stream replaces what the server had said."""

    def refuse(_: object, context: Any) -> Iterator[pb.AnswerStreamResponse]:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        yield from ()

    with scripted(refuse) as foreign:
        for _ in range(20):
            outcomes, _ = stream(kind, foreign.address, items(*map(str, range(100))))
            assert {(type(outcome.error), str(outcome.error)) for outcome in outcomes} == {(Overloaded, "full")}


@both
@pytest.mark.parametrize(("end", "why"), ENDS)
def test_a_stream_that_breaks_before_all_was_taken(kind: Any, end: Any, why: str) -> None:
    """What was taken has its outcomes, and then it is said that more was not."""
    numbers = itertools.count()
    requests = (Request(str(number), "Who?", "A fox.") for number in numbers)
    with scripted(breaking(end)) as foreign:
        outcomes, error = stream(kind, foreign.address, requests, in_flight=4)
    assert lost(outcomes, why) == [str(number) for number in range(next(numbers))]
    assert error is outcomes[-1].error


@both
def test_a_stream_that_nothing_was_replied_to_is_tried_again(kind: Any) -> None:
    """By gRPC, from its start: each request is sent twice then, and answered once."""
    attempts = itertools.count()

    def script(requests: Iterator[pb.AnswerStreamRequest], context: Any) -> Iterator[pb.AnswerStreamResponse]:
        if next(attempts) == 0:
            next(requests)
            next(requests)
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield from map(fox, requests)

    with scripted(script) as foreign:
        outcomes, error = stream(kind, foreign.address, items(*"abcd"), in_flight=2)
        first, second = foreign.read
    assert (told(outcomes), error) == (dict.fromkeys("abcd", "['fox']"), None)
    assert [request.id for request in first] == ["0", "1"]
    assert [request.id for request in second] == ["0", "1", "2", "3"]


class OwnError(Exception):
    pass


@both
@pytest.mark.parametrize("error", [OwnError("mine"), asyncio.CancelledError(), KeyError("mine"), SystemExit(3)])
def test_what_the_requests_raise_is_raised(kind: Any, error: BaseException) -> None:
    """Itself, and after the outcomes of what came before."""

    def failing() -> Iterator[Request]:
        yield from items("a", "b")
        raise error

    with scripted(echo) as foreign:
        outcomes, raised = stream(kind, foreign.address, failing())
    assert told(outcomes) == dict.fromkeys("ab", "['fox']")
    assert raised is error or (kind is AsyncClient and type(raised) is type(error))


@both
def test_what_is_no_request(kind: Any) -> None:
    with scripted(echo) as foreign:
        outcomes, error = stream(kind, foreign.address, [*items("a"), "b"])
        assert told(outcomes) == {"a": "['fox']"}
        assert isinstance(error, InvalidRequest)
        assert str(error) == "requests: hold a str, must be of distilqa.Request"


@both
@pytest.mark.parametrize(
    ("requests", "options", "field"),
    [
        (None, {}, "requests"),
        (items("a"), {"in_flight": 0}, "in_flight"),
        (items("a"), {"in_flight": 1.5}, "in_flight"),
        (items("a"), {"timeout_s": 0}, "timeout_s"),
        (items("a"), {"request_id": ""}, "request_id"),
    ],
)
def test_what_no_stream_can_be_of(kind: Any, requests: Any, options: dict[str, Any], field: str) -> None:
    outcomes, error = stream(kind, "127.0.0.1:1", requests, **options)
    assert outcomes == []
    assert isinstance(error, InvalidRequest)
    assert error.field == field


def abort_after(event: threading.Event) -> Any:
    def end(_: object, context: Any) -> Iterator[pb.AnswerStreamResponse]:
        assert event.wait(60)
        return abort(_, context)

    return breaking(end)


def test_what_is_about_to_come_when_a_stream_breaks_is_not_lost() -> None:
    """The consumer is told of the end at once, and gets back what its requests give then."""
    waiting, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[Request]:
        yield from items(*"abcd")
        waiting.set()
        assert go_on.wait(60)
        yield from items("late", "never")

    with scripted(abort_after(waiting)) as foreign, Client(foreign.address) as client:
        outcomes = client.answer_stream(slow())
        assert [next(outcomes).id for _ in range(4)] == ["a", "b", "c", "d"]
        go_on.set()
        late = next(outcomes)
        assert (late.id, str(late.error)) == ("late", "gone")
        with pytest.raises(Unavailable, match=r"^gone$"):
            next(outcomes)


async def test_asyncio_does_not_wait_for_requests_when_a_stream_breaks() -> None:
    waiting, cancelled = threading.Event(), False

    async def slow() -> AsyncIterator[Request]:
        nonlocal cancelled
        for request in items(*"abcd"):
            yield request
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with scripted(abort_after(waiting)) as foreign:
        async with AsyncClient(foreign.address) as client:
            outcomes = client.answer_stream(slow())
            assert [(await anext(outcomes)).id for _ in range(4)] == ["a", "b", "c", "d"]
            with pytest.raises(Unavailable, match=r"^gone$"):
                await anext(outcomes)
    assert cancelled


def swallow(requests: Iterator[pb.AnswerStreamRequest], context: Any) -> Iterator[pb.AnswerStreamResponse]:
    """Read all, and reply nothing."""
    for _ in requests:
        pass
    return wait(requests, context)


BAD = Request("bad", "Who?", "A fox.", top_k=0)


class Endless:
    """Requests without end, of which the first is bad; counts those taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Request:
        self.taken += 1
        return BAD if self.taken == 1 else Request(str(self.taken), "Who?", "A fox.")


@pytest.mark.parametrize("script", [echo, swallow])
def test_who_leaves_early_leaves_no_thread(script: Any) -> None:
    with scripted(script) as foreign, Client(foreign.address) as client:
        before = set(threading.enumerate())
        requests = Endless()
        for outcome in client.answer_stream(requests, in_flight=3):
            assert outcome.id == "bad" or script is echo
            while requests.taken < 4:  # until it has to wait for room
                time.sleep(0.001)
            break
        for thread in set(threading.enumerate()) - before:
            if not thread.name.startswith("ThreadPoolExecutor"):  # the server's
                thread.join(20)
                assert not thread.is_alive()


@pytest.mark.parametrize("script", [echo, swallow])
async def test_who_leaves_early_leaves_no_task(script: Any) -> None:
    with scripted(script) as foreign:
        async with AsyncClient(foreign.address) as client:
            requests = Endless()
            async with aclosing(client.answer_stream(requests, in_flight=3)) as outcomes:
                async for outcome in outcomes:
                    assert outcome.id == "bad" or script is echo
                    while requests.taken < 4:
                        await asyncio.sleep(0.001)
                    break
            assert client._streams == set()
            names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
            assert not [name for name in names if name.startswith("AsyncStream")]


@both
@pytest.mark.parametrize(
    ("client_options", "options", "source"),
    [({}, {"timeout_s": 0.3}, "timeout_s"), ({"timeout_s": 0.3}, {}, "timeout_s of the client")],
)
def test_a_deadline_says_whose_it_was(
    kind: Any, client_options: dict[str, float], options: dict[str, float], source: str
) -> None:
    async def ask() -> None:
        async with AsyncClient(silent.address, **client_options) as client:  # type: ignore[arg-type]
            await client.answer("Who?", "A fox.", **options)  # type: ignore[arg-type]

    def ask_plainly() -> None:
        with Client(silent.address, **client_options) as client:  # type: ignore[arg-type]
            client.answer("Who?", "A fox.", **options)  # type: ignore[arg-type]

    with scripted(wait) as silent:
        outcomes, error = stream(kind, silent.address, items("a"), client_options, **options)
        assert error is None
        assert isinstance(outcomes[0].error, DeadlineExceeded)
        assert str(outcomes[0].error) == f"no end of the stream within 0.3 s ({source})"
        with pytest.raises(DeadlineExceeded) as caught:
            asyncio.run(ask()) if kind is AsyncClient else ask_plainly()
        assert str(caught.value) == f"no answer within 0.3 s ({source})"


def test_what_is_left_of_the_time() -> None:
    """All that a call does, has one deadline."""

    def left(seconds: float) -> Any:
        return OutgoingCall(None, (), 30, "", False, bool, time.monotonic() - seconds).options["timeout"]

    assert 0 < left(20) <= 10
    assert left(31) == 0


def test_a_deadline_that_the_server_explains() -> None:
    with foreign(code=grpc.StatusCode.DEADLINE_EXCEEDED, details="too much to do") as target:
        for error in ask_both(target):
            assert isinstance(error, DeadlineExceeded)
            assert str(error) == "no answer within 30 s (timeout_s of the client): too much to do"


def one_alone(requests: Iterator[pb.AnswerStreamRequest], context: Any) -> Iterator[pb.AnswerStreamResponse]:
    """Reply to the first when all are read, and no more until the call is over."""
    first, *_ = requests
    yield fox(first)
    yield from wait(requests, context)


def test_a_client_that_is_closed_during_calls() -> None:
    with scripted(one_alone) as foreign:
        client = Client(foreign.address)
        outcomes = client.answer_stream(items("a", "b", "c"))
        lazy = client.answer_stream(items("a"))
        assert next(outcomes).answers
        client.close()
        assert told(outcomes) == dict.fromkeys("bc", "the client was closed during the call")
        with pytest.raises(Unavailable, match=r"^the client is closed$"):
            next(lazy)
        with pytest.raises(Unavailable, match=r"^the client is closed$"):
            client.answer_stream([])


async def test_a_client_of_asyncio_that_is_closed_during_calls() -> None:
    with scripted(one_alone) as foreign:
        client = AsyncClient(foreign.address)
        outcomes = client.answer_stream(items("a", "b", "c"))
        lazy = client.answer_stream(items("a"))
        assert (await anext(outcomes)).answers
        await client.close()
        lost = told([outcome async for outcome in outcomes])
        assert lost == dict.fromkeys("bc", "the client was closed during the call")
        with pytest.raises(Unavailable, match=r"^the client is closed$"):
            await anext(lazy)
        with pytest.raises(Unavailable, match=r"^the client is closed$"):
            client.answer_stream([])


def test_names_and_ids_go_with_the_calls() -> None:
    async def ask(target: str) -> None:
        async with AsyncClient(target, model_name="bert", model_version="7", token="secret-token") as client:
            await client.answer("Who?", "A fox.", request_id="mine")
            assert [o.id async for o in client.answer_stream(items("a"), request_id="yours")] == ["a"]
            await client.model()

    with scripted(echo) as foreign:
        with Client(foreign.address, model_name="bert", model_version="7", token="secret-token") as client:
            client.answer("Who?", "A fox.", request_id="mine")
            assert [outcome.id for outcome in client.answer_stream(items("a"), request_id="yours")] == ["a"]
            client.model()
        asyncio.run(ask(foreign.address))
    assert [sent.get("x-request-id") for sent in foreign.metadata] == ["mine", "yours", "yours", None] * 2
    assert {sent["authorization"] for sent in foreign.metadata} == {"Bearer secret-token"}
    named: list[Any] = [*foreign.models, *(request.request for read in foreign.read for request in read)]
    assert len(named) == 6
    assert {(request.model, request.version) for request in named} == {("bert", "7")}


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "a\n", "é", "\x7f", 7])
def test_ids_that_cannot_be_sent(request_id: Any) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest) as caught:
        client.answer("Who?", "A fox.", request_id=request_id)
    assert caught.value.field == "request_id"


@both
@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("connections", 0),
        ("connections", 65),
        ("connections", 1.5),
        ("connections", True),
        ("model_name", 7),
        ("model_name", "\ud800"),
        ("model_version", b"1"),
    ],
)
def test_what_no_client_can_have(kind: Any, field: str, bad: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        kind("localhost:0", **{field: bad})
    assert caught.value.field == field


@pytest.mark.parametrize(("api", "kind"), [(grpc, Client), (grpc.aio, AsyncClient)])
async def test_channels(monkeypatch: pytest.MonkeyPatch, api: Any, kind: Any) -> None:
    opened: list[tuple[str, Any]] = []

    def channel(target: str, options: Any) -> Any:
        opened.append((target, options))
        number = len(opened)
        return SimpleNamespace(**dict.fromkeys(("unary_unary", "stream_stream"), lambda *_, **__: number))

    monkeypatch.setattr(api, "insecure_channel", channel)
    client = kind("localhost:0", connections=3)
    assert [client._begin(None).stub.Answer for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    assert opened == [("localhost:0", _OPTIONS)] * 3


def test_options_of_channels() -> None:
    options = dict(_OPTIONS)
    assert json.loads(str(options["grpc.service_config"])) == _RETRIES
    assert [set(method) for method in _RETRIES["methodConfig"]] == [{"name", "retryPolicy"}]  # no hedging
    assert options["grpc.keepalive_time_ms"] == 30_000
    assert options["grpc.http2.ping_timeout_ms"] == 10_000
    assert options["grpc.use_local_subchannel_pool"] == 1
