"""What detectors with a network share: residuals, signals from 0 to 1, the first level, scores, model files."""

import json

import numpy as np
import pytest
from sklearn.base import clone

pytest.importorskip("skorch")

from anomaly import DenoisingAutoencoder, OtsuThreshold
from anomaly.detectors.network_base import residual_map
from dmrifit import load_model, save_model
from dmrifit.networks.training import gather_training

pytestmark = pytest.mark.deep

SMALL = {"latent_dim": 3, "widths": (4, 6), "epochs": 1, "batch_size": 2, "learning_rate": 0.001}
SMALL |= {"schedule": "constant", "dense": None, "random_state": 0, "device": "cpu"}
# The form of the publication; the other one has tests of its own.
SMALL |= {"residual": "mean", "latent": "vector", "aligned": False, "smooth_mm": 0.0}


def small(**options):
    return DenoisingAutoencoder(**gather_training(SMALL | options))


def scans(n=6, seed=0):
    """Make healthy scans of three directions with levels of their own."""
    rng = np.random.default_rng(seed)
    grid = np.indices((10, 11, 7)) / np.array([10, 11, 7])[:, None, None, None] - 0.5
    mask = (grid**2).sum(axis=0) < 0.2
    levels = np.array([0.3, 0.5, 0.7]) * rng.uniform(0.9, 1.1, (n, 1, 1, 1, 3))
    X = np.clip(levels + rng.normal(0, 0.02, (n, *mask.shape, 3)), 0, 1).astype(np.float32)
    return X * mask[..., None], np.repeat(mask[None], n, axis=0)


@pytest.fixture(scope="module")
def world():
    return scans()


@pytest.fixture(scope="module")
def fitted(world):
    return small().fit(*world)


# Residuals ----------------------------------------------------------------------------------------


def test_a_scaled_reconstruction_ends_at_one():
    scan = np.array([1.0, 0.5, 0.0], dtype=np.float32).reshape(1, 3, 1, 1)
    inside = np.ones(scan.shape[1:], dtype=bool)
    scaled = DenoisingAutoencoder(residual="mean", scale="image", smooth_mm=0.0)
    # Half of the scan, scaled by its largest value, is the scan.
    assert not scaled._scored({"scan": scan, "reconstruction": scan / 2}, inside).any()
    np.testing.assert_allclose(residual_map(scan, scan / 2, "mean").ravel(), [-0.5, -0.25, 0])
    nothing = np.zeros_like(scan)
    np.testing.assert_array_equal(scaled._scored({"scan": scan, "reconstruction": nothing}, inside), scan[0])


# What is learned ----------------------------------------------------------------------------------


class Watched(DenoisingAutoencoder):
    """Keep the level that the network begins with."""

    def _leveled(self, module):
        self.seen_level_ = self.__dict__.get("_level")
        return super()._leveled(module)


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
def test_the_first_level_is_the_mean_of_each_channel_in_the_brains(world, output):
    X, masks = world
    model = Watched(**gather_training(SMALL), output=output, calibration=None).fit(X, masks)
    np.testing.assert_allclose(model.seen_level_, X[masks].mean(axis=0, dtype=np.float64), rtol=1e-6)
    whole = Watched(**gather_training(SMALL), output=output, calibration=None, region="volume").fit(X, masks)
    assert whole.seen_level_ is None


def test_the_network_begins_with_the_mean_signal(world):
    X, masks = world
    model = small(epochs=1, learning_rate=1e-30, calibration=None).fit(X, masks)
    means = model.reconstruct(X, masks)[masks].mean(axis=0)
    np.testing.assert_allclose(means, X[masks].mean(axis=0), atol=0.15)
    assert not hasattr(model, "_level")
    assert not hasattr(model, "_masks")


def test_a_twentieth_of_the_values_may_lie_beyond_the_signal_without_weighting(fitted, world):
    X, masks = world
    scan, mask = X[:1].copy(), masks[:1]
    values = scan[mask].ravel()
    for share, is_refused in ((0.045, False), (0.07, True)):
        # Values above 1 and below 0, in the brain alone.
        n = round(share * values.size)
        changed = values.copy()
        changed[: n // 2], changed[n // 2 : n] = 1.2, -0.1
        scan[mask] = changed.reshape(-1, 3)
        scan[~mask] = 7.0
        if is_refused:
            with pytest.raises(ValueError, match="7 % of its values in the brain are not from 0 to 1"):
                fitted.anomaly_map(scan, mask)
        else:
            assert np.isfinite(fitted.anomaly_map(scan, mask)).all()
    with pytest.raises(ValueError, match="divide signals by the one at b = 0"):
        small().fit(500 * X, masks)


def test_subjects_in_groups_are_held_back_together(world):
    X, masks = world
    seen = []

    class Listening(DenoisingAutoencoder):
        def _fit_scans(self, scans):
            seen.append(scans.groups.tolist())
            super()._fit_scans(scans)

    Listening(**gather_training(SMALL), calibration=0.34).fit(X, masks, groups=[7, 7, 8, 8, 9, 9])
    (learned,) = seen
    assert len(learned) == 4
    assert all(learned.count(name) == 2 for name in set(learned))


# Answers ------------------------------------------------------------------------------------------


def test_a_reconstruction_is_zero_outside_the_mask(fitted, world):
    X, masks = world
    reconstruction = fitted.reconstruct(X, masks)
    assert reconstruction.shape == X.shape
    assert reconstruction.dtype == np.float32
    assert not reconstruction[~masks].any()
    assert reconstruction[masks].all()
    with pytest.raises(ValueError, match="2 directions"):
        fitted.reconstruct(X[..., :2], masks)


def test_the_score_is_the_error_in_the_brain(fitted, world):
    X, masks = world
    errors = np.square(X - fitted.reconstruct(X, masks)).mean(axis=-1)
    known = -np.mean([error[mask].mean() for error, mask in zip(errors, masks, strict=True)])
    assert fitted.score(X, masks) == pytest.approx(known, rel=1e-4)


# Model files --------------------------------------------------------------------------------------


def test_the_rule_is_stored_too(world, tmp_path):
    model = small(threshold=OtsuThreshold(), scale="image").fit(*world)
    save_model(model, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    assert isinstance(loaded.threshold, OtsuThreshold)
    assert loaded.threshold_.threshold_ == model.threshold_.threshold_
    np.testing.assert_array_equal(loaded.predict(*world), model.predict(*world))


def test_files_that_were_altered_are_refused(fitted):
    parameters, stored, files = fitted.stored()
    json.dumps([parameters, stored])
    for change in ({"shape_": {"$tuple": [1, 2]}}, {"threshold": {"rule": "os", "parameters": {}, "fitted": {}}}):
        with pytest.raises(Exception, match=r"its scans have|no threshold rule"):
            clone(fitted).restore(stored | change, files)
    with pytest.raises(Exception, match="fitted attribute"):
        clone(fitted).restore({key: value for key, value in stored.items() if key != "rule"}, files)
