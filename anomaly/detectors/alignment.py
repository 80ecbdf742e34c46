"""Residual misregistration: a quick affine map and smooth warp from a scan to the healthy mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit._utils.compiled import njit

#: Smoothing of the images in voxels before they are compared, and how much the outline of the
#: brain counts.
_BLUR, _OUTLINE = 0.7, 2.0
#: Differences, in standard deviations of the image, from which on a voxel pulls no harder; lesions
#: differ by more.
_ROBUST_AFFINE, _ROBUST_WARP = 1.0, 0.8
_AFFINE_STEPS, _WARP_STEPS = 12, 12
#: Steps of the affine map that are too small to matter, in voxels.
_ENOUGH = 0.005
#: Voxels, roughly the most, that find an affine map.
_MOST_VOXELS = 40_000
_INVERSION_STEPS = 8
_RIDGE = 1e-3
#: Where products of slopes along two axes stand among those of xx, xy, xz, yy, yz and zz.
_AXIS_PAIRS = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])
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

    An affine map is found by Gauss–Newton steps on the differences of the images, in which large
    differences count less; then displacements follow the differences (the demons of Thirion),
    smoothed after every step, so that they follow anatomy that is wider than the smoothing and not
    a lesion. This takes about a quarter of a second for 90 × 90 × 54
    voxels; packages for registration take many times that, and need more than scipy.

    Shapes: `images` (3, x, y, z), `mask` (x, y, z), `guide` (3, x, y, z); returns (3, x, y, z).

    References
    ----------
    Thirion, Med Image Anal 2:243–260, 1998.
    """
    # Images of the fixed guide, each with its slopes, which serve every step.
    with_slopes = [np.stack([image, *np.gradient(image)], axis=-1) for image in guide]
    maps = np.concatenate(with_slopes, axis=-1)
    # Voxels of either brain and its rim; not all, as twelve parameters need few.
    near = np.argwhere((images[2] > 0.05) | (guide[2] > 0.05))
    voxels = near[:: max(2, len(near) // _MOST_VOXELS)]
    positions = _moved(_affine(images, voxels, maps), mask.shape)
    if smoothness is None:
        return positions
    return _warped(images, mask, maps, positions, smoothness)


def _affine(images: NDArray, voxels: NDArray[np.int64], maps: NDArray) -> NDArray[np.float64]:
    """Find the affine map (3, 4) of voxels (n, 3) about the middle of a scan."""
    middle = (np.array(images.shape[1:]) - 1) / 2
    offsets = voxels - middle
    # Columns of like size, so that the normal equations are well conditioned.
    reach = 0.5 * float(np.mean(images.shape[1:]))
    rows = np.concatenate([offsets / reach, np.ones((len(offsets), 1))], axis=1).astype(np.float32)
    matrix = np.eye(3, 4)
    scan_images = images[:, *voxels.T]
    scaling = np.array([reach, reach, reach, 1.0])
    for _ in range(_AFFINE_STEPS):
        positions = (rows @ (matrix * scaling).T.astype(np.float32) + middle.astype(np.float32)).T
        pairs, pulls = _normal_equations(maps, scan_images, positions, rows)
        products = pairs[_AXIS_PAIRS].transpose(0, 2, 1, 3).reshape(12, 12)
        products += _RIDGE * np.trace(products) / 12 * np.eye(12)
        step = np.linalg.solve(products, pulls.ravel()).reshape(3, 4)
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
    grid = np.indices(mask.shape, dtype=np.float32)
    # Displacements are so smooth that cells of 2 × 2 × 2 voxels share one, and two opposite
    # corners of a cell find it.
    even = grid % 2 == 0
    voxels = np.argwhere(mask & (even == even[0]).all(axis=0))
    shape = tuple((n + 1) // 2 for n in mask.shape)
    cells = np.ravel_multi_index(tuple(voxels.T // 2), shape)
    counts = np.bincount(cells, minlength=int(np.prod(shape)))
    inside = (counts > 0).reshape(shape)
    weight = gaussian(inside, smoothness / 2) + np.float32(0.01)
    scan_images, begin = (volumes[:, *voxels.T] for volumes in (images, start))
    moved, step = np.zeros((2, 3, *shape), dtype=np.float32)
    for _ in range(_WARP_STEPS):
        step[:] = 0
        _add_demons(maps, scan_images, begin, cells, moved.reshape(3, -1), step.reshape(3, -1))
        step /= np.maximum(counts, 1).reshape(shape)
        for axis in range(3):
            moved[axis] += gaussian(step[axis], _FLUID / 2)
            moved[axis] = gaussian(moved[axis] * inside, smoothness / 2) / weight
    return start + np.stack([sampled(displacement, (grid - 0.5) / 2) for displacement in moved])


def sampled(volume: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """
    Interpolate a volume linearly; beyond its border the nearest value continues.

    Shapes: `volume` (x, y, z), `positions` (3, ...); returns (...).
    """
    values = np.asarray(volume, dtype=np.float32)
    interpolated: NDArray = ndimage.map_coordinates(values, positions, order=1, mode="nearest")
    return interpolated


def inverted(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """
    Invert the map from a scan to the guide by a fixed-point iteration.

    Displacements are smooth, so that every second voxel along each axis is enough.

    Shapes: `positions` (3, x, y, z); returns (3, x, y, z).
    """
    grid = np.indices(positions.shape[1:], dtype=np.float32)
    displacements = positions - grid
    coarse = grid[:, ::2, ::2, ::2]
    inverse = coarse
    for _ in range(_INVERSION_STEPS):
        inverse = coarse - np.stack([sampled(along, inverse) for along in displacements])
    return grid + np.stack([sampled(along, grid / 2) for along in inverse - coarse])


def gaussian(volume: NDArray, sd: float | Sequence[float], mode: str = "reflect") -> NDArray:
    """Smooth a volume (x, y, z) or channels (x, y, z, m) along the axes of space."""
    values = np.asarray(volume, dtype=np.float32)
    smooth: NDArray = ndimage.gaussian_filter(values, sd, mode=mode, axes=(0, 1, 2))
    return smooth


# Compiled functions of this file call none of other files, whose changes numba's cache on disk
# would not see.


@njit(cache=True, nogil=True)
def _clip(position, last):
    """Move a position along an axis into the volume; also one that is no number."""
    return min(float(position), float(last)) if position > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _blend(voxels, shape, position, total):
    """Interpolate voxels (x · y · z, m) of a volume at a position (3,) in double precision."""
    x, y, z = (
        _clip(position[0], shape[0] - 1),
        _clip(position[1], shape[1] - 1),
        _clip(position[2], shape[2] - 1),
    )
    i, j, k = int(x), int(y), int(z)
    u, v, w = x - i, y - j, z - k
    row, plane = shape[2], shape[1] * shape[2]
    first = i * plane + j * row + k
    step_x = plane if i + 1 < shape[0] else 0
    step_y = row if j + 1 < shape[1] else 0
    step_z = 1 if k + 1 < shape[2] else 0
    total[:] = 0.0
    for corner, share in (
        (first, (1 - u) * (1 - v)),
        (first + step_y, (1 - u) * v),
        (first + step_x, u * (1 - v)),
        (first + step_x + step_y, u * v),
    ):
        lower, upper = voxels[corner], voxels[corner + step_z]
        for m in range(len(total)):
            total[m] += share * ((1 - w) * lower[m] + w * upper[m])


@njit(cache=True, nogil=True)
def _normal_equations(maps, images, positions, rows):
    """
    Sum what an affine step needs: products of slopes, and of slopes and residuals, over voxels.

    Derivatives are slopes times offsets, so that their products are those of slopes, summed over
    the images, times those of offsets.

    Shapes: `maps` (x, y, z, 12) of three images with slopes, `images` (3, n), `positions` (3, n),
    `rows` (n, 4) of offsets; returns (6, 4, 4), for pairs of axes, and (3, 4).
    """
    voxels = maps.reshape(-1, 12)
    total = np.empty(12)
    products, pulls, offsets = np.zeros((6, 16)), np.zeros((3, 4)), np.empty(16)
    squares, pull = np.empty(6), np.empty(3)
    for i in range(len(rows)):
        _blend(voxels, maps.shape, positions[:, i], total)
        squares[:], pull[:] = 0.0, 0.0
        for image in range(3):
            residual = images[image, i] - total[4 * image]
            # Huber's weights: a lesion pulls no harder than a moderate difference.
            weight = 1.0 / max(1.0, abs(residual) / _ROBUST_AFFINE)
            pair = 0
            for j in range(1, 4):
                slope = weight * total[4 * image + j]
                pull[j - 1] += slope * residual
                for k in range(j, 4):
                    squares[pair] += slope * total[4 * image + k]
                    pair += 1
        for j in range(4):
            for k in range(4):
                offsets[4 * j + k] = rows[i, j] * rows[i, k]
        for pair in range(6):
            for k in range(16):
                products[pair, k] += squares[pair] * offsets[k]
        for axis in range(3):
            for k in range(4):
                pulls[axis, k] += pull[axis] * rows[i, k]
    return products.reshape(6, 4, 4), pulls


@njit(cache=True, nogil=True)
def _add_demons(maps, images, begin, cells, moved, step):
    """
    Add up how far differences of images pull the voxels of cells, by the demons of Thirion.

    Shapes: `maps` (x, y, z, 12) of three images with slopes, `images` (3, n), `begin` (3, n) and
    `cells` (n,) of voxels, `moved` and `step` (3, n_cells).
    """
    values, clip = maps.reshape(-1, 12), np.float32(_ROBUST_WARP)
    total = np.empty(12)
    position, pull = np.empty(3, np.float32), np.empty(3, np.float32)
    for i in range(len(cells)):
        cell = cells[i]
        for axis in range(3):
            position[axis] = begin[axis, i] + moved[axis, cell]
        _blend(values, maps.shape, position, total)
        pull[:] = 0
        stiffness = np.float32(_FLAT)
        for image in range(3):
            residual = images[image, i] - np.float32(total[4 * image])
            residual = min(max(residual, -clip), clip)
            squares = np.float32(0)
            for axis in range(3):
                slope = np.float32(total[4 * image + 1 + axis])
                pull[axis] += residual * slope
                squares += slope * slope
            # As in Thirion's demons: where images are flat but differ, steps stay short.
            stiffness += squares + residual * residual / np.float32(9)
        for axis in range(3):
            step[axis, cell] += pull[axis] / stiffness


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
