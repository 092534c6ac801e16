"""A model that tells whether a processor's int8 products are exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from distilqa_export.fuse import CONTRIB, IR_VERSION, OPSET


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
        ir.node("MatMulIntegerToFloat", [values[name] for name in ("a", "b", "a_scale", "b_scale")], domain=CONTRIB),
        ir.node("Identity", [values["expected_product"]]),
    ]
    outputs = [node.outputs[0] for node in nodes]
    for output, name in zip(outputs, ("product", "expected"), strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape((rows, columns))
    opsets = {"": OPSET, CONTRIB: 1}
    initializers = list(values.values())
    graph = ir.Graph([], outputs, nodes=nodes, initializers=initializers, opset_imports=opsets, name="saturation_probe")
    return ir.Model(graph, ir_version=IR_VERSION)
