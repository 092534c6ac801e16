"""Messages from the wire, and to it."""

from __future__ import annotations

from itertools import count

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from distilqa.errors import InvalidRequest
from distilqa.server.wire import _fields, largest_response, parse, stream_id
from distilqa_protos.v1 import question_answering_pb2 as pb


def stream_request(id: str = "seven", question: bytes = b"Who?") -> bytes:
    inner = b"\x1a" + bytes([len(question)]) + question
    return b"\x0a" + bytes([len(id.encode())]) + id.encode() + b"\x12" + bytes([len(inner)]) + inner


def test_a_request_of_a_stream() -> None:
    message = parse(pb.AnswerStreamRequest, stream_request())
    assert (message.id, message.request.question) == ("seven", "Who?")


def test_what_is_wrong_in_a_request_of_a_stream_is_named() -> None:
    raw = stream_request(question=b"\xff")
    with pytest.raises(InvalidRequest, match=r"request\.question: is not valid UTF-8"):
        parse(pb.AnswerStreamRequest, raw)
    assert stream_id(raw, 256) == "seven"
    assert stream_id(raw, 3) == "sev"


@pytest.mark.parametrize(
    ("raw", "id"),
    [
        (b"", ""),
        (b"\x07\x07", ""),
        (b"\x0a\x02\xff\x41", "�A"),
        (b"\x0a\x01a\x0a\x01b", "b"),
        (b"\x08\x01", ""),
    ],
)
def test_an_id_as_far_as_it_can_be_read(raw: bytes, id: str) -> None:
    assert stream_id(raw, 256) == id


@given(st.binary(max_size=200))
def test_fields_are_those_that_protobuf_reads(raw: bytes) -> None:
    """As long as it can read any: those with a length, whatever their numbers."""
    try:
        unknown = UnknownFieldSet(Empty.FromString(raw))
    except DecodeError:
        list(_fields(raw, count()))
        return
    read = [unknown[at] for at in range(len(unknown))]
    fields = [(field.field_number, field.data) for field in read if isinstance(field.data, bytes)]
    if not any(isinstance(field.data, UnknownFieldSet) for field in read):  # groups, which no message of ours has
        assert list(_fields(raw, iter(range(1000)))) == fields


def test_what_is_wrong_is_not_looked_for_in_millions_of_fields() -> None:
    raw = b"\x0a\x00" * 100_000 + b"\x1a\x01\xff"
    assert len(list(_fields(raw, iter(range(70))))) == 70
    with pytest.raises(InvalidRequest, match="request: is not a distilqa"):
        parse(pb.AnswerRequest, raw)
    assert stream_id(b"\x0a\x01a" + raw[2:], 256) == ""


# What UTF-8 takes four bytes for.
WIDE = "🦊"


@given(st.integers(1, 100), st.integers(0, 2000), st.integers(0, 40), st.integers(0, 1000))
def test_largest_response(answers: int, text: int, name: int, blank: int) -> None:
    """Numbers as large as they can be, texts and ids of characters that take most bytes."""
    most = 2**32 - 1
    per = text // 4 // answers * 4
    answer = pb.Answer(
        text=WIDE * (per // 4), score=1 / 3, passage=most, passage_id=WIDE * 256, start=most, end=most,
        start_byte=most, end_byte=most, no_answer=True,
    )  # fmt: skip
    timings = pb.Timings(
        tokenize_seconds=1 / 3, queue_seconds=1 / 3, inference_seconds=1 / 3, decode_seconds=1 / 3, windows=most,
        run_windows=most,
    )  # fmt: skip
    response = pb.AnswerResponse(
        answers=[answer] * answers, model=WIDE * name, version=WIDE * name, variant=WIDE * name, timings=timings,
        blank_passages=[most] * blank,
    )  # fmt: skip
    message = pb.AnswerStreamResponse(id=WIDE * 256, response=response)
    assert message.ByteSize() <= largest_response(text, answers, 1024, 3 * 4 * name, blank)
