"""An answer does not depend on who shares the run, how busy the server is, or how many threads a run has.

500 questions are asked alone, in runs of equal length, on one thread and on two, and of a loaded server. With static
int8 every logit must be bit for bit the same; with fp32, whose sums ONNX Runtime orders as it likes, the answers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from benchmarks.parts.quality import logits_in_runs
from onnxruntime.quantization import QuantType, quantize_dynamic
from tests.integration.servers import CLI, serving

from distilqa import AsyncClient, Reader
from distilqa.bundle import VARIANTS, Bundle
from distilqa.engine.base import SHARED_RUN_WINDOWS
from distilqa.engine.cores import usable_cores
from distilqa.engine.session import open_session
from distilqa.evaluation.dataset import Question
from distilqa.evaluation.evaluate import MAX_ANSWER_TOKENS
from distilqa.reader import open_windower
from distilqa.text.answer import Answer
from distilqa.text.arrays import Int64, Logits
from distilqa.text.spans import decode
from distilqa.text.windows import Tokenized
from distilqa_export.gate.check import Run, logits_of, runner
from distilqa_export.samples import packaged_evaluation

Item = TypeVar("Item")
Made = TypeVar("Made")

QUESTIONS = 500
AT_ONCE = 32


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return packaged_evaluation()[:QUESTIONS]


@pytest.fixture(scope="module")
def tokenized(bundle: Path, questions: Sequence[Question]) -> list[Tokenized]:
    windower = open_windower(Bundle.open(bundle))
    return [windower.tokenize(question.question, [question.context]) for question in questions]


@pytest.fixture(scope="module", params=VARIANTS)
def alone(request: pytest.FixtureRequest, bundle: Path) -> Reader:
    """A variant, each window in a run of its own, on one thread."""
    return Reader(bundle, request.param, threads=1)


@pytest.fixture(scope="module")
def expected(alone: Reader, tokenized: Sequence[Tokenized]) -> list[list[Logits]]:
    """The logits of each window of each question, alone."""
    return each(lambda one: logits_of(lambda windows: _sides(alone, windows), one), tokenized)


def each(function: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What the function makes of each, a core each."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(function, items))


def _sides(reader: Reader, windows: Sequence[Int64]) -> list[np.ndarray]:
    start, end = zip(*reader.engine.run(windows), strict=True)
    return [np.array(start), np.array(end)]


def in_equal_runs(run: Run, tokenized: Sequence[Tokenized]) -> list[list[Logits]]:
    """The logits of each window of each question, run together with others of its length."""
    lengths = Counter(window.length for one in tokenized for window in one.windows)
    assert sum(count for count in lengths.values() if count > 1) > 0.8 * lengths.total(), "most must have had company"
    return logits_in_runs([lambda ids: run(list(ids))] * usable_cores(), tokenized, SHARED_RUN_WINDOWS)


def answers(tokenized: Sequence[Tokenized], logits: Sequence[Sequence[Logits]]) -> list[Answer]:
    return [
        decode(one, values, max_answer_tokens=MAX_ANSWER_TOKENS)[0]
        for one, values in zip(tokenized, logits, strict=True)
    ]


def assert_same(
    alone: Reader, tokenized: Sequence[Tokenized], found: Sequence[list[Logits]], expected: Sequence[list[Logits]]
) -> None:
    if alone.variant == "cpu-int8":
        pairs = ((f, e) for fs, es in zip(found, expected, strict=True) for f, e in zip(fs, es, strict=True))
        assert all(np.array_equal(f, e) for f, e in pairs)
    assert_same_answers(alone, answers(tokenized, found), answers(tokenized, expected))


def assert_same_answers(alone: Reader, found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    if alone.variant == "cpu-int8":
        assert found == expected
    assert [replace(one, score=0) for one in found] == [replace(one, score=0) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_in_runs_of_equal_length(
    alone: Reader, tokenized: Sequence[Tokenized], expected: Sequence[list[Logits]]
) -> None:
    found = in_equal_runs(lambda windows: _sides(alone, windows), tokenized)
    assert_same(alone, tokenized, found, expected)


def test_on_several_threads(
    alone: Reader, bundle: Path, tokenized: Sequence[Tokenized], expected: Sequence[list[Logits]]
) -> None:
    threaded = Reader(bundle, alone.variant, threads=2)
    found = [logits_of(lambda windows: _sides(threaded, windows), one) for one in tokenized]
    assert_same(alone, tokenized, found, expected)


@pytest.fixture(scope="module")
def loaded(alone: Reader, bundle: Path) -> Iterator[str]:
    """The address of a server of the variant."""
    with serving([*CLI, "serve", str(bundle), "--variant", alone.variant]) as (_, address):
        yield address


async def test_on_a_loaded_server(
    alone: Reader,
    loaded: str,
    questions: Sequence[Question],
    tokenized: Sequence[Tokenized],
    expected: Sequence[list[Logits]],
) -> None:
    callers = asyncio.Semaphore(AT_ONCE)
    async with AsyncClient(loaded) as client:

        async def ask(question: Question) -> Answer:
            async with callers:
                found = await client.answer(question.question, question.context, max_answer_tokens=MAX_ANSWER_TOKENS)
            return found[0]

        found = await asyncio.gather(*map(ask, questions))
    assert_same_answers(alone, found, answers(tokenized, expected))


def test_dynamic_int8_depends_on_its_company(
    bundle: Path, tokenized: Sequence[Tokenized], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The contrast: one scale over a whole run makes a window's logits depend on the others in it."""
    quantize_dynamic(
        bundle / "cpu-fp32.onnx",
        tmp_path / "dynamic.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    run = runner(open_session(tmp_path / "dynamic.onnx", threads=1))
    apart, together = each(lambda one: logits_of(run, one), tokenized), in_equal_runs(run, tokenized)
    moved = max(
        float(np.abs(np.array(a) - np.array(b)).max())
        for one, other in zip(apart, together, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    pairs = zip(answers(tokenized, apart), answers(tokenized, together), strict=True)
    different = sum((a.start, a.end) != (b.start, b.end) for a, b in pairs)
    with capsys.disabled():
        print(f"\ndynamic int8: {different} of {len(tokenized)} answers differ in company, logits by up to {moved:.3g}")
    assert moved > 1e-3
