"""How fast one run of the model is, by length and by windows in it, against what else runs it on a CPU.

The systems open the same checkpoint: the variants of a bundle; the plain export in ONNX Runtime as that opens it by
default; the stock int8 recipes, optimum's and ONNX Runtime's own; OpenVINO with the plain export in fp32 and with int8
by NNCF. What comes from the plain export asks for an attention mask and gets one that masks nothing; the bundle's
variants have none. Beside them run bare products of the processor, in 8 bits and in fp32.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import models
from benchmarks.race import Raced, Ratio, race, ratio, seconds
from benchmarks.setting import Setting
from benchmarks.systems import MATMUL, PRODUCTS
from benchmarks.tables import Target, faster, milliseconds, plural, spread, table
from benchmarks.worker import Shape, System, bundled
from distilqa.bundle import VARIANTS, Bundle

OURS = "cpu-int8"
OPTIMUM, ONNXRUNTIME = "optimum int8", "ONNX Runtime int8"
OPENVINO = ("OpenVINO int8", "OpenVINO int8, rest fp32")
PLAIN = "ONNX Runtime fp32"

LENGTHS, QUICK_LENGTHS = (8, 16, 32, 64, 128, 256, 384, 512), (16, 64, 128, 384)
BATCHES, BATCH_LENGTHS = (2, 4, 8), (16, 64, 128, 384)

# Least speed-up of cpu-int8 over optimum's recipe by shape; nowhere may it be slower, and nowhere than OpenVINO's int8.
TARGETS = {"1x128": 1.15, "1x384": 1.3}
MATMUL_SHAPE, MATMUL_TARGET = Shape(1, 128), 0.75

_STREAMED = " of many weights"
_BARE_OPERATIONS = 2 * math.prod(MATMUL) * PRODUCTS


class Kernels(TypedDict):
    """``lengths``, one window a run, and ``products`` are by threads; ``batches`` on one thread."""

    operations_per_token: int
    lengths: list[Raced]
    products: list[Raced]
    batches: Raced


def prepare(setting: Setting) -> None:
    """Make the models."""
    _systems(setting.distilbert_checkpoint)


def _systems(checkpoint: Path) -> dict[str, System]:
    return bundled(models.bundle(checkpoint)) | {
        PLAIN: System("onnxruntime", models.plain_onnx(checkpoint)),
        OPTIMUM: System("onnxruntime", models.optimum_int8(checkpoint)),
        ONNXRUNTIME: System("onnxruntime", models.onnxruntime_int8(checkpoint)),
        "OpenVINO fp32": System("openvino_fp32", models.openvino_fp32(checkpoint)),
        OPENVINO[0]: System("openvino", models.openvino_int8(checkpoint)),
        OPENVINO[1]: System("openvino_fp32", models.openvino_int8(checkpoint)),
    }


def measure(setting: Setting) -> Kernels:
    checkpoint = setting.distilbert_checkpoint
    systems, shape = _systems(checkpoint), Bundle.open(models.bundle(checkpoint)).manifest.architecture
    products = {name: systems[name] for name in VARIANTS} | {
        f"{precision} product{of}": System(f"matmul_{precision}{kind}", checkpoint)
        for precision in ("int8", "fp32")
        for of, kind in (("", ""), (_STREAMED, "_streamed"))
    }
    lengths, batches = _shapes(setting, shape.positions)

    def by_threads(name: str, contenders: Mapping[str, System], shapes: Sequence[Shape]) -> list[Raced]:
        return [
            race(f"{name}, {plural(count, 'thread')}", contenders, shapes, threads=count, rounds=setting.rounds)
            for count in setting.threads
        ]

    return Kernels(
        operations_per_token=2 * shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.feed_forward),
        lengths=by_threads("by length", systems, lengths),
        products=by_threads("bare products", products, [MATMUL_SHAPE]),
        batches=race(
            "by windows in a run",
            {name: system for name, system in systems.items() if "int8" in name},
            batches,
            threads=1,
            rounds=setting.rounds,
        ),
    )


def _shapes(setting: Setting, positions: int) -> tuple[list[Shape], list[Shape]]:
    """Of one window, and of more in a run."""
    if setting.tiny:
        return [Shape(1, 8), Shape(1, 16)], [Shape(2, 8)]
    if setting.quick:
        return [Shape(1, length) for length in QUICK_LENGTHS], [Shape(8, 16)]
    lengths = [Shape(1, length) for length in LENGTHS if length <= positions]
    return lengths, [Shape(windows, length) for length in BATCH_LENGTHS for windows in BATCHES]


def share_of_products(found: Kernels, raced: Raced, products: str) -> float:
    """The rate of a variant's matmuls by weights in a run of `MATMUL_SHAPE`, as a share of that of bare products.

    The variant is of the products' precision. The median over the rounds. All of a run's time counts, whatever it is
    spent on.
    """
    samples = raced["samples_s"][str(MATMUL_SHAPE)]
    run = found["operations_per_token"] * MATMUL_SHAPE.tokens
    return run / _BARE_OPERATIONS * ratio(samples[_variant(products)], samples[products])["median"]


def _variant(products: str) -> str:
    return f"cpu-{products.split()[0]}"


def targets(found: Kernels) -> list[Target]:
    """What was asked of cpu-int8 against other int8 models, and against the processor."""
    asked = []
    for raced in found["lengths"]:
        threads = plural(raced["threads"], "thread")
        against = {shape: ratio(samples[OURS], samples[OPTIMUM]) for shape, samples in raced["samples_s"].items()}
        for shape in (shape for shape in TARGETS if shape in against):
            asked.append(faster(f"{OURS} against {OPTIMUM}, {shape}, {threads}", against[shape], TARGETS[shape]))
        asked.append(_slowest(OPTIMUM, against, threads))
        against = {shape: _against_openvino(samples) for shape, samples in raced["samples_s"].items()}
        asked.append(_slowest("OpenVINO int8", against, threads))
    for raced in found["products"]:
        threads = plural(raced["threads"], "thread")
        for name in ("int8 product", f"int8 product{_STREAMED}"):
            share = share_of_products(found, raced, name)
            measure = f"{OURS} at {MATMUL_SHAPE} as a share of the rate of the {name}, {threads}"
            asked.append(Target(measure, f"{share:.0%}", f"at least {MATMUL_TARGET:.0%}", share >= MATMUL_TARGET))
    return asked


def _slowest(rival: str, against: Mapping[str, Ratio], threads: str) -> Target:
    shape = min(against, key=lambda shape: against[shape]["median"])
    return faster(f"{OURS} against {rival}, where it is slowest: {shape}, {threads}", against[shape], 1)


def _against_openvino(samples: Mapping[str, Sequence[Sequence[float]]]) -> Ratio:
    """Against the faster of OpenVINO's two ways to run an int8 model."""
    best = min(OPENVINO, key=lambda name: statistics.median(seconds(samples[name])))
    return ratio(samples[OURS], samples[best])


