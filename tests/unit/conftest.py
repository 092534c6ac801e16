"""What the unit tests share: the tokenizer, and settings of hypothesis."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer

# The machine's speed is no property of the code.
settings.register_profile("distilqa", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("distilqa")


@pytest.fixture(scope="module")
def tokenizer_json(checkpoint: Path) -> str:
    return (checkpoint / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer itself, for comparison."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # a text that spells a special token is text
    return tokenizer
