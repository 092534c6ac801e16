"""Quantise a fused model to int8, with activation scales calibrated on real text.

Every matmul but the answer head's multiplies unsigned 8-bit activations by signed 8-bit numbers, because the
processors' fast int8 kernel does that:

- A matmul by weights becomes QuantizeLinear and MatMulIntegerToFloat: one static scale and zero point a tensor (after
  Gelu, a block of channels), weights with one scale a column. The weights are rounded with feedback, and the bias takes
  what their rounding changes on average.
- The two products of Attention are written out. Queries, keys and values have one static scale each. Softmax's output
  has one scale a row, its greatest weight: a row that looks at many tokens has none above a few hundredths, and one
  scale for all rows would round it to nothing.

The word embedding table is stored as int8 with one scale a row. Everything else stays fp32.

No scale is taken over more than a row of the window itself, which makes its result independent of what else is in the
run: dynamic scales over the whole tensor move with every neighbour and with padding. The nodes are written out, rather
than as QuantizeLinear and DequantizeLinear pairs, because ONNX Runtime does not fuse those with a bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import rewriter
from onnxscript.rewriter import pattern

from distilqa.bundle import Architecture
from distilqa.windows import Int64
from distilqa_export.calibrate import Float64, Observed, observe
from distilqa_export.equalize import block_channels, equalize, values
from distilqa_export.fuse import CONTRIB, expect_operators, fused_operators
from distilqa_export.layers import constant
from distilqa_export.rounding import Rounder, equalizing_factors, int8_rows, uint8_scale


def quantize(fused: Path, windows: Sequence[Int64], architecture: Architecture) -> ir.Model:
    """Return the int8 model of a saved fused model, calibrated on the windows, each (length,) int64.

    Raises ExportError if any matmul escaped.
    """
    equalized = fused.with_name("equalized.onnx")
    observed = observe(fused, values(ir.load(fused)), windows, covariances=False)
    model = equalize(fused, observed)
    ir.save(model, equalized)
    observed = observe(equalized, values(model), windows)
    model.opset_imports[CONTRIB] = 1
    rules = [_LinearRule.rule(model, observed), _AttentionRule.rule(architecture, observed), _EmbeddingRule.rule()]
    rewriter.RewritePass(pattern.RewriteRuleSet(rules, commute=True))(model)
    passes.RemoveUnusedNodesPass()(model)
    expect_operators(model, quantized_operators(architecture))
    return model


def quantized_operators(architecture: Architecture) -> dict[str, int]:
    """How many of each operator that does work the int8 model has."""
    layers = architecture.layers
    return fused_operators(architecture) | {
        "Attention": 0,
        "MatMul": 1,
        "MatMulIntegerToFloat": (6 + 2) * layers,
        # The inputs of the matmuls, of which three share theirs; queries, keys, values and attention's weights.
        "QuantizeLinear": (4 + 4) * layers,
        "Softmax": layers,
        "Transpose": 4 * layers,
    }


@dataclass(frozen=True, slots=True)
class _Input:
    """A matmul's input in 8 bits. ``factors`` (channels,) is what its values were multiplied by on the way."""

    quantized: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    factors: Float64
    mean: Float64
    round_weight: Rounder


