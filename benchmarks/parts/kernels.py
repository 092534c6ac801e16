"""How fast one run of the model is, by length and by windows in it, against what else runs it on a CPU.

The systems open the same checkpoint: the variants of a bundle; the plain export in ONNX Runtime as that opens it by
default; the stock int8 recipes that are right on this processor, optimum's and ONNX Runtime's own; OpenVINO with the
plain export in fp32 (left out of a quick run) and with int8 by NNCF, the rest in bf16 where the processor has that, or
in fp32. What comes from the plain export asks for an attention mask and gets one that masks nothing; the bundle's
variants have none. Beside them run bare products of the processor, in 8 bits and in fp32. The variants and the bare
products are in huge pages, as the server has its model; the others are as their libraries open them.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import models
from benchmarks.racing.breakdown import GROUPS, shares
from benchmarks.racing.race import Raced, Ratio, race, ratio, seconds
from benchmarks.racing.systems import MATMUL, PRODUCTS
from benchmarks.racing.worker import Shape, System, bundled
from benchmarks.reporting.tables import Target, decisive, faster, milliseconds, plural, spread, table
from benchmarks.setting import Setting
from distilqa.bundle import VARIANTS, Bundle
from distilqa.evaluation.progress import ProgressBar

OURS = "cpu-int8"
OPTIMUM, ONNXRUNTIME = "optimum int8", "ONNX Runtime int8"
OPENVINO = ("OpenVINO int8", "OpenVINO int8, rest fp32")
PLAIN, OPENVINO_FP32 = "ONNX Runtime fp32", "OpenVINO fp32"

LENGTHS, QUICK_LENGTHS = (8, 16, 32, 64, 128, 256, 384, 512), (16, 64, 128, 384)
BATCHES, BATCH_LENGTHS = (2, 4, 8), (16, 64, 128, 384)

# Least speed-up of cpu-int8 over optimum's recipe by shape; nowhere may it be slower, and nowhere than OpenVINO's int8.
TARGETS = {"1x128": 1.15, "1x384": 1.3}
MATMUL_SHAPE, MATMUL_TARGET = Shape(1, 128), 0.75

_STREAMED = " of many weights"
_BARE_OPERATIONS = 2 * math.prod(MATMUL) * PRODUCTS


class Kernels(TypedDict):
    """``lengths``, one window a run, and ``products`` are by threads; ``batches`` on one thread.

    ``profiles`` say where the time of a run goes on one thread: shares of it by shape, system and group of operators.
    """

    operations_per_token: int
    lengths: list[Raced]
    products: list[Raced]
    batches: Raced
    profiles: dict[str, dict[str, dict[str, float]]]


def prepare(setting: Setting) -> None:
    """Make the models."""
    _systems(setting.distilbert_checkpoint)


def _systems(checkpoint: Path) -> dict[str, System]:
    return bundled(models.bundle(checkpoint)) | {
        PLAIN: System("onnxruntime", models.plain_onnx(checkpoint)),
        OPTIMUM: System("onnxruntime", models.optimum_int8(checkpoint)),
        ONNXRUNTIME: System("onnxruntime", models.onnxruntime_int8(checkpoint)),
        OPENVINO_FP32: System("openvino_fp32", models.openvino_fp32(checkpoint)),
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
    if setting.quick:
        del systems[OPENVINO_FP32]

    def by_threads(name: str, contenders: Mapping[str, System], shapes: Sequence[Shape]) -> list[Raced]:
        return [
            race(f"{name}, {plural(count, 'thread')}", contenders, shapes, threads=count, rounds=setting.rounds)
            for count in setting.threads
        ]

    profiles = _profiles(systems, lengths if setting.tiny else [Shape.parse(shape) for shape in TARGETS])
    return Kernels(
        operations_per_token=models.operations(shape, 1, attention=False),
        lengths=by_threads("by length", systems, lengths),
        products=by_threads("bare products", products, [MATMUL_SHAPE]),
        batches=race(
            "by windows in a run",
            {name: system for name, system in systems.items() if "int8" in name},
            batches,
            threads=1,
            rounds=setting.rounds,
        ),
        profiles=profiles,
    )


def _profiles(systems: Mapping[str, System], shapes: Sequence[Shape]) -> dict[str, dict[str, dict[str, float]]]:
    """Of cpu-int8, and of what it is to be faster than."""
    found: dict[str, dict[str, dict[str, float]]] = {str(shape): {} for shape in shapes}
    profiled = (OURS, OPTIMUM, OPENVINO[0])
    with ProgressBar("profiles", len(shapes) * len(profiled), sys.stderr) as progress:
        for shape in shapes:
            for name in profiled:
                found[str(shape)][name] = shares(systems[name], shape)
                progress(sum(map(len, found.values())))
    return found


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
            met = share >= MATMUL_TARGET
            found_share = decisive(share, MATMUL_TARGET, 1, "%")
            asked.append(Target(measure, found_share, f"at least {MATMUL_TARGET:.0%}", met, timed=True))
    return asked


def _slowest(rival: str, against: Mapping[str, Ratio], threads: str) -> Target:
    shape = min(against, key=lambda shape: against[shape]["median"])
    return faster(f"{OURS} against {rival}, where it is slowest: {shape}, {threads}", against[shape], 1)


def _against_openvino(samples: Mapping[str, Sequence[Sequence[float]]]) -> Ratio:
    """Against the faster of OpenVINO's two ways to run an int8 model."""
    best = min(OPENVINO, key=lambda name: statistics.median(seconds(samples[name])))
    return ratio(samples[OURS], samples[best])


