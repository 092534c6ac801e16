"""ONNX Runtime on an NVIDIA GPU: there, or an error that says what is missing; never the CPU in its place.

Windows of any lengths share a run, packed one after another without padding, up to a budget of tokens. It is chosen
when the engine is made, from what runs of each size cost then and there; small runs go through CUDA graphs where these
proved right and faster.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from distilqa.bundle import Bundle
from distilqa.engine.base import RUN_WINDOWS, Engine
from distilqa.engine.cuda.budget import choose_budget
from distilqa.engine.cuda.graphs import Bucket, Graphs
from distilqa.engine.cuda.lane import Lane
from distilqa.engine.cuda.runtime import load_runtime
from distilqa.engine.runtime import CUDA_PROVIDER, import_onnxruntime
from distilqa.errors import BundleError, InferenceFailed
from distilqa.text.arrays import Int64, Logits

if TYPE_CHECKING:
    import onnxruntime

# One run computes while the next is made and uploaded.
LANES = 2

# Runs of these sizes, and of one window of full length, are timed: beyond the last nothing more is gained by far.
_TIMED_TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)
_TIMED_RUNS = 3

# About the length of SQuAD's windows.
_TIMED_WINDOW = 170

# Runs of more tokens than one of these, and at most the next, share a graph. The GPU is busy for longer with larger
# ones than it takes to launch them.
_GRAPH_TOKENS = (16, 128, 256, 384, 512, 768, 1024, 1536)
_GRAPH_ROUNDS = 20

# How a run can be made: in a lane, or through a graph.
Way = Callable[[Sequence[Int64]], list[Logits]]

logger = logging.getLogger(__name__)


class CudaEngine(Engine):
    """A packed variant of a bundle, ready to run on the first GPU; safe to use from several threads at once.

    ``objective_s`` is how long a window may take that waits for a run and then has its own, in seconds: the runs are
    made no larger than that allows. ``costs_s`` is what a run took with all lanes busy, in seconds, by its tokens.
    ``graphs`` is whether small runs may go through CUDA graphs, to compare with: while the engine is made, nothing else
    may use the GPU in this process then.
    Raises as `CpuEngine` does, and MissingDependency if there is no GPU, or something that it needs is missing.
    """

    def __init__(self, bundle: Bundle, variant: str, *, objective_s: float, graphs: bool = True) -> None:
        self.bundle = bundle
        self.variant, description = bundle.variant(variant)
        self.lanes, self._objective_s, self._tolerance = LANES, objective_s, description.tolerance
        self._runtime, self._longest = load_runtime(), bundle.manifest.window_tokens
        self._model = bundle.verified(description.file)
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in self._open_lanes(LANES, max(self._longest, *_TIMED_TOKENS), RUN_WINDOWS):
            self._free.put(lane)
        self._buckets: list[Bucket] = []
        self._wants_graphs = graphs
        self._known_good: list[Int64] = []
        self._self_test(description)

    @property
    def device(self) -> str:
        graphs = f", up to {self._buckets[-1].tokens:,} in CUDA graphs" if self._buckets else ""
        return f"a GPU, runs of up to {self.budget:,} tokens{graphs}"

    def run(self, windows: Sequence[Int64], *, alone: bool = False) -> list[Logits]:
        """Run windows of any lengths, each (length,) int64, and return (start, end) logits, each (length,) float32.

        A window's logits move in their last bits with who else is in the run. Raises InferenceFailed, also where they
        are more than 1,024 or have more tokens than any run that was timed; or DeviceLost if the GPU fails on whatever
        it is given, as after an error that CUDA does not forget.
        """
        return self._run(self._way(windows), windows)

    def _way(self, windows: Sequence[Int64]) -> Way:
        tokens, count = sum(map(len, windows)), len(windows)
        for bucket in self._buckets:
            if bucket.takes(tokens, count):
                return partial(self._graphs.run, bucket)
        return self._run_in_lane

    def _run_in_lane(self, windows: Sequence[Int64]) -> list[Logits]:
        lane = self._free.get()
        try:
            return lane.run(windows)
        finally:
            self._free.put(lane)

    def _run(self, way: Way, windows: Sequence[Int64]) -> list[Logits]:
        """Raises InferenceFailed, or DeviceLost."""
        try:
            return way(windows)
        except Exception as error:  # ONNX Runtime's own kinds share no base
            if self._known_good:
                try:
                    way(self._known_good)
                except Exception as also:
                    raise DeviceLost(f"the GPU fails on everything ({also!r:.200})") from error
            raise InferenceFailed(f"the model failed on {sum(map(len, windows))} tokens ({error!r:.200})") from error

    def _open_lanes(self, count: int, tokens: int, windows: int, *, graphs: bool = False) -> list[Lane]:
        """Lanes of a session of their own. Raises BundleError."""
        session = open_cuda_session(self._model, graphs=graphs)
        try:
            return [
                Lane(session, self._runtime, tokens=tokens, windows=windows, longest=self._longest)
                for _ in range(count)
            ]
        except Exception as error:  # ONNX Runtime's own kinds share no base
            raise BundleError(f"{self._model}: the GPU has no room for its runs ({error})") from error

    def _differences(self, test: Any) -> list[float]:
        """Of each input alone, and of all of them in one run."""
        self._examples = [np.array(ids, np.int64) for ids in test["inputs"]]
        together = self.run(self._examples)
        expected = [np.array(logits, "f4") for logits in test["logits"][self.variant]]
        packed = [_difference([one], [other]) for one, other in zip(together, expected, strict=True)]
        return super()._differences(test) + packed

    def _warm(self) -> None:
        """Take the memory for the largest runs, and time runs of all sizes. Raises InferenceFailed."""
        window = np.zeros(min(_TIMED_WINDOW, self._longest), np.int64)
        self.costs_s = {self._longest: self._cost_s([np.zeros(self._longest, np.int64)])}
        self._known_good = [window[:1]]  # which every bucket takes
        for tokens in _TIMED_TOKENS:
            windows = [window] * min(tokens // len(window), RUN_WINDOWS)
            try:
                self.costs_s[sum(map(len, windows))] = self._cost_s(windows)
            except InferenceFailed:  # there is no memory for so many
                break
        self.budget = choose_budget(self.costs_s, objective_s=self._objective_s)
        self.token_s = self.costs_s[self.budget] / self.budget
        if self._wants_graphs:
            self._make_graphs()

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

    def _make_graphs(self) -> None:
        """Capture the graphs of all buckets, and keep those that give the right logits, and sooner."""
        largest = Bucket.of(_GRAPH_TOKENS[-1], self._longest)
        try:
            [lane] = self._open_lanes(1, largest.tokens, largest.windows, graphs=True)
        except BundleError as error:
            logger.warning("there are no CUDA graphs: %s", error)
            return
        self._graphs = Graphs(lane)
        for below, tokens in pairwise(_GRAPH_TOKENS):
            bucket = Bucket.of(tokens, self._longest)
            if self._is_of_use(bucket, self._example(below + 1)):
                self._buckets.append(bucket)

    def _example(self, tokens: int) -> list[Int64]:
        """Windows with so many tokens in all, out of the self-test."""
        ids = np.resize(np.concatenate(self._examples), tokens)
        return [ids[begin : begin + self._longest] for begin in range(0, tokens, self._longest)]

    def _is_of_use(self, bucket: Bucket, windows: Sequence[Int64]) -> bool:
        """Whether a bucket's graph can be captured, is right, and pays for ``windows``, the fewest it will be used for.

        Raises DeviceLost if nothing can be run after the attempt.
        """
        through = partial(self._graphs.run, bucket)
        try:
            through(self._known_good)  # and is captured with that, not with what follows
            difference = _difference(self._run_in_lane(windows), through(windows))
            plain_s, graph_s = _median_s([self._run_in_lane, through], windows)
        except Exception as error:  # ONNX Runtime's own kinds share no base
            logger.warning("no CUDA graph for runs of %d tokens: %r", bucket.tokens, error)
            self._run(self._run_in_lane, self._known_good)
            return False
        if not difference <= self._tolerance:
            logger.warning("no CUDA graph for runs of %d tokens: its logits differ by %g", bucket.tokens, difference)
            return False
        fields = {"tokens": bucket.tokens, "plain_ms": round(1e3 * plain_s, 3), "graph_ms": round(1e3 * graph_s, 3)}
        logger.info("CUDA graph" if graph_s < plain_s else "CUDA graph left out", extra={"fields": fields})
        return graph_s < plain_s


class DeviceLost(BaseException):
    """The GPU runs nothing any more: not the fault of what it was asked, so that no request may be blamed for it."""


def open_cuda_session(model: Path, *, graphs: bool = False) -> onnxruntime.InferenceSession:
    """Open a packed model on the first GPU, exactly as it is; with ``graphs``, its runs are captured and replayed.

    Raises MissingDependency, which names the provider, driver, library or device that is missing, or BundleError if it
    is no model that this ONNX Runtime can open.
    """
    load_runtime()
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Of patterns, one for each shape that ever came, memory would grow without end.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 3
    # Without TF32, which would round the answer head's fp32.
    provider = CUDA_PROVIDER, {"use_tf32": "0", "enable_cuda_graph": str(int(graphs))}
    try:
        return ort.InferenceSession(model, options, providers=[provider], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own kinds share no base
        raise BundleError(f"{model}: ONNX Runtime cannot open it on the GPU ({error})") from error


def _difference(some: Sequence[Logits], others: Sequence[Any]) -> float:
    """The largest difference of any logit; NaN if one is."""
    return float(np.max([np.abs(np.array(one) - other).max() for one, other in zip(some, others, strict=True)]))


def _median_s(ways: Sequence[Way], windows: Sequence[Int64]) -> list[float]:
    """Seconds of a run each way, by turns, with nothing else under way."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(_GRAPH_ROUNDS):
        for way, taken in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way(windows)
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]
