"""Which server there is to be, and what is said where there can be none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from distilqa.errors import MissingDependency, SettingsError
from distilqa.server.app import make_server
from distilqa.server.processes.parent import Processes
from distilqa.server.settings import ServerSettings
from distilqa.server.single_process import SingleProcess


@pytest.mark.parametrize(("processes", "kind"), [(1, SingleProcess), (2, Processes)])
async def test_one_process_or_several(processes: int, kind: type) -> None:
    assert isinstance(make_server(ServerSettings(bundle=Path("bundle"), processes=processes)), kind)


@pytest.mark.parametrize("missing", ["grpc_health", "google.rpc"])
async def test_several_say_at_once_what_their_children_would_miss(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr("distilqa.server.app.find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(MissingDependency, match=rf"\.\[server,cpu\].*'{missing}'"):
        make_server(ServerSettings(bundle=Path("bundle"), processes=2))


async def test_also_where_what_it_is_part_of_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilqa.server.app._CHILDREN_NEED", ("nowhere.at_all",))
    with pytest.raises(MissingDependency, match="'nowhere'"):
        make_server(ServerSettings(bundle=Path("bundle"), processes=2))


async def test_several_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they share is not to be had elsewhere, on macOS say."""
    monkeypatch.delattr("os.memfd_create")
    with pytest.raises(SettingsError, match=r"^processes: several processes need Linux$"):
        make_server(ServerSettings(bundle=Path("bundle"), processes=2))