def report(found: Kernels) -> str:
    """Markdown: times and ratios by length and threads, then bare products, and where the time goes."""
    blocks = []
    for raced in found["lengths"]:
        threads = plural(raced["threads"], "thread")
        blocks += [_times(raced, f"ms, {threads}"), _against(raced, threads)]
    blocks += [_products(found, raced) for raced in found["products"]]
    one_thread = next(raced for raced in found["lengths"] if raced["threads"] == 1)
    blocks += [_spent(shape, one_thread, by_system) for shape, by_system in found["profiles"].items()]
    blocks.append(_SPENT)
    return "\n\n".join(blocks)


def appendix(found: Kernels) -> str:
    """Markdown: times and ratios of several windows in a run."""
    return f"{_times(found['batches'], 'ms, 1 thread')}\n\n{_against(found['batches'], '1 thread')}"


def headline(found: Kernels) -> str:
    """What is most worth knowing, in a line."""
    one_thread = next(raced for raced in found["lengths"] if raced["threads"] == 1)
    shapes = one_thread["samples_s"]
    stock = [ratio(samples[OURS], samples[OPTIMUM])["median"] for samples in shapes.values()]
    rival = [_against_openvino(samples)["median"] for samples in shapes.values()]
    return (
        f"One window on one thread: {OURS} is {_range(stock)} times as fast as {OPTIMUM}, and {_range(rival)} times as"
        " fast as OpenVINO's int8 (below 1 it is slower), by the length of the window."
    )


def _range(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


# What a reader must know of the profiles.
_SPENT = """\
These are the times above, shared out as a profile of each system is, which is taken once, on its own. `cpu-int8` and
optimum's model multiply by weights in the same kernels of ONNX Runtime, so that what one can gain on the other lies
elsewhere; optimum's rounds within those products. OpenVINO's products hold rounding and Gelu too (a dash: it has no
operator of its own), and what is not int8 runs in bf16 where the processor has that, in which ONNX Runtime runs nothing
here."""


def _spent(shape: str, raced: Raced, by_system: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for name, parts in by_system.items():
        run_ms = statistics.median(seconds(raced["samples_s"][shape][name])) * 1e3
        rows.append([name, *(f"{run_ms * parts[group]:.1f}" if parts[group] else "-" for group in GROUPS)])
    return table([f"ms of {shape}, 1 thread", *GROUPS], rows)


def _times(raced: Raced, title: str) -> str:
    shapes = list(raced["samples_s"])
    rows = [
        [name, *(milliseconds(raced["samples_s"][shape][name]) for shape in shapes)]
        for name in raced["samples_s"][shapes[0]]
    ]
    return table([title, *shapes], rows)


def _against(raced: Raced, threads: str) -> str:
    shapes = raced["samples_s"].items()
    rows = [
        *(
            [name, *(spread(ratio(samples[OURS], samples[name])) for _, samples in shapes)]
            for name in (OPTIMUM, ONNXRUNTIME)
        ),
        ["the faster OpenVINO int8", *(spread(_against_openvino(samples)) for _, samples in shapes)],
    ]
    return table([f"{OURS}, {threads}, times as fast as", *raced["samples_s"]], rows)


def _products(found: Kernels, raced: Raced) -> str:
    rows, depth, columns = MATMUL
    samples = raced["samples_s"][str(MATMUL_SHAPE)]
    lines = []
    for name in (name for name in samples if "product" in name):
        rate = _BARE_OPERATIONS / statistics.median(seconds(samples[name])) / 1e9
        lines.append([name, f"{rate:.0f}", f"{share_of_products(found, raced, name):.1%} ({_variant(name)})"])
    title = f"{rows} x {depth} by {depth} x {columns}, {plural(raced['threads'], 'thread')}"
    return table([title, "10^9 operations/s", f"of which a run of {MATMUL_SHAPE} reaches"], lines)
