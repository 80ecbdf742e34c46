"""Arithmetic on lanes, against plain numpy."""

import numba
import numpy as np
import pytest

from dmrifit.engine.kernels.lanes import block


def compiled(lines):
    """Give a function of the six arrays that runs the lines on 16 lanes."""
    run = block(lines, 16)

    @numba.njit
    def apply(w, s, y, v, t, o):
        run(w, s, y, v, t, o)

    return apply


def test_the_functions_of_lanes_are_exact_to_rounding():
    run = block(
        [
            "w[0 + l] = exp(y[0 + l])",
            "w[16 + l] = log(sqrt(v[0 + l]) * s[0]) if y[0 + l] > 0.0 else -1.0",
        ],
        16,
    )

    @numba.njit
    def apply(w, s, y, v):
        offsets = np.zeros(1, np.int64)
        for base in range(0, len(y), 16):
            offsets[0] = base
            run(w[2 * base :], s, y, v, y, offsets)

    x = np.concatenate([np.linspace(-690, 690, 1600), np.linspace(-1, 1, 1600), np.zeros(16)])
    positive = np.linspace(0.1, 50, len(x))
    work = np.zeros(2 * len(x))
    apply(work, np.array([3.0]), x, positive)
    work = work.reshape(-1, 2, 16)
    np.testing.assert_allclose(work[:, 0].ravel(), np.exp(x), rtol=2e-15)
    assert (work[:, 0].ravel()[x == 0] == 1.0).all()
    np.testing.assert_allclose(
        work[:, 1].ravel(),
        np.where(x > 0, np.log(3 * np.sqrt(positive)), -1),
        rtol=1e-13,
        atol=1e-13,
    )
    apply(work.ravel(), np.array([3.0]), np.array([1e9, -1e9] * 8), positive)
    assert np.isfinite(work[0, 0]).all()
    assert (work[0, 0, 1::2] < 1e-300).all()


@pytest.mark.parametrize(
    "line", ["w[0 + l] = abs(y[0 + l])", "print(1)", "w[l] = 1.0", "q = y[0 + l] ** 2.0"]
)
def test_what_is_not_lane_arithmetic_is_refused(line):
    run = block([line], 16)

    @numba.njit
    def apply(w):
        run(w, w, w, w, w, np.zeros(1, np.int64))

    with pytest.raises(ValueError, match=r"not lane arithmetic|not an assignment|no such"):
        apply(np.zeros(16))


def test_operators_comparisons_and_choices_are_those_of_numpy():
    apply = compiled(
        [
            "a = y[0 + l] - v[0 + l]",
            "b = y[0 + l] / v[0 + l]",
            "inside = (y[0 + l] > -0.5) & (y[0 + l] <= 0.5)",
            "outside = (y[0 + l] < -1.0) | (y[0 + l] >= 1.0)",
            "w[0 + l] = a if inside else b",
            "w[16 + l] = 2.0 if outside else (1.0 if y[0 + l] == v[0 + l] else -y[0 + l])",
            "w[32 + l] = s[1]",
            "w[48 + l] += y[0 + l] * v[0 + l] + s[0] * y[0 + l]",
            "w[64 + l] = 5.0 if y[0 + l] != v[0 + l] else 6.0",
        ]
    )
    rng = np.random.default_rng(0)
    y, v = rng.uniform(-2, 2, 16), rng.uniform(0.5, 2, 16)
    v[3] = y[3] = 0.75
    y[4], y[5], y[6] = 0.5, -1.0, 1.0
    work = np.full(80, 7.0)
    apply(work, np.array([3.0, 11.0]), y, v, y, np.zeros(1, np.int64))
    inside, outside = (y > -0.5) & (y <= 0.5), (y < -1) | (y >= 1)
    assert inside.any()
    assert outside.any()
    expected = [
        np.where(inside, y - v, y / v),
        np.where(outside, 2, np.where(y == v, 1, -y)),
        np.full(16, 11.0),
        7 + y * v + 3 * y,
        np.where(y != v, 5, 6),
    ]
    np.testing.assert_allclose(work.reshape(5, 16), expected, rtol=1e-14)


def test_a_product_and_a_sum_are_rounded_once():
    """(1 + e)(1 − e) is 1 − e², which rounded by itself is 1."""
    tiny = 2.0**-30
    apply = compiled(
        [
            "w[0 + l] = y[0 + l] * v[0 + l] - s[0]",
            "w[16 + l] = s[0] - y[0 + l] * v[0 + l]",
            "w[32 + l] = y[0 + l] * v[0 + l] + s[1]",
        ]
    )
    work = np.zeros(48)
    apply(
        work,
        np.array([1.0, -1.0]),
        np.full(16, 1 + tiny),
        np.full(16, 1 - tiny),
        work,
        np.zeros(1, np.int64),
    )
    np.testing.assert_array_equal(
        work.reshape(3, 16), np.multiply.outer([-1, 1, -1], np.full(16, tiny**2))
    )


def test_places_in_tables_begin_at_their_offsets():
    apply = compiled(["w[0 + l] = t[2, 16 + l]", "t[1, 0 + l] = y[0 + l] + v[16 + l]"])
    table, measured, weights = np.arange(160.0), 1000 + np.arange(64.0), 2000 + np.arange(80.0)
    work = np.zeros(16)
    apply(work, work, measured, weights, table, np.array([32, 96, 48]))
    np.testing.assert_array_equal(work, 48 + 16 + np.arange(16.0))
    np.testing.assert_array_equal(table[96:112], (1032 + np.arange(16)) + (2048 + np.arange(16)))
    np.testing.assert_array_equal(
        np.delete(table, slice(96, 112)), np.delete(np.arange(160.0), slice(96, 112))
    )
