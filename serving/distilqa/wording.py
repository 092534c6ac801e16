"""What messages to people are made of."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# U+200C and U+200D, which Persian is written with, and families of emoji.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Text of others as one line, without what would steer a terminal: that is escaped as Python would."""
    return "".join(one if one.isprintable() or one in _JOINERS else ascii(one)[1:-1] for one in text)


def installing(extras: str) -> str:
    """The command that installs some extras, for a message. No package index has distilqa yet."""
    return f"pip install '.[{extras}]' in a checkout of distilqa"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Which of the names that are known somebody may have meant."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.8)), None)
