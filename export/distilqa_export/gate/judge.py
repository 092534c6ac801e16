"""What a model's answers are worth beside fp32's, with as few of fp32's as that takes.

fp32 is the slowest to ask, and answers all but a few per cent of the questions as int8 does. Where it does not, int8
itself hesitated: its second place was almost as likely as its first. So a model answers every question, and fp32 those
where the model's margin is near what its logits are off by; of the others it is asked a sample, in which each counts
for those that were not (Horvitz and Thompson, 1952). What is lost, and its interval, are as of all questions.

Of the answers that a model is sure of, hundreds are asked, and if one of them is not fp32's, fp32 is asked everything:
such a model is not what this counts on. If none is, fewer than one in a hundred of them are, with 95 per cent
confidence ("rule of three": Hanley and Lippman-Hand, 1983). What those would lose is not in the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distilqa.bundle import GPU_VARIANTS
from distilqa.engine.cores import usable_cores
from distilqa.engine.cuda.engine import open_cuda_session
from distilqa.engine.session import open_session
from distilqa.evaluation.dataset import Question, shown_id
from distilqa.evaluation.evaluate import MAX_ANSWER_TOKENS, Evaluation, evaluate
from distilqa.text.answer import Answer
from distilqa.text.arrays import Float32
from distilqa.text.spans import decode
from distilqa.text.windows import Tokenized
from distilqa_export.arrays import Float64
from distilqa_export.errors import ExportError
from distilqa_export.gate.check import Run, logits_of, runner
from distilqa_export.progress import Progress, tenths

_RESAMPLES = 10_000
LEVEL = 95

# What share of the questions fp32 is asked, by the margin in errors of the logits, up to so many. Of the shipped
# checkpoint's answers that differ from fp32's 97 % are within the first, and all within the second.
_SHARES = ((3.0, 1.0), (10.0, 0.4))
# With a larger margin a model is sure. Of those it is asked so many.
_SURE, _SURE_ASKED = 10.0, 300
# Fewer questions are all asked.
_SAMPLED_FROM = 500


@dataclass(frozen=True, slots=True)
class Drop:
    """By how many points F1 falls, and the interval in which that lies with 95 per cent confidence."""

    points: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model's answers to all questions, and what they are beside fp32's.

    ``agreement`` is the share of answers at fp32's place. ``fp32_exact_match`` and ``fp32_f1``, in per cent, are worked
    out from the ``asked`` questions that fp32 has answered. ``largest_difference`` is that of any logit, on other text.
    """

    evaluation: Evaluation
    drop: Drop
    agreement: float
    fp32_exact_match: float
    fp32_f1: float
    asked: int
    largest_difference: float


def open_run(model: Path) -> Run:
    """What runs a saved model that is named after its variant, on one thread if on the CPU."""
    return runner(open_cuda_session(model) if model.stem in GPU_VARIANTS else open_session(model, threads=1))


