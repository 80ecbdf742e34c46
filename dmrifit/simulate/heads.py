"""Tissue of synthetic heads: gray matter, white matter and CSF, from formulas or maps."""

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
_STRETCH = 1.25  # largest scale of an axis relative to the smallest, to fill the field of view
_RIM = 4.0  # mm of background at each side of the field of view
_CORTEX = 2.8  # mm
_FOLD = 3.6  # smoothing of the field whose zero level makes folds, mm
_FOLD_DEPTH = 0.36  # of the half axes
_WARP, _WARP_SMOOTHING = 0.04, 0.4  # of the half axes
_SOFT = 0.5  # of a voxel, half the width of borders of tissues
_COARSE = 3.0  # voxels of smoothing on the coarse grid, enough for linear interpolation
_TISSUE = 0.2  # least probability of gray plus white matter in a brain voxel of maps


@dataclass(frozen=True)
class Head:
    """
    Tissue shares of a synthetic brain on one grid.

    Parameters
    ----------
    gray, white, fluid : ndarray of shape (x, y, z)
        Share of each in a voxel; 0 outside the brain.
    brain : ndarray of bool, shape (x, y, z)
        The brain with its outer CSF.
    depth : ndarray of shape (x, y, z)
        Distance to the outside of the brain in mm; 0 there.
    grid : ndarray of shape (x, y, z, 3)
        Centers of voxels in mm, with the center of the field of view at 0.
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
    Tissue maps of one brain, which are warped to make others.

    Parameters
    ----------
    gray, white, brain : ndarray of shape (x, y, z)
        Probabilities, and the mask of the brain with its CSF.
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
    images = [load_image(source) for source in (gray, white)]
    names = [image_name(source) for source in (gray, white)]
    check_same_grid(
        images[1].shape,
        images[1].affine,
        images[0].shape,
        images[0].affine,
        name=names[1],
        reference_name=names[0],
    )
    # In RAS order for every file, so that the same random numbers fall on the same voxels.
    orientation = nib.io_orientation(images[0].affine)
    to_ras = inv_ornt_aff(orientation, images[0].shape[:3])
    affine = np.asarray(images[0].affine @ to_ras, dtype=np.float64)
    maps = []
    for image, name in zip(images, names, strict=True):
        values = _probabilities(values_of(image, name), name)
        maps.append(np.ascontiguousarray(apply_orientation(values, orientation)))
    matter = maps[0] + maps[1] > _TISSUE
    if not matter.any():
        raise ValueError(
            f"{names[0]} and {names[1]} hold no brain: their sum is nowhere above {_TISSUE}"
        )
    # Padded, because the closing would otherwise erode the mask at the border of the image.
    closed = binary_closing(np.pad(matter, 8), iterations=6)
    brain = binary_fill_holes(closed)[8:-8, 8:-8, 8:-8]
    positions = (np.argwhere(brain) @ affine[:3, :3].T) + affine[:3, 3]
    low, high = positions.min(axis=0), positions.max(axis=0)
    affine[:3, 3] -= (low + high) / 2
    return TissueMaps(maps[0], maps[1], brain.astype(np.float32), affine, (high - low) / 2)


def _probabilities(values: NDArray, name: str) -> NDArray[np.float32]:
    """Check probabilities of a volume; those of 8-bit images are stored as 0 to 255."""
    if values.dtype == np.uint8:
        values = values / np.float32(255)
    values = np.asarray(values, dtype=np.float32)
    is_finite_volume = values.ndim == 3 and np.isfinite(values).all()
    # Interpolated maps exceed the range a little.
    if not is_finite_volume or values.min() < -0.01 or values.max() > 1.01:
        raise ValueError(
            f"{name} holds no probabilities from 0 to 1 on three axes: shape {values.shape}, "
            f"up to {values.max()}"
        )
    return values


def made_tissues(spacing: float) -> TissueMaps:
    """Make maps of one brain of adult size from formulas."""
    steps = np.full(3, float(spacing))
    x, y, z = (int(n) for n in np.ceil(2 * (_BRAIN + _RIM) / steps))
    affine = centered_grid((x, y, z), steps.tolist())
    grid = _voxel_centers((x, y, z), affine, steps)
    gray, white, _, brain = _made(grid / _BRAIN, _BRAIN, steps, np.random.default_rng(0))
    gray = (gray * brain).astype(np.float32)
    white = (white * brain).astype(np.float32)
    return TissueMaps(gray, white, brain.astype(np.float32), affine, _BRAIN.copy())


def centered_grid(shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the affine of a grid centered at 0."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * spacing
    return affine


def _voxel_centers(
    shape: tuple[int, int, int], affine: NDArray[np.float64], steps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the centers of all voxels in mm, (x, y, z, 3)."""
    indices = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return np.stack(indices, axis=-1) * steps + affine[:3, 3]


