"""SQuAD v2's official metric, for questions of which some have no answer.

It is that of Rajpurkar et al., 2018: where there is no answer, saying so counts 1 and anything else 0. `best` is what
could be had if "no answer" won from another score on, which is chosen on the questions themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from distilqa.evaluation.dataset import Question
from distilqa.evaluation.metric import exact_match, f1, normalize
from distilqa.text.answer import Answer


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found for a question: the best ``answer``, and the score of none.

    Of one that could not be asked ``problem`` says why, and there is no answer.
    """

    question: Question
    answer: Answer | None
    no_answer_score: float
    problem: str = ""

    @property
    def text(self) -> str:
        """What is answered: nothing, where that is likelier."""
        return "" if self.answer is None or self.no_answer_score > self.answer.score else self.answer.text


@dataclass(frozen=True, slots=True)
class Scores:
    """In per cent, over so many questions."""

    questions: int
    exact_match: float
    f1: float


@dataclass(frozen=True, slots=True)
class Best:
    """The highest scores that a threshold gives: "no answer" wins where its score is above it. In per cent."""

    exact_match: float
    exact_match_threshold: float
    f1: float
    f1_threshold: float


def scores(verdicts: Sequence[Verdict], wanted: Callable[[Question], bool] = lambda question: True) -> Scores:
    """Of those questions that are wanted, 0 where there are none."""
    own = [verdict for verdict in verdicts if wanted(verdict.question)]
    return Scores(len(own), *(_per_cent([_score(metric, one.question, one.text) for one in own]) for metric in METRICS))


def best(verdicts: Sequence[Verdict]) -> Best:
    exact, f1 = (_best(metric, verdicts) for metric in METRICS)
    return Best(*exact, *f1)


def _f1(prediction: str, reference: str) -> float:
    """As in v1, but that nothing is as good as nothing."""
    nothing = [not normalize(text) for text in (prediction, reference)]
    return float(all(nothing)) if any(nothing) else f1(prediction, reference)


METRICS: tuple[Callable[[str, str], float], ...] = (exact_match, _f1)


def _score(metric: Callable[[str, str], float], question: Question, text: str) -> float:
    """By the reference that fits best; those of no words are none."""
    references = [answer for answer in question.answers if normalize(answer)] or [""]
    return max(metric(text, reference) for reference in references)


def _best(metric: Callable[[str, str], float], verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """Raising the threshold from 0 gives one question after another its answer in the place of none."""
    score = best_score = float(sum(not verdict.question.answers for verdict in verdicts))
    threshold = 0.0
    by_score = sorted(verdicts, key=_no_answer_score)
    for no_answer_score, together in groupby(by_score, key=_no_answer_score):  # which no threshold tells apart
        for one in together:
            text = one.answer.text if one.answer else ""
            score += _score(metric, one.question, text) if one.question.answers else -bool(text)
        if score > best_score:
            best_score, threshold = score, no_answer_score
    return 100 * best_score / max(1, len(verdicts)), threshold


def _no_answer_score(verdict: Verdict) -> float:
    return verdict.no_answer_score


def _per_cent(values: Sequence[float]) -> float:
    return 100 * sum(values) / max(1, len(values))
