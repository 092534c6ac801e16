"""What a thousand answers cost, served: CPU time, energy where the machine counts it, and money at a price.

Real questions at their real lengths, from as many callers as keep every core busy; each model and variant has a server
of its own, one after another in rounds. CPU is the server's alone; energy is all that the processors used meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import models
from benchmarks.load.generator import answer_method, asked, closed, serialize
from benchmarks.load.overload import CALLERS
from benchmarks.load.processes import Running, server
from benchmarks.reporting.tables import Target, table
from benchmarks.setting import Setting
from distilqa.evaluation.progress import ProgressBar

# By RAPL: whole processors; other counters there are of their parts, or of the platform with them.
_COUNTERS = Path("/sys/class/powercap")


class Spent(TypedDict):
    """One load of a server; ``joules`` are of the processors meanwhile, null where nothing counts them."""

    answers: int
    answers_per_s: float
    seconds: float
    server_cpu_s: float
    generator_cpu_s: float
    joules: float | None


class Cost(TypedDict):
    """``loads`` by variant and model; the price is of the machine, in the caller's money."""

    price_per_s: float | None
    loads: dict[str, list[Spent]]


def prepare(setting: Setting) -> None:
    """Make the models."""
    _bundles(setting)


def _bundles(setting: Setting) -> dict[str, Path]:
    return {name: models.bundle(checkpoint) for name, checkpoint in setting.checkpoints.items()}


def measure(setting: Setting) -> Cost:
    bundles = _bundles(setting)
    variants = ("cpu-int8",) if setting.tiny or setting.quick else ("cpu-int8", "cpu-fp32")
    rounds = 1 if setting.tiny or setting.quick else 3
    found = Cost(price_per_s=setting.price_per_s, loads={})
    requests = serialize(asked())
    with ProgressBar("cost", rounds * len(bundles) * len(variants), sys.stderr) as progress:
        done = 0
        for _ in range(rounds):
            for variant in variants:
                for name, bundle in bundles.items():
                    with server(bundle, variant) as running:
                        load = asyncio.run(_load(running, requests, setting.load_s))
                    found["loads"].setdefault(f"{variant}, {name}", []).append(load)
                    done += 1
                    progress(done)
    return found


async def _load(running: Running, requests: Sequence[bytes], seconds: float) -> Spent:
    before = energy_uj()
    async with answer_method(running.address) as method:
        load = await closed(method, running.pid, requests, seconds, CALLERS)
    after = energy_uj()
    return Spent(
        answers=load.ends["OK"],
        answers_per_s=load.answers_per_s,
        seconds=load.all_s,
        server_cpu_s=load.server_cpu_s,
        generator_cpu_s=load.generator_cpu_s,
        joules=joules(before, after),
    )


def energy_uj(counters: Path = _COUNTERS) -> dict[str, tuple[int, int]]:
    """Of each processor's counter, microjoules and where it begins again; none unless all can be read."""
    found = {}
    for folder in sorted(counters.glob("intel-rapl:[0-9]*")):
        try:
            if (folder / "name").read_text().startswith("package"):
                spent, most = (int((folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
                found[folder.name] = (spent, most)
        except (OSError, ValueError):
            return {}
    return found


def joules(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    """What was spent between two readings, in which no counter begins again twice."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[name][0] - spent) % (most + 1) for name, (spent, most) in before.items()) / 1e6


def targets(found: Cost) -> list[Target]:
    """None: what an answer costs is another on each machine."""
    return []


def report(found: Cost) -> str:
    """Markdown: a row a variant and model, each number at the median of the rounds."""
    rows = []
    for name, loads in found["loads"].items():
        cells = [
            statistics.median(1000 * load["server_cpu_s"] / load["answers"] for load in loads),
            statistics.median(load["answers_per_s"] for load in loads),
        ]
        counted = [1000 * load["joules"] / load["answers"] for load in loads if load["joules"] is not None]
        energy = f"{statistics.median(counted):.0f}" if counted else "no counter"
        price = found["price_per_s"]
        money = f"{price * 1000 / cells[1]:.4g}" if price is not None else "no price"
        rows.append([name, f"{cells[0]:.1f}", f"{cells[1]:.1f}", energy, money])
    head = [
        "1,000 answers",
        "CPU seconds of the server",
        "answers/s",
        "joules of the processors",
        "price of 1,000 answers",
    ]
    priced = "" if found["price_per_s"] is None else f"\n\nA second of the machine costs {found['price_per_s']:g}."
    return table(head, rows) + priced
