"""Synthetic gliomas: infiltrating edges, edema, cellular and necrotic cores, growth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anomaly.simulate.anatomy import Brain
from anomaly.simulate.diffusion import Component

__all__ = ["GRADES", "KINDS", "Glioma", "draw_glioma"]

#: Grades by the World Health Organization, and how many of all gliomas have them.
GRADES = {"II": 0.25, "III": 0.31, "IV": 0.44}

#: What gliomas do to diffusion: more of it in infiltrated tissue, or less of it in cores of many
#: cells.
KINDS = ("infiltrating", "cellular")

_RADIUS = (9.0, 24.0)  # mm, before it differs between axes
_AXES = (0.7, 1.2)  # of the radius
_ROUGHNESS, _GRAIN = 0.12, 6.0  # of the distance from the center, mm
_EDGE = 0.3  # of the distance to the border, on each side of which infiltration falls to nothing
_PLACES = {"white": 0.5, "cortex": 0.2, "deep": 0.15, "basal": 0.15}  # where gliomas begin
_NEAR_SURFACE, _LOW = 16.0, -0.35  # mm, of the brain's half height
_EDEMA_ODDS = {"II": 0.2, "III": 0.6, "IV": 0.9}
_NECROSIS_ODDS = 0.5
_REACH = {
    "core": (0.65, 0.9),
    "necrosis": (0.3, 0.5),
    "edema": (1.2, 1.6),
}  # of the distance to the border
_SHARE = {
    "infiltration": (0.6, 1.0),
    "core": (0.75, 0.95),
    "edema": (0.45, 0.8),
    "early": (0.15, 0.35),
}
_GROWTH = {
    "III": (0.3, 0.6),
    "IV": (0.4, 0.9),
}  # by how much of that distance the border moves where it moves most
_SEEN = 0.3  # share of edema from which on it belongs to the lesion

#: In µm²/ms: of infiltrated tissue by grade, of what makes cores, and of edema.
_DIFFUSIVITY = {
    "II": (1.3, 1.7),
    "III": (1.2, 1.7),
    "IV": (1.1, 1.8),
    "core": (0.42, 0.58),
    "necrosis": (2.0, 2.5),
    "edema": (1.2, 1.6),
}
_BRIGHT_TUMOR = 1.3  # signal at b = 0, of white matter's
_BRIGHT = {"core": 1.1, "necrosis": 2.2, "edema": 1.5}


@dataclass(frozen=True)
class Glioma:
    """
    A glioma in a brain of n voxels.

    Parameters
    ----------
    components : list of Component
        What it is made of.
    lesion, followup : ndarray of bool, shape (n,)
        What a reader outlines now, and later.
    grade : str
        One of `GRADES`.
    kind : str
        One of `KINDS`.
    """

    components: list[Component]
    lesion: NDArray[np.bool_]
    followup: NDArray[np.bool_]
    grade: str
    kind: str


def draw_glioma(brain: Brain, grade: str, kind: str, rng: np.random.Generator) -> Glioma:
    """Draw a glioma."""
    matter = brain.white + brain.gray + brain.deep
    solid = matter > 0.5
    center = brain.places[_place(brain, matter, rng)]
    radius = rng.uniform(*_RADIUS) * brain.size
    apart = brain.places - center
    distance = _distance(brain, apart, radius, rng)
    # All numbers are drawn for every glioma, so that those of one patient differ by grade and kind
    # alone.
    odds = {name: rng.random() for name in ("necrosis", "edema")}
    reach = {name: rng.uniform(*limits) for name, limits in _REACH.items()}
    share = {name: rng.uniform(*limits) for name, limits in _SHARE.items()}
    speed = {name: rng.uniform(*limits) for name, limits in _DIFFUSIVITY.items()}
    growth = rng.random()
    fronts = rng.standard_normal((8, 3))

    parts: list[tuple[str, NDArray]] = []
    if kind == "cellular":
        parts.append(("core", share["core"] * _fall(distance / reach["core"], 0.15)))
    elif grade == "IV" and odds["necrosis"] < _NECROSIS_ODDS:
        parts.append(("necrosis", _fall(distance / reach["necrosis"], 0.2)))
    parts.append((grade, share["infiltration"] * _fall(distance, _EDGE)))
    lesion = solid & (distance < 1)
    if odds["edema"] < _EDEMA_ODDS[grade]:
        swollen = share["edema"] * brain.white * _fall(distance / reach["edema"], 0.2)
        parts.append(("edema", swollen))
        lesion |= solid & (swollen > _SEEN)
    followup = lesion
    if grade in _GROWTH:
        low, high = _GROWTH[grade]
        ahead = distance / (
            1 + (low + growth * (high - low)) * _towards(brain, center, apart, radius, fronts)
        )
        parts.append(
            (
                grade,
                share["early"]
                * _fall(ahead, 0.15)
                * (brain.white + 0.5 * (brain.gray + brain.deep)),
            )
        )
        followup = lesion | (solid & (ahead < 1))
    left = matter
    components = []
    for name, wanted in parts:
        taken = (left * np.minimum(wanted, 1)).astype(np.float32)
        left = left - taken
        components.append(Component(taken, speed[name], _BRIGHT.get(name, _BRIGHT_TUMOR)))
    return Glioma(components, lesion, followup, grade, kind)


def _place(brain: Brain, matter: NDArray, rng: np.random.Generator) -> int:
    """Draw the origin of a glioma: white matter, below the cortex, nuclei or brain base."""
    where = rng.choice(list(_PLACES), p=list(_PLACES.values()))
    height = brain.places[:, 2] / brain.half_axes[2]
    likely = {
        "white": brain.white * (brain.depth > _NEAR_SURFACE * brain.size),
        "cortex": matter * (brain.depth <= _NEAR_SURFACE * brain.size),
        "deep": brain.deep,
        "basal": matter * (height < _LOW),
    }[str(where)] * (matter > 0.7)
    if not likely.any():
        likely = np.where(matter == matter.max(), 1.0, 0.0)
    # A sum of few bits could pass over the last voxel.
    total = np.cumsum(likely, dtype=np.float64)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def _distance(
    brain: Brain, apart: NDArray, radius: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Give the distance from the center of a rough, turned ellipsoid, 1 at its border."""
    axes = radius * rng.uniform(*_AXES, 3)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] / axes[:, None]
    squares = np.zeros(len(apart), dtype=np.float32)
    for row in turn.astype(np.float32):
        squares += (apart[:, 0] * row[0] + apart[:, 1] * row[1] + apart[:, 2] * row[2]) ** 2
    rough = gaussian_filter(
        rng.standard_normal(brain.brain.shape), _GRAIN * brain.size / brain.spacing, mode="wrap"
    )
    return np.asarray(
        np.sqrt(squares) * (1 + _ROUGHNESS * rough / rough.std())[brain.brain], dtype=np.float32
    )


def _towards(
    brain: Brain, center: NDArray, apart: NDArray, radius: float, fronts: NDArray
) -> NDArray:
    """Weight places by direction: 1 toward the most white matter, 0 away from it."""
    best, most = fronts[0], -1.0
    for front in fronts:
        front /= np.sqrt((front**2).sum())
        ahead = ((brain.places - (center + 1.3 * radius * front)) ** 2).sum(axis=1) < (
            0.6 * radius
        ) ** 2
        found = float(brain.white[ahead].sum())
        if found > most:
            best, most = front, found
    along = apart[:, 0] * best[0] + apart[:, 1] * best[1] + apart[:, 2] * best[2]
    length = np.sqrt((apart**2).sum(axis=1)) + 1e-3
    return np.clip(along / length, 0, 1) ** 1.5


def _fall(distance: NDArray, width: float) -> NDArray:
    """Fall from 1 to 0 around a distance of 1."""
    return np.clip(0.5 + 0.5 * (1 - distance) / width, 0, 1)
