"""A model that tells whether a processor's int8 products are exact: those at the limits of `exact`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from distilqa_export.graph.fuse import CONTRIB, IR_VERSION, OPSET
from distilqa_export.quantization.exact import OPERAND, PAIR, WEIGHT

# Weights of a pair, as far as they may go: both ends of each sign, alike and apart.
_PAIRS = [(WEIGHT, PAIR - WEIGHT), (PAIR - WEIGHT, WEIGHT), (OPERAND, OPERAND), (WEIGHT, -WEIGHT)]
# Activations of a pair.
_ACTIVATIONS = [(255, 255), (0, 255), (255, 0), (0, 0)]
# Odd, and no multiple of what a kernel takes at once, so that its rests are tried too.
_INNER = 67


def int8_probe() -> ir.Model:
    """A model without inputs whose outputs ``product`` and ``expected`` are equal where int8 products are exact.

    Each column repeats a pair of weights, each row one of activations; the first half of the rows is of weights that
    are constant, the second of the same as if only the run told them.
    """
    columns = [np.resize(pair, _INNER) for pair in _PAIRS]
    b = np.stack([sign * column for sign in (1, -1) for column in columns], axis=1).astype(np.int8)
    a = np.stack([np.resize(pair, _INNER) for pair in _ACTIVATIONS]).astype(np.uint8)
    exact = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.float32)
    constants = {"a": a, "b": b, "one": np.float32(1), "expected_product": np.concatenate([exact, exact])}
    values = {
        name: ir.val(name, const_value=ir.tensor(np.asarray(value), name=name)) for name, value in constants.items()
    }
    at_run_time = ir.node("Identity", [values["b"]])
    products = [
        ir.node("MatMulIntegerToFloat", [values["a"], numbers, values["one"], values["one"]], domain=CONTRIB)
        for numbers in (values["b"], at_run_time.outputs[0])
    ]
    both = ir.node("Concat", [node.outputs[0] for node in products], {"axis": 0})
    expected = ir.node("Identity", [values["expected_product"]])
    outputs = [both.outputs[0], expected.outputs[0]]
    for output, name in zip(outputs, ("product", "expected"), strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape((2 * len(a), b.shape[1]))
    graph = ir.Graph(
        [],
        outputs,
        nodes=[at_run_time, *products, both, expected],
        initializers=list(values.values()),
        opset_imports={"": OPSET, CONTRIB: 1},
        name="int8_probe",
    )
    return ir.Model(graph, ir_version=IR_VERSION)
