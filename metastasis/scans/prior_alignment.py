"""Local alignment of a prior to its scan, for what registration has left over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metastasis.scans.local_level import local_level

#: Rounds: smoothing of both scans in mm, and of the sums that each place is moved by; at first
#: all places are moved together, by an affine transformation.
_ROUNDS: tuple[tuple[float, float | None], ...] = (
    *[(2.0, None)] * 6,
    *[(1.0, None)] * 6,
    (1.0, 10.0),
)
_GRID = 2.0  # mm between the places that are moved
_MARGIN = 4.0  # mm: the border of the brain is that of a mask, and the same in both
_FURTHEST = 5.0  # mm along each axis
_AROUND = 5.0  # mm; what is left of a coil's field would pull places along
_BRIGHTEST = 2.0  # local levels; vessels enhance more on one day than on another
_OUTLIER = 1.5  # robust standard deviations at which a difference counts half
_RIDGE = 0.05  # of the sums, where the scan is so even that no place can be told from another


def aligned_prior(
    image: NDArray[Any], prior: NDArray[Any], brain: NDArray[np.bool_], steps: Any
) -> NDArray[np.float32]:
    """
    Move each place of a prior by some millimeters to where it looks like the scan.

    Differences of both scans, in local levels, are taken for small moves along their gradient:
    first of the whole, then in windows. What does not agree, such as a new metastasis, counts
    little.

    Shapes: `image`, `prior` and `brain` (x, y, z), `steps` (3,) in mm; returns (x, y, z).

    References
    ----------
    Lucas and Kanade, Proc 7th IJCAI:674–679, 1981, with Cauchy's weights.
    """
    steps = np.asarray(steps, dtype=np.float64)
    depth = ndimage.distance_transform_edt(brain, sampling=steps)
    moves = _moves(
        _relative(image, brain, steps), _relative(prior, brain, steps), depth > _MARGIN, steps
    )
    places = np.indices(image.shape, dtype=np.float32)
    at = places / _strides(image.shape, steps)[:, None, None, None]
    for axis, move in enumerate(moves):
        places[axis] += ndimage.map_coordinates(move, at, order=1, mode="nearest") / steps[axis]
    # Lines between voxels would flatten small metastases that lie between them.
    values = np.asarray(prior, dtype=np.float32)
    moved = ndimage.map_coordinates(values, places, order=3, mode="nearest")
    return np.maximum(moved, 0) * brain


def _relative(
    values: NDArray[Any], brain: NDArray[np.bool_], steps: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Take a scan in local levels minus its mean around, and cut off what is brighter."""
    values = np.asarray(values, dtype=np.float32)
    levels = np.clip(values / local_level(values, brain, steps), 0, _BRIGHTEST) * brain
    sums, shares = (
        ndimage.gaussian_filter(part.astype(np.float32), _AROUND / steps, truncate=3)
        for part in (levels, brain)
    )
    return (levels - sums / np.maximum(shares, 1e-3)) * brain


def _strides(shape: tuple[int, ...], steps: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give the voxels from one place that is moved to the next, at least two along each axis."""
    return np.clip(np.round(_GRID / steps), 1, np.array(shape) // 2).astype(np.int64)


def _moves(
    image: NDArray[np.float32],
    prior: NDArray[np.float32],
    inside: NDArray[np.bool_],
    steps: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Find by how many mm places of the scan lie elsewhere in the prior: (3, ...), coarse."""
    strides = _strides(image.shape, steps)
    coarse = tuple(slice(None, None, int(stride)) for stride in strides)
    inside = inside[coarse]
    moves = np.zeros((3, *inside.shape))
    if not inside.any():
        return moves
    indices = [np.arange(n)[part] for n, part in zip(image.shape, coarse, strict=True)]
    places = np.stack(np.meshgrid(*indices, indexing="ij"))
    for blur, window in _ROUNDS:
        fixed, moving = (ndimage.gaussian_filter(v, blur / steps) for v in (image, prior))
        slopes = np.stack([slope[coarse] for slope in np.gradient(fixed, *steps)], axis=-1)
        at = places + moves / steps[:, None, None, None]
        residual = fixed[coarse] - ndimage.map_coordinates(moving, at, order=1, mode="nearest")
        scale = 1.4826 * np.median(np.abs(residual[inside])) + 1e-6
        weights = inside / (1 + (residual / (_OUTLIER * scale)) ** 2)
        if window is None:
            further = _moved_together(places, slopes, residual, weights)
        else:
            further = _moved_alone(window / (steps * strides), slopes, residual, weights)
        moves = np.clip(moves + further, -_FURTHEST, _FURTHEST)
    return moves


def _moved_together(
    places: NDArray[Any], slopes: NDArray[Any], residual: NDArray[Any], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """Solve for one affine transformation of all places: (3, ...)."""
    centered = (places - places.mean(axis=(1, 2, 3), keepdims=True)) / max(places.shape)
    basis = np.stack([np.ones(residual.shape), *centered], axis=-1)
    # Each direction moves by a number of its own and in proportion to the place.
    jacobian = (slopes[..., None] * basis[..., None, :]).reshape(-1, 12)
    weighted = jacobian.T * weights.ravel()
    numbers = np.linalg.lstsq(weighted @ jacobian, weighted @ residual.ravel())[0]
    return np.moveaxis(basis @ numbers.reshape(3, 4).T, -1, 0)


def _moved_alone(
    window: NDArray[Any], slopes: NDArray[Any], residual: NDArray[Any], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """Solve for a move of each place, with a window of so many places: (3, ...)."""
    weighted = slopes * weights[..., None]
    normal = weighted[..., None] * slopes[..., None, :]
    normal = ndimage.gaussian_filter(normal, (*window, 0, 0))
    right = ndimage.gaussian_filter(weighted * residual[..., None], (*window, 0))
    ridge = _RIDGE * np.trace(normal, axis1=-2, axis2=-1) + 1e-9
    normal += ridge[..., None, None] * np.eye(3)
    return np.moveaxis(np.linalg.solve(normal, right[..., None])[..., 0], -1, 0)
