"""Lesions in healthy scans: tissue with other diffusivity, and patches of another person's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
_PATCH_RADII, _PATCH_MOVES = (0.14, 0.33), (0.17, 0.44)
_PATCH_WEIGHT, _PATCH_EDGE = (0.6, 1.0), (0.1, 0.3)
#: Smallest and largest radius of a lesion, times that of a ball as large as the brain.
_RADII = (0.11, 0.36)
#: Products of diffusivity and b-value: free tissue water, dead tissue, crowded cells.
_FAST, _DEAD, _CROWDED = (1.0, 1.8), (1.8, 2.8), (0.38, 0.62)
_CORE_ODDS, _DEAD_ODDS, _HALO_ODDS = 0.35, 0.15, 0.5
#: Reach of components, relative to the lesion's; products of diffusivity and b-value; share of
#: tissue that they replace; width of edges.
_CORE = ((0.6, 1.0), _CROWDED, (0.7, 1.0), 0.15)
_CENTER = ((0.3, 0.5), _DEAD, (0.8, 1.0), 0.2)
_BODY_SHARE, _BODY_EDGE = (0.5, 1.0), (0.1, 0.4)
_HALO = ((1.15, 1.9), _FAST, (0.1, 0.6), 0.2)
#: Share of tissue that a halo replaces from which on a voxel belongs to the lesion.
_SEEN = 0.3


@dataclass(frozen=True)
class Look:
    """Mean and spread of the signal over directions (x, y, z), 0 outside the mask."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    mask: NDArray[np.bool_]


def noise_floor(look: Look) -> float:
    """Estimate the spread over directions that noise alone gives to tissue."""
    signal = look.mean[look.mask]
    return float(np.quantile(look.spread[look.mask][signal >= np.median(signal)], 0.1))


def implant(look: Look, floor: float, rng: np.random.Generator) -> tuple[Look, NDArray[np.bool_]]:
    """
    Implant a lesion into a healthy scan.

    A rough ellipsoid at a random position, 0.11 to 0.36 of the brain's radius large, replaces a
    share of the tissue, with soft edges. Its diffusion is isotropic, faster than in tissue (b·D
    from 1 to 1.8), and in some lesions slower in the middle (0.38 to 0.62, as among crowded cells)
    or much faster (necrosis); some have a halo, which is mostly too faint to belong to the lesion.
    Signals mix; the spread over directions falls with the remaining share of tissue, down to that
    of noise; and noise is added where mixing has averaged it out, so that it does not reveal the
    lesion. Fluid is not replaced, and belongs to the lesion around it.

    Shapes: returns lesion (x, y, z).
    """
    shape, mask = look.mask.shape, look.mask
    tissue_voxels = np.argwhere(mask & (look.mean > FLUID[1]))
    if not len(tissue_voxels):
        tissue_voxels = np.argwhere(mask)
    center = tissue_voxels[rng.integers(len(tissue_voxels))]
    radius = ball_radius(mask) * np.exp(rng.uniform(*np.log(_RADII)))
    # From the center of a rough ellipsoid, 1 at its border.
    distance = rough_ellipsoid(shape, center, radius, rng)
    remaining = np.ones(shape, dtype=np.float32)
    added = np.zeros(shape, dtype=np.float32)
    lesion = distance < 1
    # From the middle outward: each component replaces a share of the tissue that the former left.
    for component in _components(rng):
        inside = fall(distance / component.reach, component.edge)
        replaced = remaining * np.float32(component.share) * inside
        added += replaced * np.float32(np.exp(-component.diffusion))
        remaining -= replaced
        if component.reach > 1:
            lesion |= replaced > _SEEN
    tissue = np.clip((look.mean - FLUID[0]) / (FLUID[1] - FLUID[0]), 0, 1)
    # All directions share the noise of the one scan at b = 0, so it does not average out.
    noise = 0.4 * floor * rng.standard_normal(shape, dtype=np.float32) * np.sqrt(1 - remaining**2)
    mean = look.mean + tissue * (remaining * look.mean + added + noise - look.mean)
    noise_only = np.minimum(look.spread, floor)
    mixed = np.sqrt(remaining**2 * (look.spread**2 - noise_only**2) + noise_only**2)
    spread = look.spread + tissue * (mixed - look.spread)
    changed = Look(
        np.where(mask, mean, 0).astype(np.float32),
        np.where(mask, spread, 0).astype(np.float32),
        mask,
    )
    return changed, lesion & mask


