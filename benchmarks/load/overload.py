"""What comes of five times as many calls as the server can answer.

Peak is what it answers while a fixed number of callers ask one question after another. Then calls come at random
(Poisson) five times as often, whether or not those before are answered; their latency counts from the time at which
each was to be sent, so that a generator that falls behind hides nothing. Every call is accounted for by how it ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.load.processes import cpu_s, server
from distilqa.engine import usable_cores
from distilqa.settings import ServerSettings
from distilqa_export.samples import packaged_evaluation
from distilqa_protos.v1 import question_answering_pb2 as pb

TARGET = 0.85
TIMES = 5
CALLERS = 16
DEADLINE_S = 30.0

_METHOD = "/distilqa.v1.QuestionAnswering/Answer"


@dataclass(slots=True)
class Load:
    """What came of a load of ``seconds``, all of which had ended after ``all_s``.

    ``latencies_s`` are those of the answered calls, ``run_s`` the longest run.
    """

    seconds: float
    all_s: float = 0.0
    calls: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    run_s: float = 0.0
    server_cpu_s: float = 0.0
    generator_cpu_s: float = 0.0

    @property
    def answers_per_s(self) -> float:
        return self.ends["OK"] / self.seconds

    def end(self, how: str) -> None:
        self.ends[how] = self.ends.get(how, 0) + 1

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Overload:
    """The peak, and what came of more."""

    peak: Load
    over: Load

    @property
    def bound_s(self) -> float:
        """How long the last of as many requests as may be in flight can take, each as long as the longest run."""
        most: int = ServerSettings.model_fields["max_requests"].default
        return most * self.over.run_s / usable_cores()


def measure(bundle: Path, arguments: Namespace) -> Overload:
    requests = [
        pb.AnswerRequest(question=one.question, passages=[pb.Passage(text=one.context)]).SerializeToString()
        for one in packaged_evaluation()[:200]
    ]
    with server(bundle) as running:
        return asyncio.run(_measure(running.address, running.pid, requests, arguments.seconds))


async def _measure(address: str, pid: int, requests: Sequence[bytes], seconds: float) -> Overload:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        method: Any = channel.unary_unary(_METHOD, response_deserializer=pb.AnswerResponse.FromString)
        await _closed(method, pid, requests, min(seconds, 5.0))  # the warm-up
        peak = await _closed(method, pid, requests, seconds)
        over = await _open(method, pid, requests, seconds, TIMES * peak.answers_per_s)
    return Overload(peak, over)


async def _closed(method: Any, pid: int, requests: Sequence[bytes], seconds: float) -> Load:
    """Callers who ask again as soon as they are answered. What ends after the time is over does not count."""
    load = Load(seconds)
    began = time.perf_counter()
    end = began + seconds

    async def caller(number: int) -> None:
        while (now := time.perf_counter()) < end:
            number += 1
            await _call(method, requests[number % len(requests)], now, end, load)

    server_cpu, own_cpu = cpu_s(pid), time.process_time()
    await asyncio.gather(*(caller(len(requests) * number // CALLERS) for number in range(CALLERS)))
    load.server_cpu_s, load.generator_cpu_s = cpu_s(pid) - server_cpu, time.process_time() - own_cpu
    load.all_s = time.perf_counter() - began
    return load


async def _open(method: Any, pid: int, requests: Sequence[bytes], seconds: float, rate: float) -> Load:
    """Calls at random times. Goodput is counted while they come, once the first of them have filled the queue."""
    load, chance = Load(seconds), random.Random(0)
    server_cpu, own_cpu = cpu_s(pid), time.process_time()
    began = time.perf_counter()
    fill_s = min(seconds / 4, 5.0)
    scheduled, calls = began, []
    while scheduled < began + fill_s + seconds:
        await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
        count_from = began + fill_s
        calls.append(
            asyncio.create_task(
                _call(method, chance.choice(requests), scheduled, began + fill_s + seconds, load, count_from)
            )
        )
        scheduled += chance.expovariate(rate)
    await asyncio.gather(*calls)
    load.server_cpu_s, load.generator_cpu_s = cpu_s(pid) - server_cpu, time.process_time() - own_cpu
    load.all_s = time.perf_counter() - began
    return load


async def _call(method: Any, request: bytes, scheduled: float, end: float, load: Load, count_from: float = 0.0) -> None:
    load.calls += 1
    try:
        reply = await method(request, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        load.end(error.code().name)
        return
    now = time.perf_counter()
    load.latencies_s.append(now - scheduled)
    load.run_s = max(load.run_s, reply.timings.inference_seconds)
    load.end("OK" if count_from <= now <= end else "OK, outside the time")


def report(found: Overload) -> str:
    """Markdown: a row for each load, and what was asked."""
    rows = []
    for name, load in (("peak", found.peak), (f"{TIMES} times", found.over)):
        ends = ", ".join(f"{count} {end}" for end, count in sorted(load.ends.items(), key=lambda item: -item[1]))
        rows.append(
            f"| {name} | {load.calls / load.all_s:.0f} | {load.answers_per_s:.1f} | {load.quantile_s(0.5):.2f} |"
            f" {load.quantile_s(0.99):.2f} | {load.server_cpu_s / load.all_s:.2f} |"
            f" {load.generator_cpu_s / load.all_s:.2f} | {ends} |"
        )
    share, p99_s = found.over.answers_per_s / found.peak.answers_per_s, found.over.quantile_s(0.99)
    lost = found.over.calls - sum(found.over.ends.values())
    checks = (
        (f"goodput at {TIMES} times the peak's", f"{share:.2f} of peak", f"at least {TARGET}", share >= TARGET),
        ("p99 of accepted calls", f"{p99_s:.2f} s", f"at most {found.bound_s:.2f} s", p99_s <= found.bound_s),
        ("calls that ended in nothing", f"{lost}", "0", lost == 0),
    )
    return "\n".join(
        [
            "| load | calls/s | answers/s | p50, s | p99, s | server, cores | generator, cores | calls by end |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "|  | found | asked | met |",
            "|---|---|---|---|",
            *(f"| {what} | {value} | {asked} | {'yes' if met else 'NO'} |" for what, value, asked, met in checks),
        ]
    )
