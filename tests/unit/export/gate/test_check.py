"""The checks on a converted model, and what they refuse."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file
from tests.unit.export.conftest import random_model, save_with_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distilqa.engine.session import open_session
from distilqa.text.arrays import Float32, Int64
from distilqa.text.windows import Windower
from distilqa_export.errors import ExportError
from distilqa_export.gate.check import MAX_FP32_DIFFERENCE, Run, check_fp32, check_tokens, logits_of, runner
from distilqa_export.graph.checkpoint import Checkpoint, load_checkpoint
from distilqa_export.graph.fuse import fuse
from distilqa_export.graph.trace import trace

MakeTiny = Callable[..., Path]

FOX = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def run(fused: Path) -> Run:
    return runner(open_session(fused, threads=1))


def test_accepts_the_same_model(run: Run, tiny: Checkpoint) -> None:
    assert 0 < check_fp32(tiny, run) < MAX_FP32_DIFFERENCE


# (windows, tokens) of a run and the place of the logit in it that is wrong.
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("windows", "tokens"), [(1, 8), (8, 16), (1, 384)])
@pytest.mark.parametrize("wrong", [0.01, math.inf, math.nan])
def test_refuses_one_wrong_logit(
    wrong: float, windows: int, tokens: int, side: int, run: Run, tiny: Checkpoint
) -> None:
    def spoiled(given: Sequence[Int64]) -> list[Float32]:
        logits = [np.array(values) for values in run(given)]
        if logits[side].shape == (windows, tokens):
            logits[side][-1, tokens // 2] += wrong
        return logits

    with pytest.raises(ExportError, match=r"the fp32 model's logits differ from PyTorch's by .*under \S+ is needed"):
        check_fp32(tiny, spoiled)


def test_refuses_swapped_outputs(run: Run, tiny: Checkpoint) -> None:
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        check_fp32(tiny, lambda windows: run(windows)[::-1])


def test_refuses_another_number_of_heads(traced: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    """Operators alone do not show it."""
    ir.save(fuse(traced, replace(tiny.architecture, heads=4)), tmp_path / "fused.onnx")
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        check_fp32(tiny, runner(open_session(tmp_path / "fused.onnx", threads=1)))


def test_what_is_wrong_with_small_logits_is_not_small(tiny_folder: Path, tmp_path: Path) -> None:
    """A head of a thousandth: all that is wrong is then within what larger logits may differ by."""
    shutil.copytree(tiny_folder, tmp_path / "small")
    weights = load_file(tmp_path / "small" / "model.safetensors")
    for name in ("qa_outputs.weight", "qa_outputs.bias"):
        weights[name] *= 1e-5
    save_file(weights, tmp_path / "small" / "model.safetensors", {"format": "pt"})
    small = load_checkpoint(str(tmp_path / "small"))
    traced = trace(small, tmp_path / "trace")
    for heads, right in ((2, True), (4, False)):
        ir.save(fuse(traced, replace(small.architecture, heads=heads)), tmp_path / "fused.onnx")
        with nullcontext() if right else pytest.raises(ExportError, match="differ from PyTorch's"):
            assert check_fp32(small, runner(open_session(tmp_path / "fused.onnx", threads=1))) < MAX_FP32_DIFFERENCE


def given_tokens(checkpoint: Path, folder: Path) -> Checkpoint:
    """A tiny checkpoint with tokens of its own, as it would come from training with them."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[PAR]", "[TLE]"]})
    save_with_tokenizer(random_model("distilbert", vocab_size=len(tokenizer)), folder, checkpoint)
    tokenizer.save_pretrained(folder)
    return load_checkpoint(str(folder))


def test_a_checkpoints_own_tokens_are_tokens_in_a_text(checkpoint: Path, tmp_path: Path) -> None:
    loaded = given_tokens(checkpoint, tmp_path / "given")
    windower = Windower(loaded.tokenizer_json, max_tokens=64)
    check_tokens(loaded, windower, [FOX, "The row [PAR] the column [TLE]."])
    (window,) = windower.tokenize("Why?", ["a [PAR] b [SEP] c"]).windows
    ids = window.input_ids.tolist()
    assert ids.count(30522) == 1
    assert ids.count(102) == 2


def test_refuses_windows_of_other_tokens(checkpoint: Path, tmp_path: Path, tiny: Checkpoint) -> None:
    loaded = given_tokens(checkpoint, tmp_path / "given")
    with pytest.raises(ExportError, match=r"tokens of a window are not those of .*' a .*\[PAR\] b"):
        check_tokens(loaded, Windower(tiny.tokenizer_json, max_tokens=64), [FOX])


def with_token(checkpoint: Checkpoint, content: str) -> tuple[Checkpoint, Windower]:
    """It has that token, which takes the space before it too."""
    tokenizer = json.loads(checkpoint.tokenizer_json)
    flags = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": True, "special": False}
    tokenizer["added_tokens"].append({"id": 1, "content": content, **flags})
    text = json.dumps(tokenizer)
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), cls_token="[CLS]", sep_token="[SEP]")
    return replace(checkpoint, tokenizer=own), Windower(text, max_tokens=64)


def test_refuses_tokens_with_spaces(tiny: Checkpoint) -> None:
    """Answers would begin with them; but not where an ordinary text has none, as with some [MASK]."""
    with pytest.raises(ExportError, match=r"tokens with the space beside them, ' fox' say"):
        check_tokens(*with_token(tiny, "fox"), [FOX])
    check_tokens(*with_token(tiny, "[PAR]"), [FOX])


def test_logits_of_runs_each_window_alone(run: Run, tiny: Checkpoint) -> None:
    question = Windower(tiny.tokenizer_json, max_tokens=32).tokenize("Who?", [FOX * 6])
    assert len(question.windows) > 2
    sizes: list[int] = []

    def counting(windows: Sequence[Int64]) -> Sequence[Float32]:
        sizes.append(len(windows))
        return run(windows)

    logits = logits_of(counting, question)
    assert sizes == [1] * len(question.windows)
    for window, (start, end) in zip(question.windows, logits, strict=True):
        expected = run([window.input_ids])
        np.testing.assert_array_equal([start, end], [expected[0][0], expected[1][0]])
