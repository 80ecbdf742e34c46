"""Lesions that are put into healthy scans to learn from: tissue that differs in diffusion alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Look", "implant", "noise_floor"]

#: Largest radius of a lesion, times that of a ball as large as the brain, and the smallest.
_RADII = (0.11, 0.36)
_AXES = (0.6, 1.25)  # of the radius
_ROUGHNESS, _GRAIN = 0.12, 1.5  # of the distance from the center; voxels
#: Products of diffusivity and b-value: free tissue water, dead tissue, crowded cells.
_FAST, _DEAD, _CROWDED = (1.0, 1.8), (1.8, 2.8), (0.38, 0.62)
_CORE_ODDS, _DEAD_ODDS, _HALO_ODDS = 0.35, 0.15, 0.5
#: Reach of parts, times the lesion's; share of tissue that they replace in their middle; width of their edges.
_CORE = ((0.6, 1.0), (0.7, 1.0), 0.15)
_CENTER = ((0.3, 0.5), (0.8, 1.0), 0.2)
_BODY_SHARE, _BODY_EDGE = (0.5, 1.0), (0.1, 0.4)
_HALO = ((1.15, 1.9), (0.1, 0.6), 0.2)
#: Below the first mean signal a voxel is fluid, which lesions do not replace, above the second it is not.
_FLUID = (0.08, 0.23)
#: Share of tissue that a halo replaces where it belongs to the lesion.
_SEEN = 0.3


@dataclass(frozen=True)
class Look:
    """
    What is told of a scan, voxel by voxel.

    Parameters
    ----------
    mean, spread : ndarray of shape (x, y, z)
        Mean and standard deviation of the signal over directions, 0 outside the mask.
    mask : ndarray of shape (x, y, z)
        The brain.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    mask: NDArray[np.bool_]


def noise_floor(look: Look) -> float:
    """Estimate the spread over directions that noise alone gives to tissue."""
    signal = look.mean[look.mask]
    return float(np.quantile(look.spread[look.mask][signal >= np.median(signal)], 0.1))


def implant(look: Look, floor: float, rng: np.random.Generator) -> tuple[Look, NDArray[np.bool_]]:
    """
    Put a lesion into a healthy scan.

    A rough ellipsoid at a random place, 0.11 to 0.36 of the brain's radius large, takes the place
    of a share of the tissue, with soft edges. What is in it diffuses in all directions alike,
    faster than tissue (b·D from 1 to 1.8) and in some lesions slower in the middle (0.38 to 0.62,
    as among crowded cells) or much faster (dead tissue); some have a halo, most of them too faint
    to belong to the lesion. Signals mix, the spread over directions falls with the share of tissue
    that is left, down to that of noise, and noise is added where mixing has averaged it out, so
    that it gives nothing away. Fluid stays, and belongs to the lesion around it.

    Shapes: returns lesion (x, y, z).
    """
    shape, mask = look.mask.shape, look.mask
    distance = _distance(look, rng)
    parts = []
    kind = rng.random()
    if kind < _CORE_ODDS:
        parts.append(_part(_CORE, _CROWDED, rng))
    elif kind < _CORE_ODDS + _DEAD_ODDS:
        parts.append(_part(_CENTER, _DEAD, rng))
    parts.append((1.0, rng.uniform(*_FAST), rng.uniform(*_BODY_SHARE), rng.uniform(*_BODY_EDGE)))
    if rng.random() < _HALO_ODDS:
        parts.append(_part(_HALO, _FAST, rng))
    left, added = np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    lesion = distance < 1
    for reach, diffusion, share, edge in parts:
        taken = left * np.float32(share) * np.clip(0.5 + 0.5 * (1 - distance / reach) / edge, 0, 1)
        added += taken * np.float32(np.exp(-diffusion))
        left -= taken
        if reach > 1:
            lesion |= taken > _SEEN
    tissue = np.clip((look.mean - _FLUID[0]) / (_FLUID[1] - _FLUID[0]), 0, 1)
    # Noise of the one scan at b = 0 is that of all directions alike.
    noise = 0.4 * floor * rng.standard_normal(shape, dtype=np.float32) * np.sqrt(1 - left**2)
    mean = look.mean + tissue * (left * look.mean + added + noise - look.mean)
    noise_only = np.minimum(look.spread, floor)
    mixed = np.sqrt(left**2 * (look.spread**2 - noise_only**2) + noise_only**2)
    spread = look.spread + tissue * (mixed - look.spread)
    changed = Look(
        np.where(mask, mean, 0).astype(np.float32),
        np.where(mask, spread, 0).astype(np.float32),
        mask,
    )
    return changed, lesion & mask


def _part(
    kind: tuple[tuple[float, float], tuple[float, float], float],
    diffusion: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Draw reach, b·D and share of a part; its edge is given."""
    reach, share, edge = kind
    return rng.uniform(*reach), rng.uniform(*diffusion), rng.uniform(*share), edge


def _distance(look: Look, rng: np.random.Generator) -> NDArray[np.float32]:
    """Give how far voxels are from the center of a rough ellipsoid, 1 at its border."""
    shape = look.mask.shape
    places = np.argwhere(look.mask & (look.mean > _FLUID[1]))
    if not len(places):
        places = np.argwhere(look.mask)
    center = places[rng.integers(len(places))]
    size = (look.mask.sum() * 0.75 / np.pi) ** (1 / 3)
    radius = size * np.exp(rng.uniform(*np.log(_RADII)))
    axes = radius * rng.uniform(*_AXES, 3)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] / axes[:, None]
    apart = np.indices(shape) - center.reshape(3, 1, 1, 1)
    squares = np.zeros(shape)
    for row in turn:
        squares += (row[0] * apart[0] + row[1] * apart[1] + row[2] * apart[2]) ** 2
    rough = ndimage.gaussian_filter(rng.standard_normal(shape), _GRAIN)
    return np.asarray(
        np.sqrt(squares) * (1 + _ROUGHNESS * rough / max(float(rough.std()), 1e-9)),
        dtype=np.float32,
    )
