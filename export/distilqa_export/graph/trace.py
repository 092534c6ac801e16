"""Trace a checkpoint to a portable fp32 ONNX model, with optimum.

The result is the plain export: any padding and batch, an attention mask, standard operators only. It is the baseline
of the benchmarks and what `distilqa_export.graph.fuse` starts from.

Opset 20 is the first with Gelu and LayerNormalization as operators, so that only attention is left to be recognised.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from optimum.exporters.onnx.convert import onnx_export_from_model

from distilqa_export.graph.checkpoint import Checkpoint

OPSET = 20


def trace(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write ``model.onnx`` into ``folder`` and return its path.

    Inputs ``input_ids`` and ``attention_mask`` (BERT: and ``token_type_ids``), (batch, length) int64; outputs
    ``start_logits`` and ``end_logits``, (batch, length) float32.
    """
    with warnings.catch_warnings():
        # torch marks its tracer as deprecated, and the tracer remarks on every Python branch it follows.
        warnings.simplefilter("ignore")
        onnx_export_from_model(
            checkpoint.model,
            folder,
            opset=OPSET,
            task="question-answering",
            do_validation=False,
            preprocessors=[checkpoint.tokenizer],
        )
    return folder / "model.onnx"
