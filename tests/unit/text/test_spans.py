"""Spans against the formula of the module's docstring, written out here in loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilqa.errors import InferenceFailed
from distilqa.text.answer import Answer
from distilqa.text.arrays import Float32, Logits
from distilqa.text.spans import decode
from distilqa.text.windows import MAX_ANSWER_CHARACTERS, Passage, Tokenized, Window, cut

# [CLS] and a question of one token and its [SEP] come before the passage.
PASSAGE_AT = 3

# More than there are places in any request made here.
ALL = 10_000

# Binary fractions, so that sums are exact and ties are ties; the few values of the first make many of them.
TIED = st.integers(-1, 1).map(float)
SPREAD = st.integers(-80, 80).map(lambda quarter: quarter / 4)
LOGITS = st.sampled_from((TIED, SPREAD))


def passage_of(pieces: Sequence[int]) -> Passage:
    """A passage whose words consist of so many tokens each."""
    text, starts, words = "", list[int](), list[int]()
    for number, count in enumerate(pieces):
        starts += range(len(text), len(text) + count)
        words += [number] * count
        text += chr(ord("a") + number) * count + " "
    at = np.array(starts, np.int64)
    return Passage(text, np.zeros_like(at), at, at + 1, np.array(words, np.int64))


def parts_of(passage: Passage, most: int, align_to_words: bool = True) -> list[tuple[int, int]]:
    """For each token, the first and the last of the part of an answer that it belongs to."""
    words = [[t for t, word in enumerate(passage.words) if word == own] for own in passage.words]
    return [(word[0], word[-1]) if align_to_words and len(word) <= most else (t, t) for t, word in enumerate(words)]


def tokenized_of(passages: Sequence[Passage], room: int, stride: int) -> Tokenized:
    windows = [
        Window(np.zeros(PASSAGE_AT + end - start + 1, np.int64), number, PASSAGE_AT, start)
        for number, passage in enumerate(passages)
        for start, end in cut(len(passage.ids), room, stride)
    ]
    return Tokenized(tuple(passages), tuple(windows))


def in_one_window(pieces: Sequence[int]) -> Tokenized:
    return tokenized_of([passage_of(pieces)], room=sum(pieces), stride=0)


def logits_of(passage_logits: Sequence[float], null: float, other: float = 50.0) -> Float32:
    """One window's logits: [CLS], the question and [SEP] (which nobody may look at), the passage, [SEP]."""
    return np.array([null, other, other, *passage_logits, other], np.float32)


@st.composite
def passages(draw: st.DrawFn) -> Passage:
    return passage_of(draw(st.lists(st.integers(1, 3), min_size=1, max_size=7)))


