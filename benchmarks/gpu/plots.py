"""The plots of what was measured on a GPU; each takes a figure and what a part has found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu.runs import (
    COMPILED,
    OURS,
    OURS_BERT,
    PEAK,
    PLAIN,
    PLAIN_FP16,
    PRODUCTS,
    PYTORCH,
    PYTORCH_BERT,
    WITHOUT_GRAPHS,
    Runs,
    by_windows,
)
from benchmarks.gpu.throughput import WINDOW, WINDOWS_PER_S, Throughput, operations_per_s, windows_per_s
from benchmarks.gpu.traffic import BOUNDS_S, EIGHT, ONE, TARGET, Traffic, unpacked
from benchmarks.racing.race import seconds
from benchmarks.racing.worker import Shape
from benchmarks.reporting.axes import P99, by_rate, latency
from benchmarks.reporting.tables import plural

# Each contender has its colour in every plot, Okabe and Ito's as on a CPU; bert-base's are grey, and dashed.
_COLORS = {
    OURS: "#0072b2",
    WITHOUT_GRAPHS: "#56b4e9",
    PLAIN: "#f0e442",
    PLAIN_FP16: "#e69f00",
    PYTORCH: "#cc79a7",
    COMPILED: "#d55e00",
    OURS_BERT: "#9aa5b1",
    PYTORCH_BERT: "#4a4f57",
    PEAK: "#cccccc",
    PRODUCTS: "#9aa5b1",
}
_GOAL: dict[str, Any] = {"color": "#999999", "lw": 0.8, "ls": ":"}
_STYLES = {OURS_BERT: "--", PYTORCH_BERT: "--"}

# By which batches are shown, where it was measured.
_SHOWN_LENGTH = 128


def runs(figure: Any, found: Runs) -> None:
    """Lines: a single window's time by length, the rate of many by length, and the rate at one length by windows."""
    by_batch = by_windows(found["raced"])
    few, many = min(by_batch), max(by_batch)
    lengths = list(by_batch[many])
    length = _SHOWN_LENGTH if _SHOWN_LENGTH in lengths else lengths[-1]
    single, tokens, windows = figure.subplots(1, 3)

    def lines(
        axes: Any, over: Sequence[int], samples: Callable[[int], Any], shown: Callable[[int, float], float]
    ) -> None:
        for name in dict.fromkeys(name for one in over for name in samples(one)):
            at = [one for one in over if name in samples(one)]
            values = [shown(one, statistics.median(seconds(samples(one)[name]))) for one in at]
            axes.plot(at, values, _STYLES.get(name, "-"), color=_COLORS[name], marker="o", ms=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(over, [f"{one}" for one in over], fontsize=7)
        axes.minorticks_off()

    lines(single, list(by_batch[few]), lambda one: by_batch[few][one], lambda one, took: took * 1e3)
    single.set_title(f"{plural(few, 'window')}: milliseconds a run (log scale)", fontsize=10)
    single.set_xlabel("tokens")
    lines(tokens, lengths, lambda one: by_batch[many][one], lambda one, took: many * one / took / 1e6)
    tokens.set_title(f"{plural(many, 'window')}: million tokens a second", fontsize=10)
    tokens.set_xlabel("tokens of each")
    lines(windows, list(by_batch), lambda one: by_batch[one][length], lambda one, took: one / took)
    windows.set_title(f"{length} tokens: windows a second (log scale)", fontsize=10)
    windows.set_xlabel("windows in a run")
    tokens.set_ylim(bottom=0)
    for axes in (single, windows):
        axes.set_yscale("log")
        axes.yaxis.get_minor_locator().set_params(subs=(2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=7)
    figure.legend(*single.get_legend_handles_labels(), loc="outside right center", frameon=False)


def throughput(figure: Any, found: Throughput) -> None:
    """Bars of the rate at mixed lengths; lines of that at saturation by windows in a run; bars of operations."""
    mixed, saturated, used = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    ((shape, samples),) = found["mixed"]["samples_s"].items()
    windows = Shape.parse(shape).windows
    _bars(mixed, {name: windows / statistics.median(seconds(own)) for name, own in samples.items()}, "{:,.0f}")
    mixed.set_title(f"{windows} windows of mixed lengths: windows a second", fontsize=10)

    shapes = found["saturated"]["samples_s"]
    for name in (OURS, WITHOUT_GRAPHS, OURS_BERT):
        at = [one for one in shapes if name in shapes[one]]
        rates = [windows_per_s(shapes[one][name], one) for one in at]
        sizes = [Shape.parse(one).windows for one in at]
        saturated.plot(sizes, rates, _STYLES.get(name, "-"), color=_COLORS[name], marker="o", ms=4, label=name)
    saturated.axhline(WINDOWS_PER_S, **_GOAL)
    saturated.axvline(Shape.parse(found["judged"]).windows, **_GOAL)
    saturated.set_ylim(bottom=0)
    saturated.set_title(f"saturated: windows of {WINDOW} tokens a second", fontsize=10)
    saturated.set_xlabel("windows in a run (dotted: the server's, and what is asked)")
    saturated.legend(frameon=False, fontsize=8)

    _bars(used, {name: rate / 1e12 for name, rate in operations_per_s(found).items()}, "{:,.0f}")
    used.set_title("10^12 operations a second", fontsize=10)


def _bars(axes: Any, values: dict[str, float], text: str) -> None:
    for number, (name, value) in enumerate(values.items()):
        axes.barh(number, value, 0.6, color=_COLORS[name])
        axes.text(value, number, " " + text.format(value), va="center", fontsize=8)
    axes.set_yticks(range(len(values)), values, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)


def traffic(figure: Any, found: Traffic) -> None:
    """Lines: the most answers in closed loop by processes, and latency by rate in open loop."""
    closed, rates = figure.subplots(1, 2)
    for questions, color in ((EIGHT, P99), (ONE, "#e69f00")):
        most: dict[int, float] = {}
        for one in (one for one in found["closed"] if one["questions"] == questions):
            rate = questions * unpacked(one["load"]).answers_per_s
            most[one["processes"]] = max(rate, most.get(one["processes"], 0))
        closed.plot(list(most), list(most.values()), color=color, marker="o", ms=4, label=f"{questions} a call")
    closed.axhline(TARGET, **_GOAL)
    closed.set_xticks(list(most))
    closed.set_ylim(bottom=0)
    closed.set_xlabel("processes of the server")
    closed.set_title("closed loop: the most answers a second", fontsize=10)
    closed.legend(frameon=False, title="questions")
    for searched, style in zip(found["open"], ("-", "--"), strict=False):
        loads = {searched["questions"] * tried["rate"]: unpacked(tried["load"]) for tried in searched["trials"]}
        by_rate(rates, loads, name=f", {searched['questions']} a call", style=style)
    latency(rates, BOUNDS_S)
    rates.set_xlabel("answers asked for a second (Poisson)")
    rates.set_title("open loop", fontsize=10)
    if found["open"]:
        rates.legend(frameon=False, fontsize=8)
