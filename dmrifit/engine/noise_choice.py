"""What a fit chooses by the noise of its signals: the steps of IVIM, and where it has a floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted
from dmrifit.engine.design.identifiability import nominal_contrasts
from dmrifit.engine.design.precision import rounded
from dmrifit.engine.means import mean_of_finite
from dmrifit.engine.models import read_table
from dmrifit.engine.protocol import TE_MATCH, ZERO_B, Protocol, least_weighted, span_text

#: Number of voxels, at most, that the noise is measured from.
NOISE_VOXELS = 1024

#: SNR of the least weighted signal in 12 measurements (other numbers count by their root) from
#: which IVIM is fitted in one step. Below it, Dt comes first, from the b-values in s/mm² above the
#: first number plus the second times the SNR. On a grid of tissues, four protocols, and SNRs from
#: 10 to 100 (`benchmarks.fitting.bench_ivim_methods`), the errors of f, Dv and Dt together stay
#: within 5 % of those of the best single method.
_ONE_STEP_SNR = 90.0
_THRESHOLD_BY_SNR = (20.0, 1.5)
_N_MEASUREMENTS = 12

#: Multiples of the noise: where the mean signal at the highest b-value is below them, the noise
#: floor makes a kurtosis of water.
_NEAR_FLOOR = 3.5
#: µm²/ms, above which a voxel is a fluid. Tissue as near to the noise has smaller errors of D and
#: K without a floor.
_FLUID = 1.5

# Largest signal of air as a share of that of tissue: in heads and legs air has 0 to 0.1, tissue
# beside tissue 0.25.
_AIR = 0.2

# Multiples of the noise that the median of air does not exceed: 1.25 in an average of images.
_OF_NOISE = 1.4
#: Noise of air as a share of that of tissue: magnitudes have a narrower distribution there.
NOISE_OF_AIR = 0.655

#: Multiples of the noise level, and share of the signal of tissue, below which a dark voxel may be
#: air: scanners filter the noise of air, and ghosts have up to some 7 % of the tissue's signal.
_NEAR_NOISE, _GHOSTS = 5.0, 0.08

# Top of the histogram: a few extreme voxels would draw a threshold between them and the tissue.
_EXTREME = 99.5  # percent
_BINS = 1024

# Keys closer than this to 0 or 1 are whole but for rounding.
_WHOLE = 1e-6

_SENTENCES = read_table("sentences")["choice"]

_SAME_B = 1.0  # s/mm²: b-values up to so much above the lowest one are repeats of it
_FEWEST_SPARE = 2  # volumes beyond one of each echo time
_FEWEST_DEGREES = 30  # of freedom, of all voxels together: the noise within 13 %


@dataclass(frozen=True)
class NoiseLevel:
    """The standard deviation of the noise of a scan."""

    # Of each channel (the σ of the Rician distribution), one number or a map (x, y, z).
    sigma: float | NDArray[np.float32]
    method: str  # how it was estimated, such as "piesno", "repeats" or "residuals"

    def __str__(self) -> str:
        # Three digits, without an exponent from 0.0001 to below a million.
        return f"{float(f'{np.median(self.sigma):.3g}'):g} ({self.method})"


def describe_choice(
    threshold: float | None, snr: float, noise: NoiseLevel | None, n_floored: int
) -> str:
    """Say what was chosen by the noise; `noise` is None if it was not measured."""
    key = "one_step" if threshold is None else "segmented"
    if noise is None:
        key = "unknown"
    elif not np.isfinite(snr):
        key = "without_signal"
    text = _SENTENCES[key].format(threshold=threshold, snr=rounded(snr, 3))
    if n_floored:
        text += _SENTENCES["floored"].format(n=counted(n_floored, "voxel"))
    return text


def spread_rows(signals: NDArray, most: int = NOISE_VOXELS) -> NDArray[np.intp]:
    """
    Choose up to `most` voxels, spread over all.

    They are the same ones, in the same order, for any order of rows or columns, on any scale.
    """
    keys = _keys(signals)
    partly = ~np.isfinite(keys)
    keys[partly] = _keys(np.nan_to_num(signals[partly], posinf=0, neginf=0))
    return np.argsort(keys, kind="stable")[:most]


def _keys(signals: NDArray) -> NDArray[np.float64]:
    """Compute a pseudorandom key from 0 to 1 for each voxel, from how its signals differ."""
    with np.errstate(all="ignore"):
        sums = np.einsum("ij->i", signals, dtype=np.float64)
        keys = np.einsum("ij,ij->i", signals, signals, dtype=np.float64) / sums**2 * 1e6 % 1
    # Air of few gray values has whole keys: it would be chosen first, and be the whole sample.
    return np.where(np.abs(keys - np.round(keys)) < _WHOLE, 1.0, keys)


def lowest_signals(signals: NDArray, protocol: Protocol) -> NDArray[np.float64]:
    """Average (n_voxels, n_measurements) at the lowest b-value and shortest echo time."""
    return mean_of_finite(np.asarray(signals[:, least_weighted(protocol)], np.float64))


def above_air(signals: NDArray, noise: float = 0.0) -> NDArray[np.bool_]:
    """
    Tell which voxels are tissue, by Otsu's threshold; all of them where none are dark as air.

    Those at the noise are air however bright it is. Shapes: `signals` (n_voxels,), without
    diffusion weighting; returns (n_voxels,).

    References: Otsu, IEEE Trans Syst Man Cybern 9:62–66, 1979.
    """
    everything = np.ones(len(signals), bool)
    finite = signals[np.isfinite(signals)]
    top = np.percentile(finite, _EXTREME) if len(finite) else 0.0
    if top <= 0:
        return everything
    # A histogram needs no copy of all voxels, of which there may be millions.
    counts, edges = np.histogram(finite, _BINS, (0.0, top))
    n_below = np.cumsum(counts)[:-1]
    n_above = counts.sum() - n_below
    sums = np.cumsum(counts * (edges[1:] + edges[:-1]) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = n_below * n_above * (sums[:-1] / n_below - (sums[-1] - sums[:-1]) / n_above) ** 2
    if not np.isfinite(between).any():
        return everything
    inside = signals >= edges[1 + int(np.nanargmax(between))]
    dark = signals[~inside & np.isfinite(signals)]
    return everything if is_dark_tissue(dark, signals[inside], noise) else inside


def is_dark_tissue(dark: NDArray, bright: NDArray, noise: float) -> bool:
    """Tell whether the dark signals of an image are too bright for air."""
    return bool(np.median(dark) > np.fmax(_AIR * np.median(bright), _OF_NOISE * noise))


def above_air_or_noise(signals: NDArray, noise: ArrayLike) -> NDArray[np.bool_]:
    """
    Tell which voxels are tissue: `above_air`, or far above the noise, as tissue beside fluid.

    Shapes: `signals` (n_voxels,), `noise` (n_voxels,) or one level, NaN or 0 where it is unknown.
    """
    levels = np.asarray(noise)
    is_bright = above_air(signals, float(np.median(levels)) if levels.size else 0.0)
    bright = signals[is_bright & np.isfinite(signals)]
    ghosts = _GHOSTS * np.median(bright) if len(bright) else np.nan
    return is_bright | ((levels > 0) & (signals >= np.maximum(_NEAR_NOISE * levels, ghosts)))


def typical_snr(lowest: NDArray, noise: float) -> float:
    """Compute the median SNR of least weighted signals (n_voxels,); infinite without tissue."""
    tissue = lowest[above_air_or_noise(lowest, noise) & np.isfinite(lowest)]
    return float(np.median(tissue) / noise) if len(tissue) and noise else np.inf


def noise_of_repeats(signals: NDArray, protocol: Protocol) -> NoiseLevel:
    """
    Compute the noise from repeats at b = 0; NaN without three, or pairs at two echo times.

    Longer echo times count where shorter ones have too few, or their own signals are far above
    the noise floor, near which they would hold less than the noise.
    """
    lowest = np.flatnonzero(protocol.b <= protocol.b.min() + _SAME_B)
    method = f"repeats at b = {span_text(protocol.b[lowest])}"
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    lowest = lowest[np.argsort(te[lowest], kind="stable")]
    groups = np.split(lowest, np.flatnonzero(np.diff(te[lowest]) > TE_MATCH) + 1)
    if len(lowest) - len(groups) < _FEWEST_SPARE or protocol.b.min() > ZERO_B:
        return NoiseLevel(np.nan, method)
    squares, degrees = np.zeros((2, len(signals)))
    for repeats in groups:
        values = signals[:, repeats]
        means = mean_of_finite(values)
        is_far = means > _NEAR_NOISE * _typical(squares, degrees)
        if degrees.max(initial=0) >= _FEWEST_SPARE and 2 * is_far.sum() <= len(signals):
            break
        squares += np.nansum((values - means[:, None]) ** 2, axis=1)
        degrees += np.fmax(np.isfinite(values).sum(axis=1) - 1, 0)
    return NoiseLevel(_typical(squares, degrees), method)


def noise_of_residuals(result: Any) -> float:
    """Compute the noise from the residuals of a fit; NaN for fewer than 30 degrees of freedom."""
    return _typical(result.cost, _spare(result))


def residual_levels(result: Any) -> NDArray[np.float64]:
    """
    Compute noise levels from the residuals of each voxel, whose median is the noise.

    Shapes: returns (n_voxels,), NaN without residuals, or where they are 0 whatever the noise.
    """
    return _levels(np.where(result.cost > 0, result.cost, np.nan), _spare(result))


def _spare(result: Any) -> NDArray[np.intp]:
    """Count the measurements of each voxel beyond the parameters fitted; 0 where all may be."""
    degrees = result.degrees_of_freedom
    # A parameter at a bound does not follow the noise: it takes nothing from the residuals.
    return np.where(degrees > 0, degrees + (result.at_low | result.at_high).sum(axis=1), 0)


def _typical(squares: NDArray, degrees: NDArray) -> float:
    """Compute the noise of the median voxel from sums of squares; NaN below 30 degrees."""
    levels = _levels(squares, degrees)
    known = np.isfinite(levels)
    return np.nan if degrees[known].sum() < _FEWEST_DEGREES else float(np.median(levels[known]))


def _levels(squares: NDArray, degrees: NDArray) -> NDArray[np.float64]:
    """Scale roots of sums of squares so that their median is the noise; NaN without degrees."""
    spare = np.where(degrees > 0, degrees, np.nan)
    # The median of chi squared after Wilson and Hilferty, within 3 % of its own.
    return np.sqrt(squares / (spare * (1 - 2 / (9 * spare)) ** 3))


def directions_vary(protocol: Protocol) -> bool:
    """Tell whether a shell has several directions, so that residuals are not noise alone."""
    weighted = np.flatnonzero(protocol.b > ZERO_B)
    if protocol.directions is None or not weighted.size:
        return False
    return len(nominal_contrasts(protocol.take(weighted))) < len(weighted)


def segmented_threshold(snr: float, n_measurements: float, protocol: Protocol) -> float | None:
    """Choose the lowest b-value of the first step of an IVIM fit by the SNR; None for one step."""
    constant, slope = _THRESHOLD_BY_SNR
    snr *= np.sqrt(n_measurements / _N_MEASUREMENTS)
    high = np.unique(protocol.b[protocol.b >= constant + slope * snr])
    return float(high[0]) if snr < _ONE_STEP_SNR and len(high) >= 2 else None


def needs_floor(result: Any, noise: NDArray | float) -> NDArray[np.bool_]:
    """
    Find the voxels of a fluid whose kurtosis the noise floor may have made.

    Their mean signal at the highest b-value and longest echo time is near the noise.

    Shapes: `noise` () or (n_voxels,); returns (n_voxels,).
    """
    if result.model.cumulant is None:
        return np.zeros(len(result), bool)
    signals, protocol = result.inputs.signals, result.inputs.protocol
    highest = protocol.b >= 0.98 * protocol.b.max()
    if protocol.te is not None:
        highest &= protocol.te == protocol.te[highest].max()
    is_near = mean_of_finite(signals[:, highest].astype(np.float64)) < _NEAR_FLOOR * noise
    return is_near & (result[result.model.cumulant[1]] > _FLUID)
