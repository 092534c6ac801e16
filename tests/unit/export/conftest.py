"""Tiny random checkpoints, and what the exporter's first steps make of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import BertConfig, BertTokenizerFast, DistilBertConfig, PreTrainedModel

from distilqa.engine.segments import token_types
from distilqa.engine.session import open_session
from distilqa.text.arrays import Float32, Int64
from distilqa.text.windows import Windower
from distilqa_export import samples
from distilqa_export.gate.check import Run, runner
from distilqa_export.graph.checkpoint import MODELS, Checkpoint, load_checkpoint
from distilqa_export.graph.fuse import fuse
from distilqa_export.graph.trace import trace
from distilqa_export.quantization.calibrate import Observed, observe
from distilqa_export.quantization.equalize import values

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
        return save_with_tokenizer(random_model(kind, **changes), folder, checkpoint)

    return make


def save_with_tokenizer(model: PreTrainedModel, folder: Path, checkpoint: Path) -> Path:
    """Write a model as a checkpoint with the shipped tokenizer."""
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copy(checkpoint / name, folder / name)
    if model.config.model_type == "bert":  # whose tokenizer tells the segments too
        BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


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


@pytest.fixture(scope="session")
def calibration(shipped: Checkpoint) -> list[Int64]:
    """Windows of real text, (length,) each; the tiny checkpoints have the shipped tokenizer."""
    windower = Windower(shipped.tokenizer_json, max_tokens=shipped.window_tokens)
    chosen = samples.packaged_calibration()[:20]
    return [w.input_ids for s in chosen for w in windower.tokenize(s.question, [s.context]).windows]


@pytest.fixture(scope="session")
def observed(fused: Path, calibration: list[Int64]) -> dict[str, Observed]:
    """What the values of the tiny model were on the calibration windows."""
    return observe(fused, values(ir.load(fused)), calibration)


@pytest.fixture(scope="session")
def run_fp32(fused: Path) -> Run:
    """The tiny model's fp32 logits."""
    return runner(open_session(fused, threads=1))


# Of the wide model's feed-forward networks: those that reach far.
FAR_UNITS = (5, 400, 790)


@pytest.fixture(scope="session")
def wide(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny model that is hard to quantise: as trained ones do, it has channels and units that reach far.

    Its feed-forward network is wide enough that units share scales in blocks, the last of which is not full.
    """
    model = random_model("distilbert", hidden_dim=808)
    with torch.no_grad():
        for layer in model.distilbert.transformer.layer:
            for norm in (layer.sa_layer_norm, layer.output_layer_norm):
                norm.weight[[3, 17]] *= 16
                norm.bias[[3, 17]] += 16
            layer.ffn.lin1.weight[list(FAR_UNITS)] *= 30
    folder = tmp_path_factory.mktemp("wide") / "wide"
    return load_checkpoint(str(save_with_tokenizer(model, folder, checkpoint)))


@pytest.fixture(scope="session")
def wide_fused(wide: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wide model, fused and saved."""
    return save_fused(wide, tmp_path_factory.mktemp("wide-fused"))


@pytest.fixture(scope="session")
def shipped_fused(shipped: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, fused and saved."""
    return save_fused(shipped, tmp_path_factory.mktemp("shipped-fused"))


def save_fused(checkpoint: Checkpoint, folder: Path) -> Path:
    """Trace and fuse a checkpoint, and save that in a folder."""
    path = folder / "fused.onnx"
    ir.save(fuse(trace(checkpoint, folder), checkpoint.architecture), path)
    return path


def random_windows(windows: int, length: int) -> list[Int64]:
    """Windows of one length, with words from all over the vocabulary between [CLS] and [SEP] where there is room."""
    ids = np.random.default_rng(length).integers(1000, 30000, (windows, length))
    ids[:, 0], ids[:, -1] = 101, 102
    return list(ids)


def logits(model: PreTrainedModel, window: Int64) -> Float32:
    """PyTorch's (2, length) logits of a window."""
    inputs = {"input_ids": torch.from_numpy(window[None])}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = torch.from_numpy(token_types(window[None]))
    with torch.inference_mode():
        output = model(**inputs)
    return np.array([output.start_logits[0].numpy(), output.end_logits[0].numpy()])
