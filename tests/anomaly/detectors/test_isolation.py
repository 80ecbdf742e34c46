"""An isolation forest over voxels: against scikit-learn, with and without places."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from anomaly import IsolationForestDetector
from anomaly.detectors.features import voxel_features


def halves(n, seed=0):
    """Make scans whose left half is dark and whose right half is bright."""
    rng = np.random.default_rng(seed)
    X = np.full((n, 10, 8, 6, 4), 0.7)
    X[:, :5] = 0.3
    return (X + 0.02 * rng.standard_normal(X.shape)).astype(np.float32)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scores_are_those_of_the_forest_over_the_features_whatever_the_jobs(n_jobs):
    X, mask = halves(3), np.ones((10, 8, 6), dtype=bool)
    names = ("mean", "spread")
    detector = IsolationForestDetector(
        names, position=None, n_voxels=10**6, n_estimators=10, smooth_mm=0.0, calibration=None, random_state=0,
        n_jobs=n_jobs,
    ).fit(X)  # fmt: skip
    rows = np.concatenate([voxel_features(scan, mask, names).reshape(2, -1).T for scan in X])
    forest = IsolationForest(n_estimators=10, random_state=detector.forest_.random_state).fit(rows)
    expected = -forest.score_samples(rows).reshape(3, 10, 8, 6)
    np.testing.assert_allclose(detector.anomaly_map(X), expected, rtol=1e-6)


def test_tissue_in_the_wrong_place_is_seen_with_places_only():
    X = halves(12)
    ill = X[:1].copy()
    ill[0, 6:9, 3:6, 2:5] = X[1, 1:4, 3:6, 2:5]  # dark as the other half is
    lesion = np.zeros((10, 8, 6), dtype=bool)
    lesion[6:9, 3:6, 2:5] = True
    auc = {}
    for position in ("world", None):
        detector = IsolationForestDetector(
            ("mean",), position=position, max_samples=4096, smooth_mm=0.0, calibration=None, random_state=0
        ).fit(X[1:])
        auc[position] = roc_auc_score(lesion.ravel(), detector.anomaly_map(ill).ravel())
    assert auc[None] < 0.55 < 0.65 < auc["world"]
    # A slice has one place along its third axis.
    flat = IsolationForestDetector(position="world", calibration=None, random_state=0).fit(X[..., :1, :])
    assert np.isfinite(flat.anomaly_map(X[:1, ..., :1, :])).all()
