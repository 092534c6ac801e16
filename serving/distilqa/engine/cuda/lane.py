"""Runs of a packed model on a GPU in memory that is there from the start: no run allocates any, or waits for another.

What a run is fed is packed where the GPU fetches it, and uploaded as a whole while other lanes' runs go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distilqa.engine.cuda.runtime import Runtime
from distilqa.engine.packed import LOGITS, TOKEN_OFFSET, Packed
from distilqa.engine.runtime import import_onnxruntime
from distilqa.text.arrays import Int32, Int64, Logits

if TYPE_CHECKING:
    import onnxruntime

# Where the memory of runs is, as ONNX Runtime names it.
DEVICE = "cuda"

# Int32 numbers from the begin of an array to where the next may begin: 256 bytes, as far apart as CUDA's own.
_STRIDE = 64


class Lane:
    """One run of a session at a time, of up to ``tokens`` in up to ``windows``, each of up to ``longest`` tokens.

    Raises RuntimeError, or one of ONNX Runtime's own kinds, where there is no memory for them.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, runtime: Runtime, *, tokens: int, windows: int, longest: int
    ) -> None:
        self._session, self._binding, self._runtime = session, session.io_binding(), runtime
        self._inputs = [node.name for node in session.get_inputs()]
        self._tokens, self._windows, self._longest = tokens, windows, longest
        room = (len(self._inputs) - 2) * _strides(tokens) + _strides(windows + 1)
        self._fed, self._given = runtime.pinned(room), runtime.pinned(2 * tokens).view(np.float32)
        # Of the table the kernels want to know the shape alone: it is never written.
        self._fed_there, self._table, self._given_there = map(_on_device, (room, windows * longest, 2 * tokens))
        self._stream = runtime.stream()
        self._taken = 0

    def run(
        self, windows: Sequence[Int64], *, longest: int | None = None, options: onnxruntime.RunOptions | None = None
    ) -> list[Logits]:
        """Run windows, each (length,) int64, and return (start, end) logits, each (length,) float32.

        ``longest`` is what the kernels are told of the longest window, if not its length. Raises ValueError if they
        are more than there is room for, or one is empty, RuntimeError or one of ONNX Runtime's kinds if CUDA fails.
        """
        self._check(windows)
        self._taken = 0
        packed = Packed.of(windows, self._take)
        feeds = packed.feeds(self._inputs, self._take)
        # ONNX Runtime waits for no copy of others, so all must be there before it begins.
        self._copy(self._fed_there.data_ptr(), self._fed.ctypes.data, self._fed.itemsize * self._taken)
        moved = self._fed_there.data_ptr() - self._fed.ctypes.data
        for name, array in feeds.items():
            self._bind_input(name, array.shape, array.ctypes.data + moved)
        count, own_longest = packed.table
        self._bind_input(TOKEN_OFFSET, (count, longest or own_longest), self._table.data_ptr())
        shape = packed.input_ids.size, 2
        self._binding.bind_output(LOGITS, DEVICE, 0, np.float32, shape, self._given_there.data_ptr())
        self._session.run_with_iobinding(self._binding, options)
        return packed.unpack(self._download(shape))

    def _download(self, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        """A copy: the next run has its own in the same place."""
        given = self._given[: shape[0] * shape[1]].reshape(shape)
        self._copy(given.ctypes.data, self._given_there.data_ptr(), given.nbytes)
        return given.copy()

    def _copy(self, to: int, source: int, size: int) -> None:
        self._runtime.copy(to, source, size, self._stream)

    def _check(self, windows: Sequence[Int64]) -> None:
        tokens, longest = sum(map(len, windows)), max(map(len, windows), default=0)
        if tokens > self._tokens or len(windows) > self._windows or longest > self._longest:
            raise ValueError(
                f"{tokens} tokens in {len(windows)} windows of up to {longest} have no room: it is for {self._tokens}"
                f" in {self._windows} of up to {self._longest}"
            )

    def _take(self, count: int) -> Int32:
        """The next part of what will be uploaded; where it is depends on what was taken before alone."""
        begin = self._taken
        self._taken += _strides(count)
        return self._fed[begin : begin + count]

    def _bind_input(self, name: str, shape: Sequence[int], address: int) -> None:
        self._binding.bind_input(name, DEVICE, 0, np.int32, shape, address)


def _strides(count: int) -> int:
    return -(-count // _STRIDE) * _STRIDE


def _on_device(count: int) -> Any:
    """Memory for so many numbers of 4 bytes."""
    return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type([count], np.int32, DEVICE, 0)
