"""Writes a bundle: its models, what proves them, the card and the manifest."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from distilqa.bundle import CARD, GPU_VARIANTS, INT8_PROBE, MANIFEST, SELF_TEST, TOKENIZER, Manifest, Variant, describe
from distilqa.engine.processor import read_processor
from distilqa.engine.runtime import runtime_package
from distilqa.text.windows import Tokenized
from distilqa_export.gate.check import MAX_FP32_DIFFERENCE
from distilqa_export.gate.judge import Comparison, open_run
from distilqa_export.gate.release import Released
from distilqa_export.gate.speed import side_by_side
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.fuse import census
from distilqa_export.quantization.probe import int8_probe
from distilqa_export.quantization.quantize import METHOD
from distilqa_export.writing.card import write_card

_TOOLS = ("distilqa", "torch", "transformers", "optimum-onnx", "onnx", "onnxscript", "tokenizers")

# How many of the evaluation's questions the self-test keeps, from the shortest to the longest.
_SELF_TESTS = 3

# Of the window that runs are timed on, and how many times.
_TIMED_TOKENS, _TIMED_ROUNDS = 128, 15


def write_bundle(
    folder: Path,
    loaded: Checkpoint,
    made: Mapping[str, Released],
    questions: list[Tokenized],
    data: dict[str, str],
) -> Manifest:
    """Write all files of a bundle into an empty folder. ``data`` says what the models were judged and calibrated on."""
    described = _describe_variants(made, loaded)
    (folder / SELF_TEST).write_text(_self_test(questions, made), encoding="utf-8")
    for name, variant in made.items():
        shutil.move(variant.path, folder / f"{name}.onnx")
    (folder / TOKENIZER).write_text(loaded.tokenizer_json, encoding="utf-8")
    if any(variant.precision == "int8" for variant in described.values()):
        ir.save(int8_probe(), folder / INT8_PROBE)
    return _write_manifest(folder, loaded, described, data)


def _describe_variants(made: Mapping[str, Released], loaded: Checkpoint) -> dict[str, Variant]:
    window = np.random.default_rng(0).integers(0, loaded.architecture.vocabulary, _TIMED_TOKENS)
    runs = {name: open_run(one.path) for name, one in made.items() if one.stand_in is None}
    milliseconds = {
        name: {
            f"milliseconds_of_1x{_TIMED_TOKENS}{'_on_gpu' * (name in GPU_VARIANTS)}": 1e3 * statistics.median(seconds)
        }
        for name, seconds in side_by_side(runs, [window], _TIMED_ROUNDS).items()
    }
    return {name: _describe_variant(name, one, milliseconds.get(name, {})) for name, one in made.items()}


def _describe_variant(name: str, made: Released, milliseconds: dict[str, float]) -> Variant:
    precision = name.partition("-")[2]
    return Variant(
        file=f"{name}.onnx",
        precision=precision,
        quantization=METHOD if precision == "int8" else "none",
        operators=dict(sorted(census(made.model).items())),
        tolerance=_tolerance(made.compared),
        measured={**made.measured, **milliseconds},
        fp32_matmuls=made.fp32_matmuls,
        verified=made.stand_in is None,
    )


def _tolerance(compared: Comparison | None) -> float:
    """How far logits may be off on another processor, where sums are rounded in another order.

    A rounding that tips one 8-bit value over is amplified through the layers, so int8 needs room: where two models are
    each as far from fp32 as this one on packaged passages, they are at most twice as far from one another. What
    differs by more is another model.
    """
    return MAX_FP32_DIFFERENCE if compared is None else 2 * compared.largest_difference


def _self_test(questions: list[Tokenized], made: Mapping[str, Released]) -> str:
    windows = sorted((window for question in questions for window in question.windows), key=lambda one: one.length)
    chosen = [windows[round(i * (len(windows) - 1) / (_SELF_TESTS - 1))].input_ids for i in range(_SELF_TESTS)]
    content: dict[str, Any] = {
        "inputs": [ids.tolist() for ids in chosen],
        "logits": {
            name: [[side[0].tolist() for side in run([ids])] for ids in chosen]
            for name, one in made.items()
            for run in [open_run(one.runnable)]
        },
    }
    return json.dumps(content) + "\n"


def _write_manifest(folder: Path, loaded: Checkpoint, variants: dict[str, Variant], data: dict[str, str]) -> Manifest:
    """Write the card and the manifest over the files that are there."""
    manifest = Manifest(
        name=loaded.name,
        version="1",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=loaded.source,
        architecture=loaded.architecture,
        window_tokens=loaded.window_tokens,
        variants=variants,
        data=data,
        tools={name: version(name) for name in (*_TOOLS, runtime_package())},
        processor=str(read_processor()),
        files={},
    )
    files = {path.name: describe(path) for path in sorted(folder.iterdir())}
    (folder / CARD).write_text(write_card(manifest, loaded, files), encoding="utf-8")
    manifest = replace(manifest, files=files | {CARD: describe(folder / CARD)})
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
