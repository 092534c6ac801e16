"""Questions with the answers that people gave: files of SQuAD v1.1, and of v2, where some have none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from distilqa.errors import DatasetError

_NEEDED = """{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text"}]}]}]}]}"""

_GZIP = b"\x1f\x8b"

_LONGEST_SHOWN_ID = 80

# Of a file that is something else.
_LONGEST_SHOWN = 60

# What JSON's values are called.
_KINDS = {
    NoneType: "null",
    bool: "a boolean",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a passage, and the answers that people gave; none where the passage has no answer."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]


def read_questions(path: Path, *, allow_no_answer: bool = False) -> list[Question]:
    """The questions of a SQuAD file. Raises DatasetError if it is none, or a question has no answer but may not.

    Whether a question has an answer is told by its answers alone, as SQuAD v2's official script does it: its
    ``is_impossible`` is not read. An answer of blanks, as some tools write it, is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    return parse_questions(content, str(path), allow_no_answer=allow_no_answer)


def parse_questions(content: bytes, name: str, *, allow_no_answer: bool = False) -> list[Question]:
    """As `read_questions`, of a file's content."""
    try:
        questions = list(_questions(_Object("", _load(content))))
    except _NotSquad as error:
        raise DatasetError(f"{name}: {error}; needed is SQuAD's JSON: {_NEEDED}") from error
    if not questions:
        raise DatasetError(f"{name}: has no questions")
    for question in questions:
        if not question.answers and not allow_no_answer:
            raise DatasetError(
                f"{name}: question {shown_id(question.id)} has no answer; SQuAD v1.1 is needed, in which each has"
                " (v2 has others: distilqa eval --allow-no-answer)"
            )
    [(most, times)] = Counter(question.id for question in questions).most_common(1)
    if times > 1:
        raise DatasetError(f"{name}: {times} questions have the id {shown_id(most)}")
    return questions


def shown_id(id: str) -> str:
    """As it may stand in an error: ids are what a file says they are."""
    return id if id.isascii() and id.isprintable() and len(id) <= _LONGEST_SHOWN_ID else f"{id[:_LONGEST_SHOWN_ID]!a}"


class _NotSquad(Exception):
    """What is wrong, and where. It is short: it tells what a value is, and not what it holds."""


def _load(content: bytes) -> object:
    if content.startswith(_GZIP):
        raise _NotSquad("is compressed by gzip")
    if not content.strip():
        raise _NotSquad("is empty")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        if _is_json_lines(content):
            raise _NotSquad("looks like JSON lines, its first line is an object") from error
        # Not the error's repr: that of a UnicodeDecodeError holds the whole file.
        began = content.lstrip()[:_LONGEST_SHOWN].decode("latin-1").partition("\n")[0]
        raise _NotSquad(f"is not JSON, {error}; it begins with {began!a:.{_LONGEST_SHOWN}}") from error


def _is_json_lines(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content.lstrip().splitlines()[0]), dict)
    except (ValueError, RecursionError):
        return False


def _questions(file: _Object) -> Iterator[Question]:
    for article in file.objects("data"):
        for paragraph in article.objects("paragraphs"):
            context = paragraph.get("context", str)
            for fields in paragraph.objects("qas"):
                yield _question(fields, context)


def _question(fields: _Object, context: str) -> Question:
    id = str(fields.get("id", str, int))  # annotation tools number them
    named = _Object(f"{fields.place} (id {shown_id(id)})", fields.fields)
    answers = [answer.get("text", str) for answer in named.objects("answers")]
    return Question(id, named.get("question", str), context, tuple(text for text in answers if text.strip()))


class _Object:
    """An object of the file, and its place there, empty for the outermost. Raises _NotSquad for what is none."""

    def __init__(self, place: str, fields: object) -> None:
        self.place = place
        if not isinstance(fields, dict):
            raise self._wrong(f"is {_KINDS[type(fields)]}, must be an object")
        self.fields = fields

    def get(self, name: str, *kinds: type) -> Any:
        """A field of one of these kinds."""
        if name not in self.fields:
            some = json.dumps([*self.fields][:10])[1:-1]
            raise self._wrong(f'has no "{name}"; it has {some or "nothing":.{_LONGEST_SHOWN}}')
        value = self.fields[name]
        if type(value) not in kinds:  # isinstance would take true for a number
            needed = " or ".join(_KINDS[kind] for kind in kinds)
            raise self._wrong(f'"{name}" is {_KINDS[type(value)]}, must be {needed}')
        return value

    def objects(self, name: str) -> Iterator[_Object]:
        """Those of a list."""
        for number, item in enumerate(self.get(name, list)):
            yield _Object(f"{self.place}.{name}[{number}]".lstrip("."), item)

    def _wrong(self, problem: str) -> _NotSquad:
        return _NotSquad(f"{self.place} {problem}".lstrip())
