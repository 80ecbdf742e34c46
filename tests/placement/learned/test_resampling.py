"""Compiled resampling gives what numpy and scipy give."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.ndimage import distance_transform_edt

from placement.box.voxel import rotation_of
from placement.learned import resampling


@pytest.fixture
def volume():
    return np.random.default_rng(1).random((7, 5, 9)).astype(np.float32)


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, -15, 30), (90, 0, 0), (180, 0, 45)])
def test_values_on_a_turned_grid_are_those_of_scipy_and_fall_to_zero_outside(volume, angles):
    n = 12
    matrix = rotation_of(list(angles)) @ np.diag([0.9, 0.7, 1.1])
    # The grid reaches beyond the volume on every side.
    offset = (np.array(volume.shape) - 1) / 2 - matrix @ np.full(3, (n - 1) / 2) + [0.3, -0.2, 0.1]
    # Scipy reads a border of zeros, in which values fall off over one voxel.
    padded = np.pad(volume.astype(float), 1)
    expected = ndimage.affine_transform(
        padded, matrix, offset + 1, output_shape=(n, n, n), order=1, mode="constant"
    )
    values = resampling.resample(volume, matrix, offset, n)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert (values == 0).any()
    assert (values > 0).sum() > 50


def test_whole_steps_of_the_grid_take_the_voxels_themselves(volume):
    values = resampling.resample(volume, np.eye(3), np.array([-2.0, -1.0, 1.0]), 8)
    expected = np.zeros((8, 8, 8), np.float32)
    expected[2:8, 1:6, 0:8] = volume[:6, :, 1:9]
    np.testing.assert_array_equal(values, expected)


def test_distances_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        inside = rng.random((17, 17, 17)) < share
        expected = np.where(
            inside, distance_transform_edt(inside) - 0.5, 0.5 - distance_transform_edt(~inside)
        )
        np.testing.assert_allclose(resampling.signed_distance(inside), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distances_to_one_plane_count_grid_steps_from_its_faces(axis):
    n = 11
    position = np.indices((n, n, n))[axis]
    expected = 3.5 - position.astype(float)
    np.testing.assert_array_equal(resampling.signed_distance(position <= 3), expected)


def test_a_single_point_is_inside_by_half_a_step():
    region = np.zeros((9, 9, 9), bool)
    region[2, 5, 7] = True
    offsets = np.moveaxis(np.indices(region.shape), 0, -1) - [2, 5, 7]
    expected = 0.5 - np.linalg.norm(offsets, axis=-1)
    np.testing.assert_allclose(resampling.signed_distance(region), expected, rtol=1e-6)


def test_without_a_border_the_distance_is_far_beyond_the_grid():
    for region, sign in ((np.zeros((6, 6, 6), bool), -1), (np.ones((6, 6, 6), bool), 1)):
        distance = sign * resampling.signed_distance(region)
        assert distance.min() > 900
