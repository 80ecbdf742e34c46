"""Enhancement of synthetic brains: vessels, dura, plexus, metastases and mimics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.simulate.heads import Head
from metastasis.simulate import vessels

_TRIES = 40  # places for each ball
_LARGE = 8.0  # voxels, of a radius
_FINE = 3  # points along each edge of a voxel, for the share of a nodule in it
_NODULE_DIAMETERS = (2.5, 5.5)  # mm, of what looks like a metastasis
_KINDS = ("vascular", "nodule", "dural")
_SPIN_ECHO = 0.25
_KIND_SHARES = (0.45, 0.40, 0.15)


@dataclass(frozen=True)
class Contrasts:
    """What contrast agent adds to the signal (that of white matter is 1), and sizes of vessels."""

    metastases: tuple[float, float] = (0.5, 1.1)
    # Mimics on vessels and under the dura are as bright as vessels.
    vessels: tuple[float, float] = (0.2, 0.5)
    vessel_radii: tuple[float, float] = (0.55, 1.15)  # standard deviation of the profile in mm
    sinuses: float = 0.22
    sinus_radius: float = 1.6  # mm, the same
    dura: float = 0.21
    plexus: float = 0.30
    sheets: float = 0.0  # the whole of falx and tentorium
    remains: float = 0.0  # of the skull, at the surface


CONTRASTS = Contrasts()
#: Metastases of the hard world: many enhance by little.
HARD_CONTRASTS = (0.15, 0.9)
#: Signal of a core, of white matter's.
CORE_LEVEL = 0.55

#: Lesions of the hard world and of implants: diameters in mm, and whether they are rings.
KINDS = {
    "small": ((2.5, 6.0), False),
    "solid": ((6.0, 18.0), False),
    "ring": ((8.0, 18.0), True),
    "large ring": ((18.0, 40.0), True),
}
#: Solid masses as large as rings, which some real tumors are: for training only.
MASS, _MASS_DIAMETERS = "mass", (10.0, 38.0)
_WALLS, _UNEVEN = (1.3, 5.5), (0.35, 2.2)  # mm, and how much the wall of one ring varies
_CORES, _BLEEDINGS = (0.12, 0.95), (1.15, 1.5)  # signals of cores, of white matter's
_BLEEDING, _ROUGH = 0.1, (0.03, 0.12)

#: Radii along an axis within which an irregular lesion is drawn: stretched by up to 1.22, and
#: bulging where waves add up.
REACH = 1.5


@dataclass(frozen=True)
class Nodule:
    """A bright thing in the brain: an uneven ellipsoid."""

    center: NDArray[np.float64]  # mm
    radius: float  # of a ball of about the same volume, in mm
    axes: NDArray[np.float64]  # rows: directions divided by stretches
    lobes: NDArray[np.float64]  # (4, 3): waves on the unit sphere that make it uneven
    contrast: float  # of white matter's signal
    core: float = 0.0  # radius of a core, of `radius`
    edema: float = 0.0  # radius of darkened tissue around it, of `radius`
    roughness: float = 0.06  # amplitude of each wave
    unevenness: float = 0.0  # of the wall around the core
    core_level: float = CORE_LEVEL  # of white matter's signal
    kind: str = ""
    status: str = ""  # in comparison with the prior image
    earlier_size: float = 1.0  # radius in the prior image, of `radius`


def draw_nodule(
    center: NDArray[np.float64],
    diameter: float,
    rng: np.random.Generator,
    *,
    ring: float = 0.0,
    contrasts: tuple[float, float] = CONTRASTS.metastases,
) -> Nodule:
    """Draw a bright thing of a diameter in mm: its shape, contrast, core and edema."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = rng.uniform(0.85, 1.15, 3)
    stretch /= stretch.prod() ** (1 / 3)
    lobes = rng.normal(0, 1.6, (4, 3))
    contrast = rng.uniform(*contrasts)
    # Everything is drawn even where it is not used, so that a change of one share leaves the
    # numbers of later lesions as they are.
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


def draw_varied_nodule(
    center: NDArray[np.float64],
    kind: str,
    diameter: float,
    rng: np.random.Generator,
    *,
    contrasts: tuple[float, float],
) -> Nodule:
    """Draw a lesion of `KINDS`: smooth or irregular, a ring with an uneven wall, or solid."""
    nodule = draw_nodule(center, diameter, rng, contrasts=contrasts)
    lowest, highest = _WALLS
    wall = rng.uniform(lowest, max(lowest, min(highest, 0.7 * nodule.radius)))
    levels = _BLEEDINGS if rng.random() < _BLEEDING else _CORES
    core_level, unevenness = rng.uniform(*levels), rng.uniform(0.1, 0.6)
    if kind == MASS or not KINDS[kind][1]:
        wall = nodule.radius
    return replace(
        nodule,
        core=1 - wall / nodule.radius,
        core_level=core_level,
        unevenness=unevenness,
        roughness=rng.uniform(*_ROUGH),
        kind=kind,
    )


