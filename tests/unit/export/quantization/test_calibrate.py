"""What is observed of the values inside a model, against PyTorch and against the values themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from tests.unit.export.conftest import logits

from distilqa.engine.session import open_session, run_session
from distilqa.text.arrays import Int64
from distilqa_export.arrays import Float64
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.quantization.calibrate import Observed, observe
from distilqa_export.quantization.equalize import values

# Of the linear layers of a layer, in PyTorch's order, whose input is observed, and whose output.
INPUTS, OUTPUTS = (0, 3, 4, 5), (0, 1, 2)


def rows_in_pytorch(tiny: Checkpoint, windows: list[Int64]) -> list[Float64]:
    """The (tokens, channels) that PyTorch has of each observed value over all windows, in the order of `values`."""
    linears = [module for module in tiny.model.modules() if isinstance(module, torch.nn.Linear)][:-1]
    rows: dict[tuple[int, str], list[Float64]] = {}

    def watch(number: int, given: torch.Tensor, made: torch.Tensor) -> None:
        for side, tensor in (("input", given), ("output", made)):
            rows.setdefault((number, side), []).append(tensor[0].double().numpy())

    hooks = [
        linear.register_forward_hook(lambda _, given, made, number=number: watch(number, given[0], made))
        for number, linear in enumerate(linears)
    ]
    for window in windows:
        logits(tiny.model, window)
    for hook in hooks:
        hook.remove()
    found: list[Float64] = []
    for first in range(0, len(linears), 6):
        places = [*((first + i, "input") for i in INPUTS), *((first + i, "output") for i in OUTPUTS)]
        found.extend(np.concatenate(rows[place]) for place in places)
    return found


def assert_summarizes(seen: Observed, rows: Float64) -> None:
    spread = float(rows.var(axis=0).max())
    np.testing.assert_allclose(seen.least, rows.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(seen.greatest, rows.max(axis=0), atol=1e-4)
    np.testing.assert_allclose(seen.mean, rows.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(seen.covariance, np.cov(rows, rowvar=False, bias=True), atol=1e-4 * spread)
    np.testing.assert_allclose(seen.variance, rows.var(axis=0), atol=1e-4 * spread)


def test_observes_what_pytorch_has(observed: dict[str, Observed], tiny: Checkpoint, calibration: list[Int64]) -> None:
    """The inputs of the matmuls, and queries, keys and values; over windows that are summed up in several parts."""
    assert len(calibration) > 16
    expected = rows_in_pytorch(tiny, calibration)
    assert len(observed) == len(expected) == 7 * tiny.architecture.layers
    for seen, rows in zip(observed.values(), expected, strict=True):
        assert_summarizes(seen, rows)


def test_takes_each_window_at_its_length(fused: Path) -> None:
    """Each token counts once, in windows of any length, and as many as there are."""
    windows = [np.array([101, *range(2000, 2000 + length), 102]) for length in range(1, 38)]
    names = values(ir.load(fused))[:1]
    model = ir.load(fused)
    value = next(output for node in model.graph for output in node.outputs if output.name == names[0])
    model.graph.outputs.append(value)
    ir.save(model, fused.with_name("watched.onnx"))
    session = open_session(fused.with_name("watched.onnx"), threads=1)
    inputs = [node.name for node in session.get_inputs()]
    rows = np.concatenate([run_session(session, inputs, [window], names)[0][0] for window in windows])
    seen = observe(fused, names, windows)
    assert list(seen) == names
    assert_summarizes(seen[names[0]], rows.astype(np.float64))


def test_observes_channels_far_from_0(fused: Path, calibration: list[Int64], tmp_path: Path) -> None:
    """What a channel varies by is not lost beside a mean of ten times it."""
    model = ir.load(fused)
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    bias = norm.inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() + 10, name=bias.name)
    ir.save(model, tmp_path / "shifted.onnx")
    name = str(norm.outputs[0].name)
    usual = observe(fused, [name], calibration)[name]
    shifted = observe(tmp_path / "shifted.onnx", [name], calibration)[name]
    np.testing.assert_allclose(shifted.mean, usual.mean + 10, rtol=1e-4)
    np.testing.assert_allclose(shifted.least, usual.least + 10, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shifted.variance, usual.variance, rtol=0.01)


def test_leaves_the_model_as_it_was(fused: Path, calibration: list[Int64]) -> None:
    before = fused.read_bytes()
    observe(fused, values(ir.load(fused)), calibration[:1])
    assert fused.read_bytes() == before


def test_without_the_first_channels(observed: dict[str, Observed]) -> None:
    """As if they had always been 0; the others are as they were."""
    seen = next(iter(observed.values()))
    rest = seen.without(3)
    for field in ("least", "greatest", "mean", "variance"):
        assert (getattr(rest, field)[:3] == 0).all()
        np.testing.assert_array_equal(getattr(rest, field)[3:], getattr(seen, field)[3:])
    assert not rest.covariance[:3].any()
    assert not rest.covariance[:, :3].any()
    np.testing.assert_array_equal(rest.covariance[3:, 3:], seen.covariance[3:, 3:])
    np.testing.assert_array_equal(seen.without(0).covariance, seen.covariance)
