"""Residual misregistration: a quick affine map and smooth warp from a scan to the healthy mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit._utils.compiled import njit
from dmrifit._utils.threads import one_thread

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
_MOST_VOXELS = 10_000
_INVERSION_STEPS = 5
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
    return positions if smoothness is None else _warped(images, mask, maps, positions, smoothness)


def _affine(images: NDArray, voxels: NDArray[np.int64], maps: NDArray) -> NDArray[np.float64]:
    """Find the affine map (3, 4) of voxels (n, 3) about the middle of a scan."""
    middle = (np.array(images.shape[1:]) - 1) / 2
    offsets = voxels - middle
    # Columns of like size, so that the normal equations are well conditioned.
    reach = 0.5 * float(np.mean(images.shape[1:]))
    ones = np.ones((len(offsets), 1))
    coordinates = np.concatenate([offsets / reach, ones], axis=1).astype(np.float32)
    matrix = np.eye(3, 4)
    scan_images = images[:, *voxels.T]
    scaling = np.array([reach, reach, reach, 1.0])
    for _ in range(_AFFINE_STEPS):
        moved = coordinates @ (matrix * scaling).T.astype(np.float32) + middle.astype(np.float32)
        information, right_side = _normal_equations(maps, scan_images, moved.T, coordinates)
        information += _RIDGE * np.trace(information) / 12 * np.eye(12)
        step = np.linalg.solve(information, right_side).reshape(3, 4)
        matrix = matrix + step / scaling
        if np.abs(step).max() < _ENOUGH:
            break
    return matrix


def _normal_equations(
    maps: NDArray, images: NDArray, positions: NDArray, coordinates: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Compute the normal equations J'WJ·step = J'Wr of an affine step, with robust weights W.

    Shapes: `maps` (x, y, z, 12) of three images with slopes, `images` (3, n), `positions` (3, n),
    `coordinates` (n, 4) x, y, z and 1 of voxels, which the map multiplies; returns (12, 12) and
    (12,).
    """
    residuals, slopes = _differences(maps, images, positions)
    # Huber's weights: a lesion pulls no harder than a moderate difference.
    weights = 1 / np.maximum(1, np.abs(residuals) / _ROBUST_AFFINE)
    information, right_side = np.zeros((12, 12)), np.zeros(12)
    for image in range(3):
        # By the chain rule: slope of the image along each axis times each coordinate.
        jacobian = (slopes[:, image, :, None] * coordinates[:, None]).reshape(-1, 12)
        weighted = jacobian * weights[:, image, None]
        # The last bits of products of matrices depend on the number of threads.
        with one_thread():
            information += weighted.T @ jacobian
            right_side += residuals[:, image] @ weighted
    return information, right_side


def _differences(
    maps: NDArray, images: NDArray, positions: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give residuals (n, 3) of images to the guide at positions (3, n), and slopes (n, 3, 3)."""
    values = np.empty((len(positions[0]), 12), dtype=np.float32)
    everywhere = np.ones(maps.shape[:3], dtype=bool)
    resampled(maps, everywhere, positions, np.arange(len(values)), values)
    of_images = values.reshape(-1, 3, 4)
    return images.T - of_images[..., 0], of_images[..., 1:]


def _moved(matrix: NDArray, shape: Sequence[int]) -> NDArray[np.float32]:
    middle = ((np.array(shape) - 1) / 2).reshape(3, 1, 1, 1)
    grid = np.indices(tuple(shape)) - middle
    moved = np.tensordot(matrix[:, :3], grid, axes=1) + matrix[:, 3].reshape(3, 1, 1, 1) + middle
    return np.asarray(moved, dtype=np.float32)


def _warped(
    images: NDArray, mask: NDArray[np.bool_], maps: NDArray, start: NDArray, smoothness: float
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
    moved = np.zeros((3, *shape), dtype=np.float32)
    for _ in range(_WARP_STEPS):
        positions = begin + moved.reshape(3, -1)[:, cells]
        residuals, slopes = _differences(maps, scan_images, positions)
        residuals = np.clip(residuals, -_ROBUST_WARP, _ROBUST_WARP)
        # The demons of Thirion: where images are flat but differ, steps stay short.
        stiffness = np.square(slopes).sum(axis=(1, 2)) + np.square(residuals).sum(axis=1) / 9
        pulls = (slopes * residuals[..., None]).sum(axis=1).T / (_FLAT + stiffness)
        for axis in range(3):
            step = np.bincount(cells, pulls[axis], len(counts)) / np.maximum(counts, 1)
            moved[axis] += gaussian(step.reshape(shape), _FLUID / 2)
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


@njit(cache=True, nogil=True, error_model="numpy")
def resampled(channels, mask, positions, rows, out):
    """
    Interpolate channels of the voxels of a mask in single precision, into rows of `out`.

    Shapes: `channels` (x, y, z, m), 0 outside the `mask` (x, y, z); `positions` (3, n), `rows`
    (n,), `out` (n_rows, m).
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
