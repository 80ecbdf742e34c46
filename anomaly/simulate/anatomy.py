"""Brains of synthetic persons: a standard head with fibers, and how persons differ from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dmrifit.simulate.head_shapes import texture_field
from dmrifit.simulate.heads import (
    Head,
    StandardHead,
    draw_head,
    sample_map,
    standard_head,
    voxel_centers,
)
from dmrifit.simulate.tissue_maps import TissueMaps

_BEND = 16.0  # mm of smoothing of the field that bends fibers
_CROSSING = 0.3  # of white matter, where fibers of a second direction cross
_PARTIAL = 0.3  # of a voxel, smoothing by which voxels see their surroundings
_SHIFT, _SCALE = 2.0, 0.05  # voxels along each axis and share: left by a poor registration


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
