"""Voxel features: mean and spread of the signal over directions, neighborhood, depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.detectors.alignment import gaussian
from anomaly.generators.implants import Look
from dmrifit._utils.checks import is_number

#: Names of the features of `voxel_features`.
FEATURES = ("mean", "spread", "local mean", "local spread", "gradient", "depth")

#: Standard deviation in mm of the Gaussian that smooths the maps of all detectors by default, so
#: that none is compared with one that is smoother; 6 mm were best for most on unseen generators.
SMOOTH_MM = 6.0
#: Standard deviation in voxels of the neighborhood of "local" features.
_LOCAL = 1.5


def look_of(signal: NDArray[np.floating], mask: NDArray[np.bool_]) -> Look:
    """Average a scan (x, y, z, channels) over directions, and compute their spread (SD)."""
    mean, spread = np.zeros((2, *mask.shape), dtype=np.float32)
    # Plane by plane, so that no copy of the whole scan is made.
    for x, inside in enumerate(mask):
        # In one layout, on which sums depend in their last bits.
        voxels = np.ascontiguousarray(signal[x][inside])
        mean[x, inside] = voxels.mean(axis=-1, dtype=np.float32)
        spread[x, inside] = voxels.std(axis=-1, dtype=np.float32)
    return Look(mean, spread, mask)


def smoothed_voxels(
    volume: NDArray, mask: NDArray[np.bool_], sd: float | tuple[float, ...]
) -> NDArray[np.float32]:
    """
    Smooth inside a mask with a Gaussian, without leakage from outside; `sd` is in voxels.

    Shapes: `volume` (x, y, z) or (x, y, z, channels), `mask` (x, y, z); returns the voxels of the
    mask, (n,) or (n, channels).
    """
    # A third of a scan is outside the box of the brain, where nothing is smoothed.
    boxes = ndimage.find_objects(mask.astype(np.int8))
    box = boxes[0] if boxes else (slice(1),) * 3
    inside = mask[box]
    channels = (1,) * (volume.ndim - 3)
    cut_out = np.where(inside.reshape(inside.shape + channels), volume[box], 0)
    smooth: NDArray = gaussian(cut_out, sd, "constant")[inside]
    smooth /= gaussian(inside, sd, "constant")[inside].reshape(-1, *channels)
    return smooth


def masked_smoothing(
    volume: NDArray[np.floating], mask: NDArray[np.bool_], sd: float | tuple[float, ...]
) -> NDArray[np.float32]:
    """Smooth a volume (x, y, z) inside a mask as `smoothed_voxels`; 0 outside."""
    full = np.zeros(mask.shape, dtype=np.float32)
    full[mask] = smoothed_voxels(volume, mask, sd)
    return full


def check_spacing(spacing: Any) -> None:
    """Reject edges of a voxel that are neither one length in mm nor three."""
    edges = np.array(spacing, dtype=object)
    are_lengths = [is_number(edge) and 0 < edge < np.inf for edge in edges.ravel()]
    if edges.shape not in ((), (3,)) or not all(are_lengths):
        raise ValueError(f"spacing must be one positive length in mm or three, not {spacing!r}")


def sd_in_voxels(sd_mm: float, spacing: Any) -> float | tuple[float, ...]:
    """Convert a standard deviation from mm to voxels, for each axis where edges differ."""
    if np.shape(spacing) == ():
        return float(sd_mm) / float(spacing)
    return tuple(float(sd_mm) / float(edge) for edge in spacing)


def nearest_inside(inside: NDArray[np.bool_]) -> tuple[NDArray, ...]:
    """Find the indices of the nearest voxel inside a mask, for every voxel."""
    return tuple(
        ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    )


def voxel_features(
    signal: NDArray[np.floating], mask: NDArray[np.bool_], names: Sequence[str]
) -> NDArray[np.float32]:
    """Compute features (n, x, y, z) that do not depend on the order of directions."""
    look = look_of(signal, mask)
    volumes = {"mean": look.mean, "spread": look.spread}
    for name in ("mean", "spread"):
        if f"local {name}" in names:
            volumes[f"local {name}"] = masked_smoothing(volumes[name], mask, _LOCAL)
    if "gradient" in names:
        smooth = masked_smoothing(volumes["mean"], mask, 1.0)
        squares = np.zeros_like(smooth)
        for axis in range(3):
            # Along an axis of one voxel there is no gradient.
            if smooth.shape[axis] > 1:
                squares += np.gradient(smooth, axis=axis) ** 2
        volumes["gradient"] = np.where(mask, np.sqrt(squares), 0)
    if "depth" in names:
        volumes["depth"] = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    return np.stack([volumes[name] for name in names]).astype(np.float32)


def shrunk_variance(
    squares: NDArray[np.floating], freedom: NDArray[Any], prior: float
) -> NDArray[np.floating]:
    """
    Estimate variances from sums of squares, shrunk toward their median.

    The median weighs as much as `prior` further degrees of freedom.
    """
    # A variance of few scans is small by chance in some voxels, where all would be abnormal.
    estimable = freedom > 0
    variances = squares[estimable] / freedom[estimable]
    typical = float(np.median(variances)) if len(variances) else 0.0
    total, weight = squares + prior * typical, freedom + prior
    return np.divide(total, weight, out=np.full(total.shape, typical), where=weight > 0)
