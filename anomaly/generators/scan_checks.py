"""Checked arrays of generators, and the noise that mixing has averaged out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted

__all__ = ["checked_scan", "checked_source", "put_noise_back"]


def checked_scan(volume: Any, mask: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Check a scan and its mask, and copy the scan."""
    signals = np.array(volume, dtype=np.result_type(np.asarray(volume).dtype, np.float32))
    inside = np.asarray(mask) > 0
    if signals.ndim != 4 or signals.shape[:3] != inside.shape:
        raise ValueError(
            f"a volume of shape {signals.shape} and a mask of shape {inside.shape}; give a volume "
            "(x, y, z, channels) and a mask (x, y, z) on one grid"
        )
    if not inside.any():
        raise ValueError("the mask is empty, so that there is no brain to put an anomaly into")
    n_bad = signals.size - np.count_nonzero(np.isfinite(signals))
    if n_bad:
        raise ValueError(
            f"the volume has {counted(n_bad, 'non-finite value')}; set what is outside the brain "
            "to 0"
        )
    return signals, inside


def checked_source(source: Any, volume: NDArray[Any]) -> NDArray[Any]:
    """Check the scan of another person against the one that gets a patch of it."""
    foreign = np.asarray(source, dtype=volume.dtype)
    if foreign.shape != volume.shape:
        raise ValueError(
            f"a source of shape {foreign.shape} for a volume of shape {volume.shape}; bring both "
            "scans to one grid and the same directions"
        )
    if not np.isfinite(foreign).all():
        raise ValueError("the source has values that are not finite; set them to 0")
    if np.array_equal(foreign, volume):
        raise ValueError("the source is the scan itself; give that of another person")
    return foreign


def put_noise_back(
    volume: NDArray[np.float32],
    factor: NDArray[np.float32],
    noise: float,
    rng: np.random.Generator,
) -> None:
    """Add the noise that is missing where a factor (x, y, z) has multiplied its SD."""
    missing = np.sqrt(np.clip(1 - factor**2, 0, 1)) * np.float32(noise)
    inside = missing > 0
    drawn = rng.standard_normal((np.count_nonzero(inside), volume.shape[-1]), dtype=np.float32)
    volume[inside] += drawn * missing[inside][:, None]
