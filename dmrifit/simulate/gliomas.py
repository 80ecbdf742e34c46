"""Synthetic gliomas: a rough tumor with a rim around necrosis, edema and satellites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.components import largest_components
from dmrifit.simulate.head_shapes import soft_step, texture_field
from dmrifit.simulate.heads import Head

_ORIGINS = {"white": 0.5, "cortex": 0.2, "deep": 0.15, "basal": 0.15}  # where gliomas begin
_NEAR_SURFACE, _LOW = 16.0, -0.35  # mm, of the brain's half height
_STRETCH = 0.16  # standard deviation of the logarithm of axes
_BENT_SHARE = 0.2  # of gliomas
_ROUGHNESS = 0.10  # of the distance from the center
_GRAIN = (0.28, 3.0)  # of the radius, and least, in mm
_SATELLITE_DISTANCES, _SATELLITE_RADII = (1.5, 2.0), (0.15, 0.35)  # of the radius
# Necrosis lies within this share of the distance to the border, and deeper than so many mm.
_RIM, _SURFACE = 0.88, 4.0
_TILT, _RAGGED = 0.25, 0.15  # how far necrosis lies off the middle, and how uneven it is


@dataclass(frozen=True)
class Glioma:
    """A glioma on the grid of a head."""

    center: NDArray[np.float64]  # where it began, in mm
    radius: float  # of a ball of its volume, in mm
    distance: NDArray[np.float32]  # from the center, 1 at the border of tumor and satellites
    necrosis: NDArray[np.float32]  # likewise of the necrotic core; infinity where it cannot lie

    @property
    def tumor(self) -> NDArray[np.bool_]:
        """The tumor with its necrosis, without edema."""
        return self.distance < 1

    @property
    def core(self) -> NDArray[np.bool_]:
        """The necrotic core; what remains of the tumor is its rim."""
        return self.necrosis < 1

    def edema(self, head: Head, reach: float) -> NDArray[np.float32]:
        """Give the share of edema, in white matter up to `reach` times the border's distance."""
        return head.white * fall(self.distance / reach, 0.2)

    @classmethod
    def draw(
        cls,
        head: Head,
        allowed: NDArray[np.bool_],
        radius: float,
        rng: np.random.Generator,
        *,
        necrosis: float = 0.0,
        satellites: float = 0.0,
    ) -> Glioma:
        """
        Draw a glioma of a ball's volume: a rough ellipsoid, or in some cases a bent one.

        It fills the voxels of `allowed` that lie nearest to its center; one that has little room
        is smaller, and with fewer than two voxels there is no tumor. `necrosis` is the necrotic
        share of the volume, `satellites` the probability of satellites.
        """
        shape_stream, rough_stream, necrosis_stream, satellite_stream = rng.spawn(4)
        center = _origin(head, rng)
        room = int(np.count_nonzero(allowed)) // 2
        if not room:
            nowhere = np.full(allowed.shape, np.inf, dtype=np.float32)
            return cls(center, radius, nowhere, nowhere)
        offsets = head.places - center.astype(np.float32)
        distance = _shape_distance(offsets, radius, shape_stream)
        grain = max(_GRAIN[0] * radius, _GRAIN[1] * head.size)
        rough = texture_field(head.brain.shape, grain, head.spacing, rough_stream)
        distance *= np.exp(_ROUGHNESS * rough)
        distance[~allowed] = np.inf
        volume = 4 / 3 * np.pi * radius**3
        scattered = np.full_like(distance, np.inf)
        if satellite_stream.random() < satellites:
            # One to three small balls beside the tumor: the distance, 1 at their border.
            for _ in range(satellite_stream.integers(1, 4)):
                direction = satellite_stream.standard_normal(3)
                place = radius * satellite_stream.uniform(*_SATELLITE_DISTANCES) * direction
                place /= np.linalg.norm(direction)
                from_place = np.linalg.norm(offsets - place.astype(np.float32), axis=-1)
                small_radius = np.float32(radius * satellite_stream.uniform(*_SATELLITE_RADII))
                scattered = np.minimum(scattered, from_place / small_radius)
            scattered[~allowed] = np.inf
        n_voxels = round(volume / head.spacing.prod()) - np.count_nonzero(scattered < 1)
        # A tumor that fills all of its room would have the shape of the room.
        n_voxels = min(max(n_voxels, 1), room)
        # Scaled by rank, the tumor has its volume however rough or cut off it is.
        distance /= _kth_smallest(distance, n_voxels)
        # Crumbs at the rim, which are noise of the surface, are left out of the tumor.
        is_crumb = (distance < 1) & ~largest_components(distance < 1)
        distance = np.minimum(np.where(is_crumb, np.float32(1), distance), scattered)
        core = _necrosis_distance(head, offsets, distance, radius, necrosis, necrosis_stream)
        return cls(center, radius, distance, core)


