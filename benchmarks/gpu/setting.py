"""What is measured on a GPU, where a run takes milliseconds: in fewer rounds and shorter loads than on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import models
from benchmarks.setting import BERT, DISTILBERT, Setting
from distilqa.bundle import Bundle
from distilqa.reader import open_windower

# Runs of at least so many tokens make a turn in a race.
TURN_TOKENS = 65536


@dataclass(frozen=True)
class GpuSetting(Setting):
    @property
    def extent(self) -> Literal["full", "quick", "tiny"]:
        """How much is measured."""
        return "tiny" if self.tiny else "quick" if self.quick else "full"

    @property
    def rounds(self) -> int:
        return {"full": 9, "quick": 5, "tiny": 1}[self.extent]

    @property
    def load_s(self) -> float:
        return {"full": 3.0, "quick": 1.5, "tiny": 0.5}[self.extent]

    @property
    def bundles(self) -> dict[str, Path]:
        """Of both models, by name."""
        return {DISTILBERT: self.bundle, BERT: models.gpu_bundle(self.bert_checkpoint)}

    @property
    def bundle(self) -> Path:
        return models.gpu_bundle(self.distilbert_checkpoint)

    def lengths(self) -> list[int]:
        """Those of SQuAD's windows: how many tokens each has that the questions and their passages make."""
        windower = open_windower(Bundle.open(self.bundle))
        texts = [windower.tokenize(one.question, [one.context]) for one in self.questions]
        return [window.length for text in texts for window in text.windows]
