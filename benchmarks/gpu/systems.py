"""The systems that are measured on a GPU: each kind opens a model, and gives what runs it.

A run takes windows of any lengths, (length,) int64 each, and has ended when the logits are in the host's memory, so
that nobody's is timed before it is done. Those that pad do so here, to the longest, as their users must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.racing.systems import open_pytorch
from distilqa.bundle import GPU_VARIANTS, Bundle
from distilqa.engine.cuda.budget import OBJECTIVE_S
from distilqa.engine.cuda.engine import CudaEngine
from distilqa.engine.cuda.runtime import load_runtime
from distilqa.engine.runtime import CUDA_PROVIDER, import_onnxruntime
from distilqa.text.arrays import Int64

Run = Callable[[Sequence[Int64]], object]

DEVICE = "cuda"

# Rows, depth and columns of the product that shows what the GPU can.
PEAK = 8192


def packed(path: Path, threads: int) -> Run:
    """The variant for a GPU of a bundle, ``path``, as the server runs it."""
    return _packed(CudaEngine(Bundle.open(path), GPU_VARIANTS[0], objective_s=OBJECTIVE_S))


def packed_without_graphs(path: Path, threads: int) -> Run:
    """The same, each kernel launched by itself."""
    return _packed(CudaEngine(Bundle.open(path), GPU_VARIANTS[0], objective_s=OBJECTIVE_S, graphs=False))


def _packed(engine: CudaEngine) -> Run:
    return lambda windows: engine.run(list(windows))


def onnxruntime_cuda(path: Path, threads: int) -> Run:
    """A plain export, with a mask, as ONNX Runtime opens it by default, but for TF32, which would be no fp32."""
    ort = import_onnxruntime()
    load_runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # A plain graph works out its shapes on the CPU.
    providers = {CUDA_PROVIDER: {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    session = ort.InferenceSession(path, options, providers=list(providers.items()))
    if session.get_providers()[0] != CUDA_PROVIDER:
        raise RuntimeError(f"ONNX Runtime left {path.name} to the CPU")
    names = [node.name for node in session.get_inputs()]

    def run(windows: Sequence[Int64]) -> object:
        ids, mask = padded(windows)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return session.run(None, {name: given[name] for name in names})

    return run


def pytorch_cuda(path: Path, threads: int) -> Run:
    """A checkpoint's folder in PyTorch fp16: scaled-dot-product attention, and a mask where windows are padded."""
    return _pytorch(path, compiled=False)


def pytorch_cuda_compiled(path: Path, threads: int) -> Run:
    """The same after `torch.compile`, for any length."""
    return _pytorch(path, compiled=True)


def _pytorch(path: Path, *, compiled: bool) -> Run:
    import torch

    forward = open_pytorch(path, torch.float16, compiled=compiled, device=DEVICE)

    def run(windows: Sequence[Int64]) -> object:
        ids, mask = padded(windows)
        given = {"input_ids": ids} | ({} if mask.all() else {"attention_mask": mask})
        with torch.inference_mode():
            found = forward(**{name: torch.from_numpy(value).to(DEVICE) for name, value in given.items()})
            return torch.stack([found.start_logits, found.end_logits]).float().cpu().numpy()

    return run


def padded(windows: Sequence[Int64]) -> tuple[Int64, Int64]:
    """Token ids and mask, (windows, tokens of the longest) int64 each: 0 where a window has ended."""
    lengths = np.array([len(window) for window in windows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(list(windows))
    return ids, mask.astype(np.int64)


def matmul_peak(path: Path, threads: int) -> Run:
    """One large product in fp16, whatever the windows; no ``path`` is read."""
    return _products([(PEAK, PEAK)], PEAK)


def matmul_model(path: Path, threads: int) -> Run:
    """The products by weights of a model, ``path`` being its checkpoint, for the tokens of all windows."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    hidden = config.hidden_size
    wide = getattr(config, "hidden_dim", None) or config.intermediate_size  # DistilBERT has its own name for it
    layer = [(hidden, hidden)] * 4 + [(hidden, wide), (wide, hidden)]
    return _products(layer * config.num_hidden_layers)


def _products(weights: Sequence[tuple[int, int]], rows: int | None = None) -> Run:
    """Of random numbers, since a GPU multiplies zeros faster; as many rows as there are tokens, if not told."""
    import torch

    def random(*shape: int) -> Any:
        return torch.randn(shape, device=DEVICE, dtype=torch.float16)

    right = [random(*shape) for shape in weights]
    widths = {width for shape in weights for width in shape}
    made: dict[int, dict[int, tuple[Any, Any]]] = {}  # by rows and width, what goes in and what comes out

    def run(windows: Sequence[Int64]) -> object:
        count = rows or sum(map(len, windows))
        if count not in made:
            made[count] = {width: (random(count, width), random(count, width)) for width in widths}
        with torch.inference_mode():
            for (depth, columns), weight in zip(weights, right, strict=True):
                torch.mm(made[count][depth][0], weight, out=made[count][columns][1])
            torch.cuda.synchronize()
        return None

    return run


KINDS: dict[str, Callable[[Path, int], Run]] = {
    open_kind.__name__: open_kind
    for open_kind in (
        packed,
        packed_without_graphs,
        onnxruntime_cuda,
        pytorch_cuda,
        pytorch_cuda_compiled,
        matmul_peak,
        matmul_model,
    )
}
