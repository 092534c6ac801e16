"""The report of a folder of results, in Markdown: what was asked for, then each part, then the machine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from benchmarks import claims, cost, kernels, quality, serving
from benchmarks.plots import PLOTS
from benchmarks.race import Raced, unsteadiness
from benchmarks.results import STORED, Part, Parts
from benchmarks.tables import table, targets_table

PARTS: dict[str, ModuleType] = {
    "claims": claims,
    "kernels": kernels,
    "serving": serving,
    "quality": quality,
    "cost": cost,
}


# A run's time varies by less than this over the rounds, where nobody shares the processor.
_UNSTEADY = 0.1


def report(parts: Parts) -> str:
    """Markdown, for a file beside the plots."""
    newest = _newest(parts)
    blocks = [
        f"# distilqa on {newest['environment']['cpu']}, {newest['began'][:10]}",
        "Ratios are medians over rounds in which the contenders took turns, and in brackets the middle half of the "
        f"rounds; they decide, times inform. Every sample is in `{STORED}`.",
        main_table(parts),
    ]
    for name, module in PARTS.items():
        if name in parts:
            blocks += [f"## {name.capitalize()}", inspect.getdoc(module) or "", _circumstances(parts[name])]
            blocks += [f"![{plot.title}]({plot.name}.svg)" for plot in PLOTS if plot.part == name]
            blocks.append(module.report(parts[name]["found"]))
    blocks += ["## Machine", _machine(newest["environment"])]
    return "\n\n".join(blocks) + "\n"


def main_table(parts: Parts) -> str:
    """What was asked for and is measured in these parts."""
    targets = [one for name, module in PARTS.items() if name in parts for one in module.targets(parts[name]["found"])]
    return targets_table(targets)


def _newest(parts: Parts) -> Part:
    return max(parts.values(), key=lambda part: part["began"])


def _circumstances(part: Part) -> str:
    setting, watched = part["setting"], part["watched"]
    varied = max(map(unsteadiness, _races(part["found"])), default=0.0)
    told = [
        f"Begun at {part['began'][:16].replace('T', ' ')} UTC, {part['seconds'] / 60:.1f} minutes",
        f"commit {part['environment']['commit'] or 'unknown'}",
        *(["`--quick`"] if setting["quick"] else []),
        f"others used {watched['others_cores']:.2f} cores and the host {watched['stolen_share']:.1%} of the time",
        *([f"a run's time varied by {varied:.0%} over the rounds (middle half)"] if varied else []),
    ]
    contended = watched["contended"] or varied > _UNSTEADY
    return "; ".join(told) + "." + (" **The machine was contended: these times mean little.**" if contended else "")


def _races(found: Any) -> list[Raced]:
    """All the races in what a part has found."""
    if isinstance(found, list):
        return [raced for one in found for raced in _races(one)]
    if isinstance(found, dict):
        return [found] if "samples_s" in found else _races(list(found.values()))  # type: ignore[list-item]
    return []


def _machine(environment: Mapping[str, Any]) -> str:
    rows = [[name.replace("_", " "), _told(value) or "none"] for name, value in environment.items()]
    return table(["", ""], rows)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(value) if isinstance(value, list) else f"{value}"
