"""Windows of any lengths packed into one run, without padding: what the packed model takes, and what it gives.

All that goes in is int32: a token's id, its place within its window, and for BERT its segment, (1, tokens) each, the
windows one after another; where each begins and the last one ends, (windows + 1,); and a table of which the kernel
wants to know the shape alone, (windows, tokens of the longest). Out come start and end logits, (tokens, 2) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from distilqa.engine.segments import segments
from distilqa.text.arrays import Float32, Int32, Int64, Logits

if TYPE_CHECKING:
    import onnxruntime

INPUT_IDS, POSITION_IDS, TOKEN_TYPE_IDS = "input_ids", "position_ids", "token_type_ids"
CUMULATIVE_LENGTHS, TOKEN_OFFSET, LOGITS = "cumulative_lengths", "token_offset", "logits"

Empty = Callable[[int], Int32]


def _empty(count: int) -> Int32:
    return np.empty(count, np.int32)


@dataclass(frozen=True, slots=True)
class Packed:
    """The windows of a run, packed; ``longest`` is how many tokens the longest has."""

    input_ids: Int32
    position_ids: Int32
    cumulative_lengths: Int32
    longest: int

    @classmethod
    def of(cls, windows: Sequence[Int64], empty: Empty = _empty) -> Packed:
        """Pack windows, each (length,) int64, into arrays that ``empty`` makes of their lengths.

        Raises ValueError where there is no window, or an empty one.
        """
        lengths = np.fromiter(map(len, windows), np.int32, len(windows))
        if not lengths.all() or not windows:
            raise ValueError("a window has no tokens")  # of which kernels make what they please
        begins = empty(len(windows) + 1)
        begins[0] = 0
        np.cumsum(lengths, out=begins[1:])
        tokens = int(begins[-1])
        places = empty(tokens)
        np.subtract(np.arange(tokens, dtype=np.int32), np.repeat(begins[:-1], lengths), out=places)
        ids = empty(tokens)
        np.concatenate(windows, out=ids, casting="same_kind")
        return cls(ids[None], places[None], begins, int(lengths.max()))

    @property
    def table(self) -> tuple[int, int]:
        """The shape of the table, which is all that the kernel wants to know of it."""
        return len(self.cumulative_lengths) - 1, self.longest

    def token_type_ids(self, empty: Empty = _empty) -> Int32:
        """BERT's `segments`, (1, tokens)."""
        ids = self.input_ids[0]
        found = empty(len(ids))
        found[:] = segments(ids, self.cumulative_lengths)
        return found[None]

    def feeds(self, inputs: Sequence[str], empty: Empty = _empty) -> dict[str, Int32]:
        """What a model with those inputs is fed, but for the table."""
        fed = {
            INPUT_IDS: self.input_ids,
            POSITION_IDS: self.position_ids,
            CUMULATIVE_LENGTHS: self.cumulative_lengths,
        }
        return fed | ({TOKEN_TYPE_IDS: self.token_type_ids(empty)} if TOKEN_TYPE_IDS in inputs else {})

    def unpack(self, logits: Float32) -> list[Logits]:
        """The (start, end) logits of each window, each (length,), of those of all its tokens, (tokens, 2)."""
        begins = self.cumulative_lengths.tolist()
        return [(logits[one:end, 0], logits[one:end, 1]) for one, end in pairwise(begins)]


def run_packed(session: onnxruntime.InferenceSession, inputs: Sequence[str], windows: Sequence[Int64]) -> list[Logits]:
    """Run windows of any lengths, each (length,) int64, and return (start, end) logits, each (length,) float32."""
    packed = Packed.of(windows)
    feeds = packed.feeds(inputs) | {TOKEN_OFFSET: np.zeros(packed.table, np.int32)}
    logits: Float32 = session.run([LOGITS], feeds)[0]
    return packed.unpack(logits)
