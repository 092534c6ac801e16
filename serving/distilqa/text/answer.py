"""What comes out: answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """One place in the passages that answers the question.

    ``text`` is ``passages[passage][start:end]``; ``start`` and ``end`` count Unicode code points, as Python does.
    ``score`` lies in [0, 1]; `distilqa.text.spans` has its formula. An answer that says that the passages hold none
    (only when it was allowed) has ``passage`` None, an empty text, and ``start`` and ``end`` 0.
    """

    text: str
    start: int
    end: int
    score: float
    passage: int | None
