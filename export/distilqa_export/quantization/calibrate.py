"""Observe the values inside a model on real text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from distilqa.engine.cores import usable_cores
from distilqa.engine.session import open_session, run_session
from distilqa.text.arrays import Float32, Int64
from distilqa_export.arrays import Float64
from distilqa_export.errors import ExportError


@dataclass(frozen=True, slots=True)
class Observed:
    """What the rows of a value were over all tokens: extremes and mean (channels,), covariance (channels, channels)."""

    least: Float64
    greatest: Float64
    mean: Float64
    covariance: Float64

    @property
    def variance(self) -> Float64:
        """Of each channel, (channels,)."""
        return np.diagonal(self.covariance)

    def reach(self, centre: Float64 | float = 0.0) -> Float64:
        """How far each channel goes from its centre, (channels,)."""
        return np.maximum(self.greatest - centre, centre - self.least)

    def moved(self, by: Float64) -> Observed:
        """The same, had that been added to each channel."""
        return Observed(self.least + by, self.greatest + by, self.mean + by, self.covariance)

    def scaled(self, by: Float64) -> Observed:
        """The same, had each channel been multiplied by that, which is positive."""
        return Observed(self.least * by, self.greatest * by, self.mean * by, self.covariance * by * by[:, None])

    def ordered(self, order: npt.NDArray[np.intp]) -> Observed:
        """The same, had the channels stood in that order."""
        covariance = self.covariance[np.ix_(order, order)]
        return Observed(self.least[order], self.greatest[order], self.mean[order], covariance)

    def without(self, first: int) -> Observed:
        """The same, had the first channels always been 0."""
        gone = np.arange(len(self.mean)) < first
        least, greatest, mean = (np.where(gone, 0.0, seen) for seen in (self.least, self.greatest, self.mean))
        return Observed(least, greatest, mean, np.where(gone | gone[:, None], 0.0, self.covariance))


# Below this part of a value fp32 has rounded.
_FP32_DIGITS = 1e-6

# Windows whose rows are summed up together: large sums are made in few steps.
_TOGETHER = 16


def observe(
    model: Path, values: Sequence[str], windows: Sequence[Int64], progress: Callable[[int], None] = lambda done: None
) -> dict[str, Observed]:
    """Run a saved fp32 model on each window, (length,) int64, and return what the named values were.

    ``progress`` is told how many windows are done. Raises ExportError if the values overflow.
    """
    graph = ir.load(model)
    named = {value.name: value for node in graph.graph for value in node.outputs}
    graph.graph.outputs.extend(named[name] for name in values)
    instrumented = model.with_name("observe.onnx")
    ir.save(graph, instrumented)
    session = open_session(instrumented, threads=usable_cores())
    inputs = [node.name for node in session.get_inputs()]
    seen: dict[str, _Sums] = {}
    for begin in range(0, len(windows), _TOGETHER):
        runs = [run_session(session, inputs, [w], outputs=values) for w in windows[begin : begin + _TOGETHER]]
        for name, rows in zip(values, zip(*runs, strict=True), strict=True):
            together = np.concatenate(rows, axis=1)[0]
            if name not in seen:
                seen[name] = _Sums(together.mean(axis=0))
            seen[name].add(together)
        progress(begin + len(runs))
    found = {name: sums.observed() for name, sums in seen.items()}
    for name, value in found.items():
        if not np.isfinite(value.covariance).all():
            raise ExportError(f"the values of {name} are too large to be quantised: they overflow")
    return found


class _Sums:
    """Sums over rows as seen from an origin near their mean, from where fp32 has digits enough."""

    def __init__(self, origin: Float32) -> None:
        channels = len(origin)
        self._origin = origin
        self._least = np.full(channels, np.inf)
        self._greatest = np.full(channels, -np.inf)
        self._rows = 0
        self._sum = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, rows: Float32) -> None:
        self._least = np.minimum(self._least, rows.min(axis=0))
        self._greatest = np.maximum(self._greatest, rows.max(axis=0))
        self._rows += len(rows)
        centred = rows - self._origin
        with np.errstate(over="ignore", invalid="ignore"):  # which `observe` finds
            self._sum += centred.sum(axis=0)
            self._products += centred.T @ centred

    def observed(self) -> Observed:
        shift, products = self._sum / self._rows, self._products / self._rows
        covariance = products - np.outer(shift, shift)
        mean = self._origin + shift
        # What fp32 rounded off is no variance, and may be less than 0.
        constant = np.diagonal(covariance) <= (_FP32_DIGITS * mean) ** 2
        covariance = np.where(constant | constant[:, None], 0.0, covariance)
        return Observed(self._least, self._greatest, mean, covariance)
