"""Ends of intervals, calibrated by class of width, and their scores, counted by hand."""

import numpy as np
import pytest

from dmrifit.predict.intervals import (
    IntervalEnds,
    coverage_table,
    patient_weights,
    ranking_table,
    weighted_quantiles,
    width_table,
)

RNG = np.random.default_rng(0)
NO_BOX = np.array([[-np.inf, np.inf]])


def covered(ends, center, spread, targets):
    low, high = np.moveaxis(ends.around(center, spread), 2, 0)
    return (low <= targets) & (targets <= high)


def test_weighted_quantiles_count_patients_alike_and_few_voxels_have_one_class():
    values = RNG.normal(size=(50, 2))
    repeats = RNG.integers(1, 5, 50)
    quantiles = weighted_quantiles(values, repeats.astype(float), (0.05, 0.5))
    expected = np.quantile(np.repeat(values, repeats, axis=0), [0.05, 0.5], axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(quantiles, expected.T)
    weight = patient_weights(np.array(["a", "b", "b", "b"]))
    np.testing.assert_allclose(weight, [1 / 2, 1 / 6, 1 / 6, 1 / 6])
    targets = RNG.normal(size=(50, 1))
    ones = np.ones((50, 1))
    ends = IntervalEnds.learn(0 * ones, ones, targets, ones[:, 0], coverage=0.8, bounds=NO_BOX)
    assert len(ends.factors[0]) == 1
    # Both ends of the first interval are errors of the sample, so one more of the 50 may be inside.
    assert 0.8 <= covered(ends, 0 * ones, ones, targets).mean() <= 0.82


def test_wide_intervals_hold_as_many_as_narrow_ones_where_expected_errors_are_wrong():
    """Errors grow with the square of what is expected."""
    spread = np.exp(RNG.normal(scale=0.5, size=(20_000, 1)))
    targets = spread**2 * RNG.normal(size=spread.shape)
    half = len(spread) // 2
    weight = np.ones(half)
    zeros = np.zeros((half, 1))
    ends = IntervalEnds.learn(zeros, spread[:half], targets[:half], weight, coverage=0.9, bounds=NO_BOX)
    inside = covered(ends, np.zeros((half, 1)), spread[half:], targets[half:])[:, 0]
    order = np.argsort(spread[half:, 0])
    by_quintile = inside[order].reshape(5, -1).mean(axis=1)
    assert np.all(np.abs(by_quintile - 0.9) < 0.03)
    plain = np.abs(targets[half:] / spread[half:])[:, 0] <= np.quantile(np.abs(targets[:half] / spread[:half]), 0.9)
    assert np.ptp(plain[order].reshape(5, -1).mean(axis=1)) > 0.1


def test_an_output_that_sits_at_its_bounds_gets_the_whole_box():
    targets = RNG.choice([150.0, 250.0], size=(1000, 1))
    center = np.full((1000, 1), 200.0)
    box = np.array([[150.0, 250.0]])
    ends = IntervalEnds.learn(center, 30 + center / 10, targets, np.ones(1000), coverage=0.9, bounds=box)
    assert ends.is_whole.all()
    assert ends.around(np.array([[200.0]]), np.array([[1e-3]])).tolist() == [[[150, 250]]]


def test_numbers_come_back_from_a_file_and_others_are_refused():
    targets = RNG.normal(size=(300, 2))
    ones = np.ones((300, 2))
    box = np.tile(NO_BOX, (2, 1))
    ends = IntervalEnds.learn(0 * ones, ones, targets, ones[:, 0], coverage=0.9, bounds=box)
    again = IntervalEnds.from_dict(ends.to_dict(), box)
    np.testing.assert_array_equal(again.around(0 * ones, ones), ends.around(0 * ones, ones))
    changes = {"quantiles": [[0, 1]]}, {"is_whole": [1, 0]}, {"is_whole": [True, False]}, {"factors": [[1.0], [1.0, 1.0, 1.0, 1.0]]}
    for change in changes:
        with pytest.raises(ValueError, match="quantiles of"):
            IntervalEnds.from_dict(ends.to_dict() | change, box)


def test_the_table_of_coverage_counts_by_hand():
    intervals = np.array([[[0, 1], [0, 2]], [[0, 1], [0, 4]], [[2, 3], [np.nan, 1]], [[2, 3], [1, 1]]])
    reference = np.array([[0.5, 3.0], [2.0, 3.0], [2.0, 0.0], [np.nan, 1.0]])
    table = coverage_table(intervals, reference, ["a", "a", "b", "b"], names=("f", "K"))
    assert table.to_dict("list") == {
        "patient": ["a", "a", "b", "b"],
        "parameter": ["f", "K", "f", "K"],
        "n_voxels": [2, 2, 1, 1],
        "coverage": [0.5, 0.5, 1.0, 1.0],
        "width": [1.0, 3.0, 1.0, 0.0],
    }
    with pytest.raises(ValueError, match="do not fit together"):
        coverage_table(intervals, reference[:3], ["a", "a", "b", "b"])


def test_coverage_by_width_is_counted_in_quintiles_or_one_where_all_are_alike():
    width = np.arange(1.0, 101)
    intervals = np.stack([np.zeros(100), width], axis=1)[:, None]
    # The 20 narrowest intervals miss, and of the others all but one hold the value.
    value = np.where(width <= 20, -1.0, 0.5)
    value[99] = 1000
    table = width_table(intervals, value[:, None], names=("K",))
    assert table["parameter"].unique().tolist() == ["K"]
    assert table["quintile"].tolist() == [1, 2, 3, 4, 5]
    assert table["n_voxels"].tolist() == [20] * 5
    assert table["coverage"].tolist() == [0, 1, 1, 1, 0.95]
    assert table["width"].tolist() == [10.5, 30.5, 50.5, 70.5, 90.5]
    intervals = np.tile([150.0, 250.0], (40, 1, 1))
    table = width_table(intervals, np.full((40, 1), 200.0))
    assert table["n_voxels"].tolist() == [40]
    assert np.isnan(ranking_table(intervals, np.zeros((40, 1)), np.full((40, 1), 200.0))["ratio"]).all()


def test_errors_drawn_from_the_widths_are_ranked_as_expected_and_others_are_not():
    rng = np.random.default_rng(0)
    width = np.exp(rng.normal(scale=0.5, size=(20_000, 2)))
    # Expected errors of the first output, those of a constant width of the second.
    scale = np.column_stack([width[:, 0], np.ones(len(width))])
    reference = rng.standard_normal(width.shape) * scale
    intervals = np.stack([-width, width], axis=2)
    table = ranking_table(intervals, np.zeros(width.shape), reference).set_index("parameter")
    assert abs(table.loc["0", "ratio"] - 1) < 0.05
    # Measured: a log-sd of 0.5 gives perfect intervals a rank correlation of 0.46.
    assert abs(table.loc["0", "expected"] - 0.46) < 0.02
    assert abs(table.loc["1", "ratio"]) < 0.05
