"""The messages of `distilqa.v1` as they come from the wire and go to it.

Requests arrive as bytes, so that text that is not UTF-8 gets INVALID_ARGUMENT with the field's name rather than gRPC's
INTERNAL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from distilqa.errors import InvalidRequest
from distilqa.text.answer import Answer
from distilqa.text.windows import Tokenized
from distilqa_protos.v1 import question_answering_pb2 as pb

# A request that says little has a name or two.
_MOST_SMALL_BYTES = 4096

# How far what is wrong is looked for: a message may have millions of fields.
_MOST_FIELDS = 5000

# How far a request of a stream is read for its id. It has two fields.
_FEW_FIELDS = 100

# The kinds of fields, and how many bytes those have that are always as long.
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}

_Request = TypeVar("_Request", bound=Message)
_Bytes = TypeVar("_Bytes", bytes, memoryview)


def parse(message: type[_Request], raw: bytes) -> _Request:
    """Parse a request. Raises InvalidRequest, for text that is not UTF-8 with the field's name."""
    try:
        return message.FromString(raw)
    except DecodeError:
        field = _not_utf8(message.DESCRIPTOR, raw, iter(range(_MOST_FIELDS)))
        if field is None:
            raise InvalidRequest("request", f"is not a {message.DESCRIPTOR.full_name}") from None
        raise InvalidRequest(field, "is not valid UTF-8") from None


def parse_small(message: type[_Request], raw: bytes) -> _Request:
    """The same for a request that says little: it needs no permit, and is parsed at once."""
    if len(raw) > _MOST_SMALL_BYTES:
        raise InvalidRequest("request", f"has {len(raw)} bytes, the limit is {_MOST_SMALL_BYTES}")
    return parse(message, raw)


def _not_utf8(descriptor: Any, raw: bytes, left: Iterator[int]) -> str | None:
    """The first string field of a serialised message that is not UTF-8, as a path; None if none is found.

    ``left`` ends the search: a field for each that it gives.
    """
    seen: Counter[int] = Counter()
    for number, content in _fields(raw, left):
        known = descriptor.fields_by_number.get(number)
        if known is None:
            continue
        name = f"{known.name}[{seen[number]}]" if known.is_repeated else known.name
        seen[number] += 1
        if known.message_type is not None:
            if inner := _not_utf8(known.message_type, content, left):
                return f"{name}.{inner}"
        elif known.type == FieldDescriptor.TYPE_STRING:
            try:
                content.decode()
            except UnicodeDecodeError:
                return name
    return None


def _fields(raw: _Bytes, left: Iterator[int]) -> Iterator[tuple[int, _Bytes]]:
    """The fields that have a length, (number, content), until one is none; all others are passed over.

    The encoding is that of https://protobuf.dev/programming-guides/encoding.
    """
    at = 0
    try:
        for _ in left:
            tag, at = _varint(raw, at)
            kind = tag & 7
            if kind == _LENGTH:
                length, at = _varint(raw, at)
                at += length
                if at > len(raw):
                    return
                yield tag >> 3, raw[at - length : at]
            elif kind == _VARINT:
                _, at = _varint(raw, at)
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                return
    except IndexError:  # here it ends
        return


def _varint(raw: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends. Raises IndexError where it does not."""
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise IndexError


def answer_messages(answers: Sequence[Answer], tokenized: Tokenized, ids: Sequence[str]) -> list[pb.Answer]:
    """Answers to a question over passages of these ids."""
    return [_answer_message(answer, tokenized, ids) for answer in answers]


def _answer_message(answer: Answer, tokenized: Tokenized, ids: Sequence[str]) -> pb.Answer:
    if answer.passage is None:
        return pb.Answer(score=answer.score, no_answer=True)
    start_byte = len(tokenized.passages[answer.passage].text[: answer.start].encode())
    return pb.Answer(
        text=answer.text,
        score=answer.score,
        passage=answer.passage,
        passage_id=ids[answer.passage],
        start=answer.start,
        end=answer.end,
        start_byte=start_byte,
        end_byte=start_byte + len(answer.text.encode()),
    )


def stream_id(raw: bytes, characters: int) -> str:
    """The id of an `AnswerStreamRequest` that is not parsed, or cannot be, as far as it can be read."""
    number = pb.AnswerStreamRequest.ID_FIELD_NUMBER
    found = [content for one, content in _fields(memoryview(raw), iter(range(_FEW_FIELDS))) if one == number]
    return str(found[-1][: 4 * characters], "utf-8", "replace")[:characters] if found else ""


# The most bytes that a field's tag, and the length of what it holds, take.
_FIELD = 10

# The most bytes that a passage's number takes.
_INDEX = 5


def largest_response(text_bytes: int, answers: int, id_bytes: int, names: int, passages: int) -> int:
    """The most bytes of an `AnswerStreamResponse`, whose `AnswerResponse` has texts of so many bytes together.

    ``id_bytes`` are those of a passage's id, and of a stream's; ``names`` those of the model, version and variant.
    ``passages`` may be blank, which the reply lists.
    """
    numbers = 10 * _FIELD  # of an answer, and of the timings
    return (answers + 1) * (id_bytes + numbers) + text_bytes + names + numbers + _FIELD + _INDEX * passages
