"""What the server costs over the in-process reader: CPU seconds per answer, at the questions' real lengths.

The in-process side is at its best for as many callers: one asks after the other with all cores for a run; many ask at
once with a core for each run. Both processes live through the whole benchmark and take turns, question set by question
set; what counts is the median over the rounds of the ratio within a round. The clients run in a third process.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.load.processes import Running, cpu_s, server
from benchmarks.reporting.tables import table
from distilqa import Client, Reader
from distilqa.engine import huge_pages
from distilqa.engine.cores import usable_cores
from distilqa.evaluation.dataset import Question
from distilqa_export.samples import packaged_evaluation

TARGET = 1.05
CLIENTS = (1, 8)


@dataclass(frozen=True, slots=True)
class Round:
    """CPU seconds per answer in one round; ``clients`` is how many asked at once."""

    clients: int
    reader_cpu_s: float
    server_cpu_s: float
    generator_cpu_s: float
    reader_answers_per_s: float
    server_answers_per_s: float


def read(bundle: Path, questions: Sequence[Question]) -> None:
    """The in-process side: for each number of clients on stdin, answer all questions, and print a line when done."""
    alone, shared = Reader(bundle), Reader(bundle, threads=1)
    huge_pages.collapse()  # as the server does
    with ThreadPoolExecutor(usable_cores()) as lanes:
        print("ready", flush=True)
        for line in sys.stdin:
            if line == "1\n":
                for one in questions:
                    alone.answer(one.question, one.context)
            else:
                list(lanes.map(lambda one: shared.answer(one.question, one.context), questions))
            print("done", flush=True)


def measure(bundle: Path, arguments: Namespace) -> list[Round]:
    """Run the rounds, the first of each number of clients being the warm-up."""
    asked = packaged_evaluation()[: arguments.questions]
    command = [sys.executable, "-m", "benchmarks.load", "--read", "--bundle", str(bundle)]
    command += ["--questions", str(arguments.questions)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader,
        server(bundle) as running,
        Client(running.address) as client,
    ):
        try:
            assert reader.stdout is not None
            reader.stdout.readline()
            all_rounds = [
                (number, one_round(reader, running, client, asked, clients))
                for clients in CLIENTS
                for number in range(-1, arguments.rounds)
            ]
            return [one for number, one in all_rounds if number >= 0]
        finally:
            reader.terminate()


def one_round(
    reader: subprocess.Popen[str], running: Running, client: Client, asked: Sequence[Question], clients: int
) -> Round:
    """Let both answer the questions, one after the other."""
    assert reader.stdin is not None
    assert reader.stdout is not None
    began, reader_cpu = time.perf_counter(), cpu_s(reader.pid)
    reader.stdin.write(f"{clients}\n")
    reader.stdin.flush()
    reader.stdout.readline()
    reader_s, reader_cpu = time.perf_counter() - began, cpu_s(reader.pid) - reader_cpu

    began, server_cpu, own_cpu = time.perf_counter(), cpu_s(running.pid), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda one: client.answer(one.question, one.context), asked))
    server_s, server_cpu = time.perf_counter() - began, cpu_s(running.pid) - server_cpu
    own_cpu = time.process_time() - own_cpu

    count = len(asked)
    return Round(clients, reader_cpu / count, server_cpu / count, own_cpu / count, count / reader_s, count / server_s)


def report(rounds: Sequence[Round]) -> str:
    """Markdown: a row for each number of clients."""
    rows = []
    for clients in dict.fromkeys(one.clients for one in rounds):
        chosen = [one for one in rounds if one.clients == clients]
        # Of a model so small that the clock of the processors misses it there is no ratio.
        ratio = statistics.median(
            one.server_cpu_s / one.reader_cpu_s if one.reader_cpu_s else math.inf for one in chosen
        )
        reader, served, generator, reader_rate, server_rate = (
            statistics.median(getattr(one, field.name) for one in chosen) for field in fields(Round)[1:]
        )
        met = "" if clients == 1 else "yes" if ratio <= TARGET else "NO"
        cpu_ms = [f"{reader * 1e3:.1f}", f"{served * 1e3:.1f}", f"{ratio:.3f}", met, f"{generator * 1e3:.2f}"]
        rows.append([f"{clients}", *cpu_ms, f"{reader_rate:.1f}", f"{server_rate:.1f}"])
    head = ["clients", "in process, CPU ms", "served, CPU ms", "median ratio", f"at most {TARGET}", "client, CPU ms"]
    return table([*head, "in process, answers/s", "served, answers/s"], rows)
