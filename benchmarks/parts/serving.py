"""The server end to end, over a real socket: real questions at their real lengths, tokenised and decoded in the time.

The scenarios have MLPerf's names: SingleStream, a caller who asks again when answered; Offline, all questions at once,
on one stream; Server, calls at random times (Poisson), whose latency counts from the time they were scheduled for, at
the highest rate whose p99 keeps within a bound, found by halving, in steps of a part of the peak and up to it. (A rate
near the peak fills the queue for longer than a load lasts.) Of a hundred calls or fewer the p99 is the slowest. They
are not MLPerf results, and its LoadGen is not used: a query can only be completed there, so that a refused call counts
as one that was answered within a millisecond, and the more calls are refused, the lower is the median.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from benchmarks import models
from benchmarks.load import overload
from benchmarks.load.generator import Load, answer_method, asked, closed, open_loop, serialize
from benchmarks.load.overload import Overload
from benchmarks.load.processes import Running, most_resident_mb, server
from benchmarks.reporting.tables import Target, decisive, table
from benchmarks.setting import Setting
from distilqa import Client, Request
from distilqa.evaluation.dataset import Question
from distilqa.evaluation.progress import ProgressBar

# Seconds that the p99 of a rate may be.
BOUNDS_S = (0.1, 0.25, 0.5)

START_TARGET_S, MEMORY_TARGET_MB = 2.0, 350


class Trial(TypedDict):
    """A rate that was tried, in calls a second, and what came of it."""

    rate: float
    load: dict[str, Any]


class Offline(TypedDict):
    """So many questions on one stream."""

    answers: int
    seconds: float


class Serving(TypedDict):
    """``starts_s`` are from the start of the process to its first answer; ``highest`` is by bound, null for none.

    ``most_mb`` is the most memory that any of the servers had.
    """

    starts_s: list[float]
    single_stream: dict[str, Any]
    offline: Offline
    peak: dict[str, Any]
    over: dict[str, Any]
    bound_s: float
    server_ended: dict[str, int]
    steps: int
    trials: list[Trial]
    highest: dict[str, float | None]
    most_mb: float


def prepare(setting: Setting) -> None:
    """Make the model."""
    models.bundle(setting.distilbert_checkpoint)


def measure(setting: Setting) -> Serving:
    bundle = models.bundle(setting.distilbert_checkpoint)
    questions = asked()
    requests = serialize(questions)
    steps, bounds = (10, BOUNDS_S[1:2]) if setting.quick else (2 if setting.tiny else 20, BOUNDS_S)
    starts = [_start(bundle, questions[0]) for _ in range(1 if setting.tiny else 5)]
    loaded = overload.measure(bundle, Namespace(seconds=setting.load_s))
    peak = loaded.peak.answers_per_s
    with server(bundle) as running:
        single = asyncio.run(_single_stream(running, requests, setting.load_s))
        offline = _offline(running.address, questions, max(1, round(setting.load_s * peak)), setting.load_s)

        def load(rate: float, seed: int) -> Load:
            return asyncio.run(_poisson(running, requests, setting.load_s, rate, seed))

        trials, highest = search(load, peak, steps, bounds)
        most_mb = most_resident_mb(running.pid)
    return Serving(
        starts_s=[seconds for seconds, _ in starts],
        single_stream=single.to_json(),
        offline=offline,
        peak=loaded.peak.to_json(),
        over=loaded.over.to_json(),
        bound_s=loaded.bound_s,
        server_ended=loaded.server_ended,
        steps=steps,
        trials=[Trial(rate=rate, load=load.to_json()) for rate, load in trials.items()],
        highest=highest,
        most_mb=max(most_mb, loaded.most_mb, *(most for _, most in starts)),
    )


def search(
    load: Callable[[float, int], Load], peak: float, steps: int, bounds_s: Sequence[float]
) -> tuple[dict[float, Load], dict[str, float | None]]:
    """The loads by the rates that were tried, and by bound the highest rate whose p99 is within it, None for none.

    ``load`` takes a rate and a seed.
    """
    tried: dict[int, Load] = {}

    def p99_s(step: int) -> float:
        if step not in tried:
            tried[step] = load(step / steps * peak, step)
        return tried[step].quantile_s(0.99, failed=True)

    highest: dict[str, float | None] = {}
    with ProgressBar("rates", len(bounds_s), sys.stderr) as progress:
        for number, bound in enumerate(bounds_s):
            step = highest_step(p99_s, steps, bound)
            highest[f"{bound:g}"] = step / steps * peak if step else None
            progress(number + 1)
    return {step / steps * peak: found for step, found in sorted(tried.items())}, highest


def highest_step(latency_s: Callable[[int], float], steps: int, bound_s: float) -> int:
    """The highest of the steps, from 1 on, whose latency keeps within the bound, or 0: by halving, as it only grows."""
    kept, missed = 0, steps + 1
    while missed - kept > 1:
        step = (kept + missed) // 2
        if latency_s(step) <= bound_s:
            kept = step
        else:
            missed = step
    return kept


def _start(bundle: Path, question: Question) -> tuple[float, float]:
    """Seconds from the start of a server's process to its first answer, and the most memory that it had by then."""
    began = time.perf_counter()
    with server(bundle) as running, Client(running.address) as client:
        client.answer(question.question, question.context)
        return time.perf_counter() - began, most_resident_mb(running.pid)


