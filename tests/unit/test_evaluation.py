"""SQuAD v1.1's metric against numbers worked out by hand and against loops; its files; and who answers when."""

from __future__ import annotations

import json
import signal
import string
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distilqa.answer import Answer
from distilqa.errors import DatasetError, InvalidRequest
from distilqa.evaluation import (
    Evaluation,
    Question,
    evaluate,
    exact_match,
    f1,
    normalize,
    parse_questions,
    read_questions,
)

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


def answer_of(text: str) -> Answer:
    return Answer(text, 0, len(text), 0.5, 0)


def questions_of(count: int) -> list[Question]:
    return [Question(f"q{number}", f"Who is {number}?", "A fox.", ("fox",)) for number in range(count)]


def test_best_reference_for_each_measure_alone() -> None:
    """The first question's F1 is that of its second reference, 4/5; the second's exact match that of its third."""
    questions = [
        Question("1", "Who?", "c", ("Solberg", "Maria Anna Solberg", "of Bergen")),
        Question("2", "When?", "c", ("in the year 1887", "year 1887", "1887")),
        Question("3", "What?", "c", ("red fox", "")),
        Question("4", "Which?", "c", ("fox",)),
    ]
    found = Evaluation(questions, [answer_of(text) for text in ("Maria Solberg", "1887.", "the", "dog")], 1.0)
    assert found.exact_matches == [0, 1, 1, 0]
    assert found.f1s == [pytest.approx(4 / 5), 1, 0, 0]
    assert found.exact_match == 50
    assert found.f1 == pytest.approx(45)
    assert found.predictions == {"1": "Maria Solberg", "2": "1887.", "3": "the", "4": "dog"}


def test_all_right_is_a_hundred_per_cent() -> None:
    found = Evaluation(questions_of(3), [answer_of("The fox!")] * 3, 1.0)
    assert (found.exact_match, found.f1) == (100, 100)


def test_an_answer_for_each_question() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = Evaluation(questions_of(2), [answer_of("fox")], 1.0).f1


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
        question(id="q7", is_impossible=True),
    ],
)
def test_questions_without_an_answer_are_refused(tmp_path: Path, unanswerable: object) -> None:
    problem = problem_of(write(tmp_path / "dev-v2.0.json", dataset(question(), unanswerable)))
    assert problem.startswith("question q7 has no answer; SQuAD v1.1 is needed")


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
    "id: a number": dataset(question(id=1)),
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
    problem = problem_of(write(tmp_path / "file", content))
    assert problem.startswith("is not a SQuAD v1.1 file (")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "file", dataset(_without(question(), "answers")))
    assert problem_of(path) == "is not a SQuAD v1.1 file (KeyError: 'answers')"


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


def test_answers_are_in_the_order_of_the_questions() -> None:
    """Though the first waits for the last."""
    last = threading.Event()
    told: list[int] = []
    questions = questions_of(6)

    def answer(question: Question) -> Answer:
        if question is questions[0]:
            assert last.wait(timeout=60)
        if question is questions[-1]:
            last.set()
        return answer_of(question.id)

    found = evaluate(questions, answer, lanes=2, progress=told.append)
    assert [answer.text for answer in found.answers] == [question.id for question in questions]
    assert found.predictions == {question.id: question.id for question in questions}
    assert told == [1, 2, 3, 4, 5, 6]
    assert found.seconds > 0


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_as_many_at_once_as_there_are_lanes(lanes: int) -> None:
    together = threading.Barrier(lanes, timeout=60)
    lock = threading.Lock()
    now, most = 0, 0

    def answer(question: Question) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()
        with lock:
            now -= 1
        return answer_of("fox")

    assert evaluate(questions_of(4 * lanes), answer, lanes=lanes).exact_match == 100
    assert most == lanes


class Held:
    """Answers questions, the second by what it is given; who comes later waits until nobody else will be asked."""

    def __init__(self, second: Callable[[], object]) -> None:
        self._second = second
        self.cancelled = threading.Event()
        self.asked: list[str] = []

    def __call__(self, question: Question) -> Answer:
        self.asked.append(question.id)
        if question.id == "q1":
            self._second()
        if question.id not in ("q0", "q1"):
            assert self.cancelled.wait(timeout=60)
        return answer_of("fox")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Held]:
    made: list[Held] = []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            made[0].cancelled.set()
            super().shutdown(wait)

    monkeypatch.setattr("distilqa.evaluation.ThreadPoolExecutor", Pool)

    def make(second: Callable[[], object]) -> Held:
        made.append(Held(second))
        return made[0]

    return make


def raising(error: BaseException) -> Callable[..., None]:
    def second(*_: object) -> None:
        raise error

    return second


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_any_other_exception_leaves_at_once(
    held: Callable[[Callable[[], object]], Held], error: BaseException, lanes: int
) -> None:
    answer = held(raising(error))
    with pytest.raises(type(error)) as caught:
        evaluate(questions_of(100), answer, lanes=lanes)
    assert caught.value is error
    assert len(answer.asked) <= 2 + lanes


def test_question_that_cannot_be_answered_is_named(held: Callable[[Callable[[], object]], Held]) -> None:
    answer = held(raising(InvalidRequest("question", "is empty")))
    with pytest.raises(DatasetError, match=r"^question q1: question: is empty$"):
        evaluate(questions_of(100), answer, lanes=1)
    assert len(answer.asked) <= 3


def test_progress_that_raises_leaves_at_once(held: Callable[[Callable[[], object]], Held]) -> None:
    answer = held(lambda: None)
    with pytest.raises(BrokenPipeError):
        evaluate(questions_of(100), answer, lanes=1, progress=raising(BrokenPipeError()))
    assert len(answer.asked) <= 3


def test_interrupt_before_all_are_queued(held: Callable[[Callable[[], object]], Held]) -> None:
    def interrupted() -> Iterator[Question]:
        yield from questions_of(100)
        raise KeyboardInterrupt

    answer = held(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        evaluate(interrupted(), answer, lanes=1)  # type: ignore[arg-type]
    assert len(answer.asked) <= 3


@pytest.mark.usefixtures("interruptible")
def test_interrupt_while_answering(held: Callable[[Callable[[], object]], Held]) -> None:
    """Ctrl-C comes in the main thread, which sees it once the answer that it waits for is there, if not before."""
    main = threading.get_ident()
    answer = held(lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        evaluate(questions_of(100), answer, lanes=1)
    assert len(answer.asked) <= 3


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    evaluate(questions_of(5), lambda _: answer_of("fox"), lanes=3)
    with suppress(RuntimeError):
        evaluate(questions_of(5), raising(RuntimeError()), lanes=3)  # type: ignore[arg-type]
    assert set(threading.enumerate()) == before
