"""Arithmetic on lanes, against plain numpy."""

import numba
import numpy as np
import pytest

from dmrifit.engine.kernels.lanes import block, choose, exp, log, sqrt
from dmrifit.engine.kernels.layout import LANES


def apply(write, work, s, y, v, t=None, places=(0,)):
    """Run lane arithmetic on arrays of any number of groups of lanes."""
    run = block(write)

    @numba.njit
    def each_group(w, s, y, v, t, o):
        n_rows = w.size * LANES // y.size if len(o) == 1 else w.size
        for base in range(o[0], y.size if len(o) == 1 else o[0] + 1, LANES):
            o[0] = base
            run(w[base // LANES * n_rows :] if len(o) == 1 else w, s, y, v, t, o)

    each_group(work, s, y, v, work if t is None else t, np.array(places))


def functions(w, s, y, v, t):
    w[0] = exp(y[0])
    w[1] = choose(y[0] > 0.0, log(sqrt(v[0]) * s[0]), -1.0)


def test_the_functions_of_lanes_are_exact_to_rounding():
    x = np.concatenate([np.linspace(-690, 690, 1600), np.linspace(-1, 1, 1600), np.zeros(16)])
    positive = np.linspace(0.1, 50, len(x))
    work = np.zeros(2 * len(x))
    apply(functions, work, np.array([3.0]), x, positive)
    exponentials, logarithms = work.reshape(-1, 2, LANES).swapaxes(0, 1).reshape(2, -1)
    np.testing.assert_allclose(exponentials, np.exp(x), rtol=2e-15)
    assert (exponentials[x == 0] == 1.0).all()
    expected = np.where(x > 0, np.log(3 * np.sqrt(positive)), -1)
    np.testing.assert_allclose(logarithms, expected, rtol=1e-13, atol=1e-13)
    plain = {}
    functions(plain, [3.0], [x], [positive], None)
    np.testing.assert_allclose(np.stack([plain[0], plain[1]]), [exponentials, logarithms], rtol=1e-12)
    apply(functions, work[:32], np.array([3.0]), np.array([1e9, -1e9] * 8), positive[:16])
    assert np.isfinite(work[:16]).all()
    assert (work[1:16:2] < 1e-300).all()


def test_a_python_condition_on_lanes_is_refused():
    def write(w, s, y, v, t):
        w[0] = 1.0 if y[0] > 0.0 else 2.0

    with pytest.raises(TypeError, match="lanes may differ"):
        apply(write, np.zeros(16), np.zeros(1), np.zeros(16), np.zeros(16))


def test_operators_comparisons_and_choices_are_those_of_numpy():
    def write(w, s, y, v, t):
        is_inside = (y[0] > -0.5) & (y[0] <= 0.5)
        is_outside = (y[0] < -1.0) | (y[0] >= 1.0)
        w[0] = choose(is_inside, y[0] - v[0], y[0] / v[0])
        w[1] = choose(is_outside, 2.0, choose(y[0] == v[0], 1.0, -y[0]))
        w[2] = s[1]
        w[3] = w[3] + y[0] * v[0] + s[0] * y[0]
        w[4] = choose(y[0] != v[0], 5.0, 6.0)
        w[5] = choose(~is_inside, 1.0 - y[0], 1.0 / v[0])

    rng = np.random.default_rng(0)
    y, v = rng.uniform(-2, 2, 16), rng.uniform(0.5, 2, 16)
    v[3] = y[3] = 0.75
    y[4], y[5], y[6] = 0.5, -1.0, 1.0
    work = np.full(96, 7.0)
    apply(write, work, np.array([3.0, 11.0]), y, v)
    inside, outside = (y > -0.5) & (y <= 0.5), (y < -1) | (y >= 1)
    assert inside.any()
    assert outside.any()
    expected = [
        np.where(inside, y - v, y / v),
        np.where(outside, 2, np.where(y == v, 1, -y)),
        np.full(16, 11.0),
        7 + y * v + 3 * y,
        np.where(y != v, 5, 6),
        np.where(inside, 1 / v, 1 - y),
    ]
    np.testing.assert_allclose(work.reshape(6, 16), expected, rtol=1e-14)


def test_a_product_and_a_sum_are_rounded_once():
    """(1 + e)(1 − e) is 1 − e², which rounded by itself is 1."""

    def write(w, s, y, v, t):
        w[0] = y[0] * v[0] - s[0]
        w[1] = s[0] - y[0] * v[0]
        w[2] = y[0] * v[0] + s[1]
        w[3] = +(y[0] * v[0]) - s[0]

    tiny = 2.0**-30
    work = np.ones(64)
    apply(write, work, np.array([1.0, -1.0]), np.full(16, 1 + tiny), np.full(16, 1 - tiny))
    expected = np.multiply.outer([-1, 1, -1, 0], np.full(16, tiny**2))
    np.testing.assert_array_equal(work.reshape(4, 16), expected)


def test_places_in_tables_begin_at_their_offsets():
    def write(w, s, y, v, t):
        w[0] = t[2][1]
        t[1][0] = y[0] + v[1]

    table, measured, weights = np.arange(160.0), 1000 + np.arange(64.0), 2000 + np.arange(80.0)
    work = np.zeros(16)
    apply(write, work, work, measured, weights, table, places=(32, 96, 48))
    np.testing.assert_array_equal(work, 48 + 16 + np.arange(16.0))
    np.testing.assert_array_equal(table[96:112], (1032 + np.arange(16)) + (2048 + np.arange(16)))
    np.testing.assert_array_equal(np.delete(table, slice(96, 112)), np.delete(np.arange(160.0), slice(96, 112)))
