"""Areas under curves, FROC scores, precision at a sensitivity and calibration have known answers."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve as reference_calibration

from metastasis.segmentation.operating_points import summed_curve, threshold_curve
from metastasis.study.operating_curves import (
    area_table,
    calibration_curve,
    family_table,
    froc_table,
    precision_at_sensitivity,
    precision_recall_area,
)

SHAPE = (24, 24, 24)


@pytest.fixture(scope="module")
def curve(ball_scans):
    return threshold_curve(*ball_scans)


def test_areas_are_those_by_hand_and_the_published_points_rank_the_losses_as_published():
    assert precision_recall_area([0.5], [0.8]) == pytest.approx(0.4)
    assert precision_recall_area([1.0, 0.0], [0.5, 1.0]) == pytest.approx(0.75)
    # A point that another surpasses changes nothing, nor does a gap.
    assert precision_recall_area([1.0, 0.0, 0.4, np.nan], [0.5, 1.0, 0.2, 1.0]) == pytest.approx(0.75)
    assert precision_recall_area([0.4, 0.8], [0.9, 0.5], between=(0.4, 0.8)) == pytest.approx(0.7)
    assert precision_recall_area([0.4, 0.8], [0.9, 0.5], between=(0.8, 1.0)) == 0
    assert precision_recall_area([0.2], [0.9], between=(0.4, 0.6)) == 0
    assert np.isnan(precision_recall_area([np.nan], [0.5]))
    # Points of the publication: joint loss at six settings; of the voxel loss two are stated.
    joint = pd.DataFrame(
        {
            "sensitivity": [0.974, 0.946, 0.914, 0.881, 0.860, 0.802],
            "precision": [0.274, 0.516, 0.736, 0.918, 0.930, 0.987],
        }
    )
    voxel = pd.DataFrame({"sensitivity": [0.673, 0.88], "precision": [0.93, 0.631]})
    areas = [precision_recall_area(one["sensitivity"], one["precision"]) for one in (joint, voxel)]
    assert areas[0] == pytest.approx(0.925, abs=0.001)
    assert areas[0] > areas[1]


def test_families_are_traced_in_their_order_and_compared_where_all_are_measured():
    summary = pd.DataFrame(
        {
            "method": ["a1", "a2", "b1", "b2"],
            **{key: [0.9, 0.5, 0.8, 0.6] for key in ("sensitivity", "strict_sensitivity")},
            **{key: [0.3, 0.9, 0.2, 0.4] for key in ("precision", "strict_precision")},
            "false_positives_per_scan": [9.0, 1, 8, 5],
        }
    )
    members = family_table(summary, {"a": ["a2", "a1"], "b": ["b1", "b2"]})
    assert list(members["method"]) == ["a2", "a1", "b1", "b2"]
    areas = area_table(dict(iter(members.groupby("family"))), "family").set_index("name")
    assert areas.loc["a", "area"] == pytest.approx(0.5 * 0.9 + 0.4 * 0.6)
    assert areas.loc["a", "area_common"] == pytest.approx(0.6)  # from .6 to .8: .75 to .45
    assert areas.loc["b", "area_common"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="not c1"):
        family_table(summary, {"c": ["c1"]})


def test_everything_above_a_low_threshold_adds_no_area():
    label = np.zeros(SHAPE, bool)
    label[5:8, 5:8, 5:8] = label[15:18, 15:18, 15:18] = True
    probability = np.where(label, 0.1, 0.2)  # knows nothing, but covers all below .1
    curve = threshold_curve([label], [probability])
    assert curve.loc[0, ["sensitivity", "precision"]].tolist() == [1, 1]
    areas = area_table({"nothing": curve}, "thresholds").iloc[0]
    assert areas["area_plain"] == 1
    assert areas["area"] == 0
    _, scores = froc_table([curve], ["p"], n_bootstrap=0, seed=0)
    assert scores["froc"] == 0


def test_curves_of_scans_add_up_to_the_curve_of_all(ball_scans, curve):
    scans = [threshold_curve([label], [values]) for label, values in zip(*ball_scans, strict=True)]
    pd.testing.assert_frame_equal(summed_curve(scans), curve, check_exact=True)


#: Lesions of each scan, and at three thresholds those touched, those found by strict rules, false and flagged
#: findings. Patient "b" has two scans, "c" and "e" no lesion.
PATIENTS = ["b", "a", "c", "b", "d", "e"]
N_LESIONS = [3, 4, 0, 2, 6, 0]
TOUCHED = [[3, 2, 1], [4, 2, 0], [0, 0, 0], [2, 2, 1], [6, 5, 2], [0, 0, 0]]
FOUND = [[3, 1, 1], [3, 2, 0], [0, 0, 0], [2, 2, 1], [1, 5, 2], [0, 0, 0]]
FALSE = [[3, 1, 0], [4, 0, 0], [9, 2, 1], [1, 0, 0], [2, 1, 0], [4, 1, 0]]
FLAGGED = [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]


def counted_scans():
    columns = ("n_found", "n_distinct", "n_false_positives", "n_flagged")
    scans = []
    for n, *counts in zip(N_LESIONS, TOUCHED, FOUND, FALSE, FLAGGED, strict=True):
        scans.append(pd.DataFrame({"threshold": [0.1, 0.5, 0.9], "n_lesions": n, **dict(zip(columns, counts, strict=True))}))
    return scans


def test_froc_is_read_at_the_best_threshold_that_reaches_each_rate_in_any_order_of_scans():
    table, scores = froc_table(counted_scans(), PATIENTS, n_bootstrap=0, seed=0, rates=(0.1, 0.2, 1, 5))
    # Of six scans there are 25, 6 and 1 wrong findings, of 15 lesions 9, 10 and 4 found strictly.
    assert table["threshold"].tolist()[1:] == [0.9, 0.5, 0.5]
    assert table["strict_sensitivity"].tolist()[1:] == [4 / 15, 10 / 15, 10 / 15]
    assert table["sensitivity"].tolist()[1:] == [4 / 15, 11 / 15, 11 / 15]
    assert table.iloc[0, 1:].isna().all()
    assert scores["froc"] == pytest.approx((0 + 4 + 10 + 10) / 15 / 4)
    assert np.isnan([scores["froc_low"], scores["froc_high"]]).all()
    scans, seed = counted_scans(), np.random.SeedSequence(7)
    table, scores = froc_table(scans, PATIENTS, n_bootstrap=50, seed=seed)
    order = [4, 0, 3, 5, 1, 2]
    shuffled = [scans[i] for i in order], [PATIENTS[i] for i in order]
    again, scores_again = froc_table(*shuffled, n_bootstrap=50, seed=seed)
    pd.testing.assert_frame_equal(again, table)
    assert scores_again == scores
    assert (table["strict_sensitivity_low"] < table["strict_sensitivity_high"]).any()
    few, _ = froc_table(scans[:5], PATIENTS[:5], n_bootstrap=50, seed=seed)
    assert few[["sensitivity_low", "strict_sensitivity_high"]].isna().all(axis=None)


def test_intervals_of_froc_are_those_of_plain_counting():
    rates, seed = (0.125, 0.5, 1.0, 8.0), np.random.SeedSequence(7)
    table, scores = froc_table(counted_scans(), PATIENTS, n_bootstrap=400, seed=seed, rates=rates)
    expected = []
    for draw in np.random.default_rng(seed).multinomial(5, [0.2] * 5, 400):
        # All scans of a patient are drawn together, as often as the patient is.
        times = np.array([draw["abcde".index(patient)] for patient in PATIENTS])
        n_lesions = times @ N_LESIONS
        if n_lesions == 0:
            continue
        readings = []
        for rate in rates:
            reading = (0.0, 0.0)
            for k in range(3):
                wrong = sum(times[i] * (FALSE[i][k] + FLAGGED[i][k]) for i in range(6)) / times.sum()
                touched = sum(times[i] * TOUCHED[i][k] for i in range(6)) / n_lesions
                strict = sum(times[i] * FOUND[i][k] for i in range(6)) / n_lesions
                if wrong <= rate and strict > reading[1]:
                    reading = (touched, strict)
            readings.append(reading)
        expected.append(readings)
    # Samples without lesions are left out, and rates that are not reached count as 0.
    assert 0 < 400 - len(expected) < 10
    samples = np.array(expected)
    assert 0 < np.mean(samples[:, 0, 1] == 0) < 0.9
    is_reached = table["threshold"].notna()
    assert is_reached.tolist() == [False, True, True, True]
    # Of five patients the tails of 2.5 % shrink (Hesterberg 2015).
    tail = 100 * stats.norm.cdf(stats.t.ppf(0.025, 4) * 1.25**0.5)
    for column, key in enumerate(("sensitivity", "strict_sensitivity")):
        ends = np.percentile(samples[..., column], (tail, 100 - tail), axis=0).T
        np.testing.assert_allclose(table.loc[is_reached, [f"{key}_low", f"{key}_high"]], ends[is_reached], rtol=1e-12)
    ends = np.percentile(samples[..., 1].mean(axis=1), (tail, 100 - tail))
    np.testing.assert_allclose([scores["froc_low"], scores["froc_high"]], ends, rtol=1e-12)


def test_a_curve_is_read_where_it_has_a_sensitivity(curve):
    steps = pd.DataFrame({"threshold": [0.1, 0.5, 0.9, 0.99], "sensitivity": [0.9, 0.8, 0.4, 0.0]})
    steps["precision"] = [0.2, 0.6, 0.8, np.nan]
    # At .1, the next threshold that finds .85, the precision of .2 says little about what .85 costs.
    between = precision_at_sensitivity(steps, 0.85)
    assert between == pytest.approx({"threshold": 0.3, "sensitivity": 0.85, "precision": 0.4})
    for i in range(3):
        row = steps.iloc[i].to_dict()
        assert precision_at_sensitivity(steps, row["sensitivity"]) == pytest.approx(row)
    assert precision_at_sensitivity(steps, 0.1)["precision"] == 0.8  # where there is no prediction, there is none
    assert np.isnan(precision_at_sensitivity(steps, 0.95)["threshold"])
    for wanted in (0.3, 0.6, 0.85):
        row = precision_at_sensitivity(curve, wanted)
        assert row["sensitivity"] == pytest.approx(max(wanted, curve["sensitivity"].min()))
        assert curve["precision"].min() <= row["precision"] <= curve["precision"].max()


def test_calibration_of_voxels_is_that_of_scikit_learn_with_certain_voxels_in_the_last_bin(ball_scans):
    masks = [None, np.indices(SHAPE)[0] < 12, None, None]
    table = calibration_curve(*ball_scans, masks=masks)
    voxels = table[table["level"] == "voxel"]
    inside = [np.ones(SHAPE, bool) if mask is None else mask for mask in masks]
    truth, values = (
        np.concatenate([one[mask] for one, mask in zip(side, inside, strict=True)]).astype(float) for side in ball_scans
    )
    observed, mean = reference_calibration(truth, values, n_bins=10)
    filled = voxels[voxels["n"] > 0]
    np.testing.assert_allclose(filled["observed"], observed, atol=1e-12)
    np.testing.assert_allclose(filled["probability"], mean, rtol=1e-6)
    assert voxels["n"].sum() == len(truth)
    error = (filled["n"] * (filled["observed"] - filled["probability"]).abs()).sum() / len(truth)
    assert voxels["error"].iloc[0] == pytest.approx(error)
    label = np.zeros((3, 3, 3), int)
    label[0] = 1
    table = calibration_curve([label], [np.where(np.indices((3, 3, 3))[0] < 2, 1.0, 0.0)], masks=[None], n_bins=4)
    voxels = table[table["level"] == "voxel"]
    assert voxels["n"].tolist() == [9, 0, 0, 18]
    assert voxels["observed"].iloc[-1] == 0.5
    assert voxels["error"].iloc[0] == pytest.approx(18 / 27 * 0.5)


def test_calibration_of_components_counts_those_that_hit(ball_scans):
    table = calibration_curve(*ball_scans, masks=[None] * len(ball_scans[0]), threshold=0.4)
    parts = table[table["level"] == "component"]
    row = threshold_curve(*ball_scans, thresholds=[0.4]).iloc[0]
    true = (parts["n"] * parts["observed"].fillna(0)).sum()
    assert parts["n"].sum() - true == pytest.approx(row["n_false_positives"])
    assert parts.loc[parts["high"] <= 0.4, "n"].sum() == 0
