"""Round weights to int8, and numbers to the scales that lose least."""

from __future__ import annotations

import numpy as np

from distilqa_export.arrays import Float64, Int8
from distilqa_export.quantization.exact import least_scale, room

# Added to the covariance's diagonal, as a part of its mean: channels that vary together make it singular.
_DAMPING = 0.01
# Weights rounded before their error is passed on to all that follow: only for speed.
_BLOCK = 32


def uint8_scale(least: float, greatest: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point that spread [least, greatest] (with 0 in it) over 0 to 255, 0 being exact."""
    scale = max(greatest - least, 1e-9) / 255
    return np.float32(scale), np.uint8(round(-least / scale))


def int8_scale(rows: Float64) -> Float64:
    """The scale of each row, (rows, columns) to (rows,), that makes its greatest magnitude 127."""
    scale = np.maximum(np.abs(rows).max(axis=-1) / 127, np.finfo(np.float32).tiny)
    return np.asarray(scale, np.float32).astype(np.float64)


def int8_rows(matrix: Float64) -> tuple[Int8, Float64]:
    """A (rows, columns) matrix as int8 in [-127, 127], and the (rows,) scale that gives each row back."""
    scale = int8_scale(matrix)
    return np.rint(matrix / scale[:, None]).astype(np.int8), scale


class Rounder:
    """Rounds the weights of matmuls by one input so that the product changes little, not each weight.

    A weight's rounding error is made good by the weights that are not rounded yet, as far as their inputs vary with
    its own: GPTQ (Frantar et al., 2022). Inputs that vary most come first. The second weight of a pair has the room
    that the first has left it (`distilqa_export.quantization.exact`). Finer scales, which cut off a few weights, were
    tried: for 98 of a hundred columns they are worse.
    """

    def __init__(self, covariance: Float64) -> None:
        """``covariance`` (inputs, inputs) of the matmuls' input."""
        variance: Float64 = np.diagonal(covariance)
        damping = max(_DAMPING * float(variance.mean()), float(np.finfo(np.float32).tiny))
        self._order = np.argsort(-variance, kind="stable")
        ordered = covariance[np.ix_(self._order, self._order)] + damping * np.eye(len(covariance))
        # Row i says how an error of weight i is made good by those after it.
        self._feedback = np.linalg.cholesky(np.linalg.inv(ordered)).T

    def __call__(self, weight: Float64) -> tuple[Int8, Float64]:
        """(inputs, outputs) weights as int8 within the rule, and the (outputs,) scale that gives a column back."""
        inputs, outputs = weight.shape
        scale = np.maximum(least_scale(weight), np.finfo(np.float32).tiny).astype(np.float32).astype(np.float64)
        rest, rounded = weight[self._order], np.zeros((inputs + inputs % 2, outputs), np.int16)
        for begin in range(0, inputs, _BLOCK):
            end = min(begin + _BLOCK, inputs)
            errors = np.empty((end - begin, outputs))
            for row in range(begin, end):
                place, feedback = self._order[row], self._feedback[row]
                rounded[place] = np.clip(np.rint(rest[row] / scale), *room(rounded[place ^ 1]))
                errors[row - begin] = (rest[row] - rounded[place] * scale) / feedback[row]
                rest[row + 1 : end] -= np.outer(feedback[row + 1 : end], errors[row - begin])
            rest[end:] -= self._feedback[begin:end, end:].T @ errors
        return rounded[:inputs].astype(np.int8), scale


def equalizing_factors(reach: Float64, variance: Float64, weights: list[Float64]) -> Float64:
    """Factors in (0, 1] for the channels of a matmul's input, and their inverses for its weights, that lose least.

    ``reach`` is a channel's greatest magnitude, (channels,); ``variance`` (channels,); ``weights`` each (channels,
    outputs). One scale for the whole input makes its steps as coarse as the widest channel needs. Narrowing the wide
    channels makes the steps finer, and the weights' steps coarser, since a column's scale must hold the widened
    weights. Of the limits that channels can be narrowed to, the one with the least expected squared error is taken,
    rounding errors being uniform in a step.
    """
    reach = lifted(reach)
    limits: Float64 = np.quantile(reach, np.linspace(0, 1, 41))
    candidates = [np.minimum(1, limit / reach) for limit in limits]
    squares = np.sum([(weight**2).sum(axis=1) for weight in weights], axis=0)

    def loss(factors: Float64) -> float:
        steps = (reach * factors).max() / 127.5 / factors
        weight_steps = [np.abs(weight / factors[:, None]).max(axis=0) / 127 for weight in weights]
        by_weights = sum(float((step**2).sum()) for step in weight_steps) * float((variance * factors**2).sum())
        return float((steps**2 * squares).sum()) + by_weights

    return min(candidates, key=loss)


def lifted(reach: Float64) -> Float64:
    """The reach of channels, none so small beside the greatest that dividing by it would lose precision."""
    least: float = 1e-3 * reach.max()
    return np.maximum(reach, least) if least > 0 else np.ones_like(reach)
