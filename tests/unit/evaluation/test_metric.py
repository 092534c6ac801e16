"""SQuAD v1.1's metric against numbers worked out by hand, and against loops."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distilqa.evaluation.metric import exact_match, f1, normalize

# What the metric cares about: articles and what is nearly one, punctuation in and beyond ASCII, spaces of all kinds,
# letters whose lower case is longer or depends on the next, and accents that stand alone.
PIECES = ["a", "an", "the", "The", "A", "n", "th", "e", "theatre", "fox", "dog", "49", "15"]
PIECES += [*" .,-_'\"$", *"–—’“”…", *"\t\n\u00a0\u3000\u200b\x1c\x85", *"İıßΣσςÉé日本", "e\u0301", "\u0301"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=12).map("".join)
WORDS = st.lists(st.sampled_from(["fox", "dog", "1887", "the", "Fox,"]), max_size=7).map(" ".join)


def reference_words(text: str) -> list[str]:
    """The official script's four steps, one character at a time: lower case, punctuation, articles, white space."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    runs: list[str] = []  # of word characters, or of others
    for character in kept:
        if runs and _in_word(runs[-1][-1]) == _in_word(character):
            runs[-1] += character
        else:
            runs.append(character)
    words, word = [], ""
    for character in "".join(" " if run in ("a", "an", "the") else run for run in runs) + " ":
        if not character.isspace():
            word += character
        elif word:
            words.append(word)
            word = ""
    return words


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def reference_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of precision and recall; each word of the reference can be found once."""
    predicted, left = reference_words(prediction), reference_words(reference)
    wanted, shared = len(left), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / wanted
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("Denver Broncos", "denver broncos"),
        (" \t two\r\n\n words ", "two words"),
        ("The quick fox", "quick fox"),
        ("A an THE", ""),
        ("fox and the dog", "fox and dog"),
        ("theatre, another Athens", "theatre another athens"),
        ("a.b", "ab"),
        ("A.", ""),
        ("the-end", "theend"),
        ("well-known", "wellknown"),
        ("U.S.A.", "usa"),
        ("don't", "dont"),
        ("a_b", "ab"),
        (string.punctuation, ""),
        ("$1,000", "1000"),
        ("3.5%", "35"),
        ("49-15", "4915"),
        ("49–15", "49–15"),
        ("1 – 2", "1 – 2"),
        ("the—end", "—end"),
        ("the ’90s", "’90s"),
        ("‘the’ end", "‘ ’ end"),
        ("“Fox”", "“fox”"),
        ("Beyoncé", "beyoncé"),
        ("Beyonce\u0301", "beyonce\u0301"),
        ("\u00e1", "\u00e1"),
        ("a\u0301", "\u0301"),
        ("Diyarbakır", "diyarbakır"),
        ("İzmir", "i\u0307zmir"),
        ("Straße", "straße"),
        ("ΣΟΦΟΣ", "σοφος"),
        ("the\u00a0fox\u3000jumps\u2003over", "fox jumps over"),
        ("fox\u200bdog", "fox\u200bdog"),
        ("日本の灯塔", "日本の灯塔"),
        ("灯塔。the港", "灯塔。the港"),
        ("「the」", "「 」"),
        ("£5 a day", "£5 day"),
        ("½", "½"),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


GOLDENS = [
    # prediction, reference, exact match, F1 = 2 · shared / (words of one + words of the other)
    ("Denver Broncos", "Denver Broncos", 1, 1),
    ("the Denver Broncos!", "denver broncos", 1, 1),
    ("Broncos Denver", "Denver Broncos", 0, 1),
    ("Denver", "Denver Broncos", 0, 2 / 3),
    ("the champion Denver Broncos", "Denver Broncos", 0, 4 / 5),
    ("Carolina Panthers", "Denver Broncos", 0, 0),
    # bags: a word counts as often as both have it
    ("dog dog dog", "dog", 0, 2 / 4),
    ("dog dog cat", "dog dog bird", 0, 4 / 6),
    ("dog dog", "dog cat dog dog", 0, 4 / 6),
    # nothing left after normalising: the same, but no word is shared
    ("", "", 1, 0),
    ("the", "", 1, 0),
    ("The!", "a an", 1, 0),
    ("...", "fox", 0, 0),
    ("fox", "the", 0, 0),
    # words are whole words
    ("theatre", "atre", 0, 0),
    ("the theatre", "theatre", 1, 1),
    ("well-known fox", "well known fox", 0, 2 / 5),
    ("well-known", "wellknown", 1, 1),
    # numbers
    ("$1,000", "1000", 1, 1),
    ("1,000", "1 000", 0, 0),
    ("49–15", "49-15", 0, 0),
    ("49-15", "4915", 1, 1),
    ("0.5", "05", 1, 1),
    # beyond ASCII nothing is folded
    ("“fox”", '"fox"', 0, 0),
    ("’90s", "'90s", 0, 0),
    ("Beyoncé", "Beyonce\u0301", 0, 0),
    ("Beyoncé", "BEYONCÉ", 1, 1),
    ("Diyarbakır", "Diyarbakir", 0, 0),
    ("İzmir", "izmir", 0, 0),
    ("Straße", "Strasse", 0, 0),
    ("red\u00a0fox", "red fox", 1, 1),
    ("red\u200bfox", "red fox", 0, 0),
    ("灯塔", "灯 塔", 0, 0),
    ("日本 東京", "日本", 0, 2 / 3),
]


@pytest.mark.parametrize(("prediction", "reference", "expected_em", "expected_f1"), GOLDENS)
def test_metric(prediction: str, reference: str, expected_em: float, expected_f1: float) -> None:
    assert exact_match(prediction, reference) == exact_match(reference, prediction) == expected_em
    assert f1(prediction, reference) == f1(reference, prediction) == pytest.approx(expected_f1, abs=1e-12)
    assert reference_f1(prediction, reference) == pytest.approx(expected_f1, abs=1e-12)


@given(TEXTS)
@example("a\u0301 a\u0301n")
@example("Σ'a Σ-")
def test_normalize_agrees_with_loops_and_changes_nothing_twice(text: str) -> None:
    assert normalize(text) == " ".join(reference_words(text))
    assert normalize(normalize(text)) == normalize(text)


@given(TEXTS | WORDS, TEXTS | WORDS)
@example("a", "the")
def test_metric_agrees_with_loops(one: str, other: str) -> None:
    assert exact_match(one, other) == (reference_words(one) == reference_words(other))
    assert f1(one, other) == pytest.approx(reference_f1(one, other), abs=1e-12)


@given(TEXTS | WORDS, TEXTS | WORDS)
def test_f1_is_a_similarity_of_bags(one: str, other: str) -> None:
    words, others = reference_words(one), reference_words(other)
    assert 0 <= f1(one, other) <= 1
    assert f1(one, other) == f1(other, one)
    assert (f1(one, other) == 1) == (sorted(words) == sorted(others) != [])
    assert (f1(one, other) == 0) == set(words).isdisjoint(others)
    if exact_match(one, other) and words:
        assert f1(one, other) == 1


@given(WORDS, st.randoms(use_true_random=False))
def test_f1_does_not_know_the_order(text: str, random: Any) -> None:
    shuffled = random.sample(words := text.split(), len(words))
    assert f1(" ".join(shuffled), text) == float(normalize(text) != "")
