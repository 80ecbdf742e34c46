"""Features of voxels against sums over neighbors written out in plain numpy."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly.detectors.features import FEATURES, masked_smoothing, nearest_inside, voxel_features


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(2)
    signal = rng.uniform(size=(6, 7, 8, 5)).astype(np.float32)
    mask = rng.random((6, 7, 8)) < 0.8
    return signal, mask


@pytest.mark.parametrize("sd", [0.8, (2.0, 1.0, 0.5), (0.6, 0.0, 1.7)])
def test_smoothing_is_the_normalized_gaussian_of_scipy(sd):
    rng = np.random.default_rng(7)
    volume = rng.uniform(1, 5, size=(11, 12, 13))
    # A part of the volume with holes, away from some of its borders.
    mask = np.zeros(volume.shape, dtype=bool)
    mask[2:10, :9, 3:] = rng.random((8, 9, 10)) < 0.6
    values = ndimage.gaussian_filter(volume * mask, sd, mode="constant")
    weights = ndimage.gaussian_filter(mask.astype(float), sd, mode="constant")
    expected = np.zeros(volume.shape)
    expected[mask] = values[mask] / weights[mask]
    np.testing.assert_allclose(masked_smoothing(np.where(mask, volume, 99), mask, sd), expected, rtol=1e-4)
    assert not masked_smoothing(volume, np.zeros_like(mask), sd).any()


@pytest.mark.parametrize("shape", [(14, 7, 8), (14, 7, 1)])
def test_features_are_what_they_are_called(shape):
    ramp = 0.1 * np.arange(shape[0])[:, None, None, None]
    signal = (ramp + np.random.default_rng(2).uniform(size=5)) * np.ones((*shape, 5))
    mask = np.ones(shape, dtype=bool)
    mask[0, 0] = False
    mean, spread = signal.mean(axis=-1) * mask, signal.std(axis=-1) * mask
    features = dict(zip(FEATURES, voxel_features(signal, mask, FEATURES), strict=True))
    np.testing.assert_allclose(features["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(features["spread"], spread, rtol=1e-4)
    np.testing.assert_allclose(features["local mean"], masked_smoothing(mean, mask, 1.5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features["local spread"], masked_smoothing(spread, mask, 1.5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features["gradient"][6:8, 4], 0.1, rtol=2e-3)


def test_features_come_in_the_order_asked_for_and_are_zero_outside(scan):
    signal, mask = scan
    for sd in (0, (0, 0, 0)):
        np.testing.assert_array_equal(masked_smoothing(signal[..., 0], mask, sd), signal[..., 0] * mask)
    nearest = nearest_inside(mask)
    assert mask[nearest].all()
    np.testing.assert_array_equal(np.stack(nearest)[:, mask], np.argwhere(mask).T)
    every = voxel_features(signal, mask, FEATURES)
    assert every.shape == (6, 6, 7, 8)
    assert every.dtype == np.float32
    assert not every[:, ~mask].any()
    turned = voxel_features(signal, mask, FEATURES[::-1])
    np.testing.assert_array_equal(turned, every[::-1])
    hole = np.ones((3, 5, 9), dtype=bool)
    hole[1, 2, 0] = False
    (depth,) = voxel_features(np.ones((3, 5, 9, 1)), hole, ("depth",))
    # One, two and more voxels from the hole, then as far as the border of the volume.
    np.testing.assert_allclose(depth[1, 2, :4], [0, 1, 2, 2], atol=1e-6)
    assert depth[1, 1, 1] == pytest.approx(2**0.5)
