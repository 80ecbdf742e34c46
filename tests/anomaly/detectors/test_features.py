"""Features of voxels against sums over neighbors written out in plain numpy."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly.detectors.features import (
    FEATURES,
    look_of,
    masked_smoothing,
    nearest_inside,
    voxel_features,
)


def gaussian_mean(volume, mask, sd):
    """Average the voxels of a mask around each of its voxels, weighted by a Gaussian cut off at 4 sd."""
    reach = int(4 * sd + 0.5)
    means = np.zeros(volume.shape)
    voxels = np.argwhere(mask)
    for voxel in voxels:
        apart = voxels - voxel
        near = (np.abs(apart) <= reach).all(axis=1)
        weights = np.exp(-0.5 * (apart[near] ** 2).sum(axis=1) / sd**2)
        values = volume[tuple(voxels[near].T)]
        means[tuple(voxel)] = (weights * values).sum() / weights.sum()
    return means


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(2)
    signal = rng.uniform(size=(6, 7, 8, 5)).astype(np.float32)
    mask = rng.random((6, 7, 8)) < 0.8
    return signal, mask


def test_smoothing_is_the_weighted_mean_over_the_mask(scan):
    signal, mask = scan
    volume = signal[..., 0]
    for sd in (0.8, 1.5):
        expected = gaussian_mean(volume, mask, sd)
        np.testing.assert_allclose(masked_smoothing(volume, mask, sd), expected, rtol=1e-4, atol=1e-5)


def test_no_smoothing_changes_nothing_in_the_mask(scan):
    signal, mask = scan
    for sd in (0, (0, 0, 0)):
        np.testing.assert_array_equal(masked_smoothing(signal[..., 0], mask, sd), signal[..., 0] * mask)


def test_smoothing_may_differ_between_axes():
    line = np.zeros((9, 9, 9))
    line[4, 4, 4] = 1
    smooth = masked_smoothing(line, np.ones((9, 9, 9), dtype=bool), (1.0, 0.0, 0.0))
    assert np.count_nonzero(smooth[:, 4, 4]) == 9
    assert np.count_nonzero(smooth) == 9


@pytest.mark.parametrize("sd", [(2.0, 1.0, 0.5), (0.6, 0.0, 1.7)])
def test_smoothing_by_an_anisotropic_sd_is_the_normalized_gaussian_of_scipy(sd):
    rng = np.random.default_rng(7)
    volume = rng.uniform(1, 5, size=(11, 12, 13))
    # A part of the volume with holes, away from some of its borders.
    mask = np.zeros(volume.shape, dtype=bool)
    mask[2:10, :9, 3:] = rng.random((8, 9, 10)) < 0.6
    values = ndimage.gaussian_filter(volume * mask, sd, mode="constant")
    weights = ndimage.gaussian_filter(mask.astype(float), sd, mode="constant")
    expected = np.zeros(volume.shape)
    expected[mask] = values[mask] / weights[mask]
    np.testing.assert_allclose(masked_smoothing(volume, mask, sd), expected, rtol=1e-4)
    # The order of the axes matters.
    assert np.abs(masked_smoothing(volume, mask, sd[::-1]) - expected).max() > 0.1


def test_smoothing_inside_a_mask_keeps_constants_and_what_is_outside_away():
    rng = np.random.default_rng(1)
    mask = rng.random((8, 8, 8)) < 0.7
    volume = np.where(mask, 0.4, 99.0)
    np.testing.assert_allclose(masked_smoothing(volume, mask, 1.2)[mask], 0.4, rtol=1e-5)
    assert not masked_smoothing(volume, mask, 1.2)[~mask].any()


def test_mean_and_spread_are_those_of_directions():
    signal = np.zeros((2, 1, 1, 3), dtype=np.float32)
    signal[0, 0, 0] = [0.1, 0.4, 0.7]
    signal[1, 0, 0] = 0.25
    look = look_of(signal, np.ones((2, 1, 1), dtype=bool))
    np.testing.assert_allclose(look.mean.ravel(), [0.4, 0.25], rtol=1e-6)
    np.testing.assert_allclose(look.spread.ravel(), [0.06**0.5, 0], rtol=1e-6)


def test_features_are_what_they_are_called():
    rng = np.random.default_rng(2)
    signal, mask = (rng.uniform(size=(6, 7, 8, 5)).astype(np.float32), np.ones((6, 7, 8), dtype=bool))
    found = dict(
        zip(("mean", "spread", "depth", "gradient"), voxel_features(
            signal, mask, ("mean", "spread", "depth", "gradient")), strict=True)
    )  # fmt: skip
    np.testing.assert_allclose(found["mean"], signal.mean(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(found["spread"], signal.std(axis=-1), rtol=1e-4)
    assert found["depth"][0, 3, 3] == 1
    assert found["depth"][3, 3, 3] == 3
    ramp = np.arange(14)[:, None, None, None] * np.ones((14, 7, 8, 5))
    slope = voxel_features(ramp, np.ones((14, 7, 8), dtype=bool), ("gradient",))[0]
    np.testing.assert_allclose(slope[7, 3, 3], 1, atol=0.01)


def test_local_features_are_means_of_a_neighborhood_inside_the_mask(scan):
    signal, mask = scan
    local_mean, local_spread = voxel_features(signal, mask, ("local mean", "local spread"))
    expected = gaussian_mean(signal.mean(axis=-1), mask, 1.5)
    np.testing.assert_allclose(local_mean, expected, rtol=1e-4, atol=1e-5)
    expected = gaussian_mean(signal.std(axis=-1), mask, 1.5)
    np.testing.assert_allclose(local_spread, expected, rtol=1e-4, atol=1e-5)


def test_features_come_in_the_order_asked_for_and_are_zero_outside(scan):
    signal, mask = scan
    every = voxel_features(signal, mask, FEATURES)
    assert every.shape == (6, 6, 7, 8)
    assert every.dtype == np.float32
    assert not every[:, ~mask].any()
    turned = voxel_features(signal, mask, FEATURES[::-1])
    np.testing.assert_array_equal(turned, every[::-1])


def test_the_depth_is_the_distance_to_what_is_outside():
    mask = np.ones((3, 5, 9), dtype=bool)
    mask[1, 2, 0] = False
    (depth,) = voxel_features(np.ones((3, 5, 9, 1)), mask, ("depth",))
    # One, two and more voxels from the hole, then as far as the border of the volume.
    np.testing.assert_allclose(depth[1, 2, :4], [0, 1, 2, 2], atol=1e-6)
    assert depth[1, 1, 1] == pytest.approx(2**0.5)


def test_a_volume_of_one_slice_has_a_gradient_within_it():
    ramp = np.tile(0.1 * np.arange(12.0)[None, :, None, None], (1, 1, 9, 2))
    (slope,) = voxel_features(ramp, np.ones((1, 12, 9), dtype=bool), ("gradient",))
    np.testing.assert_allclose(slope[0, 5:7, 4], 0.1, rtol=1e-3)


def test_voxels_outside_take_the_nearest_one_inside(scan):
    _, mask = scan
    nearest = nearest_inside(mask)
    assert mask[nearest].all()
    np.testing.assert_array_equal(np.stack(nearest)[:, mask], np.argwhere(mask).T)


def test_smoothing_in_an_empty_mask_gives_zeros():
    empty = np.zeros((4, 5, 6), dtype=bool)
    assert not masked_smoothing(np.ones(empty.shape, np.float32), empty, 0.8).any()
