"""What the clients do without a server: they refuse what cannot be asked, and read what is served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from distilqa.client import AsyncClient, Client, _answers, _model, _request
from distilqa.errors import DistilqaError, InferenceFailed, InvalidRequest, Overloaded, Unavailable
from distilqa_protos.v1 import question_answering_pb2 as pb


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
        request = _request("Who?", passages, 1, 15, None, False)  # type: ignore[arg-type]
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
    request = _request("Who?", ["A fox.", "A dog."], 1, 15, None, False)
    response = pb.AnswerResponse(answers=[pb.Answer(**answer)])
    if sound:
        assert _answers(response, request)[0].text == answer["text"]
    else:
        with pytest.raises(InferenceFailed, match="the reply has an answer that is not in what was sent: passage "):
            _answers(response, request)


def test_no_answer_where_it_was_allowed() -> None:
    request = _request("Who?", "A fox.", 1, 15, None, True)
    assert _answers(pb.AnswerResponse(answers=[pb.Answer(no_answer=True, score=0.5)]), request)[0].passage is None
    with pytest.raises(InferenceFailed, match="not in what was sent"):
        _answers(pb.AnswerResponse(answers=[pb.Answer(**FOX | {"no_answer": True})]), request)


@pytest.mark.parametrize("count", [0, 3])
def test_more_answers_than_were_asked_for_or_none(count: int) -> None:
    request = _request("Who?", "A fox.", 2, 15, None, False)
    with pytest.raises(InferenceFailed, match=f"the reply has {count} answers, 1 to 2 were asked for"):
        _answers(pb.AnswerResponse(answers=[pb.Answer(**FOX)] * count), request)


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
        _answers(None, _request("Who?", "A fox.", 1, 15, None, False))
    with pytest.raises(InferenceFailed, match="is not a message"):
        _model(None)


async def test_a_status_that_nobody_knows() -> None:
    async def fail(*_: object, **__: object) -> None:
        raise KeyError(99)  # as grpc.aio does

    async with AsyncClient("localhost:1") as client:
        client._stub = SimpleNamespace(Answer=fail, GetModel=fail)  # type: ignore[assignment]
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


def test_no_answer_is_allowed_by_what_is_true() -> None:
    """As the reader takes it, whatever it is."""
    for value, allowed in ((1, True), ("yes", True), (None, False), ("", False)):
        assert _request("Who?", "A fox.", 1, 15, None, value).allow_no_answer is allowed  # type: ignore[arg-type]


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
    ("options", "hinted"), [({}, "does not use TLS: does the"), ({"tls": True}, " uses TLS: does")]
)
async def test_where_nobody_is_tls_may_be_the_cause(options: dict[str, bool], hinted: str) -> None:
    """Of several addresses gRPC names the last alone, and where a server is not at that one, hides what it said."""
    target = "ipv4:127.0.0.1:1,127.0.0.2:1"
    with Client(target, **options) as client, pytest.raises(Unavailable, match=hinted):  # type: ignore[arg-type]
        client.model()
    async with AsyncClient(target, **options) as other:  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match=hinted):
            await other.model()


def test_doc_stride_below_any() -> None:
    """What a message can carry is not the limit, which depends on the question."""
    with pytest.raises(InvalidRequest, match=r"^doc_stride: is -1, must be 0 or more$"):
        _request("Who?", "A fox.", 1, 15, -1, False)


def test_model_has_every_limit() -> None:
    fields = pb.Limits.DESCRIPTOR.fields_by_name
    limits = {name: number for number, name in enumerate(fields, start=1)}
    model = asdict(_model(pb.GetModelResponse(limits=pb.Limits(**limits))))
    for name, number in limits.items():
        assert model[name if name == "window_tokens" else f"max_{name}"] == number
