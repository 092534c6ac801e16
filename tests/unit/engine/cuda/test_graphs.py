"""Buckets: what fits, and that whoever is in one is not aware of the padding."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilqa.engine.cuda.graphs import Bucket, Graphs
from distilqa.engine.cuda.lane import Lane


@given(st.integers(2, 2000), st.integers(2, 512), st.lists(st.integers(1, 512), max_size=40))
def test_a_filled_bucket_has_its_shape(tokens: int, window_tokens: int, lengths: list[int]) -> None:
    """Exactly so many tokens, in exactly so many windows, none empty and none too long for the model."""
    bucket = Bucket.of(tokens, window_tokens)
    windows = [np.full(min(length, bucket.longest), 7) for length in lengths]
    if bucket.takes(sum(map(len, windows)), len(windows)):
        filled = bucket.fill(windows)
        assert [each is window for each, window in zip(filled, windows, strict=False)] == [True] * len(windows)
        assert (sum(map(len, filled)), len(filled)) == (bucket.tokens, bucket.windows)
        assert 1 <= min(map(len, filled)) <= max(map(len, filled)) <= bucket.longest <= window_tokens


@given(st.integers(2, 2000), st.integers(2, 512))
def test_every_bucket_takes_the_least_run(tokens: int, window_tokens: int) -> None:
    assert Bucket.of(tokens, window_tokens).takes(1, 1)


@pytest.mark.parametrize(
    ("tokens", "windows", "takes"),
    [(252, 1, True), (253, 1, False), (255, 4, True), (256, 4, False), (200, 5, False), (0, 0, False), (4, 4, True)],
)
def test_what_fits(tokens: int, windows: int, takes: bool) -> None:
    """256 tokens in 5 windows: there is always one of padding at least."""
    assert Bucket.of(256, 384) == Bucket(256, 5, 256)
    assert Bucket.of(256, 384).takes(tokens, windows) is takes


def test_padding_is_no_longer_than_a_window() -> None:
    assert Bucket.of(512, 384) == Bucket(512, 9, 384)
    assert Bucket.of(512, 384).takes(128, 8)
    assert not Bucket.of(512, 384).takes(127, 8)


def test_all_is_run_on_one_thread_with_the_graph_of_the_bucket() -> None:
    threads, runs = set(), []

    class Noted(Lane):
        def __init__(self) -> None:
            pass

        def run(self, windows: Any, *, longest: Any = None, options: Any = None) -> Any:
            threads.add(threading.get_ident())
            runs.append((longest, options.get_run_config_entry("gpu_graph_id")))
            return [(window, window) for window in windows]

    graphs, window = Graphs(Noted()), np.array([7, 8])
    for tokens in (128, 256, 128):
        [(start, _)] = graphs.run(Bucket.of(tokens, 200), [window])
        assert start.tolist() == [7, 8]
    assert runs == [(128, "1"), (200, "2"), (128, "1")]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
