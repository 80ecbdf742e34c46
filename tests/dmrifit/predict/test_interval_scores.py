"""Scores of intervals, counted by hand."""

import numpy as np
import pytest

from dmrifit.predict.interval_scores import coverage_table, ranking_table, width_table


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


def test_coverage_by_width_is_counted_in_quintiles():
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


def test_intervals_of_one_width_are_one_quintile():
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


def test_shapes_have_to_fit():
    with pytest.raises(ValueError, match=r"intervals \(3, 1, 2\) and reference \(2, 1\) do not fit"):
        width_table(np.zeros((3, 1, 2)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"predicted \(3,\) and reference \(3, 1\) do not fit"):
        ranking_table(np.zeros((3, 1, 2)), np.zeros(3), np.zeros((3, 1)))
