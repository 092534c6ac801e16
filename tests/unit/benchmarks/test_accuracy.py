from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from benchmarks.accuracy import Workshop, static_steps, stock_recipes
from transformers import AutoModelForQuestionAnswering

_LAYERS, _WINDOWS = 1, 8


@pytest.fixture(scope="module")
def workshop(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Of the first layers of the shipped checkpoint, and a few windows."""
    short = tmp_path_factory.mktemp("checkpoint")
    for file in checkpoint.iterdir():
        shutil.copy(file, short)
    AutoModelForQuestionAnswering.from_pretrained(checkpoint, n_layers=_LAYERS).save_pretrained(short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.models.CHECKPOINT", short)
        workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    workshop.windows = [window for window in workshop.windows if len(window) > 128][:_WINDOWS]
    return workshop


def test_each_step_makes_another_model(workshop: Workshop) -> None:
    made = {name: make() for name, make in static_steps(workshop).items()}
    made["released"] = workshop.ours(workshop.quantizer.model())
    logits = {name: np.array(one.run(workshop.windows[:1])) for name, one in made.items()}
    names = list(made)
    for number, name in enumerate(names):
        for other in names[:number]:
            assert not np.array_equal(logits[name], logits[other]), f"{name} is {other}"
    attention = {
        name: any(node.op_type == "Attention" for node in ir.load(one.path).graph) for name, one in made.items()
    }
    assert [name for name, kept in attention.items() if not kept] == ["+ attention in int8", "released"]


def test_stock_recipes_are_int8(workshop: Workshop) -> None:
    for make in stock_recipes(workshop).values():
        one = make()
        assert one.path.stat().st_size < workshop.fused.stat().st_size
        assert np.isfinite(np.array(one.run(workshop.windows[:1]))).all()
