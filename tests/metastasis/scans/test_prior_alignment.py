"""Alignment of a prior: a textured brain that was moved comes back, and what is new stays new."""

import numpy as np
import pytest
from scipy import ndimage

from metastasis.scans.prior_alignment import aligned_prior

SHAPE = (44, 40, 42)
PLACES = np.stack(np.indices(SHAPE), axis=-1).astype(float)
BRAIN = np.linalg.norm((PLACES - 20) / (20, 18, 19), axis=-1) < 1
BALL = np.linalg.norm(PLACES - (14, 20, 20), axis=-1) < 2.6


@pytest.fixture(scope="module")
def head():
    """Make tissue of three levels with folds, which reaches beyond the brain."""
    folds = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 2.2)
    folds /= folds.std()
    tissue = np.where(folds > 0.3, 1.0, np.where(folds > -1.2, 0.75, 0.3))
    return ndimage.gaussian_filter(tissue, 0.6)


def moved(values, shift, degrees):
    """Turn a volume about its third axis, and shift it."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return ndimage.affine_transform(values, turn, 20 - turn @ np.full(3, 20.0) + shift, order=3, mode="nearest")


def noisy(values, seed):
    return (100 * values + np.random.default_rng(seed).normal(0, 2, SHAPE)) * BRAIN


def test_a_displaced_prior_comes_back(head):
    deep = ndimage.distance_transform_edt(BRAIN) > 3
    image = noisy(head, 1)
    prior = noisy(moved(head, (1.1, -0.8, 0.9), 2.0), 2)
    back = aligned_prior(image, 1.3 * prior, BRAIN, np.ones(3)) / 1.3
    before, after = (np.abs(image - values)[deep].mean() for values in (prior, back))
    same = np.abs(image - noisy(head, 3))[deep].mean()
    assert before > 2.5 * same
    assert after < 1.1 * same
    assert not back[~BRAIN].any()


def test_a_new_lesion_draws_nothing_to_it(head):
    bright = np.where(BALL, 1.9, head)
    prior = noisy(moved(head, (0.7, 0.5, -0.6), 0), 2)
    back = aligned_prior(noisy(bright, 1), prior, BRAIN, np.ones(3))
    assert back[BALL].max() < 125
    assert np.abs(back[BALL] - 100 * head[BALL]).mean() < 8


def test_edges_of_voxels_are_lengths(head):
    thick = head[:, :, ::2]
    shifted = ndimage.shift(thick, (1, 0, 0), order=3, mode="nearest")
    brain = BRAIN[:, :, ::2]
    back = aligned_prior(100 * thick * brain, 100 * shifted * brain, brain, np.array([1.0, 1, 2]))
    deep = ndimage.distance_transform_edt(brain, sampling=(1, 1, 2)) > 4
    before, after = (np.abs(100 * thick - values)[deep].mean() for values in (100 * shifted, back))
    assert after < 0.35 * before
