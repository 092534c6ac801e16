"""Fusing: what becomes of the graph, that its logits stay, and that a graph that does not fuse is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from distilqa.bundle import Architecture
from distilqa.engine.session import open_session
from distilqa_export.errors import ExportError
from distilqa_export.gate.check import Run, runner
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.fuse import census, expect_operators, fuse, fused_operators
from distilqa_export.graph.trace import trace

CLS, SEP = 101, 102

INPUTS = {"distilbert": ["input_ids"], "bert": ["input_ids", "token_type_ids"]}


@pytest.fixture(scope="module")
def run(fused: Path) -> Run:
    return runner(open_session(fused, threads=1))


def test_demands_operators_by_the_number_of_layers() -> None:
    demanded = fused_operators(Architecture("distilbert", 6, 768, 12, 3072, 30522, 512, 66_364_418))
    assert {name: count for name, count in demanded.items() if count} == {
        "Attention": 6,
        "Gelu": 6,
        "LayerNormalization": 13,
        "MatMul": 37,
    }
    assert {"Softmax", "Transpose", "Erf", "Where"} <= set(demanded)


def test_fuses_every_layer(fused: Path, tiny: Checkpoint, kind: str) -> None:
    model = ir.load(fused)
    found = census(model)
    assert {name: found[name] for name in fused_operators(tiny.architecture)} == fused_operators(tiny.architecture)
    assert found["Attention"] == 2
    assert {"Reshape", "Div", "Sqrt", "Expand", "Constant"}.isdisjoint(found)
    assert [value.name for value in model.graph.inputs] == INPUTS[kind]
    assert [value.name for value in model.graph.outputs] == ["start_logits", "end_logits"]


def test_fuses_the_shipped_checkpoint(shipped: Checkpoint, tmp_path: Path) -> None:
    found = census(fuse(trace(shipped, tmp_path), shipped.architecture))
    assert [found[name] for name in ("Attention", "Gelu", "LayerNormalization", "MatMul")] == [6, 6, 13, 37]
    assert [found[name] for name in ("Softmax", "Transpose", "Erf", "Where", "Reshape")] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(("windows", "passage_tokens"), [(1, 1), (1, 7), (3, 24), (8, 59), (2, 379)])
def test_gives_the_logits_of_pytorch(windows: int, passage_tokens: int, run: Run, tiny: Checkpoint, kind: str) -> None:
    words = np.random.default_rng(passage_tokens).integers(1000, 30000, (windows, 2 + passage_tokens))
    ids = np.insert(words, (0, 2, 2 + passage_tokens), (CLS, SEP, SEP), axis=1)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
    if kind == "bert":
        segments = np.repeat([0, 1], [4, passage_tokens + 1])
        inputs["token_type_ids"] = torch.from_numpy(np.tile(segments, (windows, 1)))
    with torch.inference_mode():
        expected = tiny.model(**inputs)
    start, end = run(list(ids))
    np.testing.assert_allclose(start, expected.start_logits, atol=1e-4)
    np.testing.assert_allclose(end, expected.end_logits, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 3])
def test_refuses_another_number_of_layers(layers: int, traced: Path, tiny: Checkpoint) -> None:
    with pytest.raises(ExportError, match=rf"did not fuse as its architecture demands: .*2 Attention \(not {layers}\)"):
        fuse(traced, replace(tiny.architecture, layers=layers))


def use_mask_again(model: ir.Model) -> None:
    """Give the graph another output that is made of the attention mask."""
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    node = ir.node("Neg", [mask])
    node.outputs[0].name = "negated"
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])


def change_one_attention(model: ir.Model) -> None:
    """Put something between one layer's softmax and its values."""
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    node = ir.node("Neg", [softmax.outputs[0]])
    node.outputs[0].name = "between"
    for user, place in tuple(softmax.outputs[0].uses()):
        user.replace_input_with(place, node.outputs[0])
    node.replace_input_with(0, softmax.outputs[0])
    model.graph.insert_after(softmax, node)


def replace_gelu(model: ir.Model) -> None:
    """Make one layer's activation another."""
    next(node for node in model.graph if node.op_type == "Gelu").op_type = "Relu"


# Each change to a trace, and what the refusal must say.
UNFUSABLE: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "mask used again": (use_mask_again, "something still uses attention_mask"),
    "one attention differs": (change_one_attention, "the graph did not fuse"),
    "one activation differs": (replace_gelu, r"1 Gelu \(not 2\)"),
}


@pytest.mark.parametrize(("change", "message"), UNFUSABLE.values(), ids=UNFUSABLE)
def test_refuses_a_graph_that_does_not_fuse(
    change: Callable[[ir.Model], None], message: str, traced: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    model = ir.load(traced)
    change(model)
    ir.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ExportError, match=message):
        fuse(tmp_path / "changed.onnx", tiny.architecture)


def test_refuses_what_has_no_mask_to_remove(fused: Path, tiny: Checkpoint) -> None:
    with pytest.raises(ExportError, match="did not fuse"):
        fuse(fused, tiny.architecture)


def test_names_every_operator_that_is_wrong(fused: Path) -> None:
    model = ir.load(fused)
    expect_operators(model, {"Attention": 2, "Erf": 0})
    with pytest.raises(ExportError) as refused:
        expect_operators(model, {"Attention": 4, "Gelu": 2, "Gather": 0})
    gathers = census(model)["Gather"]
    assert str(refused.value).endswith(f"it has 2 Attention (not 4), {gathers} Gather (not 0)")