class Judge:
    """Judges saved models by the evaluation's questions and beside a saved fp32 model.

    ``tokenized`` has each question by its id; ``text`` is what logits are compared on. ``progress`` is told of each
    tenth of the questions.
    """

    def __init__(
        self,
        fp32: Path,
        questions: Sequence[Question],
        tokenized: Mapping[str, Tokenized],
        text: Sequence[Tokenized],
        progress: Progress,
    ) -> None:
        self._fp32 = fp32
        self._questions = questions
        self._tokenized = tokenized
        self._text = text
        self._progress = progress
        self._known: dict[str, Answer] = {}
        self._draws = np.random.default_rng(0).random(len(questions))

    def scores(self, model: Path) -> Evaluation:
        """Its answers to all questions."""
        return self._answer(model, self._questions, {})

    def compare(self, model: Path) -> Comparison:
        """Its answers to all questions, beside as many of fp32's as it takes."""
        differences = self._logits(model) - self._fp32_logits
        error = float(np.sqrt((differences**2).mean()))
        by_id: dict[str, float] = {}
        found = self._answer(model, self._questions, by_id)
        margins = np.array([by_id[question.id] for question in self._questions])
        share = asked_share(margins, error)
        asked = self._draws < share
        self._ask_fp32(asked)
        if _elsewhere(self._beside(found), found)[margins > _SURE * error].any():
            share = np.ones_like(share)
            asked = self._draws < share
            self._ask_fp32(asked)
        fp32 = self._beside(found)
        weights = asked / share
        matches_lost = weights * (np.array(fp32.exact_matches) - np.array(found.exact_matches))
        drop = f1_drop(fp32, found, weights)
        return Comparison(
            found,
            drop,
            agreement(fp32, found, weights),
            found.exact_match + 100 * float(matches_lost.mean()),
            found.f1 + drop.points,
            int(asked.sum()),
            float(np.abs(differences).max()),
        )

    def _ask_fp32(self, asked: npt.NDArray[np.bool_]) -> None:
        """Those of the questions, (questions,), that it has not answered before."""
        wanted = zip(self._questions, asked, strict=True)
        new = [question for question, one in wanted if one and question.id not in self._known]
        for question, answer in zip(new, self._answer(self._fp32, new, {}).answers, strict=True):
            self._known[question.id] = answer

    def _beside(self, found: Evaluation) -> Evaluation:
        """fp32's answers as far as they are known, and a model's where not: others' weights make that good."""
        pairs = zip(self._questions, found.answers, strict=True)
        return Evaluation(self._questions, [self._known.get(question.id, answer) for question, answer in pairs], 0.0)

    def _answer(self, model: Path, questions: Sequence[Question], margins: dict[str, float]) -> Evaluation:
        run = open_run(model)
        told = tenths(model.stem, max(1, len(questions)), "questions", self._progress)
        return answer_all(run, questions, self._tokenized, told, margins)

    @cached_property
    def _fp32_logits(self) -> Float32:
        return self._logits(self._fp32)

    def _logits(self, model: Path) -> Float32:
        run = open_run(model)
        with ThreadPoolExecutor(usable_cores()) as pool:
            found = list(pool.map(lambda one: logits_of(run, one), self._text))
        return np.concatenate([np.array(pair) for pairs in found for pair in pairs], axis=1)


def answer_all(
    run: Run,
    questions: Sequence[Question],
    tokenized: Mapping[str, Tokenized],
    progress: Callable[[int], None],
    margins: dict[str, float] | None = None,
) -> Evaluation:
    """Answer the questions with a model, on a core each. ``tokenized`` has each question by its id.

    ``progress`` is told how many are done; ``margins`` takes, by id, how far the logarithm of the best answer's score
    is above the second's.
    """
    margins = {} if margins is None else margins

    def answer(question: Question) -> Answer:
        one = tokenized[question.id]
        logits = logits_of(run, one)
        if not all(np.isfinite(pair).all() for pair in logits):
            raise ExportError(f"question {shown_id(question.id)}: the model's logits are no finite numbers")
        best, *others = decode(one, logits, top_k=2, max_answer_tokens=MAX_ANSWER_TOKENS)
        second = others[0].score if others else 0.0
        margins[question.id] = float(np.log(best.score / second)) if second > 0 else np.inf
        return best

    return evaluate(questions, answer, lanes=usable_cores(), progress=progress)


def asked_share(margins: Float64, error: float) -> Float64:
    """Of questions with such margins, (questions,), the share that fp32 is asked, by the error of the logits."""
    if len(margins) < _SAMPLED_FROM or not np.isfinite(error):
        return np.ones(len(margins))
    of_sure = min(1.0, _SURE_ASKED / max(1, int((margins > _SURE * error).sum())))
    return np.select([margins <= most * error for most, _ in _SHARES], [share for _, share in _SHARES], of_sure)


def f1_drop(before: Evaluation, after: Evaluation, weights: Float64 | float = 1.0) -> Drop:
    """How much F1 falls between two models' answers to the same questions, which count by their weights.

    The interval is a paired bootstrap's (Efron, 1979), which draws passages: questions on one are not independent.
    """
    losses = 100 * weights * (np.array(before.f1s) - np.array(after.f1s))
    numbers: dict[str, int] = {}
    passage = [numbers.setdefault(question.context, len(numbers)) for question in before.questions]
    lost, count = np.bincount(passage, losses), np.bincount(passage)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(0, len(lost), len(lost))
        means.append(lost[drawn].sum() / count[drawn].sum())
    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Drop(float(losses.mean()), float(low), float(high))


def agreement(one: Evaluation, other: Evaluation, weights: Float64 | float = 1.0) -> float:
    """The share of questions that have the same place for an answer; they count by their weights."""
    return 1 - float((weights * _elsewhere(one, other)).mean())


def _elsewhere(one: Evaluation, other: Evaluation) -> npt.NDArray[np.bool_]:
    """Which answers, (questions,), are not at the same place."""
    pairs = zip(one.answers, other.answers, strict=True)
    return np.array([(a.start, a.end) != (b.start, b.end) for a, b in pairs])
