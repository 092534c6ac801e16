"""Fixtures of the engines."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, made of links to its files: replace them, never write into them."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))
