"""Foreign patches of another person's brain in a scan, and shapes of lesions in its tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit.io.grids import cropped
from dmrifit.simulate.gliomas import fall

#: Mean signals below which a voxel is fluid, and above which it is tissue.
FLUID = (0.08, 0.23)
_AXES = (0.6, 1.25)  # of the radius
_ROUGHNESS, _GRAIN = 0.12, 1.5  # of the distance from the center; voxels
#: Radius of a patch, and how far it is moved, times the radius of a ball as large as the brain: 10
#: to 24 and 12 to 32 mm in an adult.
_RADII, _MOVES = (0.14, 0.33), (0.17, 0.44)
_WEIGHT, _EDGE = (0.6, 1.0), (0.1, 0.3)


def add_patch(
    volume: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    source: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """
    Blend a moved patch of another person's scan into a scan.

    The patch is a rough ellipsoid in tissue with soft edges and a weight of 0.6 to 1; where the
    other person has no brain, nothing changes. Its label is where it has at least half of its
    weight. Shapes: `volume`, `source` (x, y, z, channels), `mask` (x, y, z); returns the changed
    volume, by how much noise is averaged (x, y, z), and the label.

    References
    ----------
    Tan et al., MELBA 2022:013 (interpolation of foreign patches).
    """
    weight, label, offset = patch_weight(
        tissue_share(volume, mask), mask, np.any(source != 0, axis=-1), rng
    )
    inside = weight > 0
    places = [indices + step for indices, step in zip(np.nonzero(inside), offset, strict=True)]
    share = weight[inside][:, None]
    changed = volume.copy()
    changed[inside] = (1 - share) * volume[inside] + share * source[tuple(places)]
    # Noise of two scans is averaged where they are mixed.
    return changed, np.sqrt(weight**2 + (1 - weight) ** 2), label


def patch_weight(
    tissue: NDArray[np.float32],
    mask: NDArray[np.bool_],
    source_mask: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """Draw a patch: its weight (x, y, z), its label, and the offset in voxels to its source."""
    size = ball_radius(mask)
    center = lesion_center(tissue, rng)
    distance = rough_ellipsoid(mask.shape, center, size * rng.uniform(*_RADII), rng)
    edge = fall(distance, rng.uniform(*_EDGE))
    # A voxel of the other brain that is as far from the patch as patches are moved.
    voxels = np.argwhere(source_mask)
    moves = np.linalg.norm(voxels - center, axis=1) / size
    in_reach = (moves >= _MOVES[0]) & (moves <= _MOVES[1])
    if not in_reach.any():
        in_reach = moves >= min(_MOVES[0], float(moves.max()))
    offset = np.asarray(rng.choice(voxels[in_reach])) - center
    edge[~(mask & cropped(source_mask, offset, mask.shape))] = 0
    return edge * np.float32(rng.uniform(*_WEIGHT)), edge >= 0.5, offset


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