def fall(distance: NDArray, width: float) -> NDArray:
    """Fall from 1 to 0 around a distance of 1."""
    return soft_step((1 - distance) / width)


def _origin(head: Head, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw where a glioma begins: white matter, below the cortex, nuclei or brain base."""
    origin = str(rng.choice(list(_ORIGINS), p=list(_ORIGINS.values())))
    matter = head.matter
    is_near_surface = head.depth <= _NEAR_SURFACE * head.size
    likely = {
        "white": head.white * ~is_near_surface,
        "cortex": matter * is_near_surface,
        "deep": head.deep,
        "basal": matter * (head.places[..., 2] < _LOW * head.half_axes[2]),
    }[origin] * (matter > 0.7)
    if not likely.any():
        likely = (matter == matter.max()).astype(np.float32)
    # A sum of few bits could pass over the last voxel.
    total = np.cumsum(likely, dtype=np.float64)
    voxel = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
    return head.places.reshape(-1, 3)[voxel].astype(np.float64)


def _shape_distance(
    offsets: NDArray[np.float32], radius: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Compute the distance in mm from the center of a turned ellipsoid, or from an arc."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    stretch = np.exp(rng.normal(0, _STRETCH, 3))
    # Drawn for every tumor, so that the choice of the shape moves no later number.
    half_arc = rng.uniform(0.8, 1.5)
    if rng.random() >= _BENT_SHARE:
        matrix = turn * (stretch / stretch.prod() ** (1 / 3))
        return np.linalg.norm(offsets @ matrix.astype(np.float32), axis=-1)
    angles = half_arc * np.linspace(-1, 1, 15)
    arc = np.stack([np.cos(angles) - np.cos(angles).mean(), np.sin(angles)], axis=-1)
    arc = 1.1 * radius * arc @ turn[:2]
    squares = np.full(offsets.shape[:3], np.inf, dtype=np.float32)
    for point in arc.astype(np.float32):
        np.minimum(squares, ((offsets - point) ** 2).sum(axis=-1), out=squares)
    return np.sqrt(squares)


def _kth_smallest(values: NDArray[np.float32], k: int) -> np.float32:
    """Find a value that exactly `k` values lie below, where they differ."""
    return np.float32(np.partition(values, k, axis=None)[k])


def _necrosis_distance(
    head: Head,
    offsets: NDArray[np.float32],
    distance: NDArray[np.float32],
    radius: float,
    share: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Compute the distance from the middle of the necrosis, 1 at its border."""
    if share == 0:
        return np.full_like(distance, np.inf)
    direction = rng.standard_normal(3)
    direction *= _TILT / np.linalg.norm(direction) / radius
    grain = max(_GRAIN[0] * radius, _GRAIN[1] * head.size)
    noise = texture_field(head.brain.shape, grain, head.spacing, rng)
    uneven = np.exp(_RAGGED * noise + offsets @ direction.astype(np.float32))
    # Necrosis begins where vessels are farthest, so a rim of living tumor surrounds it.
    is_inner = (distance < _RIM) & (head.depth > _SURFACE * head.size)
    necrosis = np.where(is_inner, (distance + np.float32(0.05)) * uneven, np.float32(np.inf))
    n_necrotic = round(share * np.count_nonzero(distance < 1))
    n_necrotic = min(n_necrotic, int(np.count_nonzero(is_inner)))
    border = _kth_smallest(necrosis, n_necrotic)
    if not np.isfinite(border):
        return np.where(is_inner, np.float32(0), necrosis)
    return necrosis / np.maximum(border, np.float32(1e-6))
