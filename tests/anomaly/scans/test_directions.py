"""Directions of diffusion weighting."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from anomaly.scans.directions import (
    directions_on_grid,
    harmonic_order,
    matching_directions,
    resample_directions,
)


def sphere(n, seed=0):
    """Spread directions over half a sphere by the golden angle, turned at random."""
    k = np.arange(n) + 0.5
    z = 1 - k / n
    angle = np.pi * (1 + 5**0.5) * k
    points = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return points @ turn.T


def crossing(directions, seed, n=60, b=1.0):
    """Signals of two crossing fibers in n voxels."""
    rng = np.random.default_rng(seed)
    made = np.zeros((n, len(directions)))
    for voxel in made:
        for share in (0.6, 0.4):
            turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
            tensor = turn @ np.diag([1.6, 0.35, 0.35]) @ turn.T
            voxel += share * np.exp(-b * np.einsum("ni,ij,nj->n", directions, tensor, directions))
    return made


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PLS", "IRP", "LPI"])
def test_directions_of_files_point_where_the_scanner_did_however_the_image_is_stored(codes):
    canonical = np.diag([2.0, 2.0, 2.0, 1.0])
    ornt = axcodes2ornt(tuple(codes))
    affine = canonical @ inv_ornt_aff(nib.orientations.ornt_transform(axcodes2ornt("RAS"), ornt), (10, 11, 12))
    world = sphere(7)
    # By the definition of FSL: components along the stored axes, the first turned round if the determinant is positive.
    axes = affine[:3, :3] / 2.0
    stored = world @ axes
    if np.linalg.det(affine[:3, :3]) > 0:
        stored = stored * [-1, 1, 1]
    assert "".join(nib.aff2axcodes(affine)) == codes
    np.testing.assert_allclose(directions_on_grid(stored, affine), world, atol=1e-12)


def test_directions_turn_with_an_oblique_grid_and_are_found_in_another_order_and_from_opposite_sides():
    turn = nib.eulerangles.euler2mat(0.2, 0.1, 0.0)
    affine = np.eye(4)
    affine[:3, :3] = turn * 2
    world = sphere(5)
    stored = (world @ turn) * [-1, 1, 1]
    np.testing.assert_allclose(directions_on_grid(stored, affine), world @ turn, atol=1e-12)
    wanted = sphere(30)
    order = np.random.default_rng(1).permutation(30)
    found = matching_directions(-wanted[order], wanted)
    np.testing.assert_array_equal(order[found], np.arange(30))
    # Each measurement is taken once.
    for there, along in ((sphere(30, seed=3), wanted), (wanted[:29], wanted), (np.eye(3)[[0, 0, 1]], np.eye(3))):
        assert matching_directions(there, along) is None


@pytest.mark.parametrize(("n", "order"), [(6, 2), (22, 2), (23, 4), (41, 4), (42, 6), (64, 6), (68, 8), (200, 8)])
def test_the_order_leaves_directions_for_its_coefficients(n, order):
    assert harmonic_order(n) == order
    assert order == 2 or n >= 1.5 * (order + 1) * (order + 2) / 2


@pytest.mark.parametrize(("n", "limit"), [(64, 0.012), (30, 0.02), (12, 0.04)])
def test_resampled_signals_are_close_to_those_of_known_fibers(n, limit):
    there, wanted = sphere(n, seed=1), sphere(64, seed=2)
    found = resample_directions(crossing(there, 5), there, wanted)
    truth = crossing(wanted, 5)
    assert found.dtype == np.float32
    assert np.sqrt(np.mean((found - truth) ** 2)) < limit
    # Nearest neighbors are what harmonics have to beat.
    nearest = np.abs(wanted @ there.T).argmax(axis=1)
    assert np.mean((found - truth) ** 2) < 0.5 * np.mean((crossing(there, 5)[:, nearest] - truth) ** 2)


def test_the_fit_is_that_of_dipy():
    from dipy.core.sphere import Sphere
    from dipy.reconst.shm import sf_to_sh, sh_to_sf

    there, wanted = sphere(64, seed=1), sphere(20, seed=2)
    signals = crossing(there, 5)
    options = {"sh_order_max": 6, "basis_type": "descoteaux07", "legacy": False}
    expected = sh_to_sf(sf_to_sh(signals, Sphere(xyz=there), smooth=0.006, **options), Sphere(xyz=wanted), **options)
    np.testing.assert_allclose(resample_directions(signals, there, wanted), expected, atol=1e-6)


def test_directions_left_out_of_a_real_scan_are_estimated_better_than_by_neighbors(data_dir):
    from anomaly.scans.preparation import prepare_scan

    scan = prepare_scan(data_dir / "dipy_small_dwi" / "small_64D.nii", mask=False)
    voxels, along = scan.case.signal[scan.case.brain], scan.protocol.directions
    found = resample_directions(voxels[:, ::2], along[::2], along[1::2])
    measured = voxels[:, 1::2]

    def error(estimate):
        return np.sqrt(np.mean((estimate - measured) ** 2))

    nearest = np.abs(along[1::2] @ along[::2].T).argmax(axis=1)
    # What it is compared with has noise of its own: about .1, by what harmonics of all 64 leave.
    assert error(found) < 0.8 * error(voxels[:, ::2][:, nearest])
    assert error(found) < 0.9 * error(voxels[:, ::2].mean(axis=1, keepdims=True))
