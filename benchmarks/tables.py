"""Markdown tables, what is in their cells, and the figures that were asked for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.race import Ratio, seconds


class Target(NamedTuple):
    """A figure that was asked for, and what was found.

    ``met`` is None where the rounds or the questions are too few to tell. What is ``timed`` means little if it is
    ``contended``: if others used the machine.
    """

    measure: str
    found: str
    asked: str
    met: bool | None
    timed: bool = False
    contended: bool = False


def targets_table(targets: Sequence[Target]) -> str:
    told = {True: "yes", False: "NO", None: "undecided"}
    rows = [[*one[:3], "contended" if one.timed and one.contended else told[one.met]] for one in targets]
    return table(["measure", "found", "asked", "met"], rows)


def faster(measure: str, ratio: Ratio, least: float) -> Target:
    """At least so many times as fast, at the median of the rounds; missed only if more than their middle half did."""
    met = True if ratio["median"] >= least else None if ratio["high"] >= least else False
    return Target(measure, spread(ratio), f"at least {least:g}", met, timed=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def milliseconds(samples: Sequence[Sequence[float]]) -> str:
    """A run's time, at the median of the rounds."""
    return f"{statistics.median(seconds(samples)) * 1e3:.1f}"


def spread(ratio: Ratio) -> str:
    """The median, and the middle half of the rounds."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"
