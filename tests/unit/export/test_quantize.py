"""Quantising: the scales, the graph, and that the int8 model computes what its scales say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from transformers import PreTrainedModel

from distilqa.bundle import Architecture, Bundle
from distilqa.engine import Engine, open_session
from distilqa.windows import Int64, Windower
from distilqa_export import samples
from distilqa_export.check import Run, runner
from distilqa_export.checkpoint import Checkpoint
from distilqa_export.errors import ExportError
from distilqa_export.quantize import (
    Ranges,
    calibrate,
    int8_rows,
    quantize,
    quantized_operators,
    saturation_probe,
    uint8_scale,
)

Floats = npt.NDArray[np.float32]

# Rounding of the scale itself to fp32, in steps.
ROUNDING = 1e-3

least_values = st.floats(-1e6, 0, width=32)
greatest_values = st.floats(0, 1e6, width=32)


@given(least_values, greatest_values, st.floats(0, 1))
@example(0.0, 0.0, 0.0)
@example(-1.0, 0.0, 0.5)
@example(0.0, 6.0, 1.0)
@example(-0.17, 28.4, 0.5)
def test_uint8_covers_the_range(least: float, greatest: float, part: float) -> None:
    """Every value in the range comes back within half a step, and 0 comes back as 0."""
    scale, zero_point = uint8_scale(least, greatest)
    assert scale.dtype == np.float32
    assert zero_point.dtype == np.uint8
    assert scale > 0
    step, zero = float(scale), int(zero_point)
    for value in (least, greatest, least + part * (greatest - least), 0.0):
        stored = min(max(round(value / step) + zero, 0), 255)
        assert abs((stored - zero) * step - value) <= (0.5 + ROUNDING) * step
    assert step * 255 <= max(greatest - least, 1e-9) * (1 + ROUNDING), "the steps are no larger than need be"


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
@example(np.zeros((2, 3), np.float32))
@example(np.array([[1e-38, -2e-38], [127, -127]], np.float32))
def test_int8_rows_come_back(matrix: Floats) -> None:
    """Every value comes back within half a step of its row, 0 as 0, and each row uses all its steps."""
    rows, scale = int8_rows(matrix)
    assert rows.dtype == np.int8
    assert scale.dtype == np.float32
    assert rows.shape == matrix.shape
    assert scale.shape == matrix.shape[:1]
    assert (scale > 0).all()
    assert rows.min() >= -127
    steps = scale.astype(np.float64)[:, None]
    assert (np.abs(rows * steps - matrix) <= (0.5 + ROUNDING) * steps).all()
    assert (rows[matrix == 0] == 0).all()
    usual = np.abs(matrix).max(axis=1) > 1e-30
    assert (np.abs(rows[usual].astype(int)).max(axis=1, initial=0) == 127).all()


@pytest.fixture(scope="module")
def windows(tiny: Checkpoint) -> list[Int64]:
    windower = Windower(tiny.tokenizer_json, max_tokens=tiny.window_tokens)
    chosen = samples.packaged(samples.CALIBRATION)[:10]
    return [w.input_ids for s in chosen for w in windower.tokenize(s.question, [s.context]).windows]


@pytest.fixture(scope="module")
def ranges(fused: Path, windows: list[Int64]) -> Ranges:
    return calibrate(fused, windows)


@pytest.fixture(scope="module")
def int8(fused: Path, ranges: Ranges, tiny: Checkpoint) -> Path:
    path = fused.with_name("int8.onnx")
    ir.save(quantize(fused, ranges, tiny.architecture), path)
    return path


@pytest.fixture(scope="module")
def run_fp32(fused: Path) -> Run:
    return runner(open_session(fused, threads=1))


@pytest.fixture(scope="module")
def run_int8(int8: Path) -> Run:
    return runner(open_session(int8, threads=2))


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """PyTorch's linear layers by name, without the answer head."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    del found["qa_outputs"]
    return found


