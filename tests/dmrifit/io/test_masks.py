"""Masks and grids, as arrays."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.io.masks import above_air, above_air_or_noise, binarize, check_same_grid

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


@pytest.mark.parametrize(("shift", "refused"), [(0.19, False), (0.21, True)])
def test_grids_agree_within_a_tenth_of_the_smallest_edge(shift, refused):
    """Which is 2 mm here, and the largest 3 mm."""
    moved = AFFINE.copy()
    moved[0, 3] += shift
    if not refused:
        same_grid(affine=moved)
        return
    with pytest.raises(ValueError, match="apart"):
        same_grid(affine=moved)


@pytest.mark.parametrize(("stretch", "refused"), [(0.039, False), (0.041, True)])
def test_grids_are_compared_at_the_middle_of_their_outermost_voxels(stretch, refused):
    """Five steps along the first of six voxels may add up to 0.2 mm."""
    longer = AFFINE.copy()
    longer[0, 0] -= stretch
    if not refused:
        same_grid(affine=longer)
        return
    with pytest.raises(ValueError, match="apart"):
        same_grid(affine=longer)


def test_tissue_is_told_from_air_and_ghosts_and_not_from_darker_tissue_or_fluid():
    rng = np.random.default_rng(0)
    air, tissue = np.abs(rng.normal(0, 10, 900)), rng.uniform(200, 600, 300)
    signals = np.concatenate([air, tissue, [1e6, np.nan]])
    inside = above_air(signals)
    assert not inside[:900].any()
    assert inside[900:1201].mean() > 0.95
    assert not inside[-1]
    assert above_air(tissue).all()
    assert above_air(np.full(4, 7.0)).tolist() == [True] * 4
    assert above_air(np.empty(0)).shape == (0,)
    ghosts, tissue, fluid = np.full(300, 70.0), np.full(500, 200.0), np.full(200, 1000.0)
    signals = np.concatenate([ghosts, tissue, fluid])
    assert above_air_or_noise(signals, 10.0).tolist() == [False] * 300 + [True] * 700
    # Tissue of five times the noise may be air, and where the level is not known nothing is added.
    for level in (50.0, 0.0, np.nan, np.full(1000, np.nan)):
        assert above_air_or_noise(signals, level).tolist() == [False] * 800 + [True] * 200
    assert above_air_or_noise(np.empty(0), 1.0).shape == (0,)


def test_a_real_mask_whose_ones_are_0_99999997_is_read_as_a_mask(data_dir):
    mask = nib.load(data_dir / "brats2013_deepmedic" / "brats_2013_pat0005_1" / "brainmask.nii.gz").get_fdata()
    assert 0.9999 < mask.max() < 1
    assert np.count_nonzero(binarize(mask)) == 1523743
