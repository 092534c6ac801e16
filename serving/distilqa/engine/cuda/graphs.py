"""Small runs as CUDA graphs: the whole run is one launch, where launching kernel by kernel takes longer than they do.

A graph has fixed shapes, so there is one for each of a few *buckets*, and a run is filled up to its bucket with
padding. ONNX Runtime keeps a graph for the thread that captured it, and while one is captured CUDA fails calls of any
other thread: so one thread captures all of them while nothing else runs, and later runs them, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distilqa.engine.cuda.lane import Lane
from distilqa.engine.runtime import import_onnxruntime
from distilqa.text.arrays import Int64, Logits

if TYPE_CHECKING:
    import onnxruntime

# A bucket has room for windows of this length, and for one more.
_SHORT_WINDOW = 64


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of the runs of one graph: exactly so many tokens in exactly so many windows, none of them longer."""

    tokens: int
    windows: int
    longest: int

    @classmethod
    def of(cls, tokens: int, window_tokens: int) -> Bucket:
        """That of so many tokens, for a model whose windows are no longer than ``window_tokens``."""
        longest = min(tokens, window_tokens)
        return cls(tokens, 1 + -(-tokens // min(longest, _SHORT_WINDOW)), longest)

    def takes(self, tokens: int, windows: int) -> bool:
        """Whether so many tokens in so many windows fit, and what they leave makes windows of padding, none empty."""
        spare, rest = self.windows - windows, self.tokens - tokens
        return 0 < spare < self.windows and spare <= rest <= spare * self.longest

    def fill(self, windows: Sequence[Int64]) -> list[Int64]:
        """The windows, and after them those of padding; `takes` says whether that is possible."""
        spare = self.windows - len(windows)
        length, longer = divmod(self.tokens - sum(map(len, windows)), spare)
        padding = np.zeros(length + 1, np.int64)
        return [*windows, *[padding] * longer, *[padding[:length]] * (spare - longer)]


class Graphs:
    """Runs in buckets, from any thread. ``lane`` is one for the largest bucket, of a session that captures graphs.

    The first run in a bucket captures its graph: nothing else may run then on the GPU in this process.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="graphs")
        self._options: dict[Bucket, onnxruntime.RunOptions] = {}

    def run(self, bucket: Bucket, windows: Sequence[Int64]) -> list[Logits]:
        """As `Lane.run` does and raises, of windows that the bucket takes."""
        return self._thread.submit(self._run, bucket, windows).result()

    def _run(self, bucket: Bucket, windows: Sequence[Int64]) -> list[Logits]:
        if bucket not in self._options:
            self._options[bucket] = import_onnxruntime().RunOptions()
            self._options[bucket].add_run_config_entry("gpu_graph_id", str(len(self._options)))
        options = self._options[bucket]
        return self._lane.run(bucket.fill(windows), longest=bucket.longest, options=options)[: len(windows)]
