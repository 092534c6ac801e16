#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU, x86-64: QuantizeLinear with a scale a channel (axis=2, the last) takes some 100 times as long
# as with one scale for all, because each element is handed out to the pool as a block of its own. Scales for blocks of
# 64 channels (block_size=64), which the operator wants spelled out for each token, cost nothing over one scale.
# DequantizeLinear is the other way round: one scale a token (block_size=768) takes several times as long as Cast and Mul.
# Seen for (1, 384, 768), one thread, AMD EPYC (Zen 4), in microseconds:
#     quantize: one scale 43, blocks 46, channels 6662
#     dequantize a token: Cast and Mul 68, blocks 520
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

TOKENS, CHANNELS = 384, 768
SHAPE = [1, TOKENS, CHANNELS]


def microseconds(nodes, constants, given, made, x):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", given, SHAPE)], [helper.make_tensor_value_info("y", made, SHAPE)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        session.run(None, {"x": x})
        best = min(best, time.perf_counter() - began)
    return 1e6 * best


def quantize(shape, **attributes):
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], **attributes)
    constants = {"scale": np.full(shape, 0.05, np.float32), "zero": np.full(shape, 128, np.uint8)}
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return microseconds([node], constants, TensorProto.FLOAT, TensorProto.UINT8, x)


def dequantize(nodes):
    constants = {"scale": np.full((1, TOKENS, 1), 0.05, np.float32)}
    x = np.random.default_rng(0).integers(-127, 128, SHAPE).astype(np.int8)
    return microseconds(nodes, constants, TensorProto.INT8, TensorProto.FLOAT, x)


one, blocks, channels = quantize(()), quantize((1, TOKENS, CHANNELS // 64), axis=2, block_size=64), quantize(CHANNELS, axis=2)
print(f"quantize: one scale {one:.0f}, blocks {blocks:.0f}, channels {channels:.0f}")
plain = dequantize([
    helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["f", "scale"], ["y"])
])
blocked = dequantize([helper.make_node("DequantizeLinear", ["x", "scale"], ["y"], axis=2, block_size=CHANNELS)])
print(f"dequantize a token: Cast and Mul {plain:.0f}, blocks {blocked:.0f}")
assert channels > 20 * one, "a scale a channel is no longer slow"
assert blocks < 3 * one, "blocks are no longer as fast as one scale"
assert blocked > 2 * plain, "DequantizeLinear in blocks is no longer slow"
PYTHON