def implant_patch(
    look: Look, source: Look, floor: float, rng: np.random.Generator
) -> tuple[Look, NDArray[np.bool_]]:
    """
    Blend a foreign patch of another healthy scan into a scan, as `add_patch` does with signals.

    Mean signals mix; of the spreads those that noise does not explain are taken as independent,
    and noise is added where mixing has averaged it out. Shapes: returns the label (x, y, z).
    """
    tissue = np.where(look.mask, (look.mean > FLUID[1]).astype(np.float32), 0)
    weight, label, offset = patch_weight(tissue, look.mask, source.mask, rng)
    inside = weight > 0
    share = weight[inside]
    places = tuple(n + step for n, step in zip(np.nonzero(inside), offset, strict=True))
    mean, spread = look.mean.copy(), look.spread.copy()
    averaged = np.sqrt(1 - share**2 - (1 - share) ** 2)
    noise = 0.4 * floor * rng.standard_normal(len(share), dtype=np.float32) * averaged
    mean[inside] = (1 - share) * look.mean[inside] + share * source.mean[places] + noise
    squares = np.zeros_like(share)
    for part, own in ((1 - share, look.spread[inside]), (share, source.spread[places])):
        squares += part**2 * np.maximum(own**2 - floor**2, 0)
    noise_only = np.minimum(np.maximum(look.spread[inside], source.spread[places]), floor)
    spread[inside] = np.sqrt(squares + noise_only**2)
    return Look(mean, spread, look.mask), label


@dataclass(frozen=True)
class _Component:
    """A component of a lesion: reach relative to the lesion's, b·D, share of tissue, edge."""

    reach: float
    diffusion: float
    share: float
    edge: float

    @classmethod
    def draw(cls, limits: tuple[Any, Any, Any, float], rng: np.random.Generator) -> _Component:
        reach, diffusion, share, edge = limits
        return cls(rng.uniform(*reach), rng.uniform(*diffusion), rng.uniform(*share), edge)


def _components(rng: np.random.Generator) -> list[_Component]:
    """Draw the components of a lesion: a core in some, the body, a halo in some."""
    components = []
    core = rng.random()
    if core < _CORE_ODDS:
        components.append(_Component.draw(_CORE, rng))
    elif core < _CORE_ODDS + _DEAD_ODDS:
        components.append(_Component.draw(_CENTER, rng))
    diffusion, share = rng.uniform(*_FAST), rng.uniform(*_BODY_SHARE)
    components.append(_Component(1.0, diffusion, share, rng.uniform(*_BODY_EDGE)))
    if rng.random() < _HALO_ODDS:
        components.append(_Component.draw(_HALO, rng))
    return components


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
    volume, the factor by which averaging lowers the noise (x, y, z), and the label.

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
    distance = rough_ellipsoid(mask.shape, center, size * rng.uniform(*_PATCH_RADII), rng)
    edge = fall(distance, rng.uniform(*_PATCH_EDGE))
    # A voxel of the other brain that is as far from the patch as patches are moved.
    voxels = np.argwhere(source_mask)
    moves = np.linalg.norm(voxels - center, axis=1) / size
    in_reach = (moves >= _PATCH_MOVES[0]) & (moves <= _PATCH_MOVES[1])
    if not in_reach.any():
        in_reach = moves >= min(_PATCH_MOVES[0], float(moves.max()))
    offset = np.asarray(rng.choice(voxels[in_reach])) - center
    edge[~(mask & cropped(source_mask, offset, mask.shape))] = 0
    return edge * np.float32(rng.uniform(*_PATCH_WEIGHT)), edge >= 0.5, offset


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
