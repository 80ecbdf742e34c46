"""Scores from places: against closed forms, scipy and scikit-learn."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from anomaly import OneMinusMean, VoxelwiseGaussian
from anomaly.detectors.gaussian import Design
from dmrifit import load_model, save_model

PLAIN = {"smoothing": 0.0, "template_smoothing": 0.0, "smooth_mm": 0.0, "prior_scans": 0.0, "calibration": None}


def scans(n, *, seed=0, shape=(6, 5, 4), n_channels=3):
    return np.random.default_rng(seed).uniform(0.1, 0.9, (n, *shape, n_channels)).astype(np.float32)


@pytest.mark.parametrize("features", ["mean", "channels"])
def test_plain_scores_are_those_of_a_prediction_interval(features):
    X, new = scans(12), scans(2, seed=1)
    values, own = (X.mean(axis=-1), new.mean(axis=-1)) if features == "mean" else (X, new)
    z = (own - values.mean(axis=0)) / (values.std(axis=0, ddof=1) * np.sqrt(1 + 1 / 12))
    z = z if features == "mean" else z.mean(axis=-1)
    for side, expected in (("high", z), ("low", -z), ("both", np.abs(z))):
        found = VoxelwiseGaussian(features, side=side, **PLAIN).fit(X).anomaly_map(new)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


def test_a_mahalanobis_distance_is_that_of_pooled_correlations_without_features_that_are_constant():
    rng = np.random.default_rng(3)
    factor = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])
    X = 0.5 + 0.05 * rng.standard_normal((40, 8, 8, 6, 3)) @ factor.T
    detector = VoxelwiseGaussian("channels", distance="mahalanobis", **PLAIN).fit(X)
    expected = 0.95 * factor @ factor.T + 0.05 * np.eye(3)
    np.testing.assert_allclose(detector.correlation_, expected, atol=0.02)
    new = X[:1]
    z = (new - X.mean(axis=0)) / (X.std(axis=0, ddof=1) * np.sqrt(1 + 1 / 40))
    squared = np.einsum("...i,ij,...j->...", z, np.linalg.inv(detector.correlation_), z) / 3
    np.testing.assert_allclose(detector.anomaly_map(new), np.sqrt(squared), rtol=2e-3)
    X, new = scans(12), scans(2, seed=1)
    # Where all masks are equal, so is the distance from their edge.
    one = VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis", **PLAIN).fit(X)
    two = VoxelwiseGaussian(("mean", "depth", "spread"), distance="mahalanobis", **PLAIN).fit(X)
    expected = one.anomaly_map(new) * np.sqrt(2 / 3)
    np.testing.assert_allclose(two.anomaly_map(new), expected, rtol=1e-5)
    np.testing.assert_array_equal(two.correlation_[1], [0, 1, 0])
    # With one direction there is no spread.
    first, last = X[..., :1], new[..., :1]
    alone = VoxelwiseGaussian(("mean",), **PLAIN).fit(first).anomaly_map(last)
    found = VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis", **PLAIN).fit(first).anomaly_map(last)
    np.testing.assert_allclose(found, alone / np.sqrt(2), rtol=1e-4)


def test_covariates_are_regressed_out_as_by_scikit_learn():
    rng = np.random.default_rng(5)
    n, shape = 24, (5, 5, 4)
    table = pd.DataFrame({
        "age": rng.uniform(20, 80, n), "sex": rng.choice(["f", "m"], n), "site": rng.choice(["a", "b", "c"], n),
        "scanner": "same",
    })  # fmt: skip
    effect = 0.004 * (table.age - 50) + 0.1 * (table.sex == "m") - 0.05 * (table.site == "c")
    X = 0.5 + effect.to_numpy().reshape(n, 1, 1, 1, 1) + 0.01 * rng.standard_normal((n, *shape, 2))
    detector = VoxelwiseGaussian(side="high", **PLAIN).fit(X[:20], covariates=table[:20])
    columns = pd.get_dummies(table.drop(columns="scanner"), drop_first=True).astype(float)
    model = LinearRegression().fit(columns[:20], X[:20].mean(axis=-1).reshape(20, -1))
    rest = X[:20].mean(axis=-1).reshape(20, -1) - model.predict(columns[:20])
    variance = (rest**2).sum(axis=0) / (20 - 5)
    z = (X[20:].mean(axis=-1).reshape(4, -1) - model.predict(columns[20:])) / np.sqrt(variance * (1 + 1 / 20))
    found = detector.anomaly_map(X[20:], covariates=table[20:])
    np.testing.assert_allclose(found.reshape(4, -1), z, rtol=0.01, atol=0.01)


def test_covariates_count_where_masks_differ():
    rng = np.random.default_rng(6)
    n, age = 16, rng.uniform(20, 80, 16)
    X = 0.5 + 0.004 * (age - 50).reshape(n, 1, 1, 1, 1) + 0.01 * rng.standard_normal((n, 4, 4, 4, 1))
    masks = rng.random((n, 4, 4, 4)) < 0.8
    masks[:, 0, 0, 0] = True
    X[~masks] = 7.0
    detector = VoxelwiseGaussian(side="high", **PLAIN).fit(X, masks, covariates={"age": age})
    at = (1, 2, 3)
    seen = masks[(slice(None), *at)]
    standard = (age - age.mean()) / age.std()
    slope, intercept, *_ = stats.linregress(standard[seen], X[(slice(None), *at)][seen, 0])
    np.testing.assert_allclose(detector.coefficients_[(0, slice(None), *at)], [intercept, slope], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(detector.counts_, masks.sum(axis=0))


def test_places_that_no_healthy_scan_has_and_equal_scans_give_finite_scores():
    X, masks = scans(10), np.ones((10, 6, 5, 4), dtype=bool)
    masks[:, 0] = False
    detector = VoxelwiseGaussian(**PLAIN).fit(X, masks)
    np.testing.assert_array_equal(detector.coefficients_[0, 0, 0], detector.coefficients_[0, 0, 1])
    assert np.isfinite(detector.anomaly_map(X)).all()
    X = np.full((4, 5, 5, 5, 2), 0.5)
    new = X[:1].copy()
    new[0, 2, 2, 2] = 0.4
    found = VoxelwiseGaussian(**PLAIN).fit(X).anomaly_map(new)
    assert np.isfinite(found).all()
    assert found[0].argmax() == np.ravel_multi_index((2, 2, 2), (5, 5, 5))


def test_variances_are_drawn_towards_their_median():
    X = scans(5)
    own, drawn, flat = (VoxelwiseGaussian(**(PLAIN | {"prior_scans": k})).fit(X).variance_ for k in (0.0, 4.0, 1e9))
    assert np.ptp(flat) < 1e-6 < np.ptp(drawn) < np.ptp(own)
    np.testing.assert_allclose(flat, np.median(own), rtol=1e-4)
    np.testing.assert_allclose(drawn, (own + np.median(own)) / 2, rtol=1e-4)


def test_memory_does_not_grow_with_the_number_of_scans():
    peaks = []
    X = np.random.default_rng(0).random((16, 24, 24, 24, 2), dtype=np.float32)
    for n in (4, 16):
        detector = VoxelwiseGaussian(calibration=None)
        masks = np.ones((n, 24, 24, 24), dtype=bool)
        tracemalloc.start()
        detector.fit(list(X[:n]), masks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Twelve more scans, and less than one volume more.
    assert peaks[1] < peaks[0] + 24**3 * 4


def test_one_minus_the_mean_is_what_it_says():
    X, masks = scans(3), np.ones((3, 6, 5, 4), dtype=bool)
    masks[:, 0] = False
    found = OneMinusMean(smooth_mm=0.0).fit(X, masks).anomaly_map(X, masks)
    np.testing.assert_allclose(found[masks], 1 - X.mean(axis=-1)[masks], rtol=1e-5)


def test_a_model_file_keeps_covariates_whose_levels_are_the_same_as_words_and_as_numbers(tmp_path):
    X = scans(9)
    # A level that one fold alone has is no error.
    table = pd.DataFrame({"age": np.linspace(20, 80, 9), "site": list("abaabaabc")})
    detector = VoxelwiseGaussian(calibration=3).fit(X, covariates=table)
    save_model(detector, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    np.testing.assert_array_equal(loaded.anomaly_map(X, covariates=table), detector.anomaly_map(X, covariates=table))
    with pytest.raises(ValueError, match="site is d"):
        loaded.predict(X[:1], covariates={"age": [30], "site": ["d"]})
    design = Design.learn({"site": ["1", "2", "2", "3"]}, 4)
    for sites in (["2", "1", "3"], [2, 1, 3]):
        np.testing.assert_array_equal(design.matrix({"site": sites}, 3), [[1, 1, 0], [1, 0, 0], [1, 0, 1]])
    with pytest.raises(ValueError, match="covariate site is 4, and the healthy subjects have 1, 2, 3"):
        design.matrix({"site": [4]}, 1)
    ages = [31.5, 40, 62]
    expected = Design.learn({"age": ages}, 3)
    assert (expected.n_columns, expected.columns[0]["low"], expected.columns[0]["high"]) == (2, 31.5, 62)
    # The first model files do not hold the range.
    assert Design.from_json([{"name": "age", "mean": 50, "sd": 9.5}]).n_columns == 2
    for column in (np.array(ages, dtype=object), pd.array(ages, dtype="Float64")):
        design = Design.learn(pd.DataFrame({"age": column}), 3)
        assert design.columns == expected.columns
        np.testing.assert_allclose(design.matrix({"age": column}, 3), expected.matrix({"age": ages}, 3))


WORDS, NUMBERS = ["a", None, "b"], [1.0, float("nan"), 3.0]
MISSING = [pd.array(WORDS, dtype="string"), np.array(WORDS, dtype=object), np.array(["a", NUMBERS[1], "b"], dtype=object)]
MISSING += [["a", "", "b"], ["a", NUMBERS[1], "b"], pd.array([1, None, 3], dtype="Int64"), NUMBERS]
