"""Shapes of a synthetic head: outline, folds, dura, nuclei and ventricles from formulas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

#: Half axes of an adult's brain in mm: to the right, to the front and up.
BRAIN = np.array([68.0, 85.0, 64.0])

_CORTEX, _CEREBELLAR_CORTEX = 2.8, 1.2  # mm
_FISSURE = 0.55  # mm, half the width of fluid in folds and fissures
_FOLD = 3.6  # mm of smoothing of the field whose zero level makes folds
_FOLIUM = 4.5  # mm between the folds of the cerebellum
_FOLD_DEPTH, _FOLIUM_DEPTH = 0.36, 0.16  # of the half axes
_SOFT = 0.5  # of a voxel, half the width of borders of tissues
_COARSE = 3.0  # voxels of smoothing on the coarse grid, enough for linear interpolation
_CORTICAL_LAYERS = 0.7  # share of gray matter in nuclei, which fibers pass through

# Centers and half axes of the nuclei of the right side, of the brain's half axes.
_NUCLEI = (
    ((0.14, -0.12, -0.02), (0.10, 0.18, 0.14)),  # thalamus
    ((0.37, 0.06, -0.04), (0.09, 0.24, 0.17)),  # putamen and pallidum
    ((0.20, 0.27, 0.04), (0.07, 0.15, 0.13)),  # head of the caudate nucleus
)
_THIRD_VENTRICLE = ((0.0, -0.02, -0.16), (0.02, 0.17, 0.14))
_FOURTH_VENTRICLE = ((0.0, -0.43, -0.46), (0.10, 0.07, 0.12))


class Matter(NamedTuple):
    """Tissue shares (x, y, z) of a brain before its lateral ventricles are cut out."""

    white: NDArray[np.float32]
    gray: NDArray[np.float32]
    deep: NDArray[np.float32]
    brain: NDArray
    to_ventricles: NDArray[np.float32]  # distance in mm, negative inside


def texture_field(
    shape: tuple[int, int, int], size: float, steps: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a random field with a grain size in mm, (x, y, z), of mean 0 and variance 1."""
    field = rng.standard_normal(shape, dtype=np.float32)
    # A wrapped border has the same variance as the middle.
    field = gaussian_filter(field, size / steps, mode="wrap")
    return (field - field.mean()) / field.std()


