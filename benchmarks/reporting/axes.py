"""What the axes of several plots show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.load.generator import Load
from benchmarks.parts.claims import PYTORCH
from benchmarks.parts.kernels import ONNXRUNTIME, OPENVINO, OPENVINO_FP32, OPTIMUM, PLAIN

# Each system has its colour in every plot. They are Okabe and Ito's (2008), which the colour-blind tell apart.
COLORS = {
    "cpu-int8": "#0072b2",
    "cpu-fp32": "#56b4e9",
    OPTIMUM: "#d55e00",
    ONNXRUNTIME: "#e69f00",
    PLAIN: "#e69f00",
    OPENVINO[0]: "#009e73",
    OPENVINO[1]: "#009e73",
    OPENVINO_FP32: "#009e73",
    PYTORCH: "#cc79a7",
}

P50, P99 = "#56b4e9", "#0072b2"


def by_rate(axes: Any, loads: Mapping[float, Load], *, name: str = "", style: str = "-") -> None:
    """Lines of latency by rate; endless ones, of calls that failed, are left out."""
    for share, label, color in ((0.5, "p50", P50), (0.99, "p99", P99)):
        latencies = [load.quantile_s(share, failed=True) * 1e3 for load in loads.values()]
        axes.plot(list(loads), latencies, style, color=color, marker="o", ms=4, label=label + name)


def latency(axes: Any, bounds_s: Sequence[float]) -> None:
    """The axis of such lines, once they are there, and the bounds."""
    axes.set_yscale("log")
    axes.yaxis.get_minor_locator().set_params(subs=(2, 3, 5))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.set_ylabel("latency from the scheduled time, ms (log scale)")
    for bound in bounds_s:
        axes.axhline(bound * 1e3, color="#999999", lw=0.8, ls=":")
        axes.text(axes.get_xlim()[0], bound * 1e3, f" {bound * 1e3:.0f} ms", va="bottom", fontsize=8, color="#666666")
