"""Means of signals: Python's own functions are the reference."""

import math

import numpy as np

from dmrifit import Protocol, average_directions
from dmrifit.engine.means import geometric_mean, rounded

RNG = np.random.default_rng(81)


def test_rounded_numbers_keep_ten_digits_and_forget_the_last_bits():
    x = RNG.uniform(-1, 1, 500) * 10.0 ** RNG.integers(-200, 200, 500)
    np.testing.assert_allclose(rounded(x), x, rtol=1e-9)
    assert np.array_equal(rounded(np.nextafter(x, 0)), rounded(x))
    np.testing.assert_array_equal(rounded(np.array([0.0, 1.0, 20.0, np.inf, np.nan])), [0, 1, 20, np.inf, np.nan])


def test_the_geometric_mean_is_that_of_logarithms_whatever_the_scale_of_a_voxel_and_its_neighbors():
    values = RNG.uniform(1, 1000, (300, 61))
    used = RNG.uniform(size=values.shape) < 0.8
    expected = [math.exp(math.fsum(map(math.log, row[use])) / use.sum()) for row, use in zip(values, used, strict=True)]
    np.testing.assert_allclose(geometric_mean(values, used), expected, rtol=1e-9)
    np.testing.assert_allclose(geometric_mean(values * 1e-250, used), np.array(expected) * 1e-250, rtol=1e-9)
    values = RNG.uniform(1, 1000, (50, 20))
    alone = geometric_mean(values, np.ones(values.shape, bool))
    strange = np.concatenate([values, np.full((1, 20), 1e200)])
    assert np.array_equal(geometric_mean(strange, np.ones(strange.shape, bool))[:-1], alone)


def test_means_of_directions_are_zero_nan_or_left_out_as_documented():
    protocol = Protocol([0, 1000, 1000, 1000])
    nan = np.nan
    signals = [[9, 4, 2, 1], [9, 4, 0, 1], [9, -4, 2, 1], [9, nan, 2, 8], [9, nan, nan, np.inf], [9, -1, 0, 1]]
    found = average_directions(signals, protocol)[0]
    np.testing.assert_allclose(found[:, 1], [2, 0, nan, 4, nan, nan], rtol=1e-9)
