"""The models that are measured, made once and kept under ``build/benchmarks``.

Speed depends on a model's shape and not on its values, so the target's cost is measured on the shipped checkpoint
widened to the target's exact shape (66,364,418 parameters), which needs no download and gives real answers, and
bert-base's on random weights. Either may be a checkpoint that the caller has.

Stock int8 recipes have weights of 7 bits where 8-bit products saturate, as their makers advise: with 8 they would be
wrong there, and nothing to compare with.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting.environment import ROOT, packages
from distilqa.bundle import VARIANTS, Architecture
from distilqa.engine.processor import read_processor

CHECKPOINT = ROOT / "models" / "distilbert-384-squad"
CACHE = ROOT / "build" / "benchmarks"

# So much text will do where only speed is measured, which depends on no value.
_ASKED_PASSAGES, _CALIBRATION_PASSAGES = 2, 20


def distilbert(given: str | None = None) -> Path:
    """The folder of a checkpoint: of that one, a folder or a hub id, or of the shipped one at the target's shape."""
    if given is not None:
        return _given(given)

    def make(target: Path) -> None:
        from distilqa_export.graph.checkpoint import load_checkpoint, save_checkpoint
        from distilqa_export.graph.widen import widen

        checkpoint = load_checkpoint(str(CHECKPOINT))
        save_checkpoint(checkpoint.with_model(widen(checkpoint.model)), target)

    return _made("checkpoint", "distilbert-768-squad", make)


def bert(given: str | None = None) -> Path:
    """The folder of a checkpoint: of that one, a folder or a hub id, or of bert-base with seeded random weights."""
    if given is not None:
        return _given(given)

    def make(target: Path) -> None:
        import torch
        from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast

        torch.manual_seed(0)
        BertForQuestionAnswering(BertConfig()).save_pretrained(target)
        BertTokenizerFast.from_pretrained(CHECKPOINT).save_pretrained(target)

    return _made("checkpoint", "bert-base-random", make)


def _given(given: str) -> Path:
    def make(target: Path) -> None:
        from distilqa_export.graph.checkpoint import load_checkpoint, save_checkpoint

        save_checkpoint(load_checkpoint(given), target)

    known = hashlib.sha256()
    for file in sorted(path for path in Path(given).glob("*") if path.is_file()):
        known.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    known.update(b"" if Path(given).is_dir() else given.encode())
    return _made("checkpoint", f"given-{known.hexdigest()[:12]}", make)


def bundle(checkpoint: Path) -> Path:
    """The bundle of a checkpoint, as `distilqa export` makes it with little text: for speed, not for accuracy."""
    return _bundle("bundle", checkpoint, _ASKED_PASSAGES, _CALIBRATION_PASSAGES)


def calibrated_bundle(checkpoint: Path) -> Path:
    """The bundle of a checkpoint, calibrated as `distilqa export` does it, but without its gate."""
    return _bundle("calibrated", checkpoint, _ASKED_PASSAGES, None)


def gpu_bundle(checkpoint: Path) -> Path:
    """The bundle of a checkpoint with a variant for a GPU, and fp32, made with little text too."""
    return _bundle("gpu-bundle", checkpoint, _ASKED_PASSAGES, None, ("cpu-fp32", "cuda-fp16"))


def _bundle(
    kind: str,
    checkpoint: Path,
    asked_passages: int,
    calibration_passages: int | None,
    variants: Sequence[str] = VARIANTS,
) -> Path:
    def make(target: Path) -> None:
        from distilqa_export.export import export
        from distilqa_export.samples import write_calibration, write_evaluation

        asked, seen = target.with_name("asked.json"), target.with_name("seen.jsonl")
        write_evaluation(asked, passages=asked_passages)
        if calibration_passages:
            write_calibration(seen, passages=calibration_passages)
        export(
            str(checkpoint),
            target,
            variants=variants,
            evaluation=asked,
            calibration=seen if calibration_passages else None,
            max_f1_drop=100,
        )

    return _made(kind, source(checkpoint), make)


def plain_onnx(checkpoint: Path) -> Path:
    """A checkpoint as optimum exports it by default: fp32, with an attention mask. A folder, with ``model.onnx``."""

    def make(target: Path) -> None:
        from optimum.exporters.onnx import main_export

        main_export(str(checkpoint), output=target, task="question-answering", do_validation=False)

    return _made("plain", source(checkpoint), make) / "model.onnx"


