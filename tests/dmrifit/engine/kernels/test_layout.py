"""Places of the numbers of a lane in the work array."""

import re

import numpy as np
import pytest

from dmrifit import Parameter
from dmrifit.engine.kernels.layout import (
    LANES,
    UNROLL,
    Contrasts,
    IntervalLayout,
    Layout,
    form,
    zeros_of_lanes,
)

VECTORS = ("Q", "T", "X", "G", "GT", "LO", "HI", "D")
MATRICES = ("M", "MT")
SINGLE = ("C", "CT", "BC", "GB", "SQ", "SQT", "LAM", "P1", "IT", "END", "NF2")


def index(code):
    """Give the number before the lane in a place such as ``w[96 + l]``."""
    return int(re.fullmatch(r"w\[(\d+) \+ l\]", code)[1])


@pytest.mark.parametrize(("n", "size"), [(1, 21), (3, 47), (7, 123)])
def test_no_two_numbers_of_a_lane_share_a_place_and_none_is_left_over(n, size):
    at = Layout(n)
    places = [index(at(name, i)) for name in VECTORS for i in range(n)]
    places += [
        index(at.pair(name, i, j)) for name in MATRICES for i in range(n) for j in range(i + 1)
    ]
    places += [index(at(name)) for name in SINGLE]
    np.testing.assert_array_equal(np.sort(places), LANES * np.arange(size))
    assert at.size == LANES * size


def test_a_symmetric_matrix_is_stored_by_rows_of_its_lower_triangle():
    at = Layout(3)
    assert at.pairs == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    first = index(at("M"))
    for number, (i, j) in enumerate(at.pairs):
        assert index(at.pair("M", i, j)) == index(at.pair("M", j, i)) == first + LANES * number


@pytest.mark.parametrize(
    ("unit", "low", "high", "expected"),
    [
        ("ms", 20, 140, "inverse"),
        ("ms", 0, np.inf, "plain"),
        ("µm²/ms", 4, 100, "log"),
        ("µm²/ms", 0.5, 10, "log"),
        ("µm²/ms", 0.5, 9.9, "plain"),
        ("µm²/ms", 0, 3, "plain"),
        ("", 0, 1, "plain"),
        ("signal", 0.1, 100, "plain"),
    ],
)
def test_the_inner_coordinate_follows_from_unit_and_bounds(unit, low, high, expected):
    assert form(Parameter("p", unit, low, high)) == expected


def test_no_two_fields_of_the_intervals_share_a_place():
    at = IntervalLayout(4)
    starts = [*at.offset.values(), at.n_rows]
    assert starts == sorted(set(starts))
    assert at.n_rows - at.offset["END"] == 2 * 4


def test_contrasts_are_padded_and_tabulated():
    b, te = np.array([0.0, 1.0, 0.5, 1.0]), np.array([60.0, 60.0, 90.0, 90.0])
    contrasts = Contrasts.of(b, te)
    assert len(contrasts.pairs) % UNROLL == 0
    np.testing.assert_array_equal(contrasts.pairs[:4], np.stack([b, te], axis=1))
    assert (contrasts.pairs[4:] == contrasts.pairs[3]).all()
    np.testing.assert_array_equal(contrasts.b[contrasts.rows[:, 0]], contrasts.pairs[:, 0])
    np.testing.assert_array_equal(contrasts.te[contrasts.rows[:, 1]], contrasts.pairs[:, 1])
    assert not Contrasts.of(b, None).te.any()


def test_arrays_of_lanes_begin_with_a_cache_line():
    for shape in ((3, LANES), (5,), (1, 2 * LANES)):
        values = zeros_of_lanes(*shape)
        assert values.shape == shape
        assert not values.any()
        assert values.ctypes.data % 64 == 0
        assert values.flags.c_contiguous
        assert values.flags.writeable
