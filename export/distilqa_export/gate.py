"""The accuracy gate: what int8 and fp16 cost in F1; int8 keeps in fp32 what has to be, so that it is in the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from distilqa.answer import Answer
from distilqa.bundle import GPU_VARIANTS, Architecture
from distilqa.cuda import open_cuda_session
from distilqa.engine import open_session, usable_cores
from distilqa.errors import MissingDependency
from distilqa.evaluation import MAX_ANSWER_TOKENS, Evaluation, Question, evaluate
from distilqa.spans import Float32, Logits, decode
from distilqa.windows import Int64, Tokenized
from distilqa_export.check import Run, largest_difference, logits_of, runner
from distilqa_export.errors import ExportError
from distilqa_export.pack import pack
from distilqa_export.progress import Progress, tenths
from distilqa_export.quantize import Quantizer
from distilqa_export.speed import median_ratio, side_by_side

_RESAMPLES = 10_000
_LEVEL = 95

# With fewer, a bootstrap over them says little of others.
_LEAST_PASSAGES = 100

# A model of which more than this part of the matmuls is fp32 is no int8 model any more.
_LARGEST_PART_IN_FP32 = 0.25

# Calibration windows that matmuls are ranked by, and that speed is compared on; rounds of the latter.
_WINDOWS = 50
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Judged:
    """A model's answers to the evaluation's questions, and the logits that they come from."""

    evaluation: Evaluation
    logits: list[list[Logits]]


@dataclass(frozen=True, slots=True)
class Drop:
    """By how many points F1 falls, and the interval in which that lies with 95 per cent confidence."""

    points: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Released:
    """A model that may be listed, and where it is saved; one of int8 is within its budget.

    ``fp32_matmuls`` of it are left in fp32, with the logit error of each in int8. ``stand_in`` is the model that was
    judged in its place where nothing here can run it.
    """

    model: ir.Model
    path: Path
    judged: Judged
    fp32_matmuls: Mapping[str, float]
    measured: dict[str, float]
    stand_in: Path | None = None

    @property
    def runnable(self) -> Path:
        """What runs here."""
        return self.stand_in or self.path


Judge = Callable[[Path], Judged]


def judge(
    run: Run, questions: Sequence[Question], tokenized: Mapping[str, Tokenized], progress: Callable[[int], None]
) -> Judged:
    """Answer the questions with a model, on a core each. ``tokenized`` has each question by its id.

    ``progress`` is told how many are done.
    """
    logits: dict[str, list[Logits]] = {}

    def answer(question: Question) -> Answer:
        logits[question.id] = logits_of(run, tokenized[question.id])
        return decode(tokenized[question.id], logits[question.id], max_answer_tokens=MAX_ANSWER_TOKENS)[0]

    found = evaluate(questions, answer, lanes=usable_cores(), progress=progress)
    return Judged(found, [logits[question.id] for question in questions])


def release(
    quantizer: Quantizer,
    scratch: Path,
    windows: Sequence[Int64],
    fp32: Judged,
    judged_by: Judge,
    budget: float,
    progress: Progress,
) -> Released:
    """Return the int8 model with the fewest matmuls in fp32 whose F1 is within the budget, in points, of fp32's.

    Raises ExportError if there is none with three quarters of the matmuls in int8.
    """
    path = scratch / "cpu-int8.onnx"
    ranked: dict[str, float] = {}
    for kept in range(int(len(quantizer.matmuls) * _LARGEST_PART_IN_FP32) + 1):
        if kept == 1:
            told = tenths("rank by the error of their quantisation", len(quantizer.matmuls), "matmuls", progress)
            ranked = rank(quantizer, scratch, windows[:_WINDOWS], told)
        left = dict(list(ranked.items())[:kept])
        model = quantizer.model(left)
        ir.save(model, path)
        judged = judged_by(path)
        drop = f1_drop(fp32.evaluation, judged.evaluation)
        progress(_lost(f"int8 with {kept} of {len(quantizer.matmuls)} matmuls in fp32", drop, budget))
        if drop.points <= budget:
            if doubt := _doubt(fp32.evaluation, drop, budget):
                progress(f"{doubt}: more questions (--eval) would make it surer")
            measured = _against(fp32, judged, drop)
            if left:
                measured |= cost(quantizer, scratch, path, windows[:_WINDOWS])
            return Released(model, path, judged, left, measured)
    raise ExportError(
        f"int8 loses {drop.points:.2f} F1 on {len(judged.evaluation.questions)} questions, with {kept} of"
        f" {len(quantizer.matmuls)} matmuls left in fp32; {budget:g} is allowed"
    )


def release_packed(
    fused: ir.Model, architecture: Architecture, scratch: Path, fp32: Judged, judged_by: Judge, budget: float,
    progress: Progress,
) -> Released:  # fmt: skip
    """Return the packed fp16 model of a fused one, whose F1 is within the budget, in points, of fp32's.

    Where no GPU can run it, its twin is judged on the CPU. Raises ExportError if it loses more.
    """
    path, twin = scratch / f"{GPU_VARIANTS[0]}.onnx", None
    model = pack(fused, architecture)
    ir.save(model, path)
    try:
        open_cuda_session(path)
    except MissingDependency as error:
        progress(f"no GPU can run it here ({error}); its twin is judged on the CPU, and it is marked unverified")
        ir.save(pack(fused, architecture, twin=True), twin := scratch / f"{path.stem}-twin.onnx")
    judged = judged_by(twin or path)
    drop = f1_drop(fp32.evaluation, judged.evaluation)
    progress(_lost("fp16", drop, budget))
    if drop.points > budget:
        raise ExportError(
            f"fp16 loses {drop.points:.2f} F1 on {len(judged.evaluation.questions)} questions; {budget:g} is allowed"
        )
    if doubt := _doubt(fp32.evaluation, drop, budget):
        progress(f"{doubt}: more questions (--eval) would make it surer")
    return Released(model, path, judged, {}, _against(fp32, judged, drop), twin)


def _lost(what: str, drop: Drop, budget: float) -> str:
    return (
        f"{what} loses {drop.points:.2f} points of F1"
        f" ({_LEVEL} % interval {drop.low:.2f} to {drop.high:.2f}); {budget:g} are allowed"
    )


def _against(fp32: Judged, judged: Judged, drop: Drop) -> dict[str, float]:
    """What a model's answers are beside fp32's."""
    return {
        "largest_difference_from_fp32": largest_difference(fp32.logits, judged.logits),
        "answers_as_fp32": agreement(fp32.evaluation, judged.evaluation),
        "f1_drop": drop.points,
        "f1_drop_low": drop.low,
        "f1_drop_high": drop.high,
    }


def _doubt(judged: Evaluation, drop: Drop, budget: float) -> str:
    """Why a drop within the budget may be chance, if it may."""
    passages = len({question.context for question in judged.questions})
    if passages < _LEAST_PASSAGES:
        return f"{len(judged.questions)} questions on {passages} passages are too few to judge by"
    return f"the interval reaches beyond {budget:g}" if drop.high > budget else ""


def f1_drop(before: Evaluation, after: Evaluation) -> Drop:
    """How much F1 falls between two models' answers to the same questions.

    The interval is a paired bootstrap's (Efron, 1979), which draws passages: questions on one are not independent.
    """
    losses = 100 * (np.array(before.f1s) - np.array(after.f1s))
    numbers: dict[str, int] = {}
    passage = [numbers.setdefault(question.context, len(numbers)) for question in before.questions]
    lost, count = np.bincount(passage, losses), np.bincount(passage)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(0, len(lost), len(lost))
        means.append(lost[drawn].sum() / count[drawn].sum())
    low, high = np.percentile(means, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return Drop(float(losses.mean()), float(low), float(high))


def agreement(one: Evaluation, other: Evaluation) -> float:
    """The share of questions that have the same place for an answer."""
    pairs = list(zip(one.answers, other.answers, strict=True))
    return sum((a.start, a.end) == (b.start, b.end) for a, b in pairs) / len(pairs)


def rank(
    quantizer: Quantizer, scratch: Path, windows: Sequence[Int64], progress: Callable[[int], None] = lambda done: None
) -> dict[str, float]:
    """The root mean square error of the logits when one matmul alone is int8, by its name, the worst first.

    ``progress`` is told how many matmuls are done.
    """

    def logits(fp32: Sequence[str]) -> Float32:
        path = scratch / "ranked.onnx"
        ir.save(quantizer.model(fp32), path)
        return _all_logits(runner(open_session(path, threads=1)), windows)

    expected, errors = logits(quantizer.matmuls), {}
    for done, name in enumerate(quantizer.matmuls, start=1):
        alone = logits([other for other in quantizer.matmuls if other != name])
        errors[name] = float(np.sqrt(np.mean((alone - expected) ** 2)))
        progress(done)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _all_logits(run: Run, windows: Sequence[Int64]) -> Float32:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return np.concatenate(
            [np.array(pair)[:, 0] for pair in pool.map(lambda window: run([window]), windows)], axis=1
        )


def cost(quantizer: Quantizer, scratch: Path, mixed: Path, windows: Sequence[Int64]) -> dict[str, float]:
    """What the matmuls in fp32 cost over all in int8: bytes, and how many times as long runs take."""
    whole = scratch / "all-int8.onnx"
    ir.save(quantizer.model(), whole)
    runs = {path.name: runner(open_session(path, threads=1)) for path in (mixed, whole)}
    seconds = side_by_side(runs, windows, _ROUNDS)
    return {
        "bytes_for_fp32_matmuls": mixed.stat().st_size - whole.stat().st_size,
        "times_as_long_as_all_int8": median_ratio(seconds[mixed.name], seconds[whole.name]),
    }
