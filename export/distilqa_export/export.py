"""From a checkpoint to a bundle, in named steps: load, trace, fuse, quantise, check, write.

The fp32 model must give PyTorch's logits; each other variant answers the evaluation's questions before it is listed,
and may not lose more F1 than its budget.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from distilqa.bundle import GPU_VARIANTS, INT8_PROBE, VARIANTS, Manifest
from distilqa.engine.cores import usable_cores
from distilqa.engine.cpu import run_int8_probe
from distilqa.engine.session import open_session
from distilqa.errors import InvalidRequest
from distilqa.evaluation.dataset import Question, shown_id
from distilqa.reader import Reader
from distilqa.text.arrays import Int64
from distilqa.text.windows import Tokenized, Windower
from distilqa_export import samples
from distilqa_export.checkpoint_files import CheckpointFiles
from distilqa_export.errors import ExportError
from distilqa_export.gate.check import check_fp32, check_tokens, runner
from distilqa_export.gate.judge import Judge
from distilqa_export.gate.release import Released, release, release_packed, scores, scores_of_fp32
from distilqa_export.graph.checkpoint import Checkpoint, load_checkpoint
from distilqa_export.graph.fuse import fuse
from distilqa_export.graph.trace import trace
from distilqa_export.progress import Progress, tenths
from distilqa_export.quantization.probe import int8_probe
from distilqa_export.quantization.quantize import Quantizer
from distilqa_export.writing.bundle import write_bundle
from distilqa_export.writing.staging import staged

_FP32, _INT8 = "cpu-fp32", "cpu-int8"
(_CUDA,) = GPU_VARIANTS

# Points of F1.
MAX_F1_DROP = 0.5

# With so many nothing is judged.
_ANY_DROP = 100.0

# An F1 of fp32 below which it does not know the answers, so that nothing can be lost.
_LEAST_F1 = 20.0

# Where more than this share of the questions cannot be asked, they are not for this checkpoint.
_MOST_LEFT_OUT = 0.5

# What to do about that.
_OTHERS = "--eval FILE judges by other questions, and --calibration FILE chooses the scales on other text"

# Packaged passages on which logits are compared.
_COMPARED_PASSAGES = 50


def export(
    checkpoint: str | CheckpointFiles,
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
    """Export a checkpoint (a folder, a hub id, or its files) to a bundle at ``target`` and return its manifest.

    ``calibration`` is a JSON lines file with ``question`` and ``context``, ``evaluation`` a SQuAD v1.1 file, both by
    default packaged samples; int8 may lose ``max_f1_drop`` points of F1 against fp32, and keeps matmuls in fp32 where
    it must for that. Questions that the checkpoint cannot be asked are left out. Where fp32 itself hardly answers,
    nothing can be judged, and 100 points are needed to say that nothing shall be. ``progress`` is told of each step.
    Raises CheckpointError, ExportError, DatasetError or BundleError; then nothing is written.
    """
    variants = _checked(variants, max_f1_drop)
    questions, asked = samples.read_evaluation(evaluation)
    texts, calibrated = samples.read_calibration(calibration)
    judged = "; int8 and fp16 were not judged by it" if max_f1_drop >= _ANY_DROP else ""
    data = {"evaluation": asked + judged} | ({"calibration": calibrated} if _INT8 in variants else {})
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with staged(target, overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if _INT8 in variants:
            _require_exact_products(scratch)
        progress(f"load {checkpoint}")
        loaded = load_checkpoint(checkpoint, revision)
        windower = _open_windower(loaded)
        fp32 = _convert(loaded, scratch, progress)
        questions, tokenized = _tokenize_all(windower, questions, progress)
        judge = Judge(fp32.path, questions, tokenized, _compared_text(windower), progress)
        made: dict[str, Released] = {}
        if _INT8 in variants:
            progress("calibrate int8")
            windows = _calibration_windows(windower, texts, own=calibration is not None)
            told = tenths("calibrate int8", len(windows), "windows", progress)
            quantizer = Quantizer(fp32.path, windows, loaded.architecture, told)
            progress("quantise, and judge")
            made[_INT8] = release(quantizer, scratch, windows, judge.compare, max_f1_drop, progress)
            _require_answers(made[_INT8], "int8", max_f1_drop)

        if _CUDA in variants:
            progress("pack for the GPU, in fp16, and judge")
            made[_CUDA] = release_packed(fp32.model, loaded.architecture, scratch, judge.compare, max_f1_drop, progress)
            _require_answers(made[_CUDA], "fp16", max_f1_drop)

        if _FP32 in variants:
            made[_FP32] = _release_fp32(fp32, made, judge, progress)

        progress("time, and write")
        released = {name: made[name] for name in variants}
        manifest = write_bundle(folder, loaded, released, list(tokenized.values()), data)
        for name in (one for one in variants if manifest.variants[one].verified):
            Reader(folder, name)  # what was written loads, verifies and passes its own self-test
    return manifest


def _checked(variants: Sequence[str], max_f1_drop: float) -> tuple[str, ...]:
    """The variants, each once. Raises ExportError for what cannot be made."""
    known = (*VARIANTS, *GPU_VARIANTS)
    unknown = set(variants) - set(known)
    if unknown or not variants:
        raise ExportError(f"unknown variant {', '.join(sorted(unknown)) or '(none)'}; there are {', '.join(known)}")
    if not 0 <= max_f1_drop < math.inf:
        raise ExportError(f"max_f1_drop is {max_f1_drop:g}, must be 0 or more points of F1")
    return tuple(dict.fromkeys(variants))


@dataclass(frozen=True, slots=True)
class _Fp32:
    """A checkpoint as a fused model, where that is saved, and the largest difference of its logits from PyTorch's."""

    model: ir.Model
    path: Path
    difference: float


