"""Files of SQuAD, and what is none."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilqa.errors import DatasetError
from distilqa.evaluation.dataset import Question, parse_questions, read_questions


def question(**changes: Any) -> dict[str, Any]:
    return {"id": "q1", "question": "Who?", "answers": [{"text": "a fox", "answer_start": 0}]} | changes


def dataset(*questions: object, **changes: object) -> dict[str, Any]:
    """A file of one paragraph, with changes to the paragraph."""
    paragraph = {"context": "A fox.", "qas": questions} | changes
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}


def write(path: Path, content: object) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_good_file(tmp_path: Path) -> None:
    two = [{"text": "Renée"}, {"text": "a – b"}]
    content = dataset(question(), question(id="q2", question="Où?", answers=two))
    content["data"] += [{"paragraphs": []}, *dataset(question(id="q3"), context="日本")["data"], *dataset()["data"]]
    expected = [
        Question("q1", "Who?", "A fox.", ("a fox",)),
        Question("q2", "Où?", "A fox.", ("Renée", "a – b")),
        Question("q3", "Who?", "日本", ("a fox",)),
    ]
    escaped = json.dumps(content)
    plain = json.dumps(content, ensure_ascii=False, indent=1)
    assert read_questions(write(tmp_path / "escaped", escaped.encode())) == expected
    assert read_questions(write(tmp_path / "plain", plain.encode())) == expected
    # As editors on Windows write it: who made the file would see no difference.
    assert read_questions(write(tmp_path / "bom", b"\xef\xbb\xbf" + plain.encode())) == expected


def test_what_v1_does_not_have_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "file", dataset(question(is_impossible=False, plausible_answers=[]), document_id=3))
    assert [question.id for question in read_questions(path)] == ["q1"]


@pytest.mark.parametrize("said", [True, "false", "0", 1, float("nan"), [None]], ids=repr)
def test_answers_alone_tell_whether_there_is_one(tmp_path: Path, said: object) -> None:
    """As SQuAD v2's official script has it."""
    (read,) = read_questions(write(tmp_path / "file", dataset(question(is_impossible=said))))
    assert read.answers == ("a fox",)
    none = write(tmp_path / "none", dataset(question(is_impossible=False, answers=[])))
    assert [one.answers for one in read_questions(none, allow_no_answer=True)] == [()]


def test_answers_of_blanks_are_none(tmp_path: Path) -> None:
    answers = [{"text": text} for text in (" ", "", "a fox ", "\u3000\n")]
    (read,) = read_questions(write(tmp_path / "file", dataset(question(answers=answers))))
    assert read.answers == ("a fox ",)


def problem_of(path: Path) -> str:
    """What is said of a file that cannot be used: it begins with the file's name and is short."""
    with pytest.raises(DatasetError) as caught:
        read_questions(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < len(str(path)) + 400
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    "id", ["q" * 100_000, "q\n7", "\x1b[2J", "\ud800"], ids=["long", "line", "escape", "surrogate"]
)
def test_ids_in_errors_are_short_and_can_be_shown(tmp_path: Path, id: str) -> None:
    content = dataset(question(id=id), question(id=id))
    problem = problem_of(write(tmp_path / "file", content))
    assert problem == f"2 questions have the id {id[:80]!a}"


@pytest.mark.parametrize(
    "unanswerable",
    [
        question(id="q7", answers=[]),
        question(id="q7", answers=[], is_impossible=True, plausible_answers=[{"text": "x", "answer_start": 0}]),
        question(id="q7", answers=[{"text": "", "answer_start": 0}]),
        question(id="q7", answers=[{"text": " \t", "answer_start": 0}]),
    ],
)
def test_questions_without_an_answer_are_refused(tmp_path: Path, unanswerable: object) -> None:
    problem = problem_of(write(tmp_path / "dev-v2.0.json", dataset(question(), unanswerable)))
    assert problem.startswith("question q7 has no answer; SQuAD v1.1 is needed")
    read = read_questions(tmp_path / "dev-v2.0.json", allow_no_answer=True)
    assert [(one.id, bool(one.answers)) for one in read] == [("q1", True), ("q7", False)]


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    """As tools for annotation write them."""
    (read,) = read_questions(write(tmp_path / "file", dataset(question(id=51870))))
    assert read.id == "51870"


