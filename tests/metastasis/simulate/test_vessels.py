"""Vessels, sinuses, dura and plexus of a head lie where they do in people."""

import numpy as np
import pytest

from dmrifit.simulate.heads import Head
from metastasis.simulate.vessels import choroid_plexus, draw_vessels, dura_patches, dural_sinuses

VESSELS = {"radii": (0.55, 1.15), "contrasts": (0.2, 0.5)}


@pytest.fixture(scope="module")
def person():
    return Head.draw((52, 56, 50), (2.0, 2.0, 2.0), np.random.default_rng(0))


def voxels_of(person, points):
    """Find voxels of points in mm, and the points that lie on the grid."""
    index = np.rint((points - person.affine[:3, 3]) / person.spacing).astype(int)
    within = ((index >= 0) & (index < person.brain.shape)).all(axis=1)
    return tuple(index[within].T), points[within]


def test_vessels_are_thin_and_bright_around_their_points_near_the_surface_and_deep(person):
    share, contrast, points = draw_vessels(person, np.random.default_rng(0), **VESSELS)
    assert share.shape == contrast.shape == person.brain.shape
    assert 0 <= share.min() <= share.max() <= 1
    # Brightness from 0.7 times 0.2 to 0.5 of white matter's.
    inside = share > 0.2
    assert 0.001 < inside.mean() < 0.02
    ratio = contrast[inside] / share[inside]
    assert 0.13 < ratio.min() < ratio.max() <= 0.5 + 1e-5
    index, places = voxels_of(person, points)
    near = np.linalg.norm(person.places[index] - places, axis=1) < 0.4
    assert near.any()
    assert (share[index][near] > 0.45).all()
    _, _, points = draw_vessels(person, np.random.default_rng(1), **VESSELS)
    depth = person.depth[voxels_of(person, points)[0]]
    assert np.median(depth) < 8
    assert depth.max() > 12


def test_sinuses_run_under_the_top_and_along_the_tentorium(person):
    share = dural_sinuses(person, radius=1.6)
    assert not share[~person.brain].any()
    middle = np.abs(person.local[:, 28, 40, 0]).argmin()
    for row in range(18, 36):
        top = np.flatnonzero(person.brain[middle, row]).max()
        assert share[middle - 2 : middle + 3, row, top - 2 : top + 1].max() > 0.5
    # Most of the brain is far from any.
    assert (share > 0.3).mean() < 0.03
    back = (person.local[..., 1] < -0.5) & (np.abs(person.local[..., 0]) > 0.3) & (share > 0.5)
    assert back.sum() > 10
    heights = person.local[..., 2][back]
    assert -0.5 < np.median(heights) < -0.1
    wide = dural_sinuses(person, radius=3.0)
    assert (wide >= share).all()


def test_dura_comes_in_patches_on_the_surface_and_in_both_sheets(person):
    share = dura_patches(person, np.random.default_rng(0))
    surface = person.brain & (person.depth <= 2)
    falx = (np.abs(person.local[..., 0]) < 0.015) & (person.local[..., 2] > 0.5) & (person.depth > 4)
    for region in (surface, falx):
        assert 0.05 < np.mean(share[region] > 0.1) < 0.8
    tent = person.local[..., 2] + 0.16 + 0.36 * np.abs(person.local[..., 0])
    tentorium = (np.abs(tent) < 0.015) & (person.local[..., 1] < -0.45) & (person.depth > 4)
    assert share[tentorium].max() > 0.3
    inner = person.brain & (person.depth > 4) & (np.abs(person.local[..., 0]) > 0.1) & (tent > 0.1)
    assert not share[inner].any()
    assert 0 <= share.min() <= share.max() <= 1


def test_the_plexus_lies_in_the_back_of_the_ventricles(person):
    share = choroid_plexus(person, np.random.default_rng(0))
    back = (person.ventricles > 0.5) & (person.local[..., 1] < 0)
    assert 0.05 < np.mean(share[back] > 0) < 0.7
    assert not share[(person.ventricles == 0) | (person.local[..., 1] >= 0)].any()
