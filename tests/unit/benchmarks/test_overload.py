"""What `benchmarks.load` makes of an overload."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from benchmarks.load.__main__ import attributes
from benchmarks.load.generator import Load
from benchmarks.load.overload import Overload, report

from distilqa.settings import ServerSettings


def load(answered: int, refused: int, in_time: int, **others: int) -> Load:
    ends = Counter({"OK": answered, "RESOURCE_EXHAUSTED": refused, **others})
    latencies = [number / 100 for number in range(answered, 0, -1)]
    return Load(10.0, 12.0, ends.total(), in_time, ends, latencies, [0.5] * answered, 20.0, 1.0)


def test_all_that_was_measured_is_in_the_json() -> None:
    found = Overload(load(3, 2, 1), load(1, 0, 0), {"OK": 4})
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
    found = Overload(load(100, 0, 90), load(80, 300, 75), ended)
    assert found.miscounted == miscounted
    assert f"| calls that the server counts otherwise | {miscounted} | 0 | {'NO' if miscounted else 'yes'} |" in report(
        found
    )


def test_a_load_that_meets_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.overload.usable_cores", lambda: 1000)
    found = Overload(load(100, 0, 90), load(80, 300, 75, UNAVAILABLE=1), {})
    goodput, p99, others, _ = report(found).splitlines()[-4:]
    assert goodput == "| goodput at 5 times the peak's | 0.83 of peak | at least 0.85 | NO |"
    assert p99 == "| p99 of accepted calls | 0.80 s | at most 0.04 s | NO |"
    assert others == "| calls neither answered nor refused | 1 | 0 | NO |"


def test_the_bound_is_a_queue_of_the_longest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.overload.usable_cores", lambda: 2)
    most = ServerSettings.model_fields["max_requests"].default
    over = load(most, 0, 0)
    over.runs_s = [1.0] * most + [0.1] * 1000
    assert Overload(over, over, {}).bound_s == most / 2
