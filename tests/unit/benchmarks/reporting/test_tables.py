"""Figures beside their bounds."""

from __future__ import annotations

import pytest
from benchmarks.reporting.tables import decisive


@pytest.mark.parametrize(
    ("value", "bound", "digits", "form", "shown"),
    [
        (0.7533, 0.75, 1, "%", "75.3%"),
        (0.74996, 0.75, 1, "%", "74.996%"),
        (0.7504, 0.75, 1, "%", "75.04%"),
        (0.75, 0.75, 1, "%", "75.0%"),
        (350.4, 350, 0, "f", "350.4"),
        (351.2, 350, 0, "f", "351"),
        (1.1478, 1.15, 2, "f", "1.148"),
        (1.23, 2, 2, "f", "1.23"),
        (0.8500000001, 0.85, 2, "f", "0.850000"),
    ],
)
def test_a_figure_is_seen_on_its_side_of_a_bound(
    value: float, bound: float, digits: int, form: str, shown: str
) -> None:
    assert decisive(value, bound, digits, form) == shown
