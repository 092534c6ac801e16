"""What quantisation costs in answers, step by step: ``python -m benchmarks.accuracy [dev-v1.1.json]``.

The shipped checkpoint answers the questions of a SQuAD v1.1 file, by default the packaged ones, once with each model:
fp32; the stock recipes (ONNX Runtime's dynamic quantisation of the plain export, and its static quantisation of the
fused graph, which rounds the outputs of the matmuls too); the exporter's own int8 by each calibration method, without
its other steps and then with one more each time, the last being what is released; and that with its worst matmuls in
fp32. Beside the scores stand the answers at another place than fp32's, the size of the model, and how long runs take
against those of the released model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.calibrate import create_calibrator

from benchmarks import models
from benchmarks.racing.systems import onnxruntime
from benchmarks.reporting.environment import STOCK_WEIGHTS, machine
from benchmarks.reporting.tables import table
from distilqa.engine.cores import usable_cores
from distilqa.engine.processor import read_processor
from distilqa.engine.session import open_session
from distilqa.evaluation.dataset import Question, read_questions
from distilqa.evaluation.evaluate import Evaluation
from distilqa.evaluation.progress import ProgressBar
from distilqa.text.arrays import Int64
from distilqa.text.windows import Tokenized, Windower
from distilqa_export import samples
from distilqa_export.arrays import Float64
from distilqa_export.gate.check import Run, runner
from distilqa_export.gate.judge import agreement, answer_all, f1_drop
from distilqa_export.gate.release import rank
from distilqa_export.gate.speed import median_ratio, side_by_side
from distilqa_export.graph.checkpoint import load_checkpoint
from distilqa_export.graph.fuse import fuse
from distilqa_export.graph.trace import trace
from distilqa_export.quantization.calibrate import Observed, observe
from distilqa_export.quantization.quantize import Quantizer
from distilqa_export.quantization.rounding import Rounder

RELEASED = "+ outliers after Gelu in fp32 (cpu-int8)"

# How many of the worst matmuls stay fp32 in the mixed models.
MIXED = (3, 9)

_TIMED_WINDOWS, _TIMED_ROUNDS = 30, 5

_STOCK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Contender:
    """A model to judge: how it runs, and its file."""

    run: Run
    path: Path


Make = Callable[[], Contender]


class Workshop:
    """The shipped checkpoint in a scratch folder, traced and fused, and the windows that int8 is calibrated on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        checkpoint = load_checkpoint(str(models.CHECKPOINT))
        self.architecture = checkpoint.architecture
        self.windower = Windower(checkpoint.tokenizer_json, max_tokens=checkpoint.window_tokens)
        self.traced = trace(checkpoint, folder)
        self.fused = folder / "fused.onnx"
        ir.save(fuse(self.traced, self.architecture), self.fused)
        texts = [self.windower.tokenize(s.question, [s.context]) for s in samples.packaged_calibration()]
        self.windows = [window.input_ids for text in texts for window in text.windows]

    @cached_property
    def quantizer(self) -> Quantizer:
        """The exporter's own."""
        return Quantizer(self.fused, self.windows, self.architecture)

    @cached_property
    def worst(self) -> list[str]:
        """The matmuls, from the one on whose quantisation the logits depend most."""
        return list(rank(self.quantizer, self.folder, self.windows[:_TIMED_WINDOWS]))

    def ours(self, model: ir.Model) -> Contender:
        """A model as the server runs it."""
        path = self._file()
        ir.save(model, path)
        return Contender(runner(open_session(path, threads=1)), path)

    def stock(self, quantize: Callable[[Path], None]) -> Contender:
        """What a recipe writes, as ONNX Runtime opens it by default, with its own fusions."""
        path = self._file()
        quantize(path)
        run = onnxruntime(path, threads=1)
        return Contender(lambda windows: run(np.stack(windows)), path)

    def _file(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / "model.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Judge each step of int8.")
    parser.add_argument("questions", nargs="?", type=Path, help="SQuAD v1.1 file (default: the packaged questions)")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--no-steps", action="store_true", help="leave out all but fp32 and what is released")
    arguments = parser.parse_args()
    questions = read_questions(arguments.questions) if arguments.questions else samples.packaged_evaluation()
    questions = questions[: arguments.first]
    with tempfile.TemporaryDirectory() as scratch:
        workshop = Workshop(Path(scratch))
        makes: dict[str, Make] = {"fp32": lambda: workshop.ours(ir.load(workshop.fused))}
        if not arguments.no_steps:
            makes |= stock_recipes(workshop) | static_steps(workshop)
        makes[RELEASED] = lambda: workshop.ours(workshop.quantizer.model())
        if not arguments.no_steps:
            makes |= mixed(workshop)
        contenders = {name: make() for name, make in makes.items()}
        times = time_all(contenders, workshop.windows[:_TIMED_WINDOWS])
        tokenized = {q.id: workshop.windower.tokenize(q.question, [q.context]) for q in questions}
        found = judge_all(contenders, questions, tokenized)
        print(report(found, {name: one.path.stat().st_size for name, one in contenders.items()}, times))


