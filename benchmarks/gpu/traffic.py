"""What the server answers from a GPU, over real sockets: real questions at their real lengths, tokenised and decoded.

Callers ask one question in a call, or eight on a stream, whose latency is that of the last answer. Closed loop:
callers who ask again when answered, by how many questions are in flight, for each number of the server's processes.
Open loop: calls at random times (Poisson), whose latency counts from the time they were scheduled for, of as many
processes as gave the most answers in closed loop, at the highest rate whose p99 keeps within a bound, found by halving,
in steps of a part of the peak. Several processes generate the load, on the same machine. The server's limits on what is
in flight are lifted, so that nothing is refused.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

from benchmarks.gpu.setting import GpuSetting
from benchmarks.load.crowd import Crowd
from benchmarks.load.generator import Load
from benchmarks.load.processes import ServerFailed, server
from benchmarks.parts.serving import search
from benchmarks.reporting.tables import Target, table
from distilqa.bundle import GPU_VARIANTS
from distilqa.engine.cores import usable_cores
from distilqa.errors import DistilqaError
from distilqa.evaluation.progress import ProgressBar

(_VARIANT,) = GPU_VARIANTS

ONE, EIGHT = 1, 8

PROCESSES: dict[str, tuple[int, ...]] = {"full": (1, 2, 4, 8, 12), "quick": (1, 4, 12), "tiny": (1, 2)}
IN_FLIGHT: dict[str, tuple[int, ...]] = {"full": (64, 256, 1024), "quick": (512,), "tiny": (8,)}
STEPS = {"full": 16, "quick": 8, "tiny": 2}

# Seconds that the p99 of a load may be.
BOUNDS_S = (0.01, 0.025, 0.05)

# Answers a second, of eight questions a call, and the bound within which.
TARGET, TARGET_BOUND_S = 12_000, 0.05

# Connections of a generator: by chance, no process of the server has many more than its share.
_CONNECTIONS = 64

# More than is ever in flight.
_NO_LIMIT = ("--max-requests", "100000", "--max-queued-windows", "100000")

# Latencies are stored in steps of this, and how many calls had each: there are hundreds of thousands.
_STEP_S = 1e-4


class Closed(TypedDict):
    """One load in closed loop; ``questions`` are of a call, ``in_flight`` of all."""

    processes: int
    questions: int
    in_flight: int
    load: dict[str, Any]


class Tried(TypedDict):
    """A rate that was tried in open loop, in calls a second, and what came of it."""

    rate: float
    load: dict[str, Any]


class Open(TypedDict):
    """Of so many ``questions`` a call; ``highest`` rate by bound, null for none."""

    processes: int
    questions: int
    trials: list[Tried]
    highest: dict[str, float | None]


class Traffic(TypedDict):
    """``failed`` says of what could not be measured to the end, why."""

    generators: int
    steps: int
    closed: list[Closed]
    open: list[Open]
    failed: list[str]


def prepare(setting: GpuSetting) -> None:
    """Make the model."""
    _ = setting.bundle


def measure(setting: GpuSetting) -> Traffic:
    counts = PROCESSES[setting.extent]
    found = Traffic(
        generators=max(1, usable_cores() // 4),
        steps=STEPS[setting.extent],
        closed=[],
        open=[],
        failed=[],
    )
    with ProgressBar("processes", len(counts), sys.stderr) as progress:
        for done, processes in enumerate(counts, start=1):
            with _noted(found, f"closed loop of --processes {processes}"), _loaded(setting, found, processes) as crowd:
                for questions in (EIGHT, ONE):
                    for level in IN_FLIGHT[setting.extent]:
                        load = crowd.closed(questions, setting.load_s, max(1, level // questions))
                        found["closed"].append(Closed(processes=processes, questions=questions, in_flight=level,
                                                      load=packed(load)))  # fmt: skip
            progress(done)
    for questions in (EIGHT, ONE):
        best = max(_of(found, questions), key=lambda one: one["load"]["in_time"], default=None)
        if best is None:
            continue
        with (
            _noted(found, f"open loop, {questions} a call"),
            _loaded(setting, found, best["processes"]) as crowd,
        ):
            found["open"].append(_open(setting, found, crowd, best))
    if not found["closed"]:
        raise ServerFailed("; ".join(found["failed"]))
    return found


def _open(setting: GpuSetting, found: Traffic, crowd: Crowd, best: Closed) -> Open:
    """The search, up to the rate of the best load in closed loop."""
    questions = best["questions"]

    def load(rate: float, seed: int) -> Load:
        return crowd.open_loop(questions, setting.load_s, rate, seed)

    trials, highest = search(load, unpacked(best["load"]).answers_per_s, found["steps"], BOUNDS_S)
    tried = [Tried(rate=rate, load=packed(load)) for rate, load in trials.items()]
    return Open(processes=best["processes"], questions=questions, trials=tried, highest=highest)


@contextmanager
def _loaded(setting: GpuSetting, found: Traffic, processes: int) -> Iterator[Crowd]:
    """What loads a server of so many processes."""
    with (
        server(setting.bundle, _VARIANT, ("--processes", f"{processes}", *_NO_LIMIT)) as running,
        Crowd(running, found["generators"], 2 if setting.tiny else _CONNECTIONS) as crowd,
    ):
        yield crowd


@contextmanager
def _noted(found: Traffic, what: str) -> Iterator[None]:
    """A failure ends this alone."""
    try:
        yield
    except (DistilqaError, OSError) as error:
        print(f"{what}: {error}", file=sys.stderr, flush=True)
        found["failed"].append(f"{what}: {error}")


def packed(load: Load) -> dict[str, Any]:
    """A load for JSON: how many calls had each latency."""
    steps = Counter(round(latency / _STEP_S) for latency in load.latencies_s)
    return load.to_json() | {"latencies_s": dict(sorted(steps.items())), "windows": [], "runs_s": []}


def unpacked(stored: dict[str, Any]) -> Load:
    steps = Counter({int(step): count for step, count in stored["latencies_s"].items()})
    return Load.from_json(stored | {"latencies_s": [step * _STEP_S for step in steps.elements()]})


def _of(found: Traffic, questions: int) -> list[Closed]:
    return [one for one in found["closed"] if one["questions"] == questions]


def within(closed: Sequence[Closed], bound_s: float) -> float | None:
    """The most answers a second of those loads whose p99 is within the bound."""
    loads = [(one["questions"], unpacked(one["load"])) for one in closed]
    kept = [
        questions * load.answers_per_s for questions, load in loads if load.quantile_s(0.99, failed=True) <= bound_s
    ]
    return max(kept, default=None)


def targets(found: Traffic) -> list[Target]:
    """What was asked of calls at random times, of eight questions each."""
    rates = [one["highest"][f"{TARGET_BOUND_S:g}"] for one in found["open"] if one["questions"] == EIGHT]
    if not rates:
        return []
    answers = EIGHT * (rates[0] or 0)
    measure = f"answers a second, {EIGHT} questions a call, p99 within {TARGET_BOUND_S * 1e3:.0f} ms (Poisson)"
    return [Target(measure, f"{answers:,.0f}", f"at least {TARGET:,}", answers >= TARGET, timed=True)]


def report(found: Traffic) -> str:
    """Markdown: the most within each bound, then every load."""
    head = ["questions a call", "loop", "processes", *(f"p99 within {bound * 1e3:.0f} ms" for bound in BOUNDS_S)]
    rows = []
    for questions in (EIGHT, ONE):
        closed = _of(found, questions)
        for processes in dict.fromkeys(one["processes"] for one in closed):
            own = [one for one in closed if one["processes"] == processes]
            most = [within(own, bound) for bound in BOUNDS_S]
            rows.append([f"{questions}", "closed", f"{processes}", *map(_rate, most)])
        for one in (one for one in found["open"] if one["questions"] == questions):
            most = [rate and questions * rate for rate in one["highest"].values()]
            rows.append([f"{questions}", "open", f"{one['processes']}", *map(_rate, most)])
    told = f"{found['generators']} generators. Answers a second, the most that was tried and kept within a bound:"
    failed = "\n".join(f"- Not measured to the end: {why}." for why in found["failed"])
    return "\n\n".join(filter(None, [told, table(head, rows), _loads(found), failed]))


def _rate(answers: float | None) -> str:
    return f"{answers:,.0f}" if answers else "none"


def _loads(found: Traffic) -> str:
    loads = [
        (one["questions"], one["processes"], f"closed, {one['in_flight']} in flight", one["load"])
        for one in found["closed"]
    ]
    loads += [
        (one["questions"], one["processes"], f"open, {one['questions'] * tried['rate']:,.0f} asked/s", tried["load"])
        for one in found["open"]
        for tried in one["trials"]
    ]
    rows = []
    for questions, processes, loop, stored in loads:
        load = unpacked(stored)
        p50, p99 = (f"{load.quantile_s(share, failed=True) * 1e3:.1f}" for share in (0.5, 0.99))
        cores = [f"{spent / load.all_s:.1f}" for spent in (load.server_cpu_s, load.generator_cpu_s)]
        rate = f"{questions * load.answers_per_s:,.0f}"
        rows.append([f"{questions}", f"{processes}", loop, rate, p50, p99, f"{load.failed}", *cores])
    head = ["questions a call", "processes", "load", "answers/s", "p50, ms", "p99, ms", "calls not answered"]
    return table([*head, "server, cores", "generators, cores"], rows)
