"""Tell of long steps while they run."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]


def tenths(step: str, total: int, things: str, progress: Progress) -> Callable[[int], None]:
    """A function to be told how many of the things are done, which passes on each tenth of them."""
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            progress(f"{step}: {done:,} of {total:,} {things}")

    return tell
