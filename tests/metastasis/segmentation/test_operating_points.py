"""Scores over thresholds are those of masks scored singly; operating points are known by hand."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from dmrifit.stats.lesion_matching import lesion_scores, lesion_table
from metastasis.segmentation.operating_points import (
    THRESHOLDS,
    OperatingPointMixin,
    operating_point,
    paired_volumes,
    threshold_curve,
)


def volume(values, shape=(8, 8, 8)):
    """Give a volume of zeros but for some voxels."""
    array = np.zeros(shape)
    for voxel, value in values.items():
        array[voxel] = value
    return array


@pytest.fixture
def small_scans():
    """Give two lesions and two false voxels in one scan, and a false voxel in another."""
    labels = [volume({(1, 1, 1): 1, (5, 5, 5): 1}), volume({})]
    false_voxels = {(1, 5, 1): 0.6, (5, 1, 5): 0.3}
    probabilities = [volume({(1, 1, 1): 0.9, (5, 5, 5): 0.4} | false_voxels), volume({(3, 3, 3): 0.5})]
    return labels, probabilities


def test_a_curve_of_two_lesions_by_hand_where_a_component_over_both_is_strictly_no_hit(small_scans):
    curve = threshold_curve(*small_scans, thresholds=[0.7, 0.2, 0.35, 0.45, 0.55, 0.95])
    assert curve["threshold"].tolist() == [0.2, 0.35, 0.45, 0.55, 0.7, 0.95]
    assert curve["n_lesions"].tolist() == [2] * 6
    assert curve["n_found"].tolist() == curve["n_distinct"].tolist() == [2, 2, 1, 1, 1, 0]
    assert curve["n_false_positives"].tolist() == [3, 2, 2, 1, 0, 0]
    assert curve["n_flagged"].tolist() == [0] * 6
    assert curve["sensitivity"].tolist() == [1, 1, 0.5, 0.5, 0.5, 0]
    precision = [2 / 5, 2 / 4, 1 / 3, 1 / 2, 1, np.nan]
    np.testing.assert_allclose(curve["precision"], precision)
    np.testing.assert_allclose(curve["strict_precision"], precision)
    assert curve["false_positives_per_scan"].tolist() == [1.5, 1, 1, 0.5, 0, 0]
    label = volume({(1, 1, 1): 1, (1, 1, 3): 1, (6, 1, 1): 1})
    bridge = {(1, 1, 1): 0.8, (1, 1, 2): 0.4, (1, 1, 3): 0.8}
    probability = volume(bridge | {(6, 1, 1): 0.8, (6, 6, 6): 0.8})
    curve = threshold_curve([label, label], [probability, volume({})], thresholds=[0.3, 0.5])
    assert curve["n_found"].tolist() == [3, 3]
    assert curve["n_distinct"].tolist() == [1, 3]
    assert curve["n_flagged"].tolist() == [1, 0]
    assert curve["flagged_per_scan"].tolist() == [0.5, 0]
    assert curve["sensitivity"].tolist() == [3 / 6, 3 / 6]
    assert curve["strict_sensitivity"].tolist() == pytest.approx([1 / 6, 3 / 6])
    # One voxel of the first scan is false.
    assert curve["precision"].tolist() == pytest.approx([3 / 4, 3 / 4])
    assert curve["strict_precision"].tolist() == pytest.approx([1 / 3, 3 / 4])


def test_scans_without_lesions_have_no_sensitivity_and_no_operating_point():
    curve = threshold_curve([volume({})], [volume({(1, 1, 1): 0.6})], thresholds=[0.5, 0.7])
    assert curve["sensitivity"].isna().all()
    assert curve["precision"].iloc[0] == 0
    assert np.isnan(curve["precision"].iloc[1])
    point = operating_point([volume({})], [volume({(1, 1, 1): 0.6})], false_positives=0)
    assert np.isnan(point.sensitivity)
    assert np.isnan(point.precision)
    assert point.n_lesions == 0
    assert point.threshold > 0.6


def test_a_probability_at_the_threshold_is_lesion_in_single_precision_too():
    label = volume({(1, 1, 1): 1})
    for kind in (np.float32, np.float64):
        # In single precision .7 lies below the number of double precision.
        probability = volume({(1, 1, 1): 0.7}).astype(kind)
        curve = threshold_curve([label], [probability], thresholds=[0.7, 0.70001])
        assert curve["n_found"].tolist() == [1, 0], kind


def test_each_point_is_the_score_of_its_masks(ball_scans):
    curve = threshold_curve(*ball_scans)
    for row in curve.iloc[[0, 4, 7, 14]].to_dict("records"):
        masks = [values >= row["threshold"] for values in ball_scans[1]]
        scores = lesion_scores(map(lesion_table, ball_scans[0], masks))
        shared = set(row) & set(scores)
        assert len(shared) >= 10
        expected = {key: scores[key] for key in shared}
        assert {key: row[key] for key in shared} == pytest.approx(expected, nan_ok=True)
    assert curve["threshold"].tolist() == list(THRESHOLDS) == sorted(THRESHOLDS)


@pytest.mark.parametrize(
    ("allowed", "threshold", "false_positives", "sensitivity", "precision"),
    [
        (2, 0.2, 1.5, 1, 2 / 5),
        (1.5, 0.2, 1.5, 1, 2 / 5),
        (1, 0.35, 1, 1, 2 / 4),
        (0.9, 0.55, 0.5, 0.5, 1 / 2),
        (0, 0.7, 0, 0.5, 1),
    ],
)
def test_the_operating_point_is_the_lowest_threshold_with_as_few_false_positives(
    small_scans, allowed, threshold, false_positives, sensitivity, precision
):
    steps = [0.95, 0.2, 0.35, 0.45, 0.55, 0.7]
    point = operating_point(*small_scans, false_positives=allowed, thresholds=steps)
    assert (point.threshold, point.false_positives) == (threshold, false_positives)
    assert (point.sensitivity, point.precision) == (sensitivity, pytest.approx(precision))
    assert (point.wanted, point.n_scans, point.n_lesions) == (allowed, 2, 2)


def test_thresholds_to_choose_from_are_even_in_logits_and_passed_over_with_more_false_positives(small_scans):
    # Above a probability of .3, whose logit is -.85, the next quarter is -.75.
    point = operating_point(*small_scans, false_positives=1)
    assert point.threshold == pytest.approx(1 / (1 + np.exp(0.75)))
    certain = volume({(1, 1, 1): 0.9999})
    last = operating_point([volume({}), volume({(1, 1, 1): 1})], [0 * certain, certain], false_positives=0)
    assert last.threshold == pytest.approx(1 / (1 + np.exp(7)))
    # One component at .3, of which three are left at .5 and none at .8.
    chain = volume({(1, 1, i): (0.6, 0.4)[i % 2] for i in range(5)})
    options = {"thresholds": [0.3, 0.5, 0.8]}
    assert operating_point([volume({})], [chain], false_positives=1, **options).threshold == 0.8
    assert operating_point([volume({})], [chain], false_positives=3, **options).threshold == 0.3


def test_an_operating_point_counts_lesions_by_the_options():
    label = volume({(1, 1, 1): 1})
    probability = volume({(1, 1, 1): 0.9, (5, 5, 5): 0.6, (6, 6, 6): 0.6})

    def threshold(allowed, **options):
        options["thresholds"] = [0.5, 0.7]
        return operating_point([label], [probability], false_positives=allowed, **options).threshold

    assert threshold(1) == 0.5
    assert (threshold(0), threshold(0, min_voxels=3), threshold(0, min_voxels=[3])) == (0.7, 0.5, 0.5)
    curve = threshold_curve([label], [probability], thresholds=[0.5], min_voxels=2)
    assert (curve["n_found"].item(), curve["n_false_positives"].item()) == (0, 1)


class Constant(OperatingPointMixin, BaseEstimator):
    """Finds a lesion and a false voxel; the smallest finding of a scan is its value."""

    __sklearn_is_fitted__ = fit = min_voxels_on = lambda self, volume=1: int(np.max(volume))

    def predict_proba(self, volumes, **_):
        return [volume({(1, 1, 1): 0.9, (5, 5, 5): 0.6})] * len(volumes)


def test_the_smallest_finding_may_be_another_in_each_scan():
    model = Constant().set_operating_point(
        [np.ones((8, 8, 8)), np.full((8, 8, 8), 3.0)], [volume({(1, 1, 1): 1})] * 2, false_positives=0.5
    )
    assert model.threshold_ < 0.6


def test_fewer_false_positives_at_every_higher_threshold_than_the_operating_point(ball_scans):
    for allowed in (0, 1, 4):
        point = operating_point(*ball_scans, false_positives=allowed)
        assert point.n_scans == 4
        assert point.wanted == allowed
        fine = threshold_curve(*ball_scans, thresholds=1 / (1 + np.exp(-np.linspace(-7, 7, 57))))
        wrong = fine["false_positives_per_scan"] + fine["flagged_per_scan"]
        above = fine["threshold"] >= point.threshold
        assert (wrong[above] <= allowed).all()
        below = wrong[~above]
        assert below.iloc[-1] > allowed
        row = fine[above].iloc[0]
        assert (point.sensitivity, point.false_positives) == (row["sensitivity"], row["false_positives_per_scan"])


def test_an_operating_point_that_no_threshold_reaches_is_refused_and_one_where_all_grows_together():
    label = np.zeros((9, 9, 9), bool)
    label[4, 4, 4] = True
    probability = np.full(label.shape, 0.3)  # one component over everything, with the lesion inside
    probability[label] = 0.8
    assert operating_point([label], [probability], false_positives=0).threshold > 0.3
    assert operating_point([label], [probability], false_positives=1).threshold < 0.3
    label, certain = np.zeros((5, 5, 5), bool), np.ones((5, 5, 5))
    with pytest.raises(ValueError, match=r"not 0\.5 or fewer"):
        operating_point([label], [certain], false_positives=0.5)
    with pytest.raises(ValueError, match="at least 0"):
        operating_point([label], [certain], false_positives=-1)


def test_pairs_keep_their_precision_and_masks_are_probabilities():
    label = volume({(1, 1, 1): 1}).astype(np.uint8)
    pairs = paired_volumes([label, label], [label.astype(np.float32) / 3, label > 0])
    assert [truth.dtype for truth, _ in pairs] == [bool] * 2
    assert [probability.dtype for _, probability in pairs] == [np.float32, np.bool_]
    assert [probability[1, 1, 1] for _, probability in pairs] == [np.float32(1 / 3), True]
