"""What is told of a voxel: its signal's mean and spread over directions, what is around it, where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "masked_smoothing", "mean_signal", "signal_spread", "voxel_features"]

#: Names of the features of `voxel_features`.
FEATURES = ("mean", "spread", "local mean", "local spread", "gradient", "depth")

#: Standard deviation in voxels of the neighborhood of "local" features.
_LOCAL = 1.5


def mean_signal(signal: NDArray[np.floating]) -> NDArray[np.float32]:
    """
    Average the signal over directions.

    Shapes: `signal` (x, y, z, channels); returns (x, y, z).
    """
    return np.stack([part.mean(axis=-1, dtype=np.float32) for part in signal])


def signal_spread(signal: NDArray[np.floating]) -> NDArray[np.float32]:
    """
    Give the standard deviation of the signal over directions, which grows with anisotropy.

    Shapes: `signal` (x, y, z, channels); returns (x, y, z).
    """
    return np.stack([part.std(axis=-1, dtype=np.float32) for part in signal])


def masked_smoothing(
    volume: NDArray[np.floating], mask: NDArray[np.bool_], sd: float | Sequence[float]
) -> NDArray[np.float32]:
    """
    Smooth inside a mask with a Gaussian, without what is outside flowing in.

    Shapes: `volume` (x, y, z), `mask` (x, y, z); returns (x, y, z).
    """
    from scipy import ndimage

    inside = np.where(mask, volume, 0).astype(np.float32)
    if not np.any(sd):
        return inside
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sd, mode="constant")
    total = ndimage.gaussian_filter(inside, sd, mode="constant")
    return np.divide(total, weight, out=np.zeros_like(total), where=mask & (weight > 0))


def voxel_features(
    signal: NDArray[np.floating], mask: NDArray[np.bool_], names: Sequence[str]
) -> NDArray[np.float32]:
    """
    Give features that do not depend on which direction is which.

    Shapes: `signal` (x, y, z, channels), `mask` (x, y, z); returns (n_features, x, y, z).
    """
    from scipy import ndimage

    made: dict[str, NDArray[Any]] = {}
    unknown = [name for name in names if name not in FEATURES]
    if unknown or not len(names):
        raise ValueError(
            f"features must be some of {', '.join(FEATURES)}, not {unknown or names!r}"
        )
    if {"mean", "local mean", "gradient"} & set(names):
        made["mean"] = np.where(mask, mean_signal(signal), 0)
    if {"spread", "local spread"} & set(names):
        made["spread"] = np.where(mask, signal_spread(signal), 0)
    for name in ("mean", "spread"):
        if f"local {name}" in names:
            made[f"local {name}"] = masked_smoothing(made[name], mask, _LOCAL)
    if "gradient" in names:
        smooth = masked_smoothing(made["mean"], mask, 1.0)
        steps = [
            np.gradient(smooth, axis=a) if smooth.shape[a] > 1 else np.zeros_like(smooth)
            for a in range(3)
        ]
        made["gradient"] = np.where(mask, np.sqrt(sum(step**2 for step in steps)), 0)
    if "depth" in names:
        made["depth"] = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    return np.stack([made[name] for name in names]).astype(np.float32)
