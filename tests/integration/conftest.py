"""Fixtures of the tests through real sockets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.integration.environments import run
from tests.integration.servers import CLI, serving


@pytest.fixture(scope="session")
def target(bundle: Path) -> Iterator[str]:
    """The address of a server of the shipped checkpoint's bundle."""
    with serving([*CLI, "serve", str(bundle)]) as (_, address):
        yield address


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder, check=True)
    (built,) = folder.iterdir()
    return built
