"""The order in which windows get their runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilqa.scheduling.queue import LOOK_AHEAD, Entry, Job, Queue, WindowResult

NOBODY = cast("asyncio.Future[list[WindowResult]]", None)


def job(*lengths: int) -> Job:
    return Job([np.zeros(length, np.int64) for length in lengths], None, 0.0, NOBODY)


def taken(queue: Queue, jobs: Sequence[Job]) -> list[tuple[int, int]]:
    """All that wait, in order: which job, and which of its windows."""
    entries = iter(queue.take, None)
    return [(jobs.index(entry.job), entry.number) for entry in cast("list[Entry]", list(entries))]


def filled(*jobs: Job) -> Queue:
    queue = Queue()
    for one in jobs:
        queue.put(one)
    return queue


def test_requests_of_one_window_run_as_they_came() -> None:
    jobs = [job(100) for _ in range(5)]
    assert taken(filled(*jobs), jobs) == [(n, 0) for n in range(5)]


def test_requests_take_turns() -> None:
    jobs = [job(9, 9, 9, 9), job(9), job(9, 9)]
    assert taken(filled(*jobs), jobs) == [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (0, 3)]


def test_a_sentence_goes_before_the_rest_of_a_book() -> None:
    book, sentence = job(*[384] * 200), job(20)
    queue = filled(book)
    for number in range(3):
        assert queue.take() == Entry(book, number)
    queue.put(sentence)
    assert queue.take() == Entry(book, 3)
    assert queue.take() == Entry(sentence, 0)
    assert queue.take() == Entry(book, 4)
    assert (queue.windows, queue.tokens) == (195, 195 * 384)


def test_a_run_takes_what_fits_and_passes_nobody_over() -> None:
    jobs = [job(50, 30), job(200), job(10)]
    queue = filled(*jobs)
    assert queue.take_within(49) is None
    assert queue.take_within(50) == Entry(jobs[0], 0)
    assert queue.take_within(199) is None, "the sentence waits for its turn, though it would fit"
    assert queue.take_within(200) == Entry(jobs[1], 0)
    assert (queue.windows, queue.tokens) == (2, 40)
    assert taken(queue, jobs) == [(2, 0), (0, 1)]
    assert queue.take_within(1000) is None


def test_equals_are_taken_in_turn_and_leave_the_others_their_turn() -> None:
    jobs = [job(50, 30), job(30, 40, 30), job(40)]
    queue = filled(*jobs)
    assert queue.take_equals(30, 2) == [Entry(jobs[0], 1), Entry(jobs[1], 0)]
    assert queue.windows == 4
    assert taken(queue, jobs) == [(0, 0), (1, 1), (2, 0), (1, 2)]
    assert queue.take_equals(30, 2) == []


def test_equals_are_not_looked_for_without_end() -> None:
    queue = filled(*(job(40) for _ in range(LOOK_AHEAD)), job(30))
    assert queue.take_equals(30, 1) == []
    queue.take()
    assert len(queue.take_equals(30, 1)) == 1


def test_removed_jobs_leave_nothing() -> None:
    jobs = [job(9, 9), job(9), job(9, 9)]
    queue = filled(*jobs)
    queue.take()
    queue.remove(jobs[0])
    queue.remove(jobs[2])
    queue.remove(jobs[2])
    assert queue.windows == 1
    assert taken(queue, jobs) == [(1, 0)]
    queue.remove(jobs[1])
    assert (queue.windows, queue.tokens, queue.take()) == (0, 0, None)


def test_a_job_without_windows_does_not_wait() -> None:
    assert filled(job()).take() is None


@pytest.mark.parametrize(("windows", "tokens"), [(1, 111), (2, 331), (4, 1331), (9, 1331)])
def test_tokens_ahead(windows: int, tokens: int) -> None:
    """Of as many windows of each other job as this one has, or of all it has."""
    assert filled(job(100, 200), job(10, 20, 400, 600), job(1)).tokens_ahead(windows) == tokens


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=30))
def test_no_window_waits_without_bound(arrivals: list[tuple[int, int]]) -> None:
    """The k-th window of a job begins after at most k runs of each job that waits at the same time, whoever comes."""
    queue, run = Queue(), 0
    waiting: dict[Job, int] = {}
    arrived: dict[Job, int] = {}
    most: dict[Job, int] = {}  # that waited at once while this one did
    arrivals = list(arrivals)
    while arrivals or waiting:
        if arrivals and (not waiting or arrivals[0][1] == 0):
            windows, _ = arrivals.pop(0)
            one = job(*[9] * windows)
            queue.put(one)
            waiting[one], arrived[one] = windows, run
            most |= {job: max(most.get(job, 0), len(waiting)) for job in waiting}
            continue
        entry = queue.take()
        assert entry is not None
        assert run - arrived[entry.job] < (entry.number + 1) * most[entry.job]
        run += 1
        waiting[entry.job] -= 1
        if not waiting[entry.job]:
            del waiting[entry.job]
        if arrivals:
            arrivals[0] = (arrivals[0][0], max(0, arrivals[0][1] - 1))
    assert queue.windows == 0
