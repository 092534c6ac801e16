"""Finding the matmuls of each layer, and changing their constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.layers import Linear, constant, layers, linears, operand, set_constant


def test_finds_the_six_matmuls_of_each_layer(fused: Path, tiny: Checkpoint) -> None:
    """By PyTorch's weights and biases, which it has in this order."""
    expected = [module for module in tiny.model.modules() if isinstance(module, torch.nn.Linear)][:-1]
    found = [
        linear
        for layer in layers(ir.load(fused))
        for linear in (layer.query, layer.key, layer.value, layer.out, layer.widen, layer.narrow)
    ]
    assert len(found) == len(expected) == 6 * tiny.architecture.layers
    for linear, module in zip(found, expected, strict=True):
        np.testing.assert_array_equal(linear.weight, module.weight.detach().numpy().T)
        np.testing.assert_array_equal(linear.bias, module.bias.detach().numpy())


def test_leaves_out_the_answer_head(fused: Path, tiny: Checkpoint) -> None:
    found = list(linears(ir.load(fused)))
    assert len(found) == 6 * tiny.architecture.layers
    assert all(linear.weight.shape[1] >= tiny.architecture.hidden for linear in found)


def sum_of(order: tuple[int, int]) -> tuple[ir.Model, Linear]:
    """A model of ``x W + b``, the sum's sides in that order, and of another matmul by the same W."""
    weight, bias = (
        ir.val(name, const_value=ir.tensor(numbers, name=name))
        for name, numbers in (("W", np.ones((2, 3), np.float32)), ("b", np.arange(3, dtype=np.float32)))
    )
    x = ir.val("x")
    product, other = ir.node("MatMul", [x, weight]), ir.node("MatMul", [x, weight])
    product.outputs[0].name, other.outputs[0].name = "product", "other"
    sides = (product.outputs[0], bias)
    add = ir.node("Add", [sides[order[0]], sides[order[1]]])
    graph = ir.Graph(
        [x], [add.outputs[0], other.outputs[0]], nodes=[product, add, other], initializers=[weight, bias], name="sum"
    )
    return ir.Model(graph, ir_version=11), Linear(product, add)


def test_writes_the_bias_on_either_side() -> None:
    for order in ((0, 1), (1, 0)):
        _, linear = sum_of(order)
        linear.bias += 1
        np.testing.assert_array_equal(linear.bias, [1, 2, 3])
        assert linear.add.inputs[order.index(0)] is linear.matmul.outputs[0], "the product is still added to it"


def test_changes_no_constant_that_others_use() -> None:
    model, linear = sum_of((0, 1))
    for _ in range(2):
        linear.weight *= 2
    np.testing.assert_array_equal(linear.weight, np.full((2, 3), 4))
    other = next(node for node in model.graph if node.outputs[0].name == "other")
    np.testing.assert_array_equal(constant(operand(other, 1)), np.ones((2, 3)))


def test_stores_constants_as_fp32() -> None:
    model, linear = sum_of((0, 1))
    set_constant(linear.matmul, 1, np.full((2, 3), 0.1).T.copy().T)
    value = operand(linear.matmul, 1)
    assert value.dtype == ir.DataType.FLOAT
    assert model.graph.initializers[str(value.name)] is value
