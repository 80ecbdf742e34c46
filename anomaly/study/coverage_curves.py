"""Lesions covered against false positives on healthy scans, over all thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.thresholds import rate_limits
from dmrifit.io.components import label_components

if TYPE_CHECKING:
    import pandas as pd

#: Rate of false positives up to which the area under a curve is taken.
FULL_RATE = 0.3
#: Range of low rates over which a second area is taken, along the logarithm of the rate.
LOW_RATES = (1e-3, 1e-2)
#: Rates at which curves are read.
CURVE_RATES = (
    *(1e-4, 2e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3, 0.01, 0.015, 0.02, 0.03, 0.04),
    *(0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.24, 0.26, 0.28, FULL_RATE),
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
    Compute the coverage of lesions (x, y, z) over the false-positive rate of healthy scans.

    False positives are counted on healthy scans only, because voxels around a lesion may belong to
    it (Bertoldo et al., arXiv:2401.01984, 2024); coverage is per region (Bergmann et al., Int J
    Comput Vis 129:1038–1059, 2021).
    """
    import pandas as pd

    steps = np.unique(np.asarray(rates, dtype=np.float64))
    limits, realized = rate_limits(healthy, steps)
    coverages, sensitivities, hits = [], [], []
    for values, lesion, mask in zip(scores, lesions, masks, strict=True):
        inside = lesion & mask
        if not inside.any():
            continue
        labels = label_components(inside, connectivity=connectivity)[inside]
        is_above = values[inside][:, None] > limits
        n_voxels = np.bincount(labels)
        n_above = [np.bincount(labels, column, len(n_voxels)) for column in is_above.T]
        # Component 0 is the background, which has no voxel inside a lesion.
        shares = np.stack(n_above, axis=1)[1:] / n_voxels[1:, None]
        coverages.append(shares.mean(axis=0))
        sensitivities.append(is_above.mean(axis=0))
        hits.append(shares > 0)
    columns = {"rate": steps, "realized": realized, "threshold": limits}
    columns |= dict.fromkeys(
        ("coverage", "sensitivity", "lesion_sensitivity"), np.full(len(steps), np.nan)
    )
    if coverages:
        columns["coverage"] = np.mean(coverages, axis=0)
        columns["sensitivity"] = np.mean(sensitivities, axis=0)
        columns["lesion_sensitivity"] = np.concatenate(hits).mean(axis=0)
    return pd.DataFrame(columns)


def curve_areas(curve: pd.DataFrame) -> dict[str, float]:
    """Compute areas under a curve of `coverage_curve`."""
    rate = curve["rate"].to_numpy()
    coverage = curve["coverage"].to_numpy()
    is_counted = rate <= FULL_RATE
    counted_rate = np.concatenate([[0.0], rate[is_counted]])
    counted_coverage = np.concatenate([[0.0], coverage[is_counted]])
    area_low = float("nan")
    is_low = (rate >= LOW_RATES[0]) & (rate <= LOW_RATES[1])
    if is_low.sum() > 1:
        # On a linear axis the highest rates would decide the area.
        logarithms = np.log(rate[is_low])
        area_low = float(np.trapezoid(coverage[is_low], logarithms) / np.ptp(logarithms))
    area = float(np.trapezoid(counted_coverage, counted_rate) / FULL_RATE)
    return {"area": area, "area_low": area_low}
