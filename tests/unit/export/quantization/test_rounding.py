"""Rounding: scales, weights rounded with feedback, and the factors that even out a matmul's input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from distilqa_export.arrays import Float64
from distilqa_export.quantization.exact import is_exact, least_scale
from distilqa_export.quantization.rounding import Rounder, equalizing_factors, int8_rows, lifted, uint8_scale

# Rounding of the scale itself to fp32, in steps.
ROUNDING = 1e-3

least_values = st.floats(-1e6, 0, width=32)
greatest_values = st.floats(0, 1e6, width=32)
seeds = st.integers(0, 2**32 - 1)


@given(least_values, greatest_values, st.floats(0, 1))
@example(0.0, 0.0, 0.0)
@example(-1.0, 0.0, 0.5)
@example(0.0, 6.0, 1.0)
@example(-0.17, 28.4, 0.5)
def test_uint8_covers_the_range(least: float, greatest: float, part: float) -> None:
    """Every value in the range comes back within half a step, and 0 comes back as 0."""
    scale, zero_point = uint8_scale(least, greatest)
    assert scale.dtype == np.float32
    assert zero_point.dtype == np.uint8
    assert scale > 0
    step, zero = float(scale), int(zero_point)
    for value in (least, greatest, least + part * (greatest - least), 0.0):
        stored = min(max(round(value / step) + zero, 0), 255)
        assert abs((stored - zero) * step - value) <= (0.5 + ROUNDING) * step
    assert step * 255 <= max(greatest - least, 1e-9) * (1 + ROUNDING), "the steps are no larger than need be"


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-(2.0**100), 2.0**100)))
@example(np.zeros((2, 3)))
@example(np.array([[1e-38, -2e-38], [127, -127]]))
def test_int8_rows_come_back(matrix: Float64) -> None:
    """Every value comes back within half a step of its row, 0 as 0, and each row uses all its steps."""
    rows, scale = int8_rows(matrix)
    assert rows.dtype == np.int8
    assert scale.dtype == np.float64
    assert rows.shape == matrix.shape
    assert scale.shape == matrix.shape[:1]
    assert (scale > 0).all()
    assert (scale == scale.astype(np.float32)).all(), "no precision is lost where it is stored as fp32"
    assert rows.min() >= -127
    steps = scale[:, None]
    assert (np.abs(rows * steps - matrix) <= (0.5 + ROUNDING) * steps).all()
    assert (rows[matrix == 0] == 0).all()
    usual = np.abs(matrix).max(axis=1) > 1e-30
    assert (np.abs(rows[usual].astype(int)).max(axis=1, initial=0) == 127).all()


def correlated(inputs: int, rank: int, generator: np.random.Generator) -> Float64:
    """The covariance of inputs that are mixed of a few independent ones, and a little of their own."""
    mix = generator.normal(size=(inputs, rank)) * generator.uniform(0.2, 3, (inputs, 1))
    return np.asarray(mix @ mix.T + 0.01 * np.eye(inputs))


def output_error(covariance: Float64, error: Float64) -> float:
    """The expected squared change of a matmul's outputs by a change of its weights, beside that of their mean."""
    return float(np.trace(error.T @ covariance @ error))


@given(seeds, st.integers(1, 20), st.integers(1, 6))
def test_rounded_weights_are_within_the_rule_and_have_the_scales_of_their_columns(
    seed: int, inputs: int, outputs: int
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(inputs, outputs)) * generator.uniform(1e-3, 1e3, outputs)
    before = weight.copy()
    rounded, scale = Rounder(correlated(inputs, 2, generator))(weight)
    assert (weight == before).all(), "the caller's weights are not changed"
    assert rounded.dtype == np.int8
    assert rounded.shape == weight.shape
    # Feedback may ask for more than fits.
    assert is_exact(rounded)
    assert (scale == least_scale(weight).astype(np.float32)).all()


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_rounds_to_nearest_where_inputs_are_independent(spread: float) -> None:
    """However much each varies, an error can be made good by no other; but the second of a pair must have room."""
    generator = np.random.default_rng(0)
    variance = np.exp(spread * generator.normal(size=150))
    weight = generator.normal(size=(150, 7))
    rounded, scale = Rounder(np.diag(variance))(weight)
    nearest = np.rint(weight / scale)
    other = rounded.reshape(-1, 2, 7)[:, ::-1].reshape(150, 7).astype(np.int16)
    within = (np.abs(nearest) <= 127) & (np.abs(nearest + np.where(nearest * other > 0, other, 0)) <= 128)
    assert within.mean() > 0.95
    assert (rounded == nearest)[within].all()