def stock_recipes(workshop: Workshop) -> dict[str, Make]:
    """ONNX Runtime's own quantisation, int8 weights with a scale a column; the answer head stays fp32.

    The weights are of 7 bits where the sums of 8-bit products saturate.
    """
    reduced = read_processor().saturates

    def dynamic(path: Path) -> None:
        quantize_dynamic(workshop.traced, path, per_channel=True, weight_type=QuantType.QInt8, reduce_range=reduced)

    def static(path: Path) -> None:
        quantize_static(
            workshop.fused,
            path,
            _Feeds(workshop.windows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in ir.load(workshop.fused).graph if node.op_type == "MatMul"][-1:],
        )

    return {
        "stock, dynamic": lambda: workshop.stock(dynamic),
        "stock, static (outputs too)": lambda: workshop.stock(static),
    }


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    """The windows as ONNX Runtime's calibration asks for them: its histograms take one length only."""

    def __init__(self, windows: Sequence[Int64]) -> None:
        long = [window for window in windows if len(window) >= _STOCK_TOKENS]
        self._windows = iter([np.append(window[: _STOCK_TOKENS - 1], window[-1]) for window in long])

    def get_next(self) -> dict[str, Int64] | None:
        return next(({"input_ids": window[None]} for window in self._windows), None)


def static_steps(workshop: Workshop) -> dict[str, Make]:
    """The exporter's int8 by each calibration method, then with one more of its steps each time, but for the last."""
    steps: dict[str, Callable[..., Any]] = {
        "equalize": lambda fused, observed, heads: (ir.load(fused), observed),
        "_block_factors": lambda units, weight: (len(units.mean), np.ones(1)),
        "Rounder": _to_nearest,
        "count_outliers": lambda reach: 0,
    }
    attention = [f"layer{number}.attention" for number in range(workshop.architecture.layers)]

    def make(replaced: Mapping[str, Callable[..., Any]], fp32: Sequence[str] = ()) -> Contender:
        with without(replaced):
            return workshop.ours(Quantizer(workshop.fused, workshop.windows, workshop.architecture).model(fp32))

    def clipped(method: CalibrationMethod, **options: Any) -> Contender:
        return make(steps | {"observe": _clipped(ranges(workshop, method, **options))}, attention)

    rounding = {name: steps[name] for name in ("Rounder", "count_outliers")}
    outliers = {"count_outliers": steps["count_outliers"]}
    return {
        "static, entropy": lambda: clipped(CalibrationMethod.Entropy, num_bins=2048),
        "static, percentile 99.99": lambda: clipped(CalibrationMethod.Percentile, percentile=99.99),
        "static, min-max": lambda: make(steps, attention),
        "+ equalised": lambda: make(rounding, attention),
        "+ rounded with feedback": lambda: make(outliers, attention),
        "+ attention in int8": lambda: make(outliers),
    }


