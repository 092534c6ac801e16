"""How many tokens a run on a GPU may have: as many as pay, and no more than come in time."""

from __future__ import annotations

from collections.abc import Mapping

# Of a request that finds a GPU busy with many others.
OBJECTIVE_S = 0.02

# A run that has this share of the best rate is large enough: a larger one only keeps callers waiting.
_ENOUGH = 0.97


def choose_budget(cost_s: Mapping[int, float], *, objective_s: float) -> int:
    """The tokens of a run, one of those whose cost in seconds is given, with all lanes busy.

    Whoever comes as the runs begin waits for one of them, and then for the next, its own: both together may take
    ``objective_s``. Where not even the smallest run is in time, it is that one.
    """
    in_time = {tokens: cost for tokens, cost in cost_s.items() if 2 * cost <= objective_s}
    if not in_time:
        return min(cost_s)
    best = max(tokens / cost for tokens, cost in in_time.items())
    return min(tokens for tokens, cost in in_time.items() if tokens / cost >= _ENOUGH * best)
