"""What the suite was told to measure, and with what."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import models
from distilqa.engine.cores import usable_cores
from distilqa.evaluation.dataset import Question, read_questions
from distilqa_export.errors import CheckpointError
from distilqa_export.samples import packaged_evaluation

DISTILBERT, BERT = "DistilBERT", "bert-base"

# Up to which every part measures; longer windows only where the model takes them.
_LEAST_POSITIONS = 384

_QUICK_QUESTIONS, _TINY_QUESTIONS = 200, 4


@dataclass(frozen=True)
class Setting:
    """``quick`` takes one thread, fewer shapes, shorter loads; ``tiny`` is for tests: shows nothing but that all works.

    ``distilbert`` and ``bert`` are checkpoints in place of the stand-ins, ``squad`` a SQuAD v1.1 file in place of the
    packaged questions, ``price_per_s`` what the machine costs a second.
    """

    quick: bool = False
    tiny: bool = False
    distilbert: str | None = None
    bert: str | None = None
    squad: Path | None = None
    price_per_s: float | None = None

    @property
    def rounds(self) -> int:
        return 1 if self.tiny else 15

    @property
    def threads(self) -> list[int]:
        """That a run has: one, and as many as there are cores."""
        return [1] if self.quick else sorted({1, usable_cores()})

    @property
    def load_s(self) -> float:
        """How long a load lasts."""
        return 0.5 if self.tiny else 10 if self.quick else 30

    @cached_property
    def questions(self) -> list[Question]:
        """Those whose answers are judged: all, or a sample of them."""
        asked = read_questions(self.squad) if self.squad else packaged_evaluation()
        count = _TINY_QUESTIONS if self.tiny else _QUICK_QUESTIONS if self.quick else len(asked)
        return random.Random(0).sample(asked, min(count, len(asked)))

    @cached_property
    def distilbert_checkpoint(self) -> Path:
        return _long_enough(models.distilbert(self.distilbert))

    @cached_property
    def bert_checkpoint(self) -> Path:
        return _long_enough(models.bert(self.bert))

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Both models, by name."""
        return {DISTILBERT: self.distilbert_checkpoint, BERT: self.bert_checkpoint}

    def check(self) -> None:
        """Read what the caller gave, so that a mistake is told at once. Raises DatasetError or CheckpointError."""
        _ = self.questions, self.distilbert_checkpoint
        if self.bert:
            _ = self.bert_checkpoint

    def to_json(self) -> dict[str, Any]:
        return {
            "quick": self.quick,
            "tiny": self.tiny,
            "distilbert": self.distilbert,
            "distilbert_shape": _config(self.distilbert_checkpoint),
            "bert": self.bert,
            "squad": self.squad and self.squad.name,
            "questions": len(self.questions),
            "rounds": self.rounds,
            "load_s": self.load_s,
        }


def _config(checkpoint: Path) -> dict[str, int]:
    """The shape of a checkpoint."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "positions": config.max_position_embeddings,
    }


def _long_enough(checkpoint: Path) -> Path:
    """The same. Raises CheckpointError where it does not take the windows that are measured."""
    positions = _config(checkpoint)["positions"]
    if positions < _LEAST_POSITIONS:
        raise CheckpointError(f"{checkpoint} takes {positions} tokens; windows of {_LEAST_POSITIONS} are measured")
    return checkpoint