def mixed(workshop: Workshop) -> dict[str, Make]:
    """The released model with its worst matmuls in fp32."""
    total = len(workshop.quantizer.matmuls)

    def make(count: int) -> Make:
        return lambda: workshop.ours(workshop.quantizer.model(workshop.worst[:count]))

    return {f"mixed: {count} of {total} matmuls in fp32": make(count) for count in MIXED}


@contextmanager
def without(replaced: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """The quantiser with some of its steps replaced by what does nothing."""
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(patch(f"distilqa_export.quantization.quantize.{name}", function))
        yield


def ranges(workshop: Workshop, method: CalibrationMethod, **options: Any) -> dict[str, tuple[float, float]]:
    """What ONNX Runtime's calibration takes for the range of each input of a matmul."""
    calibrator = create_calibrator(
        workshop.fused,
        ["MatMul"],
        str(workshop.folder / "augmented.onnx"),
        calibrate_method=method,
        extra_options={"symmetric": False} | options,
    )
    with redirect_stdout(sys.stderr):
        calibrator.collect_data(_Feeds(workshop.windows))
        found = calibrator.compute_data()
    return {name: (float(data.lowest), float(data.highest)) for name, data in found.items()}


def _clipped(found: Mapping[str, tuple[float, float]]) -> Callable[..., dict[str, Observed]]:
    """Observes as the exporter does, but lets no value exceed its range."""

    def observe_clipped(*arguments: Any, **options: Any) -> dict[str, Observed]:
        seen = observe(*arguments, **options)
        for name in seen.keys() & found.keys():
            low, high = found[name]
            least, greatest = np.maximum(seen[name].least, low), np.minimum(seen[name].greatest, high)
            seen[name] = replace(seen[name], least=least, greatest=greatest)
        return seen

    return observe_clipped


def _to_nearest(covariance: Float64) -> Rounder:
    """Rounds each weight to its nearest step, as far as there is room beside the other of its pair."""
    return Rounder(np.eye(len(covariance)))


def time_all(contenders: Mapping[str, Contender], windows: Sequence[Int64]) -> dict[str, float]:
    """The median, over windows and rounds, of how many times as long a run takes as the released model's."""
    seconds = side_by_side({name: contender.run for name, contender in contenders.items()}, windows, _TIMED_ROUNDS)
    return {name: median_ratio(spent, seconds[RELEASED]) for name, spent in seconds.items()}


def judge_all(
    contenders: Mapping[str, Contender], questions: Sequence[Question], tokenized: Mapping[str, Tokenized]
) -> dict[str, Evaluation]:
    """Judge as many at once as there are cores: each runs on one."""
    answered = dict.fromkeys(contenders, 0)
    with (
        ProgressBar("answers", len(questions) * len(contenders), sys.stderr) as progress,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):

        def judged(name: str) -> Evaluation:
            def told(done: int) -> None:
                answered[name] = done
                progress(sum(answered.values()))

            return answer_all(contenders[name].run, questions, tokenized, told)

        return dict(zip(contenders, pool.map(judged, contenders), strict=True))


def report(found: Mapping[str, Evaluation], sizes: Mapping[str, int], times: Mapping[str, float]) -> str:
    """Markdown: a row a model."""
    fp32 = found["fp32"]
    rows = []
    for name, one in found.items():
        drop = f1_drop(fp32, one)
        changed = 100 * (1 - agreement(fp32, one))
        lost = "" if one is fp32 else f"{drop.points:.2f} ({drop.low:.2f} to {drop.high:.2f})"
        moved = "" if one is fp32 else f"{changed:.1f} %"
        size, spent = f"{sizes[name] / 1e6:.1f}", f"{times[name]:.2f}"
        rows.append([name, f"{one.exact_match:.2f}", f"{one.f1:.2f}", lost, moved, size, spent])
    head = ("", "exact match", "F1", "F1 lost (95 % interval)", "answers elsewhere", "MB", "time of a run")
    setting = f"{machine()}, {len(fp32.questions):,} questions"
    return "\n\n".join([setting, *([STOCK_WEIGHTS] if read_processor().saturates else []), table(head, rows)])


if __name__ == "__main__":
    main()
