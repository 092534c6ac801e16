"""Loads on an absolute schedule, and the quantiles of what comes of them."""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from benchmarks.load.generator import Load, asked, closed, open_loop, poisson, serialize_streams, streaming
from benchmarks.load.processes import ServerFailed

from distilqa_protos.v1 import question_answering_pb2 as pb


def load(answered: int, refused: int = 0) -> Load:
    latencies = [number / 100 for number in range(answered, 0, -1)]
    ends = Counter({"OK": answered, "RESOURCE_EXHAUSTED": refused})
    return Load(10.0, due=answered + refused, ends=ends, latencies_s=latencies)


def test_quantiles_are_those_of_sorted_latencies() -> None:
    assert [load(100).quantile_s(share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.01, 0.51, 1.0, 1.0]


def test_calls_that_failed_count_as_endless_where_asked() -> None:
    assert load(98, refused=2).quantile_s(0.99) == 0.98
    assert load(98, refused=2).quantile_s(0.99, failed=True) == math.inf
    assert load(99, refused=1).quantile_s(0.98, failed=True) == 0.99
    assert Load(1.0).quantile_s(0.5) == math.inf


def test_a_load_survives_json() -> None:
    one = load(3, refused=2)
    assert Load.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_calls_are_due_at_random_and_as_often_as_asked() -> None:
    due = poisson(50, 200, seed=1)
    assert due == poisson(50, 200, seed=1)
    assert due == sorted(due)
    assert due[-1] < 200
    assert len(due) == 50 * 200
    gaps = [after - before for before, after in pairwise(due)]
    # 10,000 gaps of an exponential distribution: mean and deviation are both 1/50
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.05)


async def _answered(request: bytes, **options: float) -> pb.AnswerResponse:
    return pb.AnswerResponse(timings=pb.Timings(inference_seconds=0.5, windows=2))


async def test_latency_counts_from_the_time_a_call_was_due() -> None:
    """The loop is held up at the first call, and those that were due meanwhile waited for it."""
    held_s, asked = 0.5, 0

    async def method(request: bytes, **options: float) -> pb.AnswerResponse:
        nonlocal asked
        asked += 1
        if asked == 1:
            time.sleep(held_s)  # noqa: ASYNC251
        return await _answered(request)

    found = await open_loop(method, os.getpid(), [b""], seconds=held_s, rate=200, seed=0)
    assert found.ends == {"OK": asked}
    assert asked == 200 * held_s * 1.25
    assert found.due == 200 * held_s
    assert found.due_per_s == 200
    assert max(found.latencies_s) > held_s / 2
    assert found.runs_s == [0.5] * asked
    assert found.windows == [2] * len(found.latencies_s)


async def test_calls_that_fail_are_counted_by_their_status() -> None:
    async def method(request: bytes, **options: float) -> pb.AnswerResponse:
        if request:
            return await _answered(request)
        raise grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata())

    found = await open_loop(method, os.getpid(), [b"", b"asked"], seconds=0.2, rate=200)
    assert set(found.ends) == {"OK", "RESOURCE_EXHAUSTED"}
    assert found.ends.total() == found.calls
    assert 0 < found.failed <= found.ends["RESOURCE_EXHAUSTED"]
    assert found.due == found.failed + len(found.latencies_s) < found.calls


async def test_callers_ask_again_when_answered() -> None:
    at_once = most = 0

    async def method(request: bytes, **options: float) -> pb.AnswerResponse:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        return await _answered(request)

    found = await closed(method, os.getpid(), [b"1", b"2"], seconds=0.2, callers=3)
    assert most == 3
    assert found.ends == {"OK": found.calls}
    assert found.calls > 3
    assert 0 < found.in_time <= found.calls


async def test_callers_who_are_never_answered_measure_nothing() -> None:
    async def method(request: bytes, **options: float) -> pb.AnswerResponse:
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    with pytest.raises(ServerFailed, match=r"nothing was answered in 0\.05 s"):
        await closed(method, os.getpid(), [b""], seconds=0.05, callers=1)


def _channel(*replies: pb.AnswerStreamResponse) -> Any:
    """One whose streams have those replies, whatever is asked."""

    async def stream(requests: Sequence[bytes], **options: float) -> AsyncIterator[pb.AnswerStreamResponse]:
        for reply in replies:
            yield reply

    return SimpleNamespace(stream_stream=lambda name, response_deserializer: stream)


def _reply(id: str, windows: int) -> pb.AnswerStreamResponse:
    return pb.AnswerStreamResponse(id=id, response=pb.AnswerResponse(timings=pb.Timings(windows=windows)))


async def test_a_stream_is_one_call_that_ends_with_its_last_reply() -> None:
    method = streaming(_channel(_reply("1", 3), _reply("0", 2)))
    assert (await method([b"0", b"1"], timeout=1.0)).timings.windows == 2
    with pytest.raises(ServerFailed, match="2 of 3 requests had a reply"):
        await method([b"0", b"1", b"2"], timeout=1.0)


async def test_a_stream_of_which_one_fails_is_a_call_that_failed() -> None:
    refused = pb.AnswerStreamResponse(id="1")
    refused.status.code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    found = await closed(streaming(_channel(_reply("0", 1))), os.getpid(), [[b"0"]], seconds=0.05, callers=1)
    assert found.ends == {"OK": found.calls}
    method = streaming(_channel(_reply("0", 1), refused))
    found = await open_loop(method, os.getpid(), [[b"0", b"1"]], seconds=0.1, rate=100)
    assert found.ends == {"RESOURCE_EXHAUSTED": found.calls}


def test_streams_have_so_many_requests_with_ids_of_their_own() -> None:
    streams = serialize_streams(asked()[:19], 8)
    assert [len(requests) for requests in streams] == [8, 8]
    ids = [pb.AnswerStreamRequest.FromString(request).id for requests in streams for request in requests]
    assert len(set(ids)) == 16


def test_what_several_generators_sent_is_one_load() -> None:
    one, other = load(98, refused=2), load(3)
    one.server_cpu_s, one.generator_cpu_s, one.all_s = 5.0, 1.0, 11.0
    other.server_cpu_s, other.generator_cpu_s, other.all_s = 5.1, 2.0, 10.5
    both = Load.together([one, other])
    assert (both.seconds, both.all_s, both.server_cpu_s, both.generator_cpu_s) == (10.0, 11.0, 5.1, 3.0)
    assert (both.due, both.failed) == (103, 2)
    assert both.ends == {"OK": 101, "RESOURCE_EXHAUSTED": 2}
    assert sorted(both.latencies_s) == sorted(one.latencies_s + other.latencies_s)