def test_two_questions_of_one_id_are_refused(tmp_path: Path) -> None:
    """They would share a prediction."""
    content = dataset(question(id="q0"), question(), question(id="q2"))
    content["data"] += dataset(question())["data"]
    assert problem_of(write(tmp_path / "file", content)) == "2 questions have the id q1"


@pytest.mark.parametrize(
    "content",
    [
        {"data": []},
        {"data": [{"paragraphs": []}]},
        dataset(),
    ],
    ids=["articles", "paragraphs", "questions"],
)
def test_file_without_questions_is_refused(tmp_path: Path, content: object) -> None:
    assert problem_of(write(tmp_path / "file", content)) == "has no questions"


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


NEEDED = (
    "; needed is SQuAD's JSON:"
    ' {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text"}]}]}]}]}'
)

BAD_FILES: dict[str, object] = {
    "empty": b"",
    "no JSON": b"What does the fox jump over?",
    "cut off": json.dumps(dataset(question())).encode()[:-3],
    "two values": b"{} {}",
    "not UTF-8": json.dumps(dataset(question(question="Où?")), ensure_ascii=False).encode("latin-1"),
    "not UTF-8, and long": b'{"data": "\xff' + b"x" * 100_000 + b'"}',
    "deep": b"[" * 200_000,
    "a long number": b'{"data": ' + b"9" * 5000 + b"}",
    "lines of JSON": (json.dumps(question()) + "\n" + json.dumps(question())).encode(),
    "predictions": {"q1": "a fox"},
    "a list": [question()],
    "a string": "data",
    "null": None,
    "data: null": {"data": None},
    "data: a number": {"data": 3},
    "article: a string": {"data": ["x"]},
    "article: a list": {"data": [[]]},
    "article: empty": {"data": [{}]},
    "paragraphs: null": {"data": [{"paragraphs": None}]},
    "paragraph: a string": {"data": [{"paragraphs": ["x"]}]},
    "paragraph: no context": {"data": [{"paragraphs": [{"qas": [question()]}]}]},
    "paragraph: no qas": {"data": [{"paragraphs": [{"context": "A fox."}]}]},
    "context: a number": dataset(question(), context=3),
    "context: null": dataset(question(), context=None),
    "context: a list": dataset(question(), context=["A fox."]),
    "qas: null": dataset(qas=None),
    "qas: a string": dataset(qas="x"),
    "qas: a question": dataset(qas=question()),
    "question: a string": dataset("x"),
    "question: a list": dataset(["x"]),
    "question: null": dataset(None),
    "no id": dataset(_without(question(), "id")),
    "no question": dataset(_without(question(), "question")),
    "no answers": dataset(_without(question(), "answers")),
    "id: a fraction": dataset(question(id=1.5)),
    "id: true": dataset(question(id=True)),
    "id: a list": dataset(question(id=["q1"])),
    "id: null": dataset(question(id=None)),
    "question: a number": dataset(question(question=1)),
    "question text: null": dataset(question(question=None)),
    "answers: null": dataset(question(answers=None)),
    "answers: a string": dataset(question(answers="a fox")),
    "answers: by column": dataset(question(answers={"text": ["a fox"], "answer_start": [0]})),
    "answer: a string": dataset(question(answers=["a fox"])),
    "answer: no text": dataset(question(answers=[{"answer_start": 0}])),
    "answer: a number": dataset(question(answers=[{"text": "a fox"}, {"text": 49}])),
    "answer: null": dataset(question(answers=[{"text": None}])),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_what_is_no_squad_file_is_refused(tmp_path: Path, content: object) -> None:
    assert problem_of(write(tmp_path / "file", content)).endswith(NEEDED)


def _second(second: object) -> dict[str, Any]:
    """A file whose second article has it as its second question."""
    return {"data": dataset(question())["data"] + dataset(question(id="q2"), second)["data"]}


PLACES: dict[str, tuple[object, str]] = {
    "no answers": (
        _second(_without(question(id="q7"), "answers")),
        'data[1].paragraphs[0].qas[1] (id q7) has no "answers"; it has "id", "question"',
    ),
    "answers: null": (
        _second(question(id="q7", answers=None)),
        'data[1].paragraphs[0].qas[1] (id q7) "answers" is null, must be a list',
    ),
    "answers: by column": (
        _second(question(id="q7", answers={"text": ["a fox"], "answer_start": [0]})),
        'data[1].paragraphs[0].qas[1] (id q7) "answers" is an object, must be a list',
    ),
    "answer: a string": (
        _second(question(answers=[{"text": "a fox"}, "a fox"])),
        "data[1].paragraphs[0].qas[1] (id q1).answers[1] is a string, must be an object",
    ),
    "id: true": (
        _second(question(id=True)),
        'data[1].paragraphs[0].qas[1] "id" is a boolean, must be a string or a whole number',
    ),
    "id: unprintable": (
        _second(_without(question(id="\x1b[2J"), "question")),
        'data[1].paragraphs[0].qas[1] (id \'\\x1b[2J\') has no "question"; it has "id", "answers"',
    ),
    "context: a list": (
        dataset(question(), context=["A fox."]),
        'data[0].paragraphs[0] "context" is a list, must be a string',
    ),
    "data: null": ({"data": None}, '"data" is null, must be a list'),
    "many long names": ({"x" * 1000: 1, "y": 2}, f'has no "data"; it has "{"x" * 59}'),
    "no names": ({}, 'has no "data"; it has nothing'),
}

HUGGING_FACE = {"id": "1", "title": "t", "context": "A fox.", "question": "Who?", "answers": {"text": ["a fox"]}}
NAMES = '"id", "title", "context", "question", "answers"'

OTHER_FORMATS: dict[str, tuple[object, str]] = {
    "empty": (b" \n", "is empty"),
    "gzip": (gzip.compress(json.dumps(dataset(question())).encode()), "is compressed by gzip"),
    "CSV": (
        b"\nid,context,question\r\n1,A fox.,Who?\n",
        r"is not JSON, Expecting value: line 2 column 1 (char 1); it begins with 'id,context,question\r'",
    ),
    "a zip": (
        b"PK\x03\x04\xff",
        "is not JSON, 'utf-8' codec can't decode byte 0xff in position 4: invalid start byte;"
        r" it begins with 'PK\x03\x04\xff'",
    ),
    "lines of JSON": (
        (json.dumps(HUGGING_FACE) + "\n").encode() * 2,
        "looks like JSON lines, its first line is an object",
    ),
    "Hugging Face's rows": ([HUGGING_FACE], "is a list, must be an object"),
    "Hugging Face's columns": (
        {name: [value] for name, value in HUGGING_FACE.items()},
        f'has no "data"; it has {NAMES}',
    ),
    "Hugging Face's rows in data": ({"data": [HUGGING_FACE]}, f'data[0] has no "paragraphs"; it has {NAMES}'),
    "articles alone": (dataset(question())["data"], "is a list, must be an object"),
}


@pytest.mark.parametrize(("content", "problem"), (PLACES | OTHER_FORMATS).values(), ids=(PLACES | OTHER_FORMATS).keys())
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, content: object, problem: str) -> None:
    assert problem_of(write(tmp_path / "file", content)) == problem + NEEDED


KEYS = st.sampled_from(["data", "paragraphs", "qas", "context", "id", "question", "answers", "text"])
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30))
def test_nothing_else_is_raised(content: bytes) -> None:
    with suppress(DatasetError):
        assert parse_questions(content, "somewhere")


@pytest.mark.parametrize(("name", "problem"), [("missing", "No such file or directory"), (".", "Is a directory")])
def test_file_that_cannot_be_read(tmp_path: Path, name: str, problem: str) -> None:
    assert problem_of(tmp_path / name) == problem
