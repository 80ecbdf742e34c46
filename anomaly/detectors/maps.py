"""Checked anomaly maps with their masks and lesions, and the opening of binary maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import is_number
from dmrifit._utils.counts import counted
from dmrifit.io.masks import zeros_and_ones
from dmrifit.networks.volume_cases import listed

__all__ = [
    "ScoredScans",
    "Volumes",
    "checked_binary",
    "checked_masks",
    "checked_volumes",
    "open_map",
]

#: One array of several volumes, or a sequence of volumes.
Volumes = Sequence[ArrayLike] | NDArray[Any]


@dataclass(frozen=True, eq=False)
class ScoredScans:
    """Maps (x, y, z) with the voxels that count, and with lesions where available."""

    volumes: list[NDArray[Any]]
    masks: list[NDArray[np.bool_]]
    lesions: list[NDArray[np.bool_]] | None

    def inside(self) -> list[NDArray[Any]]:
        """Return the scores of the voxels that count, shape (n_voxels,), of each scan."""
        return [volume[mask] for volume, mask in zip(self.volumes, self.masks, strict=True)]


def open_map(binary: ArrayLike, size: int = 3) -> NDArray[np.bool_]:
    """
    Remove structures that are smaller than a cube (binary opening).

    Parameters
    ----------
    binary : array_like of shape (x, y, z) or (n, x, y, z)
        Anomalous voxels; each volume is opened by itself.
    size : int, default=3
        Edge of the cube in voxels.

    Returns
    -------
    ndarray of bool
        Of the same shape: the union of all cubes of anomalous voxels that lie in the volume.

    Raises
    ------
    ValueError
        If there are not three or four axes, values are not 0 and 1, or the size is below 1.
    """
    marked = np.asarray(binary)
    if marked.ndim not in (3, 4):
        raise ValueError(
            "a map has the axes (x, y, z), or (n, x, y, z) where there are several, not the "
            f"shape {marked.shape}"
        )
    marked = zeros_and_ones(marked, "the map")
    if not is_number(size) or int(size) != size or size < 1:
        raise ValueError(f"size must be a whole number of voxels of 1 or more, not {size!r}")
    edge = int(size)
    axes = range(marked.ndim - 3, marked.ndim)
    if any(marked.shape[axis] < edge for axis in axes):
        return np.zeros(marked.shape, dtype=bool)
    # A cube is a product of three lines. Shifting whole arrays is ten times as fast as scipy's
    # binary_opening.
    corners = marked
    for axis in axes:
        n = corners.shape[axis] - edge + 1
        corners = np.logical_and.reduce([_cut(corners, axis, shift, n) for shift in range(edge)])
    filled = corners
    for axis in axes:
        n = filled.shape[axis]
        wide = np.zeros(
            (*filled.shape[:axis], n + edge - 1, *filled.shape[axis + 1 :]), dtype=bool
        )
        for shift in range(edge):
            _cut(wide, axis, shift, n)[...] |= filled
        filled = wide
    return filled


def checked_volumes(maps: Volumes, label: str) -> list[NDArray[Any]]:
    """
    Check maps.

    Shapes: `maps` (n, x, y, z); returns (x, y, z).
    """
    volumes = [np.asarray(volume) for volume in listed(maps, f"{label}s")]
    for i, volume in enumerate(volumes):
        if volume.ndim != 3:
            raise ValueError(
                f"{label} {i} must be a volume (x, y, z), not an array of shape {volume.shape}"
            )
        is_numeric = volume.dtype.kind in "fiub"
        n = np.count_nonzero(~np.isfinite(volume)) if is_numeric else volume.size
        if n:
            raise ValueError(
                f"{label} {i} contains {counted(n, 'non-finite value')} ({volume.dtype}); set "
                "voxels without a score to 0"
            )
    for i, volume in enumerate(volumes):
        if volume.dtype.kind in "iub":
            volumes[i] = volume.astype(np.float32)
    return volumes


def checked_masks(masks: Volumes | None, volumes: list[NDArray[Any]]) -> list[NDArray[np.bool_]]:
    """
    Check masks of maps.

    Shapes: `volumes` (x, y, z); returns (x, y, z).
    """
    if masks is None:
        return [np.ones(volume.shape, dtype=bool) for volume in volumes]
    checked = checked_binary(masks, volumes, "mask")
    for i, mask in enumerate(checked):
        if not mask.any():
            raise ValueError(
                f"mask {i} is empty; leave the scan out or mark the voxels that count"
            )
    return checked


def checked_binary(
    values: Volumes, volumes: list[NDArray[Any]], label: str
) -> list[NDArray[np.bool_]]:
    """
    Check arrays of 0 and 1, one for each map.

    Shapes: `volumes` (x, y, z); returns (x, y, z).
    """
    arrays = [np.asarray(array) for array in listed(values, f"{label}s")]
    if len(arrays) != len(volumes):
        raise ValueError(
            f"{counted(len(arrays), label)} for {counted(len(volumes), 'map')}; give one for each"
        )
    for i, (array, volume) in enumerate(zip(arrays, volumes, strict=True)):
        if array.shape != volume.shape:
            raise ValueError(
                f"{label} {i} has shape {array.shape} and its map {volume.shape}; bring both to "
                "one grid"
            )
        arrays[i] = zeros_and_ones(array, f"{label} {i}")
    return arrays


def _cut(values: NDArray[np.bool_], axis: int, start: int, n: int) -> NDArray[np.bool_]:
    """Return a view of n entries along an axis."""
    return values[(slice(None),) * axis + (slice(start, start + n),)]
