"""Rounds, ratios, and what becomes of a system that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.racing.child import SystemFailed
from benchmarks.racing.race import race, ratio, seconds, turn_runs
from benchmarks.racing.worker import Shape, System, Worker

SHAPES = [Shape(1, 16), Shape(2, 512)]


class _Stub:
    """In place of a worker: takes as many seconds as its path says, or fails."""

    ran: list[tuple[str, int, int]]

    def __init__(self, system: System, threads: int) -> None:
        self.name = system.path.name

    def __enter__(self) -> _Stub:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, shape: Shape, seed: int, runs: int) -> list[float]:
        if self.name == "broken" and shape.tokens > 100:
            raise SystemFailed("too long for it")
        if self.name == "4" and shape.tokens > 100 and seed == 1:
            raise SystemFailed("tired")
        self.ran.append((self.name, seed, runs))
        return [float(self.name)] * runs

    def resident_mb(self) -> float:
        return 5.0


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> type[_Stub]:
    _Stub.ran = []
    monkeypatch.setattr("benchmarks.racing.race.Worker", _Stub)
    return _Stub


def systems(*names: str) -> dict[str, System]:
    return {name: System("bundled", Path(name)) for name in names}


def test_each_system_runs_each_shape_in_each_round() -> None:
    found = race("test", systems("1", "2"), SHAPES, threads=1, rounds=3)
    assert found["samples_s"] == {
        "1x16": {"1": [[1.0] * 5] * 3, "2": [[2.0] * 5] * 3},
        "2x512": {"1": [[1.0]] * 3, "2": [[2.0]] * 3},
    }
    assert found["resident_mb"] == {"1": 5.0, "2": 5.0}


def test_rounds_are_interleaved_and_their_order_changes(stub: type[_Stub]) -> None:
    race("test", systems("1", "2", "3"), SHAPES[:1], threads=1, rounds=15)
    turns = [(name, seed) for name, seed, runs in stub.ran if runs]
    assert [seed for _, seed in turns] == [number for number in range(15) for _ in range(3)]
    orders = {tuple(name for name, seed in turns if seed == number) for number in range(15)}
    assert all(sorted(order) == ["1", "2", "3"] for order in orders)
    assert len(orders) > 1


def test_what_fails_is_left_out_only_where_it_may_be() -> None:
    found = race("test", systems("1", "broken"), SHAPES[1:], threads=1, rounds=1, may_fail=True)
    assert found["left_out"] == {"broken": "too long for it"}
    assert list(found["samples_s"]["2x512"]) == ["1"]
    with pytest.raises(SystemFailed, match="too long"):
        race("test", systems("1", "broken"), SHAPES[1:], threads=1, rounds=1)


def test_what_fails_in_a_round_is_left_out_from_there_on() -> None:
    found = race("test", systems("1", "4"), SHAPES, threads=1, rounds=3, may_fail=True)
    assert found["left_out"] == {"4": "from 2x512 on: tired"}
    assert {shape: list(samples) for shape, samples in found["samples_s"].items()} == {
        "1x16": ["1", "4"],
        "2x512": ["1"],
    }
    with pytest.raises(SystemFailed, match="tired"):
        race("test", systems("1", "4"), SHAPES, threads=1, rounds=3)


def test_systems_may_be_opened_together() -> None:
    found = race("test", systems("1", "broken", "2"), SHAPES[1:], threads=1, rounds=1, may_fail=True, together=True)
    assert list(found["samples_s"]["2x512"]) == ["1", "2"]
    assert found["left_out"] == {"broken": "too long for it"}


@pytest.mark.parametrize(
    ("shape", "runs"), [(Shape(1, 8), 5), (Shape(1, 64), 4), (Shape(8, 32), 1), (Shape(1, 512), 1)]
)
def test_short_runs_are_made_more_often(shape: Shape, runs: int) -> None:
    assert turn_runs(shape) == runs


def test_a_round_counts_by_the_median_of_its_runs() -> None:
    assert seconds([[1.0, 9.0, 2.0], [4.0]]) == [2.0, 4.0]


def test_the_ratio_is_the_median_of_the_rounds_with_the_middle_half() -> None:
    own, others = [[1.0]] * 5, [[5.0], [1.0], [4.0], [2.0], [3.0]]
    assert ratio(own, others) == {"low": 2.0, "median": 3.0, "high": 4.0}
    # a slow spell that meets both changes nothing
    assert ratio([[1.0], [10.0]], [[2.0], [20.0]]) == {"low": 2.0, "median": 2.0, "high": 2.0}


def test_only_rounds_of_both_are_compared() -> None:
    with pytest.raises(ValueError):
        ratio([[1.0]], [[1.0], [2.0]])


def test_a_shape_names_itself() -> None:
    shapes = [Shape(1, 16), Shape(8, 64), Shape(1, 128, 2), Shape(96, 170, 2, 8)]
    assert [str(shape) for shape in shapes] == ["1x16", "8x64", "1x128, 2 at once", "96x170, 2 at once, 8 each"]
    assert [Shape.parse(str(shape)) for shape in shapes] == shapes


@pytest.mark.parametrize("kind", ["bundled", "pytorch", "openvino", "packed"])
def test_a_system_that_cannot_be_opened_says_why(kind: str, tmp_path: Path) -> None:
    missing: Any = tmp_path / "missing"
    with pytest.raises(SystemFailed, match=f"{kind} ended: .*missing"), Worker(System(kind, missing), threads=1):
        pass
