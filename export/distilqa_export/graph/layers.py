"""The encoder's layers in a fused graph: which matmul does what, and how to change its constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from distilqa_export.arrays import Float64


@dataclass(slots=True)
class Linear:
    """``x W + b``, as the two nodes it is; the constants are read and written as float64."""

    matmul: ir.Node
    add: ir.Node

    @property
    def x(self) -> ir.Value:
        return operand(self.matmul, 0)

    @property
    def output(self) -> ir.Value:
        return self.add.outputs[0]

    @property
    def weight(self) -> Float64:
        """(inputs, outputs)."""
        return constant(operand(self.matmul, 1))

    @weight.setter
    def weight(self, weight: Float64) -> None:
        set_constant(self.matmul, 1, weight)

    @property
    def bias(self) -> Float64:
        """(outputs,)."""
        return constant(operand(self.add, self._bias_place))

    @bias.setter
    def bias(self, bias: Float64) -> None:
        set_constant(self.add, self._bias_place, bias)

    @property
    def _bias_place(self) -> int:
        return 1 if operand(self.add, 0) is self.matmul.outputs[0] else 0


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the four projections of its attention, and the two matmuls of its feed-forward network."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    widen: Linear
    narrow: Linear


def layers(model: ir.Model) -> Iterator[Layer]:
    """The layers of a fused model, from the first on."""
    found = list(linears(model))
    by_output = {linear.output: linear for linear in found}
    by_input = {linear.x: linear for linear in found}
    for attention in [node for node in model.graph if node.op_type == "Attention"]:
        query, key, value = (by_output[operand(attention, place)] for place in range(3))
        out = by_input[attention.outputs[0]]
        widen = by_input[after(out.output, "Add", "LayerNormalization")]
        yield Layer(query, key, value, out, widen, by_input[after(widen.output, "Gelu")])


def matmul_names(model: ir.Model) -> dict[str, str]:
    """What the matmuls of the layers are called, ``layer0.query`` say, by a value that tells each.

    That is the weight's name, and for attention, whose two matmuls are one, the query's.
    """
    names = {}
    for number, layer in enumerate(layers(model)):
        for part in ("query", "key", "value", "out", "widen", "narrow"):
            linear: Linear = getattr(layer, part)
            names[str(operand(linear.matmul, 1).name)] = f"layer{number}.{part}"
        names[str(layer.query.output.name)] = f"layer{number}.attention"
    return names


def linears(model: ir.Model) -> Iterator[Linear]:
    """Every ``x W + b`` with a constant W, without the last, which is the answer head."""
    products = [node for node in model.graph if node.op_type == "MatMul" and operand(node, 1).const_value is not None]
    for node in products[:-1]:
        [(add, _)] = node.outputs[0].uses()
        yield Linear(node, add)


def after(value: ir.Value, *operators: str) -> ir.Value:
    """The value that comes of this one by those operators, one after another."""
    for name in operators:
        [node] = [node for node, _ in value.uses() if node.op_type == name]
        value = node.outputs[0]
    return value


def operand(node: ir.Node, place: int) -> ir.Value:
    """That input of a node, which must have it."""
    value = node.inputs[place]
    assert value is not None
    return value


def constant(value: ir.Value) -> Float64:
    """A constant's numbers."""
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def set_constant(node: ir.Node, place: int, numbers: Float64) -> None:
    """Give a node another fp32 constant. A new one, since others may use the old."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{node.outputs[0].name}_{place}_equalized"
    graph.initializers.pop(name, None)
    tensor = ir.tensor(np.ascontiguousarray(numbers, np.float32), name=name)
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    node.replace_input_with(place, value)
