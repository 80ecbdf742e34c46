"""The aligned Mahalanobis distance finds what differs in both directions, and needs no lesion."""

import numpy as np
import pytest
from sklearn.base import clone

from anomaly import AlignedMahalanobis
from anomaly.detectors.template import Deviations, Smoother, look_of, template_at
from dmrifit import load_model, save_model

SHAPE = (12, 13, 11)
MASK = np.linalg.norm(np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2, axis=0) < 5.4
CUBE = (slice(4, 8), slice(4, 8), slice(4, 8))


def people(n, seed):
    rng = np.random.default_rng(seed)
    pattern = 0.4 + 0.1 * np.sin(0.8 * np.indices(SHAPE).sum(axis=0))[..., None]
    signals = pattern + 0.03 * rng.standard_normal((n, *SHAPE, 6))
    return (signals * MASK[..., None]).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return AlignedMahalanobis(calibration=0.25).fit(people(8, 0), [MASK] * 8)


@pytest.mark.parametrize("change", [-0.12, 0.12])
def test_lesions_of_both_directions_are_found(fitted, change):
    (scan,) = people(1, 5)
    scan[CUBE] += change
    scores = fitted.anomaly_map([scan], [MASK])[0]
    assert scores[5:7, 5:7, 5:7].min() > np.quantile(scores[MASK], 0.9)
    assert not scores[~MASK].any()


def test_a_change_of_the_spread_alone_is_found(fitted):
    (scan,) = people(1, 6)
    scan[CUBE] += np.array([0.15, -0.15] * 3, dtype=np.float32)
    scores = fitted.anomaly_map([scan], [MASK])[0]
    assert scores[5:7, 5:7, 5:7].min() > np.quantile(scores[MASK], 0.9)


def test_scores_are_mahalanobis_distances_of_smoothed_deviations(fitted):
    (scan,) = people(1, 7)
    look = look_of(scan, MASK)
    expected = template_at(fitted.template_, fitted._aligned(look))
    deviations, smooth = Deviations.of(look, expected), Smoother(MASK)
    z = np.stack([smooth(deviations.z_mean, 1.0)[MASK], smooth(deviations.z_spread, 1.0)[MASK]])
    distances = np.zeros(SHAPE)
    distances[MASK] = [
        np.sqrt(row @ np.linalg.solve(fitted.covariance_, row) / 2) for row in z.T.astype(float)
    ]
    np.testing.assert_allclose(
        fitted.anomaly_map([scan], [MASK])[0], smooth(distances, 1.5), rtol=1e-3, atol=1e-5
    )


def test_lengths_are_in_mm_of_voxels_of_the_stated_edge():
    healthy = people(5, 1)
    (scan,) = people(1, 8)
    options = {"calibration": None}
    maps = [
        AlignedMahalanobis(feature_mm=k * 4.0, smooth_mm=k * 6.0, spacing=k * 4.0, **options)
        .fit(healthy, [MASK] * 5)
        .anomaly_map([scan], [MASK])
        for k in (1, 2)
    ]
    np.testing.assert_array_equal(*maps)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"spacing": 0}, "spacing"), ({"smooth_mm": -1}, "smooth_mm"), ({"smoothness": 0}, "smooth")],
)
def test_lengths_that_are_none_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        AlignedMahalanobis(**options).fit(people(4, 1), [MASK] * 4)


def test_too_few_scans_are_refused():
    with pytest.raises(ValueError, match="scans of 3 subjects"):
        AlignedMahalanobis(calibration=None).fit(people(2, 1), [MASK] * 2)
    with pytest.raises(ValueError, match="4 scans to learn from, of 2 subjects"):
        AlignedMahalanobis(calibration=None).fit(people(4, 1), [MASK] * 4, groups=list("aabb"))


def test_model_files_score_the_same(fitted, tmp_path):
    save_model(fitted, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    scans = people(2, 9)
    np.testing.assert_array_equal(
        loaded.anomaly_map(scans, [MASK] * 2), fitted.anomaly_map(scans, [MASK] * 2)
    )
    assert loaded.get_params() == clone(fitted).get_params()
