"""Loads of a server, and what comes of them: callers who ask again as soon as they are answered, or calls at random.

The generator is this process; it sends what was serialised before, and reports its own CPU time.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from benchmarks.load.processes import ServerFailed, tree_cpu_s
from distilqa.evaluation.dataset import Question
from distilqa_export.samples import packaged_evaluation
from distilqa_protos.v1 import question_answering_pb2 as pb

DEADLINE_S = 30.0

_METHOD, _STREAM = "/distilqa.v1.QuestionAnswering/Answer", "/distilqa.v1.QuestionAnswering/AnswerStream"


@dataclass(slots=True)
class Load:
    """What came of a load of ``seconds``, after a while in which all became warm; all had ended after ``all_s``.

    ``calls`` and ``ends`` are of all. ``due`` is how many were to be sent in those seconds, ``latencies_s`` are of
    those of them that were answered, and ``windows`` how many each of these had; ``in_time`` is how many were answered
    in those seconds. ``runs_s`` is the longest run that each of those answered took.
    """

    seconds: float
    all_s: float = 0.0
    calls: int = 0
    due: int = 0
    in_time: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    runs_s: list[float] = field(default_factory=list)
    server_cpu_s: float = 0.0
    generator_cpu_s: float = 0.0

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields | {"ends": Counter(fields["ends"])})

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def together(cls, loads: Sequence[Load]) -> Self:
        """What came of those that several generators sent at once."""
        ends = sum((load.ends for load in loads), Counter())
        found = cls(loads[0].seconds, max(load.all_s for load in loads), ends=ends)
        found.server_cpu_s = max(load.server_cpu_s for load in loads)  # which each has seen
        for load in loads:
            found.calls += load.calls
            found.due += load.due
            found.in_time += load.in_time
            found.latencies_s += load.latencies_s
            found.windows += load.windows
            found.runs_s += load.runs_s
            found.generator_cpu_s += load.generator_cpu_s
        return found

    @property
    def answers_per_s(self) -> float:
        return self.in_time / self.seconds

    @property
    def due_per_s(self) -> float:
        return self.due / self.seconds

    @property
    def failed(self) -> int:
        """Of those that were due, how many were not answered."""
        return self.due - len(self.latencies_s)

    def quantile_s(self, share: float, *, failed: bool = False) -> float:
        """The latency that this share of the calls stays below, those that failed counted as endless or not at all."""
        ordered = sorted(self.latencies_s) + [math.inf] * self.failed * failed or [math.inf]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def asked() -> list[Question]:
    """Real questions at their real lengths."""
    return packaged_evaluation()[:200]


def serialize(questions: Sequence[Question]) -> list[bytes]:
    return [
        pb.AnswerRequest(question=one.question, passages=[pb.Passage(text=one.context)]).SerializeToString()
        for one in questions
    ]


def serialize_streams(questions: Sequence[Question], at_once: int) -> list[list[bytes]]:
    """So many requests a stream, as often as the questions allow."""
    requests = [
        pb.AnswerStreamRequest(id=f"{number}", request=pb.AnswerRequest.FromString(request)).SerializeToString()
        for number, request in enumerate(serialize(questions))
    ]
    return [requests[begin : begin + at_once] for begin in range(0, len(requests) - at_once + 1, at_once)]


@asynccontextmanager
async def answer_method(address: str) -> AsyncIterator[Any]:
    """The method that answers; it takes what is serialised, and tries nothing again."""
    async with connected(address, 1) as (channel,):
        yield answering(channel)


@asynccontextmanager
async def connected(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels with a connection each: gRPC's own pool would have one for all, and so one process of the server."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options)) for _ in range(count)
        ]


def answering(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(_METHOD, response_deserializer=pb.AnswerResponse.FromString)


def streaming(channel: grpc.aio.Channel) -> Any:
    """The same for many in one call: takes what `serialize_streams` gives, and gives the reply that comes last."""
    stream: Any = channel.stream_stream(_STREAM, response_deserializer=pb.AnswerStreamResponse.FromString)

    async def method(requests: Sequence[bytes], **options: Any) -> pb.AnswerResponse:
        replies = [reply async for reply in stream(requests, **options)]
        for reply in replies:
            if reply.HasField("status"):
                status = next(one for one in grpc.StatusCode if one.value[0] == reply.status.code)
                raise grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), reply.status.message)
        if len(replies) != len(requests):
            raise ServerFailed(f"{len(replies)} of {len(requests)} requests had a reply")
        last: pb.AnswerResponse = replies[-1].response
        return last

    return method


def _fill_s(seconds: float) -> float:
    """For how long a load comes before its answers count: until all is warm and the queue is full."""
    return min(seconds / 4, 5.0)


async def closed(method: Any, pid: int, requests: Sequence[Any], seconds: float, callers: int) -> Load:
    """Callers who ask again as soon as they are answered. Raises ServerFailed where none was in time."""
    load = Load(seconds)
    with _counted(load, pid) as began:
        start = began + _fill_s(seconds)

        async def caller(number: int) -> None:
            while (now := time.perf_counter()) < start + seconds:
                number += 1
                await _call(method, requests[number % len(requests)], now, start, load)

        await asyncio.gather(*(caller(len(requests) * number // callers) for number in range(callers)))
    if not load.in_time:
        raise ServerFailed(f"nothing was answered in {seconds:g} s")
    return load


async def open_loop(method: Any, pid: int, requests: Sequence[Any], seconds: float, rate: float, seed: int = 0) -> Load:
    """Calls at random times, so many a second (Poisson), whether or not those before are answered.

    Latency counts from the time at which a call was to be sent, so that a generator that falls behind hides nothing.
    """
    load, chance = Load(seconds), random.Random(seed)
    calls = []
    with _counted(load, pid) as began:
        start = began + _fill_s(seconds)
        fill_s = start - began
        due = [*poisson(rate, fill_s, seed), *(fill_s + offset for offset in poisson(rate, seconds, -1 - seed))]
        for offset in due:
            await asyncio.sleep(max(0.0, began + offset - time.perf_counter()))
            call = _call(method, chance.choice(requests), began + offset, start, load)
            calls.append(asyncio.create_task(call))
        await asyncio.gather(*calls)
    return load


@contextmanager
def _counted(load: Load, pid: int) -> Iterator[float]:
    """Counts how long a load takes, and the CPU time of both sides; gives the clock's time at its beginning."""
    server_cpu, own_cpu = tree_cpu_s(pid), time.process_time()
    began = time.perf_counter()
    yield began
    load.server_cpu_s, load.generator_cpu_s = tree_cpu_s(pid) - server_cpu, time.process_time() - own_cpu
    load.all_s = time.perf_counter() - began


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """The seconds at which calls are due, each independent of the others.

    The times of a Poisson process are uniform, given how many there are: here always those of the rate, so that what
    is measured is that rate, and not one that chance made of it.
    """
    chance = random.Random(seed)
    return sorted(chance.uniform(0, seconds) for _ in range(round(rate * seconds)))


async def _call(method: Any, request: Any, scheduled: float, start: float, load: Load) -> None:
    load.calls += 1
    load.due += scheduled >= start
    try:
        reply = await method(request, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        load.ends[error.code().name] += 1
        return
    now = time.perf_counter()
    load.ends["OK"] += 1
    load.in_time += start <= now <= start + load.seconds
    if scheduled >= start:
        load.latencies_s.append(now - scheduled)
        load.windows.append(reply.timings.windows)
    load.runs_s.append(reply.timings.inference_seconds)
