"""Scans in RAS order, on other voxels and other grids."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from dmrifit.io.grids import (
    Volume,
    as_stored,
    cropped,
    three_axes,
    turn_to_grid,
    upright,
    upright_edges,
)

OBLIQUE = np.array([[0, -3.0, 0, 12], [2.0, 0, 0, -30], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def image(values, affine=None):
    return nib.Nifti1Image(values, np.eye(4) if affine is None else affine)


def world_of(shape, affine):
    """Give the world coordinates of voxels, the last axis first."""
    return np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3, None, None, None]


def test_a_scan_is_read_with_axes_to_right_front_and_top_and_volumes_turn_with_them_and_back():
    values = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)
    scan = Volume.read(image(values, OBLIQUE))
    # The first axis runs to the front, the second to the left.
    np.testing.assert_array_equal(scan.values, values.transpose(1, 0, 2)[::-1])
    np.testing.assert_allclose(scan.affine @ [0, 0, 0, 1], OBLIQUE @ [0, 9, 0, 1])
    np.testing.assert_allclose(np.diag(scan.affine), [3, 2, 4, 1])
    values = np.random.default_rng(0).normal(size=(9, 10, 11, 2))
    turned = upright(values, OBLIQUE)
    np.testing.assert_array_equal(turned, values.transpose(1, 0, 2, 3)[::-1])
    np.testing.assert_array_equal(as_stored(turned, OBLIQUE), values)
    np.testing.assert_array_equal(upright_edges(OBLIQUE), [3, 2, 4])


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float64])
def test_bytes_stay_bytes_and_other_values_become_single(kind):
    values = np.arange(512).reshape(8, 8, 8) % 200
    scan = Volume.read(image(values.astype(kind)))
    assert scan.values.dtype == (np.uint8 if kind == np.uint8 else np.float32)
    np.testing.assert_array_equal(scan.values, values)


def test_a_last_axis_of_one_is_dropped_and_the_file_remembered(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 9, 10, 1)).astype(np.float32)
    nib.save(image(values), tmp_path / "t1.nii.gz")
    scan = Volume.read(tmp_path / "t1.nii.gz")
    np.testing.assert_array_equal(scan.values, values[..., 0])
    assert scan.get_filename() == str(tmp_path / "t1.nii.gz")
    assert Volume.read(image(values)).get_filename() is None


def test_a_scan_has_to_lie_on_the_grid_of_another():
    values = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)
    scan = Volume.read(image(values, OBLIQUE))
    # At 45 degrees two orders of axes are equally near to those of the world.
    for affine in (OBLIQUE, from_matvec(euler2mat(0.3, -0.2, np.pi / 4) @ OBLIQUE[:3, :3], [5, -7, 9])):
        given, names = image(values, affine), {"name": "a", "reference_name": "the first"}
        for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
            stored = given.as_reoriented(np.column_stack([order, signs]))
            turn = turn_to_grid((stored.shape, stored.affine), (given.shape, affine), **names)
            np.testing.assert_array_equal(stored.as_reoriented(turn).dataobj, values)
            np.testing.assert_array_equal(Volume.read(given).read_like(stored, "a").values, Volume.read(given).values)
    moved = OBLIQUE.copy()
    moved[2, 3] += 2
    with pytest.raises(ValueError, match="the first"):
        scan.read_like(image(values, moved), "the first")


def test_another_spacing_covers_the_same_field_of_view_with_places_where_they_were():
    world = world_of((30, 24, 20), OBLIQUE)
    ramp = (world[0] + 2 * world[1] - world[2] + 500).astype(np.float32)
    scan = Volume.read(image(ramp, OBLIQUE)).resampled(2.5)
    np.testing.assert_allclose(np.diag(scan.affine), [2.5, 2.5, 2.5, 1])
    # 24 · 3, 30 · 2 and 20 · 4 mm
    assert scan.shape == (29, 24, 32)
    world = world_of(scan.shape, scan.affine)
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(scan.values[inner], (world[0] + 2 * world[1] - world[2] + 500)[inner], atol=0.01)
    assert scan.resampled(None) is scan
    scan = Volume.of(np.ones((10, 12, 9), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    coarse = scan.resampled(2.0)
    assert coarse.shape == (5, 12, 14)
    for grid in (scan, coarse):
        middle = grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1]
        np.testing.assert_allclose(middle[:3], [4.5, 11, 12])


def test_larger_voxels_are_means_of_smaller_ones_smoothed_along_the_axes_that_become_larger():
    rng = np.random.default_rng(0)
    fine = Volume.of(rng.standard_normal((60, 60, 60)), np.diag([0.25, 0.25, 0.25, 1]))
    coarse = fine.resampled(1.0)
    assert coarse.shape == (15, 15, 15)
    # The mean of 64 has a standard deviation of 0.125, that of eight of them 0.35.
    assert 0.08 < coarse.values.std() < 0.17
    rng = np.random.default_rng(0)
    values = rng.standard_normal((80, 40, 40)).astype(np.float32)
    fine = Volume.of(values, np.diag([0.5, 1.0, 1.0, 1.0]))
    # The same voxels of 1 × 1 × 2 mm, their axes in this order and in another one.
    turned = np.array([[0, 0, 1.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    target = image(np.zeros((40, 20, 40), np.float32), turned)
    straight = image(np.zeros((40, 40, 20), np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    plain, exchanged = (fine.onto(grid, np.eye(4)).values for grid in (straight, target))
    np.testing.assert_allclose(exchanged.transpose(2, 0, 1), plain, atol=1e-5)


@pytest.mark.parametrize("edges", [(2.0, 2.0, 2.0), (0.5, 0.5, 0.5), (0.7, 0.7, 3.0)])
def test_a_scan_is_not_darker_at_its_border_on_another_grid(edges):
    scan = Volume.of(np.full((20, 18, 16), 5.0), np.diag([*edges, 1.0]))
    np.testing.assert_allclose(scan.resampled(1.0).values, 5, rtol=1e-5)


@pytest.mark.parametrize(("shift", "n"), [(5.0, 5), (5.4, 5), (5.6, 4), (20.0, 0), (-3.0, 7)])
def test_there_is_nothing_where_a_scan_does_not_reach(shift, n):
    scan = Volume.of(np.full((10, 9, 8), 7.0), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = shift
    values = scan.onto(scan, moved).values
    expected = np.where(np.arange(10) < n if shift > 0 else np.arange(10) >= 10 - n, 7, 0)
    np.testing.assert_array_equal(values, np.broadcast_to(expected[:, None, None], values.shape))


def test_a_transformation_leads_from_the_new_grid_to_the_scan():
    values = np.zeros((12, 12, 12), np.float32)
    values[3, 5, 7] = 1
    moved = np.eye(4)
    moved[:3, 3] = (1, -2, 3)
    scan = Volume.of(values, np.eye(4))
    assert np.argwhere(scan.onto(scan, moved).values).tolist() == [[2, 7, 4]]


def test_labels_are_those_of_the_nearest_voxel_and_rounded_where_scaling_made_them_unround():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:5, 2:5, 2:5], labels[6, 6, 6] = 3, 255
    fine = Volume.of(np.zeros((20, 16, 16), np.uint8), np.diag([0.5, 0.5, 0.5, 1]))
    moved = Volume.of(labels, np.eye(4)).labels_onto(fine).values
    assert moved.dtype == np.uint8
    assert set(np.unique(moved)) == {0, 3, 255}
    np.testing.assert_array_equal(moved[::2, ::2, ::2][:8], labels)
    assert not moved[16:].any()  # beyond the labels
    labels = np.full((8, 8, 8), 2.9999998, np.float32)
    volume = Volume.of(labels, np.eye(4))
    np.testing.assert_array_equal(volume.labels_onto(volume).values, 3)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 1)])
def test_a_last_axis_of_one_is_dropped(shape):
    values = np.arange(24).reshape(shape)
    np.testing.assert_array_equal(three_axes(values, "t1.nii"), np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize("offset", [(0, 1, 2), (-2, 1, -1), (1, -3, 0), (9, 0, 0), (-9, 0, 0)])
def test_a_box_of_a_volume_is_0_outside_of_it(offset):
    values = np.arange(1, 121).reshape(4, 5, 3, 2)
    padded = np.pad(values, [(10, 10)] * 3 + [(0, 0)])
    i, j, k = np.add(offset, 10)
    box = cropped(values, offset, (3, 2, 6))
    np.testing.assert_array_equal(box, padded[i : i + 3, j : j + 2, k : k + 6])


def test_missing_values_stay_in_linear_interpolation_and_splines_do_not_go_below_the_lowest_value():
    values = np.ones((9, 9, 9), np.float32)
    values[2, 2, 2] = np.nan
    moved = Volume.of(values, np.eye(4)).resampled(0.9).values
    assert np.isnan(moved).any()
    assert np.isfinite(moved[5:]).all()
    values = np.zeros((12, 12, 12), np.float32)
    values[4:8, 4:8, 4:8] = 1
    moved = Volume.of(values, np.eye(4)).resampled(0.8, order=3).values
    assert moved.min() == 0
    assert moved.max() > 1
