"""A folder of results: all that was measured, by part, each with what it was measured on and how.

A part that is measured again takes the place of its forerunner; the others stay.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.environment import ROOT, Watch, environment
from benchmarks.setting import Setting
from distilqa.errors import DatasetError
from distilqa_export.speed import processor

STORED = "results.json"
RESULTS = ROOT / "benchmarks" / "results"


class Part(TypedDict):
    """``began`` is UTC; ``watched`` is what others used of the machine meanwhile; ``found`` is the part's own."""

    began: str
    seconds: float
    setting: dict[str, Any]
    environment: dict[str, Any]
    watched: dict[str, Any]
    found: Any


Parts = dict[str, Part]


def todays_folder(results: Path = RESULTS) -> Path:
    """Where results of this processor and this day belong."""
    model = re.sub(r"\W+", "-", re.sub(r"\(\w+\)", "", processor())).strip("-").lower()
    return results / f"{model}-{datetime.now(UTC):%Y-%m-%d}"


def measure(measure_part: Callable[[Setting], Any], setting: Setting) -> Part:
    """Measure a part, and watch the machine meanwhile."""
    began = datetime.now(UTC)
    with Watch() as watch:
        found = measure_part(setting)
    return Part(
        began=began.isoformat(timespec="seconds"),
        seconds=(datetime.now(UTC) - began).total_seconds(),
        setting=setting.to_json(),
        environment=environment(),
        watched=watch.found,
        found=found,
    )


def load(folder: Path) -> Parts:
    """What a folder has; nothing where there is none. Raises DatasetError."""
    try:
        found: Parts = json.loads((folder / STORED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DatasetError(f"{folder / STORED} is no JSON: {error}") from error
    return found


def store(folder: Path, parts: Parts) -> None:
    """Write all at once: what was there stays whole until then."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f".{STORED}"
    written.write_text(json.dumps(parts) + "\n", encoding="utf-8")
    os.replace(written, folder / STORED)
