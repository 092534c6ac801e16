"""How many tokens a run may have, and what a device of a given cost then does to those who wait for it."""

from __future__ import annotations

import asyncio
from typing import cast

import numpy as np
import pytest

from distilqa.engine.cuda.budget import choose_budget
from distilqa.scheduling.queue import Job, Queue, WindowResult

NOBODY = cast("asyncio.Future[list[WindowResult]]", None)


def device(tokens: int) -> float:
    """Seconds of a run: 0.4 ms for the launches, then 135 ns a token once there are enough of them to fill it."""
    return max(0.4e-3, 0.1e-3 + 135e-9 * tokens)


COST_S = {tokens: device(tokens) for tokens in (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)}


@pytest.mark.parametrize(
    ("objective_s", "budget"),
    [
        (1.0, 32768),  # twice as many would gain less than 3 %
        (10e-3, 16384),
        (8e-3, 16384),
        (3e-3, 8192),
        (1e-3, 2048),
        (0.9e-3, 2048),
        (1e-6, 128),  # which is never in time
    ],
)
def test_a_run_is_as_large_as_pays_and_is_in_time(objective_s: float, budget: int) -> None:
    assert choose_budget(COST_S, objective_s=objective_s) == budget


def test_a_cost_that_only_grows_makes_runs_small() -> None:
    assert choose_budget({100: 1.0, 200: 2.0, 400: 4.0}, objective_s=100) == 100


@pytest.mark.parametrize("objective_s", [2e-3, 5e-3, 20e-3])
def test_at_nine_tenths_of_its_rate_a_device_answers_in_time(objective_s: float) -> None:
    """Windows of SQuAD's lengths arrive at random, and each run takes those that wait, up to the budget."""
    budget = choose_budget(COST_S, objective_s=objective_s)
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(5.05, 0.4, 20_000).astype(int), 20, 384)
    rate = 0.9 * budget / device(budget) / lengths.mean()
    arrivals = np.sort(chance.uniform(0, len(lengths) / rate, len(lengths)))
    waited, sizes = simulate(arrivals, lengths, budget)
    assert max(sizes) <= budget
    assert np.percentile(waited, 99) <= objective_s


def simulate(arrivals: np.ndarray, lengths: np.ndarray, budget: int) -> tuple[list[float], list[int]]:
    """How long each window took from its arrival on, and how many tokens each run had."""
    queue, clock, next_one = Queue(), 0.0, 0
    waited: list[float] = []
    sizes: list[int] = []
    while len(waited) < len(arrivals):
        if not queue.windows:
            clock = max(clock, arrivals[next_one])
        while next_one < len(arrivals) and arrivals[next_one] <= clock:
            window = np.broadcast_to(np.int64(0), lengths[next_one])
            queue.put(Job([window], None, arrivals[next_one], NOBODY))
            next_one += 1
        size, run = 0, []
        while entry := queue.take_within(budget - size):
            run.append(entry.job.queued)
            size += len(entry.input_ids)
        clock += device(size)
        sizes.append(size)
        waited += [clock - queued for queued in run]
    return waited, sizes
