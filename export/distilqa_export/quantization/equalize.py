"""Make a fused model easy to quantise, without changing what it computes.

int8's error is not in the weights but in the inputs of the matmuls: a few channels reach ten times as far as the rest,
and the one scale of a tensor must hold them. All of this is exact in fp32 and costs (almost) nothing at run time:

- *Layer norms.* A channel that reaches far is narrowed by the norm's own gain, and its weights are widened
  (SmoothQuant, Xiao et al., 2022); the norm's bias centres it, and the next biases give that back. Only the residual
  connection needs a node, which widens it again.
- *Feed-forward network.* Nothing can be passed through Gelu, but its units can stand in any order: those of like reach
  are put side by side, to share a scale, and the outliers first, where they can be left out.
- *Attention.* A key's mean moves all scores of a query alike, which softmax takes out again; a value's mean goes
  through the weighted mean as it is, into the next bias; and queries and keys, values and the output projection, can
  be scaled against one another: so that the queries of all heads reach as far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from distilqa_export.arrays import Float64
from distilqa_export.graph.layers import Layer, Linear, after, constant, layers, operand, set_constant
from distilqa_export.quantization.calibrate import Observed
from distilqa_export.quantization.rounding import equalizing_factors, lifted


def equalize(fused: Path, observed: Mapping[str, Observed], heads: int) -> tuple[ir.Model, dict[str, Observed]]:
    """Return a model with the logits of the saved fused model, and what its values would have been observed to be.

    ``observed`` has what those that `values` names were in the fused model, ``heads`` are those of its attention.
    """
    model, seen = ir.load(fused), dict(observed)
    for layer in list(layers(model)):
        _equalize_norm(layer.query.x, [layer.query, layer.key, layer.value], layer.out, seen)
        _equalize_norm(layer.widen.x, [layer.widen], layer.narrow, seen)
        _equalize_attention(layer, heads, seen)
        _sort(layer, seen)
    return model, seen


def values(model: ir.Model) -> list[str]:
    """The values to observe: each matmul's input, and the queries, keys and values."""
    return [
        str(value.name)
        for layer in layers(model)
        for value in (
            *(linear.x for linear in (layer.query, layer.out, layer.widen, layer.narrow)),
            *(linear.output for linear in (layer.query, layer.key, layer.value)),
        )
    ]


def block_channels(feed_forward: int) -> int:
    """How many units of the feed-forward network share an activation scale: a forty-eighth, which costs no time."""
    return max(1, feed_forward // 48 // 16 * 16)


def _equalize_norm(x: ir.Value, into: Sequence[Linear], beside: Linear, seen: dict[str, Observed]) -> None:
    """Equalise the norm that makes x, which goes into some matmuls, and is added to the output of the last of them."""
    before = seen[str(x.name)]
    centre, reach = (before.greatest + before.least) / 2, (before.greatest - before.least) / 2
    factors = equalizing_factors(reach, before.variance, [linear.weight for linear in into])
    seen[str(x.name)] = before.moved(-centre).scaled(factors)
    norm = x.producer()
    assert norm is not None
    set_constant(norm, 1, constant(operand(norm, 1)) * factors)
    set_constant(norm, 2, (constant(operand(norm, 2)) - centre) * factors)
    for linear in into:
        linear.bias += centre @ linear.weight
        linear.weight /= factors[:, None]
    beside.bias += centre
    residual = after(beside.output, "Add").producer()
    assert residual is not None
    assert residual.graph is not None
    widened = ir.node("Mul", [x, x])
    widened.outputs[0].name = f"{x.name}_widened"
    residual.graph.insert_before(residual, widened)
    residual.replace_input_with(list(residual.inputs).index(x), widened.outputs[0])
    set_constant(widened, 1, 1 / factors)


def _equalize_attention(layer: Layer, heads: int, seen: dict[str, Observed]) -> None:
    query, key, value = (seen[str(linear.output.name)] for linear in (layer.query, layer.key, layer.value))
    queries = lifted(query.reach())
    factors = np.sqrt(lifted(key.reach(key.mean)) / queries).reshape(heads, -1)
    # One scale rounds all queries, but the keys of each head have their own.
    factors = (factors / (queries.reshape(heads, -1) * factors).max(axis=1, keepdims=True)).ravel()
    reach = lifted(value.reach(value.mean))
    _change_outputs(layer.query, np.zeros_like(factors), factors, seen)
    _change_outputs(layer.key, -key.mean, 1 / factors, seen)
    _change_outputs(layer.value, -value.mean, 1 / reach, seen)
    mixed = str(layer.out.x.name)
    seen[mixed] = seen[mixed].moved(-value.mean).scaled(1 / reach)
    layer.out.bias += value.mean @ layer.out.weight
    layer.out.weight *= reach[:, None]


def _change_outputs(linear: Linear, moved: Float64, scaled: Float64, seen: dict[str, Observed]) -> None:
    linear.weight *= scaled
    linear.bias = (linear.bias + moved) * scaled
    name = str(linear.output.name)
    seen[name] = seen[name].moved(moved).scaled(scaled)


def _sort(layer: Layer, seen: dict[str, Observed]) -> None:
    """Order the units of the feed-forward network by reach, the farthest first."""
    units = str(layer.narrow.x.name)
    order = np.argsort(-seen[units].reach(), kind="stable")
    seen[units] = seen[units].ordered(order)
    layer.widen.weight = layer.widen.weight[:, order]
    layer.widen.bias = layer.widen.bias[order]
    layer.narrow.weight = layer.narrow.weight[order]