def draw_kind(
    rng: np.random.Generator, small: float = 0.5, masses: float = 0.0
) -> tuple[str, float]:
    """Draw a kind and a diameter in mm; `small` and `masses` are shares."""
    rest = 1 - small - masses
    odds = [small, 0.4 * rest, 0.3 * rest, 0.3 * rest, masses]
    kind = str(rng.choice([*KINDS, MASS], p=odds))
    low, high = np.log(_MASS_DIAMETERS if kind == MASS else KINDS[kind][0])
    return kind, float(np.exp(rng.uniform(low, high)))


def shares(
    nodule: Nodule, head: Head
) -> tuple[tuple[slice, ...], NDArray[np.float32], NDArray[np.float32]]:
    """Give the window of voxels around a nodule, and the shares filled by it and by its core."""
    window, axes = _window(nodule, REACH, head)
    # Two points are enough for lesions of many voxels, and three would take seconds.
    n_fine = _FINE if nodule.radius < _LARGE * head.spacing.min() else 2
    fine = (np.arange(n_fine) + 0.5) / n_fine - 0.5
    fine_axes = [
        np.add.outer(axis, step * fine).ravel()
        for axis, step in zip(axes, head.spacing, strict=True)
    ]
    distance, points = _distance(nodule, fine_axes)
    # Waves over the direction alone make dents and bulges; waves over the place would also make
    # holes.
    unit = points / (np.linalg.norm(points, axis=-1, keepdims=True) + np.float32(1e-9))
    phases = unit @ (2 * nodule.lobes.T).astype(np.float32) + nodule.lobes[:, 0]
    distance *= 1 + nodule.roughness * np.sin(phases).sum(axis=-1)

    def mean(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
        x, y, z = map(len, axes)
        cells = inside.reshape(x, n_fine, y, n_fine, z, n_fine)
        return cells.mean(axis=(1, 3, 5), dtype=np.float32)

    filled = mean(distance < 1)
    if not nodule.core:
        return window, filled, np.zeros_like(filled)
    border: NDArray[np.float32] | float = nodule.core
    if nodule.unevenness:
        waves = np.sin(unit @ (1.5 * nodule.lobes[::-1].T).astype(np.float32)).sum(axis=-1)
        thickness = np.clip(np.exp(nodule.unevenness * waves), *_UNEVEN)
        border = 1 - np.float32(1 - nodule.core) * thickness
    return window, filled, mean(distance < border)


def filled_voxels(share: NDArray[np.float32], least: float = 0.5) -> NDArray[np.bool_]:
    """Find what is filled by more than a share, or the fullest voxel."""
    inside = share > least
    if not inside.any() and share.max(initial=0.0) > 0:
        inside.flat[np.argmax(share)] = True
    return inside


def swelling(nodule: Nodule, head: Head) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """Give the window of the tissue that a bright thing darkens, and by how much (0 to 1)."""
    window, axes = _window(nodule, 1.3 * nodule.edema, head)
    distance, _ = _distance(nodule, axes)
    return window, np.clip((nodule.edema - distance) / np.float32(0.6), 0, 1)


def _window(
    nodule: Nodule, reach: float, head: Head
) -> tuple[tuple[slice, ...], list[NDArray[np.float64]]]:
    """Find the voxels within a number of radii, and their places in mm from the center."""
    origin, steps, shape = head.affine[:3, 3], head.spacing, head.brain.shape
    size = nodule.radius * reach + steps
    low = np.clip(np.floor((nodule.center - size - origin) / steps).astype(int), 0, shape)
    high = np.clip(np.ceil((nodule.center + size - origin) / steps).astype(int) + 1, 0, shape)
    axes = [origin[a] + steps[a] * np.arange(low[a], high[a]) - nodule.center[a] for a in range(3)]
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), axes


