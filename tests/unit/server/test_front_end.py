"""What a server tells gRPC; what each option does is tested through real sockets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from distilqa.server.front_end import _options
from distilqa.server.settings import LONGEST_S, ServerSettings


@pytest.mark.parametrize("drain_s", [1, 1e10, math.inf])
def test_options_are_what_grpc_takes(drain_s: float) -> None:
    settings = ServerSettings(bundle=Path("b"), drain_s=drain_s, connection_age_s=LONGEST_S, max_request_bytes=1 << 30)
    options = dict(_options(settings, 10, shared=False))
    assert all(type(value) is int and 0 <= value < 2**31 for value in options.values())
