"""Warped scans stay scans, and painted structures stay inside of the brain."""

import numpy as np
import pytest

from metastasis.simulate.negatives import head_around, paint_negatives, strip_loosely, warp_scan


@pytest.fixture(scope="module")
def scan():
    shape = (56, 64, 52)
    grid = np.stack(np.indices(shape), axis=-1)
    brain = np.linalg.norm((grid - np.array(shape) / 2) / (24, 28, 22), axis=-1) < 1
    noise = np.random.default_rng(0).normal(100, 2, shape)
    return (noise * brain).astype(np.float32), brain


def test_head_has_depth_and_half_axes(scan):
    head = head_around(scan[1], np.ones(3))
    np.testing.assert_allclose(head.half_axes, (24, 28, 22), atol=1)
    assert 20 < head.depth.max() < 24
    assert (head.depth[~scan[1]] == 0).all()
    assert np.abs(head.local[scan[1]]).max() < 1.1


def test_warped_scan_is_another_brain_of_level_one(scan):
    warped, brain = warp_scan(*scan, np.random.default_rng(1))
    again, _ = warp_scan(*scan, np.random.default_rng(1))
    assert (warped == again).all()
    assert (warped[~brain] == 0).all()
    assert 0.05 < (brain != scan[1]).sum() / scan[1].sum() < 0.9
    assert 0.8 < np.median(warped[brain]) < 1.2


def test_painted_scan_is_brighter_and_darker_inside_alone(scan):
    volume, brain = scan
    painted = paint_negatives(volume, brain, np.random.default_rng(2))
    assert (painted[~brain] == 0).all()
    assert (painted > 120).sum() > 50  # vessels
    assert (painted < 70)[brain].sum() > 50  # cavities


def test_loosely_stripped_scan_has_bright_sinuses_around_and_in_grooves(scan):
    volume, brain = scan
    loose, around = strip_loosely(volume, brain, np.random.default_rng(3))
    assert around[brain].all()
    assert (loose[~around] == 0).all()
    assert 0.01 < (around & ~brain).sum() / brain.sum() < 0.3
    # The axis of a sinus lies up to 2.5 mm below the surface.
    deep = head_around(brain, np.ones(3)).depth > 16
    assert (loose[deep] == volume[deep]).all()
    bright = loose > 120
    assert (bright & ~brain).sum() > 50
    assert (bright & brain).sum() > 50
    # The sagittal one keeps to the middle above and behind.
    x, _, z = np.nonzero(bright & brain)
    assert np.abs(x[z > 36] - 28).max() < 12