class _LinearRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """x W + b in 8 bits. Applies where x was observed."""

    def __init__(self, model: ir.Model, observed: Mapping[str, Observed]) -> None:
        super().__init__("Linear")
        self._ids = model.graph.inputs[0]
        self._observed = observed
        self._inputs: dict[str, _Input] = {}
        self._block_shape: ir.Value | None = None

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.MatMul(x, weight), bias)

    def check(self, context: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> bool:
        return x.name in self._observed and weight.const_value is not None and bias.const_value is not None

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> Any:
        numbers = constant(weight)
        name = str(x.name)
        if name not in self._inputs:
            self._inputs[name] = self._quantize(op, x, numbers)
        into = self._inputs[name]
        widened = numbers / into.factors[:, None]
        rounded, scale = into.round_weight(widened)
        corrected = constant(bias) + into.mean @ (widened - rounded * scale)
        return op.MatMulIntegerToFloat(
            into.quantized,
            _initializer(op, rounded, f"{weight.name}_int8"),
            into.scale,
            _initializer(op, scale.astype(np.float32), f"{weight.name}_scale"),
            into.zero_point,
            None,
            _initializer(op, corrected.astype(np.float32), f"{weight.name}_bias"),
            _domain=CONTRIB,
        )

    def _quantize(self, op: Any, x: ir.Value, weight: Float64) -> _Input:
        seen = self._observed[str(x.name)]
        size, blocks = self._block_factors(x, seen, weight)
        factors = np.repeat(blocks, size)[: len(seen.mean)]
        scale, zero_point = uint8_scale(
            min(0.0, float((seen.least * factors).min())), max(0.0, float((seen.greatest * factors).max()))
        )
        name = str(x.name)
        scale_value = _initializer(op, scale, f"{name}_scale")
        zero_value = _initializer(op, zero_point, f"{name}_zero_point")
        if len(blocks) == 1:
            quantized = op.QuantizeLinear(x, scale_value, zero_value)
        else:
            # One scale a token and block: the same for every token, but the operator wants them all.
            if self._block_shape is None:
                count = _initializer(op, np.array([len(blocks)]), "blocks")
                self._block_shape = op.Concat(op.Shape(self._ids), count, axis=0)
            shape = self._block_shape
            quantized = op.QuantizeLinear(
                x,
                op.Expand(_initializer(op, (scale / blocks).astype(np.float32), f"{name}_block_scales"), shape),
                op.Expand(zero_value, shape),
                axis=2,
                block_size=size,
            )
        covariance = seen.covariance * np.outer(factors, factors)
        return _Input(quantized, scale_value, zero_value, factors, seen.mean * factors, Rounder(covariance))

    def _block_factors(self, x: ir.Value, seen: Observed, weight: Float64) -> tuple[int, Float64]:
        """The size of a block of channels, and what each is multiplied by before it is rounded; one but after Gelu."""
        channels = len(seen.mean)
        producer = x.producer()
        if producer is None or producer.op_type != "Gelu":
            return channels, np.ones(1)
        size = block_channels(channels)
        reach = np.maximum.reduceat(seen.reach(), range(0, channels, size))
        factors = equalizing_factors(np.repeat(reach, size)[:channels], seen.variance, [weight])
        return size, factors[::size]


class _AttentionRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """Attention with both products in 8 bits."""

    def __init__(self, architecture: Architecture, observed: Mapping[str, Observed]) -> None:
        super().__init__("Attention")
        self._shape = architecture
        self._observed = observed

    def pattern(self, op: Any, query: Any, key: Any, value: Any) -> Any:
        return op.Attention(query, key, value)

    def rewrite(self, op: Any, query: ir.Value, key: ir.Value, value: ir.Value) -> Any:
        queries, _, query_zero = self._heads(op, query, [0, 2, 1, 3], signed=False)
        keys, key_scale, key_zero = self._heads(op, key, [0, 2, 3, 1], signed=True)
        contents, value_scale, value_zero = self._heads(op, value, [0, 2, 1, 3], signed=True)
        width = self._shape.hidden // self._shape.heads
        divided = _initializer(op, np.float32(self._scale(query) / math.sqrt(width)), f"{query.name}_score_scale")
        scores = op.MatMulIntegerToFloat(queries, keys, divided, key_scale, query_zero, key_zero, _domain=CONTRIB)
        weights = op.Softmax(scores, axis=-1)
        # A block as long as the longest window is a row.
        greatest = op.ReduceMax(weights, _initializer(op, np.array([-1]), "row"), keepdims=1)
        row_scale = op.Mul(greatest, _initializer(op, np.full((1, 1, 1, 1), 1 / 255, np.float32), "step"))
        rows = op.QuantizeLinear(weights, row_scale, axis=3, block_size=self._shape.positions)
        mixed = op.MatMulIntegerToFloat(
            rows,
            contents,
            _initializer(op, np.float32(1), "one"),
            value_scale,
            None,
            value_zero,
            _domain=CONTRIB,
        )
        together = op.Transpose(op.Mul(mixed, row_scale), perm=[0, 2, 1, 3])
        return op.Reshape(together, _initializer(op, np.array([0, 0, self._shape.hidden]), "together"))

    def _heads(
        self, op: Any, value: ir.Value, order: list[int], *, signed: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The (batch, length, hidden) value in 8 bits with its heads apart, its scale, and its zero point."""
        scale = _initializer(op, np.float32(self._scale(value)), f"{value.name}_scale")
        zero = np.int8(0) if signed else np.uint8(128)
        zero_point = _initializer(op, zero, f"{value.name}_zero_point")
        quantized = op.QuantizeLinear(value, scale, zero_point)
        heads = self._shape.heads
        apart = _initializer(op, np.array([0, 0, heads, self._shape.hidden // heads]), "apart")
        return op.Transpose(op.Reshape(quantized, apart), perm=order), scale, zero_point

    def _scale(self, value: ir.Value) -> float:
        return max(float(self._observed[str(value.name)].reach().max()) / 127, 1e-9)


class _EmbeddingRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """The word embedding table, a third of the model, in 8 bits; a row is scaled back when it is looked up."""

    def pattern(self, op: Any, table: Any, ids: Any) -> Any:
        return op.Gather(table, ids)

    def check(self, context: Any, table: ir.Value, ids: ir.Value) -> bool:
        # One column of fp32 is the rule's own row scale, already looked up.
        if table.const_value is None or ids.name != "input_ids":
            return False
        numbers = table.const_value.numpy()
        return numbers.dtype == np.float32 and numbers.shape[1] > 1

    def rewrite(self, op: Any, table: ir.Value, ids: ir.Value) -> Any:
        rows, scale = int8_rows(constant(table))
        row = op.Gather(_initializer(op, rows, f"{table.name}_int8"), ids)
        scales = scale[:, None].astype(np.float32)
        row_scale = op.Gather(_initializer(op, scales, f"{table.name}_scale"), ids)
        return op.Mul(op.Cast(row, to=ir.DataType.FLOAT), row_scale)


def _initializer(op: Any, numbers: npt.NDArray[Any] | np.generic, name: str) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(numbers).reshape(np.shape(numbers)))
    value: ir.Value = op.initializer(tensor, name=name)
    return value
