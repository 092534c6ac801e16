"""Quantising: the graph, that no matmul escapes, and that the int8 model computes nearly what the fp32 model does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from tests.unit.export.conftest import FAR_UNITS, logits, random_model, random_windows, save_fused, save_with_tokenizer
from transformers import PreTrainedModel

from distilqa.bundle import Architecture, Bundle
from distilqa.engine.cpu import CpuEngine
from distilqa.engine.session import open_session, run_session
from distilqa.text.arrays import Int64
from distilqa_export.errors import ExportError
from distilqa_export.gate.check import Run, runner
from distilqa_export.graph.checkpoint import Checkpoint, load_checkpoint
from distilqa_export.graph.fuse import census
from distilqa_export.graph.layers import constant, operand
from distilqa_export.quantization.calibrate import Observed
from distilqa_export.quantization.equalize import equalize, values
from distilqa_export.quantization.quantize import Quantizer, count_outliers, quantized_operators
from distilqa_export.quantization.rounding import int8_rows, uint8_scale

Floats = npt.NDArray[np.float32]


# The last is as many as the tiny models have positions.
LENGTHS = (1, 2, 3, 17, 255, 256, 511, 512)


@pytest.fixture(scope="module")
def int8(fused: Path, calibration: list[Int64], tiny: Checkpoint) -> Path:
    """Calibrated on windows of all lengths: what reaches farther than anything that was observed is cut off."""
    path = fused.with_name("int8.onnx")
    windows = [*calibration, *(window for length in LENGTHS for window in random_windows(2, length))]
    ir.save(Quantizer(fused, windows, tiny.architecture).model(), path)
    return path


@pytest.fixture(scope="module")
def run_int8(int8: Path) -> Run:
    return runner(open_session(int8, threads=2))


@pytest.fixture(scope="module")
def wide_int8(wide_fused: Path, calibration: list[Int64], wide: Checkpoint) -> Path:
    path = wide_fused.with_name("int8.onnx")
    ir.save(Quantizer(wide_fused, calibration, wide.architecture).model(), path)
    return path


def test_demands_operators_by_the_number_of_layers() -> None:
    demanded = quantized_operators(Architecture("distilbert", 6, 768, 12, 3072, 30522, 512, 66_364_418))
    assert {name: count for name, count in demanded.items() if count} == {
        "Clip": 6,
        "Gelu": 6,
        "LayerNormalization": 13,
        "MatMul": 1,
        "MatMulIntegerToFloat": 48,
        "QuantizeLinear": 48,
        "Softmax": 6,
        "Transpose": 30,
    }
    assert {"Attention", "Erf", "Where"} <= set(demanded)


def test_has_the_demanded_operators(int8: Path, fused: Path, tiny: Checkpoint) -> None:
    model = ir.load(int8)
    found, demanded = census(model), quantized_operators(tiny.architecture)
    assert {name: found[name] for name in demanded} == demanded
    assert found["MatMulIntegerToFloat"] == 16
    for side in ("inputs", "outputs"):
        kept = [value.name for value in getattr(ir.load(fused).graph, side)]
        assert [value.name for value in getattr(model.graph, side)] == kept


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


def test_multiplies_unsigned_by_signed(int8: Path) -> None:
    """Which processors have a fast kernel for."""
    model = ir.load(int8)
    products = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    weights = [operand(node, 1) for node in products if operand(node, 1).const_value is not None]
    assert len(weights) == 12
    assert {weight.dtype for weight in weights} == {ir.DataType.INT8}
    assert max(np.abs(constant(weight)).max() for weight in weights) == 127
    sides = set()
    for node in products:
        quantized = [_quantizer(operand(node, place)) for place in (0, 1)]
        sides.add(tuple(_type_of(maker) if maker else ir.DataType.INT8 for maker in quantized))
    assert sides == {(ir.DataType.UINT8, ir.DataType.INT8)}


def _quantizer(value: ir.Value) -> ir.Node | None:
    """The node that rounded a value, through what only moves or cuts it off; none for a constant."""
    node = value.producer()
    while node is not None and node.op_type in {"Clip", "Reshape", "Transpose"}:
        node = operand(node, 0).producer()
    assert node is None or node.op_type == "QuantizeLinear"
    return node


def _type_of(quantizer: ir.Node) -> ir.DataType | None:
    """What a QuantizeLinear makes: the type of its zero point, and what it says or uint8 where it has none."""
    if len(quantizer.inputs) < 3:
        said = quantizer.attributes.get("output_dtype")
        return ir.DataType.UINT8 if said is None else ir.DataType(said.as_int())
    zero_point = operand(quantizer, 2)
    producer = zero_point.producer()
    return zero_point.dtype if producer is None else operand(producer, 0).dtype


@pytest.mark.parametrize("place", [0, 3, 10])
def test_refuses_a_matmul_whose_input_was_not_observed(
    place: int, fused: Path, calibration: list[Int64], tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a layer's values, the first four are inputs of matmuls."""

    def fewer(fused: Path, observed: dict[str, Observed], heads: int) -> tuple[ir.Model, dict[str, Observed]]:
        model, seen = equalize(fused, observed, heads)
        del seen[values(model)[place]]
        return model, seen

    monkeypatch.setattr("distilqa_export.quantization.quantize.equalize", fewer)
    with pytest.raises(ExportError, match="MatMulIntegerToFloat"):
        Quantizer(fused, calibration[:1], tiny.architecture).model()


