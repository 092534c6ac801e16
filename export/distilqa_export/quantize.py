"""Quantise a fused model to int8, with activation scales calibrated on real text.

Every matmul but the answer head's becomes QuantizeLinear and MatMulIntegerToFloat: unsigned 8-bit activations with one
static scale and zero point a tensor (the least and greatest value seen on the calibration text), signed 8-bit weights
with one scale a column. Signed, because the processors' fast int8 kernel multiplies unsigned by signed. The word
embedding table is stored as int8 with one scale a row. Everything else stays fp32.

Static scales make the result of a window independent of what else is in the run: dynamic ones are taken over the whole
tensor, so that a neighbour or padding moves them. The nodes are written out, rather than as QuantizeLinear and
DequantizeLinear pairs, because ONNX Runtime does not fuse those with a bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import rewriter
from onnxscript.rewriter import pattern

from distilqa.bundle import Architecture
from distilqa.engine import open_session, run_session, usable_cores
from distilqa.windows import Int64
from distilqa_export.fuse import IR_VERSION, OPSET, expect_operators, fused_operators

# ONNX Runtime's own operators.
_CONTRIB = "com.microsoft"

Ranges = dict[str, tuple[float, float]]


def calibrate(fused: Path, windows: Iterable[Int64]) -> Ranges:
    """Return the least and greatest value of each matmul's input over the windows, by the value's name.

    ``fused`` is the saved fp32 model; each window is (length,) int64.
    """
    model = ir.load(fused)
    observed = {str(x.name): x for x, _ in _linears(model)}
    model.graph.outputs.extend(observed.values())
    instrumented = fused.with_name("calibrate.onnx")
    ir.save(model, instrumented)
    session = open_session(instrumented, threads=usable_cores())
    inputs = [node.name for node in session.get_inputs()]
    ranges: Ranges = {}
    for window in windows:
        values = run_session(session, inputs, [window], outputs=list(observed))
        for name, value in zip(observed, values, strict=True):
            least, greatest = ranges.get(name, (0.0, 0.0))  # 0 must be exact: padding and ReLU-like zeros stay zeros
            ranges[name] = min(least, float(value.min())), max(greatest, float(value.max()))
    return ranges


def quantize(fused: Path, ranges: Ranges, architecture: Architecture) -> ir.Model:
    """Return the int8 model of a saved fused model. Raises ExportError if any matmul escaped."""
    model = ir.load(fused)
    rules = pattern.RewriteRuleSet([_LinearRule.rule(ranges), _EmbeddingRule.rule()], commute=True)
    model.opset_imports[_CONTRIB] = 1
    rewriter.RewritePass(rules)(model)
    passes.RemoveUnusedNodesPass()(model)
    expect_operators(model, quantized_operators(architecture))
    return model


def saturation_probe() -> ir.Model:
    """A model without inputs whose outputs ``product`` and ``expected`` are equal where int8 products are exact.

    The x86 kernels for processors without VNNI add two products in 16 bits, and 255 * 127 twice exceeds those.
    """
    rows, inner, columns = 8, 64, 64
    constants = {
        "a": np.full((rows, inner), 255, np.uint8),
        "b": np.full((inner, columns), 127, np.int8),
        "a_scale": np.float32(1),
        "b_scale": np.float32(1),
        "expected_product": np.full((rows, columns), 255 * 127 * inner, np.float32),
    }
    values = {
        name: ir.val(name, const_value=ir.tensor(np.asarray(value), name=name)) for name, value in constants.items()
    }
    nodes = [
        ir.node("MatMulIntegerToFloat", [values[name] for name in ("a", "b", "a_scale", "b_scale")], domain=_CONTRIB),
        ir.node("Identity", [values["expected_product"]]),
    ]
    outputs = [node.outputs[0] for node in nodes]
    for output, name in zip(outputs, ("product", "expected"), strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape((rows, columns))
    opsets = {"": OPSET, _CONTRIB: 1}
    initializers = list(values.values())
    graph = ir.Graph([], outputs, nodes=nodes, initializers=initializers, opset_imports=opsets, name="saturation_probe")
    return ir.Model(graph, ir_version=IR_VERSION)


def quantized_operators(architecture: Architecture) -> dict[str, int]:
    """How many of each operator that does work the int8 model has."""
    layers = architecture.layers
    return fused_operators(architecture) | {
        "MatMul": 1,
        "MatMulIntegerToFloat": 6 * layers,
        # The query, key and value projections share theirs.
        "QuantizeLinear": 4 * layers,
    }


def _linears(model: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """Input and weight of the matmuls by a constant, in order, without the last, which is the answer head."""
    pairs = (node.inputs[:2] for node in model.graph if node.op_type == "MatMul")
    return [(x, weight) for x, weight in pairs if x and weight and weight.const_value is not None][:-1]


class _LinearRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """x W + b in 8 bits. Applies where x was calibrated."""

    def __init__(self, ranges: Ranges) -> None:
        super().__init__("Linear")
        self._ranges = ranges
        self._quantized: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.MatMul(x, weight), bias)

    def check(self, context: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> bool:
        return x.name in self._ranges and weight.const_value is not None and bias.const_value is not None

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> Any:
        name = str(x.name)
        if name not in self._quantized:
            scale, zero_point = uint8_scale(*self._ranges[name])
            scale_value = op.initializer(ir.tensor(scale), name=f"{name}_scale")
            zero_value = op.initializer(ir.tensor(zero_point), name=f"{name}_zero_point")
            self._quantized[name] = op.QuantizeLinear(x, scale_value, zero_value), scale_value, zero_value
        quantized, scale_value, zero_value = self._quantized[name]
        weight8, weight_scale = int8_rows(_constant(weight).T)
        return op.MatMulIntegerToFloat(
            quantized,
            op.initializer(ir.tensor(np.ascontiguousarray(weight8.T)), name=f"{weight.name}_int8"),
            scale_value,
            op.initializer(ir.tensor(weight_scale), name=f"{weight.name}_scale"),
            zero_value,
            None,
            bias,
            _domain=_CONTRIB,
        )


class _EmbeddingRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """The word embedding table, a third of the model, in 8 bits; a row is scaled back when it is looked up."""

    def pattern(self, op: Any, table: Any, ids: Any) -> Any:
        return op.Gather(table, ids)

    def check(self, context: Any, table: ir.Value, ids: ir.Value) -> bool:
        # One column of fp32 is the rule's own row scale, already looked up.
        if table.const_value is None or ids.name != "input_ids":
            return False
        values = _constant(table)
        return values.dtype == np.float32 and values.shape[1] > 1

    def rewrite(self, op: Any, table: ir.Value, ids: ir.Value) -> Any:
        rows, scale = int8_rows(_constant(table))
        row = op.Gather(op.initializer(ir.tensor(rows), name=f"{table.name}_int8"), ids)
        row_scale = op.Gather(op.initializer(ir.tensor(scale[:, None]), name=f"{table.name}_scale"), ids)
        return op.Mul(op.Cast(row, to=ir.DataType.FLOAT), row_scale)


def _constant(value: ir.Value) -> npt.NDArray[np.float32]:
    assert value.const_value is not None
    return value.const_value.numpy()


def uint8_scale(least: float, greatest: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point that spread [least, greatest] (with 0 in it) over 0 to 255, 0 being exact."""
    scale = max(greatest - least, 1e-9) / 255
    return np.float32(scale), np.uint8(round(-least / scale))


def int8_rows(matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A (rows, columns) matrix as int8 in [-127, 127], and the (rows,) scale that gives each row back."""
    scale = np.maximum(np.abs(matrix).max(axis=1) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(matrix / scale[:, None]).astype(np.int8), scale
