"""Connected components: numbered, left out."""

import numpy as np
import pytest

from dmrifit.io.components import check_affine, drop_small, label_components


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


@pytest.mark.parametrize(("min_voxels", "kept"), [(1, {1, 2, 3}), (2, {2, 3}), (3, {3}), (4, set())])
def test_small_components_are_left_out(min_voxels, kept):
    parts = {1: voxels((0, 0, 0)), 2: voxels((3, 3, 0), (3, 4, 1)), 3: voxels((5, 0, 3), (5, 0, 4), (5, 0, 5))}
    mask = parts[1] | parts[2] | parts[3]
    expected = np.zeros_like(mask)
    for number in kept:
        expected |= parts[number]
    np.testing.assert_array_equal(drop_small(7 * mask, min_voxels), expected)
    assert not drop_small(parts[2], 2, connectivity=6).any()


def test_an_affine_places_voxels():
    np.testing.assert_array_equal(check_affine(None), np.eye(4))
    np.testing.assert_array_equal(
        check_affine([[2, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])[1], [0, 3, 0, 2]
    )
