"""What the suite was told to measure, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import models
from distilqa.engine import usable_cores
from distilqa.evaluation import Question, read_questions
from distilqa_export.samples import packaged_evaluation


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
        return 0.5 if self.tiny else 5 if self.quick else 60

    @cached_property
    def questions(self) -> list[Question]:
        """Those whose answers are judged."""
        asked = read_questions(self.squad) if self.squad else packaged_evaluation()
        return asked[: 4 if self.tiny else 500 if self.quick else None]

    @cached_property
    def distilbert_checkpoint(self) -> Path:
        return models.distilbert(self.distilbert)

    @cached_property
    def bert_checkpoint(self) -> Path:
        return models.bert(self.bert)

    def check(self) -> None:
        """Read what the caller gave, so that a mistake is told at once. Raises DatasetError or CheckpointError."""
        _ = self.questions, self.distilbert_checkpoint, self.bert_checkpoint

    def to_json(self) -> dict[str, Any]:
        return {
            "quick": self.quick,
            "tiny": self.tiny,
            "distilbert": self.distilbert,
            "bert": self.bert,
            "squad": self.squad and self.squad.name,
            "rounds": self.rounds,
            "load_s": self.load_s,
            "questions": len(self.questions),
        }
