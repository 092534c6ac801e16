"""What the model's card claims against bert-base: 40 % fewer parameters, 60 % faster. (For F1 see Quality.)

Both models in PyTorch fp32, as the paper measured them, and through this software, by the same exporter, so that the
ratio compares models and not toolchains. PyTorch is the faster of eager and compiled. Memory is that of the measuring
processes, with the libraries that each needs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import models
from benchmarks.racing.child import SystemFailed
from benchmarks.racing.race import Raced, Ratio, race, ratio, seconds
from benchmarks.racing.worker import Shape, System, bundled
from benchmarks.reporting.tables import Target, faster, milliseconds, plural, spread, table
from benchmarks.setting import BERT, DISTILBERT, Setting
from distilqa.bundle import VARIANTS, Bundle
from distilqa.engine.cores import usable_cores

PYTORCH = "PyTorch fp32"
SYSTEMS = (PYTORCH, "cpu-fp32", "cpu-int8")

# By the model's card.
PUBLISHED_FEWER_PARAMETERS, PUBLISHED_FASTER = 0.40, 0.60

# Least speed-up of cpu-int8 over bert-base in PyTorch fp32, by shape.
TARGETS = {"1x128": 6.2, "1x384": 5.2}

_TRIED_ROUNDS = 3


class Model(TypedDict):
    """A model's size; files by PyTorch or variant."""

    checkpoint: str
    stand_in: bool
    parameters: int
    bytes: dict[str, int]


class Claims(TypedDict):
    """``chosen`` is, by threads and model, which PyTorch was faster; ``races`` are by threads."""

    models: dict[str, Model]
    tried: list[Raced]
    chosen: dict[str, dict[str, str]]
    races: list[Raced]
    throughput: Raced


def prepare(setting: Setting) -> None:
    """Make the models."""
    for checkpoint in setting.checkpoints.values():
        models.bundle(checkpoint)


def measure(setting: Setting) -> Claims:
    checkpoints = setting.checkpoints
    bundles = {name: models.bundle(checkpoint) for name, checkpoint in checkpoints.items()}
    given = {DISTILBERT: setting.distilbert, BERT: setting.bert}
    found = Claims(
        models={name: _describe(checkpoints[name], bundles[name], given[name]) for name in checkpoints},
        tried=[],
        chosen={},
        races=[],
        throughput=Raced(threads=1, samples_s={}, resident_mb={}, left_out={}),
    )
    shapes = [Shape(1, 8)] if setting.tiny else [Shape(1, 128), Shape(1, 384)]
    for threads in setting.threads:
        tried = _try_pytorch(setting, checkpoints, shapes[:1] if setting.quick else shapes, threads)
        found["tried"].append(tried)
        chosen = {name: faster_kind(tried, name) for name in checkpoints}
        found["chosen"][str(threads)] = chosen
        systems = {f"{PYTORCH}, {name}": System(chosen[name], checkpoint) for name, checkpoint in checkpoints.items()}
        systems |= {
            f"{variant}, {name}": bundled(bundle)[variant]
            for variant in (["cpu-int8"] if setting.quick else VARIANTS)
            for name, bundle in bundles.items()
        }
        found["races"].append(
            race(f"both models, {plural(threads, 'thread')}", systems, shapes, threads=threads, rounds=setting.rounds)
        )
        if threads == 1:
            at_once = [Shape(1, shapes[0].tokens, at_once=usable_cores())]
            found["throughput"] = race("throughput", systems, at_once, threads=1, rounds=setting.rounds)
    return found


def _try_pytorch(setting: Setting, checkpoints: Mapping[str, Path], shapes: Sequence[Shape], threads: int) -> Raced:
    """Eager and compiled, which does not work everywhere."""
    kinds = ["pytorch"] if setting.tiny else ["pytorch", "pytorch_compiled"]
    return race(
        f"PyTorch, eager and compiled, {plural(threads, 'thread')}",
        {f"{name}, {kind}": System(kind, checkpoint) for name, checkpoint in checkpoints.items() for kind in kinds},
        shapes,
        threads=threads,
        rounds=min(setting.rounds, _TRIED_ROUNDS),
        may_fail=True,
    )


def faster_kind(tried: Raced, model: str) -> str:
    """The kind of PyTorch that takes less time for all shapes together. Raises SystemFailed where none runs."""
    totals: dict[str, float] = {}
    for samples in tried["samples_s"].values():
        for name, of_system in samples.items():
            if name.startswith(f"{model}, "):
                kind = name.removeprefix(f"{model}, ")
                totals[kind] = totals.get(kind, 0) + statistics.median(seconds(of_system))
    if not totals:
        raise SystemFailed("; ".join(tried["left_out"].values()))
    return min(totals, key=lambda kind: totals[kind])


def _describe(checkpoint: Path, bundle: Path, given: str | None) -> Model:
    manifest = Bundle.open(bundle).manifest
    files = {variant: manifest.files[manifest.variants[variant].file].bytes for variant in VARIANTS}
    weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    return Model(
        checkpoint=given or models.source(checkpoint),
        stand_in=not given,
        parameters=manifest.architecture.parameters,
        bytes={PYTORCH: weights} | files,
    )


