"""Whether the server's memory stays where it is while windows of ever other lengths come, eight at a time."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.load.processes import resident_mb, server
from benchmarks.reporting.tables import Target, targets_table
from distilqa import Client
from distilqa_export.samples import packaged_evaluation

MOST_MB = 350
FLAT = 1.02
CLIENTS = 8
SAMPLES = 20

# Of the requests, this part may bring memory to where it then stays.
_WARM = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory of the server after so many requests."""

    requests: int
    resident_mb: float


def measure(bundle: Path, arguments: Namespace) -> list[Sample]:
    """Ask passages of 1 to 300 random words, and look from time to time. The first look is once it is warm."""
    requests: int = arguments.requests
    words = " ".join(one.context for one in packaged_evaluation()[:200]).split()
    chance = random.Random(0)
    asked = count(1)
    with server(bundle) as running, Client(running.address) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def ask(words_asked: int) -> Sample | None:
            start = chance.randrange(len(words) - words_asked)
            client.answer("What is it about?", " ".join(words[start : start + words_asked]))
            number = next(asked)
            looks = number == round(requests * _WARM) or number % max(1, requests // SAMPLES) == 0
            return Sample(number, resident_mb(running.pid)) if looks else None

        samples = pool.map(ask, (chance.randint(1, 300) for _ in range(requests)))
        found = sorted((one for one in samples if one), key=lambda one: one.requests)
    return [one for one in found if one.requests >= round(requests * _WARM)]


def report(samples: Sequence[Sample]) -> str:
    """Markdown: what was asked, and the samples in a line."""
    most, first = max(one.resident_mb for one in samples), samples[0]
    growth = most / first.resident_mb
    line = ", ".join(f"{one.resident_mb:.0f}" for one in samples)
    asked = [
        Target("most resident memory", f"{most:.0f} MB", f"under {MOST_MB} MB", most < MOST_MB),
        Target(f"most against after {first.requests:,} requests", f"{growth:.3f}", f"at most {FLAT}", growth <= FLAT),
    ]
    return f"{targets_table(asked)}\n\nMB from there to {samples[-1].requests:,} requests: {line}"
