"""Foreign patches hold tissue of another person, from another place, and nothing of the scan."""

import numpy as np
import pytest

from anomaly.generators.patches import (
    add_patch,
    ball_radius,
    lesion_center,
    patch_weight,
    rough_ellipsoid,
    tissue_share,
)

SHAPE = (20, 20, 20)
MASK = np.linalg.norm(np.indices(SHAPE) - 9.5, axis=0) <= 9


def test_patches_come_from_another_person_at_another_place():
    # The other person's voxels hold their own positions.
    places = np.moveaxis(np.indices(SHAPE), 0, -1).astype(np.float32) + 100
    source = np.where(MASK[..., None], places, 0)
    volume = np.where(MASK[..., None], np.float32(0.5), np.float32(0)).repeat(3, axis=-1)
    for seed in range(5):
        changed, _, label = add_patch(volume, MASK, np.random.default_rng(seed), source)
        weight, same_label, offset = patch_weight(
            np.where(MASK, 1, 0).astype(np.float32), MASK, MASK, np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(label, same_label)
        inside = weight > 0
        foreign = (changed - (1 - weight[..., None]) * volume)[inside] / weight[inside][:, None]
        np.testing.assert_allclose(foreign, places[inside] + offset, rtol=1e-3)
        assert np.any(offset != 0)
        np.testing.assert_array_equal(changed[~inside], volume[~inside])
        assert (weight[label] >= 0.3).all()


def test_a_patch_takes_nothing_from_outside_the_other_brain():
    half = MASK & (np.indices(SHAPE)[0] < 10)
    for seed in range(8):
        weight, _, offset = patch_weight(
            np.where(MASK, 1, 0).astype(np.float32), MASK, half, np.random.default_rng(seed)
        )
        sources = np.argwhere(weight > 0) + offset
        assert half[tuple(sources.T)].all()


# Shapes of lesions ---------------------------------------------------------------------------

GRID = (30, 30, 30)
BALL = np.linalg.norm(np.indices(GRID) - 14.5, axis=0) <= 12


def test_a_ball_has_its_own_radius():
    assert ball_radius(BALL) == pytest.approx(12, rel=0.02)


def test_fluid_has_no_tissue_and_lesions_begin_in_tissue():
    volume = np.where(np.indices(GRID)[0] < 15, 0.05, 0.5)[..., None] * BALL[..., None]
    share = tissue_share(volume, BALL)
    np.testing.assert_array_equal(share == 1, BALL & (np.indices(GRID)[0] >= 15))
    rng = np.random.default_rng(0)
    assert all(share[tuple(lesion_center(share, rng))] == 1 for _ in range(20))


def test_rough_ellipsoids_have_about_their_radius():
    volumes = [
        np.count_nonzero(
            rough_ellipsoid(GRID, np.array([15, 15, 15]), 8.0, np.random.default_rng(seed)) < 1
        )
        for seed in range(20)
    ]
    assert np.mean(volumes) == pytest.approx(4 / 3 * np.pi * 8**3 * 0.8, rel=0.3)
