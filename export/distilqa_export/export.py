"""From a checkpoint to a bundle, in named steps: load, trace, fuse, quantise, check, write.

The fp32 model must give PyTorch's logits, and each variant is run before it is listed. It does not judge accuracy on a
labelled set: how often int8 answers as fp32 does is measured and recorded, not a condition.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from distilqa.bundle import (
    CARD,
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
from distilqa.engine import open_session, usable_cores
from distilqa.errors import InvalidRequest
from distilqa.reader import Reader
from distilqa.spans import Logits
from distilqa.windows import Tokenized, Windower
from distilqa_export import samples
from distilqa_export.card import write_card
from distilqa_export.check import agreement, check_fp32, largest_difference, logits_of, runner
from distilqa_export.checkpoint import Checkpoint, load_checkpoint
from distilqa_export.errors import ExportError
from distilqa_export.fuse import census, fuse
from distilqa_export.probe import saturation_probe
from distilqa_export.quantize import quantize
from distilqa_export.trace import trace

_FP32, _INT8 = "cpu-fp32", "cpu-int8"
_TOOLS = ("distilqa", "torch", "transformers", "optimum-onnx", "onnx", "onnxscript", "onnxruntime", "tokenizers")

# How many of the sample's questions the self-test keeps, from the shortest to the longest.
_SELF_TESTS = 3

Progress = Callable[[str], None]


def export(
    checkpoint: str,
    target: Path,
    *,
    variants: Sequence[str] = VARIANTS,
    calibration: Path | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
) -> Manifest:
    """Export a checkpoint (a folder or a hub id) to a bundle at ``target`` and return its manifest.

    ``calibration`` is a JSON lines file with ``question`` and ``context``, by default a packaged sample; ``progress``
    is told of each step. Raises CheckpointError, ExportError or BundleError; then nothing is written.
    """
    unknown = set(variants) - set(VARIANTS)
    if unknown or not variants:
        raise ExportError(f"unknown variant {', '.join(sorted(unknown)) or '(none)'}; there are {', '.join(VARIANTS)}")
    variants = tuple(dict.fromkeys(variants))
    calibration_samples = samples.read(calibration) if calibration else samples.packaged(samples.CALIBRATION)
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with staged(target, overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as scratch:
        progress(f"load {checkpoint}")
        loaded = load_checkpoint(checkpoint, revision)
        windower = Windower(loaded.tokenizer_json, max_tokens=loaded.window_tokens)

        progress("trace to portable ONNX")
        traced = trace(loaded, Path(scratch))

        progress("fuse for the CPU")
        models = {_FP32: fuse(traced, loaded.architecture)}
        paths = {_FP32: Path(scratch) / "cpu-fp32.onnx"}
        ir.save(models[_FP32], paths[_FP32])

        if _INT8 in variants:
            progress(f"quantise: calibrate on {len(calibration_samples)} passages")
            windows = [w.input_ids for q in _tokenize(windower, calibration_samples) for w in q.windows]
            models[_INT8] = quantize(paths[_FP32], windows, loaded.architecture)
            paths[_INT8] = Path(scratch) / "cpu-int8.onnx"
            ir.save(models[_INT8], paths[_INT8])

        progress("check")
        measured, questions, logits = _check(loaded, windower, paths)

        progress("write")
        for name in variants:
            shutil.move(paths[name], folder / f"{name}.onnx")
        (folder / TOKENIZER).write_text(loaded.tokenizer_json, encoding="utf-8")
        (folder / SELF_TEST).write_text(
            _self_test(questions, {name: logits[name] for name in variants}), encoding="utf-8"
        )
        if _INT8 in variants:
            ir.save(saturation_probe(), folder / INT8_PROBE)
        described = {name: _describe_variant(name, models[name], measured[name]) for name in variants}
        manifest = _write_manifest(folder, loaded, described)
        for name in variants:
            Reader(folder, name)  # what was written loads, verifies and passes its own self-test
    return manifest


def _tokenize(windower: Windower, chosen: Sequence[samples.Sample]) -> list[Tokenized]:
    return [_tokenize_one(windower, sample) for sample in chosen]


def _tokenize_one(windower: Windower, sample: samples.Sample) -> Tokenized:
    try:
        return windower.tokenize(sample.question, [sample.context])
    except InvalidRequest as error:
        raise ExportError(f"{sample.place}: {error}") from error


def _check(
    loaded: Checkpoint, windower: Windower, paths: dict[str, Path]
) -> tuple[dict[str, dict[str, float]], list[Tokenized], dict[str, list[list[Logits]]]]:
    """What was measured on each variant, the packaged questions, and each variant's logits for them."""
    questions = _tokenize(windower, samples.packaged(samples.AGREEMENT))
    runs = {name: runner(open_session(path, threads=usable_cores())) for name, path in paths.items()}
    logits = {name: [logits_of(run, question) for question in questions] for name, run in runs.items()}
    measured = {_FP32: {"largest_difference_from_pytorch": check_fp32(loaded, runs[_FP32])}}
    if _INT8 in logits:
        measured[_INT8] = {
            "largest_difference_from_fp32": largest_difference(logits[_FP32], logits[_INT8]),
            "answers_as_fp32": agreement(questions, logits[_FP32], logits[_INT8]),
            "questions": len(questions),
        }
    return measured, questions, logits


def _describe_variant(name: str, model: ir.Model, measured: dict[str, float]) -> Variant:
    return Variant(
        file=f"{name}.onnx",
        precision=name.removeprefix("cpu-"),
        operators=dict(sorted(census(model).items())),
        tolerance=_tolerance(measured),
        measured=measured,
    )


def _tolerance(measured: dict[str, float]) -> float:
    """How far logits may be off on another processor, where sums are rounded in another order.

    A rounding that tips one 8-bit value over is amplified through the layers, so int8 needs room; but what differs by
    more than quantisation itself moved any logit is another model.
    """
    return measured.get("largest_difference_from_fp32", 1e-3)


def _self_test(questions: list[Tokenized], logits: dict[str, list[list[Logits]]]) -> str:
    single = [number for number, question in enumerate(questions) if len(question.windows) == 1]
    by_length = sorted(single, key=lambda number: questions[number].windows[0].length)
    chosen = [by_length[round(i * (len(by_length) - 1) / (_SELF_TESTS - 1))] for i in range(_SELF_TESTS)]
    content: dict[str, Any] = {
        "inputs": [questions[number].windows[0].input_ids.tolist() for number in chosen],
        "logits": {
            name: [[values.tolist() for values in variant[number][0]] for number in chosen]
            for name, variant in logits.items()
        },
    }
    return json.dumps(content) + "\n"


def _write_manifest(folder: Path, loaded: Checkpoint, variants: dict[str, Variant]) -> Manifest:
    """Write the card and the manifest over the files that are there."""
    manifest = Manifest(
        name=loaded.name,
        version="1",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=loaded.source,
        architecture=loaded.architecture,
        window_tokens=loaded.window_tokens,
        variants=variants,
        tools={name: version(name) for name in _TOOLS},
        files={},
    )
    files = {path.name: describe(path) for path in sorted(folder.iterdir())}
    (folder / CARD).write_text(write_card(manifest, loaded, files), encoding="utf-8")
    manifest = replace(manifest, files=files | {CARD: describe(folder / CARD)})
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
