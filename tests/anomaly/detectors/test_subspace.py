"""Residuals of principal components, against those of scikit-learn."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from anomaly import PCADetector


def scans(n, *, seed=0, shape=(6, 5, 4), n_channels=3):
    return np.random.default_rng(seed).uniform(0.1, 0.9, (n, *shape, n_channels)).astype(np.float32)


@pytest.mark.parametrize("residual", ["mean", "mean-of-abs"])
def test_components_and_residuals_are_those_of_scikit_learn(residual):
    X, new = scans(10), scans(2, seed=1)
    reference = PCA(4, svd_solver="full").fit(X.reshape(10, -1))
    detector = PCADetector(4, residual=residual, smooth_mm=0.0, calibration=None).fit(X)
    np.testing.assert_allclose(detector.explained_variance_, reference.explained_variance_, rtol=1e-4)
    cosines = (detector.components_.reshape(4, -1) * reference.components_).sum(axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, rtol=1e-4)
    rebuilt = reference.inverse_transform(reference.transform(new.reshape(2, -1))).reshape(new.shape)
    np.testing.assert_allclose(detector.reconstruct(new), rebuilt, atol=1e-4)
    rest = new - rebuilt
    expected = np.abs(rest.mean(axis=-1)) if residual == "mean" else np.abs(rest).mean(axis=-1)
    np.testing.assert_allclose(detector.anomaly_map(new), expected, atol=1e-4)


def test_healthy_scans_of_a_plane_are_rebuilt_and_a_lesion_is_not():
    rng = np.random.default_rng(2)
    plane = rng.uniform(0, 0.1, (2, 8, 8, 6, 5))
    X = (0.4 + np.einsum("nk,k...->n...", rng.uniform(-1, 1, (12, 2)), plane)).astype(np.float32)
    detector = PCADetector(20, smooth_mm=0.0, calibration=None).fit(X[1:])
    assert len(detector.components_) == 2
    ill = X[:1].copy()
    ill[0, 2:4, 2:4, 2:4] -= 0.2
    assert detector.anomaly_map(X[:1]).max() < 1e-3
    score = detector.anomaly_map(ill)[0]
    lesion = np.zeros(score.shape, dtype=bool)
    lesion[2:4, 2:4, 2:4] = True
    assert score[lesion].min() > 3 * score[~lesion].max()


@pytest.mark.parametrize("has_masks", [True, False])
def test_volumes_may_be_loaded_when_asked_for(has_masks):
    class Loaded:
        def __init__(self, volumes):
            self.volumes, self.reads = volumes, np.zeros(len(volumes), dtype=int)

        def __len__(self):
            return len(self.volumes)

        def __getitem__(self, i):
            self.reads[i] += 1
            return self.volumes[i].copy()

    X, masks = scans(5), np.ones((5, 6, 5, 4), dtype=bool)
    masks[1, 3] = False
    files = [Loaded(X), Loaded(masks)][: 1 + has_masks]
    learned = PCADetector(3, calibration=None).fit(*files)
    expected = PCADetector(3, calibration=None).fit(*[X, masks][: 1 + has_masks])
    for name in PCADetector._array_names:
        np.testing.assert_array_equal(getattr(learned, name), getattr(expected, name))
    assert all(volumes.reads.max() <= 3 for volumes in files)


def test_brains_wider_than_those_learned_from_are_scored_where_they_are_known():
    X, masks = scans(8), np.ones((8, 6, 5, 4), dtype=bool)
    masks[:, 0] = False
    found = PCADetector(3, smooth_mm=0.0, calibration=None).fit(X, masks).anomaly_map(X)
    assert not found[:, 0].any()
    assert found[:, 1:].any()
