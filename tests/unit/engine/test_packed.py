"""Packing windows of any lengths into a run, and taking its logits apart again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilqa.engine.packed import Packed


def test_windows_stand_one_after_another() -> None:
    packed = Packed.of([np.array([101, 7, 102]), np.array([101, 8, 9, 9, 102]), np.array([5])])
    assert packed.input_ids.tolist() == [[101, 7, 102, 101, 8, 9, 9, 102, 5]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0]]
    assert packed.cumulative_lengths.tolist() == [0, 3, 8, 9]
    assert packed.longest == 5
    assert {array.dtype for array in (packed.input_ids, packed.position_ids, packed.cumulative_lengths)} == {
        np.dtype(np.int32)
    }


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_what_was_packed_comes_apart_again(lengths: list[int]) -> None:
    """Each window's logits are those of its own tokens, told by their ids and places."""
    windows = [np.arange(length) + 100 * number for number, length in enumerate(lengths)]
    packed = Packed.of(windows)
    logits = np.stack([packed.input_ids[0], packed.position_ids[0]], axis=1).astype(np.float32)
    for window, (start, end) in zip(windows, packed.unpack(logits), strict=True):
        assert start.tolist() == window.tolist()
        assert end.tolist() == list(range(len(window)))


def test_segments_are_those_of_each_window_alone() -> None:
    windows = [np.array([1, 5, 2, 6, 6, 2]), np.array([1, 2, 2]), np.array([1, 3, 3, 2, 4, 2])]
    assert Packed.of(windows).token_type_ids().tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("windows", [[], [np.array([], np.int64)], [np.array([1]), np.array([], np.int64)]])
def test_there_is_no_empty_window(windows: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        Packed.of(windows)
