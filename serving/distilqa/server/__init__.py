"""The gRPC server."""

from __future__ import annotations

from distilqa.errors import MissingDependency


def not_installed(error: ImportError) -> MissingDependency:
    """What it means where the server cannot be imported."""
    return MissingDependency(f"the server is not installed: pip install 'distilqa[server,cpu]' ({error})")
