"""The model that tells whether int8 products are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from distilqa.engine import open_session
from distilqa_export.probe import saturation_probe


def test_has_products_that_need_more_than_16_bits(tmp_path: Path) -> None:
    ir.save(saturation_probe(), tmp_path / "probe.onnx")
    session = open_session(tmp_path / "probe.onnx", threads=1)
    assert session.get_inputs() == []
    assert [output.name for output in session.get_outputs()] == ["product", "expected"]
    product, expected = session.run(None, {})
    assert expected.shape == product.shape
    assert np.unique(expected).tolist() == [64 * 255 * 127]
    assert np.unique(product).size == 1, "this processor computes all of it alike, rightly or not"