@st.composite
def requests(draw: st.DrawFn, values: st.SearchStrategy[float] | None = None) -> tuple[Tokenized, list[Logits]]:
    room = draw(st.integers(1, 9))
    stride = draw(st.integers(0, room // 2))
    tokenized = tokenized_of(draw(st.lists(passages(), min_size=1, max_size=3)), room, stride)
    values = draw(LOGITS) if values is None else values

    def side(window: Window) -> Float32:
        drawn = draw(st.lists(values, min_size=window.passage_tokens + 1, max_size=window.passage_tokens + 1))
        return logits_of(drawn[1:], null=drawn[0])

    return tokenized, [(side(window), side(window)) for window in tokenized.windows]


def reference(
    tokenized: Tokenized,
    logits: Sequence[Logits],
    *,
    top_k: int = 1,
    max_answer_tokens: int = 15,
    allow_no_answer: bool = False,
    align_to_words: bool = True,
) -> list[Answer]:
    """What `decode` must return: the docstring's formula, one loop for each of its words."""
    null = (math.inf, math.inf)
    for start, end in logits:
        if float(start[0]) + float(end[0]) < sum(null):
            null = (float(start[0]), float(end[0]))

    normalizers = []
    for side in (0, 1):
        largest: dict[tuple[int, int], float] = {}
        for window, pair in zip(tokenized.windows, logits, strict=True):
            for at in range(window.passage_at, window.length - 1):
                token = (window.passage, window.first_token + at - window.passage_at)
                largest[token] = max(largest.get(token, -math.inf), float(pair[side][at]))
        normalizers.append(math.exp(null[side]) + math.fsum(math.exp(logit) for logit in largest.values()))

    best: dict[tuple[int, int, int], float] = {}
    for window, (start, end) in zip(tokenized.windows, logits, strict=True):
        passage = tokenized.passages[window.passage]
        shown: dict[tuple[int, int, int], float] = {}
        for i in range(window.passage_at, window.length - 1):
            for j in range(i, window.length - 1):
                parts = parts_of(passage, max_answer_tokens, align_to_words)
                first, _ = parts[window.first_token + i - window.passage_at]
                _, last = parts[window.first_token + j - window.passage_at]
                if last - first + 1 > max_answer_tokens:
                    continue
                place = (window.passage, int(passage.starts[first]), int(passage.ends[last]))
                score = math.exp(start[i]) / normalizers[0] * math.exp(end[j]) / normalizers[1]
                shown[place] = shown.get(place, 0.0) + score
        for place, score in shown.items():
            best[place] = max(best.get(place, 0.0), score)

    ranked = [
        (-score, passage, start, Answer(tokenized.passages[passage].text[start:end], start, end, score, passage))
        for (passage, start, end), score in best.items()
    ]
    if allow_no_answer:
        score = math.exp(null[0]) / normalizers[0] * math.exp(null[1]) / normalizers[1]
        ranked.append((-score, len(tokenized.passages), 0, Answer("", 0, 0, score, None)))
    ranked.sort(key=lambda item: (*item[:3], item[3].end))
    return [answer for *_, answer in ranked[:top_k]]


def assert_same(found: Sequence[Answer], expected: Sequence[Answer], all_expected: Sequence[Answer]) -> None:
    """The same scores in the same order, each at a place that has it: equal sums may differ in the last digit.

    ``all_expected`` are the answers among which those that tie with the last may be chosen.
    """
    assert [answer.score for answer in found] == pytest.approx(
        [answer.score for answer in expected], rel=1e-9, abs=1e-300
    )
    scores = {(answer.passage, answer.start, answer.end, answer.text): answer.score for answer in all_expected}
    for answer in found:
        place = (answer.passage, answer.start, answer.end, answer.text)
        assert scores.pop(place) == pytest.approx(answer.score, rel=1e-9, abs=1e-300)


def shown(answers: Sequence[Answer]) -> list[Any]:
    """Answers to compare, their scores but for rounding."""
    return [(a.passage, a.start, a.end, a.text, pytest.approx(a.score, rel=1e-9, abs=1e-300)) for a in answers]


@given(
    asked=requests(),
    top_k=st.integers(1, 20) | st.just(ALL),
    max_answer_tokens=st.integers(1, 12),
    allow_no_answer=st.booleans(),
    align_to_words=st.booleans(),
)
def test_answers_are_those_of_the_formula(
    asked: tuple[Tokenized, list[Logits]],
    top_k: int,
    max_answer_tokens: int,
    allow_no_answer: bool,
    align_to_words: bool,
) -> None:
    options: dict[str, Any] = {
        "top_k": top_k,
        "max_answer_tokens": max_answer_tokens,
        "allow_no_answer": allow_no_answer,
        "align_to_words": align_to_words,
    }
    everything = reference(*asked, **(options | {"top_k": ALL}))
    assert_same(decode(*asked, **options), everything[:top_k], everything)


@given(asked=requests(), max_answer_tokens=st.integers(1, 4), align_to_words=st.booleans())
def test_no_answer_has_more_tokens_than_may_be(
    asked: tuple[Tokenized, list[Logits]], max_answer_tokens: int, align_to_words: bool
) -> None:
    """And there is one, however long the words are. Here a token is a character."""
    answers = decode(*asked, top_k=ALL, max_answer_tokens=max_answer_tokens, align_to_words=align_to_words)
    assert answers
    assert all(len(answer.text.replace(" ", "")) <= max_answer_tokens for answer in answers)


def test_a_word_that_alone_has_more_tokens_is_taken_apart() -> None:
    """And only such a word: what is likeliest here is two of the four tokens of one word."""
    logits = (logits_of([0.0, 5.0, 0.0, 0.0, 0.0], null=0.0), logits_of([0.0, 0.0, 5.0, 0.0, 0.0], null=0.0))

    def best(most: int, **options: Any) -> str:
        return decode(in_one_window([4, 1]), [logits], max_answer_tokens=most, **options)[0].text

    assert [best(most) for most in (2, 3, 4)] == ["aa", "aa", "aaaa"]
    assert best(4, align_to_words=False) == "aa"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_no_numbers_fail(number: float, at: int, side: int) -> None:
    """Also that of [CLS], which no answer needs."""
    logits = [logits_of([1.0, 2.0], null=0.0) for _ in range(2)]
    logits[side][at if at == 0 else PASSAGE_AT] = number
    with pytest.raises(InferenceFailed):
        decode(in_one_window([1, 1]), [(logits[0], logits[1])])


def test_an_answer_is_not_longer_than_anybody_reads() -> None:
    text = "a " + "b" * (MAX_ANSWER_CHARACTERS + 1) + " c"
    at = np.array([0, 2, len(text) - 1]), np.array([1, len(text) - 2, len(text)])
    tokenized = tokenized_of([Passage(text, np.zeros(3, np.int64), *at, np.arange(3))], room=3, stride=0)
    logits = (logits_of([1.0, 9.0, 1.0], null=0.0), logits_of([1.0, 9.0, 1.0], null=0.0))
    assert {answer.text for answer in decode(tokenized, [logits], top_k=ALL)} == {"a", "c"}


def test_defaults() -> None:
    tokenized = in_one_window([1] * 20)
    logits = (logits_of([9.0] + [0.0] * 19, null=0.0), logits_of([0.0] * 15 + [5.0] + [0.0] * 4, null=30.0))
    answers = decode(tokenized, [logits])
    assert shown(answers) == shown(reference(tokenized, [logits], top_k=1, max_answer_tokens=15))
    assert answers[0].end - answers[0].start < 31


@given(asked=requests() | requests(st.floats(-1e4, 1e4, width=32)), allow_no_answer=st.booleans())
def test_scores_are_one_distribution(asked: tuple[Tokenized, list[Logits]], allow_no_answer: bool) -> None:
    tokenized, logits = asked
    answers = decode(tokenized, logits, top_k=ALL, max_answer_tokens=ALL, allow_no_answer=allow_no_answer)
    scores = [answer.score for answer in answers]
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert math.fsum(scores) <= 1.0 + 1e-9
    assert scores == sorted(scores, reverse=True)
    places = [(answer.passage, answer.start, answer.end) for answer in answers]
    assert len(set(places)) == len(places)
    for answer in answers:
        assert type(answer.score) is float
        if answer.passage is not None:
            assert tokenized.passages[answer.passage].text[answer.start : answer.end] == answer.text != ""


@given(
    pieces=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    max_answer_tokens=st.integers(1, 15),
    allow_no_answer=st.booleans(),
    data=st.data(),
)
def test_one_window_scores_as_the_reference_pipeline(
    pieces: list[int], max_answer_tokens: int, allow_no_answer: bool, data: st.DataObject
) -> None:
    """transformers 4.57, question_answering.py: decode_spans and select_starts_ends, for one window."""
    tokenized = in_one_window(pieces)
    (window,), (passage,) = tokenized.windows, tokenized.passages
    values = st.lists(st.floats(-20, 20, width=32), min_size=len(passage.ids) + 1, max_size=len(passage.ids) + 1)
    start, end = (logits_of(drawn[1:], null=drawn[0]) for drawn in data.draw(st.tuples(values, values)))

    undesired = np.ones(window.length, bool)
    undesired[0] = undesired[window.passage_at : -1] = False
    starts, ends = (np.where(undesired, -10000.0, side.astype(np.float64)) for side in (start, end))
    starts, ends = (np.exp(side - side.max()) / np.exp(side - side.max()).sum() for side in (starts, ends))
    null_score = starts[0] * ends[0]
    starts[0] = ends[0] = 0.0
    candidates = np.tril(np.triu(np.outer(starts, ends)), max_answer_tokens - 1)

    answers = decode(
        tokenized, [(start, end)], top_k=ALL, max_answer_tokens=max_answer_tokens, allow_no_answer=allow_no_answer
    )

    expected: dict[tuple[int, int], float] = {}
    parts = parts_of(passage, max_answer_tokens)
    for i, j in zip(*np.nonzero(candidates), strict=True):
        first, last = parts[i - PASSAGE_AT][0], parts[j - PASSAGE_AT][1]
        if last - first + 1 > max_answer_tokens:  # the reference would return more than was asked for
            continue
        place = int(passage.starts[first]), int(passage.ends[last])
        expected[place] = expected.get(place, 0.0) + candidates[i, j]
    scores = {(answer.start, answer.end): answer.score for answer in answers if answer.passage is not None}
    assert scores == pytest.approx(expected, rel=1e-9)
    nulls = [answer for answer in answers if answer.passage is None]
    assert shown(nulls) == ([(None, 0, 0, "", pytest.approx(null_score, rel=1e-9))] if allow_no_answer else [])


@given(
    words=st.integers(4, 20),
    room=st.integers(2, 9),
    allow_no_answer=st.booleans(),
    data=st.data(),
)
def test_windows_that_agree_answer_as_one_would(
    words: int, room: int, allow_no_answer: bool, data: st.DataObject
) -> None:
    """What two windows show counts once: cutting a passage up changes no score of a place that a window holds."""
    pieces = [1] * words
    stride = data.draw(st.integers(0, room // 2))
    whole, parts = in_one_window(pieces), tokenized_of([passage_of(pieces)], room, stride)
    values = st.lists(SPREAD, min_size=sum(pieces) + 1, max_size=sum(pieces) + 1)
    null_start, *start = data.draw(values)
    null_end, *end = data.draw(values)

    def logits(window: Window) -> Logits:
        shown = slice(window.first_token, window.first_token + window.passage_tokens)
        return logits_of(start[shown], null_start), logits_of(end[shown], null_end)

    # Spans of more than this many tokens may lie in no window.
    options: dict[str, Any] = {"top_k": ALL, "max_answer_tokens": stride + 1, "allow_no_answer": allow_no_answer}
    expected = decode(whole, [logits(window) for window in whole.windows], **options)
    assert_same(decode(parts, [logits(window) for window in parts.windows], **options), expected, expected)


def test_equal_scores_are_ranked_by_place() -> None:
    """Also where a later window shows a place that starts before those of an earlier one."""
    tokenized = tokenized_of([passage_of([1] * 8), passage_of([1, 1, 1])], room=4, stride=2)
    logits = [(logits_of([0.0] * w.passage_tokens, null=0.0),) * 2 for w in tokenized.windows]
    answers = decode(tokenized, logits, top_k=ALL)
    places = [(answer.passage, answer.start, answer.end) for answer in answers]
    assert len({answer.score for answer in answers}) == 1
    assert places == sorted(places)
    for top_k in range(1, len(places)):
        assert decode(tokenized, logits, top_k=top_k) == answers[:top_k]


def test_equal_texts_at_different_places_both_stay() -> None:
    text = "yes no yes"
    places = np.array([0, 4, 7]), np.array([3, 6, 10])
    tokenized = tokenized_of([Passage(text, np.zeros(3, np.int64), *places, np.arange(3))], room=3, stride=0)
    logits = (logits_of([4.0, 0.0, 3.0], null=0.0), logits_of([4.0, 0.0, 3.0], null=0.0))
    answers = decode(tokenized, [logits], top_k=2, max_answer_tokens=1)
    assert [(answer.text, answer.start) for answer in answers] == [("yes", 0), ("yes", 7)]
    assert answers[0].score > answers[1].score


def test_no_answer_is_the_window_that_is_least_sure_of_it() -> None:
    """One passage says strongly that it holds nothing; the other one answers."""
    tokenized = tokenized_of([passage_of([1, 1]), passage_of([1, 1])], room=2, stride=0)
    silent = (logits_of([-5.0, -5.0], null=12.0), logits_of([-5.0, -5.0], null=12.0))
    telling = (logits_of([8.0, -5.0], null=-9.0), logits_of([8.0, -5.0], null=-9.0))
    best, *_ = decode(tokenized, [silent, telling], allow_no_answer=True)
    assert (best.passage, best.text) == (1, "a")
    assert best.score > 0.99


def test_no_answer_wins_where_every_window_says_so() -> None:
    tokenized = in_one_window([1, 1])
    silent = (logits_of([-5.0, -5.0], null=12.0), logits_of([-5.0, -5.0], null=12.0))
    assert decode(tokenized, [silent], allow_no_answer=True)[0].passage is None
    assert decode(tokenized, [silent])[0].passage == 0


@pytest.mark.parametrize("pairs", [1, 3])
def test_logits_must_be_one_pair_a_window(pairs: int) -> None:
    tokenized = tokenized_of([passage_of([1, 1, 1, 1])], room=2, stride=0)
    assert len(tokenized.windows) == 2
    with pytest.raises(ValueError, match=r"zip\(\)"):
        decode(tokenized, [(logits_of([1.0, 2.0], null=0.0),) * 2] * pairs)


def test_spans_of_one_place_add_up() -> None:
    """A word of three tokens can start at each of them, and end there or after it: six ways to give it."""
    tokenized = in_one_window([3, 1])
    even = logits_of([0.0] * 4, null=-100.0)
    scores = {answer.text: answer.score for answer in decode(tokenized, [(even, even)], top_k=ALL)}
    assert scores == pytest.approx({"aaa": 6 / 16, "aaa b": 3 / 16, "b": 1 / 16})


def test_a_place_that_is_far_behind_is_still_there() -> None:
    tokenized = in_one_window([1, 1])
    sides = (logits_of([500.0, -500.0], null=0.0), logits_of([500.0, -500.0], null=0.0))
    answers = decode(tokenized, [sides], top_k=ALL)
    assert [(answer.text, answer.score) for answer in answers] == [("a", 1.0), ("a b", 0.0), ("b", 0.0)]
