"""Shapes of lesions: size of the brain, tissue, rough ellipsoids."""

import numpy as np
import pytest

from anomaly.generators.lesion_shapes import (
    ball_radius,
    lesion_center,
    rough_ellipsoid,
    tissue_share,
)

SHAPE = (30, 30, 30)
MASK = np.linalg.norm(np.indices(SHAPE) - 14.5, axis=0) <= 12


def test_a_ball_has_its_own_radius():
    assert ball_radius(MASK) == pytest.approx(12, rel=0.02)


def test_fluid_has_no_tissue_and_lesions_begin_in_tissue():
    volume = np.where(np.indices(SHAPE)[0] < 15, 0.05, 0.5)[..., None] * MASK[..., None]
    share = tissue_share(volume, MASK)
    np.testing.assert_array_equal(share == 1, MASK & (np.indices(SHAPE)[0] >= 15))
    rng = np.random.default_rng(0)
    assert all(share[tuple(lesion_center(share, rng))] == 1 for _ in range(20))


def test_rough_ellipsoids_have_about_their_radius():
    volumes = [
        np.count_nonzero(
            rough_ellipsoid(SHAPE, np.array([15, 15, 15]), 8.0, np.random.default_rng(seed)) < 1
        )
        for seed in range(20)
    ]
    assert np.mean(volumes) == pytest.approx(4 / 3 * np.pi * 8**3 * 0.8, rel=0.3)
