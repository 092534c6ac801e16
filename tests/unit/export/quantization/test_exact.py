"""The rule for exact products: what keeps it is exact on this processor's kernel, and what breaks it is refused."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.emulated.products import Product, in_pairs, write

from distilqa.engine.session import open_session
from distilqa.text.arrays import Int64
from distilqa_export.errors import ExportError
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.layers import operand
from distilqa_export.quantization.exact import OPERAND, PAIR, WEIGHT, is_exact, least_scale, require_exact, room
from distilqa_export.quantization.quantize import Quantizer

Int8 = npt.NDArray[np.int8]

seeds = st.integers(0, 2**32 - 1)
# Rows, inner size and columns: below, at and above what kernels take at once.
sizes = st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 70))
byte_pairs = arrays(np.int8, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=st.integers(-128, 127))


def numbers(random: np.random.Generator, least: int, greatest: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Random numbers, more of them at the ends than between."""
    ends = random.choice([least, greatest], shape)
    return np.where(random.random(shape) < 0.7, ends, random.integers(least, greatest, shape, endpoint=True))


@given(seeds, sizes, st.integers(0, 255))
def test_what_keeps_the_rule_is_exact_on_this_processor(seed: int, size: tuple[int, int, int], zero: int) -> None:
    """With and without VNNI: constant weights in pairs, and run-time numbers within their range."""
    random, (rows, inner, columns) = np.random.default_rng(seed), size
    a = numbers(random, 0, 255, (rows, inner)).astype(np.uint8)
    weight = in_pairs(numbers(random, -WEIGHT, WEIGHT, (inner, columns)).astype(np.int8), PAIR)
    assert is_exact(weight)
    at_run_time = numbers(random, -OPERAND, OPERAND, (inner, columns)).astype(np.int8)
    products = [Product(a, weight, zero), Product(a, at_run_time, zero, constant=False)]
    with TemporaryDirectory() as folder:
        feeds = write(products, Path(folder) / "products.onnx")
        found = open_session(Path(folder) / "products.onnx", threads=1).run(None, feeds)
    for product, values in zip(products, found, strict=True):
        np.testing.assert_array_equal(values, product.exact)


def fits_16_bits(weight: Int8) -> bool:
    """By the kernels themselves: every pair of products with activations at the ends, and none of -128."""
    wide = np.pad(weight.astype(int), ((0, len(weight) % 2), (0, 0)))
    first, second = wide[0::2], wide[1::2]
    sums = [a * first + b * second for a in (0, 255) for b in (0, 255)]
    return bool(np.min(sums) >= -(2**15) and np.max(sums) < 2**15 and weight.min() > -128)


@given(byte_pairs)
def test_the_rule_is_what_16_bits_can_add(weight: Int8) -> None:
    assert is_exact(weight) == fits_16_bits(weight)


@given(st.integers(-WEIGHT, WEIGHT))
def test_room_beside_a_weight_is_all_that_the_rule_leaves(other: int) -> None:
    least, greatest = room(np.array([other], np.int16))
    kept = [one for one in range(-128, 128) if is_exact(np.array([[other], [one]], np.int8))]
    assert kept == list(range(int(least[0]), int(greatest[0]) + 1))


@given(seeds, st.integers(1, 9), st.integers(1, 5))
def test_the_least_scale_brings_weights_within_the_rule_and_is_the_least(seed: int, inputs: int, outputs: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(inputs, outputs))
    scale = least_scale(weight)
    assert scale.shape == (outputs,)
    for column in range(outputs):
        scaled = weight[:, column] / scale[column]
        pairs = np.pad(scaled, (0, inputs % 2)).reshape(-1, 2)
        sums = np.concatenate([np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)])
        assert max(np.abs(scaled).max() / WEIGHT, sums.max() / PAIR) == pytest.approx(1)


@pytest.fixture
def int8(fused: Path, calibration: list[Int64], tiny: Checkpoint) -> ir.Model:
    return Quantizer(fused, calibration[:2], tiny.architecture).model()


def products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]


def test_the_exporters_model_keeps_the_rule(int8: ir.Model) -> None:
    require_exact(int8)
    assert len(products(int8)) == 16


def refused(model: ir.Model, node: ir.Node) -> None:
    with pytest.raises(ExportError, match="would be wrong on some processors") as caught:
        require_exact(model)
    assert str(node.outputs[0].name) in str(caught.value)


def test_refuses_weights_that_break_the_rule(int8: ir.Model) -> None:
    """A single pair is enough."""
    node, value = next((node, operand(node, 1)) for node in products(int8) if operand(node, 1).const_value is not None)
    assert value.const_value is not None
    weight = value.const_value.numpy().copy()
    weight[4:6, 2] = (100, 29)
    value.const_value = ir.tensor(weight, name=value.name)
    refused(int8, node)


@pytest.mark.parametrize("rounding", ["Clip", "QuantizeLinear"])
def test_refuses_run_time_numbers_that_nothing_bounds(rounding: str, int8: ir.Model) -> None:
    """Values are cut off, keys have a scale of their own each: without that, or with another end, neither will do."""
    found = {
        maker.op_type: (node, maker)
        for node in products(int8)
        if (moved := operand(node, 1).producer()) and (maker := rounding_of(moved))
    }
    node, maker = found[rounding]
    if rounding == "Clip":
        end = operand(maker, 2)
        end.const_value = ir.tensor(np.int8(OPERAND + 1), name=end.name)
    else:
        maker.replace_input_with(1, operand(products(int8)[0], 2))
    refused(int8, node)


def rounding_of(node: ir.Node) -> ir.Node:
    """What made the numbers, through what only moves them."""
    while node.op_type in {"Reshape", "Transpose"}:
        producer = operand(node, 0).producer()
        assert producer is not None
        node = producer
    return node


def test_refuses_other_products_of_integers(int8: ir.Model) -> None:
    """Of which the rule says nothing."""
    node = products(int8)[0]
    other = ir.node("MatMulInteger", [operand(node, 0), operand(node, 1)])
    other.outputs[0].name = "other"
    int8.graph.append(other)
    refused(int8, other)
