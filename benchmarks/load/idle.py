"""How long one question takes on an idle server, from call to reply, against the bare run of its window on all cores.

They take turns, question by question, and with them a call that asks for nothing but what is served: what a call costs
whatever it asks. The bare session is in the client's process and as fast as one can be: the exported graph, all cores,
threads that spin through a run.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.load.processes import server
from benchmarks.racing.race import SETTLE_S
from benchmarks.reporting.tables import table
from distilqa import Client
from distilqa.bundle import Bundle
from distilqa.engine import huge_pages
from distilqa.engine.cores import usable_cores
from distilqa.engine.session import SPIN_US, open_session, run_session
from distilqa.evaluation.dataset import Question
from distilqa.reader import open_windower
from distilqa.text.arrays import Int64
from distilqa_export.samples import packaged_evaluation

FACTOR, MORE_S = 1.10, 0.002
LENGTHS = (64, 128, 256, 384)


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds for one question of ``tokens`` tokens, and for a call that asks none."""

    tokens: int
    bare_s: float
    served_s: float
    empty_s: float


def measure(bundle: Path, arguments: Namespace) -> list[Pair]:
    """Ask the question nearest to each length, round by round."""
    opened = Bundle.open(bundle)
    _, variant = opened.variant(None)
    session = open_session(bundle / variant.file, threads=usable_cores(), spin_us=SPIN_US)
    huge_pages.collapse()  # as the server does
    chosen = [nearest(opened, length) for length in LENGTHS]
    pairs = []
    with server(bundle) as running, Client(running.address) as client:
        for number in range(-3, 5 * arguments.rounds):
            for question, window in chosen:
                pair = Pair(
                    len(window),
                    seconds(partial(run_session, session, ["input_ids"], [window])),
                    seconds(partial(client.answer, question.question, question.context)),
                    seconds(client.model),
                )
                if number >= 0:
                    pairs.append(pair)
    return pairs


def seconds(work: Callable[[], object]) -> float:
    """Of some work on a machine that was idle: what spun for more has gone to sleep."""
    time.sleep(SETTLE_S)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def nearest(bundle: Bundle, tokens: int) -> tuple[Question, Int64]:
    """The question whose passage makes one window, and that of about so many tokens."""
    windower = open_windower(bundle)
    made = [(one, windower.tokenize(one.question, [one.context]).windows) for one in packaged_evaluation()[:500]]
    single = [(one, windows[0].input_ids) for one, windows in made if len(windows) == 1]
    return min(single, key=lambda pair: abs(len(pair[1]) - tokens))


def report(pairs: Sequence[Pair]) -> str:
    """Markdown: a row for each length."""
    rows = []
    for tokens in dict.fromkeys(one.tokens for one in pairs):
        bare, empty, served = (
            statistics.median(getattr(one, name) for one in pairs if one.tokens == tokens)
            for name in ("bare_s", "empty_s", "served_s")
        )
        bound = FACTOR * bare + MORE_S
        times = [f"{one * 1e3:.1f}" for one in (bare, empty, served, bound)]
        rows.append([f"{tokens}", *times, "yes" if served <= bound else "NO"])
    return table(["tokens", "bare run, ms", "empty call, ms", "served, ms", "at most, ms", "met"], rows)