def texture_field(
    shape: tuple[int, int, int], size: float, steps: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a random field with a grain size in mm, (x, y, z)."""
    return smooth_field(shape, (size / steps).tolist(), rng).reshape(shape)


def slow_field(
    shape: tuple[int, int, int], smoothing: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a very smooth random field, (x, y, z), on a coarse grid where that is enough."""
    factors = np.maximum(smoothing // _COARSE, 1)
    x, y, z = (int(n) for n in np.ceil(np.asarray(shape) / factors))
    field = smooth_field((x, y, z), (smoothing / factors).tolist(), rng).reshape(x, y, z)
    return zoom(field.astype(np.float32), np.asarray(shape) / (x, y, z), order=1)


def draw_head(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    tissues: TissueMaps | None = None,
) -> Head:
    """Draw a brain that fills the field of view, up to adult size."""
    steps = np.asarray(spacing)
    grid = _voxel_centers(shape, centered_grid(shape, spacing), steps)
    full_size = _BRAIN if tissues is None else tissues.half_axes
    available = 0.5 * np.asarray(shape) * steps - _RIM
    # A flat field of view must not give a flat brain: no axis may outgrow the smallest by far.
    stretched = full_size * (available / full_size).min() * _STRETCH
    half = np.minimum(np.minimum(full_size, available), stretched) * rng.uniform(0.93, 1.0, 3)
    warped = np.empty_like(grid)
    for axis in range(3):
        displacement = slow_field(shape, _WARP_SMOOTHING * half / steps, rng)
        warped[..., axis] = grid[..., axis] + _WARP * half[axis] * displacement
    local = warped / half
    if tissues is None:
        gray, white, fluid, brain = _made(local, half, steps, rng)
    else:
        gray, white, fluid, brain = _sampled(tissues, local)
    depth = distance_transform_edt(brain, sampling=steps).astype(np.float32)
    return Head(
        gray=(gray * brain).astype(np.float32),
        white=(white * brain).astype(np.float32),
        fluid=(fluid * brain).astype(np.float32),
        brain=brain,
        depth=depth,
        grid=grid.astype(np.float32),
    )


def _made(
    local: NDArray[np.float64],
    half: NDArray[np.float64],
    steps: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray, NDArray, NDArray, NDArray[np.bool_]]:
    """Compute tissue shares from distances in mm to surface, folds, midline and ventricles."""
    shape = local.shape[:3]
    soft = _SOFT * float(steps.min())
    x, y, z = np.moveaxis(local, -1, 0)
    side = np.abs(x)
    low = np.where(z < 0, z / 0.86, z)  # flatter below
    radius = (side**2.3 + np.abs(y) ** 2.3 + np.abs(low) ** 2.3) ** (1 / 2.3)
    depth = (1 - radius) * half.mean()
    field = texture_field(shape, _FOLD, steps, rng)
    slope = np.sqrt(sum(derivative**2 for derivative in np.gradient(field, *steps)))
    # Value over slope is about the distance to the zero level; a floor keeps it finite.
    to_fold = np.abs(field) / np.maximum(slope, 0.5 / _FOLD)
    to_fold = to_fold + 0.8 * np.maximum(depth - _FOLD_DEPTH * half.mean(), 0)
    # Between the hemispheres above the center, and in front of and behind the ventricles.
    from_center = np.hypot(y, np.maximum(z + 0.15, 0))
    to_midline = side * half[0] + half.mean() * np.maximum(0.5 - from_center, 0)
    to_fluid = np.minimum(np.minimum(depth - 0.4, to_fold), to_midline)
    outer = _step((0.55 - to_fluid) / soft)
    ventricles = _step((1 - _ventricles(side, y, z, rng)) * 0.12 * half[0] / soft)
    beyond_third = np.maximum(np.hypot(y, z + 0.18) - 0.17, 0)
    third = _step((1.2 - side * half[0] - 30 * beyond_third) / soft)
    fluid = np.maximum(np.maximum(outer, ventricles), third)
    nuclei = (
        ((side - 0.30) / 0.15) ** 2
        + ((y - 0.02) / 0.33) ** 2
        + ((z + 0.04) / 0.20) ** 2
        + 0.12 * field
    )
    cortex = _step((_CORTEX + 0.55 - to_fluid) / soft)
    # Deep nuclei are mixed with fibers: less gray than the cortex.
    deep_gray = 0.7 * _step((1 - nuclei) * 0.15 * half[0] / soft)
    gray = np.maximum(cortex, deep_gray) * (1 - fluid)
    return gray, 1 - fluid - gray, fluid, depth > 0


def _ventricles(
    side: NDArray, y: NDArray, z: NDArray, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Compute normalized distances to the centers of two bent ellipsoids, 1 on their surface."""
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
    """Interpolate maps at warped positions."""
    inverse = np.linalg.inv(tissues.affine)
    indices = (local * tissues.half_axes) @ inverse[:3, :3].T + inverse[:3, 3]
    indices = np.moveaxis(indices, -1, 0)
    gray = np.clip(map_coordinates(tissues.gray, indices, order=1), 0, 1)
    white = np.clip(map_coordinates(tissues.white, indices, order=1), 0, 1)
    brain = map_coordinates(tissues.brain, indices, order=1) > 0.5
    # Rounding may let the sum exceed 1, and the share of fluid would be negative.
    total = np.maximum(gray + white, 1)
    gray, white = gray / total, white / total
    return gray, white, 1 - gray - white, brain


def _step(x: NDArray) -> NDArray:
    """Rise from 0 at -1 to 1 at 1."""
    return np.clip(0.5 + 0.5 * x, 0, 1)
