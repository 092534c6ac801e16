"""What the server costs over the bare reader: ``python -m benchmarks.overhead``.

CPU seconds per answer of the server's process, against those of a process that answers the same questions with the
in-process reader, at the target's shape, on the packaged questions at their real lengths. Both processes live through
the whole benchmark and take turns, question set by question set; what counts is the median over the rounds of the ratio
within a round. The clients run in a third process, whose CPU is reported beside.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import models
from benchmarks.kernels import environment
from distilqa import Client, Reader
from distilqa.evaluation import Question
from distilqa_export.samples import packaged_evaluation

TARGET = 1.08
CLIENTS = (1, 8)


@dataclass(frozen=True, slots=True)
class Round:
    """CPU seconds per answer in one round; ``clients`` is how many asked the server at once."""

    clients: int
    reader_cpu_s: float
    server_cpu_s: float
    generator_cpu_s: float
    reader_answers_per_s: float
    server_answers_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="Measure the server's overhead.")
    parser.add_argument("--questions", type=int, default=60, help="in each round, at most 200")
    parser.add_argument("--rounds", type=int, default=7, help="for each number of clients")
    parser.add_argument("--bundle", type=Path, help="instead of the stand-in at the target's shape")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bundle = arguments.bundle or models.wide_bundle()
    questions = packaged_evaluation()[: arguments.questions]
    if arguments.read:
        read(bundle, questions)
        return
    rounds = measure(bundle, questions, arguments.rounds)
    print(report(rounds))
    if arguments.json:
        content = {"environment": environment(), "rounds": [asdict(one) for one in rounds]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def read(bundle: Path, questions: Sequence[Question]) -> None:
    """The in-process side: answer all questions once for each line on stdin, and print a line when done."""
    reader = Reader(bundle)
    print("ready", flush=True)
    for _ in sys.stdin:
        for sample in questions:
            reader.answer(sample.question, sample.context)
        print("done", flush=True)


def measure(bundle: Path, questions: Sequence[Question], rounds: int) -> list[Round]:
    """Run the rounds, the first of each number of clients being the warm-up."""
    own = [sys.executable, "-m", "benchmarks.overhead", "--read", "--bundle", str(bundle)]
    reader_command = [*own, "--questions", str(len(questions))]
    server_command = [sys.executable, "-m", "distilqa.cli", "serve", str(bundle), "--port", "0"]
    with (
        subprocess.Popen(reader_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader,
        subprocess.Popen(server_command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert reader.stdout is not None
            assert server.stdout is not None
            reader.stdout.readline()
            found = re.search(r" on (\S+)\. ", server.stdout.readline())
            assert found, "the server did not start"
            threading.Thread(target=server.stdout.read, daemon=True).start()
            result = []
            with Client(found[1]) as client:
                for clients in CLIENTS:
                    for number in range(-1, rounds):
                        one = one_round(reader, server, client, questions, clients)
                        if number >= 0:
                            result.append(one)
            return result
        finally:
            reader.terminate()
            server.terminate()


def one_round(
    reader: subprocess.Popen[str],
    server: subprocess.Popen[str],
    client: Client,
    questions: Sequence[Question],
    clients: int,
) -> Round:
    """Let both answer the questions, one after the other."""
    assert reader.stdin is not None
    assert reader.stdout is not None
    began, reader_cpu = time.perf_counter(), cpu_s(reader.pid)
    reader.stdin.write("go\n")
    reader.stdin.flush()
    reader.stdout.readline()
    reader_s, reader_cpu = time.perf_counter() - began, cpu_s(reader.pid) - reader_cpu

    began, server_cpu, own_cpu = time.perf_counter(), cpu_s(server.pid), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda sample: client.answer(sample.question, sample.context), questions))
    server_s, server_cpu = time.perf_counter() - began, cpu_s(server.pid) - server_cpu
    own_cpu = time.process_time() - own_cpu

    count = len(questions)
    return Round(clients, reader_cpu / count, server_cpu / count, own_cpu / count, count / reader_s, count / server_s)


def cpu_s(pid: int) -> float:
    """CPU seconds, of user and system, that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(rounds: Sequence[Round]) -> str:
    """Markdown: a row for each number of clients."""
    rows = []
    for clients in dict.fromkeys(one.clients for one in rounds):
        chosen = [one for one in rounds if one.clients == clients]
        ratio = statistics.median(one.server_cpu_s / one.reader_cpu_s for one in chosen)
        reader, server, generator = (
            statistics.median(getattr(one, name) for one in chosen) * 1e3
            for name in ("reader_cpu_s", "server_cpu_s", "generator_cpu_s")
        )
        reader_rate, server_rate = (
            statistics.median(getattr(one, name) for one in chosen)
            for name in ("reader_answers_per_s", "server_answers_per_s")
        )
        rows.append(
            f"| {clients} | {reader:.1f} | {server:.1f} | {ratio:.3f} | {'yes' if ratio <= TARGET else 'NO'} |"
            f" {generator:.2f} | {reader_rate:.1f} | {server_rate:.1f} |"
        )
    return "\n".join(
        [
            f"{environment()['cpu']}, {environment()['cores']} cores, onnxruntime {environment()['onnxruntime']}",
            "",
            f"| clients | reader, CPU ms | server, CPU ms | median ratio | at most {TARGET} | client, CPU ms |"
            " reader, answers/s | server, answers/s |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


if __name__ == "__main__":
    main()
