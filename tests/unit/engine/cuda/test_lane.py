"""A run in memory that others had before, with a model that shows what it was fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from distilqa.engine.cuda.lane import Lane
from distilqa.engine.cuda.runtime import Runtime
from distilqa.engine.session import open_session

# Logits are ids, and the places in the window + 1000 * the segment + 10,000 * the longest window as the table has it.
SHOWS = """
<ir_version: 10, opset_import: ["": 17]>
shows (int32[1, tokens] input_ids, int32[1, tokens] position_ids, int32[1, tokens] token_type_ids,
       int32[ends] cumulative_lengths, int32[windows, longest] token_offset) => (float[tokens, 2] logits)
<int32[1] thousand = {1000}, int32[1] ten_thousand = {10000}>
{
    shape = Shape <start = 1> (token_offset)
    longest_window = Cast <to = 6> (shape)
    most = Mul (longest_window, ten_thousand)
    far = Mul (token_type_ids, thousand)
    place = Add (position_ids, far)
    all = Add (place, most)
    both = Concat <axis = 0> (input_ids, all)
    numbers = Cast <to = 1> (both)
    logits = Transpose (numbers)
}
"""


@pytest.fixture
def lane(cpu_as_gpu: Runtime, tmp_path: Path) -> Lane:
    onnx.save(onnx.parser.parse_model(SHOWS), tmp_path / "shows.onnx")
    session = open_session(tmp_path / "shows.onnx", threads=1)
    return Lane(session, cpu_as_gpu, tokens=100, windows=3, longest=60)


def test_a_run_is_fed_what_it_is_given(lane: Lane) -> None:
    [(start, end), (other_start, other_end)] = lane.run([np.array([101, 7, 102, 8, 102]), np.array([101, 102])])
    assert start.tolist() == [101, 7, 102, 8, 102]
    assert end.tolist() == [50_000, 50_001, 50_002, 51_003, 51_004]
    assert other_start.tolist() == [101, 102]
    assert other_end.tolist() == [50_000, 50_001]


def test_what_it_gave_outlives_the_next_run(lane: Lane) -> None:
    [(start, _)] = lane.run([np.arange(1, 41)])
    [(other, _)] = lane.run([np.full(60, 9)])
    assert start.tolist() == list(range(1, 41))
    assert other.tolist() == [9] * 60


def test_the_table_may_be_for_longer_windows(lane: Lane) -> None:
    [(_, end)] = lane.run([np.array([5])], longest=60)
    assert end.tolist() == [600_000]


def test_one_upload_and_one_download_make_a_run(lane: Lane, memory: Any) -> None:
    """Of what it needs alone, from one boundary of 256 bytes to the next: the lengths, then three for the tokens."""
    lane.run([np.full(30, 9), np.full(40, 9)])
    assert memory.copied == [256 + 3 * 512, 70 * 2 * 4]


@pytest.mark.parametrize("lengths", [[60, 41], [1, 1, 1, 1], [61]])
def test_what_it_has_no_room_for_is_refused(lengths: list[int], lane: Lane) -> None:
    with pytest.raises(ValueError, match=r"have no room: it is for 100 in 3 of up to 60"):
        lane.run([np.ones(length, np.int64) for length in lengths])
    assert lane.run([np.ones(60, np.int64), np.ones(39, np.int64), np.ones(1, np.int64)])


def test_a_copy_that_fails_fails_the_run(lane: Lane, cpu_as_gpu: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_as_gpu._library, "cudaStreamSynchronize", lambda stream: 700)
    with pytest.raises(RuntimeError, match="cudaStreamSynchronize: an illegal memory access"):
        lane.run([np.ones(3, np.int64)])
