"""Quantise a fused model to int8, with activation scales calibrated on real text.

Every matmul but the answer head's multiplies unsigned 8-bit activations by signed 8-bit numbers, because the
processors' fast int8 kernel does that:

- A matmul by weights becomes QuantizeLinear and MatMulIntegerToFloat: one static scale and zero point a tensor, weights
  with one scale a column. The weights are rounded with feedback, and the bias takes what their rounding changes on
  average.
- After Gelu each block of units has a scale of its own, and outliers stay in fp32 (LLM.int8, Dettmers et al., 2022): a
  unit or two of a layer fires at few tokens, four times as far as any other and with weights ten times as large, so
  that both the scale of its block and those of all columns would be its alone.
- The two products of Attention are written out. Queries and values have one static scale each. A key has a scale of its
  own in each head, its greatest magnitude, and so has a row of softmax's output: one that looks at many tokens has no
  weight above a few hundredths, and one scale for all rows would round it to nothing. That scale is not multiplied in,
  but goes into the rounding that follows.

All these products are exact on every processor: `distilqa_export.quantization.exact` has the rule, and no model that
breaks it leaves. Weights are rounded within it, keys and values within the range for numbers that only the run tells.

The word embedding table is stored as int8 with one scale a row. Everything else stays fp32.

No scale is taken over more than a row of the window itself, which makes its result independent of what else is in the
run: dynamic scales over the whole tensor move with every neighbour and with padding. The nodes are written out, rather
than as QuantizeLinear and DequantizeLinear pairs, because ONNX Runtime does not fuse those with a bias.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
from distilqa.text.arrays import Int64
from distilqa_export.arrays import Float64, Int8
from distilqa_export.graph.fuse import CONTRIB, expect_operators, fused_operators
from distilqa_export.graph.layers import constant, matmul_names
from distilqa_export.quantization.calibrate import Observed, observe
from distilqa_export.quantization.equalize import block_channels, equalize, values
from distilqa_export.quantization.exact import OPERAND, require_exact
from distilqa_export.quantization.rounding import Rounder, equalizing_factors, int8_rows, uint8_scale

# What a bundle says of it. `python -m benchmarks.accuracy` shows what each part is worth.
METHOD = (
    "int8, with products that are exact on every processor; static scales by min-max calibration, channels equalised"
    " before; weights rounded with feedback (GPTQ); outliers after Gelu, answer head, layer norms and softmax in fp32"
)

_OUTLIERS = "_outliers"

# Channels or tokens that share a scale: longer than any row, so that each row has one.
_ROW = 2**16


class Quantizer:
    """Makes int8 models of a saved fused model, calibrated on the windows, each (length,) int64.

    ``matmuls`` are the names of what it makes int8: each matmul by weights, and the attention of each layer.
    """

    def __init__(
        self,
        fused: Path,
        windows: Sequence[Int64],
        architecture: Architecture,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """``progress`` is told how many windows are done. Raises ExportError for values that overflow."""
        self._architecture = architecture
        self._equalized = fused.with_name("equalized.onnx")
        model, observed = equalize(fused, observe(fused, values(ir.load(fused)), windows, progress), architecture.heads)
        ir.save(model, self._equalized)
        self._calibration = _Calibration(observed)
        self.matmuls = tuple(matmul_names(model).values())

    def model(self, fp32: Collection[str] = ()) -> ir.Model:
        """The int8 model, with the matmuls of those names left in fp32. Raises ExportError if any other escaped."""
        model = ir.load(self._equalized)
        model.opset_imports[CONTRIB] = 1
        left = {value for value, name in matmul_names(model).items() if name in fp32}
        rules = [
            _LinearRule.rule(model, self._calibration, left),
            _AttentionRule.rule(self._architecture, self._calibration.observed, left),
            _EmbeddingRule.rule(),
        ]
        rewriter.RewritePass(pattern.RewriteRuleSet(rules, commute=True))(model)
        rewriter.RewritePass([_RowScaleRule.rule()])(model)
        passes.RemoveUnusedNodesPass()(model)
        outliers = sum(name.endswith(_OUTLIERS) for name in model.graph.initializers)
        expect_operators(model, quantized_operators(self._architecture, fp32, outliers))
        require_exact(model)
        return model


def quantized_operators(architecture: Architecture, fp32: Collection[str] = (), outliers: int = 0) -> dict[str, int]:
    """How many of each operator that does work the int8 model has, with matmuls of those names left in fp32.

    ``outliers`` says in how many layers some are left in fp32 too.
    """
    layers, parts = architecture.layers, Counter(name.split(".")[-1] for name in fp32)
    attention = layers - parts["attention"]
    linear = 6 * layers - parts.total() + parts["attention"]
    # Queries, keys and values share their input.
    shared = [{f"layer{number}.{part}" for part in ("query", "key", "value")} for number in range(layers)]
    alone = sum(layers - parts[part] for part in ("out", "widen", "narrow"))
    inputs = alone + sum(not names <= set(fp32) for names in shared)
    return fused_operators(architecture) | {
        "Attention": layers - attention,
        "Clip": attention,
        "MatMul": 6 * layers - linear + 1 + outliers,
        "MatMulIntegerToFloat": linear + 2 * attention,
        # The inputs of the matmuls; queries, keys, values and attention's weights.
        "QuantizeLinear": inputs + 4 * attention,
        "Softmax": attention,
        "Transpose": 5 * attention,
    }


@dataclass(frozen=True, slots=True)
class _Input:
    """How a matmul's input is rounded: blocks of ``size`` channels, each multiplied by its factor, then one scale.

    ``factors`` (channels,) are those of the blocks, channel by channel. The first ``outliers`` channels do not count:
    they are cut off wherever that suits the others.
    """

    size: int
    blocks: Float64
    factors: Float64
    scale: np.float32
    zero_point: np.uint8
    outliers: int
    mean: Float64
    round_weight: Rounder


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight in int8 with the scale of each column, and the bias that makes good what its rounding changes."""

    rounded: Int8
    scale: Float64
    bias: Float64


