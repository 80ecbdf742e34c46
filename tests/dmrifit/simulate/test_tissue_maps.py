"""Maps of tissue are read in one order and place, and refused where they are no shares."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.simulate.heads import centered_grid
from dmrifit.simulate.tissue_maps import coarser_maps, read_tissues

SPACING = 4.0, 4.0, 4.0


def shells(affine, shape=(40, 48, 36)):
    """Make a ball of white matter in a shell of gray, in the middle of the grid."""
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    places = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3] - middle
    radius = np.sqrt(((places / [64, 80, 56]) ** 2).sum(axis=-1))
    return ((radius >= 0.7) & (radius < 1)).astype(np.float32), (radius < 0.7).astype(np.float32)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_maps_in_files_are_shares_or_bytes_that_stand_for_them(kind, tmp_path):
    affine = centered_grid((40, 48, 36), SPACING)
    affine[:3, 3] += [7.0, -11.0, 30.0]
    gray, white = shells(affine)
    scale = 255 if kind is np.uint8 else 1
    for name, values in (("gray", gray), ("white", white)):
        nib.save(nib.Nifti1Image((scale * values).astype(kind), affine), tmp_path / f"{name}.nii")
    maps = read_tissues(tmp_path / "gray.nii", tmp_path / "white.nii")
    np.testing.assert_allclose(maps.gray, gray, atol=1e-6)
    np.testing.assert_allclose(maps.white, white, atol=1e-6)
    np.testing.assert_array_equal(maps.brain > 0, gray + white > 0.2)
    # The middle of the brain is at 0, wherever it lay; half axes end at centers of voxels.
    corners = np.argwhere(maps.brain > 0) @ maps.affine[:3, :3].T + maps.affine[:3, 3]
    np.testing.assert_allclose(corners.min(axis=0), -corners.max(axis=0), atol=1e-9)
    np.testing.assert_allclose(maps.half_axes, corners.max(axis=0))
    np.testing.assert_allclose(maps.half_axes, [64, 80, 56], atol=4)


def test_maps_are_the_same_however_their_axes_are_stored():
    affine = centered_grid((40, 48, 36), SPACING)
    images = [nib.Nifti1Image(values, affine) for values in shells(affine)]
    images[0].dataobj[10, 20, 30] = 0.5
    turn = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(codes) for codes in ("RAS", "PIL")))
    plain, turned = (read_tissues(*pair) for pair in (images, [image.as_reoriented(turn) for image in images]))
    for name in ("gray", "white", "brain", "affine", "half_axes"):
        np.testing.assert_allclose(getattr(turned, name), getattr(plain, name), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gray: gray * 1.02, "holds no probabilities from 0 to 1 on three axes"),
        (lambda gray: gray - 0.02, "holds no probabilities"),
        (lambda gray: np.where(gray > 0, np.nan, 0), "holds no probabilities"),
        (lambda gray: np.stack([gray, gray], axis=-1), "holds no probabilities|different grids"),
        (lambda gray: gray[:-1], "different grids"),
    ],
)
def test_maps_that_are_no_shares_are_refused(change, message):
    affine = centered_grid((40, 48, 36), SPACING)
    gray, white = shells(affine)
    with pytest.raises(ValueError, match=message):
        read_tissues(nib.Nifti1Image(change(gray).astype(np.float32), affine), nib.Nifti1Image(white, affine))


def test_maps_without_matter_hold_no_brain():
    empty = nib.Nifti1Image(np.full((20, 20, 20), 0.09, np.float32), np.eye(4))
    with pytest.raises(ValueError, match=r"hold no brain: their sum is nowhere above 0\.2"):
        read_tissues(empty, empty)


def test_blocks_of_fine_voxels_are_averaged_in_place():
    affine = centered_grid((40, 48, 36), SPACING)
    gray, white = shells(affine)
    maps = read_tissues(*(nib.Nifti1Image(values, affine) for values in (gray, white)))
    coarse = coarser_maps(maps, 8.0)
    np.testing.assert_allclose(coarse.white[5, 6, 4], maps.white[10:12, 12:14, 8:10].mean())
    first = maps.affine @ [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(coarse.affine @ [0, 0, 0, 1], first)
    np.testing.assert_allclose(np.diag(coarse.affine), [8, 8, 8, 1])
    same = coarser_maps(maps, 4.0)
    np.testing.assert_array_equal(same.gray, maps.gray)
    np.testing.assert_array_equal(same.affine, maps.affine)