def _distance(
    nodule: Nodule, axes: Sequence[NDArray]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the distance of points from the center in radii, and their unstretched places."""
    columns = (nodule.axes / nodule.radius).T.astype(np.float32)
    x, y, z = (
        np.multiply.outer(axis.astype(np.float32), column)
        for axis, column in zip(axes, columns, strict=True)
    )
    points = x[:, None, None] + y[None, :, None] + z[None, None]
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
    Draw places of balls that keep a gap in mm to each other; None for one that finds no room.

    Shapes: `weights` (x, y, z).
    """
    # Sums in single precision stop growing over millions of voxels, and the last voxels would
    # never be drawn.
    cumulative = np.cumsum(weights, dtype=np.float64).ravel()
    centers = head.places.reshape(-1, 3)
    balls = list(taken)
    places: list[NDArray[np.float64] | None] = []
    for radius in radii:
        voxels = np.searchsorted(cumulative, rng.random(_TRIES) * cumulative[-1], side="right")
        candidates = centers[np.minimum(voxels, len(cumulative) - 1)].astype(np.float64)
        room = np.full(_TRIES, np.inf)
        for center, size in balls:
            room = np.minimum(room, np.linalg.norm(candidates - center, axis=1) - size)
        free = np.flatnonzero(room > radius + gap)
        place = candidates[free[0]] if len(free) else None
        if place is not None:
            balls.append((place, radius))
        places.append(place)
    return places


def draw_enhancement(
    head: Head, rng: np.random.Generator, contrasts: Contrasts = CONTRASTS
) -> vessels.Vessels:
    """Draw vessels, and add sinuses, dura and plexus to them; the brightest one counts."""
    vessel_stream, dura_stream, plexus_stream = rng.spawn(3)
    # Remains are drawn from the parent stream, so that they change no other structure.
    remains = vessels.skull_remains(head, rng) if contrasts.remains else 0
    share, contrast, points = vessels.draw_vessels(
        head, vessel_stream, radii=contrasts.vessel_radii, contrasts=contrasts.vessels
    )
    structures: list[tuple[Any, float]] = [
        (vessels.dural_sinuses(head, radius=contrasts.sinus_radius), contrasts.sinuses),
        (vessels.dura_patches(head, dura_stream), contrasts.dura),
        (vessels.choroid_plexus(head, plexus_stream), contrasts.plexus),
        (vessels.dural_sheets(head) if contrasts.sheets else 0, contrasts.sheets),
        (remains, contrasts.remains),
    ]
    for structure, strength in structures:
        share = np.maximum(share, structure)
        contrast = np.maximum(contrast, strength * structure)
    return vessels.Vessels(share * head.brain, contrast * head.brain, points)


def draw_contrasts(rng: np.random.Generator) -> Contrasts:
    """
    Draw the contrasts of a patient of the hard world.

    Vessels are as bright as metastases or brighter; in one of four patients they are dark, as in
    images of a spin echo (SPACE), whose dura and sinuses stay.
    """
    return Contrasts(
        metastases=HARD_CONTRASTS,
        vessels=(0.0, 0.3) if rng.random() < _SPIN_ECHO else (0.3, 1.1),
        vessel_radii=(0.55, 1.5),
        sinuses=rng.uniform(0.5, 1.2),
        sinus_radius=rng.uniform(2.5, 4.0),
        dura=rng.uniform(0.2, 0.8),
        plexus=rng.uniform(0.3, 1.0),
        sheets=rng.uniform(0.1, 0.6),
        remains=rng.uniform(0.2, 1.2),
    )


def draw_mimics(
    n: int,
    vessel_points: NDArray[np.float64],
    metastasis_density: NDArray[np.floating],
    taken: Sequence[tuple[NDArray[np.float64], float]],
    head: Head,
    rng: np.random.Generator,
    contrasts: Contrasts = CONTRASTS,
) -> list[Nodule]:
    """
    Draw bright things that are no metastases: on vessels, under the dura, and alone in the brain.

    Those that stand alone are made and placed as small metastases are: one image cannot tell them
    apart.

    Shapes: `vessel_points` (m, 3) in mm; `metastasis_density` (x, y, z), how often metastases grow
    in each voxel, on any scale.
    """
    # Mimics of each kind are what readers and networks take for metastases: they make false
    # positives possible.
    kinds = rng.choice(_KINDS, size=n, p=_KIND_SHARES)
    smallest, largest = np.log(_NODULE_DIAMETERS)
    diameters = np.exp(rng.uniform(smallest, largest, n))
    on_vessels = np.zeros(head.brain.shape, dtype=np.float32)
    index = np.rint((vessel_points - head.affine[:3, 3]) / head.spacing).astype(int)
    is_inside = ((index >= 0) & (index < on_vessels.shape)).all(axis=1)
    on_vessels[tuple(index[is_inside].T)] = 1
    densities = {
        "vascular": on_vessels * (head.depth > 1.5),
        "nodule": metastasis_density,
        "dural": ((head.depth > 1.5) & (head.depth < 4)).astype(np.float32),
    }
    mimics: list[Nodule] = []
    balls = list(taken)
    for kind, diameter in zip(kinds, diameters, strict=True):
        if not densities[kind].any():
            continue
        (place,) = draw_places(densities[kind], [diameter / 2], balls, head, rng, gap=4.0)
        if place is None:
            continue
        limits = contrasts.metastases if kind == "nodule" else contrasts.vessels
        mimics.append(draw_nodule(place, diameter, rng, contrasts=limits))
        balls.append((place, diameter / 2))
    return mimics
