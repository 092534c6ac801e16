"""Equalising: the logits stay, and what is rounded later reaches less far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.unit.export.conftest import random_windows

from distilqa.engine.session import open_session
from distilqa.text.arrays import Int64
from distilqa_export.arrays import Float64
from distilqa_export.gate.check import runner
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.fuse import census
from distilqa_export.graph.layers import Layer, layers
from distilqa_export.quantization.calibrate import Observed, observe
from distilqa_export.quantization.equalize import block_channels, equalize, values

# Of the tiny models.
HEADS = 2


@dataclass(frozen=True)
class Equalized:
    """The wide model before and after, and what their values are on the calibration windows, seen and said to be."""

    before: list[Layer]
    after: list[Layer]
    seen_before: dict[str, Observed]
    seen_after: dict[str, Observed]
    said: dict[str, Observed]
    path: Path


@pytest.fixture(scope="module")
def equalized(wide_fused: Path, calibration: list[Int64]) -> Equalized:
    seen_before = observe(wide_fused, values(ir.load(wide_fused)), calibration)
    path = wide_fused.with_name("equal.onnx")
    model, said = equalize(wide_fused, seen_before, HEADS)
    ir.save(model, path)
    seen_after = observe(path, values(ir.load(path)), calibration)
    before, after = (list(layers(ir.load(one))) for one in (wide_fused, path))
    return Equalized(before, after, seen_before, seen_after, said, path)


def assert_same_logits(one: Path, other: Path, tolerance: float) -> None:
    """Over several lengths and batch sizes."""
    before, after = (runner(open_session(path, threads=2)) for path in (one, other))
    for windows, length in ((1, 1), (1, 8), (8, 16), (3, 61), (2, 384)):
        ids = random_windows(windows, length)
        np.testing.assert_allclose(np.array(after(ids)), np.array(before(ids)), atol=tolerance)


def test_tiny_models_keep_their_logits(fused: Path, observed: dict[str, Observed], tmp_path: Path) -> None:
    ir.save(equalize(fused, observed, HEADS)[0], tmp_path / "equalized.onnx")
    assert_same_logits(fused, tmp_path / "equalized.onnx", 1e-4)


def test_a_model_that_is_hard_to_quantize_keeps_its_logits(equalized: Equalized, wide_fused: Path) -> None:
    # Its logits are larger, and so is what fp32 rounds off.
    assert_same_logits(wide_fused, equalized.path, 1e-3)


def test_the_shipped_model_keeps_its_logits(
    shipped: Checkpoint, shipped_fused: Path, calibration: list[Int64], tmp_path: Path
) -> None:
    observed = observe(shipped_fused, values(ir.load(shipped_fused)), calibration[:5])
    ir.save(equalize(shipped_fused, observed, shipped.architecture.heads)[0], tmp_path / "equalized.onnx")
    assert_same_logits(shipped_fused, tmp_path / "equalized.onnx", 1e-3)


def test_says_what_the_values_have_become(equalized: Equalized) -> None:
    """What is worked out of the first observation is what a second one sees."""
    assert list(equalized.said) == list(equalized.seen_after)
    for name, seen in equalized.seen_after.items():
        said, spread = equalized.said[name], float(np.sqrt(seen.variance.max()))
        for field in ("least", "greatest", "mean"):
            np.testing.assert_allclose(getattr(said, field), getattr(seen, field), atol=1e-3 * spread)
        np.testing.assert_allclose(said.covariance, seen.covariance, atol=1e-3 * spread**2)


def test_adds_one_node_a_norm(fused: Path, observed: dict[str, Observed]) -> None:
    """Each residual connection widens its channels again; nothing else is added."""
    before, after = census(ir.load(fused)), census(equalize(fused, observed, HEADS)[0])
    assert after - before == {"Mul": 4}
    assert before - after == {}


def reach(seen: Observed) -> Float64:
    return np.maximum(np.abs(seen.least), np.abs(seen.greatest))


def norms(model: list[Layer], seen: dict[str, Observed]) -> list[Observed]:
    """What was seen of the norms' outputs that go into matmuls."""
    return [seen[str(linear.x.name)] for layer in model for linear in (layer.query, layer.widen)]


def test_centres_the_channels_of_norms(equalized: Equalized) -> None:
    for seen in norms(equalized.after, equalized.seen_after):
        np.testing.assert_allclose(seen.least, -seen.greatest, atol=1e-4 * seen.greatest.max())


def test_narrows_the_channels_of_norms_that_reach_far(equalized: Equalized) -> None:
    before = norms(equalized.before, equalized.seen_before)
    after = norms(equalized.after, equalized.seen_after)
    for one, other in zip(before, after, strict=True):
        span = (one.greatest - one.least) / 2
        assert (reach(other) <= span * (1 + 1e-4)).all(), "none is widened"
    # The first norm is the embeddings', in which no channel reaches far.
    for one, other in zip(before[1:], after[1:], strict=True):
        assert reach(other).max() < reach(one).max() / 3


def attention(model: list[Layer], seen: dict[str, Observed]) -> list[list[Observed]]:
    """Of each layer: what was seen of its queries, keys and values."""
    return [[seen[str(linear.output.name)] for linear in (layer.query, layer.key, layer.value)] for layer in model]


def test_evens_out_queries_keys_and_values(equalized: Equalized) -> None:
    for query, key, value in attention(equalized.after, equalized.seen_after):
        apart, keys = reach(query).reshape(HEADS, -1), reach(key).reshape(HEADS, -1)
        np.testing.assert_allclose(apart.max(axis=1), 1, rtol=1e-2)
        np.testing.assert_allclose(apart / apart[:, :1], keys / keys[:, :1], rtol=1e-2)
        np.testing.assert_allclose(key.mean, 0, atol=1e-3 * reach(key).min())
        np.testing.assert_allclose(value.mean, 0, atol=1e-3)
        np.testing.assert_allclose(reach(value), 1, rtol=1e-3)


def test_orders_feed_forward_units_by_reach(equalized: Equalized) -> None:
    for one, other in zip(equalized.before, equalized.after, strict=True):
        before = reach(equalized.seen_before[str(one.narrow.x.name)])
        order = np.argsort(-before, kind="stable")
        np.testing.assert_array_equal(other.narrow.weight, one.narrow.weight[order])
        np.testing.assert_allclose(reach(equalized.seen_after[str(other.narrow.x.name)]), before[order], atol=1e-3)


@pytest.mark.parametrize(
    ("units", "channels"), [(1, 1), (64, 1), (767, 1), (768, 16), (808, 16), (1552, 32), (3104, 64), (3840, 80)]
)
def test_a_block_is_a_forty_eighth_in_whole_sixteens(units: int, channels: int) -> None:
    assert block_channels(units) == channels
