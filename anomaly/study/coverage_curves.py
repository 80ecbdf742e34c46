"""Lesions covered against false positives on healthy scans, over all thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.thresholds import rate_limits
from dmrifit.stats.lesion_matching import label_components

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CURVE_RATES", "FULL_RATE", "LOW_RATES", "coverage_curve", "curve_areas"]

#: Rate of false positives up to which the area under a curve is taken.
FULL_RATE = 0.3
#: Range of low rates over which a second area is taken, along the logarithm of the rate.
LOW_RATES = (1e-3, 1e-2)
#: Rates at which curves are read.
CURVE_RATES = (
    *(
        1e-4,
        2e-4,
        5e-4,
        1e-3,
        1.5e-3,
        2e-3,
        3e-3,
        5e-3,
        7e-3,
        0.01,
        0.015,
        0.02,
        0.03,
        0.04,
        0.05,
        0.06,
        0.08,
    ),
    *(0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.24, 0.26, 0.28, FULL_RATE),
)


def coverage_curve(
    healthy: Sequence[NDArray[Any]],
    scores: Sequence[NDArray[Any]],
    lesions: Sequence[NDArray[np.bool_]],
    masks: Sequence[NDArray[np.bool_]],
    *,
    rates: Sequence[float] = CURVE_RATES,
    connectivity: int = 26,
) -> pd.DataFrame:
    """
    Compute the coverage of lesions over the false-positive rate of healthy scans.

    False positives are counted on healthy scans only, because voxels around a lesion may belong to
    it.

    Shapes: `scores` (x, y, z), `lesions` (x, y, z), `masks` (x, y, z).

    References
    ----------
    Bergmann et al., Int J Comput Vis 129:1038–1059, 2021 (per-region overlap); Bertoldo
    et al., arXiv:2401.01984, 2024 (false positives on normal images only).
    """
    import pandas as pd

    steps = np.unique(np.asarray(rates, dtype=np.float64))
    if not len(healthy) or not len(steps) or steps[0] < 0 or steps[-1] > 1:
        raise ValueError(
            f"a curve needs healthy scans, not {len(healthy)}, and rates from 0 to 1, not "
            f"{list(rates)}"
        )
    limits, realized = rate_limits(healthy, steps)
    coverage, sensitivity, hit = [], [], []
    for values, lesion, mask in zip(scores, lesions, masks, strict=True):
        inside = lesion & mask
        if not inside.any():
            continue
        labels = label_components(inside, connectivity=connectivity)[inside]
        chosen = values[inside]
        above = chosen[:, None] > limits
        sizes = np.bincount(labels)[1:]
        shares = (
            np.stack([np.bincount(labels, one, len(sizes) + 1)[1:] for one in above.T], axis=1)
            / sizes[:, None]
        )
        coverage.append(shares.mean(axis=0))
        sensitivity.append(above.mean(axis=0))
        hit.append(shares > 0)
    nothing = np.full(len(steps), np.nan)
    return pd.DataFrame(
        {
            "rate": steps,
            "realized": realized,
            "threshold": limits,
            "coverage": np.mean(coverage, axis=0) if coverage else nothing,
            "sensitivity": np.mean(sensitivity, axis=0) if sensitivity else nothing,
            "lesion_sensitivity": np.concatenate(hit).mean(axis=0) if hit else nothing,
        }
    )


def curve_areas(curve: pd.DataFrame) -> dict[str, float]:
    """Compute areas under a curve of `coverage_curve`."""
    rate, coverage = curve["rate"].to_numpy(), curve["coverage"].to_numpy()
    full = (
        np.concatenate([[0.0], rate[rate <= FULL_RATE]]),
        np.concatenate([[0.0], coverage[rate <= FULL_RATE]]),
    )
    low = (rate >= LOW_RATES[0]) & (rate <= LOW_RATES[1])
    logs = np.log(rate[low])
    return {
        "area": float(np.trapezoid(full[1], full[0]) / FULL_RATE),
        "area_low": float(np.trapezoid(coverage[low], logs) / np.ptp(logs))
        if low.sum() > 1
        else float("nan"),
    }
