"""Widening: the same logits at a larger size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DistilBertForQuestionAnswering, PreTrainedModel

from distilqa_export.graph.checkpoint import Checkpoint, load_checkpoint
from distilqa_export.graph.widen import widen

MakeTiny = Callable[..., Path]


@pytest.fixture(scope="module")
def wide(shipped: Checkpoint) -> DistilBertForQuestionAnswering:
    return widen(shipped.model)


@pytest.fixture(scope="module")
def distilbert(make_tiny: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DistilBERT checkpoint."""
    return make_tiny(tmp_path_factory.mktemp("widen") / "tiny")


def assert_same_logits(one: PreTrainedModel, other: PreTrainedModel, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(shape[1])
    ids = torch.randint(1000, 30000, shape, generator=generator)
    with torch.inference_mode():
        expected, found = one(input_ids=ids), other(input_ids=ids)
    assert expected.start_logits.std() > 0.1, "the comparison means something"
    torch.testing.assert_close(found.start_logits, expected.start_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.end_logits, expected.end_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 5), (2, 61), (1, 200), (1, 384)])
def test_shipped_checkpoint_at_twice_the_width(
    shape: tuple[int, int], wide: DistilBertForQuestionAnswering, shipped: Checkpoint
) -> None:
    assert_same_logits(shipped.model, wide, shape)


def test_shipped_checkpoint_gets_the_targets_shape(
    wide: DistilBertForQuestionAnswering, shipped: Checkpoint, checkpoint: Path
) -> None:
    shape = shipped.with_model(wide).architecture
    assert (shape.layers, shape.hidden, shape.heads, shape.feed_forward) == (6, 768, 12, 3072)
    assert shape.parameters == 66_364_418
    assert not wide.training
    assert shipped.architecture == load_checkpoint(str(checkpoint)).architecture, "the original is as it was"


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_any_factor(factor: int, distilbert: Path) -> None:
    narrow = load_checkpoint(str(distilbert)).model
    wider = widen(narrow, factor)
    assert wider.config.dim == 32 * factor
    assert_same_logits(narrow, wider, (3, 40))


@pytest.mark.parametrize("factor", [1, 0, -2])
def test_refuses_a_factor_that_does_not_widen(factor: int, distilbert: Path) -> None:
    with pytest.raises(ValueError, match=f"factor must be at least 2, not {factor}"):
        widen(load_checkpoint(str(distilbert)).model, factor)


def test_command_writes_a_checkpoint(distilbert: Path, tmp_path: Path) -> None:
    target = tmp_path / "wide"
    command = [sys.executable, "-m", "distilqa_export.graph.widen", str(distilbert), str(target), "--factor", "3"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    narrow, wide = load_checkpoint(str(distilbert)), load_checkpoint(str(target))
    assert wide.architecture.hidden == 96
    assert wide.tokenizer_json == narrow.tokenizer_json
    assert_same_logits(narrow.model, wide.model, (1, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{distilbert}", "{target}", "--factor", "1"], "factor must be at least 2, not 1"),
        (["{bert}", "{target}"], "found a model of type bert; needed is distilbert"),
        (["./nowhere", "{target}"], "./nowhere"),
    ],
)
def test_command_says_what_is_wrong(
    distilbert: Path, make_tiny: MakeTiny, tmp_path: Path, options: list[str], message: str
) -> None:
    bert, target = make_tiny(tmp_path / "bert", "bert"), tmp_path / "wide"
    arguments = [option.format(distilbert=distilbert, bert=bert, target=target) for option in options]
    command = [sys.executable, "-m", "distilqa_export.graph.widen", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()
