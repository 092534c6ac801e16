"""Widen a DistilBERT checkpoint by an integer factor without changing its answers.

Every hidden vector ``h`` becomes ``factor`` copies of itself, and every weight is repeated and divided so
that the network computes the same function at the larger size. The shipped 384-wide stand-in becomes an exact
``distilbert-base-uncased`` shape (768 wide, 66,364,418 parameters) with real answers at the target's real
cost, which is what speed and memory are measured on where the target's own weights are not at hand.

The result is not the target model: its accuracy is the small checkpoint's.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from transformers import DistilBertForQuestionAnswering

from distilqa.errors import DistilqaError
from distilqa_export.graph.checkpoint import load_checkpoint, save_checkpoint

Tensors = dict[str, torch.Tensor]


def widen(model: DistilBertForQuestionAnswering, factor: int = 2) -> DistilBertForQuestionAnswering:
    """Return a new fp32 model of ``factor`` times the width that computes the same logits.

    ``dim``, ``hidden_dim`` and the width of a head are multiplied by ``factor``; layers, heads and vocabulary stay.
    Logits agree to rounding (about 1e-5 in fp32). Raises ValueError for a factor below 2 and for another architecture.
    """
    if model.config.model_type != "distilbert":
        raise ValueError(f"found a model of type {model.config.model_type}; needed is distilbert")
    if factor < 2:
        raise ValueError(f"factor must be at least 2, not {factor}")
    config = type(model.config).from_dict(model.config.to_dict())
    heads, head_width = config.n_heads, config.dim // config.n_heads
    config.dim, config.hidden_dim = config.dim * factor, config.hidden_dim * factor

    # A head's scores are divided by the square root of its width, and a duplicated q.k is `factor` times as
    # large: c makes factor * c^2 / sqrt(factor * width) equal to 1 / sqrt(width).
    c = (1 / math.sqrt(factor)) ** 0.5

    def copies(t: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return torch.cat([t] * factor, dim=dim)

    def per_head(t: torch.Tensor) -> torch.Tensor:
        """Repeat each head's rows within the head."""
        split = t.view(heads, head_width, *t.shape[1:])
        return torch.cat([split] * factor, dim=1).reshape(-1, *t.shape[1:])

    def from_copies(weight: torch.Tensor) -> torch.Tensor:
        """Let a linear map read a duplicated input."""
        return copies(weight, dim=1) / factor

    def from_heads(weight: torch.Tensor) -> torch.Tensor:
        """Let a linear map read an input that is duplicated within each head."""
        return per_head(weight.T).T / factor

    source: Tensors = {name: t.float() for name, t in model.state_dict().items()}
    wide: Tensors = {}
    for name, t in source.items():
        weight = name.endswith("weight")
        if "embeddings" in name and t.dim() == 2:
            wide[name] = copies(t, dim=1)
        elif name.startswith("qa_outputs"):
            wide[name] = from_copies(t) if weight else t
        elif "q_lin" in name or "k_lin" in name:
            wide[name] = c * per_head(from_copies(t) if weight else t)
        elif "v_lin" in name:
            wide[name] = per_head(from_copies(t) if weight else t)
        elif "out_lin" in name:
            wide[name] = copies(from_heads(t) if weight else t)
        elif t.dim() == 2:
            wide[name] = copies(from_copies(t))
        else:
            wide[name] = copies(t)

    widened = DistilBertForQuestionAnswering(config)
    widened.load_state_dict(wide)
    return widened.eval()


def main() -> None:
    """``python -m distilqa_export.graph.widen SOURCE TARGET``: write the widened checkpoint as a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m distilqa_export.graph.widen", description="Widen a DistilBERT checkpoint, answers unchanged."
    )
    parser.add_argument("source", help="DistilBERT question-answering checkpoint, a folder or a hub id")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--factor", type=int, default=2, help="how many times as wide (default 2)")
    arguments = parser.parse_args()
    try:
        checkpoint = load_checkpoint(arguments.source)
        save_checkpoint(checkpoint.with_model(widen(checkpoint.model, arguments.factor)), arguments.target)
    except (DistilqaError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
