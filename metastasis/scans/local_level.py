"""Local level of unenhanced brain, to which scans and implanted lesions are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: White matter of a post-contrast T1 image, in local levels.
WHITE_MATTER = 1.1

_RANGE = (0.7, 1.25)  # of the level: tissue without enhancement, without fluid
_SIGMAS = (30.0, 20.0)  # mm, of the first estimate and the next
_BLOCK = 4.0  # mm; the level is so smooth that it is computed in blocks


def local_level(
    values: NDArray[Any], brain: NDArray[np.bool_], steps: Any = (1.0, 1.0, 1.0)
) -> NDArray[np.float32]:
    """
    Estimate the signal of brain without enhancement around each voxel.

    Shapes: `values` and `brain` (x, y, z), `steps` (3,) in mm; returns (x, y, z).
    """
    intensities = values[brain]
    intensities = intensities[np.isfinite(intensities) & (intensities > 0)]
    if not intensities.size:
        raise ValueError("has no positive value")
    level: Any = np.float32(np.median(intensities))
    factors = [max(1, round(_BLOCK / step)) for step in steps]
    for sigma in _SIGMAS:
        is_tissue = brain & (values > _RANGE[0] * level) & (values < _RANGE[1] * level)
        if not is_tissue.any():
            raise ValueError("has no range of intensities that most of it lies in")
        sigmas = [sigma / (step * factor) for step, factor in zip(steps, factors, strict=True)]
        blocks = [
            ndimage.gaussian_filter(_block_sums(part, factors), sigmas)
            for part in (np.where(is_tissue, values, 0), is_tissue)
        ]
        # Far from all tissue both are 0; the level of the whole brain stands in.
        overall = float(values[is_tissue].mean())
        coarse = (blocks[0] + 1e-6 * overall) / (blocks[1] + 1e-6)
        level = _upsampled(coarse, factors, values.shape)
    return np.asarray(level, dtype=np.float32)


def _block_sums(values: NDArray[Any], factors: list[int]) -> NDArray[np.float32]:
    """Sum over blocks of voxels; the last ones are filled with zeros."""
    padded = np.pad(
        values.astype(np.float32),
        [(0, -n % factor) for n, factor in zip(values.shape, factors, strict=True)],
    )
    x, y, z = (n // factor for n, factor in zip(padded.shape, factors, strict=True))
    blocks = padded.reshape(x, factors[0], y, factors[1], z, factors[2])
    sums: NDArray[np.float32] = blocks.sum(axis=(1, 3, 5))
    return sums


def _upsampled(
    coarse: NDArray[np.float32], factors: list[int], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Interpolate between the centers of blocks, one axis after the other."""
    for axis, (factor, n) in enumerate(zip(factors, shape, strict=True)):
        place = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, coarse.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, coarse.shape[axis] - 1)
        share = (
            (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        )
        coarse = np.take(coarse, low, axis) * (1 - share) + np.take(coarse, high, axis) * share
    return coarse
