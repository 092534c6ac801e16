"""Products of 8-bit numbers whose exact values are known, and the models that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from distilqa_export.graph.fuse import CONTRIB, IR_VERSION, OPSET

Array = npt.NDArray[Any]

# Rows, inner size and columns: the kernels' blocks, of 2 to 64, come out empty, full, and with a rest.
SIZES = [(1, 1, 1), (1, 64, 48), (2, 3, 5), (5, 17, 9), (7, 33, 31), (13, 66, 17), (25, 129, 65), (12, 128, 64)]


class Product(NamedTuple):
    """(``a`` - ``zero_point``) ``b``, for (..., rows, inner) uint8 and (..., inner, columns) int8 numbers.

    A ``constant`` b is packed when the model is opened, as weights are; any other comes when the model runs.
    """

    a: Array
    b: Array
    zero_point: int = 0
    constant: bool = True

    @property
    def exact(self) -> Array:
        return exact(self.a, self.b, self.zero_point)


def exact(a: Array, b: Array, a_zero: Array | int = 0, b_zero: Array | int = 0) -> Array:
    """What MatMulIntegerToFloat gives at scales of 1: it adds up whole numbers, and rounds the sum to float32."""
    return ((a.astype(np.int64) - a_zero) @ (b.astype(np.int64) - b_zero)).astype(np.float32)


def write(products: Sequence[Product], model: Path) -> dict[str, Array]:
    """Write a model of all of them, with the outputs ``y0``, ``y1``, ..., and return its inputs."""
    nodes: list[onnx.NodeProto] = []
    inputs: dict[str, Array] = {}
    constants = {"one": np.array(1, np.float32)}
    for number, product in enumerate(products):
        a, b, zero_point = f"a{number}", f"b{number}", f"zero_point{number}"
        inputs[a] = product.a
        (constants if product.constant else inputs)[b] = product.b
        constants[zero_point] = np.array(product.zero_point, np.uint8)
        nodes.append(_product([a, b, "one", "one", zero_point], number))
    graph = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ],
        [onnx.ValueInfoProto(name=node.output[0]) for node in nodes],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), model)
    return inputs


def write_watched(model: onnx.ModelProto, path: Path) -> int:
    """Write the model with each of its products also at scales of 1, and return how many it has.

    The outputs are ``y0``, its operands ``a0`` and ``b0``, their zero points ``a_zero0`` and ``b_zero0``, and so on.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    del graph.output[:]
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "watched_one"))
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    for number, node in enumerate(products):
        a, b, _, _, *zeros = node.input[:6]
        graph.node.append(_product([a, b, "watched_one", "watched_one", *zeros], number))
        graph.node.extend(
            helper.make_node("Identity", [value], [f"{name}{number}"])
            for name, value in zip(("a", "b", "a_zero", "b_zero"), (a, b, *zeros), strict=False)
            if value
        )
    added = list(graph.node)[len(model.graph.node) :]
    graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in added)
    onnx.save(watched, path)
    return len(products)


def _product(inputs: Sequence[str], number: int) -> onnx.NodeProto:
    return helper.make_node("MatMulIntegerToFloat", inputs, [f"y{number}"], domain=CONTRIB)


def in_pairs(numbers: Array, most: int) -> Array:
    """(..., rows, columns) numbers, the second of every two rows cut so that those of one sign add up to ``most``."""
    limited = numbers.astype(np.int64)
    first, second = limited[..., :-1:2, :], limited[..., 1::2, :]
    second[:] = np.clip(second, -most - np.minimum(first, 0), most - np.maximum(first, 0))
    return limited.astype(numbers.dtype)


def limited_in_pairs() -> list[Product]:
    """Weights as the exporter limits them, of each size, with any activations and zero points."""
    random = np.random.default_rng(0)
    return [
        Product(_numbers(random, 0, 255, rows, inner), in_pairs(_numbers(random, -127, 127, inner, columns), 128), zero)
        for rows, inner, columns in SIZES
        for zero in (0, 131)
    ]


def limited_in_range(*, constant: bool) -> list[Product]:
    """Operands of each size in the ranges in which two products stay within 16 bits, of two heads if not constant.

    Within 64 beside any activations, within 127 beside those up to 129, or beside pairs that add up to 258.
    """
    random = np.random.default_rng(1)
    heads = () if constant else (2,)
    products = []
    for rows, inner, columns in SIZES:
        any_pairs = _numbers(random, 0, 255, *heads, inner, rows)
        small_pairs = in_pairs(any_pairs, 258)
        for a, within in [(any_pairs, 64), (np.minimum(any_pairs, 129), 127), (small_pairs, 127)]:
            b = _numbers(random, -within, within, *heads, inner, columns)
            products.append(Product(np.ascontiguousarray(a.swapaxes(-1, -2)), b, 0, constant))
    return products


def of_weights(model: onnx.ModelProto) -> list[Product]:
    """Those of a model's own int8 weights and zero points, with activations that come near 16 bits."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = []
    for node in model.graph.node:
        if node.op_type == "MatMulIntegerToFloat" and node.input[1] in constants:
            weight, zero_point = (numpy_helper.to_array(constants[node.input[number]]) for number in (1, 4))
            products.append(Product(_extreme_rows(weight), weight, int(zero_point)))
    return products


def _extreme_rows(weight: Array, worst: int = 4) -> Array:
    """(rows, inner) uint8: 255 where it is worst for a pair of weights, both ends throughout, and random numbers.

    The worst are, of every pair of rows, the columns where numbers of one sign add up to most.
    """
    random = np.random.default_rng(2)
    inner = len(weight)
    rows = [np.zeros((1, inner)), np.full((1, inner), 255), np.resize([0, 255], (1, inner))]
    rows += [np.resize([255, 0], (1, inner)), _numbers(random, 0, 255, 3, inner)]
    pairs = weight[: inner // 2 * 2].reshape(inner // 2, 2, -1).astype(np.int64)
    for signed in (pairs, -pairs):
        columns = np.argsort(-np.maximum(signed, 0).sum(axis=1), axis=1)[:, None, :worst]
        row = np.where(np.take_along_axis(signed, columns, axis=2) > 0, 255, 0)
        rows.append(np.pad(row.reshape(-1, columns.shape[2]).T, [(0, 0), (0, inner % 2)]))
    return np.concatenate(rows).astype(np.uint8)


def _numbers(random: np.random.Generator, least: int, greatest: int, *shape: int) -> Array:
    """Random numbers of which half are at the ends."""
    ends = random.choice([least, greatest], shape)
    numbers = np.where(random.random(shape) < 0.5, ends, random.integers(least, greatest, shape, endpoint=True))
    return numbers.astype(np.uint8 if least == 0 else np.int8)
