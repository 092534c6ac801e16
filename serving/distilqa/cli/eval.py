"""``distilqa eval``: measure exact match and F1 on a SQuAD v1.1 file."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distilqa.bundle import GPU_VARIANTS, Bundle
from distilqa.cli.commands import Commands, add_command
from distilqa.errors import InvalidRequest, VariantUnusable
from distilqa.text.answer import Answer

if TYPE_CHECKING:
    from distilqa.evaluation.dataset import Question
    from distilqa.evaluation.evaluate import Evaluation
    from distilqa.reader import Reader


def add(commands: Commands) -> None:
    evaluation = add_command(commands, "eval", _run, "measure exact match and F1 on a SQuAD v1.1 file")
    evaluation.add_argument("bundle", type=Path, metavar="BUNDLE")
    evaluation.add_argument("file", type=Path, metavar="FILE", help="questions with answers, dev-v1.1.json say")
    evaluation.add_argument("--variant", help="of the bundle, also unverified (default: all that can be used here)")
    evaluation.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write the answers too, for the official script"
    )
    evaluation.add_argument("--json", action="store_true", help="print JSON")


def _run(arguments: argparse.Namespace) -> int:
    from distilqa.engine.open import usable_variants
    from distilqa.evaluation.dataset import read_questions
    from distilqa.reader import Reader

    bundle = Bundle.open(arguments.bundle)
    usable = usable_variants()
    first, _ = bundle.variant(arguments.variant, (*usable, *GPU_VARIANTS))
    variants = [name for name in bundle.manifest.variants if name in usable and arguments.variant is None] or [first]
    for name in bundle.manifest.variants.keys() - {*usable, first} if arguments.variant is None else ():
        print(f"{name}: left out, since this ONNX Runtime is for CPUs alone", file=sys.stderr)
    if arguments.predictions and len(variants) > 1:
        raise InvalidRequest("--predictions", f"is one file; choose a --variant of {', '.join(variants)}")
    questions = read_questions(arguments.file)
    if arguments.predictions:
        _check_writable("--predictions", arguments.predictions)
    # All before the first is measured: what cannot be used here is better found now than after minutes.
    readers: dict[str, Reader] = {}
    left_out: list[str] = []
    for variant in variants:
        try:
            readers[variant] = Reader(arguments.bundle, variant, threads=1, unverified=True)
        except VariantUnusable as error:
            left_out.append(str(error))
    if not readers:
        raise VariantUnusable(left_out[0])
    for problem in left_out:
        print(f"left out: {problem}", file=sys.stderr)
    results = {}
    for variant, reader in readers.items():
        found = _measure(reader, questions)
        rate = len(questions) / found.seconds
        results[variant] = {
            "exact_match": found.exact_match,
            "f1": found.f1,
            "questions": len(questions),
            "answers_per_second": rate,
        }
        if not arguments.json:
            print(f"{variant}: exact match {found.exact_match:.2f}, F1 {found.f1:.2f},", end=" ")
            print(f"{len(questions):,} questions, {rate:.1f} answers/s", flush=True)
        if arguments.predictions:
            _write_whole(arguments.predictions, json.dumps(found.predictions))
    if arguments.json:
        print(json.dumps(results))
    return 0


def _measure(reader: Reader, questions: Sequence[Question]) -> Evaluation:
    """Answer with a lane a core, each run on its own core: nobody waits for a single answer here."""
    from distilqa.engine.cores import usable_cores
    from distilqa.evaluation.evaluate import MAX_ANSWER_TOKENS, evaluate
    from distilqa.evaluation.progress import ProgressBar

    def answer(question: Question) -> Answer:
        return reader.answer(question.question, question.context, max_answer_tokens=MAX_ANSWER_TOKENS)[0]

    with ProgressBar(reader.variant, len(questions), sys.stderr) as progress:
        return evaluate(questions, answer, lanes=usable_cores(), progress=progress)


def _check_writable(flag: str, path: Path) -> None:
    """Raise InvalidRequest for a file that cannot be written: better now than when all is done."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe, which would wait for its reader
    try:
        path.open("a").close()  # what an earlier run has left stays until there is something new
    except OSError as error:
        raise InvalidRequest(flag, f"{path}: {error.strerror}") from error


def _write_whole(path: Path, text: str) -> None:
    """Write a file in one step: where that fails, what was there before is still there."""
    if not path.is_file():  # a pipe
        path.write_text(text)
        return
    path = path.resolve()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        whole = Path(scratch) / path.name
        whole.write_text(text)
        whole.chmod(path.stat().st_mode & 0o777)
        whole.replace(path)
