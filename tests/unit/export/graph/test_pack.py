"""Packing: what the graph is made of, and that its twin gives each window the logits that it has alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from distilqa.bundle import Architecture
from distilqa.engine.packed import run_packed
from distilqa.engine.session import open_session
from distilqa.text.arrays import Int64, Logits
from distilqa_export.errors import ExportError
from distilqa_export.gate.check import runner
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.fuse import census
from distilqa_export.graph.layers import layers, operand
from distilqa_export.graph.pack import pack, packed_operators

FP32, FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
LENGTHS = [5, 61, 384, 17, 128, 9]


@pytest.fixture(scope="module")
def windows() -> list[Int64]:
    """Of random words, a question and a passage each."""
    return [window(length, seed) for seed, length in enumerate(LENGTHS)]


def window(length: int, seed: int) -> Int64:
    ids = np.random.default_rng(seed).integers(1000, 30000, length)
    ids[0], ids[[length // 3, -1]] = 101, 102
    return ids


def opened(model: ir.Model, path: Path) -> Callable[[Sequence[Int64]], list[Logits]]:
    ir.save(model, path)
    session = open_session(path, threads=1)
    return partial(run_packed, session, [node.name for node in session.get_inputs()])


def test_demands_operators_by_the_number_of_layers() -> None:
    demanded = packed_operators(Architecture("distilbert", 6, 768, 12, 3072, 30522, 512, 66_364_418))
    assert {name: count for name, count in demanded.items() if count} == {
        "PackedMultiHeadAttention": 6,
        "BiasGelu": 6,
        "EmbedLayerNormalization": 1,
        "SkipLayerNormalization": 12,
        "MatMul": 37,
        "Add": 7,
    }


def test_no_operator_but_those_of_a_gpu_is_left(fused: Path, tiny: Checkpoint, kind: str) -> None:
    model = pack(ir.load(fused), tiny.architecture)
    found = census(model)
    assert {name: count for name, count in packed_operators(tiny.architecture).items() if count} | {
        "Reshape": 1,
        "Cast": 1,
    } == dict(found)
    segments = ["token_type_ids"] if kind == "bert" else []
    assert [value.name for value in model.graph.inputs] == [
        "input_ids", "position_ids", *segments, "cumulative_lengths", "token_offset"
    ]  # fmt: skip
    assert {value.dtype for value in model.graph.inputs} == {ir.DataType.INT32}
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("logits", FP32)]
    constants = [value.const_value for value in model.graph.initializers.values()]
    wide = [constant.shape.numpy() for constant in constants if constant is not None and constant.dtype == FP32]
    assert wide == [(tiny.architecture.hidden, 2), (2,)], "the answer head alone is in fp32"


def test_a_cpu_is_refused(fused: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    """Packed attention has no kernel there: ONNX Runtime says so when it opens the model, not in a run."""
    ir.save(pack(ir.load(fused), tiny.architecture), path := tmp_path / "packed.onnx")
    with pytest.raises(Exception, match="PackedMultiHeadAttention"):
        ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_its_twin_gives_each_window_what_it_has_alone(
    fused: Path, tiny: Checkpoint, windows: list[Int64], tmp_path: Path
) -> None:
    alone = runner(open_session(fused, threads=1))
    twin = opened(pack(ir.load(fused), tiny.architecture, precision=FP32, twin=True), tmp_path / "twin.onnx")
    for order in (windows, windows[::-1], windows[2:3]):
        for (start, end), one in zip(twin(order), order, strict=True):
            expected = alone([one])
            np.testing.assert_allclose(start, expected[0][0], atol=1e-4)
            np.testing.assert_allclose(end, expected[1][0], atol=1e-4)


def test_in_fp16_it_is_nearly_the_same(fused: Path, tiny: Checkpoint, windows: list[Int64], tmp_path: Path) -> None:
    """The twin rounds what every operator gives, not the weights alone."""
    twin = partial(pack, ir.load(fused), tiny.architecture, twin=True)
    whole, exact = twin(), opened(twin(precision=FP32), tmp_path / "exact.onnx")(windows)
    rounded = opened(whole, tmp_path / "rounded.onnx")(windows)
    for node in [node for node in whole.graph if node.op_type == "Cast" and node.outputs[0].uses()]:
        if (to := operand(node, 0).producer()) and to.op_type == "Cast":  # back to fp32
            node.outputs[0].replace_all_uses_with(operand(to, 0))
    weights = opened(whole, tmp_path / "weights.onnx")(windows)
    assert 0 < largest(exact, weights) < largest(exact, rounded) < 0.05
    assert largest(weights, rounded) > 0


def largest(one: list[Logits], other: list[Logits]) -> float:
    return float(max(np.abs(np.array(a) - np.array(b)).max() for a, b in zip(one, other, strict=True)))


def test_heads_that_have_no_flash_kernel_are_refused(fused: Path, tiny: Checkpoint) -> None:
    with pytest.raises(ExportError, match="heads of 4; packed attention on a GPU needs a multiple of 8"):
        pack(ir.load(fused), replace(tiny.architecture, heads=8))


def test_a_weight_that_fp16_cannot_hold_is_refused(fused: Path, tiny: Checkpoint) -> None:
    model = ir.load(fused)
    first = next(layers(model))
    first.widen.weight = np.full_like(first.widen.weight, 70_000)
    with pytest.raises(ExportError, match="a weight of 70000 is no number in float16"):
        pack(model, tiny.architecture)
