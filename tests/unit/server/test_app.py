"""Which server there is to be, and what is said where there can be none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from distilqa.errors import MissingDependency
from distilqa.server.app import make_server
from distilqa.server.processes.parent import Processes
from distilqa.server.settings import ServerSettings
from distilqa.server.single_process import SingleProcess


@pytest.mark.parametrize(("processes", "kind"), [(1, SingleProcess), (2, Processes)])
async def test_one_process_or_several(processes: int, kind: type) -> None:
    assert isinstance(make_server(ServerSettings(bundle=Path("bundle"), processes=processes)), kind)


async def test_several_say_at_once_what_their_children_would_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "distilqa.server.app.find_spec", lambda name: None if name == "grpc_health" else find_spec(name)
    )
    with pytest.raises(MissingDependency, match=r"distilqa\[server,cpu\].*'grpc_health'"):
        make_server(ServerSettings(bundle=Path("bundle"), processes=2))
