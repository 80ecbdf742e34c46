"""Brains of synthetic persons: a standard brain with fibers, and how persons differ from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, map_coordinates

from dmrifit.simulate.heads import TissueMaps, centered_grid, made_tissues, slow_field
from dmrifit.simulate.tissues import smooth_field

__all__ = ["Brain", "Standard", "draw_brain", "standard_brain"]

_SPACING = 2.0  # mm, of the standard brain that is made from formulas
_RIM = 4.0  # mm of the field of view that stay free on each side
_STRETCH = (
    1.25  # how much an axis may exceed the others' scale, to fill a field of view of another shape
)
_DEEP = (29.0, 33.0)  # mm below the surface between which gray matter becomes that of nuclei
_CENTRAL = 0.45  # of the half axes from front to back and up and down that nuclei stay within
_INNER, _CORE = 20.0, 32.0  # mm below the surface that ventricles stay and reach
# Around ventricles, white matter replaces fluid for so many mm until a person's own are put there.
_FILLED = 3.0
_NARROW, _SURFACE = (
    0.5,
    2.0,
)  # share of the fluid in folds that is gray matter, more than so many mm below the surface
_BEND = 16.0  # mm of smoothing of the field that bends fibers
_CROSSING = 0.3  # of white matter, where fibers of a second direction cross
_WARPS = (
    (25.0, 3.0),
    (10.0, 1.6),
)  # smoothing and standard deviation of how persons differ, in mm
_SHIFT, _SCALE = (
    2.0,
    0.05,
)  # voxels along each axis and share: what is left when registration was poor
_PARTIAL = 0.3  # of a voxel, smoothing by which voxels see their surroundings
_SCALARS = ("white", "gray", "deep", "brain", "apart", "crossing", "order")


@dataclass(frozen=True)
class Standard:
    """
    The brain from which all persons' brains are made.

    Parameters
    ----------
    maps : ndarray of shape (13, x, y, z)
        Shares of white, cortical gray and deep gray matter where there are no ventricles, the
        brain, the distance to ventricles in mm (negative inside), the share of the second fiber
        direction, how well fibers are ordered, and the two directions.
    affine : ndarray of shape (4, 4)
        From voxel indices to RAS+ coordinates in mm, the middle of the brain at 0.
    half_axes : ndarray of shape (3,)
        Half of the brain's extent along each axis in mm.
    """

    maps: NDArray[np.float32]
    affine: NDArray[np.float64]
    half_axes: NDArray[np.float64]


@dataclass(frozen=True)
class Brain:
    """
    A person's brain on a grid.

    Arrays with a value for each voxel of the brain are in the order of ``brain.nonzero()``.

    Parameters
    ----------
    brain : ndarray of bool, shape (x, y, z)
        The brain with the fluid on it.
    white, gray, deep, fluid : ndarray of shape (n,)
        Shares of white, cortical gray and deep gray matter and of fluid.
    fibers : ndarray of shape (2, n, 3)
        Two fiber directions, unit vectors.
    crossing : ndarray of shape (n,)
        Share of the second one.
    order : ndarray of shape (n,)
        Share of white matter whose fibers have these directions, 0 to 1; the rest has all.
    depth : ndarray of shape (n,)
        Distance to the outside of the brain in mm.
    places : ndarray of shape (n, 3)
        Centers of voxels in mm, the middle of the field of view at 0.
    spacing : ndarray of shape (3,)
        Edges of a voxel in mm.
    half_axes : ndarray of shape (3,)
        Half of the brain's extent along each axis in mm.
    size : float
        The brain's size, of a person's.
    """

    brain: NDArray[np.bool_]
    white: NDArray[np.float32]
    gray: NDArray[np.float32]
    deep: NDArray[np.float32]
    fluid: NDArray[np.float32]
    fibers: NDArray[np.float32]
    crossing: NDArray[np.float32]
    order: NDArray[np.float32]
    depth: NDArray[np.float32]
    places: NDArray[np.float32]
    spacing: NDArray[np.float64]
    half_axes: NDArray[np.float64]
    size: float

    @property
    def tissue(self) -> NDArray[np.uint8]:
        """Main tissue of each voxel: 1 white, 2 gray, 3 fluid, 4 deep gray, 0 outside."""
        shares = np.stack([self.white, self.gray, self.fluid, self.deep])
        tissue = np.zeros(self.brain.shape, dtype=np.uint8)
        tissue[self.brain] = 1 + shares.argmax(axis=0)
        return tissue

    def volume(self, values: NDArray) -> NDArray:
        """
        Put values of voxels of the brain into a volume that is 0 elsewhere.

        Shapes: `values` (n, ...); returns (x, y, z, ...).
        """
        volume = np.zeros((*self.brain.shape, *values.shape[1:]), dtype=values.dtype)
        volume[self.brain] = values
        return volume


def standard_brain(
    spacing: tuple[float, float, float], tissues: TissueMaps | None = None
) -> Standard:
    """Make the brain from which all others are made, as voxels of a size see it."""
    if tissues is not None:
        return _standard(_coarser(tissues), spacing)
    return _made_standard(spacing)


@lru_cache(maxsize=2)
def _made_standard(spacing: tuple[float, float, float]) -> Standard:
    return _standard(made_tissues(_SPACING), spacing)


def _coarser(tissues: TissueMaps) -> TissueMaps:
    """Average maps of fine voxels over blocks of about the size that the standard brain has."""
    steps = np.linalg.norm(tissues.affine[:3, :3], axis=0)
    blocks = np.maximum(_SPACING / steps + 1e-3, 1).astype(int)
    if (blocks == 1).all():
        return tissues
    affine = tissues.affine @ np.diag([*blocks, 1])
    affine[:3, 3] += tissues.affine[:3, :3] @ ((blocks - 1) / 2)

    def averaged(values: NDArray) -> NDArray[np.float32]:
        x, y, z = (n // block for n, block in zip(values.shape, blocks, strict=True))
        cut = values[: x * blocks[0], : y * blocks[1], : z * blocks[2]]
        return np.asarray(
            cut.reshape(x, blocks[0], y, blocks[1], z, blocks[2]).mean(axis=(1, 3, 5)),
            dtype=np.float32,
        )

    white, gray, brain = (
        averaged(values) for values in (tissues.white, tissues.gray, tissues.brain)
    )
    return TissueMaps(gray, white, brain, affine, tissues.half_axes)


def _standard(tissues: TissueMaps, spacing: tuple[float, float, float]) -> Standard:
    steps = np.linalg.norm(tissues.affine[:3, :3], axis=0)
    inside = tissues.brain > 0.5
    depth = distance_transform_edt(np.pad(inside, 1), sampling=steps)[1:-1, 1:-1, 1:-1]
    fluid = np.clip(tissues.brain - tissues.gray - tissues.white, 0, 1)
    parts, _ = label((fluid > 0.5) & (depth > _INNER))
    # Fluid between folds does not reach so deep.
    ventricles = np.isin(parts, np.setdiff1d(parts[depth > _CORE], 0))
    apart = distance_transform_edt(~ventricles, sampling=steps) - distance_transform_edt(
        ventricles, sampling=steps
    )
    gray = tissues.gray + _NARROW * fluid * (apart > _FILLED) * (depth > _SURFACE)
    white = tissues.white + fluid * np.clip((_FILLED + 2 - apart) / 2, 0, 1)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in white.shape), indexing="ij"), axis=-1)
    local = (index @ tissues.affine[:3, :3].T + tissues.affine[:3, 3]) / tissues.half_axes
    # Beyond these limits, gray matter so deep is cortex between the hemispheres.
    central = (np.abs(local[..., 1]) < _CENTRAL) & (np.abs(local[..., 2]) < _CENTRAL)
    nuclei = central * np.clip((depth - _DEEP[0]) / (_DEEP[1] - _DEEP[0]), 0, 1)
    maps = [white, gray * (1 - nuclei), gray * nuclei, tissues.brain, apart]
    maps += _fibers(local, steps)
    blur = _PARTIAL * np.asarray(spacing) / steps
    stacked = np.stack([gaussian_filter(volume.astype(np.float32), blur) for volume in maps])
    return Standard(stacked, tissues.affine, tissues.half_axes)


def _fibers(local: NDArray[np.float64], steps: NDArray[np.float64]) -> list[NDArray]:
    """
    Make fiber directions from formulas.

    Across near the midline, up and down beside it, from front to back at the sides, outward at the
    rim.

    Returns the share of the second direction, the order and the directions.
    """
    x, y, z = np.moveaxis(local, -1, 0)
    side, shape = np.abs(x), x.shape
    rng = np.random.default_rng(0)

    def field(size: float) -> NDArray[np.float64]:
        # The same on both sides, as brains are.
        random_volume = smooth_field(shape, (size / steps).tolist(), rng).reshape(shape)
        return (random_volume + random_volume[::-1]) / 2**0.5

    across = np.exp(-((side / 0.22) ** 2) - ((z - 0.25) / 0.25) ** 2)
    along = np.exp(-(((side - 0.55) / 0.2) ** 2))
    upward = np.exp(-(((side - 0.28) / 0.14) ** 2) - (y / 0.4) ** 2)
    radius = np.sqrt((local**2).sum(axis=-1)) + 1e-3
    outward = np.clip((radius - 0.5) / 0.4, 0, 1) / radius
    bent = [0.35 * field(_BEND) for _ in range(3)]
    first = np.stack(
        [2 * across + outward * x, along + outward * y, 1.5 * upward + outward * z], axis=-1
    )
    first += np.stack(bent, axis=-1)
    first /= np.linalg.norm(first, axis=-1, keepdims=True) + 1e-6
    random_field = np.stack([field(_BEND) for _ in range(3)], axis=-1)
    second = np.cross(first, random_field)
    second /= np.linalg.norm(second, axis=-1, keepdims=True) + 1e-6
    mixed = field(_BEND)
    limit = np.quantile(mixed, 1 - _CROSSING)
    crossing = 0.5 * np.clip(0.5 + (mixed - limit) / 0.4, 0, 1)
    order = np.clip(0.8 + 0.12 * field(_BEND), 0.4, 1)
    return [crossing, order, *np.moveaxis(first, -1, 0), *np.moveaxis(second, -1, 0)]


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
    steps = np.asarray(spacing)
    affine = centered_grid(shape, spacing)
    whole = standard.half_axes
    room = np.maximum(0.5 * np.asarray(shape) * steps - _RIM, steps)
    half = np.minimum(np.minimum(whole, room), whole * (room / whole).min() * _STRETCH)
    shrunk = half / whole
    size = float(np.mean(shrunk))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=0).astype(
        np.float32
    )
    places = grid * steps[:, None, None, None].astype(np.float32)
    places += affine[:3, 3, None, None, None].astype(np.float32)
    warped = places.copy()
    for smoothing, strength in _WARPS:
        for axis in range(3):
            warped[axis] += np.float32(strength * size) * slow_field(
                shape, smoothing * size / steps, rng
            )
    # Drawn in any case, so that the rest of the stream is the same for both cohorts.
    shift, scale = rng.uniform(-_SHIFT, _SHIFT, 3) * steps, 1 + rng.uniform(-_SCALE, _SCALE)
    if shifted:
        warped = (warped - shift.astype(np.float32)[:, None, None, None]) / np.float32(scale)
    inverse = np.linalg.inv(standard.affine)
    matrix = inverse[:3, :3] / shrunk
    positions = np.tensordot(matrix.astype(np.float32), warped, axes=1)
    positions += inverse[:3, 3, None, None, None].astype(np.float32)
    maps = dict(zip(_SCALARS, standard.maps, strict=False))

    def sampled(values: NDArray, where: NDArray, outside: float = 0.0) -> NDArray[np.float32]:
        return np.asarray(map_coordinates(values, where, order=1, output=np.float32, cval=outside))

    brain = sampled(maps["brain"], positions) > 0.5
    where = positions[:, brain]
    values: dict[str, Any] = {
        name: sampled(maps[name], where)
        for name in ("white", "gray", "deep", "apart", "crossing", "order")
    }
    soft = 0.5 * float(steps.min()) / size
    ventricle = np.clip(0.5 + 0.5 * (growth - values.pop("apart")) / soft, 0, 1).astype(np.float32)
    matter = values["white"] + values["gray"] + values["deep"]
    factor = (1 - ventricle) / np.maximum(matter, 1)
    for name in ("white", "gray", "deep"):
        values[name] = values[name] * factor
    values["fluid"] = np.clip(1 - values["white"] - values["gray"] - values["deep"], 0, 1)
    vectors = np.stack([sampled(one, where) for one in standard.maps[len(_SCALARS) :]]).reshape(
        2, 3, -1
    )
    fibers = np.moveaxis(vectors, 1, 2)
    fibers = fibers / np.maximum(np.linalg.norm(fibers, axis=-1, keepdims=True), np.float32(1e-6))
    depth = distance_transform_edt(np.pad(brain, 1), sampling=steps)[1:-1, 1:-1, 1:-1]
    return Brain(
        brain,
        fibers=np.ascontiguousarray(fibers, dtype=np.float32),
        depth=depth[brain].astype(np.float32),
        places=np.ascontiguousarray(places[:, brain].T),
        spacing=steps,
        half_axes=half,
        size=size,
        **values,
    )
