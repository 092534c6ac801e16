"""What the tests of the engines share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from distilqa.text.arrays import Int64

CLS, SEP = 101, 102


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, made of links to its files: replace them, never write into them."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))


def windows_of(length: int, count: int) -> list[Int64]:
    """Different inputs of one length, the same in every run of the tests."""
    ids = np.random.default_rng(length).integers(1000, 30000, (count, length))
    ids[:, 0], ids[:, 5], ids[:, -1] = CLS, SEP, SEP
    return list(ids)
