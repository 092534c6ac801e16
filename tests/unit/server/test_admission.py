"""Permits: how many are given out, what who is refused gets told, and that all come back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from distilqa.errors import Overloaded, Unavailable
from distilqa.scheduling.refusal import refusal
from distilqa.server.admission import Counts, Permits

# After this long something hangs that must not, and the test fails. Nothing that works waits for it.
GUARD_S = 20.0


def permits(*, max_requests: int = 3, max_bytes: int = 1000, wait_s: float = 2.5) -> Permits:
    return Permits(max_requests=max_requests, max_bytes=max_bytes, wait_s=lambda: wait_s)


@pytest.mark.parametrize(("max_requests", "max_bytes", "limit"), [(3, 1000, "max_requests"), (1000, 30, "max_bytes")])
def test_bounded_by_count_and_by_bytes(max_requests: int, max_bytes: int, limit: str) -> None:
    some = permits(max_requests=max_requests, max_bytes=max_bytes)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(some.hold(10))
        with pytest.raises(Overloaded) as caught, some.hold(1):
            pytest.fail("the block must not run")
        assert (caught.value.limit, caught.value.retry_after_s) == (limit, 2.5)
        assert f"({limit}); try again in 2.5 s" in str(caught.value)
        assert (some.requests, some.bytes) == (3, 30)
    assert (some.requests, some.bytes) == (0, 0)


def test_nobody_is_told_to_come_back_at_once() -> None:
    assert refusal("max_requests", "many", 0.0).retry_after_s == 0.1


def test_one_that_leaves_makes_room() -> None:
    some = permits(max_requests=2, max_bytes=20)
    with some.hold(15):
        with some.hold(5):
            assert (some.requests, some.bytes) == (2, 20)
        with some.hold(4):
            assert (some.requests, some.bytes) == (2, 19)


def test_one_that_is_too_large_is_never_let_in() -> None:
    with pytest.raises(Overloaded), permits(max_bytes=20).hold(21):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("error", [RuntimeError, Overloaded, asyncio.CancelledError])
def test_released_on_errors(error: type[BaseException]) -> None:
    some = permits(max_requests=1, max_bytes=10)
    for _ in range(3):
        with pytest.raises(error), some.hold(10):
            raise error("broken")
    assert (some.requests, some.bytes) == (0, 0)


def test_streams_are_bounded_by_themselves() -> None:
    some = permits(max_requests=1)
    for _ in range(2):
        with some.hold_stream(), some.hold(1), pytest.raises(Overloaded, match="1 streams are"), some.hold_stream():
            pytest.fail("the block must not run")


async def test_drain_waits_for_those_held() -> None:
    some = permits()
    with some.hold(1):
        with some.hold(1):
            draining = asyncio.create_task(some.drain())
            await asyncio.sleep(0)
            with pytest.raises(Unavailable), some.hold(1):
                pytest.fail("the block must not run")
            with pytest.raises(Unavailable), some.hold_stream():
                pytest.fail("the block must not run")
        await asyncio.sleep(0)
        assert not draining.done()
    await asyncio.wait_for(draining, GUARD_S)


async def test_drain_when_idle() -> None:
    some = permits()
    with some.hold(1):
        pass
    for _ in range(2):
        await asyncio.wait_for(some.drain(), GUARD_S)
    with pytest.raises(Unavailable), some.hold(1):
        pytest.fail("the block must not run")


def shared(processes: int = 2, **limits: int) -> list[Permits]:
    """The permits of several processes, over the memory of one file."""
    memory = os.memfd_create("counts")
    os.truncate(memory, processes * Counts.BYTES)
    return [
        Permits(
            max_requests=limits.get("max_requests", 3), max_bytes=limits.get("max_bytes", 1000), wait_s=lambda: 2.5,
            counts=Counts(processes, own, memory),
        )
        for own in range(processes)
    ]  # fmt: skip


@pytest.mark.parametrize("limits", [{"max_requests": 2}, {"max_bytes": 20}])
def test_limits_are_those_of_all_processes_together(limits: dict[str, int]) -> None:
    one, other = shared(**limits)
    with one.hold(10), other.hold(10):
        for permits in (one, other):
            assert (permits.requests, permits.bytes) == (2, 20)
            with pytest.raises(Overloaded, match=r"2 requests are in flight|requests of 20 bytes"), permits.hold(1):
                pytest.fail("the block must not run")
    assert (one.requests, other.bytes) == (0, 0)
    with one.hold_stream(), other.hold_stream():
        assert one.streams == 2


async def test_each_process_waits_for_its_own() -> None:
    one, other = shared()
    with other.hold(1):
        await asyncio.wait_for(one.drain(), GUARD_S)


def test_processes_that_take_at_once_never_go_beyond_a_limit() -> None:
    """Real ones, which take and leave as fast as they can, and look whether the other is inside as well."""
    memory = os.memfd_create("counts")
    os.truncate(memory, 3 * Counts.BYTES)
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(memory), str(own)], pass_fds=[memory], stdout=subprocess.PIPE
        )
        for own in range(2)
    ]
    assert [taker.communicate(timeout=60)[0] for taker in takers] == [b"0\n", b"0\n"]
    assert not Counts(3, 0, memory).all.any()


TAKER = """
import sys
from distilqa.server.admission import Counts, Permits
from distilqa.errors import Overloaded

memory, own = map(int, sys.argv[1:])
counts = Counts(3, own, memory)
inside, counts.all = counts.all[2], counts.all[:2]
permits = Permits(max_requests=1, max_bytes=100, wait_s=float, counts=counts)
taken = both = 0
while taken < 3000:
    try:
        with permits.hold(1):
            taken += 1
            inside[own] = 1
            both += int(inside[1 - own])
            inside[own] = 0
    except Overloaded:
        pass
print(both)
"""
