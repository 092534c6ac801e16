"""How well answers are: exact match and F1 on a SQuAD v1.1 file, by its official metric.

The metric is that of Rajpurkar et al., 2016: answers are compared as lower-case words without ASCII punctuation and
articles; each question counts with the reference answer that fits best. An answer's F1 is that of its bag of words.
"""

from __future__ import annotations

import json
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distilqa.answer import Answer
from distilqa.errors import DatasetError, InvalidRequest

# The longest answer, in tokens, that SQuAD's evaluations allow.
MAX_ANSWER_TOKENS = 30

_LONGEST_SHOWN_ID = 80

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a passage, and the answers that people gave."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]


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

    @property
    def predictions(self) -> dict[str, str]:
        """The text of each answer by its question's id, which is what the official script reads."""
        return {question.id: answer.text for question, answer in self._pairs()}

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

    Raises DatasetError, naming the question, for one that cannot be answered.
    """

    def answer_one(question: Question) -> Answer:
        try:
            return answer(question)
        except InvalidRequest as error:
            raise DatasetError(f"question {shown_id(question.id)}: {error}") from error

    began = time.monotonic()
    answers: list[Answer] = []
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="evaluate")
    try:
        for done in pool.map(answer_one, questions):
            answers.append(done)
            progress(len(answers))
    finally:
        pool.shutdown(cancel_futures=True)
    return Evaluation(questions, answers, time.monotonic() - began)


def exact_match(prediction: str, reference: str) -> float:
    """1 if the two are the same after `normalize`, otherwise 0."""
    return float(normalize(prediction) == normalize(reference))


def f1(prediction: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the words after `normalize`; 0 where they share none."""
    predicted, wanted = normalize(prediction).split(), normalize(reference).split()
    shared = (Counter(predicted) & Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def normalize(text: str) -> str:
    """Lower-case words without ASCII punctuation and English articles, one space between them."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def read_questions(path: Path) -> list[Question]:
    """The questions of a SQuAD v1.1 file. Raises DatasetError if it is none, or a question has no answer."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    return parse_questions(content, str(path))


def parse_questions(content: bytes, name: str) -> list[Question]:
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
        raise DatasetError(f"{name}: is not a SQuAD v1.1 file ({type(error).__name__}: {error})") from error
    if not questions:
        raise DatasetError(f"{name}: has no questions")
    for question in questions:
        if not question.answers:
            raise DatasetError(
                f"{name}: question {shown_id(question.id)} has no answer; SQuAD v1.1 is needed, in which each has"
                " (v2 has others)"
            )
    [(most, times)] = Counter(question.id for question in questions).most_common(1)
    if times > 1:
        raise DatasetError(f"{name}: {times} questions have the id {shown_id(most)}")
    return questions


def shown_id(id: str) -> str:
    """As it may stand in an error: ids are what a file says they are."""
    return id if id.isascii() and id.isprintable() and len(id) <= _LONGEST_SHOWN_ID else f"{id[:_LONGEST_SHOWN_ID]!a}"


def _question(fields: dict[str, Any], context: object) -> Question:
    answers = () if fields.get("is_impossible") else tuple(answer["text"] for answer in fields["answers"])
    question = Question(fields["id"], fields["question"], context, answers)  # type: ignore[arg-type]
    if not all(isinstance(text, str) for text in (question.id, question.question, context, *answers)):
        raise TypeError(f"id, question, context and answers must be strings: {question!r:.200}")
    return question
