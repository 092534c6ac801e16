"""ONNX Runtime on an NVIDIA GPU: there, or an error that says what is missing; never the CPU in its place.

Windows of any lengths share a run, packed one after another without padding, up to a budget of tokens. It is chosen
when the engine is made, from what runs of each size cost then and there.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilqa.budget import choose_budget
from distilqa.bundle import Bundle
from distilqa.engine import CUDA_PROVIDER, RUN_WINDOWS, Engine, import_onnxruntime
from distilqa.errors import BundleError, InferenceFailed, MissingDependency
from distilqa.packed import run_packed
from distilqa.spans import Logits
from distilqa.windows import Int64

if TYPE_CHECKING:
    import onnxruntime

_INSTALL = "pip uninstall -y onnxruntime && pip install 'distilqa[gpu]'"

# What the provider needs; it would say so in its log alone, and leave the model to the CPU.
_DRIVER = "libcuda.so.1"
_LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")

# One run computes while the next is made and uploaded.
LANES = 2

# Runs of these sizes, and of one window of full length, are timed: beyond the last nothing more is gained by far.
_TIMED_TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)
_TIMED_RUNS = 3

# About the length of SQuAD's windows.
_TIMED_WINDOW = 170


class CudaEngine(Engine):
    """A packed variant of a bundle, ready to run on the first GPU; safe to use from several threads at once.

    ``objective_s`` is how long a window may take that waits for a run and then has its own, in seconds: the runs are
    made no larger than that allows. ``costs_s`` is what a run took with all lanes busy, in seconds, by its tokens.
    Raises as `Engine` does, and MissingDependency if there is no GPU, or something that it needs is missing.
    """

    def __init__(self, bundle: Bundle, variant: str, *, objective_s: float) -> None:
        self.bundle = bundle
        self.variant, description = bundle.variant(variant)
        self.lanes, self._objective_s = LANES, objective_s
        self._session = open_cuda_session(bundle.verified(description.file))
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._ways = [False]
        self._known_good: list[Int64] = []
        self._self_test(description)

    @property
    def device(self) -> str:
        return f"a GPU, runs of up to {self.budget:,} tokens"

    def run(self, windows: Sequence[Int64], *, alone: bool = False) -> list[Logits]:
        """Run windows of any lengths, each (length,) int64, and return (start, end) logits, each (length,) float32.

        A window's logits move in their last bits with who else is in the run. Raises InferenceFailed, or DeviceLost if
        the GPU fails on whatever it is given, as after an error that CUDA does not forget.
        """
        try:
            return run_packed(self._session, self._inputs, windows)
        except Exception as error:  # ONNX Runtime's own kinds share no base
            if self._known_good:
                try:
                    run_packed(self._session, self._inputs, self._known_good)
                except Exception as also:
                    raise DeviceLost(f"the GPU fails on everything ({also!r:.200})") from error
            raise InferenceFailed(f"the model failed on {sum(map(len, windows))} tokens ({error!r:.200})") from error

    def _differences(self, test: Any) -> list[float]:
        """Of each input alone, and of all of them in one run."""
        together = self.run([np.array(ids, np.int64) for ids in test["inputs"]])
        expected = [np.array(logits, "f4") for logits in test["logits"][self.variant]]
        packed = [float(np.abs(np.array(one) - other).max()) for one, other in zip(together, expected, strict=True)]
        return super()._differences(test) + packed

    def _warm(self) -> None:
        """Take the memory for the largest runs, and time runs of all sizes. Raises InferenceFailed."""
        longest = self.bundle.manifest.window_tokens
        window = np.zeros(min(_TIMED_WINDOW, longest), np.int64)
        self.costs_s = {longest: self._cost_s([np.zeros(longest, np.int64)])}
        self._known_good = [window]
        for tokens in _TIMED_TOKENS:
            windows = [window] * min(tokens // len(window), RUN_WINDOWS)
            try:
                self.costs_s[sum(map(len, windows))] = self._cost_s(windows)
            except InferenceFailed:  # there is no memory for so many
                break
        self.budget = choose_budget(self.costs_s, objective_s=self._objective_s)
        self.token_s = self.costs_s[self.budget] / self.budget

    def _cost_s(self, windows: Sequence[Int64]) -> float:
        """Seconds of a run while the other lanes are as busy."""
        seconds = []

        def lane(_: int) -> None:
            for number in range(1 + _TIMED_RUNS):
                began = time.perf_counter()
                self.run(windows)
                if number:
                    seconds.append(time.perf_counter() - began)

        with ThreadPoolExecutor(self.lanes) as pool:
            list(pool.map(lane, range(self.lanes)))
        return statistics.median(seconds)


class DeviceLost(BaseException):
    """The GPU runs nothing any more: not the fault of what it was asked, so that no request may be blamed for it."""


def open_cuda_session(model: Path) -> onnxruntime.InferenceSession:
    """Open a packed model on the first GPU, exactly as it is.

    Raises MissingDependency, which names the provider, driver, library or device that is missing, or BundleError if it
    is no model that this ONNX Runtime can open.
    """
    ort = import_onnxruntime()
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise MissingDependency(f"this ONNX Runtime has no {CUDA_PROVIDER}: {_INSTALL}")
    _check_device(ort)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Of patterns, one for each shape that ever came, memory would grow without end.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 3
    try:
        # Without TF32, which would round the answer head's fp32.
        return ort.InferenceSession(model, options, providers=[(CUDA_PROVIDER, {"use_tf32": "0"})], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own kinds share no base
        raise BundleError(f"{model}: ONNX Runtime cannot open it on the GPU ({error})") from error


def _check_device(ort: object) -> None:
    """Raises MissingDependency."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise MissingDependency(f"there is no NVIDIA driver here ({error})") from error
    ort.preload_dlls()  # type: ignore[attr-defined]  # of the packages that the extra installs
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            raise MissingDependency(f"{error}: {_INSTALL}") from error
        if name == _LIBRARIES[0]:
            _check_count(library)


def _check_count(runtime: ctypes.CDLL) -> None:
    count = ctypes.c_int()
    if status := runtime.cudaGetDeviceCount(ctypes.byref(count)):
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        raise MissingDependency(f"CUDA finds no GPU: {runtime.cudaGetErrorString(status).decode()}")