def _open_windower(loaded: Checkpoint) -> Windower:
    """Whose windows are of the checkpoint's own tokens. Raises BundleError and ExportError."""
    windower = Windower(loaded.tokenizer_json, max_tokens=loaded.window_tokens)
    check_tokens(loaded, windower, [one.context for one in samples.packaged_calibration()[:_COMPARED_PASSAGES]])
    return windower


def _convert(loaded: Checkpoint, scratch: Path, progress: Progress) -> _Fp32:
    progress("trace to portable ONNX")
    traced = trace(loaded, scratch)

    progress("fuse for the CPU")
    model, path = fuse(traced, loaded.architecture), scratch / f"{_FP32}.onnx"
    ir.save(model, path)

    progress("check fp32 against PyTorch")
    difference = check_fp32(loaded, runner(open_session(path, threads=usable_cores())))
    return _Fp32(model, path, difference)


def _release_fp32(fp32: _Fp32, others: Mapping[str, Released], judge: Judge, progress: Progress) -> Released:
    """With what it is worth: as far as the others' comparisons tell, or by all questions."""
    compared = next((one.compared for one in others.values() if one.compared), None)
    if compared is None:
        progress("judge fp32")
    found = scores_of_fp32(compared) if compared else scores(judge.scores(fp32.path))
    return Released(fp32.model, fp32.path, {"largest_difference_from_pytorch": fp32.difference} | found)


def _compared_text(windower: Windower) -> list[Tokenized]:
    """What logits are compared on: one question for all, which fits any window, so that it is the same for everyone."""
    passages = samples.packaged_calibration()[:_COMPARED_PASSAGES]
    return [_tokenize(windower, "Why", passage.context, passage.place) for passage in passages]


def _require_exact_products(scratch: Path) -> None:
    """What this processor multiplies wrongly cannot be judged on it. Better said now than after minutes."""
    ir.save(int8_probe(), scratch / INT8_PROBE)
    if problem := run_int8_probe(scratch / INT8_PROBE):
        raise ExportError(f"int8 cannot be made on this processor: {problem}. --variant {_FP32} leaves it out")


def _tokenize_all(
    windower: Windower, questions: Sequence[Question], progress: Progress
) -> tuple[list[Question], dict[str, Tokenized]]:
    """The questions that can be asked, and what each becomes, by its id. Raises ExportError where most cannot."""
    tokenized, problems = {}, []
    for question in questions:
        try:
            tokenized[question.id] = windower.tokenize(question.question, [question.context])
        except InvalidRequest as error:
            problems.append(f"question {shown_id(question.id)}: {error}")
    if problems:
        progress(f"{len(problems)} of {len(questions)} questions cannot be asked, and are left out ({problems[0]})")
    if len(problems) > _MOST_LEFT_OUT * len(questions):
        raise ExportError(
            f"{len(problems)} of {len(questions)} questions cannot be asked of this checkpoint ({problems[0]}). Are"
            f" they in its language? {_OTHERS}"
        )
    return [question for question in questions if question.id in tokenized], tokenized


def _calibration_windows(windower: Windower, texts: Sequence[samples.Sample], *, own: bool) -> list[Int64]:
    """Of the caller's own text all; of the packaged what can be asked. Raises ExportError."""
    windows, problem = [], ""
    for text in texts:
        try:
            tokenized = _tokenize(windower, text.question, text.context, text.place)
        except ExportError as error:
            if own:
                raise
            problem = problem or str(error)
        else:
            windows += [window.input_ids for window in tokenized.windows]
    if not windows:
        raise ExportError(f"none of the packaged texts can be read by this checkpoint ({problem}). {_OTHERS}")
    return windows


def _require_answers(released: Released, kind: str, max_f1_drop: float) -> None:
    """Where fp32 answers hardly anything, losing nothing means nothing. Raises ExportError."""
    f1 = released.compared.fp32_f1 if released.compared else _LEAST_F1
    if f1 < _LEAST_F1 and max_f1_drop < _ANY_DROP:
        raise ExportError(
            f"fp32 itself has an F1 of {f1:.1f} on these questions, so that {kind} cannot be judged by them. Are they"
            f" in the checkpoint's language, and is its head trained? {_OTHERS}; --max-f1-drop {_ANY_DROP:g} judges"
            " nothing"
        )


def _tokenize(windower: Windower, question: str, context: str, place: str) -> Tokenized:
    try:
        return windower.tokenize(question, [context])
    except InvalidRequest as error:
        raise ExportError(f"{place}: {error}") from error
