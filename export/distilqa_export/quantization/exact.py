"""Which 8-bit products are exact on every processor: the rule, and the check that a graph has no others.

A product of unsigned activations, 0 to 255, and signed 8-bit numbers is summed up in 32 bits, but not by all kernels
from the start:

- x86 without VNNI (vpmaddubsw; AVX2 and AVX-512) first adds the products of rows 2i and 2i + 1 of a column in 16 bits,
  and what exceeds those is cut off.
- Arm without dot products (smull, smlal) adds those of rows k and k + 8 of sixteen in 16 bits, with activations moved
  to -128 to 127. Those of -128 by -128, twice, wrap.

So in each column the positive numbers of rows 2i and 2i + 1 add up to at most 128, the negative ones to at least -128,
and none is -128. 255 times 128 fits into 16 bits. Where the numbers are known only as the model runs, each is within
[-64, 64], but for those of a row of zeros, which have the scale 0. Then every kernel gives the same integers: with
VNNI, without it, on Arm with and without dot products, in WebAssembly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from distilqa_export.arrays import Float64
from distilqa_export.errors import ExportError
from distilqa_export.graph.layers import constant, operand

# The largest magnitude of a weight, of the sum of two of a pair, and of a number that only the run tells.
WEIGHT, PAIR, OPERAND = 127, 128, 64

_PRODUCT = "MatMulIntegerToFloat"
_INTEGER_PRODUCTS = {_PRODUCT, "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QAttention"}
# What moves numbers, and does not change them.
_MOVES = {"Reshape", "Transpose"}


def least_scale(weight: Float64) -> Float64:
    """The least scale of each column, (outputs,), that brings (inputs, outputs) weights within the rule."""
    pairs = _in_pairs(np.abs(weight))
    alike = np.sign(_in_pairs(weight)).prod(axis=1) > 0
    sums = np.where(alike, pairs.sum(axis=1), 0.0)
    least: Float64 = np.maximum(pairs.max(axis=(0, 1)) / WEIGHT, sums.max(axis=0) / PAIR)
    return least


def room(other: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """The least and the greatest that a weight may be beside the other one of its pair."""
    return np.maximum(-WEIGHT, -PAIR - np.minimum(other, 0)), np.minimum(WEIGHT, PAIR - np.maximum(other, 0))


def is_exact(weight: npt.NDArray[np.int8]) -> bool:
    """Whether (inputs, outputs) weights are within the rule."""
    pairs = _in_pairs(weight.astype(np.int16))
    positive, negative = np.maximum(pairs, 0).sum(axis=1), np.minimum(pairs, 0).sum(axis=1)
    return bool((np.abs(pairs) <= WEIGHT).all() and (positive <= PAIR).all() and (negative >= -PAIR).all())


def _in_pairs(weight: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(inputs, outputs) as (pairs, 2, outputs). The last of an odd number is beside 0."""
    even = np.pad(weight, ((0, len(weight) % 2), (0, 0)))
    return even.reshape(-1, 2, weight.shape[1])


def require_exact(model: ir.Model) -> None:
    """Raise ExportError, naming the node, unless each product of integers in a model is within the rule."""
    for node in model.graph:
        if node.op_type in _INTEGER_PRODUCTS and not _is_exact_product(node):
            raise ExportError(
                f"the product {node.outputs[0].name} ({node.op_type}) would be wrong on some processors: its operands"
                " are not within what 16 bits can add"
            )


def _is_exact_product(node: ir.Node) -> bool:
    if node.op_type != _PRODUCT:
        return False
    numbers = operand(node, 1)
    if numbers.const_value is not None:
        return numbers.dtype == ir.DataType.INT8 and is_exact(numbers.const_value.numpy())
    producer = numbers.producer()
    while producer is not None and producer.op_type in _MOVES:
        producer = operand(producer, 0).producer()
    return producer is not None and (_is_clipped(producer) or _has_scales_of_its_own(producer))


def _is_clipped(node: ir.Node) -> bool:
    if node.op_type != "Clip":
        return False
    least, greatest = (operand(node, place) for place in (1, 2))
    return least.dtype == ir.DataType.INT8 and bool(constant(least) >= -OPERAND and constant(greatest) <= OPERAND)


def _has_scales_of_its_own(node: ir.Node) -> bool:
    """Whether a QuantizeLinear to int8 has the greatest magnitude of what it rounds for a scale, times a step."""
    if node.op_type != "QuantizeLinear" or len(node.inputs) > 2:
        return False
    output_type = node.attributes.get("output_dtype")
    if output_type is None or output_type.as_int() != ir.DataType.INT8:
        return False
    scale = operand(node, 1).producer()
    greatest = operand(scale, 0).producer() if scale is not None and scale.op_type == "Mul" else None
    magnitudes = operand(greatest, 0).producer() if greatest is not None and greatest.op_type == "ReduceMax" else None
    if scale is None or magnitudes is None or magnitudes.op_type != "Abs":
        return False
    step = operand(scale, 1)
    within = step.const_value is not None and bool((constant(step) * OPERAND >= 1).all())
    return within and operand(magnitudes, 0) is operand(node, 0)
