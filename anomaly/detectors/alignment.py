"""Residual misregistration: a quick affine map and smooth warp from a scan to the healthy mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

__all__ = ["align", "guide_images", "interpolation", "inverted", "sampled"]

#: Smoothing of the images in voxels before they are compared, and how much the outline of the
#: brain counts.
_BLUR, _OUTLINE = 0.7, 2.0
#: Differences, in standard deviations of the image, from which on a voxel pulls no harder; lesions
#: differ by more.
_ROBUST_AFFINE, _ROBUST_WARP = 1.0, 0.8
_AFFINE_STEPS, _WARP_STEPS = 12, 12
#: Steps of the affine map that are too small to matter, in voxels.
_ENOUGH = 0.005
_INVERSION_STEPS = 8
_RIDGE = 1e-3
#: Of the warp: term that keeps steps small where images are flat, smoothing of each step in
#: voxels.
_FLAT, _FLUID = 0.02, 1.0


def guide_images(
    mean: NDArray[np.floating],
    spread: NDArray[np.floating],
    inside: NDArray,
    scales: Sequence[float] | NDArray[np.float64],
) -> NDArray[np.float32]:
    """Make the images (3, x, y, z) of alignment: mean signal, spread over directions, brain."""
    weight = np.asarray(inside, dtype=np.float32)
    images = [mean * weight / scales[0], spread * weight / scales[1], _OUTLINE * weight]
    return np.stack([ndimage.gaussian_filter(image.astype(np.float32), _BLUR) for image in images])


def align(
    images: NDArray[np.float32],
    mask: NDArray[np.bool_],
    guide: NDArray[np.float32],
    *,
    smoothness: float | None = 2.0,
) -> NDArray[np.float32]:
    """
    Find the position of each voxel of a scan in the mean of healthy scans.

    A map of shift and size, then an affine map, are found by Gauss–Newton steps on the differences
    of the images, in which large differences count less; then displacements follow the differences
    (the demons of Thirion), smoothed after every step, so that they follow anatomy that is wider
    than the smoothing and not a lesion. This takes about a second for 40 × 48 × 32 voxels;
    packages for registration take many times that, and need more than scipy.

    Shapes: `images` (3, x, y, z), `mask` (x, y, z), `guide` (3, x, y, z); returns (3, x, y, z).

    References
    ----------
    Thirion, Med Image Anal 2:243–260, 1998.
    """
    # Slopes of the fixed guide, which serve every step.
    slopes = np.stack([np.stack(np.gradient(image)) for image in guide])
    matrix = np.eye(3, 4)
    # Voxels at either outline, and every second of the others: enough for twelve parameters.
    near = (images[2] > 0.05) | (guide[2] > 0.05)
    near &= (np.indices(mask.shape).sum(axis=0) % 2 == 0) | (
        ndimage.gaussian_gradient_magnitude(guide[2], 1.0) > 0.1
    )
    # Position and size first: twelve parameters at once may end in a wrong fold.
    for free in ("size", "affine"):
        matrix = _affine(images, near, guide, slopes, matrix, free)
    positions = _moved(matrix, mask.shape)
    if smoothness is None:
        return positions
    return _warped(images, mask, guide, slopes, positions, smoothness)


def _affine(
    images: NDArray,
    near: NDArray[np.bool_],
    guide: NDArray,
    slopes: NDArray,
    matrix: NDArray,
    free: str,
) -> NDArray[np.float64]:
    middle = (np.array(near.shape) - 1) / 2
    offsets = np.argwhere(near) - middle
    # Columns of like size, so that the normal equations are well conditioned.
    reach = 0.5 * float(np.mean(near.shape))
    rows = np.concatenate([offsets / reach, np.ones((len(offsets), 1))], axis=1).astype(np.float32)
    basis = np.eye(12)
    if free == "size":
        basis = np.zeros((12, 4))
        for axis in range(3):
            basis[4 * axis + axis, 0] = 1
            basis[4 * axis + 3, 1 + axis] = 1
    scan_images = images[:, near]
    scaling = np.array([reach, reach, reach, 1.0])
    for _ in range(_AFFINE_STEPS):
        positions = (rows @ (matrix * scaling).T.astype(np.float32) + middle.astype(np.float32)).T
        products, right = np.zeros((12, 12)), np.zeros(12)
        for image, guide_image, slope in zip(scan_images, guide, slopes, strict=True):
            residual = image - sampled(guide_image, positions)
            # Huber's weights: a lesion pulls no harder than a moderate difference.
            weight = 1 / np.maximum(1, np.abs(residual) / _ROBUST_AFFINE)
            steep = np.stack([sampled(component, positions) for component in slope], axis=1)
            columns = (steep[:, :, None] * rows[:, None, :]).reshape(len(residual), 12)
            weighted = columns * weight[:, None]
            # Not a matrix product, whose last bits depend on the number of threads.
            products += np.einsum("ni,nj->ij", weighted, columns)
            right += np.einsum("ni,n->i", weighted, residual)
        reduced = basis.T @ products @ basis
        reduced += _RIDGE * np.trace(reduced) / len(reduced) * np.eye(len(reduced))
        step = (basis @ np.linalg.solve(reduced, basis.T @ right)).reshape(3, 4)
        matrix = matrix + step / scaling
        if np.abs(step).max() < _ENOUGH:
            break
    return matrix


def _moved(matrix: NDArray, shape: Sequence[int]) -> NDArray[np.float32]:
    middle = ((np.array(shape) - 1) / 2).reshape(3, 1, 1, 1)
    grid = np.indices(tuple(shape)) - middle
    moved = np.tensordot(matrix[:, :3], grid, axes=1) + matrix[:, 3].reshape(3, 1, 1, 1) + middle
    return np.asarray(moved, dtype=np.float32)


def _warped(
    images: NDArray,
    mask: NDArray[np.bool_],
    guide: NDArray,
    slopes: NDArray,
    start: NDArray,
    smoothness: float,
) -> NDArray[np.float32]:
    moved = np.zeros_like(start)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), smoothness) + np.float32(0.01)
    scan_images, begin = images[:, mask], start[:, mask]
    step = np.zeros_like(start)
    for _ in range(_WARP_STEPS):
        positions = begin + moved[:, mask]
        pull, stiffness = (
            np.zeros_like(positions),
            np.full(positions.shape[1], _FLAT, dtype=np.float32),
        )
        for image, guide_image, slope in zip(scan_images, guide, slopes, strict=True):
            residual = np.clip(
                image - sampled(guide_image, positions), -_ROBUST_WARP, _ROBUST_WARP
            )
            steep = np.stack([sampled(component, positions) for component in slope])
            pull += residual * steep
            # As in Thirion's demons: where images are flat but differ, steps stay short.
            stiffness += (steep**2).sum(axis=0) + residual**2 / 9
        for axis in range(3):
            step[axis][mask] = pull[axis] / stiffness
            moved[axis] += ndimage.gaussian_filter(step[axis], _FLUID)
            moved[axis] = (
                ndimage.gaussian_filter(np.where(mask, moved[axis], 0), smoothness) / weight
            )
    return start + moved


def sampled(volume: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """
    Interpolate a volume linearly; beyond its border the nearest value continues.

    Shapes: `volume` (x, y, z), `positions` (3, ...); returns (...).
    """
    return np.asarray(
        ndimage.map_coordinates(volume, positions, order=1, mode="nearest", output=np.float32)
    )


def interpolation(positions: NDArray[np.floating], shape: Sequence[int]) -> sparse.csr_array:
    """
    Make the matrix of `sampled`, which resamples many channels in a fraction of the time.

    Shapes: `positions` (3, n) in a volume of `shape` (x, y, z); returns (n, x * y * z), which
    multiplies signals (x * y * z, channels).
    """
    last = np.array(shape)[:, None] - 1
    inside = np.clip(positions, 0, last)
    lower = np.minimum(inside.astype(np.int32), np.maximum(last - 1, 0))
    share = (inside - lower).astype(np.float32)
    upper = np.minimum(lower + 1, last)
    columns, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        is_upper = np.array(corner, dtype=bool)[:, None]
        columns.append(np.ravel_multi_index(tuple(np.where(is_upper, upper, lower)), shape))
        weights.append(np.where(is_upper, share, 1 - share).prod(axis=0))
    n = positions.shape[1]
    entries = np.stack(weights, axis=1).ravel(), np.stack(columns, axis=1).ravel()
    return sparse.csr_array((*entries, np.arange(0, 8 * n + 1, 8)), shape=(n, np.prod(shape)))


def inverted(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """
    Invert the map from a scan to the guide by a fixed-point iteration.

    Shapes: `positions` (3, x, y, z); returns (3, x, y, z).
    """
    grid = np.indices(positions.shape[1:], dtype=np.float32)
    moved = positions - grid
    inverse = grid.copy()
    for _ in range(_INVERSION_STEPS):
        inverse = grid - np.stack([sampled(component, inverse) for component in moved])
    return inverse