def test_leaves_the_fused_model_as_it_was(fused: Path, calibration: list[Int64], tiny: Checkpoint) -> None:
    """It is the fp32 variant."""
    before = fused.read_bytes()
    Quantizer(fused, calibration[:1], tiny.architecture).model()
    assert fused.read_bytes() == before


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """PyTorch's linear layers by name, without the answer head."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    del found["qa_outputs"]
    return found


def plainly_quantized(model: PreTrainedModel, windows: Sequence[Int64]) -> PreTrainedModel:
    """The model with its weights rounded to int8, and each matmul's input to uint8, as they come; attention in fp32."""
    model = copy.deepcopy(model)
    extremes: dict[str, tuple[float, float]] = {}

    def watch(name: str, rows: torch.Tensor) -> None:
        least, greatest = extremes.get(name, (0.0, 0.0))
        extremes[name] = min(least, rows.min().item()), max(greatest, rows.max().item())

    hooks = [
        linear.register_forward_pre_hook(lambda _, given, name=name: watch(name, given[0]))
        for name, linear in linears(model).items()
    ]
    for window in windows:
        logits(model, window)
    for hook in hooks:
        hook.remove()
    table = next(module for name, module in model.named_modules() if name.endswith("word_embeddings"))
    for weight in (table.weight, *(linear.weight for linear in linears(model).values())):
        rows, scale = int8_rows(weight.detach().double().numpy())
        weight.data = torch.from_numpy((rows * scale[:, None]).astype(np.float32))
    for name, linear in linears(model).items():
        step, zero = (value.item() for value in uint8_scale(*extremes[name]))
        linear.register_forward_pre_hook(
            lambda _, given, step=step, zero=zero: torch.fake_quantize_per_tensor_affine(given[0], step, zero, 0, 255)
        )
    return model


def rms(numbers: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(numbers))))


def logits_of(run: Run, windows: Sequence[Int64]) -> Floats:
    """The (2, tokens) logits of all windows, each run alone."""
    return np.concatenate([np.array(run([window]))[:, 0] for window in windows], axis=1)


def test_is_near_fp32(calibration: list[Int64], run_fp32: Run, run_int8: Run) -> None:
    fp32, int8 = (logits_of(run, calibration) for run in (run_fp32, run_int8))
    assert 0 < rms(int8 - fp32) < 0.15 * rms(fp32)


def test_is_nearer_to_fp32_than_plain_rounding_where_channels_reach_far(
    wide: Checkpoint, wide_fused: Path, wide_int8: Path, calibration: list[Int64]
) -> None:
    """Though plain rounding leaves attention in fp32."""
    fp32, int8 = (logits_of(runner(open_session(path, threads=2)), calibration) for path in (wide_fused, wide_int8))
    plain = plainly_quantized(wide.model, calibration)
    plainly = np.concatenate([logits(plain, window) for window in calibration], axis=1)
    assert 0 < rms(int8 - fp32) < 0.15 * rms(fp32)
    assert rms(int8 - fp32) < rms(plainly - fp32) * 2 / 3


def with_outputs(model: ir.Model, outputs: Sequence[ir.Value], path: Path, window: Int64) -> list[npt.NDArray[Any]]:
    """What those values of a model are for a window."""
    model.graph.outputs.extend(outputs)
    ir.save(model, path)
    session = open_session(path, threads=1)
    inputs = [node.name for node in session.get_inputs()]
    names = [str(value.name) for value in outputs]
    return list(run_session(session, inputs, [window], names))


