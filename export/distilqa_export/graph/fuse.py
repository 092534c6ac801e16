"""Fuse a traced model for the CPU, and refuse one that did not fuse.

The rules make each idea of the encoder one node that ONNX Runtime has a fast CPU kernel for: the standard `Attention`
operator (a flash kernel) on (batch, length, hidden) inputs as they come from the projections. There is no attention
mask any more: a window runs at its exact length, so nothing is masked, and the mask's broadcast cost more than its
work. Add and LayerNormalization stay apart, and so do bias and Gelu: ONNX Runtime's own fusions of these pairs are
slower on a CPU (which is why its optimiser is off at load).

It starts from optimum's trace rather than from torch's dynamo exporter. The dynamo graph already has `Attention`
nodes, but between pairs of Reshape and Transpose that take as large a rule to remove; after fusing both are the same
nodes, the trace is needed anyway as the baseline, and it takes two thirds of the time.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import pattern

from distilqa.bundle import Architecture
from distilqa_export.errors import ExportError

# The first opset with Attention. Nothing that opset 20's trace uses changed its meaning up to it.
OPSET = 23
# The file format that came with it.
IR_VERSION = 11
# ONNX Runtime's own operators.
CONTRIB = "com.microsoft"


class _AttentionRule(pattern.RewriteRuleClassBase):  # type: ignore[misc]
    """softmax(q kᵀ / √width + mask) v, written out over split heads, becomes one Attention node without a mask."""

    def __init__(self, heads: int) -> None:
        # The trace reads the head's width off the split query, so that part is still in use when the rule applies;
        # what is left over is removed afterwards.
        super().__init__("Attention", remove_nodes=False)
        self._heads = heads

    def pattern(self, op: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        q = op.Transpose(op.Reshape(query, pattern.ANY_VALUE), perm=[0, 2, 1, 3])
        k = op.Transpose(op.Reshape(key, pattern.ANY_VALUE), perm=[0, 2, 3, 1])
        v = op.Transpose(op.Reshape(value, pattern.ANY_VALUE), perm=[0, 2, 1, 3])
        scores = op.MatMul(op.Mul(q, pattern.ANY_VALUE), op.Mul(k, pattern.ANY_VALUE))
        weights = op.Softmax(op.Add(scores, mask), axis=-1)
        return op.Reshape(op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3]), pattern.ANY_VALUE)

    def rewrite(self, op: Any, query: ir.Value, key: ir.Value, value: ir.Value, **_: ir.Value) -> Any:
        return op.Attention(query, key, value, q_num_heads=self._heads, kv_num_heads=self._heads)


def fuse(traced: Path, architecture: Architecture) -> ir.Model:
    """Return the fused fp32 model: inputs ``input_ids`` (BERT: and ``token_type_ids``), otherwise as traced.

    Raises ExportError if what remains is not what the architecture demands.
    """
    model = ir.load(traced)
    optimizer.optimize_ir(model)
    model.opset_imports[""], model.ir_version = OPSET, IR_VERSION
    rewriter.RewritePass([_AttentionRule.rule(architecture.heads)])(model)
    _remove_unused(model)
    _remove_input(model, "attention_mask")
    expect_operators(model, fused_operators(architecture))
    return model


def fused_operators(architecture: Architecture) -> dict[str, int]:
    """How many of each operator that does work the fused fp32 model has: six MatMuls a layer and the head's."""
    layers = architecture.layers
    return {
        "Attention": layers,
        "Gelu": layers,
        "LayerNormalization": 2 * layers + 1,
        "MatMul": 6 * layers + 1,
        "Softmax": 0,
        "Transpose": 0,
        "Erf": 0,
        "Where": 0,
    }


def expect_operators(model: ir.Model, expected: dict[str, int]) -> None:
    """Raise ExportError unless the model has exactly these numbers of these operators."""
    found = census(model)
    wrong = [f"{found[name]} {name} (not {count})" for name, count in expected.items() if found[name] != count]
    if wrong:
        raise ExportError(f"the graph did not fuse as its architecture demands: it has {', '.join(wrong)}")


def census(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator the model has."""
    return Counter(node.op_type for node in model.graph)


def _remove_unused(model: ir.Model) -> None:
    ir.passes.Sequential(
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
    )(model)


def _remove_input(model: ir.Model, name: str) -> None:
    unused = [value for value in model.graph.inputs if value.name == name]
    if not unused or unused[0].uses():
        raise ExportError(f"the graph did not fuse: something still uses {name}")
    model.graph.inputs.remove(unused[0])
