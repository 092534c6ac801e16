"""What comes of five times as many calls as the server can answer.

Peak is what it answers while a fixed number of callers ask one question after another. Then calls come at random
(Poisson) five times as often, whether or not those before are answered; their latency counts from the time at which
each was to be sent, so that a generator that falls behind hides nothing. Every call is accounted for by how it ended,
for its caller and by the server's own count.
"""

from __future__ import annotations

import asyncio
import random
import time
from argparse import Namespace
from collections import Counter
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

    ``in_time`` is how many were answered in those seconds; ``latencies_s`` and ``runs_s`` are of all that were, and of
    what the model took for each.
    """

    seconds: float
    all_s: float = 0.0
    calls: int = 0
    in_time: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    runs_s: list[float] = field(default_factory=list)
    server_cpu_s: float = 0.0
    generator_cpu_s: float = 0.0

    @property
    def answers_per_s(self) -> float:
        return self.in_time / self.seconds

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Overload:
    """The peak, and what came of more; ``server_ended`` is how the calls of both ended by the server's count."""

    peak: Load
    over: Load
    server_ended: dict[str, int]

    @property
    def bound_s(self) -> float:
        """How long the last of as many requests as may be in flight takes, were they the longest of all."""
        most: int = ServerSettings.model_fields["max_requests"].default
        return sum(sorted(self.over.runs_s)[-most:]) / usable_cores()

    @property
    def miscounted(self) -> int:
        """How many calls ended otherwise for the callers than by the server's count."""
        by_status: Counter[str] = Counter()
        for end, count in self.server_ended.items():
            by_status[end.split()[0]] += count  # without the limit that refused a call
        by_status.subtract(self.peak.ends + self.over.ends)
        return sum(map(abs, by_status.values()))


def measure(bundle: Path, arguments: Namespace) -> Overload:
    requests = [
        pb.AnswerRequest(question=one.question, passages=[pb.Passage(text=one.context)]).SerializeToString()
        for one in packaged_evaluation()[:200]
    ]
    with server(bundle) as running:
        peak, over = asyncio.run(_measure(running.address, running.pid, requests, arguments.seconds))
    return Overload(peak, over, running.ended)


async def _measure(address: str, pid: int, requests: Sequence[bytes], seconds: float) -> tuple[Load, Load]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        method: Any = channel.unary_unary(_METHOD, response_deserializer=pb.AnswerResponse.FromString)
        peak = await _closed(method, pid, requests, seconds)
        if not peak.in_time:
            raise RuntimeError(f"nothing was answered in {seconds:g} s; --seconds")
        return peak, await _open(method, pid, requests, seconds, TIMES * peak.answers_per_s)


def _fill_s(seconds: float) -> float:
    """For how long a load comes before its answers count: until all is warm and the queue is full."""
    return min(seconds / 4, 5.0)


async def _closed(method: Any, pid: int, requests: Sequence[bytes], seconds: float) -> Load:
    """Callers who ask again as soon as they are answered."""
    load = Load(seconds)
    began = time.perf_counter()
    start = began + _fill_s(seconds)

    async def caller(number: int) -> None:
        while (now := time.perf_counter()) < start + seconds:
            number += 1
            await _call(method, requests[number % len(requests)], now, start, load)

    server_cpu, own_cpu = cpu_s(pid), time.process_time()
    await asyncio.gather(*(caller(len(requests) * number // CALLERS) for number in range(CALLERS)))
    load.server_cpu_s, load.generator_cpu_s = cpu_s(pid) - server_cpu, time.process_time() - own_cpu
    load.all_s = time.perf_counter() - began
    return load


async def _open(method: Any, pid: int, requests: Sequence[bytes], seconds: float, rate: float) -> Load:
    """Calls at random times."""
    load, chance = Load(seconds), random.Random(0)
    server_cpu, own_cpu = cpu_s(pid), time.process_time()
    began = time.perf_counter()
    start = began + _fill_s(seconds)
    scheduled, calls = began, []
    while scheduled < start + seconds:
        await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
        call = _call(method, chance.choice(requests), scheduled, start, load)
        calls.append(asyncio.create_task(call))
        scheduled += chance.expovariate(rate)
    await asyncio.gather(*calls)
    load.server_cpu_s, load.generator_cpu_s = cpu_s(pid) - server_cpu, time.process_time() - own_cpu
    load.all_s = time.perf_counter() - began
    return load


async def _call(method: Any, request: bytes, scheduled: float, start: float, load: Load) -> None:
    load.calls += 1
    try:
        reply = await method(request, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        load.ends[error.code().name] += 1
        return
    now = time.perf_counter()
    load.ends["OK"] += 1
    load.in_time += start <= now <= start + load.seconds
    load.latencies_s.append(now - scheduled)
    load.runs_s.append(reply.timings.inference_seconds * reply.timings.windows)


def report(found: Overload) -> str:
    """Markdown: a row for each load, and what was asked."""
    rows = []
    for name, load in (("peak", found.peak), (f"{TIMES} times", found.over)):
        ends = ", ".join(f"{count} {end}" for end, count in load.ends.most_common())
        rows.append(
            f"| {name} | {load.calls / load.all_s:.0f} | {load.answers_per_s:.1f} | {load.quantile_s(0.5):.2f} |"
            f" {load.quantile_s(0.99):.2f} | {load.server_cpu_s / load.all_s:.2f} |"
            f" {load.generator_cpu_s / load.all_s:.2f} | {ends} |"
        )
    share, p99_s = found.over.answers_per_s / found.peak.answers_per_s, found.over.quantile_s(0.99)
    others = (found.peak.ends + found.over.ends).total() - sum(
        load.ends[end] for load in (found.peak, found.over) for end in ("OK", "RESOURCE_EXHAUSTED")
    )
    checks = (
        (f"goodput at {TIMES} times the peak's", f"{share:.2f} of peak", f"at least {TARGET}", share >= TARGET),
        ("p99 of accepted calls", f"{p99_s:.2f} s", f"at most {found.bound_s:.2f} s", p99_s <= found.bound_s),
        ("calls neither answered nor refused", f"{others}", "0", others == 0),
        ("calls that the server counts otherwise", f"{found.miscounted}", "0", found.miscounted == 0),
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