def speed_up(raced: Raced, shape: str) -> Ratio:
    """How many times as fast cpu-int8 is as bert-base in PyTorch fp32."""
    samples = raced["samples_s"][shape]
    return ratio(samples[f"cpu-int8, {DISTILBERT}"], samples[f"{PYTORCH}, {BERT}"])


def targets(found: Claims) -> list[Target]:
    """What was asked of cpu-int8 against what a user of bert-base has."""
    return [
        faster(
            f"DistilBERT cpu-int8 against {BERT} in PyTorch fp32, {shape}, {plural(raced['threads'], 'thread')}",
            speed_up(raced, shape),
            TARGETS[shape],
        )
        for raced in found["races"]
        for shape in raced["samples_s"]
        if shape in TARGETS
    ]


def headline(found: Claims) -> str:
    """What is most worth knowing, in a line."""
    raced = found["races"][0]
    told = [f"{speed_up(raced, shape)['median']:.1f} times at {shape}" for shape in raced["samples_s"]]
    return (
        f"DistilBERT as cpu-int8 is faster than {BERT} in PyTorch fp32, on {plural(raced['threads'], 'thread')}:"
        f" {', '.join(told)}."
    )


def report(found: Claims) -> str:
    """Markdown: sizes, then times by shape and threads, then what was measured."""
    distil, bert = found["models"][DISTILBERT], found["models"][BERT]
    fewer = 1 - distil["parameters"] / bert["parameters"]
    size_rows = [["parameters, millions", *(f"{one['parameters'] / 1e6:.1f}" for one in (distil, bert)),
                  f"{fewer:.0%} fewer ({PUBLISHED_FEWER_PARAMETERS:.0%} claimed)"]]  # fmt: skip
    for system in SYSTEMS:
        sizes = [one["bytes"][system] for one in (distil, bert)]
        size_rows.append([f"MB on disk, {system}", *(f"{size / 1e6:.0f}" for size in sizes), _less(*sizes)])
    one_thread = next(raced for raced in found["races"] if raced["threads"] == 1)
    for system in measured_systems(one_thread):
        resident = [one_thread["resident_mb"][f"{system}, {name}"] for name in (DISTILBERT, BERT)]
        size_rows.append([f"MB resident, {system}", *(f"{size:.0f}" for size in resident), _less(*resident)])
    blocks = [table(["", DISTILBERT, BERT, ""], size_rows)]
    for raced in found["races"]:
        for shape in raced["samples_s"]:
            blocks.append(_speed(raced, shape, f"ms, {shape}, {plural(raced['threads'], 'thread')}"))
    blocks.append(_throughput(found["throughput"]))
    notes = []
    for name, model in found["models"].items():
        made = (
            "a stand-in of its exact shape, since speed does not depend on the values" if model["stand_in"] else "given"
        )
        notes.append(f"{name} is {model['checkpoint']} ({made}).")
    for count, kinds in found["chosen"].items():
        told = ", ".join(f"{name} {kind.replace('_', ', ')}" for name, kind in kinds.items())
        notes.append(f"PyTorch on {plural(int(count), 'thread')}, the faster of eager and compiled: {told}.")
    for tried in found["tried"]:
        notes.extend(f"Left out: {name} ({reason})." for name, reason in tried["left_out"].items())
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)])


def measured_systems(raced: Raced) -> list[str]:
    return [system for system in SYSTEMS if f"{system}, {BERT}" in raced["resident_mb"]]


def _less(size: float, other: float) -> str:
    return f"{1 - size / other:.0%} less"


def _speed(raced: Raced, shape: str, title: str) -> str:
    samples = raced["samples_s"][shape]
    rows = []
    for system in measured_systems(raced):
        own, others = samples[f"{system}, {DISTILBERT}"], samples[f"{system}, {BERT}"]
        rows.append([system, milliseconds(own), milliseconds(others), spread(ratio(own, others)), _claimed(system)])
    return table([title, DISTILBERT, BERT, _FASTER, "claimed"], rows)


def _throughput(raced: Raced) -> str:
    """Of as many runs at once as there are cores, each on one thread."""
    ((shape, samples),) = raced["samples_s"].items()
    rows = []
    for system in measured_systems(raced):
        own, others = samples[f"{system}, {DISTILBERT}"], samples[f"{system}, {BERT}"]
        rates = [f"{Shape.parse(shape).at_once / statistics.median(seconds(one)):.1f}" for one in (own, others)]
        rows.append([system, *rates, spread(ratio(own, others)), _claimed(system)])
    return table([f"runs/s, {shape}, a core each", DISTILBERT, BERT, _FASTER, "claimed"], rows)


_FASTER = "times as fast (middle half)"


def _claimed(system: str) -> str:
    return f"{1 + PUBLISHED_FASTER:.1f}" if system == PYTORCH else ""
