"""Volumes as rows: running sums, and the part of a box that they fill, against cuboids and sampling."""

import numpy as np
import pytest

from placement import Voxel
from placement.box.row_integrals import ROW_MM, Rows, _mirrored_strips


def test_rows_run_along_the_longest_edge_with_the_first_voxel_where_the_affine_says():
    volume = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    for spacing, axes in (((1, 1, 4), (0, 1, 2)), ((1, 4, 1), (0, 2, 1)), ((4, 1, 1), (1, 2, 0))):
        rows = Rows.of(volume, np.diag([*spacing, 1.0]), (0, 0, 0))
        assert rows.axes == axes
        turned = volume.transpose(axes)
        a, b, c = turned.shape
        assert rows.prefix.shape == (a + 2, b + 2, c + 1)
        np.testing.assert_allclose(rows.prefix[1:-1, 1:-1, 1:], turned.cumsum(axis=2), rtol=1e-6)
        assert rows.prefix[..., 0].max() == 0
        assert rows.prefix[[0, -1]].max() == rows.prefix[:, [0, -1]].max() == 0
    # Of equal edges the last is taken.
    assert Rows.of(volume, np.eye(4), (0, 0, 0)).axes == (0, 1, 2)
    affine = np.array([[0.0, 0, 3, 7], [-1, 0, 0, 4], [0, 1.5, 0, -2], [0, 0, 0, 1]])
    rows = Rows.of(np.ones((3, 4, 5)), affine, (6, 2, 9))
    # Sums begin half a slice before their index, behind one empty row on each of the two other axes.
    first = rows.matrix @ [1, 1, 0] + rows.offset
    np.testing.assert_allclose(first, affine[:3, :3] @ [6, 2, 9] + affine[:3, 3])
    np.testing.assert_allclose(rows.matrix, affine[:3, :3][:, list(rows.axes)])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.3, 0.7, 3.0), (4.0, 1.0, 0.8)])
def test_a_cuboid_and_an_unturned_box_share_what_their_sides_say(spacing):
    spacing = np.array(spacing)
    shape = np.ceil(40 / spacing).astype(int)
    first, last = (shape * 0.2).astype(int), (shape * 0.75).astype(int)
    filled = np.zeros(shape, np.float32)
    filled[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = 0.5
    origin, shift = np.array([2, 3, 1]), np.array([10.0, -20, 30])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = shift
    rows = Rows.of(filled, affine, origin)
    low = (first + origin - 0.5) * spacing + shift
    high = (last + origin - 0.5) * spacing + shift
    rng = np.random.default_rng(1)
    for _ in range(20):
        voxel = Voxel(rng.uniform(low, high), rng.uniform(5, 25, 3))
        below = np.maximum(voxel.center - voxel.size / 2, low)
        above = np.minimum(voxel.center + voxel.size / 2, high)
        expected = 0.5 * np.prod(above - below) / np.prod(voxel.size)
        assert rows.fraction(voxel) == pytest.approx(expected, abs=1e-6)


def test_finer_rows_come_nearer_to_a_turned_box_and_averaged_rows_keep_the_sum():
    half = np.zeros((60, 60, 60), np.float32)
    half[:30] = 1
    rows = Rows.of(half, np.eye(4), (0, 0, 0))
    # The plane x = 29.5 cuts a square that is turned by 45 degrees; a corner lies beyond it.
    voxel = Voxel((29.5 - 8, 30, 30), (20, 20, 20), (0, 0, 45))
    beyond = (10 * np.sqrt(2) - 8) ** 2 / 400
    assert rows.fraction(voxel) == pytest.approx(1 - beyond, abs=1e-3)
    coarse = abs(rows.fraction(voxel, row_mm=5.0) - 1 + beyond)
    assert abs(rows.fraction(voxel, row_mm=0.05) - 1 + beyond) <= coarse
    volume = np.random.default_rng(1).random((7, 8, 5))
    rows = Rows.of(volume, np.eye(4), (0, 0, 0))
    averaged = rows.averaged(3, 2)
    assert averaged.shape == (5, 6, 6)
    np.testing.assert_allclose(averaged.sum(axis=(0, 1)) * 6, rows.prefix.sum(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize(("middle", "reach"), [(3.2, 2.9), (0.0, 0.4), (-1.5, 4.0), (7.25, 1.25)])
def test_strips_cover_the_extent_between_the_borders_of_image_voxels(middle, reach):
    nodes, widths = _mirrored_strips(middle, reach, 3.0, ROW_MM)
    ends = np.concatenate([nodes - widths / 2, nodes[-1:] + widths[-1:] / 2])
    np.testing.assert_allclose(ends[[0, -1]], [middle - reach, middle + reach], atol=1e-12)
    np.testing.assert_allclose(np.diff(ends), widths, atol=1e-12)
    assert (widths * 3.0).max() <= ROW_MM + 1e-9
    borders = np.arange(np.ceil(middle - reach - 0.5), np.floor(middle + reach - 0.5) + 1) + 0.5
    for border in borders:
        assert np.abs(ends - border).min() < 1e-9
    np.testing.assert_allclose(nodes - middle, -(nodes - middle)[::-1], atol=1e-12)
