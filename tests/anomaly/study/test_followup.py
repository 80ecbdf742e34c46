"""Regions outside the structural lesion are told, and whether the lesion grows into them."""

import numpy as np
import pytest
from scipy import ndimage

import anomaly
from anomaly.study.scores import overlap_with_followup

SHAPE = (20, 16, 14)


def box(*ranges):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*one) for one in ranges)] = True
    return mask


STRUCTURAL = box((2, 7), (2, 7), (2, 7))
LATER = box((2, 11), (2, 7), (2, 7))  # grows by 4 along the first axis
AHEAD = box((7, 10), (3, 6), (3, 6))
BESIDE = box((14, 18), (10, 14), (8, 11))


def test_regions_where_the_lesion_grows_are_told_from_others():
    found = overlap_with_followup(STRUCTURAL | AHEAD | BESIDE, STRUCTURAL, LATER, affine=np.diag([2, 2, 2, 1]))
    assert found.mismatch
    assert found.colocated
    assert found.grown
    regions = found.regions
    assert regions["n_voxels"].tolist() == [27, 48]
    assert regions["volume_mL"].tolist() == pytest.approx([0.216, 0.384])
    assert regions["n_later"].tolist() == [27, 0]
    assert regions["share_later"].tolist() == [1, 0]
    assert regions["colocated"].tolist() == [True, False]
    assert found.share_flagged == 27 / 100
    assert found.share_expected == 75 / (20 * 16 * 14 - 125)
    assert found.dice_growth == pytest.approx(2 * 27 / (75 + 100))


def test_without_regions_or_growth_there_is_nothing_to_co_locate():
    plain = overlap_with_followup(STRUCTURAL, STRUCTURAL, LATER)
    assert (plain.mismatch, plain.colocated, plain.grown) == (False, False, True)
    assert np.isnan(plain.chance)
    assert plain.share_flagged == 0
    stable = overlap_with_followup(STRUCTURAL | AHEAD, STRUCTURAL, STRUCTURAL)
    assert (stable.mismatch, stable.colocated, stable.grown, stable.chance) == (True, False, False, 0)
    assert np.isnan(stable.share_flagged)
    empty = overlap_with_followup(0 * STRUCTURAL, 0 * STRUCTURAL, 0 * STRUCTURAL)
    assert (empty.mismatch, empty.grown) == (False, False)
    assert np.isnan(empty.dice_growth)


def test_the_share_flagged_counts_voxels_of_large_regions_alone():
    speck = box((7, 9), (3, 5), (3, 5))
    # 8 of 100 voxels of the growth, and of the voxels without the structural lesion.
    small = overlap_with_followup(STRUCTURAL | speck, STRUCTURAL, LATER)
    assert (small.share_flagged, small.share_expected) == (0, 0)
    large = overlap_with_followup(STRUCTURAL | speck, STRUCTURAL, LATER, min_voxels=8)
    assert large.share_flagged == 8 / 100
    assert large.share_expected == 8 / (20 * 16 * 14 - 125)


def test_small_regions_borders_and_slight_overlaps_count_where_asked():
    speck = box((7, 9), (3, 5), (3, 5))
    assert not overlap_with_followup(STRUCTURAL | speck, STRUCTURAL, LATER).mismatch
    assert overlap_with_followup(STRUCTURAL | speck, STRUCTURAL, LATER, min_voxels=8).colocated
    # What lies along the border is drawn differently by everyone.
    found = overlap_with_followup(STRUCTURAL | AHEAD, STRUCTURAL, LATER, margin_mm=4, affine=np.diag([2, 2, 2, 1]))
    assert not found.mismatch
    kept = overlap_with_followup(
        STRUCTURAL | AHEAD, STRUCTURAL, LATER, margin_mm=4, affine=np.diag([2, 2, 2, 1]), min_voxels=9
    )
    assert kept.regions["n_voxels"].tolist() == [9]
    edge = box((10, 14), (3, 6), (3, 6))  # nine voxels in the growth
    assert overlap_with_followup(edge, STRUCTURAL, LATER, min_overlap=9).colocated
    assert not overlap_with_followup(edge, STRUCTURAL, LATER, min_overlap=10).colocated
    assert not overlap_with_followup(edge, STRUCTURAL, LATER, brain=box((0, 10), (0, 16), (0, 14))).mismatch


@pytest.mark.parametrize("seed", [6, 23])
@pytest.mark.parametrize("min_overlap", [1, 4])
def test_chance_is_the_share_of_places_where_a_region_would_co_locate(seed, min_overlap):
    rng = np.random.default_rng(seed)
    brain = ndimage.binary_dilation(rng.random(SHAPE) < 0.1, iterations=2)
    later = STRUCTURAL | ndimage.binary_dilation(rng.random(SHAPE) < 0.003, iterations=2)
    flagged = ndimage.binary_dilation(rng.random(SHAPE) < 0.004, iterations=1)
    found = overlap_with_followup(
        flagged, STRUCTURAL, later, brain=brain, min_voxels=3, min_overlap=min_overlap, connectivity=6
    )
    place = brain & ~STRUCTURAL
    growth = later & place
    labels, n = ndimage.label(flagged & place)
    sizes = [(labels == k).sum() for k in range(1, n + 1)]
    assert len(found.regions) == sum(size >= 3 for size in sizes) > 0
    for row in found.regions.itertuples():
        voxels = np.argwhere(labels == row.number)
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        offsets = voxels - (low + (high - low + 1) // 2)
        hits = 0
        for center in np.argwhere(place):
            moved = center + offsets
            moved = moved[((moved >= 0) & (moved < SHAPE)).all(axis=1)]
            hits += growth[tuple(moved.T)].sum() >= min_overlap
        assert row.chance == pytest.approx(hits / place.sum())
        assert row.n_later == growth[labels == row.number].sum()
    assert found.chance == pytest.approx(1 - np.prod(1 - found.regions["chance"]))


def test_masks_that_do_not_fit_are_refused():
    assert anomaly.overlap_with_followup is overlap_with_followup
    with pytest.raises(ValueError, match="followup has shape"):
        overlap_with_followup(AHEAD, STRUCTURAL, LATER[1:])
    with pytest.raises(ValueError, match="anomaly must hold 0 and 1 only"):
        overlap_with_followup(0.5 * AHEAD, STRUCTURAL, LATER)
    with pytest.raises(ValueError, match="structural must be a volume"):
        overlap_with_followup(AHEAD, STRUCTURAL[0], LATER)
    for wrong in ({"margin_mm": -1}, {"min_voxels": 0}, {"min_overlap": 0}):
        with pytest.raises(ValueError, match="margin_mm must be 0 or more"):
            overlap_with_followup(AHEAD, STRUCTURAL, LATER, **wrong)
