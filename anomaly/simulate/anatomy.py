"""Brains of synthetic persons, drawn from a standard head with fibers, and their signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from anomaly.generators.gliomas import Component
from dmrifit.simulate.head_shapes import texture_field
from dmrifit.simulate.heads import (
    Head,
    StandardHead,
    TissueMaps,
    draw_head,
    sample_map,
    standard_head,
    voxel_centers,
)

_BEND = 16.0  # mm of smoothing of the field that bends fibers
_CROSSING = 0.3  # of white matter, where fibers of a second direction cross
_PARTIAL = 0.3  # of a voxel, smoothing by which voxels see their surroundings
_SHIFT, _SCALE = 2.0, 0.05  # voxels along each axis and share: left by a poor registration
_MS_PER_UM2 = 1e-3  # s/mm² in ms/µm²
_AXIAL, _RADIAL = 1.6, 0.35  # µm²/ms, along and across fibers
_UNORDERED = 0.77  # µm²/ms, of white matter whose fibers have no direction
#: Diffusivity in µm²/ms, and signal at b = 0 of white matter's: gray matter and fluid last longer.
_ISOTROPIC = {"gray": (0.82, 1.15), "deep": (0.74, 0.95), "fluid": (3.0, 2.8)}


@dataclass(frozen=True)
class Standard:
    """The brain from which all persons' brains are made."""

    head: StandardHead
    # Share of the second fiber direction, order, and the two directions: (8, x, y, z).
    fibers: NDArray[np.float32]


@dataclass(frozen=True)
class Brain:
    """A person's brain: values of its n voxels in the order of ``head.brain.nonzero()``."""

    head: Head
    shares: dict[str, NDArray[np.float32]]  # of white, gray, fluid and deep gray matter (n,)
    fibers: NDArray[np.float32]  # (2, n, 3): two directions, unit vectors
    crossing: NDArray[np.float32]  # share of the second direction
    order: NDArray[np.float32]  # share of white matter with these directions; the rest has all

    @property
    def tissue(self) -> NDArray[np.uint8]:
        """Main tissue of each voxel: 1 white, 2 gray, 3 fluid, 4 deep gray, 0 outside."""
        shares = np.stack(list(self.shares.values()))
        return self.volume((1 + shares.argmax(axis=0)).astype(np.uint8))

    def volume(self, values: NDArray) -> NDArray:
        """Put values (n, ...) into a volume (x, y, z, ...) that is 0 outside the brain."""
        mask = self.head.brain
        volume = np.zeros((*mask.shape, *values.shape[1:]), dtype=values.dtype)
        volume[mask] = values
        return volume


@lru_cache(maxsize=4)
def standard_brain(
    spacing: tuple[float, float, float], tissues: TissueMaps | None = None
) -> Standard:
    """Make the brain from which all others are made, as voxels of a size see it."""
    head = standard_head(spacing, tissues)
    return Standard(head, _fibers(head, spacing))


def _fibers(head: StandardHead, spacing: tuple[float, float, float]) -> NDArray[np.float32]:
    """
    Make fiber directions from formulas.

    Across near the midline, up and down beside it, from front to back at the sides, outward at the
    rim. Shapes: returns (8, x, y, z) as in `Standard`.
    """
    local = voxel_centers(head.matter.brain.shape, head.affine) / head.half_axes
    steps = np.linalg.norm(head.affine[:3, :3], axis=0)
    x, y, z = np.moveaxis(local, -1, 0)
    side = np.abs(x)
    rng = np.random.default_rng(0)

    def field() -> NDArray:
        # The same on both sides, as brains are.
        random_volume = texture_field(x.shape, _BEND, steps, rng)
        return (random_volume + random_volume[::-1]) / 2**0.5

    across = np.exp(-((side / 0.22) ** 2) - ((z - 0.25) / 0.25) ** 2)
    along = np.exp(-(((side - 0.55) / 0.2) ** 2))
    upward = np.exp(-(((side - 0.28) / 0.14) ** 2) - (y / 0.4) ** 2)
    radius = np.sqrt((local**2).sum(axis=-1)) + 1e-3
    outward = np.clip((radius - 0.5) / 0.4, 0, 1) / radius
    bent = np.stack([0.35 * field() for _ in range(3)])
    first = np.stack([2 * across + outward * x, along + outward * y, 1.5 * upward + outward * z])
    # Formulas alone would give every person the same straight tracts.
    first += bent
    first /= np.linalg.norm(first, axis=0) + 1e-6
    second = np.cross(first, np.stack([field() for _ in range(3)]), axis=0)
    second /= np.linalg.norm(second, axis=0) + 1e-6
    mixed = field()
    limit = np.quantile(mixed, 1 - _CROSSING)
    crossing = 0.5 * np.clip(0.5 + (mixed - limit) / 0.4, 0, 1)
    order = np.clip(0.8 + 0.12 * field(), 0.4, 1)
    blur = _PARTIAL * np.asarray(spacing) / steps
    maps = [crossing, order, *first, *second]
    return np.stack([gaussian_filter(values.astype(np.float32), blur) for values in maps])


