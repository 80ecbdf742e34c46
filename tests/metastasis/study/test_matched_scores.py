"""False positives at matched sensitivity: small scans by hand."""

import numpy as np
import pytest

from metastasis.study.matched_scores import matched_table


def scan(peaks, false_peaks):
    """Give one-voxel lesions and false findings with these probabilities."""
    truth, values = np.zeros((4, 4, 40), bool), np.full((4, 4, 40), 1e-4)
    for k, peak in enumerate(peaks):
        truth[0, 0, 2 * k] = True
        values[0, 0, 2 * k] = peak
    for k, peak in enumerate(false_peaks):
        values[3, 3, 2 * k] = peak
    return truth, values


def test_false_positives_are_read_where_as_many_lesions_are_found():
    lesions = np.linspace(0.99, 0.4, 20)
    first = scan(lesions, [0.95, 0.5, 0.45])
    second = scan([0.9], [0.3])
    status = {1: "new", 2: "stable", 20: "stable"}
    table = matched_table(
        [first[0], second[0]], [first[1], second[1]], {"all": [0, 1], "first": [0]}, [status, {}]
    ).set_index(["part", "sensitivity"])
    # Of 20 lesions 18, those of .46 or more: the false findings of .95 and .5.
    row = table.loc[("first", 0.9)]
    assert row["false_positives_per_scan"] == pytest.approx(2, abs=0.5)
    assert 0.43 < row["threshold"] < 0.5
    assert row["new"] == 1
    assert row["stable"] == 0.5
    assert np.isnan(row["grown"])
    assert table.loc[("all", 0.9), "false_positives_per_scan"] == pytest.approx(1, abs=0.3)


def test_a_sensitivity_that_no_threshold_gives_is_nan():
    truth, values = scan([0.9, 1e-4], [])
    table = matched_table([truth], [values], {"all": [0]}, [{}])
    assert table[["threshold", "false_positives_per_scan", "precision", "new"]].isna().all(axis=None)
