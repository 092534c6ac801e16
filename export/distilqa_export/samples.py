"""Questions on passages: the packaged samples of SQuAD v1.1, and the caller's own.

What int8 is calibrated on is JSON lines with ``question`` and ``context``; the packaged ``calibration.jsonl`` is from
the training set and also has ``id`` and ``answers``. What it is judged on is in SQuAD's own format; the packaged
``evaluation.json.gz`` is from the development set: nothing is judged on what it was chosen by.

``python -m distilqa_export.samples train-v1.1.json dev-v1.1.json`` makes both again from the data set's own files.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import sys
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from distilqa.evaluation.dataset import Question, parse_questions
from distilqa_export.errors import ExportError

CALIBRATION = "calibration.jsonl"
EVALUATION = "evaluation.json.gz"

# What the packaged files hold.
_PACKAGED = {
    CALIBRATION: "200 questions on 200 passages of SQuAD v1.1's training set",
    EVALUATION: "3,000 questions on 1,500 passages of SQuAD v1.1's development set",
}

_CALIBRATION_PASSAGES = 200
_EVALUATION_PASSAGES, _QUESTIONS_EACH = 1500, 2
_SEED = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A question and its passage. ``place`` is the file and line it was read from."""

    question: str
    context: str
    place: str = field(default="", compare=False)


def read_calibration(path: Path | None) -> tuple[list[Sample], str]:
    """The samples of a file, by default the packaged ones, and what file that is. Raises ExportError."""
    if path is None:
        return packaged_calibration(), _describe_packaged(CALIBRATION)
    content = _read(path)
    return parse(content, str(path)), _describe(_name(path), content)


def read_evaluation(path: Path | None) -> tuple[list[Question], str]:
    """The questions of a SQuAD v1.1 file, by default the packaged ones, and what file that is.

    Raises ExportError or DatasetError.
    """
    if path is None:
        return packaged_evaluation(), _describe_packaged(EVALUATION)
    content = _read(path)
    return parse_questions(content, str(path)), _describe(_name(path), content)


def _read(path: Path) -> bytes:
    """A file's content, read once, which a pipe allows, and so that its digest is that of what was used."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from error


def _name(path: Path) -> str:
    return os.fsencode(path.name).decode(errors="replace")


def _describe(name: str, content: bytes) -> str:
    return f"{name}, SHA-256 {hashlib.sha256(content).hexdigest()}"


def _describe_packaged(name: str) -> str:
    return f"{_PACKAGED[name]} ({_describe(name, packaged_file(name))})"


def packaged_calibration() -> list[Sample]:
    """200 questions on 200 passages of the training set."""
    return _parse(packaged_file(CALIBRATION).decode(), CALIBRATION)


def packaged_evaluation() -> list[Question]:
    """3,000 questions on 1,500 passages of the development set, with their answers."""
    return parse_questions(gzip.decompress(packaged_file(EVALUATION)), EVALUATION)


def write_evaluation(path: Path, passages: int) -> None:
    """Write the questions on the first passages of the packaged evaluation, where all of them would take too long."""
    squad = json.loads(gzip.decompress(packaged_file(EVALUATION)))
    path.write_text(json.dumps(squad | {"data": squad["data"][:passages]}), encoding="utf-8")


def write_calibration(path: Path, passages: int) -> None:
    """Write the first of the packaged questions for calibration, as `write_evaluation` does."""
    lines = packaged_file(CALIBRATION).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:passages]))


def packaged_file(name: str) -> bytes:
    """The content of a packaged file."""
    return files("distilqa_export").joinpath("data", name).read_bytes()


def parse(content: bytes, name: str) -> list[Sample]:
    """The samples of a JSON lines file. Raises ExportError if it has none, or a line has no question and context."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExportError(f"{name}: {error}") from error
    return _parse(text, name)


def _parse(text: str, name: str) -> list[Sample]:
    samples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            question, context = fields["question"], fields["context"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ExportError(
                f"{name}, line {number}: needs an object with question and context ({error!r})"
            ) from error
        if not isinstance(question, str) or not isinstance(context, str):
            raise ExportError(f"{name}, line {number}: question and context must be strings")
        samples.append(Sample(question, context, f"{name}, line {number}"))
    if not samples:
        raise ExportError(f"{name}: has no questions")
    return samples


def _choose_calibration(squad: Path) -> bytes:
    """One question of each of 200 passages, spread over all articles."""
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    generator = random.Random(_SEED)
    passages = [generator.choice(article["paragraphs"]) for article in articles]
    while len(passages) < _CALIBRATION_PASSAGES:
        passage = generator.choice(generator.choice(articles)["paragraphs"])
        if passage not in passages:
            passages.append(passage)
    generator.shuffle(passages)
    lines = [
        {"id": question["id"], "question": question["question"], "context": passage["context"],
         "answers": sorted({answer["text"] for answer in question["answers"]})}
        for passage in passages[:_CALIBRATION_PASSAGES]
        for question in [generator.choice(passage["qas"])]
    ]  # fmt: skip
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _choose_evaluation(squad: Path) -> bytes:
    """Two questions of each of 1,500 passages with as many, in random order."""
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    generator = random.Random(_SEED)
    passages = [
        (article["title"], paragraph)
        for article in articles
        for paragraph in article["paragraphs"]
        if len(paragraph["qas"]) >= _QUESTIONS_EACH
    ]
    data = [
        {"title": title, "paragraphs": [{"context": paragraph["context"], "qas": [
            {"id": question["id"], "question": question["question"],
             "answers": [{"text": text} for text in sorted({answer["text"] for answer in question["answers"]})]}
            for question in generator.sample(paragraph["qas"], _QUESTIONS_EACH)
        ]}]}
        for title, paragraph in generator.sample(passages, _EVALUATION_PASSAGES)
    ]  # fmt: skip
    return gzip.compress(json.dumps({"version": "1.1", "data": data}, ensure_ascii=False).encode(), mtime=0)


def main() -> None:
    data = Path(__file__).parent / "data"
    train, dev = map(Path, sys.argv[1:3])
    (data / CALIBRATION).write_bytes(_choose_calibration(train))
    (data / EVALUATION).write_bytes(_choose_evaluation(dev))


if __name__ == "__main__":
    main()
