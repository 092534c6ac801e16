"""Questions with the answers that people gave: files of SQuAD v1.1, and of v2, where some have none."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilqa.errors import DatasetError

_LONGEST_SHOWN_ID = 80


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a passage, and the answers that people gave; none where the passage has no answer."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]


def read_questions(path: Path, *, allow_no_answer: bool = False) -> list[Question]:
    """The questions of a SQuAD file. Raises DatasetError if it is none, or a question has no answer but may not.

    An answer without text, as some tools write it, is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    return parse_questions(content, str(path), allow_no_answer=allow_no_answer)


def parse_questions(content: bytes, name: str, *, allow_no_answer: bool = False) -> list[Question]:
    """As `read_questions`, of a file's content."""
    try:
        articles = json.loads(content)["data"]
        questions = [
            _question(fields, paragraph["context"])
            for article in articles
            for paragraph in article["paragraphs"]
            for fields in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # Not its repr: that of a UnicodeDecodeError holds the whole file.
        raise DatasetError(f"{name}: is not a SQuAD file ({type(error).__name__}: {error})") from error
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


def _question(fields: dict[str, Any], context: object) -> Question:
    texts = () if fields.get("is_impossible") else tuple(answer["text"] for answer in fields["answers"])
    answers = tuple(text for text in texts if text != "")
    id = fields["id"]
    if isinstance(id, int) and not isinstance(id, bool):  # as annotation tools number them
        id = str(id)
    question = Question(id, fields["question"], context, answers)  # type: ignore[arg-type]
    if not all(isinstance(text, str) for text in (question.id, question.question, context, *answers)):
        raise TypeError(f"id, question, context and answers must be strings: {question!r:.200}")
    return question
