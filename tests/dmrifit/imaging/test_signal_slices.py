"""The scan and the signals that a fit keeps for its page."""

import numpy as np
import pytest

from dmrifit.engine.protocol import Protocol
from dmrifit.imaging import image_rows
from dmrifit.imaging.image_rows import LowestVolume, SignalSlices

GRID = (4, 3, 10)
PROTOCOL = Protocol([0, 500, 0, 1000], te=[60, 60, 90, 60])


@pytest.fixture
def volumes():
    return np.random.default_rng(0).uniform(1, 2, (*GRID, len(PROTOCOL)))


def kept(volumes, inside, *, thickness=3, sigma=None):
    """Go through the image slab by slab, as a fit does."""
    slices = SignalSlices(GRID, PROTOCOL, 5)
    for start in range(0, GRID[2], thickness):
        slab = slice(start, min(start + thickness, GRID[2]))
        part = inside[:, :, slab]
        level = sigma[:, :, slab][part] if isinstance(sigma, np.ndarray) else sigma
        slices.add(volumes[:, :, slab][part], level, slab, part)
    return slices


def test_signals_and_noise_of_voxels_are_found_by_row_and_the_scan_is_the_lowest_b_at_the_shortest_te(volumes):
    inside = volumes[..., 0] > 1.4
    sigma = np.random.default_rng(1).uniform(1, 2, GRID)
    voxels = kept(volumes, inside, sigma=sigma).voxels()
    np.testing.assert_array_equal(voxels.rows > 0, inside)
    np.testing.assert_allclose(voxels.values[voxels.rows[inside] - 1], volumes[inside], rtol=1e-6)
    np.testing.assert_allclose(voxels.sigma[voxels.rows[inside] - 1], sigma[inside], rtol=1e-6)
    assert voxels.protocol == PROTOCOL
    assert (voxels.step, voxels.is_averaged) == (1, False)
    scan = LowestVolume(GRID, PROTOCOL, lambda voxels: voxels)
    chosen = LowestVolume(GRID, PROTOCOL.take([2, 0]), lambda voxels: voxels[:, [2, 0]])
    for slab in (slice(0, 3), slice(3, 9)):
        scan.add(slab, volumes[:, :, slab])
        chosen.add(slab, volumes[:, :, slab])
    np.testing.assert_allclose(scan.values[..., :9], volumes[..., :9, 0], rtol=1e-6)
    np.testing.assert_array_equal(chosen.values, scan.values)
    assert not scan.values[..., 9].any()


@pytest.mark.parametrize("thickness", [1, 3, 10])
def test_too_many_voxels_leave_whole_slices_around_the_middle_one(volumes, thickness, monkeypatch):
    # 12 voxels a slice with 9 numbers each: three slices fit.
    monkeypatch.setattr(image_rows, "MOST_VALUES", 3 * 12 * 9)
    voxels = kept(volumes, np.ones(GRID, bool), thickness=thickness).voxels()
    assert voxels.step == 4
    filled = np.flatnonzero((voxels.rows > 0).any(axis=(0, 1)))
    assert filled.tolist() == [1, 5, 9]
    where = voxels.rows > 0
    assert where[:, :, filled].all()
    np.testing.assert_allclose(voxels.values[voxels.rows[where] - 1], volumes[where], rtol=1e-6)


def test_a_slice_that_is_too_large_leaves_nothing(volumes, monkeypatch):
    monkeypatch.setattr(image_rows, "MOST_VALUES", 11 * 9)
    assert kept(volumes, np.ones(GRID, bool)).voxels() is None
    assert kept(volumes, np.zeros(GRID, bool)).voxels() is None


def test_many_measurements_are_averaged_over_directions(volumes, monkeypatch):
    monkeypatch.setattr(image_rows, "MOST_MEASUREMENTS", 3)
    monkeypatch.setitem(globals(), "PROTOCOL", Protocol([0, 800, 800, 800]))
    voxels = kept(volumes, np.ones(GRID, bool)).voxels()
    assert voxels.is_averaged
    assert voxels.protocol.b.tolist() == [0, 800]
    means = np.stack([volumes[..., 0], volumes[..., 1:].mean(-1)], axis=-1)
    np.testing.assert_allclose(voxels.values[voxels.rows - 1], means, rtol=1e-6)
    # What the means leave out of the residuals is kept.
    assert voxels.counts.tolist() == [1, 3]
    scatter = np.sqrt(np.mean((volumes - means[..., [0, 1, 1, 1]]) ** 2, axis=-1))
    np.testing.assert_allclose(voxels.scatter[voxels.rows - 1], scatter, rtol=1e-6)


def test_what_is_beyond_the_range_of_float32_is_infinite_without_a_warning(volumes):
    slices = kept(volumes * 1e39, np.ones(GRID, bool))
    scan = LowestVolume(GRID, PROTOCOL, lambda voxels: voxels)
    scan.add(slice(0, GRID[2]), volumes * 1e39)
    assert np.isinf(scan.values).all()
    assert np.isinf(slices.voxels().values).all()
