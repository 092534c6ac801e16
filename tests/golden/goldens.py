"""What the reference answered, as it lies in ``answers.jsonl``.

The first line says what answered: the reference and its version, its options, the digests of the checkpoint's files.
Every other line is a passage with its questions; a question has the reference's answers, best first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).parent / "answers.jsonl"

# Kinds of goldens: of SQuAD's development set, and of the two tables of texts.py.
DEV, AWKWARD, DIFFERENT = "dev", "awkward", "different"


class Part(NamedTuple):
    """One token span, widened to whole words, with the score the reference gives it before it adds any up."""

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Reference:
    """An answer of the reference. ``parts`` are what it merged into it: more than one if it added up scores."""

    text: str
    start: int
    end: int
    score: float
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Golden:
    """A question, its passage, and the reference's answers. ``name`` is SQuAD's id, or the name in texts.py.

    ``alone`` is the reference's score of its best answer when asked for one answer only (of `DIFFERENT` goldens).
    """

    kind: str
    name: str
    question: str
    context: str
    answers: tuple[Reference, ...]
    alone: float | None = None


def load() -> tuple[dict[str, Any], list[Golden]]:
    """The header of the file and all its goldens, in its order."""
    header, *passages = map(json.loads, PATH.read_text(encoding="utf-8").split("\n")[:-1])
    return header, [_golden(passage, asked) for passage in passages for asked in passage["questions"]]


def save(header: dict[str, Any], goldens: Iterable[Golden]) -> None:
    """Write the file. Neighbours on the same passage share a line."""
    lines = [header]
    for (kind, context), group in groupby(goldens, key=lambda golden: (golden.kind, golden.context)):
        lines.append({"kind": kind, "context": context, "questions": [_asked(golden) for golden in group]})
    # In ASCII: no character of the texts can end a line, turn its direction or make the file binary.
    PATH.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")


def _golden(passage: dict[str, Any], asked: dict[str, Any]) -> Golden:
    answers = tuple(_reference(**answer) for answer in asked["answers"])
    return Golden(passage["kind"], asked["name"], asked["question"], passage["context"], answers, asked.get("alone"))


def _reference(text: str, start: int, end: int, score: float, parts: Sequence[Sequence[Any]] = ()) -> Reference:
    merged = tuple(Part(*part) for part in parts) or (Part(start, end, score),)
    return Reference(text, start, end, score, merged)


def _asked(golden: Golden) -> dict[str, Any]:
    asked = {"name": golden.name, "question": golden.question, "answers": [_answer(a) for a in golden.answers]}
    return asked if golden.alone is None else asked | {"alone": golden.alone}


def _answer(answer: Reference) -> dict[str, Any]:
    shown = {"text": answer.text, "start": answer.start, "end": answer.end, "score": answer.score}
    return shown if len(answer.parts) < 2 else shown | {"parts": answer.parts}
