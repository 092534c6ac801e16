"""SQuAD v2's metric, against the implementation of it that transformers has."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.data.metrics.squad_metrics import squad_evaluate

from distilqa.evaluation.dataset import Question
from distilqa.evaluation.no_answer import Scores, Verdict, best, scores
from distilqa.text.answer import Answer

TEXTS = st.lists(st.sampled_from(["fox", "dog", "the", "1887", "Fox,", "."]), max_size=4).map(" ".join)


@st.composite
def verdicts(draw: st.DrawFn) -> list[Verdict]:
    found = []
    # That script takes equal scores apart, by their order in the file.
    for number, no_answer_score in enumerate(draw(st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True))):
        references = tuple(draw(st.lists(TEXTS.filter(bool), max_size=3)))
        answer = draw(st.none() | st.builds(Answer, TEXTS, st.just(0), st.just(1), st.floats(0, 1), st.just(0)))
        found.append(Verdict(Question(str(number), "?", "text", references), answer, no_answer_score))
    return found


def reference(verdicts: list[Verdict], texts: list[str]) -> dict[str, float]:
    examples = [
        SimpleNamespace(qas_id=one.question.id, answers=[{"text": text} for text in one.question.answers])
        for one in verdicts
    ]
    predicted = {one.question.id: text for one, text in zip(verdicts, texts, strict=True)}
    return dict(squad_evaluate(examples, predicted, {one.question.id: one.no_answer_score for one in verdicts}))


@given(verdicts())
def test_as_the_official_script_does(verdicts: list[Verdict]) -> None:
    expected = reference(verdicts, [one.text for one in verdicts])
    every, some = scores(verdicts), scores(verdicts, lambda question: bool(question.answers))
    none = scores(verdicts, lambda question: not question.answers)
    for name, found in (("", every), ("HasAns_", some), ("NoAns_", none)):
        wanted = [expected.get(f"{name}{measure}", 0) for measure in ("total", "exact", "f1")]
        assert [found.questions, found.exact_match, found.f1] == pytest.approx(wanted)


@given(verdicts())
def test_the_best_threshold_is_the_official_script_s(verdicts: list[Verdict]) -> None:
    expected = reference(verdicts, [one.answer.text if one.answer else "" for one in verdicts])
    found = best(verdicts)
    assert [found.exact_match, found.exact_match_threshold, found.f1, found.f1_threshold] == pytest.approx(
        [expected[name] for name in ("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh")]
    )


@given(verdicts(), st.randoms())
def test_the_best_does_not_depend_on_the_order(verdicts: list[Verdict], random: Random) -> None:
    """Nor takes apart what has equal scores, since no threshold does."""
    rounded = [replace(one, no_answer_score=round(one.no_answer_score)) for one in verdicts]
    found = best(rounded)
    shuffled = random.sample(rounded, len(rounded))
    assert best(shuffled).exact_match == pytest.approx(found.exact_match)
    assert best(shuffled).f1 == pytest.approx(found.f1)


def test_no_answer_wins_where_it_is_likelier() -> None:
    question = Question("q", "?", "text", ())
    answer = Answer("fox", 0, 3, 0.4, 0)
    assert [Verdict(question, answer, score).text for score in (0.3, 0.5)] == ["fox", ""]
    assert Verdict(question, None, 0.0).text == ""
    assert scores([Verdict(question, answer, 0.5)]) == Scores(1, 100.0, 100.0)
    assert scores([], lambda question: True) == Scores(0, 0.0, 0.0)
