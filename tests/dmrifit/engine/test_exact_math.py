"""Elementary functions that have the same bits everywhere are right: Python's own are the reference."""

import math

import numpy as np
import pytest

from dmrifit import Parameter, Protocol, SignalModel, average_directions
from dmrifit.engine import exact_math
from dmrifit.engine.models import signal_for_starts

RNG = np.random.default_rng(81)


def ulps(found, expected):
    """How many units in the last place values are off."""
    return np.abs(found - expected) / np.spacing(np.abs(expected))


def test_the_exponential_is_right_to_two_units_in_the_last_place():
    x = np.concatenate([RNG.uniform(-700, 700, 2000), RNG.uniform(-1, 1, 2000), [0.0, 1.0]])
    expected = np.array([math.exp(value) for value in x])
    assert ulps(exact_math.exp(x), expected).max() <= 2
    assert exact_math.exp(0.0) == 1.0


def test_the_logarithm_is_right_to_four_units_in_the_last_place():
    x = np.concatenate([np.exp(RNG.uniform(-700, 700, 2000)), RNG.uniform(0.5, 2, 2000), 1 + 1e-9 * RNG.normal(size=9)])
    expected = np.array([math.log(value) for value in x])
    assert ulps(exact_math.log(x), expected).max() <= 4
    assert exact_math.log(1.0) == 0.0


def test_what_lies_beyond_the_numbers_is_as_numpy_has_it():
    with np.errstate(all="ignore"):
        for x in (-np.inf, -1e9, -760.0, -1.0, 0.0, 5e-324, 800.0, np.inf, np.nan):
            np.testing.assert_allclose(exact_math.exp(x), np.exp(x), rtol=1e-15)
            np.testing.assert_allclose(exact_math.log(x), np.log(x), rtol=1e-15)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 17, -2, 0.5, 0.7, -1.3, 65])
def test_powers_are_right(exponent):
    x = RNG.uniform(0.01, 30, 500)
    np.testing.assert_allclose(exact_math.power(x, exponent), x ** float(exponent), rtol=1e-13)


def test_the_geometric_mean_is_that_of_logarithms_whatever_the_scale():
    values = RNG.uniform(1, 1000, (300, 61))
    used = RNG.uniform(size=values.shape) < 0.8
    expected = [math.exp(math.fsum(map(math.log, row[use])) / use.sum()) for row, use in zip(values, used, strict=True)]
    np.testing.assert_allclose(exact_math.geometric_mean(values, used), expected, rtol=1e-14)
    np.testing.assert_allclose(
        exact_math.geometric_mean(values * 1e-250, used), np.array(expected) * 1e-250, rtol=1e-12
    )


def test_a_voxel_has_the_same_mean_among_voxels_of_other_scales():
    values = RNG.uniform(1, 1000, (50, 20))
    alone = exact_math.geometric_mean(values, np.ones(values.shape, bool))
    strange = np.concatenate([values, np.full((1, 20), 1e200)])
    assert np.array_equal(exact_math.geometric_mean(strange, np.ones(strange.shape, bool))[:-1], alone)


def test_means_of_directions_are_zero_nan_or_left_out_as_documented():
    protocol = Protocol([0, 1000, 1000, 1000])
    nan = np.nan
    signals = [[9, 4, 2, 1], [9, 4, 0, 1], [9, -4, 2, 1], [9, nan, 2, 8], [9, nan, nan, np.inf], [9, -1, 0, 1]]
    found = average_directions(signals, protocol)[0]
    np.testing.assert_allclose(found[:, 1], [2, 0, nan, 4, nan, nan], rtol=1e-15)


def test_signals_for_starts_are_the_signals():
    parameters = [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0, 5), Parameter("a", "", 0.1, 1)]
    model = SignalModel.from_expression("S0*exp(-(b*D)**a) + sqrt(S0)*log(1 + b)**2", parameters, name="stretched")
    protocol = Protocol([0, 200, 500, 1000, 2000])
    values = np.column_stack([RNG.uniform(1, 90, 40), RNG.uniform(0.2, 3, 40), RNG.uniform(0.3, 1, 40)])
    np.testing.assert_allclose(
        signal_for_starts(model, values, protocol), model.signal(values, protocol), rtol=1e-13, atol=1e-13
    )
