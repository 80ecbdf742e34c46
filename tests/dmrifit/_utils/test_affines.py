"""Affines that place no voxels are refused, and the volume of a voxel follows from its axes."""

import numpy as np
import pytest

from dmrifit._utils.affines import MM3_PER_ML, checked_affine, places_voxels, voxel_volume


def test_a_sound_affine_comes_back_as_a_copy_with_the_volume_of_its_voxels():
    affine = np.diag([2.0, -3.0, 4.0, 1.0])
    matrix = checked_affine(affine.tolist(), "the affine")
    np.testing.assert_array_equal(matrix, affine)
    assert checked_affine(affine, "the affine") is not affine
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([10.0, 10.0, 5.0])
    assert places_voxels(affine)
    assert voxel_volume(affine) / MM3_PER_ML == pytest.approx(0.5)
