"""What the clients do without a server: they refuse what cannot be asked, and read what is served."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import pytest

from distilqa.client import AsyncClient, Client, _answers, _model, _request
from distilqa.errors import InferenceFailed, InvalidRequest, Unavailable
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


def test_an_answer_from_elsewhere() -> None:
    request = _request("Who?", ["A fox.", "A dog."], 1, 15, None, False)
    for place, sound in ((0, True), (1, True), (2, False), (7, False)):
        response = pb.AnswerResponse(answers=[pb.Answer(text="A", start=0, end=1, passage=place)])
        if sound:
            assert _answers(response, request)[0].passage == place
        else:
            with pytest.raises(InferenceFailed, match=f"the reply has passage {place} of 2 that were sent"):
                _answers(response, request)
    assert _answers(pb.AnswerResponse(answers=[pb.Answer(no_answer=True, passage=7)]), request)[0].passage is None


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
