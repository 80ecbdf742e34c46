"""Neighborhoods of voxels: their order, and the replacement of missing neighbors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import filled, is_number


def check_patch_shape(patch_shape: Any) -> tuple[int, int, int]:
    """Check the size of a neighborhood."""
    sizes: tuple[Any, ...] = ()
    if isinstance(patch_shape, tuple | list | np.ndarray):
        sizes = tuple(patch_shape)
    are_whole = all(is_number(n, whole=True) for n in sizes)
    if len(sizes) != 3 or not are_whole or any(n < 1 or n % 2 == 0 for n in sizes):
        raise ValueError(
            f"patch_shape must be three odd numbers such as (3, 3, 1), not {patch_shape!r}"
        )
    x, y, z = map(int, sizes)
    return x, y, z


def check_reach(patch_shape: Any, shapes: Iterable[tuple[int, ...]]) -> None:
    """Check, before long work, that each neighbor lies in an image for at least one voxel."""
    sizes = check_patch_shape(patch_shape)
    largest = [2 * max(lengths) - 1 for lengths in zip(*shapes, strict=True)]
    if any(size > most for size, most in zip(sizes, largest, strict=True)):
        best = tuple(min(size, most) for size, most in zip(sizes, largest, strict=True))
        raise ValueError(f"patch_shape {sizes} is too large for every image; use at most {best}")


def with_signal(signals: ArrayLike) -> NDArray[np.bool_]:
    """
    Tell which voxels have finite signals of 0 or more, and one above 0.

    Shapes: `signals` (..., n_measurements); returns (...).
    """
    values = np.asarray(filled(signals))
    with np.errstate(invalid="ignore"):
        return np.asarray(
            np.all((values >= 0) & (values < np.inf), axis=-1) & np.any(values > 0, axis=-1)
        )


def neighborhoods(
    volume: NDArray,
    where: tuple[NDArray[np.intp], ...],
    patch_shape: tuple[int, int, int] | None,
    *,
    region: NDArray[np.bool_] | None = None,
) -> NDArray:
    """
    Put the neighborhood of each voxel in one row.

    ``rows.reshape(n_voxels, k, n_measurements)`` has the k neighbors in the order of
    ``np.ndindex(patch_shape)``, so the voxel itself is the middle one. A neighbor outside the
    image, outside the region or without signal is replaced by the voxel itself: at the rim of an
    organ or of the body, "as here" is nearer to the truth than the zeros that are usual for
    images, a row has no gap unless its own voxel has one, and it does not depend on what a scanner
    leaves in the background.

    Shapes: `volume` (x, y, z, n_measurements), `region` (x, y, z); returns (n_voxels, k *
    n_measurements).
    """
    if patch_shape is None:
        return volume[where]
    sizes = check_patch_shape(patch_shape)
    usable = with_signal(volume)
    if region is not None:
        usable &= region
    # One neighbor at a time: all windows at once would take k times the memory.
    center = np.stack(where)
    grid = np.array(volume.shape[:3])[:, None]
    middle = np.array(sizes)[:, None] // 2
    rows = np.empty((len(where[0]), math.prod(sizes), volume.shape[3]), volume.dtype)
    for column, shift in enumerate(np.ndindex(*sizes)):
        neighbor = center + np.array(shift)[:, None] - middle
        inside = ((neighbor >= 0) & (neighbor < grid)).all(axis=0)
        # Indices outside the image would wrap around to its other side.
        neighbor = np.where(inside, neighbor, center)
        neighbor = np.where(usable[tuple(neighbor)], neighbor, center)
        rows[:, column] = volume[tuple(neighbor)]
    return rows.reshape(len(rows), -1)


def as_neighbors(X: NDArray, patch_shape: tuple[int, int, int] | None) -> NDArray:
    """
    Split rows of neighborhoods into their k neighbors.

    Shapes: `X` (n_voxels, k * n_measurements); returns (n_voxels, k, n_measurements).
    """
    k = math.prod(patch_shape or (1,))
    return X.reshape(len(X), k, X.shape[1] // k)


def center_of(X: NDArray, patch_shape: tuple[int, int, int] | None) -> NDArray:
    """
    Take the voxels themselves out of rows of neighborhoods.

    Shapes: `X` (n_voxels, k * n_measurements); returns (n_voxels, n_measurements).
    """
    neighbors = as_neighbors(X, patch_shape)
    return neighbors[:, neighbors.shape[1] // 2]
