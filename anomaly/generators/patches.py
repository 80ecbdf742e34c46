"""Foreign patches: tissue of another person's brain, from another place, blended into a scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.generators.lesion_shapes import (
    ball_radius,
    lesion_center,
    rough_ellipsoid,
    tissue_share,
)
from dmrifit.io.grids import cropped
from dmrifit.simulate.gliomas import fall

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
    offset = _source_center(center, source_mask, size, rng) - center
    edge[~(mask & cropped(source_mask, offset, mask.shape))] = 0
    return edge * np.float32(rng.uniform(*_WEIGHT)), edge >= 0.5, offset


def _source_center(
    center: NDArray[np.int64],
    source_mask: NDArray[np.bool_],
    size: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw a voxel of the other brain that is as far from the patch as patches are moved."""
    voxels = np.argwhere(source_mask)
    distance = np.linalg.norm(voxels - center, axis=1) / size
    in_reach = (distance >= _MOVES[0]) & (distance <= _MOVES[1])
    if not in_reach.any():
        in_reach = distance >= min(_MOVES[0], float(distance.max()))
    return np.asarray(rng.choice(voxels[in_reach]))
