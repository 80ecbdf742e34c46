"""Hard places are found by tissue and height, in mm and world coordinates."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from anomaly.scans.cases import Case
from anomaly.study.strata import ELSEWHERE, STRATA, strata_masks


def test_strata_cover_what_is_scored_and_lie_where_they_should(make_case):
    case = make_case(0, 1, lesion=True)
    masks = strata_masks(case)
    assert list(masks) == [*STRATA, ELSEWHERE]
    np.testing.assert_array_equal(np.logical_or.reduce(list(masks.values())), case.scored)
    assert not any((masks[name] & masks[ELSEWHERE]).any() for name in STRATA)
    assert masks["near cortex"][case.tissue == 2].all()
    assert masks["deep nuclei"][case.tissue == 4].all()
    # 5 mm are one voxel of 4 mm, and not the diagonal of two.
    for structure, name in ((2, "near cortex"), (4, "deep nuclei")):
        grown = ndimage.binary_dilation(case.tissue == structure)
        np.testing.assert_array_equal(masks[name], grown & case.scored)
    plain = strata_masks(replace(case, tissue=None))
    assert not plain["deep nuclei"].any()
    assert (plain["near cortex"] & ~ndimage.binary_erosion(case.brain)).sum() > 100


def white_case(shape, affine):
    """Give a case of white matter alone, all of it brain."""
    signal = np.full((*shape, 1), 0.4, dtype=np.float32)
    return Case(
        "p",
        signal,
        np.ones(shape, dtype=bool),
        tissue=np.ones(shape, dtype=np.uint8),
        affine=affine,
    )


@pytest.mark.parametrize(("number", "name"), [(2, "near cortex"), (4, "deep nuclei")])
def test_nearness_is_a_distance_in_mm(number, name):
    case = white_case((11, 9, 7), np.diag([1.0, 2.0, 4.0, 1.0]))
    tissue = case.tissue.copy()
    tissue[5, 4, 3] = number
    case = replace(case, tissue=tissue)
    x, y, z = (np.arange(n) for n in case.shape)
    apart = ((x - 5) ** 2)[:, None, None] + (4 * (y - 4) ** 2)[:, None] + 16 * (z - 3) ** 2
    np.testing.assert_array_equal(strata_masks(case)[name], apart <= 25)


def test_the_base_is_the_lowest_quarter_of_the_height_in_the_world():
    straight = white_case((4, 4, 9), np.eye(4))
    # Of heights from 0 to 8 mm those below 2.
    base = strata_masks(straight)["basal"]
    assert np.flatnonzero(base.any(axis=(0, 1))).tolist() == [0, 1]
    assert base[:, :, :2].all()
    # The first axis goes down from 50 mm, in steps of 3: of 50 to 26 the base is below 32.
    turned = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-3, 0, 0, 50], [0, 0, 0, 1.0]])
    base = strata_masks(white_case((9, 4, 4), turned))["basal"]
    assert np.flatnonzero(base.any(axis=(1, 2))).tolist() == [7, 8]


def test_the_height_is_that_of_the_brain_and_fluid_is_in_no_stratum():
    case = white_case((4, 4, 16), np.eye(4))
    brain, tissue = case.brain.copy(), case.tissue.copy()
    brain[..., :4] = False
    tissue[0] = 3
    masks = strata_masks(replace(case, brain=brain, tissue=np.where(brain, tissue, 0)))
    # From 4 to 15 mm the lowest quarter ends below 6.75.
    assert np.flatnonzero(masks["basal"].any(axis=(0, 1))).tolist() == [4, 5, 6]
    assert not any(mask[0].any() for mask in masks.values())
    assert masks[ELSEWHERE].sum() == 3 * 4 * 9
