"""Enhancement of synthetic brains: vessels, dura, plexus, metastases and mimics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dmrifit.simulate.heads import Head, texture_field

__all__ = [
    "Nodule",
    "draw_mimics",
    "draw_nodule",
    "draw_places",
    "draw_vessels",
    "linings",
    "moved",
    "shares",
    "swelling",
]

_STEP = 0.7  # mm between points of a vessel
_N_STEPS = 90
_VESSELS, _VESSEL_BRAIN = (10, 18), 300.0  # fewest and one more than most in a brain of so many mL
_VESSEL_RADII = (0.55, 1.15)  # mm, standard deviation of the profile
_SINUS_RADIUS = 1.6  # mm
_SINUS_CONTRAST = 0.22
_FINE = 3  # points along each edge of a voxel, for the share of a nodule in it
_NODULE_DIAMETERS = (2.5, 5.5)  # mm, of what looks like a metastasis
_CONTRASTS = (0.5, 1.1)  # of white matter's signal, above it
_VESSEL_CONTRASTS = (0.2, 0.5)
_KINDS = ("vascular", "nodule", "dural")
_KIND_SHARES = (0.45, 0.40, 0.15)


@dataclass(frozen=True)
class Nodule:
    """
    A bright thing in the brain: an uneven ellipsoid.

    Parameters
    ----------
    center : ndarray of shape (3,)
        In mm.
    radius : float
        Of a ball of about the same volume, in mm.
    axes : ndarray of shape (3, 3)
        Rows: directions divided by stretches.
    lobes : ndarray of shape (4, 3)
        Waves that make its surface uneven, on the unit sphere.
    contrast : float
        Signal above white matter, of white matter's.
    core : float
        Radius of a dark core, of `radius`; 0 for none.
    edema : float
        Radius of darkened tissue around it, of `radius`; 0 for none.
    """

    center: NDArray[np.float64]
    radius: float
    axes: NDArray[np.float64]
    lobes: NDArray[np.float64]
    contrast: float
    core: float = 0.0
    edema: float = 0.0


def draw_nodule(
    center: NDArray[np.float64],
    diameter: float,
    rng: np.random.Generator,
    *,
    ring: float = 0.0,
    contrasts: tuple[float, float] = _CONTRASTS,
) -> Nodule:
    """Draw a bright thing."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = rng.uniform(0.85, 1.15, 3)
    stretch /= stretch.prod() ** (1 / 3)
    lobes = rng.normal(0, 1.6, (4, 3))
    contrast = rng.uniform(*contrasts)
    has_core, has_edema = rng.random(2) < (ring, 0.6)
    core, edema = rng.uniform(0.5, 0.7), rng.uniform(1.5, 2.3)
    return Nodule(
        np.asarray(center, dtype=np.float64),
        diameter / 2,
        turn / stretch[:, None],
        lobes,
        contrast,
        core if has_core else 0.0,
        edema if has_edema and diameter > 5 else 0.0,
    )


def moved(nodule: Nodule, center: NDArray[np.float64], size: float) -> Nodule:
    """Give a bright thing at another place, of another size."""
    return replace(
        nodule, center=np.asarray(center, dtype=np.float64), radius=nodule.radius * size
    )