class _Calibration:
    """What the observations make of each matmul. Each is worked out once, however many models use it."""

    def __init__(self, observed: Mapping[str, Observed]) -> None:
        self.observed = observed
        self._inputs: dict[str, _Input] = {}
        self._weights: dict[str, _Weight] = {}

    def input(self, x: ir.Value, weight: Float64) -> _Input:
        name = str(x.name)
        if name not in self._inputs:
            producer = x.producer()
            after_gelu = producer is not None and producer.op_type == "Gelu"
            self._inputs[name] = _calibrate(self.observed[name], weight, after_gelu)
        return self._inputs[name]

    def weight(self, name: str, weight: Float64, bias: Float64, into: _Input) -> _Weight:
        if name not in self._weights:
            within = weight.copy()
            within[: into.outliers] = 0
            widened = within / into.factors[:, None]
            rounded, scale = into.round_weight(widened)
            self._weights[name] = _Weight(rounded, scale, bias + into.mean @ (widened - rounded * scale))
        return self._weights[name]


def _calibrate(seen: Observed, weight: Float64, after_gelu: bool) -> _Input:
    outliers = count_outliers(seen.reach()) if after_gelu else 0
    seen = seen.without(outliers)
    channels = len(seen.mean)
    size, blocks = _block_factors(seen, weight) if after_gelu else (channels, np.ones(1))
    factors = np.repeat(blocks, size)[:channels]
    scale, zero_point = uint8_scale(
        min(0.0, float((seen.least * factors).min())), max(0.0, float((seen.greatest * factors).max()))
    )
    rounder = Rounder(seen.covariance * np.outer(factors, factors))
    return _Input(size, blocks, factors, scale, zero_point, outliers, seen.mean * factors, rounder)


def _block_factors(units: Observed, weight: Float64) -> tuple[int, Float64]:
    """How many units make a block, and what those of each are multiplied by before they are rounded."""
    count = len(units.mean)
    size = block_channels(count)
    reach = np.maximum.reduceat(units.reach(), range(0, count, size))
    factors = equalizing_factors(np.repeat(reach, size)[:count], units.variance, [weight])
    return size, factors[::size]


def count_outliers(reach: Float64) -> int:
    """How many of the units, ordered by reach, reach more than twice as far as all but a hundredth of them."""
    return int(np.argmin(reach > 2 * np.quantile(reach, 0.99)))


