"""The server under load: ``python -m benchmarks.load``.

At the target's shape: what the server costs over the in-process reader, how fast it is when idle, what it does when
five times too much is asked, and whether its memory stays where it is. Each part starts a server of its own with the
default settings, and prints what was asked of it beside what it did.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.load import idle, memory, overhead, overload
from benchmarks.reporting.environment import environment, machine
from distilqa.errors import DistilqaError
from distilqa_export.samples import packaged_evaluation

PARTS = {"overhead": overhead, "idle": idle, "overload": overload, "memory": memory}


def main() -> int:
    """Run, and return the exit status: 0, or 1 where something failed."""
    arguments = _parse()
    try:
        _measure(arguments)
    except (DistilqaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description="Measure the server under load.")
    parser.add_argument("--part", action="append", choices=PARTS, help="one part only; may be repeated")
    parser.add_argument(
        "--questions", type=positive, default=60, help="of overhead, in each round (default 60, at most 200)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=7, help="of overhead, and five times as many of idle (default 7)"
    )
    parser.add_argument("--seconds", type=seconds, default=30, help="of each load (default 30)")
    parser.add_argument("--requests", type=positive, default=20_000, help="for memory (default 20,000: ten minutes)")
    parser.add_argument("--bundle", type=Path, help="instead of the stand-in at the target's shape")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def positive(text: str) -> int:
    if (found := int(text)) < 1:
        raise ValueError(text)
    return found


def seconds(text: str) -> float:
    if not 0 < (found := float(text)) < math.inf:
        raise ValueError(text)
    return found


def _measure(arguments: argparse.Namespace) -> None:
    bundle = arguments.bundle or models.bundle(models.distilbert())
    if arguments.read:
        overhead.read(bundle, packaged_evaluation()[: arguments.questions])
        return
    print(machine(), flush=True)
    measured: dict[str, Any] = {"environment": environment()}
    for part in arguments.part or PARTS:
        found: Any = PARTS[part].measure(bundle, arguments)
        print(f"\n{part}\n\n{PARTS[part].report(found)}", flush=True)
        measured[part] = found
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1, default=attributes) + "\n")


def attributes(found: Any) -> dict[str, Any]:
    """What was measured, a dataclass, for JSON. (Of Counters in it, `dataclasses.asdict` would make something else.)"""
    return {field.name: getattr(found, field.name) for field in fields(found)}


if __name__ == "__main__":
    sys.exit(main())
