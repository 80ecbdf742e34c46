"""Places of the numbers of a lane in the work array."""

import numpy as np
import pytest

from dmrifit import Parameter
from dmrifit.engine.kernels.layout import (
    FIT_FIELDS,
    INTERVAL_FIELDS,
    UNROLL,
    Contrasts,
    Fields,
    Layout,
    form,
)


@pytest.mark.parametrize(("fields", "n", "size"), [(FIT_FIELDS, 1, 21), (FIT_FIELDS, 7, 123), (INTERVAL_FIELDS, 4, 104)])
def test_no_two_numbers_of_a_lane_share_a_place_and_none_is_left_over(fields, n, size):
    layout = Layout(n, fields)
    rows = np.zeros(layout.n_rows)
    places = {"one": [None], "vector": range(n), "matrix": layout.pairs, "square": range(n * n), "sides": range(2 * n)}
    lane = Fields(layout, rows)
    number = 0
    for name, shape in fields.items():
        for place in places[shape]:
            number += 1
            if place is None:
                setattr(lane, name, number)
                assert getattr(lane, name) == number
            else:
                getattr(lane, name)[place] = number
    assert layout.n_rows == size
    np.testing.assert_array_equal(np.sort(rows), 1 + np.arange(size))


@pytest.mark.parametrize(
    ("unit", "low", "high", "expected"),
    [
        ("ms", 20, 140, "inverse"), ("ms", 0, np.inf, "plain"), ("µm²/ms", 4, 100, "log"), ("µm²/ms", 0.5, 10, "log"),
        ("µm²/ms", 0.5, 9.9, "plain"), ("µm²/ms", 0, 3, "plain"), ("", 0, 1, "plain"), ("signal", 0.1, 100, "plain"),
    ],
)
def test_the_inner_coordinate_follows_from_unit_and_bounds(unit, low, high, expected):
    assert form(Parameter("p", unit, low, high)) == expected


def test_contrasts_are_padded_and_tabulated():
    b, te = np.array([0.0, 1.0, 0.5, 1.0]), np.array([60.0, 60.0, 90.0, 90.0])
    contrasts = Contrasts.of(b, te)
    pairs, rows = contrasts.pairs.reshape(-1, 2), contrasts.rows.reshape(-1, 2)
    assert len(pairs) % UNROLL == 0
    np.testing.assert_array_equal(pairs[:4], np.stack([b, te], axis=1))
    assert (pairs[4:] == pairs[3]).all()
    np.testing.assert_array_equal(contrasts.b[rows[:, 0]], pairs[:, 0])
    np.testing.assert_array_equal(contrasts.te[rows[:, 1]], pairs[:, 1])
    assert not Contrasts.of(b, None).te.any()
