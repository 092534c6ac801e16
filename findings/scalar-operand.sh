#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: an element-wise operator with a scalar operand takes ten times as long when the other one's
# last dimension is 1, as a reduction with keepdims leaves it. The same scalar with as many dimensions, all of them 1,
# makes it fast again; so does a tensor without that last dimension.
# Seen for Mul of (1, 384, 12, 1), one thread, AMD EPYC (Zen 4), in microseconds with the call itself:
#     by a scalar 50, by (1, 1, 1, 1) 5; of (1, 384, 12) by a scalar 5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def microseconds(shape, operand):
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "operand"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.full(operand, 0.5, np.float32), "operand")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x, best = np.ones(shape, np.float32), float("inf")
    for _ in range(500):
        began = time.perf_counter()
        session.run(None, {"x": x})
        best = min(best, time.perf_counter() - began)
    return 1e6 * best


scalar, ones = microseconds([1, 384, 12, 1], ()), microseconds([1, 384, 12, 1], (1, 1, 1, 1))
without = microseconds([1, 384, 12], ())
print(f"by a scalar {scalar:.0f}, by (1, 1, 1, 1) {ones:.0f}; of (1, 384, 12) by a scalar {without:.0f}")
assert scalar > 3 * ones, "a scalar operand is no longer slow"
assert scalar > 3 * without, "the last dimension of 1 no longer matters"
PYTHON
