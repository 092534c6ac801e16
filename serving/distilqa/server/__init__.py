"""The gRPC server."""

from __future__ import annotations

from distilqa.errors import MissingDependency
from distilqa.wording import installing


def not_installed(error: ImportError) -> MissingDependency:
    """What it means where the server cannot be imported."""
    return MissingDependency(f"the server is not installed: {installing('server,cpu')} ({error})")