def logits(model: PreTrainedModel, window: Int64) -> Floats:
    """PyTorch's (2, length) logits of a window."""
    inputs = {"input_ids": torch.from_numpy(window[None])}
    if model.config.model_type == "bert":
        question = int(np.argmax(window == window[-1])) + 1
        inputs["token_type_ids"] = torch.tensor([[0] * question + [1] * (len(window) - question)])
    with torch.inference_mode():
        output = model(**inputs)
    return np.array([output.start_logits[0].numpy(), output.end_logits[0].numpy()])


@pytest.fixture(scope="module")
def seen(tiny: Checkpoint, windows: list[Int64]) -> Ranges:
    """The least and greatest input of each of PyTorch's linear layers over the calibration windows, and 0."""
    extremes: Ranges = {}

    def watch(name: str, values: torch.Tensor) -> None:
        least, greatest = extremes.get(name, (0.0, 0.0))
        extremes[name] = min(least, values.min().item()), max(greatest, values.max().item())

    hooks = [
        linear.register_forward_pre_hook(lambda _, values, name=name: watch(name, values[0]))
        for name, linear in linears(tiny.model).items()
    ]
    for window in windows:
        logits(tiny.model, window)
    for hook in hooks:
        hook.remove()
    return extremes


def test_calibrates_the_ranges_that_pytorch_sees(ranges: Ranges, seen: Ranges, tiny: Checkpoint) -> None:
    """One range for each matmul's input; the three projections of a layer share theirs."""
    assert len(ranges) == 4 * tiny.architecture.layers
    assert all(least <= 0 <= greatest for least, greatest in ranges.values())
    np.testing.assert_allclose(list(ranges.values()), list(dict.fromkeys(seen.values())), rtol=1e-4, atol=1e-4)


def test_a_range_holds_0_even_where_no_value_is_near_it(
    tiny: Checkpoint, fused: Path, windows: list[Int64], tmp_path: Path
) -> None:
    model = ir.load(fused)
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    bias = norm.inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() + 100, name=bias.name)
    ir.save(model, tmp_path / "shifted.onnx")
    least, greatest = next(iter(calibrate(tmp_path / "shifted.onnx", windows[:1]).values()))
    assert least == 0
    assert greatest > 100


def test_demands_operators_by_the_number_of_layers() -> None:
    demanded = quantized_operators(Architecture("distilbert", 6, 768, 12, 3072, 30522, 512, 66_364_418))
    assert {name: count for name, count in demanded.items() if count} == {
        "Attention": 6,
        "Gelu": 6,
        "LayerNormalization": 13,
        "MatMul": 1,
        "MatMulIntegerToFloat": 36,
        "QuantizeLinear": 24,
    }


def test_has_the_demanded_operators(int8: Path, fused: Path, tiny: Checkpoint) -> None:
    model = ir.load(int8)
    counts = dict.fromkeys(quantized_operators(tiny.architecture), 0)
    for node in model.graph:
        if node.op_type in counts:
            counts[node.op_type] += 1
    assert counts == quantized_operators(tiny.architecture)
    assert [value.name for value in model.graph.inputs] == [value.name for value in ir.load(fused).graph.inputs]


def test_what_is_left_in_fp32(int8: Path, tiny: Checkpoint, kind: str) -> None:
    """Of the matrices: the positions, the segments, the head, and one scale a word."""
    shape = tiny.architecture
    left = [
        tuple(value.shape.numpy())
        for value in ir.load(int8).graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and value.shape is not None and len(value.shape) == 2
    ]
    segments = [(2, shape.hidden)] if kind == "bert" else []
    kept = [(shape.positions, shape.hidden), (shape.hidden, 2), (shape.vocabulary, 1), *segments]
    assert sorted(left) == sorted(kept)


