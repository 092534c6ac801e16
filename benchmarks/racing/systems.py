"""The systems that are measured: each kind opens a model, on so many threads, and gives what runs it.

A run takes ids, (windows, tokens) int64, and gives the start and the end logits, (windows, tokens) float32 each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilqa.engine import huge_pages
from distilqa.engine.runtime import import_onnxruntime
from distilqa.engine.session import SPIN_US, open_session, run_session
from distilqa.text.arrays import Float32, Int64

Run = Callable[[Int64], Sequence[Float32]]

# Of the run in which OpenVINO's binding initialises itself: two threads that do so at once may wait for each other.
_FIRST_TOKENS = 8

# With glibc's defaults PyTorch spends up to half its time in page faults; its processes, and no others, run with these.
PYTORCH_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}

# Multiplied to know what the processor can: (rows, depth, columns), as in the first half of the target's feed-forward
# network at 128 tokens.
MATMUL = (128, 768, 3072)

# As many of them as the target's weights make: 42.5 million, but for the embeddings.
PRODUCTS = 18


def bundled(path: Path, threads: int) -> Run:
    """A variant of a bundle as the server runs it, in huge pages: ``path`` is its ONNX file."""
    session = open_session(path, threads=threads, spin_us=SPIN_US if threads > 1 else 0)
    huge_pages.collapse()
    inputs = [node.name for node in session.get_inputs()]
    return lambda ids: run_session(session, inputs, list(ids))


def onnxruntime(path: Path, threads: int) -> Run:
    """A model as ONNX Runtime opens it by default, with its own fusions."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda ids: session.run(None, feeds(names, ids))


def pytorch(path: Path, threads: int) -> Run:
    """A checkpoint's folder in PyTorch fp32: inference mode, scaled-dot-product attention, no mask."""
    return _pytorch(path, threads, compiled=False)


def pytorch_compiled(path: Path, threads: int) -> Run:
    """The same after `torch.compile`, for any length."""
    return _pytorch(path, threads, compiled=True)


def _pytorch(path: Path, threads: int, *, compiled: bool) -> Run:
    import torch

    torch.set_num_threads(threads)
    forward = open_pytorch(path, torch.float32, compiled=compiled)

    def run(ids: Int64) -> Sequence[Float32]:
        with torch.inference_mode():
            found = forward(input_ids=torch.from_numpy(ids))
        return [found.start_logits.numpy(), found.end_logits.numpy()]

    return run


def open_pytorch(path: Path, precision: Any, *, compiled: bool, device: str = "cpu") -> Any:
    """A checkpoint's folder as what PyTorch runs, with scaled-dot-product attention; compiled, for any length."""
    import torch
    from transformers import AutoModelForQuestionAnswering

    model = AutoModelForQuestionAnswering.from_pretrained(path, attn_implementation="sdpa", dtype=precision)
    model = model.eval().to(device)
    return torch.compile(model, dynamic=True) if compiled else model


def openvino(path: Path, threads: int) -> Run:
    """An OpenVINO model as it opens it by default: what is not int8 runs in bf16 where the processor has that."""
    return _openvino(path, threads, {})


def openvino_fp32(path: Path, threads: int) -> Run:
    """The same, what is not int8 in fp32."""
    return _openvino(path, threads, {"INFERENCE_PRECISION_HINT": "f32"})


def _openvino(path: Path, threads: int, settings: dict[str, str]) -> Run:
    import openvino as ov

    fixed = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    model = ov.Core().compile_model(path, "CPU", fixed | settings)
    names = [node.get_any_name() for node in model.inputs]
    request = model.create_infer_request()

    def run(ids: Int64) -> Sequence[Float32]:
        return list(request.infer(feeds(names, ids)).values())

    run(np.zeros((1, _FIRST_TOKENS), np.int64))
    return run


def feeds(names: list[str], ids: Int64) -> dict[str, Int64]:
    """What a stock export asks for: it has a mask, of which nothing is masked here."""
    return {"input_ids": ids} | ({"attention_mask": np.ones_like(ids)} if "attention_mask" in names else {})


def matmul_int8(path: Path, threads: int) -> Run:
    """`PRODUCTS` products in 8 bits by one weight, which stays in the cache, whatever the ids; no ``path`` is read."""
    return _products(np.uint8, np.int8, 1, threads)


def matmul_int8_streamed(path: Path, threads: int) -> Run:
    """The same by a weight each, as in a model: together they are more than a core's cache holds."""
    return _products(np.uint8, np.int8, PRODUCTS, threads)


def matmul_fp32(path: Path, threads: int) -> Run:
    """`matmul_int8` in fp32."""
    return _products(np.float32, np.float32, 1, threads)


def matmul_fp32_streamed(path: Path, threads: int) -> Run:
    """`matmul_int8_streamed` in fp32."""
    return _products(np.float32, np.float32, PRODUCTS, threads)


def _products(left_type: Any, weight_type: Any, weights: int, threads: int) -> Run:
    import onnx_ir as ir

    rows, depth, columns = MATMUL
    chance = np.random.default_rng(0)
    left = chance.integers(0, 127, (rows, depth)).astype(left_type)  # two products fit 16 bits, on any processor
    whole = weight_type == np.int8
    given = ir.Value(name="left", type=ir.TensorType(ir.DataType.from_numpy(left.dtype)), shape=ir.Shape(left.shape))
    constants = []
    for number in range(weights):
        weight = chance.integers(-127, 127, (depth, columns)).astype(weight_type)
        constants.append(ir.Value(name=f"weight{number}", const_value=ir.tensor(weight, name=f"weight{number}")))
    nodes = []
    for number in range(PRODUCTS):
        node = ir.node("MatMulInteger" if whole else "MatMul", [given, constants[number % weights]])
        node.outputs[0].name = f"product{number}"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT32 if whole else ir.DataType.FLOAT)
        nodes.append(node)
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([given], outputs, nodes=nodes, initializers=constants, opset_imports={"": 21}, name="products")
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    huge_pages.collapse()  # to show what the processor can
    return lambda ids: session.run(None, {"left": left})


KINDS: dict[str, Callable[[Path, int], Run]] = {
    open_kind.__name__: open_kind
    for open_kind in (
        bundled,
        onnxruntime,
        pytorch,
        pytorch_compiled,
        openvino,
        openvino_fp32,
        matmul_int8,
        matmul_int8_streamed,
        matmul_fp32,
        matmul_fp32_streamed,
    )
}
