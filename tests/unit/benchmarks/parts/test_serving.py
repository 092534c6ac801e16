"""The search for the highest rate."""

from __future__ import annotations

import math

import pytest
from benchmarks.parts.serving import highest_step


@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_the_highest_step_within_the_bound_is_found_in_few_tries(steps: int) -> None:
    for highest in range(steps + 1):
        tried: list[int] = []

        def latency_s(step: int, highest: int = highest, tried: list[int] = tried) -> float:
            tried.append(step)
            return 0.1 if step <= highest else math.inf

        assert highest_step(latency_s, steps, 0.1) == highest
        assert len(tried) == len(set(tried)) <= math.ceil(math.log2(steps + 1))
        assert all(1 <= step <= steps for step in tried)
