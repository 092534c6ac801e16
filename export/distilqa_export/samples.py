"""Questions on passages: the packaged samples of SQuAD v1.1, and the caller's own.

A file has one JSON object a line with ``question`` and ``context``; the packaged ones also have ``id`` and ``answers``.
``calibration.jsonl`` is from the training set, ``agreement.jsonl`` from the development set: what the int8 scales are
chosen on is never what they are judged on.

``python -m distilqa_export.samples train-v1.1.json dev-v1.1.json`` makes both again from the data set's own files.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from distilqa_export.errors import ExportError

CALIBRATION = "calibration.jsonl"
AGREEMENT = "agreement.jsonl"

_SAMPLES = 200
_SEED = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A question and its passage. ``place`` is the file and line it was read from."""

    question: str
    context: str
    place: str = field(default="", compare=False)


def packaged(name: str) -> list[Sample]:
    """The packaged sample of that name: `CALIBRATION` or `AGREEMENT`."""
    return _parse(files("distilqa_export").joinpath("data", name).read_text(encoding="utf-8"), name)


def read(path: Path) -> list[Sample]:
    """The samples of a JSON lines file. Raises ExportError if it has none, or a line has no question and context."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: {error}") from error
    return _parse(text, str(path))


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


def _choose(squad: Path) -> list[dict[str, Any]]:
    """One question of each of 200 passages, spread over all articles."""
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    generator = random.Random(_SEED)
    passages = [generator.choice(article["paragraphs"]) for article in articles]
    while len(passages) < _SAMPLES:
        passage = generator.choice(generator.choice(articles)["paragraphs"])
        if passage not in passages:
            passages.append(passage)
    generator.shuffle(passages)
    return [
        {"id": question["id"], "question": question["question"], "context": passage["context"],
         "answers": sorted({answer["text"] for answer in question["answers"]})}
        for passage in passages[:_SAMPLES]
        for question in [generator.choice(passage["qas"])]
    ]  # fmt: skip


def main() -> None:
    data = Path(__file__).parent / "data"
    for name, squad in zip((CALIBRATION, AGREEMENT), sys.argv[1:3], strict=True):
        lines = (json.dumps(sample, ensure_ascii=False) for sample in _choose(Path(squad)))
        (data / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
