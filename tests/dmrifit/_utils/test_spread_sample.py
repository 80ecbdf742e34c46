"""Samples of voxels spread over an image are the same however it is cut."""

import numpy as np
import pytest

from dmrifit._utils.spread_sample import SpreadSample, by_slice


def sampled(region, cuts, most=10):
    numbers = np.arange(region.size).reshape(region.shape)
    sample = SpreadSample(most)
    for inside, values in zip(np.split(region, cuts, axis=2), np.split(numbers, cuts, axis=2), strict=True):
        sample.add(values[inside], by_slice(inside))
    return sample.rows()


@pytest.mark.parametrize("n", [1, 20, 21, 40, 41, 100, 120])
def test_samples_do_not_depend_on_the_slabs(n):
    region = np.zeros((3, 4, 10), bool)
    region.flat[np.random.default_rng(1).permutation(120)[:n]] = True
    whole = sampled(region, [])
    assert min(n, 10) <= len(whole) <= 20
    for cuts in ([5], [2, 3, 7], range(1, 10), range(0, 10, 4)):
        np.testing.assert_array_equal(sampled(region, cuts), whole)


def test_samples_are_spread_copies_and_may_be_empty():
    rows = sampled(np.ones((1, 1, 333), bool), [5])
    assert rows.tolist() == list(range(0, 333, 32))
    sample = SpreadSample(10)
    assert sample.rows().size == 0
    values = np.ones((5, 2))
    sample.add(values, np.arange(5))
    values[:] = 0
    assert sample.rows().shape == (5, 2)
    assert (sample.rows() == 1).all()
