"""What the log says of a server as a whole."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from distilqa.server.log_messages import OfCallers, tell_not_answered, warn_of_address
from distilqa.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        ({"OK": 3}, None),
        ({"OK": 3, "CANCELLED": 1, "RESOURCE_EXHAUSTED max_requests": 2},
         {"CANCELLED": 1, "RESOURCE_EXHAUSTED max_requests": 2}),
    ],
)  # fmt: skip
def test_only_what_was_not_answered_is_told(
    caplog: pytest.LogCaptureFixture, ended: dict[str, int], told: dict[str, int] | None
) -> None:
    tell_not_answered(Counter(ended))
    fields = [cast(Any, record).fields for record in caplog.records]
    assert fields == ([] if told is None else [{"ended": told}])


@pytest.mark.parametrize(
    ("host", "open_to_others"),
    [("127.0.0.1", False), ("localhost", False), ("[::1]", False), ("::1", False), ("0.0.0.0", True), ("[::]", True),
     ("qa.example", True), ("localhost.example", True)],
)  # fmt: skip
def test_an_address_that_others_reach_is_warned_of(
    caplog: pytest.LogCaptureFixture, host: str, open_to_others: bool
) -> None:
    warn_of_address(ServerSettings(bundle=Path("bundle"), host=host), None, f"{host}:1")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * open_to_others


FAILED = 'Failed "execute_batch": (SendMessageOperation,)'


@pytest.mark.parametrize(
    ("message", "error", "logged"),
    [("Invalid encoding on %s", None, False), ("ExecuteBatchError raised by %s", RuntimeError(FAILED), False),
     ("ExecuteBatchError raised by %s", RuntimeError("Failed grpc_call_start_batch: 1"), True),
     ("something else by %s", ValueError("odd"), True), ("something else by %s", None, True)],
)  # fmt: skip
def test_what_grpc_says_of_callers_is_not_logged(message: str, error: Exception | None, logged: bool) -> None:
    """It quotes metadata, which may hold a token."""
    exc_info = (type(error), error, None) if error else None
    record = logging.LogRecord("grpc", logging.ERROR, "", 0, message, ("Bearer secret",), exc_info)
    assert OfCallers().filter(record) == logged
