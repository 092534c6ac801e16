"""The fp32 variant against the question-answering pipeline of transformers 4.57.6, the reference.

``answers.jsonl`` holds what the reference answered; ``generate.py`` makes it. Wherever all fits one window the Reader
must find the same places, with the same scores. Two things stand between: the reference merges spans whose texts are
equal, also those of different places, and it adds up only the spans among its best 10 + 2 top_k. The goldens keep what
it merged, so places are compared as they were before; and a score may be larger than the reference's by what that left
out, which is under 1e-3 for nearly all.

Where the Reader differs on purpose, a test named for it says how and why, and shows where the reference is wrong.
"""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
import transformers
from tests.golden import generate, goldens
from tests.golden.goldens import Golden

from distilqa.engine.cores import usable_cores
from distilqa.errors import InvalidRequest
from distilqa.reader import Reader
from distilqa.text.answer import Answer
from distilqa.text.windows import DEFAULT_DOC_STRIDE

HEADER, GOLDENS = goldens.load()
DEV = [golden for golden in GOLDENS if golden.kind == goldens.DEV]
AWKWARD = [golden for golden in GOLDENS if golden.kind == goldens.AWKWARD]
DIFFERENT = {golden.name: golden for golden in GOLDENS if golden.kind == goldens.DIFFERENT}

TOP_K = HEADER["options"]["top_k"]
TOLERANCE = 1e-3

# More tokens than any word here has.
LONG = 64

# The reference's own scores are good to about 1e-6.
TIE = 1e-5

# The most that the reference left out of the score of any place here.
LEFT_OUT = 5e-3

Place = tuple[int, int]


@pytest.fixture(scope="module")
def reader(bundle: Path) -> Reader:
    return Reader(bundle, "cpu-fp32", threads=1)


def answers_of(reader: Reader, golden: Golden) -> list[Answer]:
    return reader.answer(golden.question, golden.context, top_k=TOP_K)


def places_of(golden: Golden) -> dict[Place, float]:
    """The best places of the reference before it merged any, best first, each with the sum of its spans.

    The reference leaves out the marks that combine with a place's last character: the Reader's end after them.
    """
    places: dict[Place, float] = {}
    for part in (part for answer in golden.answers for part in answer.parts):
        end = part.end
        while category(golden.context[end : end + 1] or " ") == "Mn":
            end += 1
        places[part.start, end] = places.get((part.start, end), 0.0) + part.score
    return dict(sorted(places.items(), key=lambda item: -item[1]))


def same(golden: Golden, answers: list[Answer]) -> bool:
    """Whether the best answer is the reference's before it merged any; a place that is as likely will do.

    No place may score less than in the reference, or more by more than what the reference left out of its sums.
    """
    places, ours = places_of(golden), {(answer.start, answer.end): answer.score for answer in answers}
    best = next(iter(places))
    return (
        ours.get(best, -1.0) == pytest.approx(answers[0].score, abs=TOLERANCE)
        and all(-TIE <= ours[place] - score <= LEFT_OUT for place, score in places.items() if place in ours)
        and all(answer.text == golden.context[answer.start : answer.end] for answer in answers)
    )


def same_as_it_came(golden: Golden, answers: list[Answer]) -> bool:
    """Whether the best answer is the reference's as it came, merged or not."""
    best, ours = golden.answers[0], answers[0]
    place = (best.text, best.start, best.end) == (ours.text, ours.start, ours.end)
    return place and ours.score == pytest.approx(best.score, abs=TOLERANCE)


def shown(golden: Golden, answers: list[Answer]) -> str:
    return f"{golden.name}: {golden.question}\n  reference: {golden.answers}\n  reader:    {answers}"


def test_goldens_are_of_these_texts_and_this_checkpoint(checkpoint: Path) -> None:
    assert [(g.kind, g.name, g.question, g.context) for g in GOLDENS if g.kind != goldens.DEV] == [*generate.by_hand()]
    assert generate.header() == HEADER
    assert HEADER["sha256"] == generate.digests(checkpoint)


