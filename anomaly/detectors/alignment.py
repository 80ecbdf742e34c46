"""Residual misregistration: a quick affine map and smooth warp from a scan to the healthy mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit._utils.compiled import njit

__all__ = [
    "align",
    "channel_sums",
    "gaussian",
    "guide_images",
    "inverted",
    "resampled",
    "sampled",
    "smooth_axes",
]

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
#: Lines that are smoothed side by side, so that the processor's vectors are full.
_LANES = 64


def guide_images(
    mean: NDArray[np.floating],
    spread: NDArray[np.floating],
    inside: NDArray,
    scales: Sequence[float] | NDArray[np.float64],
) -> NDArray[np.float32]:
    """Make the images (3, x, y, z) of alignment: mean signal, spread over directions, brain."""
    weight = np.asarray(inside, dtype=np.float32)
    images = [mean * weight / scales[0], spread * weight / scales[1], _OUTLINE * weight]
    return np.stack([gaussian(image, _BLUR) for image in images])


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
    # Images of the fixed guide, each with its slopes, which serve every step.
    with_slopes = [np.stack([image, *np.gradient(image)], axis=-1) for image in guide]
    maps = np.concatenate(with_slopes, axis=-1)
    matrix = np.eye(3, 4)
    # Voxels at either outline, and every second of the others: enough for twelve parameters.
    near = (images[2] > 0.05) | (guide[2] > 0.05)
    near &= (np.indices(mask.shape).sum(axis=0) % 2 == 0) | (
        ndimage.gaussian_gradient_magnitude(guide[2], 1.0) > 0.1
    )
    # Position and size first: twelve parameters at once may end in a wrong fold.
    for free in ("size", "affine"):
        matrix = _affine(images, near, maps, matrix, free)
    positions = _moved(matrix, mask.shape)
    if smoothness is None:
        return positions
    return _warped(images, mask, maps, positions, smoothness)


def _affine(
    images: NDArray,
    near: NDArray[np.bool_],
    maps: NDArray,
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
        at_positions = _interpolated(maps, positions).reshape(3, 4, -1)
        for image, (guide_image, *slopes) in zip(scan_images, at_positions, strict=True):
            residual = image - guide_image
            # Huber's weights: a lesion pulls no harder than a moderate difference.
            weight = 1 / np.maximum(1, np.abs(residual) / _ROBUST_AFFINE)
            steep = np.stack(slopes, axis=1)
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
    maps: NDArray,
    start: NDArray,
    smoothness: float,
) -> NDArray[np.float32]:
    moved, step = np.zeros_like(start), np.zeros_like(start)
    weight = gaussian(mask, smoothness) + np.float32(0.01)
    voxels = np.flatnonzero(mask)
    scan_images, begin = (volumes.reshape(3, -1)[:, voxels] for volumes in (images, start))
    for _ in range(_WARP_STEPS):
        positions = begin + moved.reshape(3, -1)[:, voxels]
        at_positions = _interpolated(maps, positions).reshape(3, 4, -1)
        pull = np.zeros_like(begin)
        stiffness = np.full(len(voxels), _FLAT, dtype=np.float32)
        for image, guide_maps in zip(scan_images, at_positions, strict=True):
            residual = np.clip(image - guide_maps[0], -_ROBUST_WARP, _ROBUST_WARP)
            steep = guide_maps[1:]
            pull += residual * steep
            # As in Thirion's demons: where images are flat but differ, steps stay short.
            stiffness += (steep**2).sum(axis=0) + residual**2 / 9
        step.reshape(3, -1)[:, voxels] = pull / stiffness
        for axis in range(3):
            moved[axis] += gaussian(step[axis], _FLUID)
            moved[axis] = gaussian(moved[axis] * mask, smoothness) / weight
    return start + moved


def sampled(volume: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """
    Interpolate a volume linearly; beyond its border the nearest value continues.

    Shapes: `volume` (x, y, z), `positions` (3, ...); returns (...).
    """
    values = np.ascontiguousarray(volume, dtype=np.float32)[..., None]
    return _interpolated(values, positions.reshape(3, -1)).reshape(positions.shape[1:])


def inverted(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """
    Invert the map from a scan to the guide by a fixed-point iteration.

    Shapes: `positions` (3, x, y, z); returns (3, x, y, z).
    """
    grid = np.indices(positions.shape[1:], dtype=np.float32)
    moved = np.stack(list(positions - grid), axis=-1)
    inverse = grid
    for _ in range(_INVERSION_STEPS):
        inverse = grid - _interpolated(moved, inverse.reshape(3, -1)).reshape(grid.shape)
    return inverse


def gaussian(
    volume: NDArray, sd: float | Sequence[float], mode: str = "reflect"
) -> NDArray[np.float32]:
    """Smooth a volume (x, y, z) as `scipy.ndimage.gaussian_filter` does, in less time."""
    smooth = np.array(volume, dtype=np.float32, order="C")
    smooth_axes(smooth[..., None], sd, mode)
    return smooth


def smooth_axes(channels: NDArray[np.float32], sd: float | Sequence[float], mode: str) -> None:
    """Smooth channels (x, y, z, m) in place along the axes of space."""
    if not channels.flags.c_contiguous:
        raise ValueError("channels have to lie in memory in the order of their axes")
    x, y, z, m = channels.shape
    lines = [channels.reshape(1, x, -1), channels.reshape(x, y, -1), channels.reshape(-1, z, m)]
    # Of one channel, lines lie side by side only across.
    if m == 1:
        lines[2] = lines[2].transpose(2, 1, 0)
    for axis, sd_along in zip(lines, np.broadcast_to(sd, 3), strict=True):
        if sd_along > 0:
            radius = int(4.0 * float(sd_along) + 0.5)
            weights = np.exp(-0.5 / sd_along**2 * np.arange(-radius, radius + 1) ** 2)
            _smooth_axis(axis, (weights / weights.sum())[radius:], mode == "reflect")


# Compiled functions of this file call none of other files, whose changes numba's cache on disk
# would not see. They add in the order and precision of scipy, so that the bits are the same.


@njit(cache=True, nogil=True)
def _smooth_axis(values, weights, reflects):
    """Convolve values (a, n, b) along their middle axis, in place."""
    a, n, b = values.shape
    radius = len(weights) - 1
    line, total = np.zeros((n + 2 * radius, _LANES)), np.empty(_LANES)
    for i in range(a):
        for first in range(0, b, _LANES):
            width = min(_LANES, b - first)
            # Loops are over rows and of one length, or they do not become vector instructions.
            for j in range(n):
                row, source = line[radius + j], values[i, j, first : first + width]
                for k in range(width):
                    row[k] = source[k]
            if reflects:
                for j in range(radius):
                    before, after = j % (2 * n), (n + j) % (2 * n)
                    line[radius - 1 - j] = line[radius + min(before, 2 * n - 1 - before)]
                    line[radius + n + j] = line[radius + min(after, 2 * n - 1 - after)]
            for j in range(n):
                row = line[radius + j]
                for k in range(_LANES):
                    total[k] = row[k] * weights[0]
                for d in range(radius, 0, -1):
                    weight, lower, upper = weights[d], line[radius + j - d], line[radius + j + d]
                    for k in range(_LANES):
                        total[k] += (lower[k] + upper[k]) * weight
                target = values[i, j, first : first + width]
                for k in range(width):
                    target[k] = total[k]


@njit(cache=True, nogil=True)
def _interpolated(channels, positions):
    """Interpolate channels (x, y, z, m) at positions (3, n) in double precision; gives (m, n)."""
    m, n, shape = channels.shape[3], positions.shape[1], channels.shape
    voxels, strides = channels.reshape(-1, m), (shape[1] * shape[2], shape[2], 1)
    out = np.empty((m, n), dtype=np.float32)
    total, corners, weights = np.empty(m), np.empty((3, 2), dtype=np.int64), np.empty((3, 2))
    for i in range(n):
        for axis in range(3):
            last = shape[axis] - 1
            position = 0.0  # also where it is no number
            if positions[axis, i] > 0.0:
                position = min(float(positions[axis, i]), float(last))
            lower = int(position)
            corners[axis, 0] = lower * strides[axis]
            corners[axis, 1] = min(lower + 1, last) * strides[axis]
            weights[axis, 0] = 1.0 - (position - lower)
            weights[axis, 1] = 1.0 - weights[axis, 0]
        total[:] = 0.0
        for p in range(2):
            for q in range(2):
                for r in range(2):
                    voxel = voxels[corners[0, p] + corners[1, q] + corners[2, r]]
                    u, v, w = weights[0, p], weights[1, q], weights[2, r]
                    for k in range(m):
                        total[k] += voxel[k] * u * v * w
        for k in range(m):
            out[k, i] = total[k]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def resampled(channels, mask, positions, shares, rows, out):
    """
    Interpolate channels of the voxels of a mask in single precision, in rows of `out`.

    Shapes: `channels` (x, y, z, m), `mask` (x, y, z), `positions` (3, n), `shares` (n,) of the
    mask at the positions, by which sums are divided, `rows` (n,), `out` (n_rows, m).
    """
    m = channels.shape[3]
    corners, weights = np.empty((3, 2), dtype=np.int64), np.empty((3, 2), dtype=np.float32)
    for i in range(len(rows)):
        for axis in range(3):
            last = channels.shape[axis] - 1
            position = 0.0  # also where it is no number
            if positions[axis, i] > 0.0:
                position = min(float(positions[axis, i]), float(last))
            lower = min(int(position), max(last - 1, 0))
            corners[axis, 0], corners[axis, 1] = lower, min(lower + 1, last)
            weights[axis, 1] = position - lower
            weights[axis, 0] = np.float32(1) - weights[axis, 1]
        total = out[rows[i]]
        total[:] = 0
        for p in range(2):
            for q in range(2):
                for r in range(2):
                    u, v, w = corners[0, p], corners[1, q], corners[2, r]
                    if mask[u, v, w]:
                        weight = weights[0, p] * weights[1, q] * weights[2, r]
                        voxel = channels[u, v, w]
                        for k in range(m):
                            total[k] += weight * voxel[k]
        for k in range(m):
            total[k] /= shares[i]


@njit(cache=True, nogil=True, error_model="numpy")
def channel_sums(channels, weights, mask):
    """Sum channels (x, y, z, m), divided by weights (x, y, z), and their squares in a mask."""
    sums = np.zeros((2, *mask.shape))
    for x in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for z in range(mask.shape[2]):
                total = squares = 0.0
                if mask[x, y, z]:
                    for k in range(channels.shape[3]):
                        value = channels[x, y, z, k] / weights[x, y, z]
                        total += value
                        squares += value * value
                sums[0, x, y, z], sums[1, x, y, z] = total, squares
    return sums
