"""What comes of five times as many calls as the server can answer.

Peak is what it answers while a fixed number of callers ask one question after another. Then calls come at random
(Poisson) five times as often, whether or not those before are answered; their latency counts from the time at which
each was to be sent, so that a generator that falls behind hides nothing. Every call is accounted for by how it ended,
for its caller and by the server's own count.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.load.generator import Load, answer_method, asked, closed, open_loop, serialize
from benchmarks.load.processes import Running, most_resident_mb, server
from benchmarks.reporting.tables import Target, decisive, table, targets_table
from distilqa.engine.cores import usable_cores
from distilqa.server.settings import ServerSettings

TARGET = 0.85
TIMES = 5
CALLERS = 16


@dataclass(frozen=True, slots=True)
class Overload:
    """The peak, and what came of more.

    ``bound_s`` is how long a turn of as many windows as requests may be in flight takes, were they the longest of the
    peak's: a request of two windows waits for two turns.
    ``server_ended`` is how the calls of both ended by the server's count, ``most_mb`` the most memory that it had.
    """

    peak: Load
    over: Load
    bound_s: float
    server_ended: dict[str, int]
    most_mb: float

    @property
    def miscounted(self) -> int:
        """How many calls ended otherwise for the callers than by the server's count."""
        by_status: Counter[str] = Counter()
        for end, count in self.server_ended.items():
            by_status[end.split()[0]] += count  # without the limit that refused a call
        by_status.subtract(self.peak.ends + self.over.ends)
        return sum(map(abs, by_status.values()))


def measure(bundle: Path, arguments: Namespace) -> Overload:
    requests = serialize(asked())
    with server(bundle) as running:
        peak, over = asyncio.run(_measure(running, requests, arguments.seconds))
        most_mb = most_resident_mb(running.pid)
    most: int = ServerSettings.model_fields["max_requests"].default
    return Overload(peak, over, bound_s(peak.runs_s, most, usable_cores()), running.ended, most_mb)


def bound_s(runs_s: Sequence[float], most: int, cores: int) -> float:
    """How long a turn of ``most`` of the longest runs takes, a core each."""
    return sum(sorted(runs_s)[-most:]) / cores


async def _measure(running: Running, requests: Sequence[bytes], seconds: float) -> tuple[Load, Load]:
    async with answer_method(running.address) as method:
        peak = await closed(method, running.pid, requests, seconds, CALLERS)
        return peak, await open_loop(method, running.pid, requests, seconds, TIMES * peak.answers_per_s)


def targets(found: Overload) -> list[Target]:
    share, over = found.over.answers_per_s / found.peak.answers_per_s, found.over
    turns_s = [latency / windows for latency, windows in zip(over.latencies_s, over.windows, strict=True)]
    p99_s = replace(over, latencies_s=turns_s).quantile_s(0.99)
    others = (found.peak.ends + found.over.ends).total() - sum(
        load.ends[end] for load in (found.peak, found.over) for end in ("OK", "RESOURCE_EXHAUSTED")
    )
    return [
        Target(
            f"answers a second at {TIMES} times the peak's calls",
            f"{decisive(share, TARGET, 2)} of the peak's",
            f"at least {TARGET}",
            share >= TARGET,
            timed=True,
        ),
        Target(
            f"p99 of accepted calls at {TIMES} times the peak, for each window of the call",
            f"{decisive(p99_s, found.bound_s, 2)} s",
            f"at most {found.bound_s:.2f} s",
            p99_s <= found.bound_s,
            timed=True,
        ),
        Target("calls neither answered nor refused", f"{others}", "0", others == 0),
        Target("calls whose end the server counted differently", f"{found.miscounted}", "0", found.miscounted == 0),
    ]


def loads_table(found: Overload) -> str:
    rows = []
    for name, load in ((f"peak, {CALLERS} callers", found.peak), (f"{TIMES} times", found.over)):
        ends = ", ".join(f"{count} {end}" for end, count in load.ends.most_common())
        cores = [f"{spent / load.all_s:.2f}" for spent in (load.server_cpu_s, load.generator_cpu_s)]
        latencies = [f"{load.quantile_s(share):.2f}" for share in (0.5, 0.99)]
        rows.append([name, f"{load.due_per_s:.1f}", f"{load.answers_per_s:.1f}", *latencies, *cores, ends])
    head = ["load", "calls/s", "answers/s", "p50, s", "p99, s", "server, cores", "generator, cores", "all calls by end"]
    return table(head, rows)


def report(found: Overload) -> str:
    """Markdown: a row for each load, and what was asked."""
    return f"{loads_table(found)}\n\n{targets_table(targets(found))}"
