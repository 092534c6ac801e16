"""What a model is fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.unit.engine.conftest import windows_of

from distilqa.engine.session import run_session
from distilqa.text.arrays import Float32, Int64


class FakeModel:
    """Keeps what it was fed."""

    def run(self, outputs: Sequence[str], feeds: dict[str, Int64]) -> list[Float32]:
        self.outputs, self.feeds = outputs, feeds
        return [np.zeros(feeds["input_ids"].shape, np.float32) for _ in outputs]


@pytest.mark.parametrize("inputs", [["input_ids"], ["input_ids", "token_type_ids"]], ids=["DistilBERT", "BERT"])
def test_feeds(inputs: list[str]) -> None:
    model: Any = FakeModel()
    windows = windows_of(10, 3)
    start, end = run_session(model, inputs, windows)
    assert start.shape == end.shape == (3, 10)
    assert list(model.outputs) == ["start_logits", "end_logits"]
    assert sorted(model.feeds) == inputs
    assert model.feeds["input_ids"].tolist() == [window.tolist() for window in windows]
    if "token_type_ids" in inputs:
        assert model.feeds["token_type_ids"].tolist() == [[0] * 6 + [1] * 4] * 3
