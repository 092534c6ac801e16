"""The server end to end, over a real socket: real questions at their real lengths, tokenised and decoded in the time.

The scenarios have MLPerf's names: SingleStream, a caller who asks again when answered; Offline, all questions at once,
on one stream; Server, calls at random times (Poisson), whose latency counts from the time they were scheduled for, at
the highest rate whose p99 keeps within a bound. They are not MLPerf results, and its LoadGen is not used: a query can
only be completed there, so that a refused call counts as one that was answered within a millisecond, and the more calls
are refused, the lower is the median.
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
from benchmarks.load.generator import Load, answer_method, closed, open_loop, serialize
from benchmarks.load.overload import Overload
from benchmarks.load.processes import Running, resident_mb, server
from benchmarks.setting import Setting
from benchmarks.tables import Target, table
from distilqa import Client, Request
from distilqa.evaluation import Question
from distilqa.progress import ProgressBar
from distilqa_export.samples import packaged_evaluation

# Seconds that the p99 of a rate may be.
BOUNDS_S = (0.1, 0.25, 0.5)

START_TARGET_S, RESIDENT_TARGET_MB = 2.0, 350

_ASKED = 200
_OFFLINE_PER_S = 40


class Trial(TypedDict):
    """A rate that was tried, in calls a second, and what came of it."""

    rate: float
    load: dict[str, Any]


class Offline(TypedDict):
    """So many questions on one stream."""

    answers: int
    seconds: float


class Serving(TypedDict):
    """``starts_s`` are from the start of the process to its first answer; ``highest`` is by bound, null for none."""

    starts_s: list[float]
    started_mb: float
    single_stream: dict[str, Any]
    offline: Offline
    peak: dict[str, Any]
    over: dict[str, Any]
    server_ended: dict[str, int]
    trials: list[Trial]
    highest: dict[str, float | None]
    resident_mb: float


def measure(setting: Setting) -> Serving:
    bundle = models.bundle(setting.distilbert_checkpoint)
    questions = packaged_evaluation()[:_ASKED]
    starts = [_start(bundle, questions[0]) for _ in range(1 if setting.tiny else 5)]
    loaded = overload.measure(bundle, Namespace(seconds=setting.load_s))
    with server(bundle) as running:
        single = asyncio.run(_single_stream(running, questions, setting.load_s))
        offline = _offline(running.address, questions, round(setting.load_s * _OFFLINE_PER_S))
        steps = 2 if setting.tiny else 10 if setting.quick else 20
        trials: list[Trial] = []
        with ProgressBar("rates", len(BOUNDS_S), sys.stderr) as progress:
            tried: dict[int, Load] = {}

            def p99_s(step: int) -> float:
                if step not in tried:
                    rate = step / steps * loaded.peak.answers_per_s
                    tried[step] = asyncio.run(_poisson(running, questions, setting.load_s, rate, step))
                    trials.append(Trial(rate=rate, load=tried[step].to_json()))
                return tried[step].quantile_s(0.99, failed=True)

            highest: dict[str, float | None] = {}
            for number, bound in enumerate(BOUNDS_S):
                step = highest_step(p99_s, steps, bound)
                highest[f"{bound:g}"] = step / steps * loaded.peak.answers_per_s if step else None
                progress(number + 1)
        resident = resident_mb(running.pid)
    return Serving(
        starts_s=[seconds for seconds, _ in starts],
        started_mb=max(resident for _, resident in starts),
        single_stream=single.to_json(),
        offline=offline,
        peak=loaded.peak.to_json(),
        over=loaded.over.to_json(),
        server_ended=loaded.server_ended,
        trials=trials,
        highest=highest,
        resident_mb=resident,
    )


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
    """Seconds from the start of a server's process to its first answer, and its memory then."""
    began = time.perf_counter()
    with server(bundle) as running, Client(running.address) as client:
        client.answer(question.question, question.context)
        return time.perf_counter() - began, resident_mb(running.pid)


async def _single_stream(running: Running, questions: Sequence[Question], seconds: float) -> Load:
    async with answer_method(running.address) as method:
        return await closed(method, running.pid, serialize(questions), seconds, callers=1)


async def _poisson(running: Running, questions: Sequence[Question], seconds: float, rate: float, seed: int) -> Load:
    async with answer_method(running.address) as method:
        return await open_loop(method, running.pid, serialize(questions), seconds, rate, seed)


def _offline(address: str, questions: Sequence[Question], count: int) -> Offline:
    def requests() -> Iterator[Request]:
        for number in range(count):
            one = questions[number % len(questions)]
            yield Request(str(number), one.question, one.context)

    began = time.perf_counter()
    with Client(address) as client:
        outcomes = list(client.answer_stream(requests(), timeout_s=600))
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise failed[0]
    return Offline(answers=len(outcomes), seconds=time.perf_counter() - began)


def targets(found: Serving) -> list[Target]:
    """What was asked of the server's start and of its memory."""
    started, resident = statistics.median(found["starts_s"]), max(found["started_mb"], found["resident_mb"])
    return [
        Target("process start to first answer", f"{started:.2f} s", f"at most {START_TARGET_S:g} s",
               started <= START_TARGET_S),
        Target("server's resident memory", f"{resident:.0f} MB", f"at most {RESIDENT_TARGET_MB} MB",
               resident <= RESIDENT_TARGET_MB),
    ]  # fmt: skip


def report(found: Serving) -> str:
    """Markdown: the scenarios, the rates that were tried, and the overload."""
    single, peak = Load.from_json(found["single_stream"]), Load.from_json(found["peak"])
    offline = found["offline"]["answers"] / found["offline"]["seconds"]
    rows = [
        ["SingleStream", f"p50 {single.quantile_s(0.5) * 1e3:.1f} ms, p90 {single.quantile_s(0.9) * 1e3:.1f} ms",
         f"{len(single.latencies_s)}", _cores(single)],
        ["Offline", f"{offline:.1f} answers/s", f"{found['offline']['answers']}", ""],
        [f"{overload.CALLERS} callers", f"{peak.answers_per_s:.1f} answers/s", f"{peak.calls}", _cores(peak)],
    ]  # fmt: skip
    for bound, rate in found["highest"].items():
        told = f"{rate:.1f} calls/s" if rate else "no rate that was tried"
        rows.append([f"Server, p99 within {float(bound) * 1e3:.0f} ms", told, "", ""])
    trial_rows = []
    for trial in sorted(found["trials"], key=lambda trial: trial["rate"]):
        load = Load.from_json(trial["load"])
        p50, p99 = (load.quantile_s(share, failed=True) * 1e3 for share in (0.5, 0.99))
        trial_rows.append([f"{trial['rate']:.1f}", f"{p50:.0f}", f"{p99:.0f}", f"{load.calls}", f"{load.failed}",
                           _cores(load)])  # fmt: skip
    loaded = Overload(peak, Load.from_json(found["over"]), found["server_ended"])
    return "\n\n".join(
        [
            table(["scenario", "", "calls", "generator, cores"], rows),
            table(["Server, calls/s", "p50, ms", "p99, ms", "calls", "not answered", "generator, cores"], trial_rows),
            overload.report(loaded),
        ]
    )


def _cores(load: Load) -> str:
    return f"{load.generator_cpu_s / load.all_s:.2f}"
