"""Storage of an image: the order and direction of its axes against those of the world."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.box.voxel import AXIS_ORDERS

#: Storages whose axes fit those of the world within this are equally near.
_NEAR_TIE = 1e-6

#: Decimals of mm that edges and positions are rounded to: reversing an axis leaves rounding
#: errors, of positions those of the single precision of headers, which could send two searches
#: different ways. The phase keeps positions of a few decimals away from where rounding jumps.
_DECIMALS, _POSITION_DECIMALS, _PHASE = 9, 3, 1e-4 / 3


def nearest_storage(affine: ArrayLike) -> NDArray[np.float64]:
    """
    Find the storage of an image whose axes are nearest to right, front and up.

    Gives a matrix (3, 3) with one 1 or -1 in each row and column: column w has it in the row of
    the image axis that becomes axis w, negative where that is reversed. All 48 storages of one
    image lead to the same one.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    directions = matrix / np.linalg.norm(matrix, axis=0)
    stored = directions @ AXIS_ORDERS
    fits = np.trace(stored, axis1=1, axis2=2)
    near = np.flatnonzero(fits > fits.max() - _NEAR_TIE)
    # The matrices are the same 48 for every storage, whatever their order.
    best = min(near, key=lambda n: tuple((-np.round(stored[n], 6)).ravel().tolist()))
    return np.asarray(AXIS_ORDERS[best])


def reoriented(
    storage: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Give affine and shape of an image whose axes are stored in another way."""
    order = np.abs(storage).argmax(axis=0)
    matrix = np.eye(4)
    matrix[:3, :3] = affine[:3, :3] @ storage
    last = np.array(shape[:3]) - 1
    # The first voxel along a reversed axis was the last one.
    first = np.where(storage.sum(axis=1) < 0, last, 0)
    matrix[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]
    x, y, z = (int(shape[axis]) for axis in order)
    matrix[:3, 3] = np.round(matrix[:3, 3] + _PHASE, _POSITION_DECIMALS)
    return np.round(matrix, _DECIMALS), (x, y, z)
