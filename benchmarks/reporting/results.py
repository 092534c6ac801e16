"""A folder of results: all that was measured, by part, and with what it was measured.

A folder is of one machine, commit and setting: a part that is measured again takes the place of its forerunner there,
and others are added, but what was measured otherwise belongs elsewhere.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from benchmarks import GPU_PARTS, PARTS
from benchmarks.reporting.environment import ROOT, Watch, device, environment
from benchmarks.setting import Setting
from distilqa.errors import DatasetError, SettingsError

STORED = "results.json"
RESULTS = ROOT / "benchmarks" / "results"


class Part(TypedDict):
    """``began`` is UTC; ``watched`` is what others used of the machine meanwhile; ``found`` is the part's own."""

    began: str
    seconds: float
    watched: dict[str, Any]
    found: Any


class Results(TypedDict):
    """What one folder holds."""

    environment: dict[str, Any]
    setting: dict[str, Any]
    parts: dict[str, Part]


def new(setting: Setting) -> Results:
    return Results(environment=environment(), setting=setting.to_json(), parts={})


def open_folder(folder: Path | None, begun: Results) -> Path:
    """The folder, by default today's, into which what was begun belongs; it can be written to.

    Raises SettingsError where the folder that was named has results of another machine, commit or setting.
    """
    for place in [folder] if folder else _todays_folders(device(begun["environment"])):
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            try:
                stored = load(place)
            except FileNotFoundError:
                stored = begun
            if not stored["parts"]:
                stored = begun
            differ = [
                name
                for kind in ("environment", "setting")
                for name in stored[kind].keys() | begun[kind].keys()
                if stored[kind].get(name) != begun[kind].get(name)
            ]
            if not differ:
                store(place, stored)
                return place
    raise SettingsError(f"{folder} has results of another {', '.join(sorted(differ))}; name another folder")


def _todays_folders(device: str) -> Iterator[Path]:
    """Where results of that processor or GPU and this day may be."""
    short = re.sub(r"\(\w+\)|\b(CPU|Processor|\d+-Core)\b|@ [\d.]+GHz", "", device)
    model = re.sub(r"\W+", "-", short).strip("-").lower()
    name = f"{model}-{datetime.now(UTC):%Y-%m-%d}"
    yield RESULTS / name
    yield from (RESULTS / f"{name}-{number}" for number in itertools.count(2))


def measure(module: ModuleType, setting: Setting) -> Part:
    """Make the models of a part, then measure it, and watch the machine meanwhile."""
    module.prepare(setting)
    began = datetime.now(UTC)
    with Watch() as watch:
        found = module.measure(setting)
    return Part(
        began=began.isoformat(timespec="seconds"),
        seconds=(datetime.now(UTC) - began).total_seconds(),
        watched=watch.found,
        found=found,
    )


def load(folder: Path) -> Results:
    """What a folder has. Raises DatasetError, or FileNotFoundError where there is nothing."""
    path = folder / STORED
    try:
        found: Results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON: {error}") from error
    whole = isinstance(found, dict) and found.keys() == Results.__annotations__.keys()
    if not whole or any(part.keys() != Part.__annotations__.keys() for part in found["parts"].values()):
        raise DatasetError(f"{path} is not what the benchmarks write")
    return found


def add(folder: Path, name: str, part: Part) -> None:
    """Store a part beside what is there by now, in the order of the suites, whenever each was measured."""
    with _locked(folder):
        stored = load(folder)
        parts = stored["parts"] | {name: part}
        stored["parts"] = {one: parts[one] for one in dict.fromkeys([*PARTS, *GPU_PARTS, *parts]) if one in parts}
        store(folder, stored)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Whoever else measures into this folder is waited for."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def store(folder: Path, results: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / STORED, json.dumps(results) + "\n")


def replace(path: Path, text: str) -> None:
    """Write all at once: what was there stays whole until then."""
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written.write_text(text, encoding="utf-8")
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)