def report(found: Kernels) -> str:
    """Markdown: times and ratios by length and threads, then bare products, then batches."""
    blocks = []
    for raced in found["lengths"]:
        threads = plural(raced["threads"], "thread")
        blocks += [_times(raced, f"ms, {threads}"), _against(raced, f"cpu-int8, {threads}, against")]
    blocks += [_products(found, raced) for raced in found["products"]]
    blocks += [_times(found["batches"], "ms, 1 thread"), _against(found["batches"], "cpu-int8, 1 thread, against")]
    return "\n\n".join(blocks)


def _times(raced: Raced, title: str) -> str:
    shapes = list(raced["samples_s"])
    rows = [
        [name, *(milliseconds(raced["samples_s"][shape][name]) for shape in shapes)]
        for name in raced["samples_s"][shapes[0]]
    ]
    return table([title, *shapes], rows)


def _against(raced: Raced, title: str) -> str:
    shapes = raced["samples_s"].items()
    rows = [
        *(
            [name, *(spread(ratio(samples[OURS], samples[name])) for _, samples in shapes)]
            for name in (OPTIMUM, ONNXRUNTIME)
        ),
        ["the faster OpenVINO int8", *(spread(_against_openvino(samples)) for _, samples in shapes)],
    ]
    return table([title, *raced["samples_s"]], rows)


def _products(found: Kernels, raced: Raced) -> str:
    rows, depth, columns = MATMUL
    samples = raced["samples_s"][str(MATMUL_SHAPE)]
    lines = []
    for name in (name for name in samples if "product" in name):
        rate = _BARE_OPERATIONS / statistics.median(seconds(samples[name])) / 1e9
        lines.append([name, f"{rate:.0f}", f"{share_of_products(found, raced, name):.0%} ({_variant(name)})"])
    title = f"{rows} x {depth} by {depth} x {columns}, {plural(raced['threads'], 'thread')}"
    return table([title, "10^9 operations/s", f"of which a run of {MATMUL_SHAPE} reaches"], lines)
