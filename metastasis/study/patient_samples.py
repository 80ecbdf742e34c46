"""Bootstrap samples of patients, and 95 % percentile intervals over them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST_PATIENTS", "patient_draws", "percentile_interval"]

#: Patients below which there is no interval: all samples of one patient are alike.
FEWEST_PATIENTS = 2


def patient_draws(
    n_patients: int, n_bootstrap: int, seed: np.random.SeedSequence
) -> NDArray[np.int64]:
    """
    Draw patients with replacement, and give how often each of them is in each sample.

    Shapes: returns (n_bootstrap, n_patients), of fewer than `FEWEST_PATIENTS` no sample.
    """
    n_samples = n_bootstrap if n_patients >= FEWEST_PATIENTS else 0
    shares = np.full(n_patients, 1 / n_patients)
    return np.random.default_rng(seed).multinomial(n_patients, shares, n_samples)


def percentile_interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Give percentiles 2.5 and 97.5 of the samples (n,) that are defined; NaN where none is."""
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)