async def _single_stream(running: Running, requests: Sequence[bytes], seconds: float) -> Load:
    async with answer_method(running.address) as method:
        return await closed(method, running.pid, requests, seconds, callers=1)


async def _poisson(running: Running, requests: Sequence[bytes], seconds: float, rate: float, seed: int) -> Load:
    async with answer_method(running.address) as method:
        return await open_loop(method, running.pid, requests, seconds, rate, seed)


def _offline(address: str, questions: Sequence[Question], count: int, expected_s: float) -> Offline:
    def requests() -> Iterator[Request]:
        for number in range(count):
            one = questions[number % len(questions)]
            yield Request(str(number), one.question, one.context)

    began = time.perf_counter()
    with Client(address) as client:
        outcomes = list(client.answer_stream(requests(), timeout_s=60 + 10 * expected_s))
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise failed[0]
    return Offline(answers=len(outcomes), seconds=time.perf_counter() - began)


def targets(found: Serving) -> list[Target]:
    """What was asked of the server's start, of its memory, and under overload."""
    started, most = statistics.median(found["starts_s"]), found["most_mb"]
    return [
        Target(
            "process start to first answer",
            f"{decisive(started, START_TARGET_S, 2)} s",
            f"at most {START_TARGET_S:g} s",
            started <= START_TARGET_S,
            timed=True,
        ),
        Target(
            "most resident memory of the server",
            f"{decisive(most, MEMORY_TARGET_MB, 0)} MB",
            f"at most {MEMORY_TARGET_MB} MB",
            most <= MEMORY_TARGET_MB,
        ),
        *overload.targets(_overload(found)),
    ]


def headline(found: Serving) -> str:
    """What is most worth knowing, in a line."""
    single, over = Load.from_json(found["single_stream"]), _overload(found)
    return (
        f"The server: {statistics.median(found['starts_s']):.1f} s to its first answer, {found['most_mb']:.0f} MB,"
        f" {single.quantile_s(0.5) * 1e3:.0f} ms at the median for one caller, and"
        f" {over.over.answers_per_s / over.peak.answers_per_s:.0%} of its peak's answers when {overload.TIMES} times as"
        " much is asked."
    )


def _overload(found: Serving) -> Overload:
    peak, over = Load.from_json(found["peak"]), Load.from_json(found["over"])
    return Overload(peak, over, found["bound_s"], found["server_ended"], found["most_mb"])


def report(found: Serving) -> str:
    """Markdown: the scenarios, the rates that were tried, and the overload."""
    single = Load.from_json(found["single_stream"])
    offline = found["offline"]["answers"] / found["offline"]["seconds"]
    rows = [
        ["SingleStream", f"p50 {single.quantile_s(0.5) * 1e3:.1f} ms, p90 {single.quantile_s(0.9) * 1e3:.1f} ms",
         f"{single.due}", _cores(single)],
        ["Offline", f"{offline:.1f} answers/s", f"{found['offline']['answers']}", ""],
    ]  # fmt: skip
    for bound, rate in found["highest"].items():
        told = f"{rate:.1f} calls/s" if rate else "no rate that was tried"
        rows.append([f"Server, p99 within {float(bound) * 1e3:.0f} ms", told, "", ""])
    trial_rows = []
    for trial in found["trials"]:
        load = Load.from_json(trial["load"])
        p50, p99 = (f"{load.quantile_s(share, failed=True) * 1e3:.0f}" for share in (0.5, 0.99))
        trial_rows.append([f"{trial['rate']:.1f}", p50, p99, f"{load.due}", f"{load.failed}", _cores(load)])
    tried = ["Server, calls/s", "p50, ms", "p99, ms", "calls", "not answered", "generator, cores"]
    return "\n\n".join(
        [
            table(["scenario", "", "calls", "generator, cores"], rows),
            f"The rates that were tried are steps of {1 / found['steps']:.0%} of the peak.",
            table(tried, trial_rows),
            overload.loads_table(_overload(found)),
        ]
    )


def _cores(load: Load) -> str:
    return f"{load.generator_cpu_s / load.all_s:.2f}"