@pytest.mark.parametrize("place", [0, 3, -1])
def test_refuses_a_matmul_without_a_range(place: int, fused: Path, ranges: Ranges, tiny: Checkpoint) -> None:
    names = list(ranges)
    fewer = {name: ranges[name] for name in names if name != names[place]}
    with pytest.raises(ExportError, match="MatMulIntegerToFloat"):
        quantize(fused, fewer, tiny.architecture)


def quantized_in_pytorch(tiny: Checkpoint, seen: Ranges) -> PreTrainedModel:
    """The model with its weights rounded to int8, and each matmul's input to uint8 as it comes."""
    model = copy.deepcopy(tiny.model)
    table = next(module for name, module in model.named_modules() if name.endswith("word_embeddings"))
    for weight in (table.weight, *(linear.weight for linear in linears(model).values())):
        rows, scale = int8_rows(weight.detach().numpy())
        weight.data = torch.from_numpy(rows.astype(np.float32) * scale[:, None])
    for name, linear in linears(model).items():
        step, zero = (value.item() for value in uint8_scale(*seen[name]))
        linear.register_forward_pre_hook(
            lambda _, values, step=step, zero=zero: torch.fake_quantize_per_tensor_affine(values[0], step, zero, 0, 255)
        )
    return model


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def test_computes_what_its_scales_say(
    tiny: Checkpoint, windows: list[Int64], seen: Ranges, run_fp32: Run, run_int8: Run
) -> None:
    """int8 is near fp32, and far nearer to the same quantisation in PyTorch (a value may round to its neighbour)."""
    simulated = quantized_in_pytorch(tiny, seen)
    fp32 = [np.array(run_fp32([window]))[:, 0] for window in windows]
    int8 = [np.array(run_int8([window]))[:, 0] for window in windows]
    lost = rms(np.concatenate([a - b for a, b in zip(fp32, int8, strict=True)], axis=1))
    unexplained = rms(
        np.concatenate([logits(simulated, w) - got for w, got in zip(windows, int8, strict=True)], axis=1)
    )
    assert 0 < lost < 0.15 * rms(np.concatenate(fp32, axis=1))
    assert unexplained < lost / 4


def test_the_probe_has_products_that_need_more_than_16_bits(tmp_path: Path) -> None:
    ir.save(saturation_probe(), tmp_path / "probe.onnx")
    session = open_session(tmp_path / "probe.onnx", threads=1)
    assert session.get_inputs() == []
    assert [output.name for output in session.get_outputs()] == ["product", "expected"]
    product, expected = session.run(None, {})
    assert expected.shape == product.shape
    assert np.unique(expected).tolist() == [64 * 255 * 127]
    assert np.unique(product).size == 1, "this processor computes all of it alike, rightly or not"


def inputs(windows: int, length: int) -> list[Int64]:
    """Windows of one length, with words from all over the vocabulary."""
    generator = np.random.default_rng(length)
    return [np.array([101, *generator.integers(1000, 30000, length - 2), 102]) for _ in range(windows)]


def assert_equal_alone_and_together(run: Run, chosen: Sequence[Int64]) -> None:
    together = np.array(run(chosen))
    for number, window in enumerate(chosen):
        np.testing.assert_array_equal(np.array(run([window]))[:, 0], together[:, number])


@pytest.mark.parametrize("length", [3, 16, 61, 200])
def test_bit_equal_alone_and_in_a_batch(length: int, run_int8: Run) -> None:
    assert_equal_alone_and_together(run_int8, inputs(8, length))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [8, 64, 384])
def test_shipped_checkpoint_bit_equal_alone_and_in_a_batch(length: int, threads: int, bundle: Path) -> None:
    engine = Engine(Bundle.open(bundle), "cpu-int8", threads=threads)

    def run(windows: Sequence[Int64]) -> list[Floats]:
        start, end = zip(*engine.run(windows), strict=True)
        return [np.array(start), np.array(end)]

    assert_equal_alone_and_together(run, inputs(4, length))
