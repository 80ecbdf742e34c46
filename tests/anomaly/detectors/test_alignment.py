"""Alignment of scans to a mean: known shifts, sizes and warps are found, lesions do not pull."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly.detectors import alignment
from anomaly.detectors.alignment import align, guide_images, inverted, resampled, sampled

SHAPE = (22, 26, 20)
SCALES = (0.1, 0.05)


def brain(positions):
    """Give mean signal, spread and mask of a brain of known form at positions in voxels."""
    middle = (np.array(SHAPE) - 1) / 2
    x, y, z = positions - middle.reshape(3, 1, 1, 1)
    radius = np.sqrt((x / 8.5) ** 2 + (y / 10.5) ** 2 + (z / 7.5) ** 2)
    mask = radius < 1
    mean = 0.4 + 0.12 * np.cos(0.9 * x) * np.sin(0.7 * y + 0.4) * np.cos(0.8 * z) - 0.25 * np.exp(-(x**2 + y**2) / 8)
    spread = 0.06 + 0.05 * np.sin(0.5 * x + 0.6 * z)
    return np.where(mask, mean, 0), np.where(mask, spread, 0), mask


def grid():
    return np.indices(SHAPE).astype(np.float32)


def smooth_warp(seed, sd=4.0):
    rng = np.random.default_rng(seed)
    warp = np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), sd) for _ in range(3)])
    return (warp / warp.std()).astype(np.float32)


def images(mean, spread, mask):
    return guide_images(mean, spread, mask, SCALES)


def similar(scale, shift):
    middle = (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    return ((grid() - middle) * scale + middle + np.reshape(shift, (3, 1, 1, 1))).astype(np.float32)


@pytest.mark.parametrize("most_voxels", [None, 1000])
@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, (0, 0, 0)), (1.0, (1.6, -1.1, 0.7)), (1.05, (-1.5, 0.8, 1.2)), (0.95, (0.3, 2.0, -1))]
)
def test_known_shifts_and_sizes_are_found_by_all_voxels_or_by_some(scale, shift, most_voxels, monkeypatch):
    if most_voxels:
        monkeypatch.setattr(alignment, "_MOST_VOXELS", most_voxels)
    truth = similar(scale, shift)
    mean, spread, mask = brain(truth)
    found = align(images(mean, spread, mask), mask, images(*brain(grid())), smoothness=None)
    error = np.sqrt(((found - truth) ** 2).sum(axis=0))[mask]
    assert error.mean() < 0.1
    assert error.max() < 0.3


def test_a_smooth_warp_is_found_better_than_by_an_affine_map_and_a_map_leads_back_from_its_inverse():
    truth = similar(1.03, (1, -0.8, 0.5)) + 0.9 * smooth_warp(0)
    mean, spread, mask = brain(truth)
    errors = {}
    for smoothness in (None, 2.0):
        found = align(images(mean, spread, mask), mask, images(*brain(grid())), smoothness=smoothness)
        errors[smoothness] = np.sqrt(((found - truth) ** 2).sum(axis=0))[mask].mean()
    assert errors[2.0] < 0.8 * errors[None]
    # Nothing moves at the border, so that every voxel has an inverse.
    distance = np.minimum(grid(), np.array(SHAPE).reshape(3, 1, 1, 1) - 1 - grid()).min(axis=0)
    positions = (grid() + smooth_warp(8, 5.0) * np.clip((distance - 2) / 6, 0, 1)).astype(np.float32)
    inverse = inverted(positions)
    back = np.stack([sampled(along, inverse) for along in positions])
    assert np.sqrt(np.square(back - grid()).mean()) < 0.04
    np.testing.assert_array_equal(inverse[:, :2], grid()[:, :2])


def test_a_lesion_hardly_moves_what_is_around_it():
    truth = similar(1.0, (1.0, 0.5, -0.5))
    mean, spread, mask = brain(truth)
    guide = images(*brain(grid()))
    clean = align(images(mean, spread, mask), mask, guide)
    where = grid() - np.array([8, 15, 10]).reshape(3, 1, 1, 1)
    lesion = mask & ((where**2).sum(axis=0) < 9)
    ill = np.where(lesion, 0.25, mean), np.where(lesion, 0.04, spread), mask
    moved = np.sqrt(((align(images(*ill), mask, guide) - clean) ** 2).sum(axis=0))
    assert moved[mask & ~ndimage.binary_dilation(lesion, iterations=3)].mean() < 0.1
    assert moved[lesion].mean() < 0.7


def test_sampling_is_linear_and_channels_of_a_mask_are_resampled_without_what_lies_outside():
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_allclose(sampled(volume, np.array([[0.5, 0], [1, 1.25], [2, 2]])), [12.0, 7.0])
    assert sampled(volume, np.array([[-3.0], [0.0], [0.0]]))[0] == 0.0
    rng = np.random.default_rng(5)
    shape = (4, 5, 3)
    channels = rng.uniform(size=(*shape, 2)).astype(np.float32)
    mask = rng.uniform(size=shape) < 0.7
    positions = rng.uniform(-1, 5, (3, 40)).astype(np.float32)
    out = np.full((50, 2), 9, dtype=np.float32)
    resampled(channels, mask, positions, np.arange(5, 45), out)
    expected = [sampled(channel * mask, positions) for channel in np.moveaxis(channels, -1, 0)]
    np.testing.assert_allclose(out[5:45].T, expected, atol=1e-6)
    assert (out[:5] == 9).all()
    assert (out[45:] == 9).all()


def test_normal_equations_of_an_affine_step_are_the_plain_sums():
    rng = np.random.default_rng(9)
    maps = rng.uniform(size=(5, 6, 4, 12)).astype(np.float32)
    images, positions = rng.uniform(0, 3, (3, 50)), rng.uniform(-1, 5, (3, 50)).astype(np.float32)
    images, rows = images.astype(np.float32), rng.uniform(-1, 1, (50, 4)).astype(np.float32)
    found, pulls = alignment._normal_equations(maps, images, positions, rows)
    at_positions = np.stack([sampled(one, positions) for one in np.moveaxis(maps, -1, 0)]).reshape(3, 4, -1)
    products, right = np.zeros((12, 12)), np.zeros(12)
    for image, (guide_image, *slopes) in zip(images, at_positions, strict=True):
        residual = image - guide_image
        weight = 1 / np.maximum(1, np.abs(residual))
        columns = np.einsum("an,nk->nak", slopes, rows).reshape(50, 12)
        products += (columns.T * weight) @ columns
        right += (columns.T * weight) @ residual
    np.testing.assert_allclose(found, products, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pulls, right, rtol=1e-4, atol=1e-4)
