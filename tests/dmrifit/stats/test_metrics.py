"""Scores of a prediction against a reference."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from dmrifit.stats.metrics import (
    bias_index,
    dice,
    dispersion_index,
    median_absolute_error,
    pearson,
    relative_error_counts,
    skill_scores,
    spearman,
)


@pytest.fixture
def reference():
    return np.random.default_rng(0).gamma(2.0, 1.0, 400)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 287, 288])
def test_medians_and_quartiles_have_the_bits_of_numpy(n):
    # Errors of very different size, between which interpolation rounds.
    prediction = np.random.default_rng(n).standard_cauchy((n, 200)) ** 3
    ones = np.ones_like(prediction)
    errors = prediction - ones
    low, middle, high = np.percentile(errors, [25, 50, 75], axis=0)
    np.testing.assert_array_equal(bias_index(prediction, ones), middle)
    np.testing.assert_array_equal(dispersion_index(prediction, ones), high - low)
    np.testing.assert_array_equal(median_absolute_error(prediction, ones), np.median(abs(errors), axis=0))


def test_five_voxels_by_hand_and_none_that_is_usable():
    # E = -0.5, 0, 0.25, 0.5, 2: median 0.25, quartiles 0 and 0.5.
    reference = np.array([2.0, 4.0, 4.0, -2.0, 1.0])
    prediction = np.array([1.0, 4.0, 5.0, -3.0, 3.0])
    assert (bias_index(prediction, reference), dispersion_index(prediction, reference)) == (0.25, 0.5)
    assert median_absolute_error(prediction, reference) == 0.5
    assert relative_error_counts(prediction, reference) == (5, 0, 0)
    assert skill_scores(prediction, reference, 2.0, relative=False) == pytest.approx((4 / 9, 1, 1.8, 5))
    assert skill_scores(prediction, reference, 2.0, relative=True) == pytest.approx((0.1875, 0.65, 0.8, 5))
    prediction, reference = np.array([1.0, 2.0]), np.array([0.0, np.nan])
    for index in (bias_index, dispersion_index, median_absolute_error):
        assert np.isnan(index(prediction, reference))
    assert relative_error_counts(prediction, reference) == (0, 2, 0)
    assert np.isnan(bias_index([], []))


def test_voxels_without_a_relative_error_are_dropped_and_counted(reference):
    prediction = 0.8 * reference
    reference[:3] = 0.0
    reference[3:5] = [np.nan, np.inf]
    prediction[0] = np.nan
    prediction[5:7] = [np.nan, -np.inf]
    reference[7] = 5e-324
    assert relative_error_counts(prediction, reference) == (392, 6, 2)
    assert bias_index(prediction, reference) == pytest.approx(-0.2)
    assert np.isfinite(dispersion_index(prediction, reference))


@pytest.mark.parametrize("score", [bias_index, dispersion_index, pearson, spearman])
def test_columns_are_scored_each_for_itself(score):
    rng = np.random.default_rng(2)
    reference = rng.gamma(2.0, 1.0, (100, 3))
    prediction = reference + rng.normal(0, [0.1, 0.5, 1.0], (100, 3))
    columns = score(prediction, reference)
    assert columns.shape == (3,)
    assert columns.tolist() == [score(prediction[:, i], reference[:, i]) for i in range(3)]


def test_correlations_agree_with_numpy_and_with_pearson_of_ranks(reference):
    prediction = np.sqrt(reference) + np.random.default_rng(3).normal(0, 0.1, 400)
    assert pearson(prediction, reference) == pytest.approx(np.corrcoef(prediction, reference)[0, 1])
    ranks = np.corrcoef(stats.rankdata(prediction), stats.rankdata(reference))[0, 1]
    assert spearman(prediction, reference) == pytest.approx(ranks)
    assert spearman(np.exp(reference), reference) == pytest.approx(1.0)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlation_leaves_out_gaps_and_is_nan_for_a_constant(correlation, reference):
    prediction = reference[::-1].copy()
    expected = correlation(prediction[2:], reference[2:])
    prediction[0], reference[1] = np.nan, np.inf
    assert correlation(prediction, reference) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(correlation(np.full(400, 3.0), reference))
    assert np.isnan(correlation([1.0], [2.0]))


def test_dice_by_hand_and_at_its_ends():
    a = np.array([[1, 1, 0], [0, 0, 0]], bool)
    b = np.array([[0, 1, 1], [1, 0, 0]], bool)
    assert dice(a, b) == 2 * 1 / (2 + 3)
    assert (dice(a, a), dice(a, ~a)) == (1.0, 0.0)
    assert np.isnan(dice(np.zeros(4), np.zeros(4)))
    with pytest.raises(ValueError, match="NaN"):
        dice(np.array([np.nan, 1.0]), np.array([0.0, 1.0]))


def test_scores_load_no_scientific_library():
    code = "import sys, dmrifit.stats.metrics; print({'scipy', 'sklearn', 'pandas'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
