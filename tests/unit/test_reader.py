"""The reader: answers from real text, and typed errors for what cannot be answered."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distilqa.bundle import TOKENIZER, VARIANTS
from distilqa.errors import BundleError, InvalidRequest
from distilqa.reader import Reader
from distilqa.text.answer import Answer
from distilqa.text.request import MAX_TOP_K, check_options
from distilqa.text.spans import decode
from distilqa.text.windows import MAX_QUESTION_TOKENS

QUESTION = "Who built the lighthouse?"
FACT = "The lighthouse was built by Maria Solberg in 1887. "
FILLER = "The harbour was quiet that morning, and the boats lay still on the water. "

AWKWARD = {
    "decomposed": "Le phare a e\u0301te\u0301 construit par Rene\u0301 Be\u0301langer a\u0300 Que\u0301bec.",
    "stacked marks": "The tower was built by Z\u0351\u036b\u0343a\u0329\u0316lgo\u031f\u0320 in 1887.",
    "Chinese": "灯塔由陈伟于1887年建造。港口很安静。",
    "Korean": "등대는 김민준이 지었다. 항구는 조용했다.",
    "emoji": "👩\u200d🚀 The lighthouse 🗼 was built by 🇸🇪 Anna 👍🏽 Berg 😀.",
    "NUL": "The light\0house was built by Ma\0ria Sol\0berg.\0",
    "CRLF": "The lighthouse\r\nwas built by\r\nMaria\r\nSolberg\r\n.\r\n",
    "white space": " \t\u00a0 The  lighthouse   was built by \r\n\u3000 Maria \u2003 Solberg  ,  \v twice \n ",
    "Hebrew": "המגדלור נבנה על ידי מִרְיָם כהן בשנת 1887.",
    "Arabic": "بُنِيَتِ المنارة على يد مريم سعيد عام ١٨٨٧.",
    "mixed direction": "The lighthouse was built by \u202bמרים כהן\u202c in 1887.",
    "ligatures": "The light\ufb01re was built by \u0130brahim \u1e9e\u0149\u01c6 \ufb03ord.",
    "unprintable": "\ufeff\u200b\x01The\x02 lighthouse\x7f was built by \ufffdMaria\ufffd.",
    "special tokens": "[CLS] The lighthouse was built by [SEP] Maria [MASK] Solberg [PAD][UNK].",
    "one word": "x",
    "one long word": "lighthouse" * 50,
}


@pytest.fixture(scope="module", params=VARIANTS)
def reader(request: pytest.FixtureRequest, bundle: Path) -> Reader:
    return Reader(bundle, request.param)


def problem_of(reader: Reader, question: str, passages: str | Sequence[str], **options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        reader.answer(question, passages, **options)
    return caught.value


@pytest.mark.parametrize("passage", AWKWARD.values(), ids=AWKWARD.keys())
def test_answers_stand_in_awkward_passages_where_they_say(reader: Reader, passage: str) -> None:
    answers = reader.answer(QUESTION, passage, top_k=MAX_TOP_K)
    assert answers
    for answer in answers:
        assert answer.passage == 0
        assert passage[answer.start : answer.end] == answer.text
        assert answer.text.strip("\t\r\n\v \u00a0\u2003\u3000") == answer.text != ""
        assert 0.0 <= answer.score <= 1.0
    assert sum(answer.score for answer in answers) <= 1.0 + 1e-9
    assert len({(answer.start, answer.end) for answer in answers}) == len(answers)


@pytest.mark.parametrize("repetitions", [0, 60, 250], ids=["one window", "several", "many"])
def test_answer_near_the_end_of_a_passage(reader: Reader, repetitions: int) -> None:
    passage = FILLER * repetitions + FACT + FILLER
    (answer,) = reader.answer(QUESTION, passage)
    assert (answer.text, answer.start) == ("Maria Solberg", passage.index("Maria Solberg"))
    assert len(reader.windower.tokenize(QUESTION, [passage]).windows) >= repetitions // 16


def test_answer_in_one_of_several_passages(reader: Reader) -> None:
    passages = [FILLER, FILLER * 40 + FACT, FILLER * 30, FILLER]
    for shift in range(len(passages)):
        shifted = passages[shift:] + passages[:shift]
        (answer,) = reader.answer(QUESTION, shifted)
        assert answer.passage == shifted.index(passages[1])
        assert answer.start == passages[1].index("Maria Solberg")
        assert answer.text == "Maria Solberg"


def test_answers_of_several_passages_compete(reader: Reader) -> None:
    passages = [FACT, "The bridge was built by Ole Berg.", FACT.replace("Maria Solberg", "Hans Lund")]
    answers = reader.answer(QUESTION, passages, top_k=10)
    assert len(answers) == 10
    assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)
    assert {answer.text for answer in answers[:2]} == {"Maria Solberg", "Hans Lund"}
    for answer in answers:
        assert answer.passage is not None
        assert passages[answer.passage][answer.start : answer.end] == answer.text


def test_equal_passages_are_ranked_in_their_order(reader: Reader) -> None:
    first, second = reader.answer(QUESTION, [FACT, FACT], top_k=2)
    assert (first.text, second.text) == ("Maria Solberg", "Maria Solberg")
    assert (first.passage, second.passage) == (0, 1)
    assert first.score == second.score <= 0.5


def test_one_passage_may_be_a_string(reader: Reader) -> None:
    assert reader.answer(QUESTION, FACT) == reader.answer(QUESTION, [FACT]) == reader.answer(QUESTION, (FACT,))
    assert reader.answer(QUESTION, iter([FACT])) == reader.answer(QUESTION, [FACT])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 7},
        {"max_answer_tokens": 1},
        {"doc_stride": 0},
        {"align_to_words": False, "top_k": 5},
        {"doc_stride": 60, "top_k": 3, "max_answer_tokens": 30, "allow_no_answer": True},
    ],
    ids=str,
)
def test_options_reach_the_windows_and_the_spans(reader: Reader, options: dict[str, Any]) -> None:
    passages = [FILLER * 40 + FACT + FILLER * 40, FACT]
    tokenized = reader.windower.tokenize(QUESTION, passages, doc_stride=options.get("doc_stride"))
    logits = [reader.engine.run([window.input_ids])[0] for window in tokenized.windows]
    spans_options = {name: value for name, value in options.items() if name != "doc_stride"}
    defaults = {"top_k": 1, "max_answer_tokens": 15, "allow_no_answer": False}
    assert [(a.passage, a.start, a.end, a.text) for a in reader.answer(QUESTION, passages, **options)] == [
        (a.passage, a.start, a.end, a.text) for a in decode(tokenized, logits, **(defaults | spans_options))
    ]


def test_no_answer_only_where_it_is_allowed(reader: Reader) -> None:
    allowed = reader.answer(QUESTION, FACT, top_k=MAX_TOP_K, allow_no_answer=True)
    (nothing,) = (answer for answer in allowed if answer.passage is None)
    assert nothing == Answer("", 0, 0, nothing.score, None)
    assert allowed[0].passage == 0
    assert all(answer.passage == 0 for answer in reader.answer(QUESTION, FACT, top_k=MAX_TOP_K))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("question", ""),
        ("question", " \r\n"),
        ("question", "Who\ud800?"),
        ("question", "who " * (MAX_QUESTION_TOKENS + 1)),
        ("question", "who " * 5000),
        ("question", None),
        ("question", b"Who?"),
        ("passages", []),
        ("passages", None),
        ("passages", {"title": FACT}),
        ("passages", {FACT}),
        ("passages", 3),
        ("passages", b"A fox."),
        ("passages[1]", [FACT, b"A fox."]),
        ("passages[0]", ""),
        ("passages[0]", [" \0 "]),
        ("passages", ["", "\n\f "]),
        ("passages[1]", [FACT, "\udfff"]),
        ("top_k", 0),
        ("top_k", -1),
        ("top_k", 101),
        ("max_answer_tokens", 0),
        ("max_answer_tokens", -15),
        ("doc_stride", -1),
        ("doc_stride", 384),
    ],
)
def test_bad_arguments_are_named(reader: Reader, field: str, bad: Any) -> None:
    arguments: dict[str, Any] = {"question": QUESTION, "passages": FACT, field.partition("[")[0]: bad}
    assert problem_of(reader, **arguments).field == field


def test_defaults() -> None:
    parameters = inspect.signature(Reader.answer).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == {
        "top_k": 1,
        "max_answer_tokens": 15,
        "doc_stride": None,
        "allow_no_answer": False,
        "align_to_words": True,
    }


@pytest.mark.parametrize(("top_k", "max_answer_tokens"), [(1, 1), (100, 15), (1, 10**9)])
def test_options_at_their_limits(reader: Reader, top_k: int, max_answer_tokens: int) -> None:
    check_options(top_k, max_answer_tokens)
    assert reader.answer(QUESTION, FACT, top_k=top_k, max_answer_tokens=max_answer_tokens)


def test_threads_do_not_disturb_each_other(reader: Reader) -> None:
    passages = [FILLER * number + FACT for number in range(12)]
    alone = [reader.answer(QUESTION, passage, top_k=2) for passage in passages]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda passage: reader.answer(QUESTION, passage, top_k=2), passages))
    assert [[(a.text, a.start) for a in answers] for answers in together] == [
        [(a.text, a.start) for a in answers] for answers in alone
    ]


def test_variants(bundle: Path) -> None:
    assert Reader(bundle).variant == "cpu-int8"
    reader = Reader(str(bundle), "cpu-fp32", threads=1)
    assert (reader.variant, reader.engine.device) == ("cpu-fp32", "1 cores")
    assert repr(reader) == "Reader(model='distilbert-384-squad', version='1', variant='cpu-fp32')"
    assert reader.windower.max_tokens == reader.bundle.manifest.window_tokens == 384
    with pytest.raises(BundleError, match="no variant 'cpu-fp64'"):
        Reader(bundle, "cpu-fp64")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Reader(tmp_path)


def test_damaged_tokenizer(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))
    content = (copy / TOKENIZER).read_bytes()
    (copy / TOKENIZER).unlink()  # it is the bundle's own file, under a second name
    (copy / TOKENIZER).write_bytes(content.replace(b"the", b"teh", 1))
    with pytest.raises(BundleError, match=r"tokenizer\.json.*SHA-256"):
        Reader(copy)