def shares(
    nodule: Nodule, shape: Sequence[int], origin: NDArray[np.float64], steps: NDArray[np.float64]
) -> tuple[tuple[slice, ...], NDArray[np.float32], NDArray[np.float32]]:
    """Give how much of each voxel a bright thing fills."""
    window, axes = _window(nodule, 1.5, shape, origin, steps)
    fine = (np.arange(_FINE) + 0.5) / _FINE - 0.5
    distance, points = _distance(
        nodule,
        [(axis[:, None] + step * fine).ravel() for axis, step in zip(axes, steps, strict=True)],
    )
    unit = points / (np.linalg.norm(points, axis=-1, keepdims=True) + np.float32(1e-9))
    distance *= 1 + 0.06 * np.sin(
        unit @ (2 * nodule.lobes.T).astype(np.float32) + nodule.lobes[:, 0]
    ).sum(axis=-1)
    n = [len(axis) for axis in axes]

    def mean(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
        return inside.reshape(n[0], _FINE, n[1], _FINE, n[2], _FINE).mean(
            axis=(1, 3, 5), dtype=np.float32
        )

    filled = mean(distance < 1)
    return window, filled, mean(distance < nodule.core) if nodule.core else np.zeros_like(filled)


def swelling(
    nodule: Nodule, shape: Sequence[int], origin: NDArray[np.float64], steps: NDArray[np.float64]
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """Give how much a bright thing darkens the tissue around it."""
    window, axes = _window(nodule, 1.3 * nodule.edema, shape, origin, steps)
    distance, _ = _distance(nodule, axes)
    return window, np.clip((nodule.edema - distance) / np.float32(0.6), 0, 1)


def _window(
    nodule: Nodule,
    reach: float,
    shape: Sequence[int],
    origin: NDArray[np.float64],
    steps: NDArray[np.float64],
) -> tuple[tuple[slice, ...], list[NDArray[np.float64]]]:
    """Find the voxels within a number of radii, and their places in mm from the center."""
    size = nodule.radius * reach + steps
    low = np.clip(np.floor((nodule.center - size - origin) / steps).astype(int), 0, shape)
    high = np.clip(np.ceil((nodule.center + size - origin) / steps).astype(int) + 1, 0, shape)
    axes = [origin[a] + steps[a] * np.arange(low[a], high[a]) - nodule.center[a] for a in range(3)]
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), axes


def _distance(
    nodule: Nodule, axes: Sequence[NDArray]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the distance of points from the center in radii, and their unstretched places."""
    parts = [
        np.multiply.outer(
            axis.astype(np.float32), (nodule.axes[:, a] / nodule.radius).astype(np.float32)
        )
        for a, axis in enumerate(axes)
    ]
    points = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None]
    return np.sqrt(np.einsum("xyzi,xyzi->xyz", points, points)), points


def draw_places(
    weights: NDArray[np.floating],
    radii: Sequence[float],
    taken: Sequence[tuple[NDArray[np.float64], float]],
    head: Head,
    rng: np.random.Generator,
    *,
    gap: float = 3.0,
) -> list[NDArray[np.float64] | None]:
    """
    Draw places of things that keep off each other.

    Shapes: `weights` (x, y, z).
    """
    cumulative = np.cumsum(weights, dtype=np.float64).ravel()
    there = list(taken)
    places: list[NDArray[np.float64] | None] = []
    for radius in radii:
        tries = np.searchsorted(cumulative, rng.random(40) * cumulative[-1], side="right")
        found = None
        for point in head.grid.reshape(-1, 3)[np.minimum(tries, len(cumulative) - 1)].astype(
            np.float64
        ):
            if all(np.linalg.norm(point - other) > radius + size + gap for other, size in there):
                found = point
                there.append((found, radius))
                break
        places.append(found)
    return places


def draw_vessels(
    head: Head, steps: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """
    Draw vessels as random walks along the surface, in folds and through white matter.

    Shapes: returns filled (x, y, z), contrast (x, y, z), points (n, 3).
    """
    volume = float(head.brain.sum() * np.prod(steps)) * 1e-3
    n = max(int(rng.integers(*_VESSELS) * (volume / _VESSEL_BRAIN) ** (2 / 3)), 4)
    origin = head.grid[0, 0, 0].astype(np.float64)
    deep = rng.random(n) < 0.3
    wanted = np.where(deep, 0.0, rng.uniform(0.8, 6.0, n))
    # Depth is at least a voxel's edge.
    surface = np.argwhere((head.depth > 0.5) & ((head.depth < 4) | (head.depth <= steps.min())))
    place = head.grid[tuple(surface[rng.integers(len(surface), size=n)].T)].astype(np.float64)
    way = rng.standard_normal((n, 3))
    way[deep] = -place[deep] / np.linalg.norm(place[deep], axis=1, keepdims=True)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    radius = rng.uniform(*_VESSEL_RADII, n) * np.where(deep, 0.7, 1.0)
    strength = rng.uniform(*_VESSEL_CONTRASTS, n) * np.where(deep, 0.7, 1.0)
    length = np.where(deep, rng.integers(20, 40, n), rng.integers(35, _N_STEPS, n))
    path = np.empty((_N_STEPS, n, 3))
    limit = np.array(head.depth.shape) - 1
    for step in range(_N_STEPS):
        path[step] = place
        index = np.clip(np.rint((place - origin) / steps).astype(int), 0, limit)
        outward = place / np.maximum(np.linalg.norm(place, axis=1, keepdims=True), 1e-6)
        turn = rng.standard_normal((n, 3)) * np.where(deep, 0.06, 0.22)[:, None]
        pull = np.where(deep, 0.0, np.clip(head.depth[tuple(index.T)] - wanted, -4, 4) * 0.06)
        way = way + turn + pull[:, None] * outward
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        place = place + _STEP * way
    kept = np.arange(_N_STEPS)[:, None] < length
    taper = 1 - 0.4 * np.arange(_N_STEPS)[:, None] / length
    points, radii = path[kept], (radius * taper)[kept]
    levels = np.broadcast_to(strength, kept.shape)[kept]
    sinus = _sinus(head)
    thin = _tubes(points, radii, levels, head, origin, steps)
    n_sinus = len(sinus)
    thick = _tubes(
        sinus,
        np.full(n_sinus, _SINUS_RADIUS),
        np.full(n_sinus, _SINUS_CONTRAST),
        head,
        origin,
        steps,
    )
    return np.maximum(thin[0], thick[0]), np.maximum(thin[1], thick[1]), points


def _sinus(head: Head) -> NDArray[np.float64]:
    """Give points under the top of the brain along the middle, from front to back."""
    middle = np.argmin(np.abs(head.grid[:, 0, 0, 0]))
    plane = head.brain[middle]
    rows = np.flatnonzero(plane.any(axis=1))
    top = plane.shape[1] - 1 - np.argmax(plane[:, ::-1], axis=1)
    height = head.grid[0, 0, :, 2]
    fine = np.linspace(rows[0], rows[-1], 4 * len(rows))
    y = np.interp(fine, rows, head.grid[0, rows, 0, 1])
    z = np.interp(fine, rows, height[top[rows]]) - 1.0
    return np.stack([np.full_like(y, head.grid[middle, 0, 0, 0]), y, z], axis=-1)[
        z > height.mean()
    ]


def _tubes(
    points: NDArray, radii: NDArray, levels: NDArray, head: Head, origin: NDArray, steps: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Paint a bell around each point; the brightest one counts."""
    shape = np.array(head.depth.shape)
    reach = np.ceil(2.5 * radii.max() / steps).astype(int)
    offsets = np.stack(
        np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    nearest = np.rint((points - origin) / steps).astype(int)
    index = nearest[:, None] + offsets
    squared = (((index * steps + origin) - points[:, None]) ** 2).sum(axis=-1)
    value = np.exp(-squared / (2 * radii[:, None] ** 2)).astype(np.float32)
    use = (value > 0.03) & ((index >= 0) & (index < shape)).all(axis=-1)
    flat = np.ravel_multi_index(tuple(index[use].T), tuple(shape))
    filled, contrast = np.zeros(shape.prod(), np.float32), np.zeros(shape.prod(), np.float32)
    np.maximum.at(filled, flat, value[use])
    np.maximum.at(contrast, flat, (value * levels[:, None])[use].astype(np.float32))
    return filled.reshape(shape), contrast.reshape(shape)


def linings(
    head: Head, steps: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Draw what enhances in every brain: patches of dura, and the plexus of the ventricles.

    Shapes: returns filled (x, y, z), contrast (x, y, z).
    """
    shape = head.depth.shape
    patches = texture_field(shape, 5.0, steps, rng)
    dura = np.clip((2.0 - head.depth) / 1.0, 0, 1) * np.clip(patches - 0.2, 0, 1) * head.brain
    grain = texture_field(shape, 1.2, steps, rng)
    inner = head.fluid * np.clip((head.depth - 14) / 2, 0, 1) * (head.grid[..., 1] < 0)
    plexus = inner * np.clip(grain - 0.6, 0, 1)
    filled = np.maximum(0.7 * dura, plexus)
    return filled.astype(np.float32), (0.3 * filled).astype(np.float32)


def draw_mimics(
    n: int,
    points: NDArray[np.float64],
    weights: NDArray[np.floating],
    taken: Sequence[tuple[NDArray[np.float64], float]],
    head: Head,
    rng: np.random.Generator,
) -> list[Nodule]:
    """
    Draw bright things that are no metastases: on vessels, under the dura, and alone in the brain.

    Those that stand alone are made and placed as small metastases are: one image cannot tell them
    apart.

    Shapes: `points` (m, 3), `weights` (x, y, z).
    """
    kinds = rng.choice(_KINDS, size=n, p=_KIND_SHARES)
    smallest, largest = np.log(_NODULE_DIAMETERS)
    diameters = np.exp(rng.uniform(smallest, largest, n))
    shallow = ((head.depth > 1.5) & (head.depth < 4)).astype(np.float32)
    near = np.zeros_like(shallow)
    origin, steps = head.grid[0, 0, 0], head.grid[1, 1, 1] - head.grid[0, 0, 0]
    index = np.rint((points - origin) / steps).astype(int)
    inside = ((index >= 0) & (index < near.shape)).all(axis=1)
    near[tuple(index[inside].T)] = 1
    near *= head.depth > 1.5
    maps = {"vascular": near, "nodule": weights, "dural": shallow}
    mimics: list[Nodule] = []
    there = list(taken)
    for kind, diameter in zip(kinds, diameters, strict=True):
        if not maps[kind].any():
            continue
        (place,) = draw_places(maps[kind], [diameter / 2], there, head, rng, gap=4.0)
        if place is not None:
            contrasts = _CONTRASTS if kind == "nodule" else _VESSEL_CONTRASTS
            mimics.append(draw_nodule(place, diameter, rng, contrasts=contrasts))
            there.append((place, diameter / 2))
    return mimics
