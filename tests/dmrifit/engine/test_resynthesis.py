"""Signals of another protocol, through a fitted model."""

import numpy as np

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.resynthesis import resynthesize

MODEL = MODELS["t2-ivim-kurtosis"]
ONE, TWO = Protocol.preset("cohort1"), Protocol.preset("cohort2")
TISSUE = np.tile([[200.0, 0.15, 25.0, 200.0, 1.1, 0.8, 70.0], [300.0, 0.1, 15.0, 180.0, 1.5, 0.5, 90.0]], (200, 1))
CLEAN = MODEL.signal(TISSUE, ONE)


def test_signals_of_another_scanner_are_those_of_the_model_and_what_was_measured_is_kept():
    found = resynthesize(CLEAN[:4], ONE, TWO, MODEL)
    np.testing.assert_allclose(found, MODEL.signal(TISSUE[:4], TWO), rtol=1e-4)
    noisy = CLEAN * np.random.default_rng(0).uniform(0.9, 1.1, CLEAN.shape)
    found = resynthesize(noisy, ONE, TWO, MODEL, parameters=TISSUE, sigma=5.0, random_state=0)
    both = [i for i, label in enumerate(TWO.labels) if label in ONE.labels]
    assert 0 < len(both) < len(TWO)
    np.testing.assert_array_equal(found[:, both], noisy[:, TWO.take(both).indices_in(ONE)])
    rest = [i for i in range(len(TWO)) if i not in both]
    plain = resynthesize(noisy, ONE, TWO, MODEL, parameters=TISSUE)
    np.testing.assert_array_equal(plain[:, rest], MODEL.signal(TISSUE, TWO.take(rest)))
    assert np.all(found[:, rest] != plain[:, rest])
    np.testing.assert_array_equal(resynthesize(noisy, ONE, ONE.take([3, 1]), MODEL), noisy[:, [3, 1]])


def test_added_noise_is_rician_of_the_level_asked_for_and_the_fit_has_its_floor():
    """E[S²] = A² + 2σ² for any amplitude A, and the noise of one voxel is not that of another."""
    sigma = np.where(np.arange(400) % 2, 20.0, 5.0)
    wanted = Protocol([200, 700, 3000], te=[93, 93, 120])
    found = resynthesize(CLEAN, ONE, wanted, MODEL, parameters=TISSUE, sigma=sigma, random_state=1)
    excess = found**2 - MODEL.signal(TISSUE, wanted) ** 2
    for level in (5.0, 20.0):
        rows = excess[sigma == level]
        assert abs(rows.mean() / (2 * level**2) - 1) < 5 * rows.std() / np.sqrt(rows.size) / (2 * level**2)
    assert len(np.unique(found)) == found.size
    rng = np.random.default_rng(2)
    noisy = np.hypot(CLEAN + 4 * rng.standard_normal(CLEAN.shape), 4 * rng.standard_normal(CLEAN.shape))
    floored = fit_voxels(noisy, ONE, MODEL, sigma=4.0).parameters
    expected = resynthesize(noisy, ONE, TWO, MODEL, parameters=floored, sigma=4.0, random_state=3)
    np.testing.assert_array_equal(resynthesize(noisy, ONE, TWO, MODEL, sigma=4.0, random_state=3), expected)
    other = resynthesize(noisy, ONE, TWO, MODEL, sigma=4.0, random_state=4)
    assert not np.array_equal(other, expected)


def test_voxels_that_cannot_be_fitted_keep_what_was_measured():
    signals = CLEAN[:3].copy()
    signals[1] *= -1.0
    found = resynthesize(signals, ONE, Protocol([0, 500], te=93), MODEL)
    assert np.isfinite(found[[0, 2]]).all()
    assert found[1, 0] == signals[1, 0]
    assert np.isnan(found[1, 1])
