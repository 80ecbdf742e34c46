"""Places of the numbers of a lane in the work array."""

import re

import numpy as np
import pytest

from dmrifit import Parameter
from dmrifit.engine.kernels.layout import LANES, Layout, form

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
