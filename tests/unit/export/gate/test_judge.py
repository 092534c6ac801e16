"""Judging: what is lost, its interval, and that few of fp32's answers tell nearly as much as all."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from distilqa.evaluation.dataset import Question
from distilqa.evaluation.evaluate import Evaluation
from distilqa.text.answer import Answer
from distilqa.text.arrays import Float32
from distilqa.text.windows import Windower
from distilqa_export.errors import ExportError
from distilqa_export.gate.judge import Judge, agreement, answer_all, asked_share, f1_drop
from distilqa_export.graph.checkpoint import Checkpoint


def evaluation(right: Sequence[bool], contexts: Sequence[str] | None = None) -> Evaluation:
    """Answers to questions whose answer is "yes", some of them right."""
    contexts = contexts or [f"passage {number}" for number in range(len(right))]
    questions = [Question(str(number), "?", context, ("yes",)) for number, context in enumerate(contexts)]
    answers = [Answer("yes", 0, 3, 1.0, 0) if one else Answer("no", 4, 6, 1.0, 0) for one in right]
    return Evaluation(questions, answers, 1.0)


def test_drop_is_in_points_of_f1() -> None:
    drop = f1_drop(evaluation([True] * 100), evaluation([True] * 97 + [False] * 3))
    assert drop.points == pytest.approx(3.0)
    # Binomial: three of a hundred, give or take twice the square root of 2.91.
    assert drop.low == pytest.approx(0.0, abs=1.01)
    assert drop.high == pytest.approx(6.5, abs=1.01)


def test_drop_is_paired() -> None:
    """What both get wrong says nothing about their difference."""
    same = [True, False] * 200
    drop = f1_drop(evaluation(same), evaluation(same))
    assert (drop.points, drop.low, drop.high) == (0, 0, 0)


def test_a_gain_is_a_negative_drop() -> None:
    assert f1_drop(evaluation([False, True]), evaluation([True, True])).points == -50


def test_questions_on_one_passage_are_drawn_together() -> None:
    """Where all questions of a passage fall together there are fewer independent cases, and the interval is wider."""
    before, after = [True] * 400, [number % 100 >= 4 for number in range(400)]
    apart = f1_drop(evaluation(before), evaluation(after))
    four = [f"passage {number % 100}" for number in range(400)]
    together = f1_drop(evaluation(before, four), evaluation(after, four))
    assert together.points == apart.points == pytest.approx(4)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_contexts_are_told_apart_however_long_they_are() -> None:
    """Neither does the longest decide on memory, nor are NULs at the end lost."""
    before, after = [True] * 4000, [number % 2 == 0 for number in range(4000)]
    contexts = ["x" * 1_000_000, *(f"passage {number}" for number in range(3997)), "a", "a\0"]
    tracemalloc.start()
    f1_drop(evaluation(before, contexts), evaluation(after, contexts))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


def test_agreement_is_the_share_of_equal_places() -> None:
    assert agreement(evaluation([True, False, True, False]), evaluation([True, True, True, False])) == 0.75


def test_questions_count_by_their_weights() -> None:
    """One of two that were not asked is lost with the one that was, and so is its place."""
    before, after = evaluation([True] * 100), evaluation([False] + [True] * 99)
    weights = np.array([2.0, 0.0, *[1.0] * 98])
    assert f1_drop(before, after, weights).points == pytest.approx(2)
    assert agreement(before, after, weights) == pytest.approx(0.98)


def test_all_are_asked_where_the_margin_is_near_the_error_and_fewer_beyond() -> None:
    margins = np.repeat([0.0, 0.29, 0.31, 0.99, 1.01, np.inf], 1000)
    assert asked_share(margins, 0.1)[::1000].tolist() == [1, 1, 0.4, 0.4, 0.15, 0.15], "300 of the last 2,000"
    assert (asked_share(margins, np.nan) == 1).all(), "of which nothing is known"
    assert asked_share(margins, 0.0)[::1000].tolist() == [1, *[0.06] * 5], "a model without error"
    assert asked_share(margins[::8], 0.1)[::125].tolist() == [1, 1, 0.4, 0.4, 1, 1], "as many as there are"
    assert (asked_share(margins[:499] + 5, 0.1) == 1).all(), "few are all asked"


QUESTIONS = 3000


class Sketched(Judge):
    """A judge of models that are only sketched: int8 is unlike fp32 where its margin is less than a logit's error."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        places = [f"passage {number // 2}" for number in range(QUESTIONS)]
        questions = [Question(str(number), "?", place, ("yes",)) for number, place in enumerate(places)]
        super().__init__(Path("cpu-fp32.onnx"), questions, {}, [], lambda step: None)
        self.margins = random.exponential(1.5, QUESTIONS)
        off = np.abs(random.normal(0, 0.14, QUESTIONS)) > self.margins
        self.answers = {"cpu-fp32": random.random(QUESTIONS) < 0.8}
        self.answers["cpu-int8"] = np.where(off, random.random(QUESTIONS) < 0.5, self.answers["cpu-fp32"])
        self.asked: list[str] = []

    def _logits(self, model: Path) -> Float32:
        return np.full((2, 100), 0.1 * (model.stem == "cpu-int8"), np.float32)

    def _answer(self, model: Path, questions: Sequence[Question], margins: dict[str, float]) -> Evaluation:
        if model.stem == "cpu-fp32":
            self.asked += [question.id for question in questions]
        numbers = [int(question.id) for question in questions]
        margins.update({question.id: self.margins[number] for question, number in zip(questions, numbers, strict=True)})
        found = evaluation([bool(self.answers[model.stem][number]) for number in numbers])
        return Evaluation(questions, found.answers, 1.0)

    def truth(self) -> tuple[Evaluation, Evaluation]:
        """Both models' answers to all questions."""
        fp32, int8 = (self._answer(Path(f"{name}.onnx"), self._questions, {}) for name in ("cpu-fp32", "cpu-int8"))
        return fp32, int8


