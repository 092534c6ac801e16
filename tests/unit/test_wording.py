"""What messages to people are made of."""

from __future__ import annotations

import pytest

from distilqa.wording import nearest, printable

JOINED = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e9 \U0001f98a", "plain \u00e9 \U0001f98a"),
        ("a\x1b[2Jb\r\n\0", r"a\x1b[2Jb\r\n\x00"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        (JOINED, JOINED),
        ("\ud800", r"\ud800"),
    ],
)
def test_nothing_steers_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("name", "meant"), [("max_reqeusts", "max_requests"), ("thread", "threads"), ("version", None), ("", None)]
)
def test_the_nearest_name(name: str, meant: str | None) -> None:
    assert nearest(name, ["max_requests", "threads", "variant"]) == meant
