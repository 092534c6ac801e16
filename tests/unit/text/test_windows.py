"""Windows: what the model is shown of a question and its passages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any
from unicodedata import category

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordLevel

from distilqa.errors import BundleError, InferenceFailed, InvalidRequest
from distilqa.text.windows import MAX_ANSWER_CHARACTERS, MAX_QUESTION_TOKENS, Tokenized, Windower, count_windows, cut

# Window lengths that are tried; the last is that of the bundles.
MAX_TOKENS = (24, 48, 384)

# Characters that the tokenizer drops, joins, splits or replaces, and special tokens written out.
AWKWARD = (
    *("e\u0301", "\u0301", "a\u0301\u0302\u0323", "\u1e9b\u0323", "\u0130", "I\u0307", "\ufb01", "\uac00\ub098"),
    *("\u6771\u4eac", "漢字", "😀", "👩\u200d👩\u200d👧", "🇸🇪", "\u200b", "\u202e", "\ufeff", "\ufffd", "\u037e"),
    *("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u2260", "\u0344", "[SEP]", "[CLS]", "##", "'"),
)
SEPARATORS = ("", " ", "\0", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "-", ".")
WORDS = ("the", "fox", "jumps", "unbelievable", "internationalization", "1887", "U.S.")

FRAGMENTS = st.sampled_from(AWKWARD) | st.sampled_from(WORDS) | st.text(max_size=4)
LONG_TEXTS = st.builds(
    lambda pairs, times: "".join(part for pair in pairs for part in pair) * times,
    st.lists(st.tuples(FRAGMENTS, st.sampled_from(SEPARATORS)), min_size=1, max_size=12),
    st.integers(1, 100),
)
# These are tokens for us, and characters for the tokenizer as it is set here.
TOKENS = ("[MASK]", "[PAD]", "[UNK]")
TEXTS = (st.text() | LONG_TEXTS).filter(lambda text: not any(token in text for token in TOKENS))
QUESTIONS = st.sampled_from(("Who jumps?", "\u6771", "caf e\u0301?")) | st.text(max_size=10)

BLANK = ("", " ", "\r\n\t", "\u3000", "\u200b", "\0", "\u0301", "\ufffd")


@pytest.fixture(scope="module")
def windowers(tokenizer_json: str) -> dict[int, Windower]:
    return {length: Windower(tokenizer_json, max_tokens=length) for length in MAX_TOKENS}


@pytest.fixture(scope="module")
def windower(windowers: dict[int, Windower]) -> Windower:
    return windowers[384]


def encode(tokenizer: Tokenizer, text: str) -> Encoding:
    return tokenizer.encode(text, add_special_tokens=False)


def room_of(tokenizer: Tokenizer, question: str, max_tokens: int) -> int:
    """How many passage tokens a window holds; only for questions that leave it at least half."""
    question_tokens = len(encode(tokenizer, question).ids)
    assume(0 < question_tokens <= max_tokens // 2 - 3)
    return max_tokens - 3 - question_tokens


def words(count: int) -> str:
    return "fox " * count


def problem_of(windower: Windower, question: str, passages: Sequence[str], **options: int) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        windower.tokenize(question, passages, **options)
    return caught.value


@given(
    question=QUESTIONS,
    texts=st.lists(LONG_TEXTS, min_size=1, max_size=3),
    max_tokens=st.sampled_from(MAX_TOKENS),
    data=st.data(),
)
def test_windows_show_every_token_in_order(
    windowers: dict[int, Windower],
    tokenizer: Tokenizer,
    question: str,
    texts: list[str],
    max_tokens: int,
    data: st.DataObject,
) -> None:
    """[CLS] question [SEP] part [SEP], parts that overlap by exactly the stride, and nothing left out."""
    encodings = [encode(tokenizer, text) for text in texts]
    room = room_of(tokenizer, question, max_tokens)
    assume(all(encoding.ids for encoding in encodings))
    stride = data.draw(st.integers(0, room // 2))

    tokenized = windowers[max_tokens].tokenize(question, texts, doc_stride=stride)

    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    head = [cls, *encode(tokenizer, question).ids, sep]
    assert [window.passage for window in tokenized.windows] == sorted(window.passage for window in tokenized.windows)
    for number, encoding in enumerate(encodings):
        windows = [window for window in tokenized.windows if window.passage == number]
        assert len(windows) == count_windows(len(encoding.ids), room, stride)
        assert windows[0].first_token == 0
        for window in windows:
            end = window.first_token + window.passage_tokens
            assert window.input_ids.tolist() == [*head, *encoding.ids[window.first_token : end], sep]
            assert window.input_ids.dtype == np.int64
            assert window.passage_at == len(head)
            assert window.length == len(window.input_ids) <= max_tokens
        for before, after in pairwise(windows):
            assert before.length == max_tokens
            assert before.first_token + before.passage_tokens - after.first_token == stride
            assert before.first_token + before.passage_tokens < len(encoding.ids)
        assert windows[-1].first_token + windows[-1].passage_tokens == len(encoding.ids)


@given(question=QUESTIONS, text=LONG_TEXTS, max_tokens=st.sampled_from(MAX_TOKENS), data=st.data())
def test_windows_are_those_of_the_tokenizers_own_truncation(
    windowers: dict[int, Windower],
    tokenizer: Tokenizer,
    question: str,
    text: str,
    max_tokens: int,
    data: st.DataObject,
) -> None:
    room = room_of(tokenizer, question, max_tokens)
    assume(encode(tokenizer, text).ids)
    stride = data.draw(st.integers(0, room // 2))
    tokenizer.enable_truncation(max_tokens, stride=stride, strategy="only_second")
    try:
        first = tokenizer.encode(question, text)
    finally:
        tokenizer.no_truncation()

    tokenized = windowers[max_tokens].tokenize(question, [text], doc_stride=stride)

    assert [window.input_ids.tolist() for window in tokenized.windows] == [
        encoding.ids for encoding in (first, *first.overflowing)
    ]


@given(text=TEXTS)
@example(text="cafe\u0301 \u1e9b\u0323 e\u0301tude")
@example(text="internationalization")
def test_word_places_are_those_of_the_tokenizers_words(windower: Windower, tokenizer: Tokenizer, text: str) -> None:
    encoding = encode(tokenizer, text)
    assume(encoding.ids)
    words: dict[int, list[tuple[int, int]]] = {}
    for word, places in zip(encoding.word_ids, encoding.offsets, strict=True):
        words.setdefault(word, []).append(places)

    (passage,) = windower.tokenize("Who?", [text]).passages

    assert passage.text == text
    assert passage.ids.tolist() == encoding.ids
    assert passage.words.tolist() == [sorted(words).index(word) for word in encoding.word_ids]
    assert passage.starts.tolist() == [start for start, _ in encoding.offsets]
    for (_, end), found in zip(encoding.offsets, passage.ends.tolist(), strict=True):
        assert end <= found <= len(text)
        assert all(category(mark) == "Mn" for mark in text[end:found])
        assert category(text[found : found + 1] or " ") != "Mn"
    assert np.all(passage.starts < passage.ends)
    assert np.all(np.diff(passage.starts) >= 0)
    assert np.all(np.diff(passage.ends) >= 0)


def test_a_tokenizer_without_a_token_for_unknown_words_is_refused(tokenizer_json: str) -> None:
    content = json.loads(tokenizer_json)
    del content["model"]["vocab"]["[UNK]"]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[UNK]"]
    with pytest.raises(BundleError, match=r"tokenizer\.json: .*\[UNK\]"):
        Windower(json.dumps(content), max_tokens=384)


def test_separators_written_out_are_text(windower: Windower, tokenizer: Tokenizer) -> None:
    """Or who writes a text could end it. Other tokens are what they are for the checkpoint."""
    spelt = "[CLS] a [SEP] b[SEP]c [MASK] d"
    (window,) = windower.tokenize(spelt, [spelt]).windows
    special = [tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]")]
    found = [(at, special.index(token)) for at, token in enumerate(window.input_ids.tolist()) if token in special]
    question, passage = window.passage_at - 3, window.length - 3
    assert found == [(0, 0), (question, 2), (window.passage_at - 1, 1), (passage, 2), (window.length - 1, 1)]


def test_separators_are_known_by_their_role(tokenizer_json: str) -> None:
    """Not by their names, which some checkpoints have as <s> and </s>, and also where training has left its padding."""
    trained = Tokenizer.from_str(tokenizer_json)
    trained.enable_padding(length=64)
    trained.enable_truncation(4)
    renamed = trained.to_str().replace("[CLS]", "<s>").replace("[SEP]", "</s>")
    windows = [
        Windower(content, max_tokens=64).tokenize("Who?", [f"A {name} b."]).windows[0].input_ids.tolist()
        for content, name in ((tokenizer_json, "fox"), (renamed, "fox"), (renamed, "</s>"))
    ]
    assert windows[0] == windows[1]
    assert [windows[2].count(102), windows[2][-1]] == [2, 102]


def test_a_word_that_two_windows_share_is_known_whole(tokenizer: Tokenizer, windowers: dict[int, Windower]) -> None:
    word = "internationalization"
    pieces = len(encode(tokenizer, word).ids)
    room = 24 - 3 - 2
    before = words(room - 1)

    tokenized = windowers[24].tokenize("Who?", [before + word], doc_stride=0)

    assert tokenized.windows[1].first_token == room < room - 1 + pieces
    passage = tokenized.passages[0]
    assert len(set(passage.words[room - 1 :].tolist())) == 1
    assert passage.words.tolist() == list(range(room - 1)) + [room - 1] * pieces
    assert (passage.starts[room - 1], passage.ends[-1]) == (len(before), len(before + word))


@given(tokens=st.integers(1, 400), room=st.integers(1, 60), data=st.data())
def test_cut_covers_all_tokens_and_count_windows_counts(tokens: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(0, room - 1))
    parts = list(cut(tokens, room, stride))
    assert count_windows(tokens, room, stride) == len(parts)
    assert (parts[0][0], parts[-1][1]) == (0, tokens)
    assert all(0 < end - start <= room for start, end in parts)
    assert all(before[1] - after[0] == stride and before[1] < after[1] for before, after in pairwise(parts))


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(384, 128), (48, (48 - 3 - 2) // 2)], ids=["128", "half the room"]
)
def test_default_stride(windowers: dict[int, Windower], max_tokens: int, expected: int) -> None:
    first, second, *_ = windowers[max_tokens].tokenize("Who?", [words(800)]).windows
    assert first.first_token + first.passage_tokens - second.first_token == expected


@pytest.mark.parametrize("stride", [0, 64, (384 - 3 - 2) // 2])
def test_strides_in_range(windower: Windower, stride: int) -> None:
    first, second, *_ = windower.tokenize("Who?", [words(800)], doc_stride=stride).windows
    assert first.first_token + first.passage_tokens - second.first_token == stride


@pytest.mark.parametrize("stride", [-1, (384 - 3 - 2) // 2 + 1, 10**9])
def test_strides_out_of_range(windower: Windower, stride: int) -> None:
    problem = problem_of(windower, "Who?", [words(800)], doc_stride=stride)
    assert problem.field == "doc_stride"
    assert str(stride) in str(problem)
    assert "0 to 189" in str(problem)


@pytest.mark.parametrize("text", BLANK)
def test_blank_question(windower: Windower, text: str) -> None:
    assert problem_of(windower, text, ["A fox."]).field == "question"


@pytest.mark.parametrize("text", [*BLANK, "x" * (MAX_ANSWER_CHARACTERS + 1)])
def test_a_blank_passage_is_passed_over_where_another_has_words(windower: Windower, text: str) -> None:
    tokenized = windower.tokenize("Who?", [text, "A fox.", text])
    assert [window.passage for window in tokenized.windows] == [1]
    assert [passage.is_blank for passage in tokenized.passages] == [True, False, True]
    none = "no word of 4,096 characters or fewer" if "x" in text else "no words"
    assert str(problem_of(windower, "Who?", [text])) == f"passages[0]: has {none}"
    assert str(problem_of(windower, "Who?", [text, text])) == f"passages: have {none}"


# How a word is written, and what of it the tokenizer reads.
MARKED = {
    "decomposed": ("Bre\u0301", "bre"),
    "Vietnamese, decomposed": ("Vie\u0323\u0302t", "viet"),
    "two marks at the end": ("to\u0323\u0302", "to"),
    "Hebrew": ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd\u05b0", "\u05e9\u05dc\u05d5\u05dd"),
    "Thai": ("\u0e17\u0e35\u0e48", "\u0e17"),
    "emoji": ("\u2764\ufe0f", "\u2764"),
}


@pytest.mark.parametrize(("written", "read"), MARKED.values(), ids=MARKED)
@pytest.mark.parametrize("after", ["", " ", ".", " end", "\u0301"], ids=["end", "space", "point", "word", "mark"])
def test_a_word_ends_after_its_marks(windower: Windower, written: str, read: str, after: str) -> None:
    (passage,) = windower.tokenize("Who?", [f"A {written}{after}"]).passages
    word = passage.words == 1
    assert (passage.starts[word][0], passage.ends[word][-1]) == (2, 2 + len(written) + (after == "\u0301"))
    assert len(read) < len(written)


@pytest.mark.parametrize("passages", [[], ()])
def test_no_passages(windower: Windower, passages: Sequence[str]) -> None:
    assert problem_of(windower, "Who?", passages).field == "passages"


@given(before=st.text(max_size=5), surrogate=st.integers(0xD800, 0xDFFF).map(chr), after=st.text(max_size=5))
def test_lone_surrogates_are_refused(windower: Windower, before: str, surrogate: str, after: str) -> None:
    text = before + surrogate + after
    for question, passages, field in ((text, ["A fox."], "question"), ("Who?", ["A fox.", text], "passages[1]")):
        problem = problem_of(windower, question, passages)
        assert problem.field == field
        assert f"character {len(before)}" in str(problem)


def test_longest_question(windower: Windower) -> None:
    assert MAX_QUESTION_TOKENS == windower.max_question_tokens == 128
    tokenized = windower.tokenize(words(MAX_QUESTION_TOKENS), ["A fox."])
    assert tokenized.windows[0].passage_at == MAX_QUESTION_TOKENS + 2


def test_question_of_too_many_characters(windower: Windower) -> None:
    for question in (words(5000), "x" * 4097):
        assert "4096" in str(problem_of(windower, question, ["A fox."]))
    assert windower.tokenize("x" * 4096, ["A fox."]).windows


@pytest.mark.parametrize("tokens", [MAX_QUESTION_TOKENS + 1, 200, 381, 382])
def test_over_long_question(windower: Windower, tokens: int) -> None:
    problem = problem_of(windower, words(tokens), ["A fox."])
    assert problem.field == "question"
    assert str(tokens) in str(problem)
    assert str(MAX_QUESTION_TOKENS) in str(problem)


def test_question_that_leaves_room_for_one_token(windowers: dict[int, Windower]) -> None:
    windows = windowers[24].tokenize(words(20), [words(40)]).windows
    assert [(window.length, window.first_token) for window in windows] == [(24, n) for n in range(40)]


@pytest.mark.parametrize("tokens", [21, 22, 30, MAX_QUESTION_TOKENS])
def test_question_that_leaves_no_room(windowers: dict[int, Windower], tokens: int) -> None:
    """A model with few positions: the limit on questions is what its window can hold."""
    assert problem_of(windowers[24], words(tokens), [words(40)]).field == "question"


def test_max_windows_counts_all_passages(windower: Windower) -> None:
    passages = [words(800), words(10), words(500)]
    total = len(windower.tokenize("Who?", passages).windows)
    assert total > len(passages)
    assert len(windower.tokenize("Who?", passages, max_windows=total).windows) == total
    problem = problem_of(windower, "Who?", passages, max_windows=total - 1)
    assert problem.field == "passages"
    assert f"{total} windows" in str(problem)
    assert f"limit is {total - 1}" in str(problem)


def test_the_tokenizers_own_padding_and_truncation_are_off(tokenizer_json: str, windower: Windower) -> None:
    padded = Tokenizer.from_str(tokenizer_json)
    padded.enable_padding(length=64)
    padded.enable_truncation(8)
    as_it_was = windower.tokenize("Who jumps?", [words(50)])
    assert ids(Windower(padded.to_str(), max_tokens=384).tokenize("Who jumps?", [words(50)])) == ids(as_it_was)


def ids(tokenized: Tokenized) -> list[list[int]]:
    return [window.input_ids.tolist() for window in tokenized.windows]


def test_threads_do_not_disturb_each_other(windower: Windower) -> None:
    requests = [(words(n % 50 + 1), [words(n * 7 + 1), words(n + 1)], n % 60) for n in range(60)]
    alone = [ids(windower.tokenize(q, p, doc_stride=s)) for q, p, s in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda r: ids(windower.tokenize(r[0], r[1], doc_stride=r[2])), requests))
    assert together == alone


@pytest.mark.parametrize("text", ["", "not JSON", "[]", json.dumps({"version": "1.0"})])
def test_unreadable_tokenizer(text: str) -> None:
    with pytest.raises(BundleError, match=r"^tokenizer\.json: "):
        Windower(text, max_tokens=384)


@pytest.mark.parametrize("missing", ["[CLS]", "[SEP]"])
def test_tokenizer_without_special_tokens(missing: str) -> None:
    vocabulary = {"[UNK]": 0, **{name: 1 for name in ("[CLS]", "[SEP]") if name != missing}}
    with pytest.raises(BundleError) as caught:
        Windower(Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")).to_str(), max_tokens=384)
    assert missing in str(caught.value)


class PanicException(BaseException):
    """Of Rust's code in `tokenizers`, by this name."""


def test_a_panic_of_the_tokenizer_is_an_error(windower: Windower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a call would have no reply. All others pass."""

    class Panicking:
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def encode_batch(self, *_: Any, **__: Any) -> None:
            raise self.error("no such range")

    monkeypatch.setattr(windower, "_tokenizer", Panicking(PanicException))
    with pytest.raises(InferenceFailed, match="the tokenizer failed"):
        windower.tokenize("Who?", ["A fox."])
    monkeypatch.setattr(windower, "_tokenizer", Panicking(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        windower.tokenize("Who?", ["A fox."])
