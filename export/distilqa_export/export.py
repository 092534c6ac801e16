"""From a checkpoint to a bundle, in named steps: load, trace, fuse, quantise, check, write.

The fp32 model must give PyTorch's logits; each other variant answers the evaluation's questions before it is listed,
and may not lose more F1 than its budget.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from distilqa.bundle import (
    CARD,
    GPU_VARIANTS,
    INT8_PROBE,
    MANIFEST,
    SELF_TEST,
    TOKENIZER,
    VARIANTS,
    Manifest,
    Variant,
    describe,
    staged,
)
from distilqa.engine import open_session, run_int8_probe, runtime_package, usable_cores
from distilqa.errors import InvalidRequest
from distilqa.evaluation import shown_id
from distilqa.processor import read_processor
from distilqa.reader import Reader
from distilqa.windows import Tokenized, Windower
from distilqa_export import samples
from distilqa_export.card import write_card
from distilqa_export.check import MAX_FP32_DIFFERENCE, check_fp32, runner
from distilqa_export.checkpoint import Checkpoint, load_checkpoint
from distilqa_export.errors import ExportError
from distilqa_export.fuse import census, fuse
from distilqa_export.gate import Released, release, release_packed, scores, scores_of_fp32
from distilqa_export.judge import Comparison, Judge, open_run
from distilqa_export.probe import int8_probe
from distilqa_export.progress import Progress, tenths
from distilqa_export.quantize import METHOD, Quantizer
from distilqa_export.speed import side_by_side
from distilqa_export.trace import trace

_FP32, _INT8 = "cpu-fp32", "cpu-int8"
(_CUDA,) = GPU_VARIANTS
_TOOLS = ("distilqa", "torch", "transformers", "optimum-onnx", "onnx", "onnxscript", "tokenizers")

# Points of F1.
MAX_F1_DROP = 0.5

# How many of the evaluation's questions the self-test keeps, from the shortest to the longest.
_SELF_TESTS = 3

# Packaged passages on which logits are compared.
_COMPARED_PASSAGES = 50

# Of the window that runs are timed on, and how many times.
_TIMED_TOKENS, _TIMED_ROUNDS = 128, 15


def export(
    checkpoint: str,
    target: Path,
    *,
    variants: Sequence[str] = VARIANTS,
    calibration: Path | None = None,
    evaluation: Path | None = None,
    max_f1_drop: float = MAX_F1_DROP,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
) -> Manifest:
    """Export a checkpoint (a folder or a hub id) to a bundle at ``target`` and return its manifest.

    ``calibration`` is a JSON lines file with ``question`` and ``context``, ``evaluation`` a SQuAD v1.1 file, both by
    default packaged samples; int8 may lose ``max_f1_drop`` points of F1 against fp32, and keeps matmuls in fp32 where
    it must for that. ``progress`` is told of each step. Raises CheckpointError, ExportError, DatasetError or
    BundleError; then nothing is written.
    """
    known = (*VARIANTS, *GPU_VARIANTS)
    unknown = set(variants) - set(known)
    if unknown or not variants:
        raise ExportError(f"unknown variant {', '.join(sorted(unknown)) or '(none)'}; there are {', '.join(known)}")
    if not 0 <= max_f1_drop < math.inf:
        raise ExportError(f"max_f1_drop is {max_f1_drop:g}, must be 0 or more points of F1")
    variants = tuple(dict.fromkeys(variants))
    questions, asked = samples.read_evaluation(evaluation)
    texts, calibrated = samples.read_calibration(calibration)
    data = {"evaluation": asked} | ({"calibration": calibrated} if _INT8 in variants else {})
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with staged(target, overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if _INT8 in variants:
            _require_exact_products(scratch)
        progress(f"load {checkpoint}")
        loaded = load_checkpoint(checkpoint, revision)
        windower = Windower(loaded.tokenizer_json, max_tokens=loaded.window_tokens)

        progress("trace to portable ONNX")
        traced = trace(loaded, scratch)

        progress("fuse for the CPU")
        model, path = fuse(traced, loaded.architecture), scratch / f"{_FP32}.onnx"
        ir.save(model, path)

        progress("check fp32 against PyTorch")
        difference = check_fp32(loaded, runner(open_session(path, threads=usable_cores())))

        tokenized = {q.id: _tokenize(windower, q.question, q.context, f"question {shown_id(q.id)}") for q in questions}
        # One question for all, which fits any window; so that what it shows does not depend on the caller's.
        passages = samples.packaged_calibration()[:_COMPARED_PASSAGES]
        text = [_tokenize(windower, "Why", passage.context, passage.place) for passage in passages]
        judge = Judge(path, questions, tokenized, text, progress)
        made: dict[str, Released] = {}

        if _INT8 in variants:
            progress("calibrate int8")
            read = [_tokenize(windower, one.question, one.context, one.place) for one in texts]
            windows = [window.input_ids for one in read for window in one.windows]
            told = tenths("calibrate int8", len(windows), "windows", progress)
            quantizer = Quantizer(path, windows, loaded.architecture, told)
            progress("quantise, and judge")
            made[_INT8] = release(quantizer, scratch, windows, judge.compare, max_f1_drop, progress)

        if _CUDA in variants:
            progress("pack for the GPU, in fp16, and judge")
            made[_CUDA] = release_packed(model, loaded.architecture, scratch, judge.compare, max_f1_drop, progress)

        if _FP32 in variants:
            compared = next((one.compared for one in made.values() if one.compared), None)
            if compared is None:
                progress("judge fp32")
            found = scores_of_fp32(compared) if compared else scores(judge.scores(path))
            made[_FP32] = Released(model, path, {"largest_difference_from_pytorch": difference} | found)

        progress("time, and write")
        released = {name: made[name] for name in variants}
        described = _describe_variants(released, loaded)
        manifest = _write(folder, loaded, released, described, list(tokenized.values()), data)
        for name in variants:
            if manifest.variants[name].verified:
                Reader(folder, name)  # what was written loads, verifies and passes its own self-test
    return manifest


def _require_exact_products(scratch: Path) -> None:
    """What this processor multiplies wrongly cannot be judged on it. Better said now than after minutes."""
    ir.save(int8_probe(), scratch / INT8_PROBE)
    if problem := run_int8_probe(scratch / INT8_PROBE):
        raise ExportError(f"int8 cannot be made on this processor: {problem}. --variant {_FP32} leaves it out")


def _tokenize(windower: Windower, question: str, context: str, place: str) -> Tokenized:
    try:
        return windower.tokenize(question, [context])
    except InvalidRequest as error:
        raise ExportError(f"{place}: {error}") from error


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
    return Variant(
        file=f"{name}.onnx",
        precision=name.partition("-")[2],
        quantization=METHOD if name == _INT8 else "none",
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


def _write(
    folder: Path,
    loaded: Checkpoint,
    made: Mapping[str, Released],
    described: dict[str, Variant],
    questions: list[Tokenized],
    data: dict[str, str],
) -> Manifest:
    """Write all files of the bundle."""
    (folder / SELF_TEST).write_text(_self_test(questions, made), encoding="utf-8")
    for name, variant in made.items():
        shutil.move(variant.path, folder / f"{name}.onnx")
    (folder / TOKENIZER).write_text(loaded.tokenizer_json, encoding="utf-8")
    if _INT8 in made:
        ir.save(int8_probe(), folder / INT8_PROBE)
    return _write_manifest(folder, loaded, described, data)


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
