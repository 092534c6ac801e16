"""``distilqa eval``: measure exact match and F1 on a SQuAD file."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distilqa.bundle import GPU_VARIANTS, Bundle
from distilqa.cli.commands import Commands, add_command
from distilqa.errors import InvalidRequest, VariantUnusable
from distilqa.text.answer import Answer

if TYPE_CHECKING:
    from distilqa.evaluation.dataset import Question
    from distilqa.evaluation.no_answer import Verdict
    from distilqa.reader import Reader


def add(commands: Commands) -> None:
    evaluation = add_command(commands, "eval", _run, "measure exact match and F1 on a SQuAD file")
    evaluation.add_argument("bundle", type=Path, metavar="BUNDLE")
    evaluation.add_argument("file", type=Path, metavar="FILE", help="questions with answers, dev-v1.1.json say")
    evaluation.add_argument("--variant", help="of the bundle, also unverified (default: all that can be used here)")
    evaluation.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write the answers too, for the official script"
    )
    evaluation.add_argument(
        "--allow-no-answer", action="store_true",
        help='let "no answer" compete, in a file of SQuAD v2 say, and measure as its official script does',
    )  # fmt: skip
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
    questions = read_questions(arguments.file, allow_no_answer=arguments.allow_no_answer)
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
        began = time.monotonic()
        verdicts = _ask(reader, questions, allow_no_answer=arguments.allow_no_answer)
        seconds = time.monotonic() - began
        not_asked = sum(bool(one.problem) for one in verdicts)
        found = _measured(verdicts, allow_no_answer=arguments.allow_no_answer)
        counts = {"questions": len(verdicts), "not_asked": not_asked}
        rate = (len(verdicts) - not_asked) / seconds
        results[variant] = found | counts | {"answers_per_second": rate}
        if not arguments.json:
            print(f"{variant}: {_in_words(found)}; {_count(verdicts)}, {rate:.1f} answers/s", flush=True)
        if arguments.predictions:
            _write_whole(arguments.predictions, json.dumps({one.question.id: one.text for one in verdicts}))
    if arguments.json:
        print(json.dumps(results))
    _tell_not_asked(verdicts)  # of the last variant: they are the same of each
    return 0


def _ask(reader: Reader, questions: Sequence[Question], *, allow_no_answer: bool) -> list[Verdict]:
    """Answer with a lane a core, each run on its own core: nobody waits for a single answer here."""
    from distilqa.engine.cores import usable_cores
    from distilqa.evaluation.evaluate import MAX_ANSWER_TOKENS, ask_all
    from distilqa.evaluation.no_answer import Verdict
    from distilqa.evaluation.progress import ProgressBar
    from distilqa.text import spans

    def ask(question: Question) -> Verdict:
        try:
            tokenized = reader.windower.tokenize(question.question, [question.context])
        except InvalidRequest as error:
            return Verdict(question, None, 1.0, problem=str(error))
        logits = [reader.engine.run([window.input_ids])[0] for window in tokenized.windows]
        [answer] = spans.decode(tokenized, logits, max_answer_tokens=MAX_ANSWER_TOKENS)
        return Verdict(question, answer, spans.no_answer_score(tokenized, logits) if allow_no_answer else 0.0)

    with ProgressBar(reader.variant, len(questions), sys.stderr) as progress:
        return ask_all(questions, ask, lanes=usable_cores(), progress=progress)


# How measures are shown, by the first of each group.
_SHOWN = {
    "exact_match": "exact match {exact_match:.2f}, F1 {f1:.2f}",
    "has_answer_exact_match": "with an answer: exact match {has_answer_exact_match:.2f}, F1 {has_answer_f1:.2f}",
    "no_answer_exact_match": "without: both {no_answer_exact_match:.2f}",
    "best_exact_match": "best exact match {best_exact_match:.2f} at threshold {best_exact_match_threshold:.3g}",
    "best_f1": "best F1 {best_f1:.2f} at threshold {best_f1_threshold:.3g}",
}


def _in_words(found: dict[str, float]) -> str:
    return "; ".join(shown.format_map(found) for first, shown in _SHOWN.items() if first in found)


def _count(verdicts: Sequence[Verdict]) -> str:
    return f"{len(verdicts):,} question{'' if len(verdicts) == 1 else 's'}"


def _tell_not_asked(verdicts: Sequence[Verdict]) -> None:
    from distilqa.evaluation.dataset import shown_id

    not_asked = [one for one in verdicts if one.problem]
    if not not_asked:
        return
    first = not_asked[0]
    counted = "counts as not answered: it is" if len(not_asked) == 1 else "count as not answered: the first is"
    print(
        f"{len(not_asked):,} of {_count(verdicts)} could not be asked and {counted}"
        f" question {shown_id(first.question.id)} ({first.problem})",
        file=sys.stderr,
    )


def _measured(verdicts: Sequence[Verdict], *, allow_no_answer: bool) -> dict[str, float]:
    """In per cent, but for thresholds; nothing of a kind of question that the file does not have."""
    from distilqa.evaluation.evaluate import Evaluation
    from distilqa.evaluation.no_answer import best, scores

    if not allow_no_answer:
        nothing = Answer("", 0, 0, 0.0, None)
        found = Evaluation([one.question for one in verdicts], [one.answer or nothing for one in verdicts], 0.0)
        return {"exact_match": found.exact_match, "f1": found.f1}
    every, limit = scores(verdicts), best(verdicts)
    measured = {"exact_match": every.exact_match, "f1": every.f1}
    if (some := scores(verdicts, lambda question: bool(question.answers))).questions:
        measured |= {"has_answer_exact_match": some.exact_match, "has_answer_f1": some.f1}
    if (none := scores(verdicts, lambda question: not question.answers)).questions:
        measured |= {"no_answer_exact_match": none.exact_match}
    return measured | {
        "best_exact_match": limit.exact_match,
        "best_exact_match_threshold": limit.exact_match_threshold,
        "best_f1": limit.f1,
        "best_f1_threshold": limit.f1_threshold,
    }


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
