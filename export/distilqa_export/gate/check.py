"""Check that a converted model is still the model: logits against PyTorch, answers against fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch

from distilqa.engine.packed import CUMULATIVE_LENGTHS, run_packed
from distilqa.engine.segments import token_types
from distilqa.engine.session import run_session
from distilqa.text.arrays import Float32, Int64, Logits
from distilqa.text.windows import Passage, Tokenized, Windower, no_panic
from distilqa_export.errors import ExportError
from distilqa_export.graph.checkpoint import Checkpoint

if TYPE_CHECKING:
    import onnxruntime

# fp32 against PyTorch, as a share of the logits' standard deviation: the same arithmetic in another order.
MAX_FP32_DIFFERENCE = 1e-3

# (windows, tokens) of the inputs that fp32 is compared on; the last is cut to the longest window.
_SHAPES = ((1, 8), (1, 61), (8, 16), (4, 128), (2, 333), (1, 384))

# Ids that are shown of a window that is wrong.
_SHOWN = 6

Run = Callable[[Sequence[Int64]], Sequence[Float32]]


def runner(session: onnxruntime.InferenceSession) -> Run:
    """A function from windows of one length to [start, end] logits, each (windows, length)."""
    inputs = [node.name for node in session.get_inputs()]
    if CUMULATIVE_LENGTHS in inputs:
        return lambda windows: [np.stack(side) for side in zip(*run_packed(session, inputs, windows), strict=True)]
    return lambda windows: run_session(session, inputs, windows)


def check_fp32(checkpoint: Checkpoint, run: Run) -> float:
    """Return the largest difference from PyTorch's logits over several lengths and batch sizes.

    Raises ExportError if it is not under `MAX_FP32_DIFFERENCE` times how far logits are apart: a model that tells
    tokens apart by little would hide much.
    """
    generator = np.random.default_rng(0)
    separator = checkpoint.tokenizer.sep_token_id
    differences, spreads = [], []
    for windows, length in _SHAPES:
        tokens = min(length, checkpoint.window_tokens)
        ids = generator.integers(0, checkpoint.architecture.vocabulary, (windows, tokens))
        ids[ids == separator] = 0
        ids[:, (tokens // 3, -1)] = separator
        expected = _torch_logits(checkpoint, ids)
        differences.append(np.abs(np.array(run(list(ids))) - expected).max())
        spreads.append(expected.std())
    largest = float(np.max(differences))  # unlike max(), NaN if any is
    most = MAX_FP32_DIFFERENCE * float(np.mean(spreads))
    if not largest < most:
        raise ExportError(f"the fp32 model's logits differ from PyTorch's by {largest:.3g}; under {most:.3g} is needed")
    return largest


def check_tokens(checkpoint: Checkpoint, windower: Windower, texts: Sequence[str]) -> None:
    """Check that windows are of the tokens that the checkpoint's own tokenizer makes, those it was given among them.

    But for [CLS] and [SEP] written out, which are no separators in a bundle. Raises ExportError.
    """
    own = checkpoint.tokenizer
    roles = (own.cls_token, own.sep_token)
    given = "".join(f" a {token} b" for token in own.get_added_vocab() if token and token not in roles)
    if given:
        _check_tokens(checkpoint, windower, given)
    for text in texts:
        passage = _check_tokens(checkpoint, windower, text)
        shown = [text[start:end] for start, end in zip(passage.starts, passage.ends, strict=True)]
        if spaced := next((one for one in shown if one != one.strip()), None):
            raise ExportError(
                f"the tokenizer has tokens with the space beside them, {spaced!a:.40} say; needed is BERT's"
            )


def _check_tokens(checkpoint: Checkpoint, windower: Windower, text: str) -> Passage:
    with no_panic():
        expected = checkpoint.tokenizer("Why", text, truncation=False, verbose=False)
    tokenized = windower.tokenize("Why", [text])
    window = tokenized.windows[0].input_ids
    pairs = [(window[:-1].tolist(), expected["input_ids"], "tokens")]
    types = expected.get("token_type_ids", ())
    if checkpoint.architecture.type == "bert" and any(types):  # or there is one, and the model was made so
        pairs.append((token_types(window[None])[0, :-1].tolist(), types, "token types"))
    for ours, theirs, name in pairs:
        at = next((at for at, (own, other) in enumerate(zip_longest(ours, theirs[: len(ours)])) if own != other), None)
        if at is not None:
            raise ExportError(
                f"the {name} of a window are not those of the checkpoint's tokenizer, which has"
                f" {theirs[at : at + _SHOWN]} and not {ours[at : at + _SHOWN]} from token {at} on, for the question"
                f" 'Why' on {text[:80]!a}"
            )
    return tokenized.passages[0]


def _torch_logits(checkpoint: Checkpoint, ids: Int64) -> Float32:
    inputs = {"input_ids": torch.from_numpy(ids)}
    if checkpoint.architecture.type == "bert":
        inputs["token_type_ids"] = torch.from_numpy(token_types(ids))
    with torch.inference_mode():
        output = checkpoint.model(**inputs)
    return np.array([output.start_logits.numpy(), output.end_logits.numpy()])


def logits_of(run: Run, question: Tokenized) -> list[Logits]:
    """The (start, end) logits of each window of a question, each run alone."""
    pairs = (run([window.input_ids]) for window in question.windows)
    return [(start[0], end[0]) for start, end in pairs]