def test_goldens_were_asked_with_what_the_reader_does_by_default(reader: Reader) -> None:
    parameters = inspect.signature(Reader.answer).parameters
    assert HEADER["options"] == {
        "top_k": TOP_K,
        "max_answer_len": parameters["max_answer_tokens"].default,
        "doc_stride": parameters["doc_stride"].default or DEFAULT_DOC_STRIDE,
        "max_seq_len": reader.windower.max_tokens,
    }


def test_another_version_of_the_reference_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any) -> None:
        pytest.fail("it went on")

    monkeypatch.setattr(transformers, "__version__", "4.57.5")
    monkeypatch.setattr(generate, "open_pipeline", unwanted)
    with pytest.raises(SystemExit, match=r"transformers 4\.57\.6; installed is 4\.57\.5"):
        generate.main([])


def test_development_set(reader: Reader) -> None:
    """Every question: the same place and nearly the same score; as the reference's answers came, 19 of 20 and more."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        answers = list(pool.map(lambda golden: answers_of(reader, golden), DEV))
    wrong = [shown(golden, ours) for golden, ours in zip(DEV, answers, strict=True) if not same(golden, ours)]
    assert not wrong, "\n".join(wrong)
    assert len({golden.context for golden in DEV}) >= 200
    assert sum(map(same_as_it_came, DEV, answers)) >= max(500, 0.95 * len(DEV))


@pytest.mark.parametrize("golden", AWKWARD, ids=lambda golden: golden.name)
def test_awkward_texts(reader: Reader, golden: Golden) -> None:
    answers = answers_of(reader, golden)
    assert same(golden, answers), shown(golden, answers)


def test_an_answer_in_two_windows_counts_once(reader: Reader) -> None:
    """Where two windows overlap both see the answer. The reference adds their scores: 1.93 is no probability.

    The Reader counts every token of the passage once, however many windows show it, so scores add up to at most 1.
    """
    golden = DIFFERENT["an answer in two windows"]
    theirs, ours = golden.answers[0], answers_of(reader, golden)
    assert theirs.score > 1.9
    assert sum(part.score > 0.9 for part in theirs.parts) == 2
    assert (ours[0].text, ours[0].start, ours[0].end) == (theirs.text, theirs.start, theirs.end)
    assert 0.9 < sum(answer.score for answer in ours) <= 1.0


def test_a_window_without_the_answer_does_not_win_by_itself(reader: Reader) -> None:
    """The reference normalises each window alone: the best guess of one without the answer gets a score near 1 too.

    The Reader normalises over all windows, so scores compare, and all places together have at most 1.
    """
    golden = DIFFERENT["a window without the answer"]
    theirs = {answer.text: answer.score for answer in golden.answers}
    ours = {answer.text: answer.score for answer in answers_of(reader, golden)}
    assert theirs["Maria Solberg"] + theirs["Ole Berg"] > 1.0
    assert next(iter(ours)) == "Maria Solberg"
    assert ours.get("Ole Berg", 0.0) < theirs["Ole Berg"] / 2


def test_a_word_cut_by_a_window_is_whole(reader: Reader) -> None:
    """The reference knows words only as far as one window shows them: its best answer here is a part of a word.

    The Reader knows the words of the whole passage, and widens to them in whichever window the answer is found.
    """
    golden = DIFFERENT["a word cut by a window"]
    assert [answer.text for answer in golden.answers[:2]] == ["Zelgothrixander", "Zelgothrixandermann"]
    assert answers_of(reader, golden)[0].text == "Zelgothrixandermann"


@pytest.mark.parametrize(
    ("name", "lost"),
    [("equal texts at two places", "Maria Solberg"), ("equal but for capitals", "MARIA SOLBERG")],
)
def test_equal_texts_at_two_places_are_two_answers(reader: Reader, name: str, lost: str) -> None:
    """The reference merges answers of equal text, even where they differ in case; of the places only one survives.

    The score is the sum of both, though whoever reads it finds one place. The Reader gives each place with its own.
    """
    golden = DIFFERENT[name]
    theirs = golden.answers[0]
    assert {(part.start, part.end) for part in theirs.parts} == {(41, 54), (0, 13)}
    assert all(answer.start != 0 or answer.end != 13 for answer in golden.answers)
    places = {(a.start, a.end): a for a in answers_of(reader, golden)}
    assert places[0, 13].text == lost
    assert places[41, 54].score == pytest.approx(theirs.parts[0].score, abs=TOLERANCE)
    assert theirs.score > places[41, 54].score + 0.05


def test_equal_texts_do_not_outvote_a_likelier_place(reader: Reader) -> None:
    """Four places that say "Yes" have the largest sum, and the reference answers with the first of them.

    The likeliest place is another, and the Reader's best answer; the reference does not even list it.
    """
    golden = DIFFERENT["equal texts at four places"]
    theirs, (ours, *_) = golden.answers, answers_of(reader, golden)
    assert (theirs[0].text, len({(part.start, part.end) for part in theirs[0].parts})) == ("Yes", 4)
    assert ours.text == golden.context not in {answer.text for answer in theirs}
    assert ours.score > max(part.score for part in theirs[0].parts) + TOLERANCE


def test_all_spans_of_one_place_are_added(reader: Reader) -> None:
    """Several token spans of a word of many pieces widen to the same place. The reference adds up some of their scores.

    Namely those among its best 10 + 2 top_k spans, so the score of an answer depends on how many are asked for. The
    Reader adds up all of them, for any top_k.
    """
    golden = DIFFERENT["a word of many pieces"]
    theirs = golden.answers[0]
    assert {(part.start, part.end) for part in theirs.parts} == {(theirs.start, theirs.end)}
    assert golden.alone is not None
    assert theirs.score > golden.alone * 1.1
    asked = golden.question, golden.context
    (alone,), (best, *_) = (reader.answer(*asked, top_k=top_k, max_answer_tokens=LONG) for top_k in (1, TOP_K))
    assert alone == best
    assert (best.start, best.end) == (theirs.start, theirs.end)
    assert best.score > theirs.score * 1.1


def test_no_answer_has_more_tokens_than_may_be(reader: Reader) -> None:
    """The reference widens its best span, of 15 tokens at most, to a word of more. The Reader takes the word apart."""
    golden = DIFFERENT["a word of many pieces"]
    texts = [golden.answers[0].text, *(answer.text for answer in answers_of(reader, golden))]
    tokens = [len(reader.windower.tokenize("Why?", [text]).passages[0].ids) for text in texts]
    assert tokens[0] > 15 >= max(tokens[1:])


def test_as_many_answers_as_are_asked_for(reader: Reader) -> None:
    """The reference merges after it has cut its list of spans: a word of many pieces uses them all up.

    The Reader looks further until it has top_k places, or all there are.
    """
    golden = DIFFERENT["a word of many pieces"]
    assert len(golden.answers) < TOP_K == len(answers_of(reader, golden))


def test_no_answer_is_made_up(reader: Reader) -> None:
    """With fewer places than are asked for, the reference answers with [CLS] too: an empty text of score 0."""
    golden = DIFFERENT["one word"]
    assert [(answer.text, answer.score == 0.0) for answer in golden.answers] == [("Maria", False), ("", True)]
    assert [answer.text for answer in answers_of(reader, golden)] == ["Maria"]


def test_a_passage_without_words_is_refused(reader: Reader) -> None:
    """The reference answers it with an empty text of score 0; here it is the caller's mistake, and is said to be."""
    golden = DIFFERENT["no word"]
    assert [(answer.text, answer.score) for answer in golden.answers] == [("", 0.0)]
    with pytest.raises(InvalidRequest, match="has no words"):
        answers_of(reader, golden)


@pytest.mark.parametrize(
    ("name", "spelled"), [("[SEP]", "SEP"), ("[SEP] and [PAD]", "SEP"), ("[CLS]", "CLS")], ids=lambda value: value
)
def test_spelled_out_special_tokens_are_text(reader: Reader, name: str, spelled: str) -> None:
    """The reference reads "[SEP]" in a text as the separator itself: whoever writes the text can end the passage.

    It then cannot answer with it either. For the Reader these are five characters like any others.
    """
    golden = DIFFERENT[name]
    assert spelled not in golden.answers[0].text
    assert spelled in answers_of(reader, golden)[0].text
