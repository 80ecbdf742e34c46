"""Shapes of synthetic lesions in a scan: rough ellipsoids in its tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: Mean signals below which a voxel is fluid, and above which it is tissue.
FLUID = (0.08, 0.23)
_AXES = (0.6, 1.25)  # of the radius
_ROUGHNESS, _GRAIN = 0.12, 1.5  # of the distance from the center; voxels


def ball_radius(mask: NDArray[np.bool_]) -> float:
    """Compute the radius in voxels of a ball as large as a brain."""
    return float((0.75 / np.pi * np.count_nonzero(mask)) ** (1 / 3))


def tissue_share(volume: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Estimate the share of tissue (x, y, z) from the mean signal, which fluid has little of."""
    mean = volume.mean(axis=-1, dtype=np.float32)
    share = np.clip((mean - FLUID[0]) / (FLUID[1] - FLUID[0]), 0, 1)
    return np.where(mask, share, 0).astype(np.float32)


def lesion_center(tissue: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a voxel of tissue, or of the least fluid there is."""
    solid = np.argwhere(tissue >= min(0.9, float(tissue.max())))
    return np.asarray(solid[rng.integers(len(solid))])


def rough_ellipsoid(
    shape: tuple[int, ...], center: NDArray[np.int64], radius: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Compute distances (x, y, z) from the center of a rough turned ellipsoid, 1 at its border."""
    axes = radius * rng.uniform(*_AXES, 3)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] / axes[:, None]
    x, y, z = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
    squares = np.zeros(shape)
    for row in turn:
        squares += (row[0] * x + row[1] * y + row[2] * z) ** 2
    rough = ndimage.gaussian_filter(rng.standard_normal(shape), _GRAIN)
    factor = 1 + _ROUGHNESS * rough / max(float(rough.std()), 1e-9)
    return np.asarray(np.sqrt(squares) * factor, dtype=np.float32)
