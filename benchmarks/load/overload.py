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
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.generator import Load, answer_method, closed, open_loop, serialize
from benchmarks.load.processes import Running, server
from distilqa.engine import usable_cores
from distilqa.settings import ServerSettings
from distilqa_export.samples import packaged_evaluation

TARGET = 0.85
TIMES = 5
CALLERS = 16


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
    requests = serialize(packaged_evaluation()[:200])
    with server(bundle) as running:
        peak, over = asyncio.run(_measure(running, requests, arguments.seconds))
    return Overload(peak, over, running.ended)


async def _measure(running: Running, requests: Sequence[bytes], seconds: float) -> tuple[Load, Load]:
    async with answer_method(running.address) as method:
        peak = await closed(method, running.pid, requests, seconds, CALLERS)
        if not peak.in_time:
            raise RuntimeError(f"nothing was answered in {seconds:g} s; --seconds")
        return peak, await open_loop(method, running.pid, requests, seconds, TIMES * peak.answers_per_s)


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
