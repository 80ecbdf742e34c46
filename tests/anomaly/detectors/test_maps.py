"""Maps, masks and lesions are checked scan by scan, and opening keeps what cubes fill."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly.detectors.maps import (
    ScoredScans,
    checked_binary,
    checked_masks,
    checked_volumes,
    open_map,
)

SHAPE = (3, 4, 2)


@pytest.fixture
def scored():
    """Give two scans with numbered voxels: of the first a column counts, of the second a plane."""
    first, second = np.arange(24.0).reshape(SHAPE), np.arange(100.0, 124.0).reshape(SHAPE)
    masks = [np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)]
    masks[0][1, :, 0] = True
    masks[1][:, :, 1] = True
    return ScoredScans([first, second], masks, None)


def test_scores_are_those_of_the_voxels_that_count(scored):
    first, second = scored.inside()
    assert first.tolist() == [8, 10, 12, 14]
    assert second.tolist() == [101 + 2 * i for i in range(12)]


# Opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_opening_keeps_what_cubes_fill(size):
    rng = np.random.default_rng(size)
    binary = rng.random((3, 14, 12, 13)) < 0.98
    found = open_map(binary, size)
    for one, opened in zip(binary, found, strict=True):
        expected = np.zeros(one.shape, bool)
        for corner in np.ndindex(*(n - size + 1 for n in one.shape)):
            cube = tuple(slice(c, c + size) for c in corner)
            if one[cube].all():
                expected[cube] = True
        np.testing.assert_array_equal(opened, expected)
        np.testing.assert_array_equal(opened, ndimage.binary_opening(one, np.ones((size,) * 3)))
        np.testing.assert_array_equal(open_map(opened, size), opened)
    assert found.any()
    np.testing.assert_array_equal(open_map(binary.astype(np.uint8), size), found)


def test_opening_removes_specks_and_thin_sheets_and_keeps_a_cube():
    binary = np.zeros((12, 12, 12))
    binary[2:5, 2:5, 2:5] = 1
    cube = binary.astype(bool)
    binary[8, 8, 8] = 1
    binary[7:9, :, 10] = 1
    np.testing.assert_array_equal(open_map(binary), cube)
    assert not open_map(np.ones((2, 9, 9))).any()


def test_cubes_reach_the_border_of_the_volume_and_not_beyond():
    corner = np.zeros((6, 6, 6), dtype=bool)
    corner[:3, :3, :3] = corner[3:, 4:, 3:] = True
    opened = open_map(corner)
    assert opened[:3, :3, :3].all()
    # A part that is two voxels wide at the border holds no cube.
    assert opened.sum() == 27


@pytest.mark.parametrize("size", [0, 1.5, True])
def test_sizes_that_are_no_numbers_of_voxels_are_refused(size):
    with pytest.raises(
        ValueError, match=f"size must be a whole number of voxels of 1 or more, not {size}"
    ):
        open_map(np.zeros((4, 4, 4), dtype=bool), size)


def test_maps_that_cannot_be_opened_are_refused():
    with pytest.raises(ValueError, match=r"the map must hold 0 and 1 only, not \[0.5, 2.0\]"):
        open_map(np.array([[[0, 1, 0.5, 2.0]]]))
    with pytest.raises(ValueError, match=r"has the axes .* not the shape \(4, 4\)"):
        open_map(np.zeros((4, 4), dtype=bool))


# Checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.uint8, np.float32), (bool, np.float32), (np.float32, np.float32), (float, float)],
)
def test_scores_become_floating_point_and_keep_their_precision(dtype, expected):
    values = np.arange(24).reshape(SHAPE).astype(dtype)
    (volume,) = checked_volumes([values], "map")
    assert volume.dtype == expected
    np.testing.assert_array_equal(volume, values)


def test_volumes_that_are_no_scores_are_refused_by_their_number():
    sound = np.zeros(SHAPE)
    broken = sound.copy()
    broken[0, 0] = np.nan, np.inf
    for wrong, message in (
        (broken, "map 1 contains 2 non-finite values"),
        (sound.astype(complex), "map 1 contains 24 non-finite values"),
        (sound[0], r"map 1 must be a volume \(x, y, z\), not an array of shape \(4, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_volumes([sound, wrong], "map")
    with pytest.raises(ValueError, match="there are no maps"):
        checked_volumes([], "map")


def test_without_masks_all_voxels_count():
    volumes = [np.zeros(SHAPE), np.zeros((2, 2, 2))]
    masks = checked_masks(None, volumes)
    assert [mask.sum() for mask in masks] == [24, 8]
    assert [mask.shape for mask in masks] == [SHAPE, (2, 2, 2)]


def test_masks_of_numbers_become_boolean_and_wrong_ones_are_refused():
    volumes = [np.zeros(SHAPE)] * 2
    half = np.zeros(SHAPE, dtype=np.int16)
    half[0] = 1
    first, second = checked_masks([half, half > 0], volumes)
    assert first.dtype == second.dtype == bool
    np.testing.assert_array_equal(first, second)
    assert first.sum() == 8
    for masks, message in (
        ([half], "1 mask for 2 maps"),
        ([half, half[1:]], r"mask 1 has shape \(2, 4, 2\) and its map \(3, 4, 2\)"),
        ([half, 0 * half], "mask 1 is empty"),
        ([half, 3 * half], r"mask 1 must hold 0 and 1 only, not \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_masks(masks, volumes)


def test_lesions_may_be_empty_and_are_named_as_told():
    volumes = [np.zeros(SHAPE)]
    (lesion,) = checked_binary([np.zeros(SHAPE)], volumes, "truth")
    assert lesion.dtype == bool
    assert not lesion.any()
    with pytest.raises(ValueError, match="truth 0 has shape"):
        checked_binary([np.zeros((3, 4, 3))], volumes, "truth")
