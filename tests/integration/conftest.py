"""Fixtures of the tests through real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.servers import CLI, serving


@pytest.fixture(scope="session")
def target(bundle: Path) -> Iterator[str]:
    """The address of a server of the shipped checkpoint's bundle."""
    with serving([*CLI, "serve", str(bundle)]) as (_, address):
        yield address
