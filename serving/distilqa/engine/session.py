"""ONNX Runtime sessions on the CPU: how a model that was fused offline is opened and run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distilqa.engine.runtime import import_onnxruntime
from distilqa.engine.segments import token_types
from distilqa.errors import BundleError
from distilqa.text.arrays import Float32, Int64

if TYPE_CHECKING:
    import onnxruntime


# Long enough for the gaps between the operators of a run, in which a sleeping thread would cost 3 ms of 20; far shorter
# than ONNX Runtime's own, which burns 15 ms of a core after each run.
SPIN_US = 1000


def open_session(
    model: Path, *, threads: int, spin_us: int = 0, shares_arena: bool = False
) -> onnxruntime.InferenceSession:
    """Open a model that was fused offline, exactly as it is: ONNX Runtime's own fusions would slow it down.

    ``spin_us`` is for how many microseconds a thread that has nothing to do looks out for more, before it sleeps.
    ``shares_arena`` lets sessions work in one pool of memory, which takes 30 MB less than a pool for each of two.
    Raises BundleError if it is no model that this ONNX Runtime can open, MissingDependency.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Of patterns, one for each length that ever came, memory would grow without end.
    options.enable_mem_pattern = False
    # A spinning pool burns the cores that other runs, and the server itself, could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    options.log_severity_level = 3
    if shares_arena:
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own kinds share no base
        raise BundleError(f"{model}: ONNX Runtime cannot open it ({error})") from error


@cache
def _register_arena() -> None:
    """Once for the process; one that others have registered will do as well."""
    ort = import_onnxruntime()
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with suppress(Exception):  # ONNX Runtime's own kinds share no base
        ort.create_and_register_allocator(cpu, ort.OrtArenaCfg({"max_mem": 0}))


def run_session(
    session: onnxruntime.InferenceSession,
    inputs: Sequence[str],
    windows: Sequence[Int64],
    outputs: Sequence[str] = ("start_logits", "end_logits"),
) -> list[Float32]:
    """Run windows of one length and return the outputs, each (windows, length, ...) float32.

    A model of BERT's also takes ``token_type_ids``: its `token_types`.
    """
    input_ids = np.stack(windows)
    feeds = {"input_ids": input_ids}
    if "token_type_ids" in inputs:
        feeds["token_type_ids"] = token_types(input_ids)
    values: list[Float32] = session.run(outputs, feeds)
    return values