def draw_brain(
    standard: Standard,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    growth: float = 0.0,
    shifted: bool = False,
) -> Brain:
    """Draw a person's brain, registered to the standard brain."""
    head_stream, registration_stream = rng.spawn(2)
    shift, scale = np.zeros(3), 1.0
    if shifted:
        shift = registration_stream.uniform(-_SHIFT, _SHIFT, 3) * spacing
        scale = 1 + registration_stream.uniform(-_SCALE, _SCALE)
    head = draw_head(
        shape,
        spacing,
        head_stream,
        standard=standard.head,
        growth=growth,
        scale=scale,
        shift=shift,
    )
    indices = standard.head.indices(head.local[head.brain])
    crossing, order, *vectors = (sample_map(values, indices) for values in standard.fibers)
    fibers = np.moveaxis(np.reshape(vectors, (2, 3, -1)), 1, 2)
    fibers = fibers / np.maximum(np.linalg.norm(fibers, axis=-1, keepdims=True), np.float32(1e-6))
    return Brain(
        head,
        {name: getattr(head, name)[head.brain] for name in ("white", "gray", "fluid", "deep")},
        np.ascontiguousarray(fibers, dtype=np.float32),
        crossing,
        order,
    )


def spread_directions(n: int) -> NDArray[np.float64]:
    """
    Give directions that cover half a sphere evenly, on a spiral by the golden ratio.

    Shapes: returns (n, 3).
    """
    number = np.arange(n)
    z = 1 - (number + 0.5) / n
    turn = number * np.pi * (3 - 5**0.5)
    return np.stack(
        [np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1
    )


def tensor_signals(
    fibers: NDArray, axial: float, radial: float, weights: ArrayLike, directions: NDArray
) -> NDArray[np.float32]:
    """
    Compute the signal of tensors that are alike across their fibers.

    Shapes: `fibers` (n, 3), `directions` (m, 3); returns (n, m).

    References
    ----------
    Basser et al., Biophys J 66:259–267, 1994.
    """
    # Not a matrix product, whose last bits depend on the number of threads.
    aligned = np.zeros((len(fibers), len(directions)), dtype=np.float32)
    vectors = np.asarray(fibers, dtype=np.float32), directions.astype(np.float32)
    for along, direction in zip(*(vector.T for vector in vectors), strict=True):
        aligned += along[:, None] * direction
    exponent = np.float32(radial - axial) * np.square(aligned) - np.float32(radial)
    return np.exp(exponent * np.asarray(weights, dtype=np.float32)[:, None])


def brain_signals(
    brain: Brain, directions: NDArray, b: float, factors: NDArray, lesion: Sequence[Component] = ()
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Compute the signals of a brain without noise.

    Shapes: `directions` (m, 3); returns signals (n, m).
    """
    weights = (b * _MS_PER_UM2 * factors).astype(np.float32)
    white = brain.shares["white"]
    ordered = white * brain.order
    signals = np.zeros((len(white), len(directions)), dtype=np.float32)
    # Signals of crossing fibers add up, not their tensors.
    for fibers, share in zip(brain.fibers, (1 - brain.crossing, brain.crossing), strict=True):
        tensor = tensor_signals(fibers, _AXIAL, _RADIAL, weights, directions)
        signals += tensor * (ordered * share)[:, None]
    alike = (white - ordered) * np.exp(-_UNORDERED * weights)
    b0 = white.copy()
    for name, (diffusivity, brightness) in _ISOTROPIC.items():
        bright = np.float32(brightness) * brain.shares[name]
        b0 += bright
        alike += bright * np.exp(np.float32(-diffusivity) * weights)
    signals += alike[:, None]
    healthy = np.ones_like(b0)
    for component in lesion:
        healthy -= component.share
    signals *= healthy[:, None]
    b0 *= healthy
    for component in lesion:
        bright = np.float32(component.brightness) * component.share
        b0 += bright
        decay = np.exp(np.float32(-component.diffusivity) * weights)
        signals += (bright * decay)[:, None]
    return signals, b0


def add_noise(
    values: NDArray[np.float32], sigma: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """
    Give magnitudes the noise of a scanner (Rician).

    References
    ----------
    Gudbjartsson and Patz, Magn Reson Med 34:910–914, 1995.
    """
    real, imaginary = (
        np.float32(sigma) * rng.standard_normal(values.shape, dtype=np.float32) for _ in range(2)
    )
    return np.hypot(values + real, imaginary)
