"""The messages of `distilqa.v1` as they come from the wire and go to it.

Requests arrive as bytes, so that text that is not UTF-8 gets INVALID_ARGUMENT with the field's name rather than gRPC's
INTERNAL.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

from google.protobuf import empty_pb2, unknown_fields
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from distilqa.errors import InvalidRequest
from distilqa.text.answer import Answer
from distilqa_protos.v1 import question_answering_pb2 as pb

_Request = TypeVar("_Request", bound=Message)


def parse(message: type[_Request], raw: bytes) -> _Request:
    """Parse a request. Raises InvalidRequest, for text that is not UTF-8 with the field's name."""
    try:
        return message.FromString(raw)
    except DecodeError:
        field = _not_utf8(message.DESCRIPTOR, raw)
        if field is None:
            raise InvalidRequest("request", f"is not a {message.DESCRIPTOR.full_name}") from None
        raise InvalidRequest(field, "is not valid UTF-8") from None


def _not_utf8(descriptor: Any, raw: bytes) -> str | None:
    """The first string field of a serialised message that is not UTF-8, as a path; None if all are."""
    try:
        unknown = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(raw))
    except DecodeError:
        return None
    seen: Counter[int] = Counter()
    for field in (unknown[index] for index in range(len(unknown))):
        known = descriptor.fields_by_number.get(field.field_number)
        if known is None or not isinstance(field.data, bytes):
            continue
        name = f"{known.name}[{seen[known.number]}]" if known.is_repeated else known.name
        seen[known.number] += 1
        if known.message_type is not None:
            if inner := _not_utf8(known.message_type, field.data):
                return f"{name}.{inner}"
        elif known.type == FieldDescriptor.TYPE_STRING:
            try:
                field.data.decode()
            except UnicodeDecodeError:
                return name
    return None


def answer_message(answer: Answer, request: pb.AnswerRequest) -> pb.Answer:
    if answer.passage is None:
        return pb.Answer(score=answer.score, no_answer=True)
    passage = request.passages[answer.passage]
    start_byte = len(passage.text[: answer.start].encode())
    return pb.Answer(
        text=answer.text,
        score=answer.score,
        passage=answer.passage,
        passage_id=passage.id,
        start=answer.start,
        end=answer.end,
        start_byte=start_byte,
        end_byte=start_byte + len(answer.text.encode()),
    )


def stream_id(raw: bytes) -> str:
    """The id of an `AnswerStreamRequest` that cannot be parsed, as far as it can be read."""
    try:
        unknown = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(raw))
    except DecodeError:
        return ""
    number = pb.AnswerStreamRequest.ID_FIELD_NUMBER
    fields = [unknown[index] for index in range(len(unknown))]
    found = [field.data for field in fields if field.field_number == number and isinstance(field.data, bytes)]
    return found[-1].decode(errors="replace") if found else ""


# The most bytes that a field's tag, and the length of what it holds, take.
_FIELD = 10


def largest_response(text_bytes: int, answers: int, id_bytes: int, names: int) -> int:
    """The most bytes of an `AnswerStreamResponse`, whose `AnswerResponse` has texts of so many bytes together.

    ``id_bytes`` are those of a passage's id, and of a stream's; ``names`` those of the model, version and variant.
    """
    numbers = 10 * _FIELD  # of an answer, and of the timings
    return (answers + 1) * (id_bytes + numbers) + text_bytes + names + numbers
