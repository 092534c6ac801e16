"""The packaged questions, and the caller's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distilqa_export.errors import ExportError
from distilqa_export.samples import (
    CALIBRATION,
    Sample,
    packaged_calibration,
    packaged_evaluation,
    packaged_file,
    parse,
    write_calibration,
)


def line(question: object = "Who?", context: object = "Me.") -> str:
    return json.dumps({"question": question, "context": context})


def calibration() -> list[dict[str, Any]]:
    return [json.loads(one) for one in packaged_file(CALIBRATION).decode().splitlines()]


def test_packaged_calibration_is_well_formed() -> None:
    found = calibration()
    assert len(found) == 200
    assert len({record["id"] for record in found}) == 200
    assert len({record["context"] for record in found}) == 200
    for record in found:
        assert set(record) == {"id", "question", "context", "answers"}
        assert record["question"].strip()
        assert record["answers"]
        assert all(answer in record["context"] for answer in record["answers"])
    assert packaged_calibration() == [Sample(record["question"], record["context"]) for record in found]


def test_the_first_of_them_as_a_file(tmp_path: Path) -> None:
    write_calibration(tmp_path / "few.jsonl", passages=7)
    assert parse((tmp_path / "few.jsonl").read_bytes(), "few.jsonl") == packaged_calibration()[:7]


def test_packaged_evaluation_is_well_formed() -> None:
    found = packaged_evaluation()
    assert len(found) == 3000
    assert len({question.id for question in found}) == 3000
    assert len({question.context for question in found}) == 1500
    for question in found:
        assert question.question.strip()
        assert all(answer in question.context for answer in question.answers)


@pytest.mark.parametrize("field", ["id", "question", "context"])
def test_what_is_calibrated_on_is_not_judged_on(field: str) -> None:
    assert not {record[field] for record in calibration()} & {getattr(q, field) for q in packaged_evaluation()}


def test_reads_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{line()}\n\n  \n{{"question": "Où?", "context": "Ici.", "id": 7}}\n', encoding="utf-8")
    assert parse(path.read_bytes(), str(path)) == [Sample("Who?", "Me."), Sample("Où?", "Ici.")]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"], ids=ascii)
def test_only_a_line_feed_ends_a_line(separator: str, tmp_path: Path) -> None:
    """Unicode has more line separators; JSON has them as they are inside a string."""
    path = tmp_path / "mine.jsonl"
    sample = Sample("Who?", f"Me,{separator}and you.")
    content = json.dumps({"question": sample.question, "context": sample.context}, ensure_ascii=False)
    path.write_text(f"{content}\n{line()}\n", encoding="utf-8")
    assert parse(path.read_bytes(), str(path)) == [sample, Sample("Who?", "Me.")]


# Each wrong second line, and what is said of it.
WRONG_LINES = {
    "not JSON": ("question: Who?", "needs an object with question and context"),
    "cut off": (line()[:-1], "needs an object with question and context"),
    "no question": ('{"context": "Me."}', "needs an object with question and context .*'question'"),
    "no context": ('{"question": "Who?"}', "needs an object with question and context .*'context'"),
    "a list": ('["Who?", "Me."]', "needs an object with question and context"),
    "a number": ("7", "needs an object with question and context"),
    "question a number": (line(question=7), "question and context must be strings"),
    "context null": (line(context=None), "question and context must be strings"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_names_the_line_that_is_wrong(wrong: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{line()}\n\n{wrong}\n{line()}\n", encoding="utf-8")
    with pytest.raises(ExportError, match=rf"mine\.jsonl, line 3: {message}"):
        parse(path.read_bytes(), str(path))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_refuses_a_file_without_questions(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"mine\.jsonl: has no questions"):
        parse(path.read_bytes(), str(path))


def test_refuses_what_is_not_utf8() -> None:
    content = line(context="caf").replace("caf", "caf\xe9").encode("latin-1")
    with pytest.raises(ExportError, match=r"latin\.jsonl: .*utf-8"):
        parse(content, "latin.jsonl")