# 300 inputs are rounded in ten blocks.
@pytest.mark.parametrize("inputs", [40, 300])
def test_rounding_with_feedback_changes_the_outputs_less(inputs: int) -> None:
    generator = np.random.default_rng(inputs)
    covariance = correlated(inputs, inputs // 8, generator)
    weight = generator.normal(size=(inputs, 9))
    rounded, scale = Rounder(covariance)(weight)
    rows, row_scale = int8_rows(weight.T)
    plain = output_error(covariance, weight - rows.T * row_scale)
    assert 0 < output_error(covariance, weight - rounded * scale) < plain / 3


def rounded_one_by_one(covariance: Float64, weight: Float64, scale: Float64) -> Float64:
    """What `Rounder` gives, as it is defined: after each rounding the rest is what changes the outputs least."""
    order = np.argsort(-np.diagonal(covariance), kind="stable")
    damped = (covariance + 0.01 * np.diagonal(covariance).mean() * np.eye(len(weight)))[np.ix_(order, order)]
    ordered, stored = weight[order], np.zeros((len(weight) + 1, weight.shape[1]))
    for row, place in enumerate(order):
        errors = stored[order[:row]] * scale - ordered[:row]
        moved = ordered[row:] - np.linalg.solve(damped[row:, row:], damped[row:, :row] @ errors)
        other = stored[place ^ 1]
        least, greatest = np.maximum(-127, -128 - np.minimum(other, 0)), np.minimum(127, 128 - np.maximum(other, 0))
        stored[place] = np.clip(np.rint(moved[0] / scale), least, greatest)
    return stored[: len(weight)]


@pytest.mark.parametrize("inputs", [1, 30, 128, 129, 270])
def test_rounds_as_if_one_by_one(inputs: int) -> None:
    generator = np.random.default_rng(inputs)
    covariance = correlated(inputs, 5, generator)
    weight = generator.normal(size=(inputs, 4))
    rounded, scale = Rounder(covariance)(weight)
    np.testing.assert_array_equal(rounded, rounded_one_by_one(covariance, weight, scale))


@pytest.mark.parametrize(
    "covariance", [np.zeros((6, 6)), np.ones((6, 6)), np.diag([1.0, 0, 0, 2, 0, 0])], ids=["none", "one", "two"]
)
def test_rounds_where_inputs_do_not_vary_on_their_own(covariance: Float64) -> None:
    """None at all, all six as one, two of six."""
    weight = np.random.default_rng(0).normal(size=(6, 3))
    rounded, scale = Rounder(covariance)(weight)
    # No error may go beyond what rounding one weight and taking on the errors of the rest can make it.
    assert np.abs(rounded.astype(int)).max() > 100
    assert output_error(covariance, weight - rounded * scale) <= 6 * ((scale / 2) ** 2).sum()


def test_rounds_a_column_of_zeros() -> None:
    weight = np.array([[0.0, 1], [0, -2], [0, 3]])
    rounded, scale = Rounder(np.ones((3, 3)))(weight)
    assert (rounded[:, 0] == 0).all()
    assert (scale > 0).all()


def expected_loss(reach: Float64, variance: Float64, weight: Float64, factors: Float64) -> float:
    """The expected squared error of the outputs, by rounding the inputs and by rounding the weights, times twelve."""
    steps = (reach * factors).max() / 127.5 / factors
    weight_steps = np.abs(weight / factors[:, None]).max(axis=0) / 127
    by_inputs = (steps**2 * (weight**2).sum(axis=1)).sum()
    return float(by_inputs + (weight_steps**2).sum() * (variance * factors**2).sum())


@given(
    arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e4, width=32)),
    seeds,
)
@example(np.zeros(3), 0)
@example(np.array([1e-30, 1, 1e4]), 0)
def test_equalizing_cuts_reaches_to_a_limit_and_loses_no_more_than_nothing_done(reach: Float64, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(len(reach), 5)) * np.exp(generator.normal(size=(len(reach), 1)))
    variance = (reach * generator.uniform(0.1, 0.5, len(reach))) ** 2
    factors = equalizing_factors(reach, variance, [weight[:, :2], weight[:, 2:]])
    assert factors.shape == reach.shape
    assert (factors > 0).all()
    assert (factors <= 1).all()
    safe = lifted(reach)
    narrowed = safe * factors
    np.testing.assert_allclose(narrowed, np.minimum(safe, narrowed.max()), rtol=1e-12)
    nothing = expected_loss(safe, variance, weight, np.ones(len(reach)))
    assert expected_loss(safe, variance, weight, factors) <= nothing * (1 + 1e-9)


def test_equalizing_leaves_channels_that_reach_alike() -> None:
    weight = np.random.default_rng(0).normal(size=(20, 5))
    assert (equalizing_factors(np.full(20, 3.0), np.ones(20), [weight]) == 1).all()


def product_error(inputs: Float64, weight: Float64, factors: Float64) -> float:
    """The squared change of a product by rounding both its sides to 8 bits with one scale, and one a column."""
    scale, zero = uint8_scale(float((inputs * factors).min()), float((inputs * factors).max()))
    rounded = (np.clip(np.rint(inputs * factors / scale) + float(zero), 0, 255) - float(zero)) * scale
    rows, row_scale = int8_rows((weight / factors[:, None]).T)
    return float((((rounded @ (rows.T * row_scale)) - inputs @ weight) ** 2).sum())


def test_equalizing_narrows_the_channels_that_reach_far() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(500, 64))
    inputs[:, [7, 30]] *= 30
    weight = generator.normal(size=(64, 16))
    factors = equalizing_factors(np.abs(inputs).max(axis=0), inputs.var(axis=0), [weight])
    assert (factors[[7, 30]] < 0.5).all()
    assert np.median(factors) > 0.5
    assert product_error(inputs, weight, factors) < product_error(inputs, weight, np.ones(64)) / 3


@given(arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e30)))
@example(np.zeros(2))
@example(np.array([5e-324, 0.0]))
@example(np.array([0.0, 1.0, 1e-2]))
def test_lifted_reaches_are_at_least_a_thousandth_of_the_greatest(reach: Float64) -> None:
    raised = lifted(reach)
    assert (raised > 0).all()
    assert (raised >= 1e-3 * raised.max()).all()
    assert (raised >= reach).all()
    assert (raised == reach)[reach > 1.001e-3 * reach.max() + 1e-37].all(), "only small ones are lifted"
