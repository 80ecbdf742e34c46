"""Masks and grids, as arrays."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.io.masks import binarize, check_same_grid

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0.1, -126], [0, -0.1, 3.0, -72], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)


def same_grid(shape=SHAPE, affine=AFFINE):
    check_same_grid((shape, affine), (SHAPE, AFFINE), name="mask.nii", reference_name="dwi.nii")


def test_inside_is_above_one_half_whatever_the_type_and_unround_labels_are_labels():
    values = [0.0, 0.4, 0.6, np.nan, -0.1, 0.99999997]
    assert np.flatnonzero(binarize(values)).tolist() == [2, 5]
    assert binarize(np.array([0, 1, 7, 255], np.uint8)).tolist() == [False, True, True, True]
    assert binarize([True, False]).tolist() == [True, False]
    assert binarize([0, 1.9999999, 255.002]).tolist() == [False, True, True]


def test_a_mask_may_be_empty_where_that_is_said_if_it_holds_a_number():
    assert binarize([0.0, np.nan], may_be_empty=True).tolist() == [False, False]
    with pytest.raises(ValueError, match="it holds no finite value"):
        binarize([np.nan, np.nan], may_be_empty=True)


def test_grids_agree_within_rounding_and_other_sizes_and_places_are_told_with_both_affines():
    same_grid(affine=AFFINE.astype(np.float32))
    same_grid(affine=AFFINE + np.random.default_rng(0).uniform(-1e-4, 1e-4, (4, 4)))
    shifted = AFFINE.copy()
    shifted[0, 3] += 2
    with pytest.raises(ValueError, match=r"up to 2 mm apart.*92\.0.*90\.0.*resample"):
        same_grid(affine=shifted)


@pytest.mark.parametrize(("column", "accepted", "refused"), [(3, 0.19, 0.21), (0, -0.039, -0.041)])
def test_grids_agree_within_a_tenth_of_the_smallest_edge_at_the_middle_of_the_outermost_voxels(
    column, accepted, refused
):
    """The smallest edge is 2 mm; five steps along the first of six voxels may add up to 0.2 mm."""
    moved = AFFINE.copy()
    moved[0, column] += accepted
    same_grid(affine=moved)
    moved[0, column] += refused - accepted
    with pytest.raises(ValueError, match="apart"):
        same_grid(affine=moved)


def test_a_real_mask_whose_ones_are_0_99999997_is_read_as_a_mask(data_dir):
    mask = nib.load(data_dir / "brats2013_deepmedic" / "brats_2013_pat0005_1" / "brainmask.nii.gz").get_fdata()
    assert 0.9999 < mask.max() < 1
    assert np.count_nonzero(binarize(mask)) == 1523743
