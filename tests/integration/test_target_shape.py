"""The shipped checkpoint widened to the target's exact shape: its size, and that it still answers the same."""

from __future__ import annotations

from pathlib import Path

from benchmarks import models

from distilqa import Bundle, Reader
from distilqa_export.samples import packaged_calibration


def test_the_int8_bundle_is_under_70_mb() -> None:
    manifest = Bundle.open(models.bundle(models.distilbert())).manifest
    assert manifest.architecture.parameters == 66_364_418
    assert sum(file.bytes for name, file in manifest.files.items() if name != "cpu-fp32.onnx") < 70e6


def test_its_fp32_answers_are_the_shipped_checkpoints(bundle: Path) -> None:
    wide, shipped = Reader(models.bundle(models.distilbert()), "cpu-fp32"), Reader(bundle, "cpu-fp32")
    for sample in packaged_calibration()[:30]:
        one, other = (reader.answer(sample.question, sample.context)[0] for reader in (wide, shipped))
        assert (one.start, one.end) == (other.start, other.end)
        assert abs(one.score - other.score) < 1e-3
