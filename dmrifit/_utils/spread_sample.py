"""A sample of voxels spread over an image that is read slab by slab."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SpreadSample:
    """
    Rows of every n-th voxel in the order of slices, the same ones however slabs are cut.

    How many voxels there will be need not be known: n starts at 1, and doubles when more than
    twice `most` rows would be held. So `most` rows or more are held where there are as many.
    """

    def __init__(self, most: int) -> None:
        self._most_held = 2 * most
        self._stride = 1
        self._n_seen = 0
        self._parts: list[NDArray] = []

    def add(self, values: NDArray, rows: NDArray[np.intp]) -> None:
        """Take some rows of values, in their order."""
        stride = self._stride
        n_seen = self._n_seen + len(rows)
        while n_seen > self._most_held * stride:
            stride *= 2
        if stride > self._stride and self._parts:
            self._parts = [self.rows()[:: stride // self._stride].copy()]
        self._stride = stride
        first = -self._n_seen % stride
        self._parts.append(values[rows[first::stride]])
        self._n_seen = n_seen

    def rows(self) -> NDArray:
        """Give the rows that are held; none, of shape (0,), before the first voxel."""
        return np.concatenate(self._parts) if self._parts else np.empty(0)


def by_slice(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Order the voxels of a slab, those of (x, y, slices) that are True, by their slices."""
    # In C order voxels of the slices alternate: their order would depend on how slabs are cut.
    return np.argsort(np.flatnonzero(inside) % inside.shape[2], kind="stable")
