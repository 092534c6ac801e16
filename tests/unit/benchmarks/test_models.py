"""The models that others' recipes make: those recipes that are right on the processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime.quantization
import pytest
from benchmarks import models

from distilqa.engine.processor import Processor

AVX2, VNNI, ARM = ("avx2",), ("avx2", "avx_vnni"), ("asimd",)


@pytest.mark.parametrize(("features", "reduced"), [(AVX2, True), (VNNI, False), (ARM, False)])
def test_stock_weights_have_7_bits_where_products_saturate(
    features: tuple[str, ...], reduced: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def made(kind: str, source: str, make: Callable[[Path], None]) -> Path:
        make(tmp_path / kind)
        return tmp_path

    used: list[dict[str, Any]] = []
    monkeypatch.setattr(models, "_made", made)
    monkeypatch.setattr(models, "plain_onnx", lambda checkpoint: tmp_path / "model.onnx")
    monkeypatch.setattr(models, "read_processor", lambda: Processor("A processor", features=features))
    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", lambda *_, **options: used.append(options))
    models.onnxruntime_int8(tmp_path)

    class Quantizer:
        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Quantizer:
            return cls()

        def quantize(self, *, quantization_config: Any, **_: Any) -> None:
            weights = quantization_config.weights_dtype
            used.append({"reduce_range": quantization_config.reduce_range, "weight_type": weights})

    monkeypatch.setattr("optimum.onnxruntime.ORTQuantizer", Quantizer)
    models.optimum_int8(tmp_path)
    assert [one["reduce_range"] for one in used] == [reduced, reduced]
    assert {one["weight_type"] for one in used} == {onnxruntime.quantization.QuantType.QInt8}