def test_feed_forward_blocks_have_scales_of_their_own(
    wide_int8: Path, calibration: list[Int64], tmp_path: Path
) -> None:
    """What Gelu made comes back within half a step of its block's scale, in the last block too, which is not full."""
    model = ir.load(wide_int8)
    after_gelu = [node for node in model.graph if (maker := operand(node, 0).producer()) and maker.op_type == "Gelu"]
    quantizers = [node for node in after_gelu if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 2
    outputs = [value for node in quantizers for value in (*node.inputs, *node.outputs) if value is not None]
    found = with_outputs(model, outputs, tmp_path / "blocks.onnx", calibration[0])
    for units, scales, zeros, rounded in (found[begin : begin + 4] for begin in (0, 4)):
        assert (units.shape[-1], scales.shape[-1]) == (808, 51), "fifty blocks of sixteen, and one of eight"
        steps = np.repeat(scales.astype(float), 16, axis=-1)[..., :808]
        zero = np.repeat(zeros.astype(float), 16, axis=-1)[..., :808]
        # The layers before are rounded too, which may take a few beyond what was calibrated.
        inside = (rounded > 0) & (rounded < 255)
        inside[..., : len(FAR_UNITS)] = False  # they stay in fp32
        assert inside.mean() > 0.9
        assert (np.abs((rounded - zero) * steps - units) <= 0.51 * steps)[inside].all()
        assert scales[0, 0, 0] > 2 * scales[0, 0, -1]


@pytest.mark.parametrize(
    ("reach", "count"),
    [
        ([9.0, 8.0] + [4.0] * 298, 1),
        ([9.0, 8.1] + [4.0] * 298, 2),
        ([4.0] * 300, 0),
        ([9.0] * 4 + [4.0] * 296, 0),
        ([0.0] * 300, 0),
        ([5.0], 0),
    ],
)
def test_an_outlier_reaches_twice_as_far_as_all_but_a_hundredth(reach: list[float], count: int) -> None:
    assert count_outliers(np.array(reach)) == count


def test_outliers_stay_in_fp32(wide_int8: Path, wide: Checkpoint) -> None:
    model = ir.load(wide_int8)
    products = [node for node in model.graph if node.op_type == "MatMul"][:-1]  # the last is the answer head
    weights = [constant(operand(node, 1)) for node in products]
    narrow = [module for name, module in wide.model.named_modules() if name.endswith("ffn.lin2")]
    for found, original in zip(weights, narrow, strict=True):
        columns = original.weight.detach().numpy()[:, list(FAR_UNITS)].T
        np.testing.assert_allclose(sorted(found[:, 0]), sorted(columns[:, 0]), rtol=1e-6)
    int8 = [constant(value) for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    narrowed = [weight for weight in int8 if weight.shape == (808, wide.architecture.hidden)]
    assert len(narrowed) == 2
    for weight in narrowed:
        assert not weight[: len(FAR_UNITS)].any()
        assert weight[len(FAR_UNITS) :].any(axis=1).all()


def test_outliers_in_fp32_bring_the_shipped_model_nearer(
    shipped: Checkpoint,
    shipped_fused: Path,
    calibration: list[Int64],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def distance() -> float:
        ir.save(Quantizer(shipped_fused, calibration, shipped.architecture).model(), tmp_path / "int8.onnx")
        fp32, int8 = (
            logits_of(runner(open_session(path, threads=2)), calibration)
            for path in (shipped_fused, tmp_path / "int8.onnx")
        )
        return rms(int8 - fp32)

    nearer = distance()
    monkeypatch.setattr("distilqa_export.quantization.quantize.count_outliers", lambda reach: 0)
    assert nearer < 0.85 * distance()


def attentive(scale: float, checkpoint: Path, folder: Path) -> Checkpoint:
    """A tiny checkpoint with queries scaled: the smaller they are, the more tokens each looks at."""
    model = random_model("distilbert")
    with torch.no_grad():
        for layer in model.distilbert.transformer.layer:
            layer.attention.q_lin.weight *= scale
            layer.attention.q_lin.bias *= scale
    return load_checkpoint(str(save_with_tokenizer(model, folder, checkpoint)))


@pytest.mark.parametrize(("scale", "lost"), [(0.0, 0.02), (0.01, 0.02), (3.0, 0.25)])
def test_attention_is_rounded_by_rows(
    scale: float, lost: float, checkpoint: Path, calibration: list[Int64], tmp_path: Path
) -> None:
    """Whether a token looks at all others alike, or at one: its greatest weight is 255, and its weights come back."""
    loaded = attentive(scale, checkpoint, tmp_path / "checkpoint")
    fused = save_fused(loaded, tmp_path)
    model = Quantizer(fused, calibration, loaded.architecture).model()
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    quantizers = [next(node for node, _ in s.outputs[0].uses() if node.op_type == "QuantizeLinear") for s in softmaxes]
    outputs = [value for node in quantizers for value in (*node.inputs, *node.outputs) if value is not None]
    (window,) = random_windows(1, 512)
    ir.save(model, tmp_path / "int8.onnx")
    found = with_outputs(model, outputs, tmp_path / "watched.onnx", window)
    for weights, scales, rounded in (found[begin : begin + 3] for begin in (0, 3)):
        assert (rounded.max(axis=-1) == 255).all()
        assert (np.abs(rounded * scales.astype(float) - weights) <= 0.51 * scales).all()
    fp32, int8 = (
        logits_of(runner(open_session(path, threads=1)), [window]) for path in (fused, tmp_path / "int8.onnx")
    )
    assert rms(int8 - fp32) < lost * rms(fp32)


def test_a_head_whose_keys_are_nothing(checkpoint: Path, calibration: list[Int64], tmp_path: Path) -> None:
    """As pruning leaves one: its keys have the scale 0, and its queries look at all tokens alike."""
    model = random_model("distilbert")
    with torch.no_grad():
        for layer in model.distilbert.transformer.layer:
            layer.attention.k_lin.weight[:16].zero_()
            layer.attention.k_lin.bias[:16].zero_()
    loaded = load_checkpoint(str(save_with_tokenizer(model, tmp_path / "checkpoint", checkpoint)))
    fused = save_fused(loaded, tmp_path)
    model = Quantizer(fused, calibration, loaded.architecture).model()
    softmaxes = [node.outputs[0] for node in model.graph if node.op_type == "Softmax"]
    ir.save(model, tmp_path / "int8.onnx")
    for weights in with_outputs(model, softmaxes, tmp_path / "watched.onnx", calibration[0]):
        np.testing.assert_allclose(weights[:, 0], 1 / len(calibration[0]), rtol=1e-4)
    fp32, int8 = (
        logits_of(runner(open_session(path, threads=1)), calibration) for path in (fused, tmp_path / "int8.onnx")
    )
    assert rms(int8 - fp32) < 0.15 * rms(fp32)


@pytest.mark.parametrize("length", LENGTHS)
def test_runs_windows_of_all_lengths(length: int, run_fp32: Run, run_int8: Run, tiny: Checkpoint) -> None:
    assert length <= tiny.architecture.positions == 512
    fp32, int8 = (np.array(run(random_windows(2, length))) for run in (run_fp32, run_int8))
    assert int8.shape == (2, 2, length)
    assert rms(int8 - fp32) < 0.25 * rms(fp32)


def assert_equal_alone_and_together(run: Run, chosen: Sequence[Int64]) -> None:
    together = np.array(run(chosen))
    for number, window in enumerate(chosen):
        np.testing.assert_array_equal(np.array(run([window]))[:, 0], together[:, number])


@pytest.mark.parametrize("length", [3, 16, 61, 200, 512])
def test_bit_equal_alone_and_in_a_batch(length: int, run_int8: Run) -> None:
    assert_equal_alone_and_together(run_int8, random_windows(8, length))


@pytest.mark.parametrize("length", [5, 130])
def test_bit_equal_alone_and_in_a_batch_where_units_share_scales(length: int, wide_int8: Path) -> None:
    assert_equal_alone_and_together(runner(open_session(wide_int8, threads=2)), random_windows(4, length))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [8, 64, 384])
def test_shipped_checkpoint_bit_equal_alone_and_in_a_batch(length: int, threads: int, bundle: Path) -> None:
    engine = CpuEngine(Bundle.open(bundle), "cpu-int8", threads=threads)

    def run(windows: Sequence[Int64]) -> list[Floats]:
        start, end = zip(*engine.run(windows), strict=True)
        return [np.array(start), np.array(end)]

    assert_equal_alone_and_together(run, random_windows(4, length))


@pytest.mark.parametrize("still", ["transformer.layer.0.ffn.lin1.weight", "transformer.layer.0.sa_layer_norm.weight"])
def test_an_input_that_never_changes(still: str, checkpoint: Path, calibration: list[Int64], tmp_path: Path) -> None:
    """Its variance is 0, give or take what fp32 rounds off; the weights it meets can be rounded as they come."""
    model = random_model("distilbert")
    with torch.no_grad():
        model.distilbert.get_parameter(still).zero_()
    loaded = load_checkpoint(str(save_with_tokenizer(model, tmp_path / "checkpoint", checkpoint)))
    fused = save_fused(loaded, tmp_path)
    ir.save(Quantizer(fused, calibration, loaded.architecture).model(), tmp_path / "int8.onnx")
    fp32, int8 = (
        logits_of(runner(open_session(path, threads=1)), calibration) for path in (fused, tmp_path / "int8.onnx")
    )
    assert rms(int8 - fp32) < 0.15 * rms(fp32)


def test_refuses_values_that_overflow(checkpoint: Path, calibration: list[Int64], tmp_path: Path) -> None:
    model = random_model("distilbert")
    with torch.no_grad():
        model.distilbert.embeddings.LayerNorm.weight.mul_(1e30)
    loaded = load_checkpoint(str(save_with_tokenizer(model, tmp_path / "checkpoint", checkpoint)))
    with pytest.raises(ExportError, match="overflow"), np.errstate(all="ignore"):
        Quantizer(save_fused(loaded, tmp_path), calibration[:2], loaded.architecture)
