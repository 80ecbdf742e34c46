"""Tissue of synthetic heads: gray and white matter and fluid, from formulas or maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_closing,
    binary_fill_holes,
    distance_transform_edt,
    map_coordinates,
    zoom,
)

from dmrifit.io.masks import check_same_grid
from dmrifit.io.nifti import Image, image_name, load_image, values_of
from dmrifit.simulate.tissues import smooth_field

__all__ = [
    "Head",
    "TissueMaps",
    "centered_grid",
    "draw_head",
    "made_tissues",
    "read_tissues",
    "slow_field",
    "texture_field",
]

_BRAIN = np.array([68.0, 85.0, 64.0])  # half axes of a person's brain in mm
_STRETCH = (
    1.25  # how much an axis may exceed the others' scale, to fill a field of view of another shape
)
_RIM = 4.0  # mm of the field of view that stay free on each side
_CORTEX = 2.8  # mm
_FOLD = 3.6  # smoothing of the field whose zero level makes folds, mm
_FOLD_DEPTH = 0.36  # of the half axes
_WARP, _WARP_SMOOTHING = 0.04, 0.4  # of the half axes
_SOFT = 0.5  # of a voxel, half the width of borders of tissues
_COARSE = 3.0  # voxels of smoothing that are enough to interpolate between
_TISSUE = 0.2  # of both kinds of matter, from which on a voxel of given maps is brain


@dataclass(frozen=True)
class Head:
    """
    What a synthetic brain is made of, on one grid.

    Parameters
    ----------
    gray, white, fluid : ndarray of shape (x, y, z)
        Share of each in a voxel; 0 outside the brain.
    brain : ndarray of bool, shape (x, y, z)
        The brain with the fluid on it.
    depth : ndarray of shape (x, y, z)
        Distance to the outside of the brain in mm; 0 there.
    grid : ndarray of shape (x, y, z, 3)
        Centers of voxels in mm, the middle of the field of view at 0.
    """

    gray: NDArray[np.float32]
    white: NDArray[np.float32]
    fluid: NDArray[np.float32]
    brain: NDArray[np.bool_]
    depth: NDArray[np.float32]
    grid: NDArray[np.float32]


@dataclass(frozen=True)
class TissueMaps:
    """
    Maps of one brain, from which others are made by warping.

    Parameters
    ----------
    gray, white, brain : ndarray of shape (x, y, z)
        Probabilities, and the mask of the brain with the fluid in it.
    affine : ndarray of shape (4, 4)
        From voxel indices to mm, the middle of the brain at 0.
    half_axes : ndarray of shape (3,)
        Half of the brain's extent along each axis in mm.
    """

    gray: NDArray[np.float32]
    white: NDArray[np.float32]
    brain: NDArray[np.float32]
    affine: NDArray[np.float64]
    half_axes: NDArray[np.float64]


def read_tissues(gray: Image, white: Image) -> TissueMaps:
    """Read maps of gray and white matter of one brain, such as those of the MNI."""
    images = [load_image(one) for one in (gray, white)]
    names = [image_name(one) for one in (gray, white)]
    check_same_grid(
        images[1].shape,
        images[1].affine,
        images[0].shape,
        images[0].affine,
        name=names[1],
        reference_name=names[0],
    )
    maps = []
    # In RAS order, whatever the file's order is: what is drawn at random for a voxel is the same
    # then.
    turn = nib.io_orientation(images[0].affine)
    affine = np.asarray(
        images[0].affine @ inv_ornt_aff(turn, images[0].shape[:3]), dtype=np.float64
    )
    for image, name in zip(images, names, strict=True):
        values = values_of(image, name)
        if values.dtype == np.uint8:
            values = values / np.float32(255)
        values = np.asarray(values, dtype=np.float32)
        if (
            values.ndim != 3
            or not np.isfinite(values).all()
            or values.min() < -0.01
            or values.max() > 1.01
        ):
            raise ValueError(
                f"{name} holds no probabilities from 0 to 1 on three axes: shape {values.shape}, "
                f"up to {values.max()}"
            )
        maps.append(np.ascontiguousarray(apply_orientation(values, turn)))
    matter = maps[0] + maps[1] > _TISSUE
    if not matter.any():
        raise ValueError(
            f"{names[0]} and {names[1]} hold no brain: their sum is nowhere above {_TISSUE}"
        )
    brain = binary_fill_holes(binary_closing(np.pad(matter, 8), iterations=6))[8:-8, 8:-8, 8:-8]
    corners = (np.argwhere(brain) @ affine[:3, :3].T) + affine[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    affine[:3, 3] -= (low + high) / 2
    return TissueMaps(maps[0], maps[1], brain.astype(np.float32), affine, (high - low) / 2)


def made_tissues(spacing: float) -> TissueMaps:
    """Make maps of one brain of a person's size from formulas."""
    steps = np.full(3, float(spacing))
    x, y, z = (int(n) for n in np.ceil(2 * (_BRAIN + _RIM) / steps))
    affine = centered_grid((x, y, z), steps.tolist())
    grid = (
        np.stack(np.meshgrid(*(np.arange(n) for n in (x, y, z)), indexing="ij"), axis=-1) * steps
        + affine[:3, 3]
    )
    gray, white, _, brain = _made(grid / _BRAIN, _BRAIN, steps, np.random.default_rng(0))
    gray, white = ((share * brain).astype(np.float32) for share in (gray, white))
    return TissueMaps(gray, white, brain.astype(np.float32), affine, _BRAIN.copy())