def slow_field(
    shape: tuple[int, int, int], smoothing: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a very smooth random field, (x, y, z), on a coarse grid where that is enough."""
    factors = np.maximum(smoothing / _COARSE, 1)
    x, y, z = (int(n) for n in np.ceil(np.asarray(shape) / factors))
    field = texture_field((x, y, z), 1.0, factors / smoothing, rng)
    return zoom(field, np.asarray(shape) / (x, y, z), order=1)


def soft_step(x: NDArray) -> NDArray:
    """Rise from 0 at -1 to 1 at 1."""
    return np.clip(0.5 + 0.5 * x, 0, 1)


def falx_distance(local: NDArray, half: NDArray[np.float64]) -> NDArray:
    """
    Compute the distance in mm to the fissure between the hemispheres, where the falx hangs.

    Shapes: `local` (x, y, z, 3), in half axes of the brain; returns (x, y, z).
    """
    x, y, z = np.moveaxis(local, -1, 0)
    # The corpus callosum and the midbrain join the hemispheres, the cerebellum has one middle.
    to_callosum = np.maximum(0.5 - np.hypot(y, np.maximum(z + 0.15, 0)), 0)
    to_cerebellum = np.maximum(_tentorium_height(x) - z, 0) * (y < 0)
    return np.abs(x) * half[0] + half.mean() * (to_callosum + to_cerebellum)


def tentorium_distance(local: NDArray, half: NDArray[np.float64]) -> NDArray:
    """
    Compute the distance in mm to the sheet between cerebrum and cerebellum.

    Shapes: `local` (x, y, z, 3), in half axes of the brain; returns (x, y, z).
    """
    x, y, z = np.moveaxis(local, -1, 0)
    # The midbrain passes through the notch.
    edge = -0.28 - 0.12 * np.exp(-((x / 0.2) ** 2))
    return 0.93 * half[2] * np.abs(z - _tentorium_height(x)) + half.mean() * np.maximum(
        y - edge, 0
    )


def _tentorium_height(x: NDArray) -> NDArray:
    return -0.16 - 0.36 * np.abs(x)


def form_matter(
    local: NDArray, half: NDArray[np.float64], steps: NDArray[np.float64], rng: np.random.Generator
) -> Matter:
    """Compute tissue shares of a brain from distances in mm to its surfaces."""
    x, y, z = np.moveaxis(local, -1, 0)
    side = np.abs(x)
    soft = _SOFT * float(steps.min())
    mean = float(half.mean())
    depth = _outline_depth(local, half)
    falx = falx_distance(local, half)
    tentorium = tentorium_distance(local, half)

    below = _tentorium_height(x) - z
    # In front of the cerebellum, the base of the skull rises between it and the temporal lobe.
    petrous = half[1] * np.abs(y + 0.27) + mean * (
        np.maximum(-below, 0) + np.maximum(0.24 - side, 0)
    )
    to_sylvian = half[2] * np.abs(z + 0.12 + 0.25 * y) + mean * (
        np.maximum(0.55 - side, 0) + np.maximum(np.abs(y - 0.05) - 0.42, 0)
    )
    from_stem = np.hypot(x / 0.19, (y + 0.25) / 0.15) - 1
    to_cistern = mean * (
        0.16 * np.abs(from_stem) + np.maximum(z + 0.30, 0) + np.maximum(-0.32 - y, 0)
    )
    is_stem = (from_stem < 0) & (z < -0.3)
    is_cerebellum = (below > 0) & (y < -0.27) & ~is_stem

    field = texture_field(depth.shape, _FOLD, steps, rng)
    to_fold = _fold_distance(field, steps) + 0.8 * np.maximum(depth - _FOLD_DEPTH * mean, 0)
    surface = np.minimum(np.minimum(depth, tentorium), petrous)
    to_folium = _folium_distance(local, half, field) + 0.8 * np.maximum(
        surface - _FOLIUM_DEPTH * mean, 0
    )
    to_fold = np.where(is_cerebellum, to_folium, to_fold)
    to_fold[is_stem] = mean
    sheets = (depth - 0.4, to_fold, falx, tentorium, petrous, to_sylvian, to_cistern)
    to_fluid = np.minimum.reduce(sheets)

    inner = np.minimum(
        _ellipsoid_distance(local, half, *_THIRD_VENTRICLE),
        _ellipsoid_distance(local, half, *_FOURTH_VENTRICLE),
    )
    fluid = np.maximum(soft_step((_FISSURE - to_fluid) / soft), soft_step(-inner / soft))
    thickness = np.where(is_cerebellum, _CEREBELLAR_CORTEX, _CORTEX)
    cortex = soft_step((thickness + _FISSURE - to_fluid) / soft) * ~is_stem
    # The nuclei are listed for one side.
    mirrored = np.stack([side, y, z], axis=-1)
    nuclei = [_ellipsoid_distance(mirrored, half, *nucleus) for nucleus in _NUCLEI]
    deep = _CORTICAL_LAYERS * soft_step((0.4 * field - np.minimum.reduce(nuclei)) / soft)
    gray = np.maximum(cortex - deep, 0) * (1 - fluid)
    deep = deep * (1 - fluid)
    white = 1 - fluid - gray - deep
    ventricles = _ventricle_distance(mirrored, half)
    is_brain = depth > 0
    white, gray, deep = ((share * is_brain).astype(np.float32) for share in (white, gray, deep))
    return Matter(white, gray, deep, is_brain, ventricles.astype(np.float32))


def _outline_depth(local: NDArray, half: NDArray[np.float64]) -> NDArray:
    """Compute the distance in mm below the surface, negative outside."""
    x, y, z = np.moveaxis(np.abs(local), -1, 0)
    upright = local[..., 2]
    forward = local[..., 1]
    flat = np.where(upright < 0, z / 0.9, z)
    radius = (x**2.3 + y**2.3 + flat**2.3) ** (1 / 2.3)
    # The base of the skull: high below the frontal lobes, and between the temporal ones.
    front = -1 + 0.5 * soft_step((forward - 0.5) / 0.25)
    middle = -1 + 0.5 * soft_step((0.27 - x) / 0.2) * soft_step((forward + 0.02) / 0.14)
    base = (upright - np.maximum(front, middle)) * half[2]
    return np.minimum((1 - radius) * half.mean(), base)


def _fold_distance(field: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray:
    """Compute the distance in mm to the zero level of a random field."""
    slope = np.sqrt(sum(derivative**2 for derivative in np.gradient(field, *steps)))
    # Value over slope is about the distance to the zero level; a floor keeps it finite.
    return np.abs(field) / np.maximum(slope, 0.5 / _FOLD)


def _folium_distance(local: NDArray, half: NDArray[np.float64], field: NDArray) -> NDArray:
    """Compute the distance in mm to the next fold of the cerebellum, which lie in layers."""
    height = (local[..., 2] - 0.5 * local[..., 1]) * half[2] + 0.8 * field
    return _FOLIUM * np.abs(height / _FOLIUM % 1 - 0.5)


def _ellipsoid_distance(
    local: NDArray,
    half: NDArray[np.float64],
    center: tuple[float, float, float],
    axes: tuple[float, float, float],
) -> NDArray:
    """Compute the distance in mm to an ellipsoid to first order, negative inside."""
    offsets = np.moveaxis(local - np.array(center, dtype=local.dtype), -1, 0)
    return _normalized_distance(offsets, half, axes)


def _normalized_distance(
    offsets: NDArray, half: NDArray[np.float64], axes: tuple[float, float, float]
) -> NDArray:
    level = np.zeros_like(offsets[0])
    slope = np.zeros_like(offsets[0])
    for offset, axis, half_axis in zip(offsets, axes, half, strict=True):
        square = (offset / axis) ** 2
        level += square
        slope += square / (axis * half_axis) ** 2
    level = np.sqrt(np.maximum(level, 1e-6))
    distance = (level - 1) * level / np.sqrt(np.maximum(slope, 1e-12))
    # The first order goes astray about the center, which the shortest half axis is away from.
    return np.maximum(distance, -float(np.min(np.array(axes) * half)))


def _ventricle_distance(mirrored: NDArray, half: NDArray[np.float64]) -> NDArray:
    """Compute the distance in mm to the bent ellipsoid of a lateral ventricle."""
    side, y, z = np.moveaxis(mirrored, -1, 0)
    center = 0.11 + 0.30 * np.maximum(-y, 0) ** 1.5 + 0.04 * np.maximum(y, 0)
    bend = 0.16 - 0.55 * np.maximum(-y - 0.1, 0)
    offsets = np.stack([side - center, y + 0.04, z - bend])
    return _normalized_distance(offsets, half, (0.085, 0.46, 0.15))
