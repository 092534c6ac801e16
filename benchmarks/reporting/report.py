"""The report of a folder of results, in Markdown: what was asked for, then each part, then the machine."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from benchmarks import GPU_PARTS, PARTS
from benchmarks.racing.race import Raced, unsteadiness
from benchmarks.reporting.environment import STOCK_WEIGHTS, device
from benchmarks.reporting.plots import PLOTS
from benchmarks.reporting.results import STORED, Part, Results
from benchmarks.reporting.tables import Target, plural, table, targets_table
from distilqa.errors import DatasetError

MODULES = {name: import_module(f"benchmarks.parts.{name}") for name in PARTS} | {
    name: import_module(f"benchmarks.gpu.{name}") for name in GPU_PARTS
}

# Of answers, which have no times that others could spoil.
_UNTIMED = ("quality", "answers")

# That compare with what stock int8 recipes make.
_STOCK = {"kernels", "quality"}

# The layers and the width of the model that figures were asked of.
_TARGET_SHAPE = (6, 768)

# A run's time varies by less than this over the rounds, where nobody shares the processor or its memory.
_UNSTEADY = 0.1


def check(results: Results) -> None:
    """Raise DatasetError where a part was measured by benchmarks that found other things than these."""
    for name, module in MODULES.items():
        made = getattr(module, name.capitalize()).__annotations__.keys()  # Cost, of cost
        if name in results["parts"] and results["parts"][name]["found"].keys() != made:
            raise DatasetError(f"{name} was measured by another version of the benchmarks; measure it again")


def report(results: Results) -> str:
    """Markdown, for a file beside the plots."""
    environment, parts = results["environment"], results["parts"]
    day = max(part["began"] for part in parts.values())[:10]
    blocks = [
        f"# distilqa on {device(environment)}, {day}",
        "\n".join(f"- {line}" for line in _headlines(results)),
        "Ratios are medians over rounds in which the contenders took turns; in brackets is the middle half of the "
        f"rounds, which is no confidence interval. Ratios decide, times inform. Every sample is in `{STORED}`.",
        _measured(results["setting"], gpu="gpu" in environment),
        *([STOCK_WEIGHTS] if environment.get("int8_products") == "saturate" and parts.keys() & _STOCK else []),
        summary(results),
    ]
    for name, module in MODULES.items():
        if name in parts:
            blocks += [f"## {name.capitalize()}", inspect.getdoc(module) or "", _circumstances(name, parts[name])]
            blocks += [f"![{plot.title}]({plot.name}.svg)" for plot in PLOTS if plot.part == name]
            blocks.append(module.report(parts[name]["found"]))
    blocks += ["## Machine", _machine(environment)]
    for name, module in MODULES.items():
        if name in parts and hasattr(module, "appendix"):
            blocks += [f"## Appendix: {name}", module.appendix(parts[name]["found"])]
    return "\n\n".join(blocks) + "\n"


def _headlines(results: Results) -> Iterator[str]:
    """What is most worth knowing, a line each: of the parts, and how many figures were missed."""
    parts = results["parts"]
    for name, module in MODULES.items():
        if name in parts and hasattr(module, "headline"):
            yield module.headline(parts[name]["found"])
    targets = list(_targets(results))
    if missed := [one for one in targets if one.met is False]:
        yield f"{len(missed)} of the {len(targets)} figures that were asked for were missed: see the table."


def summary(results: Results) -> str:
    """The main table, and what cannot be trusted of it."""
    parts = results["parts"]
    contended = [name.capitalize() for name in parts if _contended(name, parts[name])]
    unsteady = [name.capitalize() for name in parts if _varied(parts[name]) > _UNSTEADY]
    warnings = [
        f"**Others used the machine: the times of {', '.join(contended)} mean little.**" if contended else "",
        f"**The times of {', '.join(unsteady)} varied by more than {_UNSTEADY:.0%}; ratios stand that better.**"
        if unsteady
        else "",
    ]
    return "\n\n".join(filter(None, [main_table(results), *warnings]))


def main_table(results: Results) -> str:
    """What was asked for and is measured here."""
    if not _is_of_target_shape(results):
        return "(Figures were asked of the target's shape, {} layers of {}, only.)".format(*_TARGET_SHAPE)
    targets = list(_targets(results))
    return targets_table(targets) if targets else ""


def _is_of_target_shape(results: Results) -> bool:
    shape = results["setting"]["distilbert_shape"]
    return (shape["layers"], shape["hidden"]) == _TARGET_SHAPE


def _targets(results: Results) -> Iterator[Target]:
    parts = results["parts"] if _is_of_target_shape(results) else {}
    for name, module in MODULES.items():
        if name in parts:
            contended = parts[name]["watched"]["contended"]
            yield from (one._replace(contended=contended) for one in module.targets(parts[name]["found"]))


def _measured(setting: Mapping[str, Any], *, gpu: bool) -> str:
    """With what."""
    shape = setting["distilbert_shape"]
    given = f"`{setting['distilbert']}`" if setting["distilbert"] else "the shipped checkpoint, widened"
    told = [
        f"DistilBERT is {given}: {shape['layers']} layers of {shape['hidden']}",
        f"bert-base is {'`' + setting['bert'] + '`' if setting['bert'] else 'of random weights'}",
        f"{plural(setting['rounds'], 'round')}, loads of {setting['load_s']:g} s"
        + (f", fewer shapes{'' if gpu else ' on one thread'} (`--quick`)" if setting["quick"] else "")
        + (", so little that it shows nothing (`--tiny`)" if setting["tiny"] else ""),
    ]
    return "; ".join(told) + "."


def _contended(name: str, part: Part) -> bool:
    """Whether others spoilt the times of a part."""
    return name not in _UNTIMED and bool(part["watched"]["contended"])


def _circumstances(name: str, part: Part) -> str:
    watched, varied = part["watched"], _varied(part)
    told = [
        f"Begun at {part['began'][:16].replace('T', ' ')} UTC, {part['seconds'] / 60:.1f} minutes",
        f"others used {watched['others_cores']:.2f} cores and the host {watched['stolen_share']:.1%} of the time",
        *([f"a run's time varied by {varied:.0%} over the rounds (middle half)"] if varied else []),
    ]
    return "; ".join(told) + "." + (" **Contended.**" if _contended(name, part) else "")


def _varied(part: Part) -> float:
    """How much the times of its least steady race varied."""
    return max(map(unsteadiness, _races(part["found"])), default=0.0)


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