def centered_grid(shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Give the affine of a grid whose middle is at 0."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * spacing
    return affine


def texture_field(
    shape: tuple[int, int, int], size: float, steps: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """
    Draw a random field of a grain in mm.

    Shapes: returns (x, y, z).
    """
    return smooth_field(shape, (size / steps).tolist(), rng).reshape(shape)


def slow_field(
    shape: tuple[int, int, int], smoothing: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """
    Draw a very smooth random field, on a coarse grid first where that is enough.

    Shapes: returns (x, y, z).
    """
    factors = np.maximum(smoothing // _COARSE, 1)
    coarse = tuple(int(n) for n in np.ceil(np.asarray(shape) / factors))
    field = smooth_field(
        (coarse[0], coarse[1], coarse[2]), (smoothing / factors).tolist(), rng
    ).reshape(coarse)
    return zoom(field.astype(np.float32), np.asarray(shape) / coarse, order=1)


def draw_head(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    tissues: TissueMaps | None = None,
) -> Head:
    """Draw a brain that fills the field of view, up to a person's size."""
    affine = centered_grid(shape, spacing)
    steps = np.asarray(spacing)
    grid = (
        np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * steps
        + affine[:3, 3]
    )
    whole = _BRAIN if tissues is None else tissues.half_axes
    room = 0.5 * np.asarray(shape) * steps - _RIM
    half = np.minimum(
        np.minimum(whole, room), whole * (room / whole).min() * _STRETCH
    ) * rng.uniform(0.93, 1.0, 3)
    warped = np.empty_like(grid)
    for axis in range(3):
        push = slow_field(shape, _WARP_SMOOTHING * half / steps, rng)
        warped[..., axis] = grid[..., axis] + _WARP * half[axis] * push
    local = warped / half
    if tissues is None:
        gray, white, fluid, brain = _made(local, half, steps, rng)
    else:
        gray, white, fluid, brain = _sampled(tissues, local)
    depth = distance_transform_edt(brain, sampling=steps).astype(np.float32)
    gray, white, fluid = ((share * brain).astype(np.float32) for share in (gray, white, fluid))
    return Head(gray, white, fluid, brain, depth, grid.astype(np.float32))


def _made(
    local: NDArray[np.float64],
    half: NDArray[np.float64],
    steps: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray, NDArray, NDArray, NDArray[np.bool_]]:
    """Make tissues from distances in mm to surface, folds, midline and ventricles."""
    shape = local.shape[:3]
    soft = _SOFT * float(steps.min())
    x, y, z = np.moveaxis(local, -1, 0)
    side = np.abs(x)
    low = np.where(z < 0, z / 0.86, z)  # flatter below
    radius = (side**2.3 + np.abs(y) ** 2.3 + np.abs(low) ** 2.3) ** (1 / 2.3)
    depth = (1 - radius) * half.mean()
    field = texture_field(shape, _FOLD, steps, rng)
    slope = np.sqrt(sum(part**2 for part in np.gradient(field, *steps)))
    fold = np.abs(field) / np.maximum(slope, 0.5 / _FOLD) + 0.8 * np.maximum(
        depth - _FOLD_DEPTH * half.mean(), 0
    )
    # Between the hemispheres above the middle, and in front of and behind the ventricles.
    middle = side * half[0] + half.mean() * np.maximum(
        0.5 - np.hypot(y, np.maximum(z + 0.15, 0)), 0
    )
    to_fluid = np.minimum(np.minimum(depth - 0.4, fold), middle)
    outer = _step((0.55 - to_fluid) / soft)
    ventricles = _step((1 - _ventricles(side, y, z, rng)) * 0.12 * half[0] / soft)
    third = _step((1.2 - side * half[0] - 30 * np.maximum(np.hypot(y, z + 0.18) - 0.17, 0)) / soft)
    fluid = np.maximum(np.maximum(outer, ventricles), third)
    nuclei = (
        ((side - 0.30) / 0.15) ** 2
        + ((y - 0.02) / 0.33) ** 2
        + ((z + 0.04) / 0.20) ** 2
        + 0.12 * field
    )
    gray = np.maximum(
        _step((_CORTEX + 0.55 - to_fluid) / soft),
        0.7 * _step((1 - nuclei) * 0.15 * half[0] / soft),
    )
    gray = gray * (1 - fluid)
    return gray, 1 - fluid - gray, fluid, depth > 0


def _ventricles(
    side: NDArray, y: NDArray, z: NDArray, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Give how far points are from the middle of two bent ellipsoids, 1 on their surface."""
    size = rng.uniform(0.75, 1.25)
    center = 0.10 + 0.30 * np.maximum(-y, 0) ** 1.5 + 0.04 * np.maximum(y, 0)
    bend = 0.16 - 0.55 * np.maximum(-y - 0.1, 0)
    return np.sqrt(
        ((side - center) / (0.085 * size)) ** 2
        + ((y + 0.04) / 0.46) ** 2
        + ((z - bend) / (0.15 * size)) ** 2
    )


def _sampled(
    tissues: TissueMaps, local: NDArray[np.float64]
) -> tuple[NDArray, NDArray, NDArray, NDArray[np.bool_]]:
    """Take maps at warped places."""
    inverse = np.linalg.inv(tissues.affine)
    places = np.moveaxis((local * tissues.half_axes) @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    gray, white, brain = (
        map_coordinates(values, places, order=1)
        for values in (tissues.gray, tissues.white, tissues.brain)
    )
    gray, white = np.clip(gray, 0, 1), np.clip(white, 0, 1)
    whole = np.maximum(gray + white, 1)
    gray, white = gray / whole, white / whole
    return gray, white, 1 - gray - white, brain > 0.5


def _step(x: NDArray) -> NDArray:
    """Rise from 0 at -1 to 1 at 1."""
    return np.clip(0.5 + 0.5 * x, 0, 1)
