"""Scans, masks and labels as a network sees them, and its answers on their own grids."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dmrifit.imaging.head_pipeline import prepare_brain
from metastasis.scans.network_inputs import (
    brain_of,
    edge_of,
    joined_cases,
    label_on_network_grid,
    network_grid,
    on_network_grid,
    on_scan_grid,
    output_size,
    paired_labels,
)

TURNED = Rotation.from_euler("xyz", [20, 10, 30], degrees=True).as_matrix()
#: Axes of the voxels in mm and their numbers: mirrored, exchanged, oblique with thick slices, finer than 1 mm.
GRIDS = [
    (np.diag([-1.0, -1.0, 1.0]), (40, 40, 40)),
    (np.array([[0, 0, 3.0], [-0.8, 0, 0], [0, 0.8, 0]]), (50, 50, 14)),
    (TURNED @ np.diag([0.8, 0.8, 2.5]), (50, 50, 16)),
    (np.diag([0.6, -0.6, 0.6]), (66, 66, 66)),
]


def around(axes, shape, middle=(3.0, -7.0, 11.0)):
    """Give an affine that has a point in the middle of its grid."""
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = middle - axes @ ((np.array(shape) - 1) / 2)
    return affine


def ball(shape, affine, center, radius):
    world = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return (np.linalg.norm(world - center, axis=-1) < radius).astype(np.float32)


def vessel(shape, affine, sigma=0.8):
    """Sample a line of a Gaussian profile, sigma in mm, along z."""
    x, y, _ = np.moveaxis(np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    return np.exp(-((x - 10.5) ** 2 + (y - 0.5) ** 2) / (2 * sigma**2)).astype(np.float32)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize(("axes", "shape"), GRIDS)
def test_what_lies_at_a_place_is_seen_and_answered_there(axes, shape):
    affine, center = around(axes, shape), np.array([5.0, -4.0, 9.0])
    image = nib.Nifti1Image(ball(shape, affine, center, 6.0), affine)
    seen, _, mask = on_network_grid((image, None, image), 1.0)
    assert np.array_equal(label_on_network_grid(image, image, 1.0), mask)
    # Its volume is that of the ball, but for its surface, and its grid that of prepare_brain.
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * 6.0**3, rel=0.08)
    prepared = prepare_brain(image, spacing=1.0, bias_field=False, brain_mask=False).image
    assert prepared.shape == seen.shape
    np.testing.assert_allclose(prepared.affine, network_grid(image, 1.0).affine, atol=1e-6)
    assert dice(seen > 0.5, ball(seen.shape, prepared.affine, center, 6.0) > 0) > 0.9
    answer = on_scan_grid(seen, image, 1.0)
    assert answer.shape == image.shape
    places = np.argwhere(answer >= 0.5) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(places.mean(axis=0), center, atol=0.15)
    assert dice(np.asarray(image.dataobj) > 0, answer >= 0.5) > 0.98


def test_a_fine_vessel_stays_as_bright_and_splines_leave_nothing_outside_of_a_stripped_brain():
    affine = around(np.diag([0.94, 0.94, 1.0]), (40, 40, 20))
    image = nib.Nifti1Image(vessel((40, 40, 20), affine), affine)
    seen, _, inside = on_network_grid((image, None, nib.Nifti1Image(np.ones(image.shape, np.uint8), affine)), 1.0)
    truth = vessel(seen.shape, network_grid(image, 1.0).affine)
    # Linear interpolation is wrong by .29.
    assert np.abs(seen - truth)[inside].max() < 0.1
    values = np.zeros((30, 30, 30, 2), np.float32)
    values[10:20, 10:20, 10:20] = 100
    values[10:16, 10:20, 10:20, 1] = 0
    affine = np.diag([1.1, 1.1, 1.1, 1])
    image, prior = nib.Nifti1Image(values, affine), nib.Nifti1Image(values[..., 1], affine)
    seen, seen_prior, mask = on_network_grid((image, prior, None), 1.0)
    assert mask is None
    for channel in range(2):
        label = nib.Nifti1Image((values[..., channel] > 0).astype(np.uint8), affine)
        inside = label_on_network_grid(label, image, 1.0)
        assert np.array_equal(seen[..., channel] != 0, inside)
    np.testing.assert_array_equal(seen_prior, seen[..., 1])


def test_larger_voxels_are_means_of_smaller_ones_in_each_channel_by_itself():
    noise = np.random.default_rng(0).standard_normal((60, 60, 60)).astype(np.float32)
    seen, _, _ = on_network_grid((nib.Nifti1Image(noise, np.diag([0.4, 0.4, 0.4, 1])), None, None), 1.0)
    # Of 2.5³ voxels; one voxel in its place, or a line between two, has more than .6.
    assert seen.std() == pytest.approx(0.4**1.5, rel=0.2)
    levels = np.ones((8, 8, 8, 2), np.float32) * np.array([1, 5], np.float32)
    resampled, _, _ = on_network_grid((nib.Nifti1Image(levels, np.diag([2.0, 2.0, 2.0, 1])), None, None), 1.0)
    assert resampled.ndim == 4
    np.testing.assert_allclose(resampled[..., 0], 1, rtol=1e-5)
    np.testing.assert_allclose(resampled[..., 1], 5, rtol=1e-5)


def test_an_answer_at_the_border_is_not_faded():
    image = nib.Nifti1Image(np.ones((10, 10, 6), np.float32), np.diag([2.0, 2.0, 5.0, 1]))
    seen, _, _ = on_network_grid((image, None, None), 1.0)
    np.testing.assert_allclose(seen, 1, atol=1e-6)
    np.testing.assert_allclose(on_scan_grid(seen, image, 1.0), 1, atol=1e-6)


@pytest.mark.parametrize("spacing", [None, 1.0])
def test_the_brain_is_what_a_mask_has_above_a_half(spacing):
    image = nib.Nifti1Image(np.ones((9, 9, 9), np.float32), np.eye(4))
    share = np.linspace(0, 1, 9)[:, None, None] * np.ones((9, 9, 9))
    share[:, 0] = np.nan
    _, _, mask = on_network_grid((image, None, nib.Nifti1Image(share, np.eye(4))), spacing)
    assert mask.dtype == bool
    assert np.array_equal(mask, np.nan_to_num(share) > 0.5)
    with pytest.raises(ValueError, match="no voxel is inside the mask"):
        on_network_grid((image, None, nib.Nifti1Image(0.3 * np.ones((9, 9, 9)), np.eye(4))), spacing)


def test_without_a_mask_the_brain_is_what_is_not_zero_in_any_channel():
    volume = np.zeros((2, 2, 3))
    volume[0, 1, 2] = -4
    assert np.array_equal(brain_of((volume, None, None)), volume != 0)
    assert np.array_equal(brain_of((np.stack([0 * volume, volume], axis=-1), None, None)), volume != 0)
    mask = nib.Nifti1Image((volume == 0).astype(np.float32), np.eye(4))
    assert np.array_equal(brain_of((nib.Nifti1Image(volume, np.eye(4)), None, mask)), volume == 0)


def test_the_edge_of_a_voxel_is_that_of_a_cube_of_its_volume():
    values = np.ones((4, 4, 4), np.float32)
    assert edge_of(nib.Nifti1Image(values, np.diag([-1.0, 2.0, 4.0, 1]))) == pytest.approx(2)
    turned = np.eye(4)
    turned[:3, :3] = TURNED @ np.diag([0.5, 0.5, 4.0])
    assert edge_of(nib.Nifti1Image(values, turned)) == pytest.approx(1)
    assert edge_of(values) is None


def test_grids_that_differ_by_the_rounding_of_files_are_one():
    affine = around(np.eye(3), (9, 9, 9), (100.0, -80.0, 60.0))
    rounded, moved = affine.copy(), affine.copy()
    rounded[:3, 3] += (0.005, -0.003, 0)
    moved[0, 3] += 0.5
    image, prior, other = (nib.Nifti1Image(np.ones((9, 9, 9), np.float32), one) for one in (affine, rounded, moved))
    assert len(joined_cases([image], [prior], None)) == 1
    with pytest.raises(ValueError, match=r"case 0: its prior and the volume .* 0\.5 mm apart"):
        joined_cases([image], [other], None)


@pytest.mark.parametrize("spacing", [None, 1.5])
def test_any_storage_of_a_scan_is_seen_alike_and_answered_on_its_own_grid(spacing):
    rng = np.random.default_rng(0)
    affine = around(np.diag([1.0, 1.2, 1.5]), (12, 10, 9))
    scan = nib.Nifti1Image(rng.normal(size=(12, 10, 9)).astype(np.float32), affine)
    label = nib.Nifti1Image((rng.random((12, 10, 9)) > 0.5).astype(np.uint8), affine)
    seen, prior, mask = on_network_grid((scan, scan, label), spacing)
    learned = label_on_network_grid(label, scan, spacing)
    answer = on_scan_grid(seen, scan, spacing)
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            order = np.column_stack([axes, signs])
            stored, stored_label = scan.as_reoriented(order), label.as_reoriented(order)
            # Prior and mask are stored as before, and are turned to the order of the scan.
            (case,) = joined_cases([stored], [scan], [label])
            np.testing.assert_array_equal(paired_labels([case], [label])[0][0].dataobj, stored_label.dataobj)
            case = on_network_grid(case, spacing)
            for values, expected in zip(case, (seen, prior, mask), strict=True):
                np.testing.assert_allclose(values, expected, atol=1e-5)
            np.testing.assert_array_equal(label_on_network_grid(stored_label, stored, spacing), learned)
            stored_answer = on_scan_grid(case[0], stored, spacing)
            expected = nib.Nifti1Image(answer, affine).as_reoriented(order)
            np.testing.assert_allclose(stored_answer, np.asarray(expected.dataobj), atol=1e-5)


def test_sizes_are_those_published_and_too_small_ones_are_refused():
    assert (output_size(37), output_size(45)) == (19, 27)
    assert output_size(19) == 1
    with pytest.raises(ValueError, match="segments of at least 19 voxels, not 18"):
        output_size(18)
