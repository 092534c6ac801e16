"""Tiny random checkpoints, and what the exporter's first steps make of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from transformers import BertConfig, DistilBertConfig, PreTrainedModel

from distilqa_export.checkpoint import MODELS, Checkpoint, load_checkpoint
from distilqa_export.fuse import fuse
from distilqa_export.trace import trace

KINDS = ("distilbert", "bert")

_SIZES: dict[str, dict[str, int]] = {
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
_CONFIGS = {"distilbert": DistilBertConfig, "bert": BertConfig}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

MakeTiny = Callable[..., Path]


def random_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A tiny model with every parameter random, biases and norms too, so that none can be lost unseen."""
    model = MODELS[kind](_CONFIGS[kind](**(_SIZES[kind] | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(float(gain), 0.3, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def make_tiny(checkpoint: Path) -> MakeTiny:
    """A function that writes a tiny checkpoint with the shipped tokenizer: ``make_tiny(folder, kind, **config)``."""

    def make(folder: Path, kind: str = "distilbert", **changes: Any) -> Path:
        random_model(kind, **changes).save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            shutil.copy(checkpoint / name, folder / name)
        return folder

    return make


@pytest.fixture(scope="session")
def shipped(checkpoint: Path) -> Checkpoint:
    """The shipped checkpoint, loaded."""
    return load_checkpoint(str(checkpoint))


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each type of model that can be exported."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def tiny_folder(kind: str, make_tiny: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each type. Tests must not change it."""
    return make_tiny(tmp_path_factory.mktemp(kind) / f"tiny-{kind}", kind)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    """The tiny checkpoint, loaded."""
    return load_checkpoint(str(tiny_folder))


@pytest.fixture(scope="session")
def traced(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's trace."""
    return trace(tiny, tmp_path_factory.mktemp("trace"))


@pytest.fixture(scope="session")
def fused(tiny: Checkpoint, traced: Path) -> Path:
    """The tiny model, fused and saved beside its trace."""
    path = traced.with_name("fused.onnx")
    ir.save(fuse(traced, tiny.architecture), path)
    return path