def onnxruntime_int8(checkpoint: Path) -> Path:
    """`plain_onnx` after ONNX Runtime's dynamic quantisation, int8 weights with a scale a column, for this machine."""

    def make(target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target.mkdir()
        quantize_dynamic(
            plain_onnx(checkpoint),
            target / "model.onnx",
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=read_processor().saturates,
        )

    return _made("onnxruntime-int8", source(checkpoint), make) / "model.onnx"


def onnxruntime_fp16(checkpoint: Path) -> Path:
    """`plain_onnx` after ONNX Runtime's own conversion to fp16; what goes in and comes out stays as it is."""

    def make(target: Path) -> None:
        import onnx
        from onnxruntime.transformers.onnx_model import OnnxModel

        target.mkdir()
        model = OnnxModel(onnx.load(plain_onnx(checkpoint)))
        model.convert_float_to_float16(keep_io_types=True)
        model.save_model_to_file(str(target / "model.onnx"))

    return _made("onnxruntime-fp16", source(checkpoint), make) / "model.onnx"


def optimum_int8(checkpoint: Path) -> Path:
    """`plain_onnx` after optimum's recipe for this processor: dynamic, int8 weights with a scale a column."""

    def make(target: Path) -> None:
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        quantizer = ORTQuantizer.from_pretrained(plain_onnx(checkpoint).parent, file_name="model.onnx")
        # With 8 bits it is the same as its recipes for VNNI and for Arm. Its recipe for AVX2 has unsigned weights,
        # whose products are slower.
        reduced = read_processor().saturates
        recipe = AutoQuantizationConfig.avx512(is_static=False, per_channel=True, reduce_range=reduced)
        quantizer.quantize(save_dir=target, quantization_config=recipe)

    return _made("optimum-int8", source(checkpoint), make) / "model_quantized.onnx"


def openvino_fp32(checkpoint: Path) -> Path:
    """`plain_onnx` as an OpenVINO model."""

    def make(target: Path) -> None:
        import openvino

        openvino.save_model(openvino.Core().read_model(plain_onnx(checkpoint)), target / "model.xml", False)

    return _made("openvino-fp32", source(checkpoint), make) / "model.xml"


def openvino_int8(checkpoint: Path) -> Path:
    """`openvino_fp32` after NNCF's post-training quantisation for transformers, with little text: for speed."""
    return _openvino_int8("openvino-int8", checkpoint, _CALIBRATION_PASSAGES)


def calibrated_openvino_int8(checkpoint: Path) -> Path:
    """The same, calibrated on all the text that `calibrated_bundle` is."""
    return _openvino_int8("openvino-int8-calibrated", checkpoint, None)


def _openvino_int8(kind: str, checkpoint: Path, passages: int | None) -> Path:
    def make(target: Path) -> None:
        os.environ["NNCF_CI"] = "1"  # it would tell its makers of its use
        import nncf
        import openvino

        from distilqa.text.windows import Windower
        from distilqa_export.graph.checkpoint import load_checkpoint
        from distilqa_export.samples import packaged_calibration

        loaded = load_checkpoint(str(checkpoint))
        windower = Windower(loaded.tokenizer_json, max_tokens=loaded.window_tokens)
        texts = [windower.tokenize(text.question, [text.context]) for text in packaged_calibration()[:passages]]
        windows = [window.input_ids[None] for text in texts for window in text.windows]
        feeds = nncf.Dataset([{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in windows])
        model: Any = nncf.quantize(
            openvino.Core().read_model(plain_onnx(checkpoint)),
            feeds,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(windows),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if read_processor().saturates else None
            ),
        )
        openvino.save_model(model, target / "model.xml", False)

    return _made(kind, source(checkpoint), make) / "model.xml"


def operations(shape: Architecture, tokens: int, *, attention: bool = True) -> int:
    """Of a window of so many tokens: two for each weight but the embeddings' and each token, and those of attention."""
    weights = shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.feed_forward)
    scores = shape.layers * 2 * shape.hidden * tokens if attention else 0  # by queries and keys, and by values
    return 2 * tokens * (weights + scores)


def source(checkpoint: Path) -> str:
    """The part of a folder's name that says which checkpoint it is."""
    return checkpoint.name.split(".")[1] if checkpoint.parent == CACHE else checkpoint.name


def _made(kind: str, source: str, make: Callable[[Path], None]) -> Path:
    """What ``make`` writes, made again whenever what it is made by is another."""
    target = CACHE / f"{kind}.{source}.{_digest()}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{kind}.{source}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever else makes it is waited for
        if not target.exists():
            print(f"making {target.relative_to(ROOT)}", file=sys.stderr, flush=True)
            for old in CACHE.glob(f"{kind}.{source}.*"):
                shutil.rmtree(old)
            scratch = CACHE / f"{kind}.{source}.unfinished"
            scratch.mkdir()
            try:
                with _quiet():
                    make(scratch / kind)
                (scratch / kind).rename(target)
            finally:
                shutil.rmtree(scratch)
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries say of their progress and their plans."""
    import logging
    import warnings

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@cache
def _digest() -> str:
    """Of all that models are made by, of and for: code, data, versions, the checkpoint, the processor."""
    found = hashlib.sha256(repr((packages(), read_processor())).encode() + Path(__file__).read_bytes())
    for folder in (ROOT / "export", ROOT / "serving", CHECKPOINT):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]
