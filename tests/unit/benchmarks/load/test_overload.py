"""What `benchmarks.load` makes of an overload."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from benchmarks.load.__main__ import attributes
from benchmarks.load.generator import Load
from benchmarks.load.overload import Overload, bound_s, report, targets
from benchmarks.reporting.tables import Target


def load(answered: int, refused: int, in_time: int, **others: int) -> Load:
    ends = Counter({"OK": answered, "RESOURCE_EXHAUSTED": refused, **others})
    latencies = [number / 100 for number in range(answered, 0, -1)]
    return Load(
        seconds=10.0,
        all_s=12.0,
        calls=ends.total(),
        due=ends.total(),
        in_time=in_time,
        ends=ends,
        latencies_s=latencies,
        windows=[1] * answered,
        server_cpu_s=20.0,
        generator_cpu_s=1.0,
    )


def overload(peak: Load, over: Load, ended: dict[str, int] | None = None, bound_s: float = 1.0) -> Overload:
    return Overload(peak, over, bound_s, ended or {}, most_mb=300.0)


def test_all_that_was_measured_is_in_the_json() -> None:
    found = overload(load(3, 2, 1), load(1, 0, 0), {"OK": 4})
    stored = json.loads(json.dumps({"overload": found}, default=attributes))["overload"]
    assert stored["server_ended"] == {"OK": 4}
    assert stored["peak"]["ends"] == {"OK": 3, "RESOURCE_EXHAUSTED": 2}
    assert stored["peak"]["latencies_s"] == [0.03, 0.02, 0.01]


@pytest.mark.parametrize(
    ("ended", "miscounted"),
    [
        ({"OK": 180, "RESOURCE_EXHAUSTED max_requests": 290, "RESOURCE_EXHAUSTED deadline": 10}, 0),
        ({"OK": 181, "RESOURCE_EXHAUSTED max_requests": 300}, 1),
        ({"OK": 180, "RESOURCE_EXHAUSTED max_requests": 299, "CANCELLED": 1}, 2),
        ({}, 480),
    ],
)
def test_both_sides_must_count_alike(ended: dict[str, int], miscounted: int) -> None:
    found = overload(load(100, 0, 90), load(80, 300, 75), ended)
    assert found.miscounted == miscounted
    told = "NO" if miscounted else "yes"
    assert f"| calls whose end the server counted differently | {miscounted} | 0 | {told} |" in report(found)


def test_a_load_that_meets_nothing_says_so() -> None:
    found = overload(load(100, 0, 90), load(80, 300, 75, UNAVAILABLE=1), bound_s=0.04)
    rate, p99, others, _ = targets(found)
    measure = "answers a second at 5 times the peak's calls"
    assert rate == Target(measure, "0.83 of the peak's", "at least 0.85", False, timed=True)
    measure = "p99 of accepted calls at 5 times the peak, for each window of the call"
    assert p99 == Target(measure, "0.80 s", "at most 0.04 s", False, timed=True)
    assert others == Target("calls neither answered nor refused", "1", "0", False)


def test_rates_are_of_the_seconds_that_count() -> None:
    row = next(line for line in report(overload(load(100, 0, 90), load(80, 300, 75))).splitlines() if "5 times" in line)
    assert row.startswith("| 5 times | 38.0 | 7.5 |")


def test_a_request_of_two_windows_may_wait_for_two_turns() -> None:
    over = load(80, 300, 75)
    over.windows[0] = 2  # of the slowest, which took 0.8 s
    _, p99, *_ = targets(overload(load(100, 0, 90), over, bound_s=0.795))
    assert (p99.found, p99.met) == ("0.79 s", True)


def test_the_bound_is_a_queue_of_the_longest_runs() -> None:
    assert bound_s([1.0] * 6 + [0.1] * 1000, most=6, cores=2) == 3.0
    assert bound_s([1.0], most=6, cores=1) == 1.0