class _LinearRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """x W + b in 8 bits. Applies where x was observed, and W is not left in fp32."""

    def __init__(self, model: ir.Model, calibration: _Calibration, left: Collection[str]) -> None:
        super().__init__("Linear")
        self._ids = model.graph.inputs[0]
        self._calibration = calibration
        self._left = left
        self._quantized: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._shapes: dict[int, ir.Value] = {}

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.MatMul(x, weight), bias)

    def check(self, context: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> bool:
        known = x.name in self._calibration.observed and weight.name not in self._left
        return known and weight.const_value is not None and bias.const_value is not None

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> Any:
        name, numbers = str(weight.name), constant(weight)
        into = self._calibration.input(x, numbers)
        made = self._calibration.weight(name, numbers, constant(bias), into)
        if str(x.name) not in self._quantized:
            self._quantized[str(x.name)] = self._quantize(op, x, into)
        quantized, scale, zero_point = self._quantized[str(x.name)]
        product = op.MatMulIntegerToFloat(
            quantized,
            _initializer(op, made.rounded, f"{name}_int8"),
            scale,
            _initializer(op, made.scale.astype(np.float32), f"{name}_scale"),
            zero_point,
            None,
            _initializer(op, made.bias.astype(np.float32), f"{name}_bias"),
            _domain=CONTRIB,
        )
        if not into.outliers:
            return product
        outliers = _initializer(op, numbers[: into.outliers].astype(np.float32), f"{name}{_OUTLIERS}")
        return self._add_product(op, product, x, outliers)

    def _add_product(self, op: Any, to: ir.Value, x: ir.Value, weight: ir.Value) -> Any:
        """``to`` + x W in fp32, W being the weights of the first channels alone."""
        assert weight.const_value is not None
        channels = weight.const_value.shape.numpy()[0]
        ends = [_initializer(op, np.array([number]), f"number_{number}") for number in (0, channels, 2)]
        return op.Add(to, op.MatMul(op.Slice(x, *ends), weight))

    def _quantize(self, op: Any, x: ir.Value, into: _Input) -> tuple[ir.Value, ir.Value, ir.Value]:
        """x in 8 bits, its scale and its zero point."""
        scale = _initializer(op, into.scale, f"{x.name}_scale")
        zero_point = _initializer(op, into.zero_point, f"{x.name}_zero_point")
        if len(into.blocks) == 1:
            return op.QuantizeLinear(x, scale, zero_point), scale, zero_point
        # One scale a token and block: the same for every token, but the operator wants them all.
        shape = self._shape(op, len(into.blocks))
        block_scales = _initializer(op, (into.scale / into.blocks).astype(np.float32), f"{x.name}_block_scales")
        quantized = op.QuantizeLinear(
            x, op.Expand(block_scales, shape), op.Expand(zero_point, shape), axis=2, block_size=into.size
        )
        return quantized, scale, zero_point

    def _shape(self, op: Any, channels: int) -> ir.Value:
        """The shape (batch, length, channels) of what is being run."""
        if channels not in self._shapes:
            last = _initializer(op, np.array([channels]), f"{channels}_channels")
            self._shapes[channels] = op.Concat(op.Shape(self._ids), last, axis=0)
        return self._shapes[channels]


class _AttentionRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """Attention with both products in 8 bits, but where its query is one of those left in fp32."""

    def __init__(self, architecture: Architecture, observed: Mapping[str, Observed], left: Collection[str]) -> None:
        super().__init__("Attention")
        self._shape = architecture
        self._observed = observed
        self._left = left

    def pattern(self, op: Any, query: Any, key: Any, value: Any) -> Any:
        return op.Attention(query, key, value)

    def check(self, context: Any, query: ir.Value, key: ir.Value, value: ir.Value) -> bool:
        return query.name not in self._left

    def rewrite(self, op: Any, query: ir.Value, key: ir.Value, value: ir.Value) -> Any:
        weights = op.Softmax(self._scores(op, query, key), axis=-1)
        row_scale = _greatest(op, weights, 255)
        rows = op.QuantizeLinear(weights, row_scale, axis=3, block_size=_ROW)
        scale, zero_point = self._scale(op, value, OPERAND), _initializer(op, np.int8(0), "value_zero_point")
        ends = [_initializer(op, np.int8(end), f"operand_{end}") for end in (-OPERAND, OPERAND)]
        contents = op.Clip(op.QuantizeLinear(value, scale, zero_point), *ends)
        mixed = op.MatMulIntegerToFloat(
            rows,
            op.Transpose(self._apart(op, contents), perm=[0, 2, 1, 3]),
            _initializer(op, np.float32(1), "one"),
            scale,
            _domain=CONTRIB,
        )
        together = op.Transpose(op.Mul(mixed, row_scale), perm=[0, 2, 1, 3])
        return op.Reshape(together, _initializer(op, np.array([0, 0, self._shape.hidden]), "together"))

    def _scores(self, op: Any, query: ir.Value, key: ir.Value) -> Any:
        """The product of each query with each key over the root of their width, (batch, heads, length, length)."""
        width = self._shape.hidden // self._shape.heads
        query_scale, query_zero = self._scale(op, query, 127), _initializer(op, np.uint8(128), "query_zero_point")
        queries = self._apart(op, op.QuantizeLinear(query, query_scale, query_zero))
        keys = self._apart(op, key)
        key_scale = _greatest(op, keys, OPERAND)
        rounded = op.QuantizeLinear(keys, key_scale, axis=3, block_size=_ROW, output_dtype=ir.DataType.INT8)
        return op.MatMulIntegerToFloat(
            op.Transpose(queries, perm=[0, 2, 1, 3]),
            op.Transpose(rounded, perm=[0, 2, 3, 1]),
            _initializer(op, np.float32(constant(query_scale) / math.sqrt(width)), f"{query.name}_score_scale"),
            op.Transpose(key_scale, perm=[0, 2, 3, 1]),
            query_zero,
            _domain=CONTRIB,
        )

    def _apart(self, op: Any, value: ir.Value) -> Any:
        """(batch, length, hidden) with its heads apart: (batch, length, heads, width)."""
        heads = self._shape.heads
        return op.Reshape(value, _initializer(op, np.array([0, 0, heads, self._shape.hidden // heads]), "apart"))

    def _scale(self, op: Any, value: ir.Value, greatest: int) -> ir.Value:
        """The scale that makes this number of the farthest that the value reached."""
        reach = float(self._observed[str(value.name)].reach().max())
        return _initializer(op, np.float32(max(reach / greatest, 1e-9)), f"{value.name}_scale")


def _greatest(op: Any, values: ir.Value, number: int) -> Any:
    """The scale of each row, the last axis, that makes this number of its greatest magnitude.

    A row of zeros has the scale 0: whatever they are rounded to, they come back as 0.
    """
    last, step = np.array([-1]), np.full((1, 1, 1, 1), 1 / number, np.float32)
    producer = values.producer()
    if producer is None or producer.op_type != "Softmax":  # whose weights are positive
        values = op.Abs(values)
    greatest = op.ReduceMax(values, _initializer(op, last, "last"), keepdims=1)
    return op.Mul(greatest, _initializer(op, step, f"step_{number}"))


class _RowScaleRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """What attention mixed is not multiplied by the scale of each row and then rounded: that goes into the rounding."""

    def __init__(self) -> None:
        super().__init__("RowScale")
        self._zero_points: dict[int, ir.Value] = {}

    def pattern(self, op: Any, mixed: Any, row_scale: Any, together: Any, scale: Any, zero_point: Any) -> Any:
        heads_apart = op.Transpose(op.Mul(mixed, row_scale), perm=[0, 2, 1, 3])
        return op.QuantizeLinear(op.Reshape(heads_apart, together), scale, zero_point)

    def rewrite(
        self, op: Any, mixed: ir.Value, row_scale: ir.Value, together: ir.Value, scale: ir.Value, zero_point: ir.Value
    ) -> Any:
        # Of as many axes, since ONNX Runtime divides a scalar ten times as slowly.
        step = _initializer(op, constant(scale).astype(np.float32).reshape(1, 1, 1, 1), f"{scale.name}_of_rows")
        zero = int(constant(zero_point))
        if zero not in self._zero_points:
            self._zero_points[zero] = op.Expand(zero_point, op.Shape(row_scale))
        rounded = op.QuantizeLinear(mixed, op.Div(step, row_scale), self._zero_points[zero], axis=3, block_size=_ROW)
        return op.Reshape(op.Transpose(rounded, perm=[0, 2, 1, 3]), together)


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
