"""What the service keeps out of the log."""

from __future__ import annotations

import logging

import pytest

from distilqa.server.interceptor import NoMetadata


@pytest.mark.parametrize(("message", "logged"), [("Invalid encoding on %s", False), ("something else", True)])
def test_metadata_is_not_logged(message: str, logged: bool) -> None:
    record = logging.LogRecord("grpc", logging.ERROR, "", 0, message, ("Bearer secret",), None)
    assert NoMetadata().filter(record) == logged
