"""Fixtures shared by all tests: the shipped checkpoint, and the bundle made of it once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilqa_export.export import export

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "models" / "distilbert-384-squad"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The folder of the shipped checkpoint."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped checkpoint with both variants. Tests must not change it."""
    target = tmp_path_factory.mktemp("export") / "bundle"
    export(str(CHECKPOINT), target)
    return target
