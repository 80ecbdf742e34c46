"""Connected components: numbered, matched, left out."""

import numpy as np
import pytest
from scipy import ndimage

from dmrifit.io.components import (
    check_affine,
    drop_small,
    label_components,
    match_components,
    match_to_lesions,
    meeting_pairs,
)


def voxels(*places, shape=(6, 6, 6)):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


@pytest.mark.parametrize(
    ("second", "together"),
    [((1, 1, 2), {6, 18, 26}), ((1, 2, 2), {18, 26}), ((2, 2, 2), {26}), ((1, 1, 3), set())],
    ids=["face", "edge", "corner", "apart"],
)
def test_voxels_are_connected_by_faces_edges_or_corners(second, together):
    mask = voxels((1, 1, 1), second)
    for connectivity in (6, 18, 26):
        labels = label_components(mask, connectivity=connectivity)
        assert labels.max() == (1 if connectivity in together else 2)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels > 0, mask)
    assert label_components(mask).max() == (1 if 26 in together else 2)


@pytest.mark.parametrize(
    ("min_voxels", "kept"), [(1, {1, 2, 3}), (2, {2, 3}), (3, {3}), (4, set())]
)
def test_small_components_are_left_out(min_voxels, kept):
    parts = {
        1: voxels((0, 0, 0)),
        2: voxels((3, 3, 0), (3, 4, 1)),
        3: voxels((5, 0, 3), (5, 0, 4), (5, 0, 5)),
    }
    mask = parts[1] | parts[2] | parts[3]
    expected = np.zeros_like(mask)
    for number in kept:
        expected |= parts[number]
    np.testing.assert_array_equal(drop_small(7 * mask, min_voxels), expected)
    assert not drop_small(parts[2], 2, connectivity=6).any()


@pytest.fixture
def matching():
    """Match lesions with components: one on two, a too large one, two on one, one on none."""
    reference, prediction = np.zeros((30, 5, 3), bool), np.zeros((30, 5, 3), bool)
    reference[0:3, 0, 0] = reference[4:6, 0, 0] = True
    prediction[2:5, 0, 0] = True  # shares one voxel with each of the two
    reference[10, 0, 0] = True
    prediction[10:21, 0, 0] = True  # 11 voxels on a lesion of one
    reference[24:29, 0, 0] = True
    prediction[24:26, 0, 0] = prediction[27:29, 0, 0] = True
    prediction[0, 4, 2] = True
    return reference, prediction


def test_components_match_lesions_that_they_share_voxels_with(matching):
    matched = match_components(*matching)
    assert matched.lesion_voxels.tolist() == [3, 2, 1, 5]
    assert matched.component_voxels.tolist() == [1, 3, 11, 2, 2]
    pairs = list(
        zip(
            matched.lesion.tolist(),
            matched.component.tolist(),
            matched.overlap.tolist(),
            strict=True,
        )
    )
    assert pairs == [(0, 1, 1), (1, 1, 1), (2, 2, 1), (3, 3, 2), (3, 4, 2)]
    assert matched.found.tolist() == [True] * 4
    assert matched.false_positive.tolist() == [True, False, False, False, False]
    assert matched.flagged.tolist() == [False, True, True, False, False]
    assert matched.distinct.tolist() == [False, False, False, True]


def test_more_shared_voxels_may_be_asked_for_and_small_components_do_not_take_part(matching):
    matched = match_components(*matching, min_overlap=2)
    assert matched.lesion.tolist() == [3, 3]
    assert matched.found.tolist() == [False, False, False, True]
    assert matched.false_positive.tolist() == [True, True, True, False, False]
    matched = match_components(*matching, min_voxels=3)
    assert matched.component_voxels.tolist() == [3, 11]
    assert matched.found.tolist() == [True, True, True, False]


def test_a_component_of_ten_times_the_lesion_is_not_flagged_yet(matching):
    reference, prediction = matching
    prediction[20, 0, 0] = False
    assert match_components(reference, prediction).flagged.tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]


def test_lesions_that_are_numbered_already_keep_their_numbers(matching):
    reference, prediction = matching
    lesions = ndimage.label(reference)[0].astype(np.int32)
    backward = np.where(lesions > 0, 5 - lesions, 0).astype(np.int32)
    matched = match_to_lesions(backward, prediction)
    assert matched.lesion_voxels.tolist() == [5, 1, 2, 3]
    with pytest.raises(
        ValueError, match=r"shape \(30, 5, 3\) and a prediction of shape \(30, 5, 2\)"
    ):
        match_to_lesions(lesions, prediction[..., :2])


def test_pairs_that_meet_are_those_of_a_search():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, n, (7, 8, 9)).astype(np.int32) for n in (5, 7))
    expected = [
        (i - 1, j - 1, int(((first == i) & (second == j)).sum()))
        for i, j in np.ndindex(5, 7)
        if i and j and ((first == i) & (second == j)).any()
    ]
    pairs = meeting_pairs(first, second, first > 0, 6)
    assert list(zip(*(column.tolist() for column in pairs), strict=True)) == expected
    nothing = meeting_pairs(first, np.zeros_like(second), first > 0, 0)
    assert [len(column) for column in nothing] == [0, 0, 0]


def test_masks_may_be_of_any_type_of_number():
    mask = voxels((1, 1, 1), (4, 4, 4))
    for kind in (bool, np.uint8, np.int64, np.float32):
        assert match_components(mask.astype(kind), mask).overlap.tolist() == [1, 1]


def test_an_affine_places_voxels():
    np.testing.assert_array_equal(check_affine(None), np.eye(4))
    np.testing.assert_array_equal(
        check_affine([[2, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])[1], [0, 3, 0, 2]
    )
