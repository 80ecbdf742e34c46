"""Volumes as rows: the fraction of a box that they fill, by integration along lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.box import overlap
from placement.box.voxel import Voxel

#: Largest distance between the rows of the accurate integral, in mm.
ROW_MM = 0.25


class Rows(NamedTuple):
    """
    Running sums `prefix` (a + 2, b + 2, c + 1) of a volume along its thickest image axis.

    A box meets each line along that axis in one interval, whose ends follow from its six faces;
    the sum over the interval is a difference of two running sums, exact for every affine. Across
    the lines, the integral is a sum over strips that end at the borders of image voxels and of the
    box. `matrix` and `offset` lead from indices of `prefix` to mm RAS+; `axes` are the axes of the
    image in the order of `prefix`.
    """

    prefix: NDArray[np.float32]
    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, occupancy: NDArray, affine: NDArray[np.float64], origin: Sequence[int]) -> Rows:
        """Sum a volume, whose first voxel has the index `origin` in the image, along its rows."""
        matrix = np.asarray(affine[:3, :3], dtype=np.float64)
        # Integration along rows is exact, so they run along the axis with the largest steps.
        thick = int(np.argmax(np.linalg.norm(matrix, axis=0).round(6)[::-1]))
        # Of axes with equal edges the last is taken, along which rows are contiguous in memory.
        last = 2 - thick
        axes = (*[axis for axis in range(3) if axis != last], last)
        volume = occupancy.transpose(axes)
        # Empty rows on all sides spare `integrate` the test of whether a row lies in the volume.
        prefix = np.zeros(np.add(volume.shape, (2, 2, 1)), dtype=np.float32)
        # Plane by plane, so that no large volume is in memory in double precision.
        for plane, sums in zip(volume, prefix[1:-1], strict=True):
            sums[1:-1, 1:] = np.cumsum(plane, axis=1, dtype=np.float64)
        matrix = np.ascontiguousarray(matrix[:, list(axes)])
        # The empty rows come first.
        first = np.asarray(origin, dtype=np.float64)[list(axes)] - (1, 1, 0)
        return cls(prefix, matrix, matrix @ first + affine[:3, 3], axes)

    def averaged(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Average `prefix` over blocks of rows, for a quick first search."""
        inner = self.prefix[1:-1, 1:-1]
        first_rows = np.arange(0, inner.shape[0], rows)
        first_columns = np.arange(0, inner.shape[1], columns)
        shape = (len(first_rows) + 2, len(first_columns) + 2, inner.shape[2])
        averages = np.zeros(shape, dtype=np.float32)
        sums = np.add.reduceat(inner, first_rows)
        np.add.reduceat(sums, first_columns, axis=1, out=averages[1:-1, 1:-1])
        averages /= np.float32(rows * columns)
        return averages

    def fraction(self, voxel: Voxel, *, row_mm: float = ROW_MM) -> float:
        """Compute the fraction of a box that the volume fills."""
        inverse = np.linalg.inv(self.matrix)
        middle = inverse @ (voxel.center - self.offset)
        reach = np.abs(inverse @ voxel.rotation) @ (voxel.size / 2)
        steps = np.linalg.norm(self.matrix, axis=0)
        nodes = [_mirrored_strips(middle[a], reach[a], steps[a], row_mm) for a in (0, 1)]
        step = voxel.rotation.T @ self.matrix
        start = voxel.rotation.T @ (self.offset - voxel.center)
        filled, total = overlap.integrate(
            self.prefix, *nodes[0], *nodes[1], step, start, voxel.size / 2
        )
        return min(1.0, filled / total) if total > 0 else 0.0


def _mirrored_strips(
    middle: float, reach: float, step: float, row_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Divide the extent of a box along an axis: middles and widths of strips, in image voxels.

    Strips end at the borders of image voxels and at their mirror images about the center of the
    box, so that rows come in pairs and a volume that ends in a plane through it fills exactly
    half.
    """
    borders = np.arange(np.ceil(middle - reach + 0.5), np.floor(middle + reach + 0.5) + 1) - 0.5
    ends = np.concatenate([[-reach, reach], borders - middle, middle - borders])
    ends = np.unique(np.clip(ends, -reach, reach))
    # Made symmetric, because rounding would give mirrored boxes different fractions.
    ends = 0.5 * (ends - ends[::-1])
    widths = np.diff(ends)
    parts = np.maximum(1, np.ceil(widths * step / row_mm)).astype(int)
    width = np.repeat(widths / parts, parts)
    first = np.repeat(ends[:-1], parts)
    number = np.arange(len(first)) - np.repeat(np.cumsum(parts) - parts, parts)
    return middle + first + (number + 0.5) * width, width
