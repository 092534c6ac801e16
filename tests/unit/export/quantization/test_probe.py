"""The model that tells whether int8 products are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from distilqa.engine.session import open_session
from distilqa_export.quantization.exact import is_exact
from distilqa_export.quantization.probe import int8_probe


def test_products_at_the_limits_of_the_rule_are_exact_here(tmp_path: Path) -> None:
    ir.save(int8_probe(), tmp_path / "probe.onnx")
    session = open_session(tmp_path / "probe.onnx", threads=1)
    assert session.get_inputs() == []
    assert [output.name for output in session.get_outputs()] == ["product", "expected"]
    product, expected = session.run(None, {})
    assert product.shape == expected.shape == (8, 8)
    np.testing.assert_array_equal(product, expected)


def test_tries_the_limits_of_the_rule() -> None:
    """What it multiplies is within the rule, and no longer so if any weight goes one step further from 0."""
    constants = {name: value.const_value for name, value in int8_probe().graph.initializers.items()}
    a, b = (constant.numpy() for name in "ab" if (constant := constants[name]) is not None)
    assert set(a.flat) == {0, 255}
    assert is_exact(b)
    for row in range(len(b) - 1):  # the last of an odd number has no other beside it
        for column in range(b.shape[1]):
            further = b.copy()
            with np.errstate(over="ignore"):  # one of 127 becomes -128
                further[row, column] += np.sign(b[row, column])
            assert not is_exact(further)
