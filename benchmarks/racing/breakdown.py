"""Where the time of a run goes, by the profilers of ONNX Runtime and OpenVINO.

``python -m benchmarks.racing.breakdown KIND FILE TOKENS`` prints it for one system, whose process this is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.racing.child import SystemFailed
from benchmarks.racing.systems import feeds
from benchmarks.racing.worker import Shape, System
from benchmarks.reporting.environment import ROOT
from distilqa.engine.runtime import import_onnxruntime

PRODUCTS, ATTENTION, GELU, REST = "products by weights", "attention", "Gelu", "norms, sums, rounding"
GROUPS = (PRODUCTS, ATTENTION, GELU, REST)

_WARM_RUNS, _RUNS = 3, 20
_IDS = 1000


def shares(system: System, shape: Shape) -> dict[str, float]:
    """The share of each group in a run of a system on one window and one thread. Raises SystemFailed."""
    command = [sys.executable, "-m", "benchmarks.racing.breakdown", system.kind, str(system.path), str(shape.tokens)]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | system.environment | {"TMPDIR": folder}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemFailed(f"the profile of {system.kind}: {' '.join(done.stderr.split()[-30:])}")
    spent: dict[str, float] = json.loads(done.stdout)
    return {group: seconds / sum(spent.values()) for group, seconds in spent.items()}


def _onnxruntime(path: Path, tokens: int, *, fused: bool) -> Iterator[tuple[str, float]]:
    """The group and the seconds of each operator, over all the runs; ``fused`` says that a model runs as it is."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.log_severity_level = 3
    if fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_pattern = False
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = feeds([node.name for node in session.get_inputs()], _ids(tokens))
        for _ in range(_WARM_RUNS + _RUNS):
            session.run(None, given)
        events = json.loads(Path(session.end_profiling()).read_text())
    warm = sorted(event["ts"] for event in events if event["name"] == "model_run")[_WARM_RUNS]
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= warm:
            shapes = [shape for typed in event["args"]["input_type_shape"] for shape in typed.values()]
            yield group(event["args"]["op_name"], len(shapes[0]) if shapes else 0), event["dur"] / 1e6


def group(operator: str, rank: int) -> str:
    """That of an operator of ONNX Runtime whose first input has so many dimensions: attention's heads are a fourth."""
    if "Gelu" in operator:
        return GELU
    if operator in ("Attention", "Softmax", "Transpose") or rank == 4:
        return ATTENTION
    return PRODUCTS if "MatMul" in operator or "Gemm" in operator else REST


def _openvino(path: Path, tokens: int) -> Iterator[tuple[str, float]]:
    """The same. OpenVINO measures means over all runs; where it has no kernel for all of attention, that is parts."""
    import openvino as ov

    fixed = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    model = ov.Core().compile_model(path, "CPU", fixed)
    request = model.create_infer_request()
    given = feeds([node.get_any_name() for node in model.inputs], _ids(tokens))
    for _ in range(_WARM_RUNS + _RUNS):
        request.infer(given)
    # Attention is one of the graphs that it compiles whole.
    attention = ("Subgraph", "ScaledDotProductAttention", "MatMul", "Softmax", "Transpose")
    groups = dict.fromkeys(attention, ATTENTION) | {"Gelu": GELU}
    for node in request.profiling_info:
        products = PRODUCTS if node.node_type.startswith("FullyConnected") else REST
        yield groups.get(node.node_type, products), node.real_time.total_seconds()


def _ids(tokens: int) -> Any:
    return np.random.default_rng(0).integers(0, _IDS, (1, tokens))


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.racing.breakdown")
    parser.add_argument("kind", choices=("bundled", "onnxruntime", "openvino"))
    parser.add_argument("path", type=Path)
    parser.add_argument("tokens", type=int)
    arguments = parser.parse_args()
    reply, sys.stdout = sys.stdout, sys.stderr  # some libraries print
    if arguments.kind == "openvino":
        timed = _openvino(arguments.path, arguments.tokens)
    else:
        timed = _onnxruntime(arguments.path, arguments.tokens, fused=arguments.kind == "bundled")
    found = dict.fromkeys(GROUPS, 0.0)
    for name, seconds in timed:
        found[name] += seconds
    print(json.dumps(found), file=reply)


if __name__ == "__main__":
    main()
