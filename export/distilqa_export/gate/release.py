"""The accuracy gate: what int8 and fp16 cost in F1; int8 keeps in fp32 what has to be, so that it is in the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from distilqa.bundle import GPU_VARIANTS, Architecture
from distilqa.engine.cores import usable_cores
from distilqa.engine.cuda.engine import open_cuda_session
from distilqa.engine.session import open_session
from distilqa.errors import MissingDependency
from distilqa.evaluation.evaluate import Evaluation
from distilqa.text.arrays import Float32, Int64
from distilqa_export.errors import ExportError
from distilqa_export.gate.check import Run, runner
from distilqa_export.gate.judge import LEVEL, Comparison, Drop
from distilqa_export.gate.speed import median_ratio, side_by_side
from distilqa_export.graph.pack import pack
from distilqa_export.progress import Progress, tenths
from distilqa_export.quantization.quantize import Quantizer

# With fewer, a bootstrap over them says little of others.
_LEAST_PASSAGES = 100

# A model of which more than this part of the matmuls is fp32 is no int8 model any more.
_LARGEST_PART_IN_FP32 = 0.25

# Calibration windows that matmuls are ranked by, and that speed is compared on; rounds of the latter.
_WINDOWS = 50
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Released:
    """A model that may be listed, and where it is saved; one of int8 is within its budget.

    ``fp32_matmuls`` of it are left in fp32, with the logit error of each in int8. ``compared`` is what it is beside
    fp32, None for fp32 itself. ``stand_in`` is the model that was judged in its place where nothing here can run it.
    """

    model: ir.Model
    path: Path
    measured: Mapping[str, float]
    compared: Comparison | None = None
    fp32_matmuls: Mapping[str, float] = field(default_factory=dict)
    stand_in: Path | None = None

    @property
    def runnable(self) -> Path:
        """What runs here."""
        return self.stand_in or self.path


Compare = Callable[[Path], Comparison]


def release(
    quantizer: Quantizer,
    scratch: Path,
    windows: Sequence[Int64],
    compare: Compare,
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
        found = compare(path)
        progress(_lost(f"int8 with {kept} of {len(quantizer.matmuls)} matmuls in fp32", found.drop, budget))
        if found.drop.points <= budget:
            if doubt := _doubt(found.evaluation, found.drop, budget):
                progress(f"{doubt}: more questions (--eval) would make it surer")
            measured = _against_fp32(found)
            if left:
                measured |= cost(quantizer, scratch, path, windows[:_WINDOWS])
            return Released(model, path, measured, found, left)
    raise ExportError(
        f"int8 loses {found.drop.points:.2f} F1 on {len(found.evaluation.questions)} questions, with {kept} of"
        f" {len(quantizer.matmuls)} matmuls left in fp32; {budget:g} is allowed"
    )


def release_packed(
    fused: ir.Model, architecture: Architecture, scratch: Path, compare: Compare, budget: float, progress: Progress
) -> Released:
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
    found = compare(twin or path)
    progress(_lost("fp16", found.drop, budget))
    if found.drop.points > budget:
        raise ExportError(
            f"fp16 loses {found.drop.points:.2f} F1 on {len(found.evaluation.questions)} questions;"
            f" {budget:g} is allowed"
        )
    if doubt := _doubt(found.evaluation, found.drop, budget):
        progress(f"{doubt}: more questions (--eval) would make it surer")
    return Released(model, path, _against_fp32(found), found, stand_in=twin)


def _lost(what: str, drop: Drop, budget: float) -> str:
    return (
        f"{what} loses {drop.points:.2f} points of F1"
        f" ({LEVEL} % interval {drop.low:.2f} to {drop.high:.2f}); {budget:g} are allowed"
    )


def scores(found: Evaluation) -> dict[str, float]:
    """What a model's answers to all questions are worth."""
    return {"exact_match": found.exact_match, "f1": found.f1, "questions": len(found.questions)}


def scores_of_fp32(found: Comparison) -> dict[str, float]:
    """What fp32's answers are worth, as far as it had to be asked."""
    return {
        "exact_match": found.fp32_exact_match,
        "f1": found.fp32_f1,
        "questions": len(found.evaluation.questions),
        "fp32_questions_asked": found.asked,
    }


def _against_fp32(found: Comparison) -> dict[str, float]:
    """What a model's answers are, and what they are beside fp32's."""
    return scores(found.evaluation) | {
        "fp32_questions_asked": found.asked,
        "largest_difference_from_fp32": found.largest_difference,
        "answers_as_fp32": found.agreement,
        "f1_drop": found.drop.points,
        "f1_drop_low": found.drop.low,
        "f1_drop_high": found.drop.high,
    }


def _doubt(judged: Evaluation, drop: Drop, budget: float) -> str:
    """Why a drop within the budget may be chance, if it may."""
    passages = len({question.context for question in judged.questions})
    if passages < _LEAST_PASSAGES:
        return f"{len(judged.questions)} questions on {passages} passages are too few to judge by"
    return f"the interval reaches beyond {budget:g}" if drop.high > budget else ""


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
