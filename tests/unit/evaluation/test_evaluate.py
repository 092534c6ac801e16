"""Who answers when, and what the answers are worth."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from distilqa.errors import DatasetError, InvalidRequest
from distilqa.evaluation.dataset import Question
from distilqa.evaluation.evaluate import Evaluation, evaluate
from distilqa.text.answer import Answer


def answer_of(text: str) -> Answer:
    return Answer(text, 0, len(text), 0.5, 0)


def predictions(found: Evaluation) -> dict[str, str]:
    """The text of each answer by its question's id."""
    return {question.id: answer.text for question, answer in zip(found.questions, found.answers, strict=True)}


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
    assert predictions(found) == {"1": "Maria Solberg", "2": "1887.", "3": "the", "4": "dog"}


def test_all_right_is_a_hundred_per_cent() -> None:
    found = Evaluation(questions_of(3), [answer_of("The fox!")] * 3, 1.0)
    assert (found.exact_match, found.f1) == (100, 100)


def test_an_answer_for_each_question() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = Evaluation(questions_of(2), [answer_of("fox")], 1.0).f1


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
    assert predictions(found) == {question.id: question.id for question in questions}
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

    monkeypatch.setattr("distilqa.evaluation.evaluate.ThreadPoolExecutor", Pool)

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
