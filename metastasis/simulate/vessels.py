"""Vessels, sinuses, dura and plexus of synthetic heads, which contrast agent brightens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.affines import MM3_PER_ML
from dmrifit.simulate.head_shapes import texture_field
from dmrifit.simulate.heads import Head

_STEP = 0.7  # mm between points of a vessel
_N_STEPS = 90
_LENGTHS, _DEEP_LENGTHS = (35, _N_STEPS), (20, 40)  # points
# Fewest and one more than most, in a brain of so many mL.
_NUMBERS, _NUMBERS_BRAIN = (10, 18), 300.0
_FEWEST = 4
_DEEP_SHARE, _DEEP_SIZE = 0.3, 0.7  # of vessels that run through white matter, of the others'
_DURA = 0.5  # mm, half the thickness of falx and tentorium
_DURA_REACH = 1.5  # mm below the surface
_REMAINS, _REMAINS_DEPTH = 9.0, 2.5  # mm, of patches and of how deep they reach
_PATCH, _GRAIN = 5.0, 1.2  # mm, of enhancing dura and of the plexus


class Vessels(NamedTuple):
    """Vessels: their share of voxels, that times their contrast, and points (n, 3) in mm."""

    share: NDArray[np.float32]
    contrast: NDArray[np.float32]
    points: NDArray[np.float64]


def draw_vessels(
    head: Head,
    rng: np.random.Generator,
    *,
    radii: tuple[float, float],
    contrasts: tuple[float, float],
) -> Vessels:
    """Draw vessels along the surface, in folds and through white matter; radii are SDs in mm."""
    volume = float(head.brain.sum() * head.spacing.prod()) / MM3_PER_ML
    n_drawn = int(rng.integers(*_NUMBERS) * (volume / _NUMBERS_BRAIN) ** (2 / 3))
    n = max(n_drawn, _FEWEST)
    is_deep = rng.random(n) < _DEEP_SHARE
    size = np.where(is_deep, _DEEP_SIZE, 1.0)
    points = _walk(head, is_deep, rng)
    lengths = np.where(is_deep, rng.integers(*_DEEP_LENGTHS, n), rng.integers(*_LENGTHS, n))
    position = np.arange(_N_STEPS)[:, None]
    is_vessel = position < lengths
    tapered = rng.uniform(*radii, n) * size * (1 - 0.4 * position / lengths)
    strengths = np.broadcast_to(rng.uniform(*contrasts, n) * size, is_vessel.shape)
    share, contrast = _tubes(head, points[is_vessel], tapered[is_vessel], strengths[is_vessel])
    return Vessels(share, contrast, points[is_vessel])


def _walk(head: Head, is_deep: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Walk along a depth of each vessel, or from the surface inward; (steps, n, 3) in mm."""
    n = len(is_deep)
    depths = rng.uniform(0.8, 6.0, n)
    # Depth is at least a voxel's edge.
    is_shallow = (head.depth < 4) | (head.depth <= head.spacing.min())
    surface = np.argwhere((head.depth > 0.5) & is_shallow)
    starts = surface[rng.integers(len(surface), size=n)]
    position = head.places[tuple(starts.T)].astype(np.float64)
    direction = rng.standard_normal((n, 3))
    direction[is_deep] = -position[is_deep]
    turning = np.where(is_deep, 0.06, 0.22)[:, None]
    pulling = np.where(is_deep, 0.0, 0.06)
    path = np.empty((_N_STEPS, n, 3))
    last = np.array(head.brain.shape) - 1
    for step in range(_N_STEPS):
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        path[step] = position
        position = position + _STEP * direction
        index = np.clip(_nearest(head, position), 0, last)
        outward = position / np.maximum(np.linalg.norm(position, axis=1, keepdims=True), 1e-6)
        # Without a pull, random turns would lead vessels away from the surface that they run
        # along.
        pull = pulling * np.clip(head.depth[tuple(index.T)] - depths, -4, 4)
        direction = direction + turning * rng.standard_normal((n, 3)) + pull[:, None] * outward
    return path


def _nearest(head: Head, points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Find the voxels of places in mm."""
    return np.rint((points - head.affine[:3, 3]) / head.spacing).astype(np.intp)


def _tubes(
    head: Head, points: NDArray, radii: NDArray, strengths: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Paint a bell around each point; the brightest one counts."""
    shape = head.brain.shape
    reach = np.ceil(2.5 * radii.max() / head.spacing).astype(int)
    offsets = np.indices(tuple(2 * reach + 1)).reshape(3, -1).T - reach
    index = _nearest(head, points)[:, None] + offsets
    centers = index * head.spacing + head.affine[:3, 3]
    squares = ((centers - points[:, None]) ** 2).sum(axis=-1)
    value = np.exp(-squares / (2 * radii[:, None] ** 2)).astype(np.float32)
    # Tails of the bells are left out: they are most of the voxels and none of the picture.
    is_used = (value > 0.03) & ((index >= 0) & (index < shape)).all(axis=-1)
    voxels = tuple(index[is_used].T)
    share, contrast = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    np.maximum.at(share, voxels, value[is_used])
    weighted = value * strengths[:, None].astype(np.float32)
    np.maximum.at(contrast, voxels, weighted[is_used])
    return share, contrast


def dural_sinuses(head: Head, *, radius: float) -> NDArray[np.float32]:
    """
    Give the share of voxels in the sinuses, where falx, tentorium and skull meet.

    `radius` is the standard deviation of their profile in mm.
    """
    falx, tentorium = head.to_falx, head.to_tentorium
    wall = np.abs(head.depth - 0.5 * head.spacing.min() - 1)
    # Below the center of the brain, the falx ends at the tentorium or the base of the skull.
    below = np.maximum(-head.local[..., 2], 0) * head.half_axes[2]
    middle = np.abs(head.local[..., 0]) * head.half_axes[0]
    squares = np.minimum.reduce(
        [falx**2 + wall**2 + below**2, tentorium**2 + wall**2, tentorium**2 + middle**2]
    )
    return (np.exp(-squares / (2 * radius**2)) * head.brain).astype(np.float32)


def dura_patches(head: Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw patches of dura, below the skull, in the falx and in the tentorium, as shares."""
    patches = texture_field(head.brain.shape, _PATCH, head.spacing, rng)
    inner = dural_sheets(head)
    # The surface lies half a voxel outside the outermost centers.
    outer = np.clip(_DURA_REACH - head.depth + 0.5 * head.spacing.min(), 0, 1)
    share = np.maximum(inner, outer) * np.clip(patches - 0.2, 0, 1) * head.brain
    return share.astype(np.float32)


def dural_sheets(head: Head) -> NDArray[np.float32]:
    """Give the share of voxels in falx and tentorium."""
    distance = np.minimum(head.to_falx, head.to_tentorium)
    return np.clip(0.5 + (_DURA - distance) / head.spacing.min(), 0, 1)


def skull_remains(head: Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw what is left of fat and skull at the surface after stripping, as shares."""
    patches = texture_field(head.brain.shape, _REMAINS, head.spacing, rng)
    shell = np.clip(_REMAINS_DEPTH - head.depth + 0.5 * head.spacing.min(), 0, 1)
    share = shell * np.clip(2 * (patches - 0.8), 0, 1) * head.brain
    return share.astype(np.float32)


def choroid_plexus(head: Head, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the plexus as shares: grains in the back of the lateral ventricles."""
    grains = texture_field(head.brain.shape, _GRAIN, head.spacing, rng)
    back = head.ventricles * (head.local[..., 1] < 0)
    return (back * np.clip(grains - 0.6, 0, 1)).astype(np.float32)
