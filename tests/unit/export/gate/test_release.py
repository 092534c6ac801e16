"""The gate: what it measures, and its three outcomes: passes, mixed, refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from distilqa.evaluation.dataset import Question
from distilqa.evaluation.evaluate import Evaluation
from distilqa.text.answer import Answer
from distilqa.text.arrays import Int64
from distilqa_export.errors import ExportError
from distilqa_export.gate.judge import Comparison, Drop
from distilqa_export.gate.release import Released, rank, release
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.fuse import census
from distilqa_export.quantization.quantize import Quantizer


def compared(wrong: int) -> Comparison:
    """A hundred answers of which so many are wrong, and none of fp32's."""
    questions = [Question(str(number), "?", f"passage {number}", ("yes",)) for number in range(100)]
    answers = [Answer("no" if number < wrong else "yes", 0, 3, 1.0, 0) for number in range(100)]
    drop = Drop(float(wrong), float(wrong), float(wrong))
    return Comparison(Evaluation(questions, answers, 1.0), drop, 1 - wrong / 100, 100.0, 100.0, 100, 0.5)


@pytest.fixture(scope="module")
def quantizer(fused: Path, calibration: list[Int64], tiny: Checkpoint) -> Quantizer:
    return Quantizer(fused, calibration[:5], tiny.architecture)


def test_names_each_matmul(quantizer: Quantizer) -> None:
    parts = ("query", "key", "value", "out", "widen", "narrow", "attention")
    assert quantizer.matmuls == tuple(f"layer{number}.{part}" for number in range(2) for part in parts)


@pytest.mark.parametrize(
    ("fp32", "matmuls", "int8", "quantized"),
    [
        (["layer0.query"], 1, 15, 16),
        (["layer1.narrow"], 1, 15, 15),
        (["layer0.query", "layer0.key", "layer0.value"], 3, 13, 15),
        (["layer0.attention"], 0, 14, 12),
        (["layer0.attention", "layer1.out", "layer0.out"], 2, 12, 10),
    ],
)
def test_leaves_matmuls_in_fp32(fp32: list[str], matmuls: int, int8: int, quantized: int, quantizer: Quantizer) -> None:
    found = census(quantizer.model(fp32))
    assert found["MatMul"] == 1 + matmuls
    assert found["Attention"] == sum(name.endswith("attention") for name in fp32)
    assert (found["MatMulIntegerToFloat"], found["QuantizeLinear"]) == (int8, quantized)


def test_ranks_by_the_error_of_each(quantizer: Quantizer, calibration: list[Int64], tmp_path: Path) -> None:
    errors = rank(quantizer, tmp_path, calibration[:3])
    assert sorted(errors) == sorted(quantizer.matmuls)
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert 0 < min(errors.values()) < max(errors.values())


def test_the_error_of_one_is_what_leaving_the_others_shows(
    quantizer: Quantizer, calibration: list[Int64], tmp_path: Path
) -> None:
    """Leaving the worst of them in fp32 takes away more than leaving the best."""
    from distilqa.engine.session import open_session, run_session

    def logits(name: str, fp32: Sequence[str]) -> np.ndarray:
        ir.save(quantizer.model(fp32), tmp_path / name)
        session = open_session(tmp_path / name, threads=1)
        inputs = [node.name for node in session.get_inputs()]
        return np.array(run_session(session, inputs, calibration[:1]))

    errors = rank(quantizer, tmp_path, calibration[:1])
    exact = logits("exact.onnx", quantizer.matmuls)
    name, error = next(iter(errors.items()))
    alone = logits("alone.onnx", [other for other in quantizer.matmuls if other != name])
    assert float(np.sqrt(np.mean((alone - exact) ** 2))) == pytest.approx(error, rel=1e-5)


def size(model: ir.Model, folder: Path) -> int:
    """Of a model's file, in bytes."""
    ir.save(model, folder / "size.onnx")
    return (folder / "size.onnx").stat().st_size


def outcome(quantizer: Quantizer, windows: list[Int64], folder: Path, wrong: Sequence[int], budget: float) -> Released:
    """What the gate does where so many of a hundred answers are wrong at each try, and none in fp32."""
    tries = iter(wrong)
    return release(
        quantizer,
        folder,
        windows,
        lambda model: compared(next(tries)),
        budget,
        lambda step: None,
    )


def test_passes(quantizer: Quantizer, calibration: list[Int64], tmp_path: Path) -> None:
    released = outcome(quantizer, calibration[:2], tmp_path, [2], budget=2.0)
    assert released.fp32_matmuls == {}
    assert released.measured["f1_drop"] == pytest.approx(2)
    assert released.measured["answers_as_fp32"] == 0.98
    assert released.measured["f1"] == 98
    assert (released.measured["questions"], released.measured["largest_difference_from_fp32"]) == (100, 0.5)
    assert "bytes_for_fp32_matmuls" not in released.measured
    assert census(released.model)["MatMulIntegerToFloat"] == 16


def test_mixed(quantizer: Quantizer, calibration: list[Int64], tmp_path: Path) -> None:
    """The worst stay in fp32, one after another, until the budget holds; what that costs is recorded."""
    released = outcome(quantizer, calibration[:2], tmp_path, [9, 5, 2], budget=2.0)
    worst = list(rank(quantizer, tmp_path, calibration[:2]).items())[:2]
    assert list(released.fp32_matmuls.items()) == worst
    assert released.measured["f1_drop"] == pytest.approx(2)
    assert released.measured["bytes_for_fp32_matmuls"] == size(released.model, tmp_path) - size(
        quantizer.model(), tmp_path
    )
    assert released.measured["times_as_long_as_all_int8"] > 0
    assert census(released.model) == census(quantizer.model([name for name, _ in worst]))
    assert census(ir.load(tmp_path / "cpu-int8.onnx")) == census(released.model)


def test_refused(quantizer: Quantizer, calibration: list[Int64], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"loses 4\.00 F1 on 100 questions, with 3 of 14 matmuls left in fp32; 0\.5"):
        outcome(quantizer, calibration[:2], tmp_path, [9, 8, 6, 4, 0], budget=0.5)
