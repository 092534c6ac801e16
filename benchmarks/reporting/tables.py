"""Markdown tables, what is in their cells, and the figures that were asked for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.racing.race import Ratio, seconds

# Of a figure beside its bound.
_MOST_DIGITS = 6


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
    found = f"{decisive(ratio['median'], least, 2)} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return Target(measure, found, f"at least {least:g}", met, timed=True)


def decisive(value: float, bound: float, digits: int, form: str = "f") -> str:
    """A number with so many decimals, or with as many more as it takes to be seen on its side of a bound.

    ``form`` is "f", or "%" for per cent.
    """
    scale = 100 if form == "%" else 1
    while value != bound and round(scale * value, digits) == round(scale * bound, digits) and digits < _MOST_DIGITS:
        digits += 1
    return f"{value:.{digits}{form}}"


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
