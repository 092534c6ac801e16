"""From a checkpoint to a bundle, in named steps: load, trace, fuse, quantise, check, write.

The fp32 model must give PyTorch's logits; each variant answers the evaluation's questions before it is listed, and
int8 may not lose more F1 than its budget.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from distilqa.cuda import open_cuda_session
from distilqa.engine import open_session, runtime_package, usable_cores
from distilqa.errors import InvalidRequest
from distilqa.evaluation import Question, shown_id
from distilqa.processor import read_processor
from distilqa.reader import Reader
from distilqa.spans import Logits
from distilqa.windows import Tokenized, Windower
from distilqa_export import samples
from distilqa_export.card import write_card
from distilqa_export.check import MAX_FP32_DIFFERENCE, check_fp32, largest_difference, logits_of, runner
from distilqa_export.checkpoint import Checkpoint, load_checkpoint
from distilqa_export.errors import ExportError
from distilqa_export.fuse import census, fuse
from distilqa_export.gate import Judged, Released, judge, release, release_packed
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

# Packaged passages that show how far int8 is from fp32, so that it does not depend on the caller's questions.
_TOLERANCE_PASSAGES = 50

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

        progress("evaluate fp32")
        tokenized = {q.id: _tokenize(windower, q.question, q.context, f"question {shown_id(q.id)}") for q in questions}
        judge_saved = _judge_saved(questions, tokenized, progress)
        judged = judge_saved(path)
        made = {_FP32: Released(model, path, judged, {}, {"largest_difference_from_pytorch": difference})}

        if _INT8 in variants:
            progress("calibrate int8")
            read = [_tokenize(windower, text.question, text.context, text.place) for text in texts]
            windows = [window.input_ids for one in read for window in one.windows]
            told = tenths("calibrate int8", len(windows), "windows", progress)
            quantizer = Quantizer(path, windows, loaded.architecture, told)
            progress("quantise")
            made[_INT8] = release(quantizer, scratch, windows, judged, judge_saved, max_f1_drop, progress)

        if _CUDA in variants:
            progress("pack for the GPU, in fp16")
            made[_CUDA] = release_packed(
                model, loaded.architecture, scratch, judged, judge_saved, max_f1_drop, progress
            )

        progress("time, and write")
        described = _describe_variants(made, variants, loaded, windower)
        released = {name: made[name] for name in variants}
        manifest = _write(folder, loaded, released, described, list(tokenized.values()), data)
        for name in variants:
            if manifest.variants[name].verified:
                Reader(folder, name)  # what was written loads, verifies and passes its own self-test
    return manifest


def _judge_saved(
    questions: Sequence[Question], tokenized: Mapping[str, Tokenized], progress: Progress
) -> Callable[[Path], Judged]:
    """A function that judges a saved model, and tells of each tenth of the questions."""

    def judge_saved(model: Path) -> Judged:
        told = tenths(model.stem, len(questions), "questions", progress)
        return judge(runner(_opened(model)), questions, tokenized, told)

    return judge_saved


def _opened(model: Path, threads: int = 1) -> Any:
    """The session of a model that is named after its variant."""
    return open_cuda_session(model) if model.stem in GPU_VARIANTS else open_session(model, threads=threads)


def _tokenize(windower: Windower, question: str, context: str, place: str) -> Tokenized:
    try:
        return windower.tokenize(question, [context])
    except InvalidRequest as error:
        raise ExportError(f"{place}: {error}") from error


def _describe_variants(
    made: Mapping[str, Released], names: Sequence[str], loaded: Checkpoint, windower: Windower
) -> dict[str, Variant]:
    """The variants of those names; fp32 is among those that are made."""
    fp32 = made[_FP32].path
    window = np.random.default_rng(0).integers(0, loaded.architecture.vocabulary, _TIMED_TOKENS)
    runs = {name: runner(_opened(made[name].path)) for name in names if made[name].stand_in is None}
    milliseconds = {
        name: {
            f"milliseconds_of_1x{_TIMED_TOKENS}{'_on_gpu' * (name in GPU_VARIANTS)}": 1e3 * statistics.median(seconds)
        }
        for name, seconds in side_by_side(runs, [window], _TIMED_ROUNDS).items()
    }
    return {
        name: _describe_variant(
            name, made[name], _tolerance(fp32, made[name].runnable, windower), milliseconds.get(name, {})
        )
        for name in names
    }


def _describe_variant(name: str, made: Released, tolerance: float, milliseconds: dict[str, float]) -> Variant:
    found = made.judged.evaluation
    scores = {"exact_match": found.exact_match, "f1": found.f1, "questions": len(found.questions)}
    return Variant(
        file=f"{name}.onnx",
        precision=name.partition("-")[2],
        quantization=METHOD if name == _INT8 else "none",
        operators=dict(sorted(census(made.model).items())),
        tolerance=tolerance,
        measured=made.measured | scores | milliseconds,
        fp32_matmuls=made.fp32_matmuls,
        verified=made.stand_in is None,
    )


def _tolerance(fp32: Path, variant: Path, windower: Windower) -> float:
    """How far logits may be off on another processor, where sums are rounded in another order.

    A rounding that tips one 8-bit value over is amplified through the layers, so int8 needs room: where two models are
    each as far from fp32 as this one on packaged passages, they are at most twice as far from one another. What
    differs by more is another model.
    """
    if variant == fp32:
        return MAX_FP32_DIFFERENCE
    texts = samples.packaged_calibration()[:_TOLERANCE_PASSAGES]
    # One question for all, which fits any window.
    tokenized = [_tokenize(windower, "Why", text.context, text.place) for text in texts]
    runs = [runner(_opened(path, usable_cores())) for path in (fp32, variant)]
    expected, found = ([logits_of(run, one) for one in tokenized] for run in runs)
    return 2 * largest_difference(expected, found)


def _write(
    folder: Path,
    loaded: Checkpoint,
    made: Mapping[str, Released],
    described: dict[str, Variant],
    questions: list[Tokenized],
    data: dict[str, str],
) -> Manifest:
    """Write all files of the bundle."""
    for name, variant in made.items():
        shutil.move(variant.path, folder / f"{name}.onnx")
    (folder / TOKENIZER).write_text(loaded.tokenizer_json, encoding="utf-8")
    logits = {name: variant.judged.logits for name, variant in made.items()}
    (folder / SELF_TEST).write_text(_self_test(questions, logits), encoding="utf-8")
    if _INT8 in made:
        ir.save(int8_probe(), folder / INT8_PROBE)
    return _write_manifest(folder, loaded, described, data)


def _self_test(questions: list[Tokenized], logits: dict[str, list[list[Logits]]]) -> str:
    windows = [(number, place) for number, question in enumerate(questions) for place in range(len(question.windows))]
    by_length = sorted(windows, key=lambda window: questions[window[0]].windows[window[1]].length)
    chosen = [by_length[round(i * (len(by_length) - 1) / (_SELF_TESTS - 1))] for i in range(_SELF_TESTS)]
    content: dict[str, Any] = {
        "inputs": [questions[number].windows[place].input_ids.tolist() for number, place in chosen],
        "logits": {
            name: [[side.tolist() for side in variant[number][place]] for number, place in chosen]
            for name, variant in logits.items()
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
