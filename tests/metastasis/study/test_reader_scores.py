"""Scores by volume, by distance, by scan without lesions and by rate of false positives; matched sensitivity."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from dmrifit.io.components import label_components
from metastasis import lesion_scores, lesion_table
from metastasis.study.reader_scores import (
    challenge_table,
    distance_table,
    lesion_free_table,
    matched_table,
    recall_by_volume,
    scan_scores,
)

SHAPE = (40, 40, 40)


@pytest.fixture(scope="module")
def truth():
    """Give ten lesions of 1 to 27 voxels, far from each other."""
    mask = np.zeros(SHAPE, bool)
    for number, (x, y) in enumerate((x, y) for x in (4, 12, 20, 28, 36) for y in (8, 28)):
        mask[x : x + 1 + number % 3, y : y + 1 + number % 3, 20 : 21 + number % 3] = True
    return mask


def counted(truth, prediction, affine=None):
    affine = np.eye(4) if affine is None else affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    distance = ndimage.distance_transform_edt(~truth, sampling=spacing)
    return scan_scores(truth, label_components(truth), distance, prediction, affine)


def test_outlines_are_judged_by_distance_in_mm_and_by_volume(truth):
    wide = ndimage.binary_dilation(truth, np.ones((3, 3, 3)), iterations=2)
    counts = counted(truth, wide)
    assert (counts["n_lesions"], counts["n_found"], counts["n_wrong"]) == (10, 10, 0)
    assert lesion_scores(lesion_table(truth, wide))["strict_sensitivity"] < 0.2
    everything = counted(truth, np.ones(SHAPE, bool))
    assert (everything["n_found"], everything["n_wrong"]) == (0, 1)
    vessel = np.zeros(SHAPE, bool)
    vessel[4, 8, :] = True  # through one lesion, 20 voxels to either side
    counts = counted(truth, vessel)
    assert (counts["n_found"], counts["n_wrong"]) == (0, 1)
    counts = counted(truth, truth | vessel)
    assert (counts["n_found"], counts["n_wrong"]) == (9, 1)
    beside = np.zeros(SHAPE, bool)
    beside[6, 8, 20] = True  # near a lesion, but touching none
    assert (counted(truth, beside)["n_found"], counted(truth, beside)["n_wrong"]) == (0, 1)
    # Outlines that are 6 voxels too wide are wrong on a grid of 1 mm, but not on one of 0.3 mm.
    wide = ndimage.binary_dilation(truth, iterations=6)
    assert counted(truth, wide)["n_found"] < 4
    assert counted(truth, wide, np.diag([0.3, 0.3, 0.3, 1]))["n_found"] == 10


def test_recall_by_volume_and_shares_by_distance_have_intervals_over_patients():
    rows = []
    for patient in range(6):
        for volume, found in ((0.049, patient < 3), (0.05, True), (0.099, False), (0.1, True), (0.5, True)):
            rows.append({"patient": patient, "method": "m", "kind": "lesion", "found": found, "volume_mL": volume})
        rows.append({"patient": patient, "method": "m", "kind": "false positive", "found": False, "volume_mL": 1.0})
    table = recall_by_volume(pd.DataFrame(rows), n_bootstrap=200, seed=0)
    assert table["n"].tolist() == [6, 12, 6, 6]
    assert table["recall"].tolist() == [0.5, 0.5, 1, 1]
    assert table["below_mm3"].tolist() == [50, 100, 500, np.inf]
    # Half of the lesions of each patient leaves nothing to differ; all or none of a patient's does.
    assert np.isnan([table["low"][1], table["high"][1]]).all()
    assert table["low"][2] == table["low"][3] == pytest.approx(6 / (6 + 1.959964**2))
    assert (table["high"][2:] == 1).all()
    assert table["low"][0] < 0.2 < 0.8 < table["high"][0]
    scans = [
        {"patient": patient, "method": "m", "n_lesions": n, "n_found": found, "n_wrong": 1}
        for patient, (n, found) in enumerate([(4, 4), (4, 0), (4, 3), (4, 1), (0, 0)])
    ]
    (row,) = distance_table(pd.DataFrame(scans), n_bootstrap=500, seed=1).to_dict("records")
    assert (row["sensitivity"], row["precision"]) == (8 / 16, 8 / 13)
    assert row["f1"] == 2 * 8 / (8 + 5 + 16)
    for key in ("sensitivity", "precision", "f1"):
        assert row[f"{key}_low"] < row[key] - 0.1 < row[key] + 0.1 < row[f"{key}_high"], key
    # A patient with several scans counts once: of four patients there is no interval.
    (row,) = distance_table(pd.DataFrame(scans).assign(patient=[0, 0, 1, 2, 3]), 9, 1).to_dict("records")
    assert np.isnan(row["sensitivity_low"])


def test_scans_without_lesions_are_listed_by_name(truth):
    empty, small = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    small[3:5, 3:5, 3:5] = True
    scans = [
        {"name": name, "patient": name, "method": "m", **counted(reference, small, np.diag([1, 1, 2, 1.0]))}
        for name, reference in (("p1", truth), ("p2", empty))
    ]
    table = lesion_free_table(pd.DataFrame(scans))
    assert table.to_dict("records") == [
        {"name": "p2", "patient": "p2", "method": "m", "n_findings": 1, "marked_mL": 0.016}
    ]
    total = distance_table(pd.DataFrame(scans), n_bootstrap=0, seed=0)
    assert total["n_wrong"][0] == 2
    assert total["sensitivity"][0] == 0
    # The second scan has no lesion to find, so that its recall is undefined and not averaged.
    assert challenge_table(pd.DataFrame(scans))["all_instance_rec"][0] == 0


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
    assert row[["strict_sensitivity", "flagged_per_scan"]].tolist() == pytest.approx([0.9, 0])
    assert row["new"] == 1
    assert row["stable"] == 0.5
    assert np.isnan(row["grown"])
    assert table.loc[("all", 0.9), "false_positives_per_scan"] == pytest.approx(1, abs=0.3)


def test_a_sensitivity_that_no_threshold_gives_is_nan():
    truth, values = scan([0.9, 1e-4], [])
    table = matched_table([truth], [values], {"all": [0]}, [{}])
    assert table[["threshold", "false_positives_per_scan", "precision", "new"]].isna().all(axis=None)
