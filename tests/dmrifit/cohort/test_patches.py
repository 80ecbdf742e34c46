"""Neighborhoods of voxels."""

import numpy as np
import pytest

from dmrifit.cohort.patches import as_neighbors, center_of, check_reach, neighborhoods, with_signal

SHAPES = [(1, 1, 1), (3, 3, 1), (3, 1, 3), (5, 3, 3)]


@pytest.fixture(scope="module")
def volume():
    values = np.random.default_rng(0).uniform(1, 9, (6, 5, 4, 3)).astype(np.float32)
    values[2, 3, 1] = 0
    values[4, 1, 2, 1] = -1
    values[1, 1, 1, 0] = np.nan
    return values


@pytest.fixture(scope="module")
def region():
    inside = np.ones((6, 5, 4), bool)
    inside[0] = inside[:, 4, 2:] = False
    return inside


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_holds_the_neighbors_in_the_documented_order(volume, region, shape):
    """Compared with plain loops; voxels at the rim of the image and of the region are among them."""
    where = np.nonzero(np.ones((6, 5, 4), bool))
    rows = neighborhoods(volume, where, shape, region=region)
    assert rows.dtype == volume.dtype
    for row, center in zip(rows, zip(*where, strict=True), strict=True):
        expected = []
        for shift in np.ndindex(*shape):
            at = tuple(c + s - n // 2 for c, s, n in zip(center, shift, shape, strict=True))
            in_image = all(0 <= i < n for i, n in zip(at, (6, 5, 4), strict=True))
            usable = in_image and region[at] and np.all(volume[at] >= 0) and np.any(volume[at] > 0)
            expected.append(volume[at] if usable else volume[center])
        np.testing.assert_array_equal(row, np.concatenate(expected))


def test_a_row_has_the_voxel_itself_in_the_middle_and_a_gap_only_where_that_has_one(volume):
    where = np.nonzero(np.ones((6, 5, 4), bool))
    rows = neighborhoods(volume, where, (3, 3, 3))
    gaps = ~np.isfinite(rows).all(axis=1)
    np.testing.assert_array_equal(gaps, ~np.isfinite(volume[where]).all(axis=1))
    assert gaps.sum() == 1
    where = np.nonzero(volume[..., 0] > 3)
    for shape in SHAPES:
        rows = neighborhoods(volume, where, shape)
        np.testing.assert_array_equal(center_of(rows, shape), volume[where])
        assert as_neighbors(rows, shape).shape == (len(where[0]), np.prod(shape), 3)
    np.testing.assert_array_equal(neighborhoods(volume, where, None), volume[where])
    np.testing.assert_array_equal(center_of(volume[where], None), volume[where])


def test_voxels_without_signal_are_found_and_the_background_does_not_reach_the_rows(volume, region):
    where = np.nonzero(region)
    other = np.where(region[..., None], volume, 77.0)
    first, second = (neighborhoods(v, where, (3, 3, 3), region=region) for v in (volume, other))
    np.testing.assert_array_equal(first, second)
    signals = [[0, 0], [0, 1], [-1, 2], [np.nan, 1], [np.inf, 1], [3, 4]]
    assert with_signal(signals).tolist() == [False, True, False, False, False, True]
    # A neighborhood may reach out of some images.
    check_reach((3, 3, 5), [(9, 9, 2), (9, 9, 3)])
