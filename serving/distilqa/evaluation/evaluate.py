"""Asking many questions, and what the answers are worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from distilqa.errors import DatasetError, InvalidRequest
from distilqa.evaluation.dataset import Question, shown_id
from distilqa.evaluation.metric import exact_match, f1
from distilqa.text.answer import Answer

_Reply = TypeVar("_Reply")

# The longest answer, in tokens, that SQuAD's evaluations allow.
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class Evaluation:
    """The best answer to each question, and what they are worth. ``seconds`` is how long answering took."""

    questions: Sequence[Question]
    answers: Sequence[Answer]
    seconds: float

    @cached_property
    def exact_matches(self) -> list[float]:
        """Of each question, 0 or 1."""
        return self._by_question(exact_match)

    @cached_property
    def f1s(self) -> list[float]:
        """Of each question, from 0 to 1."""
        return self._by_question(f1)

    @property
    def exact_match(self) -> float:
        """In per cent."""
        return 100 * sum(self.exact_matches) / len(self.exact_matches)

    @property
    def f1(self) -> float:
        """In per cent."""
        return 100 * sum(self.f1s) / len(self.f1s)

    def _by_question(self, metric: Callable[[str, str], float]) -> list[float]:
        """Each with the reference answer that fits best."""
        return [max(metric(answer.text, text) for text in question.answers) for question, answer in self._pairs()]

    def _pairs(self) -> Iterable[tuple[Question, Answer]]:
        return zip(self.questions, self.answers, strict=True)


def evaluate(
    questions: Sequence[Question],
    answer: Callable[[Question], Answer],
    *,
    lanes: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Answer each question, as many at once as there are lanes; ``progress`` is told how many are done.

    Raises DatasetError, naming the question, for one that cannot be asked.
    """
    began = time.monotonic()
    answers = ask_all(questions, answer, lanes=lanes, progress=progress)
    return Evaluation(questions, answers, time.monotonic() - began)


def ask_all(
    questions: Sequence[Question],
    ask: Callable[[Question], _Reply],
    *,
    lanes: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[_Reply]:
    """What asking each gives, as `evaluate` asks."""

    def ask_one(question: Question) -> _Reply:
        try:
            return ask(question)
        except InvalidRequest as error:
            raise DatasetError(f"question {shown_id(question.id)}: {error}") from error

    replies: list[_Reply] = []
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="evaluate")
    try:
        for done in pool.map(ask_one, questions):
            replies.append(done)
            progress(len(replies))
    finally:
        pool.shutdown(cancel_futures=True)
    return replies
