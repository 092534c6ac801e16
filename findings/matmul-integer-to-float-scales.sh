#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: MatMulIntegerToFloat says of b_scale that it is a scalar or 1-D. For a B of N dimensions it
# also takes one of N dimensions whose last but one is 1, a scale for each column of each matrix, and one that the run
# computes: so attention's keys can each have a scale of their own. All other dimensions must be B's.
# Seen:
#     documented: a scalar or a 1-D tensor
#     (2, 3, 1, 7) for a B of (2, 3, 5, 7): exact
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

(said,) = (
    one.description for schema in get_all_operator_schema() if schema.name == "MatMulIntegerToFloat"
    for one in schema.inputs if one.name == "b_scale"
)
assert "scalar or a 1-D tensor" in said, "the documentation has changed"
print("documented: a scalar or a 1-D tensor")

random = np.random.default_rng(0)
a = random.integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
b = random.integers(-64, 65, (2, 3, 5, 7)).astype(np.int8)


def run(scale):
    values = {"a": (TensorProto.UINT8, a), "b": (TensorProto.INT8, b), "scale": (TensorProto.FLOAT, scale)}
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(
        [helper.make_node("MatMulIntegerToFloat", ["a", "b", "one", "scale"], ["y"], domain="com.microsoft")], "g",
        [helper.make_tensor_value_info(name, kind, value.shape) for name, (kind, value) in values.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4, 7])], [one],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value for name, (_, value) in values.items()})[0]


scale = random.uniform(0.5, 2, (2, 3, 1, 7)).astype(np.float32)
exact = (a.astype(np.int64) @ b.astype(np.int64)) * scale.astype(np.float64)
assert np.allclose(run(scale), exact, rtol=1e-6), "a scale for each column of each matrix is no longer taken"
print("(2, 3, 1, 7) for a B of (2, 3, 5, 7): exact")
PYTHON
