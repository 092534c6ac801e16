"""How fast one run of the model is, by length: ``python -m benchmarks.kernels``.

Contenders, at the target's shape on one thread: PyTorch fp32 (bert-base and DistilBERT), the plain ONNX export, the
stock int8 recipe, and the bundle's variants. They run one after another in rounds, in one process, so that a slow spell
of the machine meets all of them; what counts is the median over the rounds of the ratio within a round.

PyTorch gets glibc's allocator tuned (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), without which it spends up to
half its time in page faults; the whole process runs under that setting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from distilqa.bundle import Bundle
from distilqa.engine import import_onnxruntime, open_session, run_session
from distilqa_export.speed import processor

LENGTHS = (8, 16, 32, 64, 128, 256, 384, 512)
OURS, STOCK = "cpu-int8", "stock int8"

# Least speed-up of ours over the stock recipe by length; at any other length it must not be slower.
TARGETS = {128: 1.15, 384: 1.25}

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}

Run = Callable[[np.ndarray], Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description="Time one run, by length.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="in tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    arguments = parser.parse_args()
    if not _ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.kernels", *sys.argv[1:]], os.environ | _ALLOCATOR)

    contenders = {} if arguments.no_torch else torch_contenders(arguments.threads)
    contenders |= onnx_contenders(arguments.threads)
    samples = {length: measure(contenders, length, arguments.rounds) for length in arguments.lengths}
    print(report(samples, arguments.threads))
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment(), "samples_s": samples}, indent=1) + "\n")


def torch_contenders(threads: int) -> dict[str, Run]:
    """PyTorch fp32 with scaled-dot-product attention, in inference mode; bert-base has seeded random weights."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering, DistilBertForQuestionAnswering

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    def run(model: torch.nn.Module) -> Run:
        model.eval()

        def forward(ids: np.ndarray) -> object:
            with torch.inference_mode():
                return model(input_ids=torch.from_numpy(ids))

        return forward

    return {
        "PyTorch fp32, bert-base": run(BertForQuestionAnswering(BertConfig())),
        "PyTorch fp32, DistilBERT": run(DistilBertForQuestionAnswering.from_pretrained(models.wide_checkpoint())),
    }


def onnx_contenders(threads: int) -> dict[str, Run]:
    """The plain export and the stock int8 recipe as ONNX Runtime loads them by default, and our variants."""

    def ours(variant: str) -> Run:
        bundle = Bundle.open(models.wide_bundle())
        session = open_session(bundle.verified(bundle.variant(variant)[1].file), threads=threads)
        return lambda ids: run_session(session, ["input_ids"], list(ids))

    return {
        "ORT fp32, plain export": open_stock(models.plain_onnx(), threads),
        "cpu-fp32": ours("cpu-fp32"),
        STOCK: open_stock(models.stock_int8(), threads),
        OURS: ours(OURS),
    }


def open_stock(path: Path, threads: int) -> Run:
    """A model as ONNX Runtime opens it by default, with its own fusions; takes (windows, length) ids."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    masked = "attention_mask" in [node.name for node in session.get_inputs()]
    return lambda ids: session.run(None, {"input_ids": ids} | ({"attention_mask": np.ones_like(ids)} if masked else {}))


def measure(contenders: dict[str, Run], length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, on one window of that many tokens."""
    generator = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):  # the first is the warm-up
        ids = generator.integers(1000, 30000, (1, length))
        for name, run in contenders.items():
            began = time.perf_counter()
            run(ids)
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def report(samples: dict[int, dict[str, list[float]]], threads: int) -> str:
    """Markdown: median milliseconds by length, then the speed-up over the stock recipe and its spread."""
    lengths = list(samples)
    head = (
        "| ms, median | " + " | ".join(f"1x{length}" for length in lengths) + " |\n" + "|---" * (len(lengths) + 1) + "|"
    )
    rows = [
        f"| {name} | " + " | ".join(f"{statistics.median(samples[n][name]) * 1e3:.1f}" for n in lengths) + " |"
        for name in samples[lengths[0]]
    ]
    verdicts = []
    for length in lengths:
        ratios = [s / o for s, o in zip(samples[length][STOCK], samples[length][OURS], strict=True)]
        low, median, high = np.percentile(ratios, [25, 50, 75])
        target = TARGETS.get(length, 1.0)
        met = "yes" if median >= target else "NO"
        verdicts.append(f"| 1x{length} | {median:.2f} | {low:.2f} to {high:.2f} | {target:.2f} | {met} |")
    return "\n".join(
        [
            f"{environment()['cpu']}, {threads} thread{'s' if threads > 1 else ''},"
            f" onnxruntime {environment()['onnxruntime']}, {len(samples[lengths[0]][OURS])} rounds",
            "",
            head,
            *rows,
            "",
            f"| {OURS} against {STOCK} | median ratio | middle half | at least | met |",
            "|---|---|---|---|---|",
            *verdicts,
        ]
    )


def environment() -> dict[str, str]:
    """What the numbers were measured on."""
    return {
        "cpu": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "onnxruntime": import_onnxruntime().__version__,
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    main()
