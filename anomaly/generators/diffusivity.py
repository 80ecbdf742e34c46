"""Lesions of changed diffusivity: infiltration without an edge, and hypercellular tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.generators.lesion_shapes import (
    ball_radius,
    lesion_center,
    rough_ellipsoid,
    tissue_share,
)
from dmrifit.simulate.gliomas import fall

#: Radii, times that of a ball as large as the brain: 10 to 26 mm, and 8 to 20 mm, in an adult.
_DIFFUSE_RADII, _CELL_RADII = (0.14, 0.36), (0.11, 0.28)
#: By how much of itself diffusivity is raised at most, and what is left of it.
_RAISED, _LOWERED = (0.1, 0.4), (0.6, 0.85)
_EDGE = (0.1, 0.3)

_Changed = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]


def add_infiltration(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
) -> _Changed:
    """
    Raise the diffusivity of tissue by 10 to 40 % around a place, without an edge.

    The effect falls with the distance as a Gaussian, to half at the border of a rough ellipsoid,
    which is the label; fluid does not change, and neither does the signal at b = 0. Shapes:
    `volume` (x, y, z, channels); returns the changed volume, by how much noise is averaged
    (x, y, z), and the label.
    """
    tissue = tissue_share(volume, mask)
    center = lesion_center(tissue, rng)
    radius = ball_radius(mask) * rng.uniform(*_DIFFUSE_RADII)
    distance = rough_ellipsoid(mask.shape, center, radius, rng)
    effect = tissue * np.exp2(-(distance**2))
    return _scaled(volume, effect, rng.uniform(*_RAISED))


def add_hypercellular(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
) -> _Changed:
    """
    Lower the diffusivity of tissue to 60 to 85 % in a rough ellipsoid, as among crowded cells.

    The label is where at least half of the effect is; as `add_infiltration` else.
    """
    tissue = tissue_share(volume, mask)
    center = lesion_center(tissue, rng)
    radius = ball_radius(mask) * rng.uniform(*_CELL_RADII)
    distance = rough_ellipsoid(mask.shape, center, radius, rng)
    effect = tissue * fall(distance, rng.uniform(*_EDGE))
    return _scaled(volume, effect, rng.uniform(*_LOWERED) - 1)


def _scaled(volume: NDArray[np.float32], effect: NDArray[np.float32], change: float) -> _Changed:
    """Multiply diffusivities by 1 + change · effect: signals s become s^(1 + change · effect)."""
    power = 1 + np.float32(change) * effect
    inside = effect > 0
    changed = volume.copy()
    signal = np.clip(volume[inside], 1e-6, None)
    # A signal above that at b = 0 is noise, which a power would turn around.
    changed[inside] = np.where(signal < 1, signal ** power[inside][:, None], volume[inside])
    slope = np.ones(effect.shape, dtype=np.float32)
    mean = signal.mean(axis=1)
    slope[inside] = power[inside] * mean ** (power[inside] - 1)
    return changed, slope, effect >= 0.5