def test_few_of_fp32s_answers_tell_what_all_would() -> None:
    off, wider, shares = [], [], []
    for seed in range(20):
        judge = Sketched(seed)
        fp32, int8 = judge.truth()
        expected = f1_drop(fp32, int8)
        judge.asked.clear()
        found = judge.compare(Path("cpu-int8.onnx"))
        assert len(judge.asked) == found.asked
        shares.append(found.asked / QUESTIONS)
        off.append(found.drop.points - expected.points)
        wider.append((found.drop.high - found.drop.low) / (expected.high - expected.low))
        assert found.agreement == pytest.approx(agreement(fp32, int8), abs=0.005)
        assert found.fp32_f1 == pytest.approx(int8.f1 + found.drop.points)
        assert found.fp32_exact_match == pytest.approx(found.fp32_f1), "of whole answers that are right or wrong"
        assert found.largest_difference == pytest.approx(0.1)
    assert np.mean(shares) < 0.5
    assert abs(np.mean(off)) < 0.03, "it is off to neither side"
    assert np.mean(wider) < 1.1


def test_a_model_that_is_sure_and_wrong_has_fp32_asked_everything() -> None:
    for seed in range(20):
        judge = Sketched(seed)
        judge.margins[:] = 50.0
        judge.answers["cpu-int8"] = judge.answers["cpu-fp32"] & (np.arange(QUESTIONS) % 50 > 0)
        fp32, int8 = judge.truth()
        judge.asked.clear()
        found = judge.compare(Path("cpu-int8.onnx"))
        assert found.asked == len(judge.asked) == QUESTIONS
        assert found.drop == f1_drop(fp32, int8)
        assert found.fp32_f1 == pytest.approx(fp32.f1)


def test_of_the_answers_that_a_model_is_sure_of_hundreds_are_asked() -> None:
    judge = Sketched(0)
    judge.margins[:] = 50.0
    judge.answers["cpu-int8"] = judge.answers["cpu-fp32"]
    found = judge.compare(Path("cpu-int8.onnx"))
    assert 250 < found.asked < 350
    assert (found.drop.points, found.agreement) == (0, 1)


def test_fp32_is_never_asked_twice() -> None:
    judge = Sketched(0)
    first = judge.compare(Path("cpu-int8.onnx"))
    again = judge.compare(Path("cpu-int8.onnx"))
    assert (again.drop, again.asked) == (first.drop, first.asked)
    assert len(judge.asked) == len(set(judge.asked)) == first.asked


@pytest.mark.parametrize(("least", "greatest", "largest"), [(0.0, 0.0, 0.0), (-2.5, 1.5, 2.5), (np.nan, 9.0, np.nan)])
def test_the_largest_difference_is_of_any_logit_and_hides_no_nan(
    least: float, greatest: float, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp32, other = np.zeros((2, 2, 100), np.float32)
    other[1, 4], other[0, 2] = least, greatest
    judge = Sketched(0)
    monkeypatch.setattr(judge, "_logits", lambda model: fp32 if model.stem == "cpu-fp32" else other)
    found = judge.compare(Path("cpu-int8.onnx"))
    np.testing.assert_equal(found.largest_difference, largest)


@pytest.fixture
def tied(tiny: Checkpoint) -> tuple[Windower, list[Question]]:
    questions = [
        Question("several", "What?", "one two three", ("one",)),
        Question("single", "What?", "one", ("one",)),
    ]
    return Windower(tiny.tokenizer_json, max_tokens=tiny.window_tokens), questions


def test_a_margin_is_how_far_the_best_answer_is_above_the_second(tied: tuple[Windower, list[Question]]) -> None:
    windower, questions = tied
    tokenized = {one.id: windower.tokenize(one.question, [one.context]) for one in questions}

    def run(windows: Sequence[np.ndarray]) -> list[Float32]:
        """The second of the passage's words starts and ends the answer, the third is 0.75 behind at either."""
        logits = np.full((1, len(windows[0])), -30, np.float32)
        logits[0, -4:-1] = (-30, 1.0, 0.25)
        return [logits, logits]

    margins: dict[str, float] = {}
    found = answer_all(run, questions, tokenized, lambda done: None, margins)
    assert [answer.text for answer in found.answers] == ["two", "one"]
    assert margins["several"] == pytest.approx(0.75, abs=1e-4), "from the second word to the third"
    assert margins["single"] == np.inf


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused(
    logit: float, place: int, tied: tuple[Windower, list[Question]]
) -> None:
    windower, questions = tied
    tokenized = {one.id: windower.tokenize(one.question, [one.context]) for one in questions}

    def run(windows: Sequence[np.ndarray]) -> list[Float32]:
        logits = np.zeros((1, len(windows[0])), np.float32)
        logits[0, place] = logit
        return [np.zeros_like(logits), logits]

    with pytest.raises(ExportError, match="question several: the model's logits are no finite numbers"):
        answer_all(run, questions[:1], tokenized, lambda done: None)
