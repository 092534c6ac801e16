"""How who is one too many is refused."""

from __future__ import annotations

from distilqa.errors import Overloaded

# Who is refused comes back no sooner than this.
_SHORTEST_WAIT_S = 0.1


def refusal(limit: str, problem: str, wait_s: float) -> Overloaded:
    """The error for a request that is one too many, by a limit, while what is queued will take ``wait_s``."""
    retry_after_s = max(wait_s, _SHORTEST_WAIT_S)
    return Overloaded(f"{problem} ({limit}); try again in {retry_after_s:.1f} s", retry_after_s, limit)
