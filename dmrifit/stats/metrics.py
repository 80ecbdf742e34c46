"""Scores of a prediction against a reference: bias, dispersion, correlation, overlap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import real_numbers

__all__ = ["bias_index", "dispersion_index"]


def relative_error_counts(
    prediction: NDArray[np.float64], reference: NDArray[np.float64]
) -> tuple[int, int, int]:
    """Count voxels with a relative error, without a usable reference, and without a prediction."""
    n = int(np.isfinite(_errors(prediction, reference)).sum())
    is_defined = np.isfinite(reference) & (reference != 0)
    n_failed = int(np.count_nonzero(is_defined & ~np.isfinite(prediction)))
    return n, prediction.size - n - n_failed, n_failed


def bias_index(prediction: ArrayLike, reference: ArrayLike) -> float | NDArray[np.float64]:
    """
    Compute the bias index: the median of E = (prediction − reference) / reference.

    Parameters
    ----------
    prediction, reference : array_like of shape (n_voxels,) or (n_voxels, n_columns)
        Voxels of one patient; columns are scored each for itself.

    Returns
    -------
    float or ndarray of shape (n_columns,)
        Signed; NaN when no voxel has a relative error. Voxels whose reference is zero or not
        finite, or whose prediction is not finite, are left out: `relative_error_counts` counts
        them.

    Raises
    ------
    ValueError
        If the shapes differ or have more than two axes.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """
    return _over_voxels(np.nanquantile, _errors(prediction, reference), q=0.5)


def dispersion_index(prediction: ArrayLike, reference: ArrayLike) -> float | NDArray[np.float64]:
    """
    Compute the dispersion index: the interquartile range of E.

    E = (prediction − reference) / reference.

    Parameters
    ----------
    prediction, reference : array_like of shape (n_voxels,) or (n_voxels, n_columns)
        Voxels of one patient; columns are scored each for itself.

    Returns
    -------
    float or ndarray of shape (n_columns,)
        P75(E) − P25(E); NaN when no voxel has a relative error. Voxels are left out as in
        `bias_index`.

    Raises
    ------
    ValueError
        If the shapes differ or have more than two axes.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """
    low, high = _over_voxels(np.nanquantile, _errors(prediction, reference), q=[0.25, 0.75])
    return high - low


def median_absolute_error(
    prediction: ArrayLike, reference: ArrayLike
) -> float | NDArray[np.float64]:
    """Compute MdAPE, the median of |E|; voxels are left out as in `bias_index`."""
    return _over_voxels(np.nanmedian, np.abs(_errors(prediction, reference)))


def best_constants(values: NDArray[np.float64], *, relative: bool) -> NDArray[np.float64]:
    """
    Find the constant prediction of each column with the least mean error on these values.

    The mean of |c − y| is least at the median, that of |c − y| / |y| at the median weighted by
    1 / |y|, which leaves out values of 0.

    Shapes: `values` (n_voxels, n_columns); returns (n_columns,), NaN without any usable value.
    """
    constants = np.full(values.shape[1], np.nan)
    for j, column in enumerate(values.T):
        usable = np.isfinite(column)
        if relative:
            usable &= column != 0
        numbers = column[usable]
        if not len(numbers):
            continue
        # Relative to the smallest, whose own inverse could overflow.
        weights = np.abs(numbers).min() / np.abs(numbers) if relative else np.ones(len(numbers))
        # A weighted median minimizes the weighted sum of absolute deviations.
        constants[j] = np.quantile(numbers, 0.5, method="inverted_cdf", weights=weights)
    return constants


def skill_scores(
    prediction: NDArray[np.float64],
    reference: NDArray[np.float64],
    constant: NDArray[np.float64] | float,
    *,
    relative: bool,
) -> tuple[float, float, float, int]:
    """
    Compute 1 − Σ error / Σ error of a constant over voxels, the two mean errors, and the count.

    Relative errors leave out voxels whose reference is 0; both errors are of the same voxels.
    """
    usable = np.isfinite(prediction) & np.isfinite(reference) & np.isfinite(constant)
    if relative:
        usable &= reference != 0
    p, r = prediction[usable], reference[usable]
    c = np.broadcast_to(constant, reference.shape)[usable]
    if not r.size:
        return float("nan"), float("nan"), float("nan"), 0
    size = np.abs(r) if relative else np.ones(len(r))
    with np.errstate(over="ignore"):
        error = float(np.mean(np.abs(p - r) / size))
        constant_error = float(np.mean(np.abs(c - r) / size))
    skill = 1 - error / constant_error if 0 < constant_error < np.inf else float("nan")
    return skill, error, constant_error, len(r)


def pearson(prediction: ArrayLike, reference: ArrayLike) -> float | NDArray[np.float64]:
    """Compute Pearson's correlation over voxels."""
    return _correlations(prediction, reference, ranked=False)


def spearman(prediction: ArrayLike, reference: ArrayLike) -> float | NDArray[np.float64]:
    """Compute Spearman's rank correlation over voxels."""
    return _correlations(prediction, reference, ranked=True)


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """
    Compute the Dice overlap of two binary masks.

    References
    ----------
    Dice, Ecology 26(3):297–302, 1945.
    """
    p, r = _columns(prediction, reference, axes=())
    if np.isnan(p).any() or np.isnan(r).any():
        raise ValueError("dice needs masks, and one of them holds NaN; threshold the map first")
    inside_p, inside_r = p != 0, r != 0
    total = int(inside_p.sum()) + int(inside_r.sum())
    return 2.0 * int((inside_p & inside_r).sum()) / total if total else float("nan")


@dataclass(frozen=True)
class MapMetric:
    """A score of predicted maps, and how summaries, tests and reports of a study treat it."""

    name: str  # column of the scores; with the suffix "_truth", the same against the truth
    label: str  # symbol in the report
    # From prediction and reference of shape (n_voxels, n_columns) to (n_columns,) numbers.
    score: Callable[..., Any]
    unit: Literal["%", ""] = "%"  # "%" for fractions that the report writes in percent
    # Where it is nearer zero, patients are averaged by magnitude.
    better: Literal["lower", "higher", "nearer zero"] = "lower"
    signed: bool = False  # values may be negative, so that no test can take their logarithm
    digits: int = 1  # decimals in the report; of a percentage from 10 on, one less
    undefined: float = float("nan")  # enters means over patients where there is no score
    in_summary: bool = True  # the summary holds its mean over patients
    with_sd: bool = False  # and their standard deviation
    tested: bool = False  # the report tests algorithms by it

    @property
    def column(self) -> str:
        """Column of what is averaged over patients: the score or its magnitude."""
        return f"abs_{self.name}" if self.better == "nearer zero" else self.name

    @property
    def heading(self) -> str:
        """Symbol and unit, for the head of a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


# A constant prediction has no correlation; it counts as none, not as missing.
_Correlation = partial(MapMetric, unit="", better="higher", signed=True, digits=2, undefined=0.0)

#: The scores of a comparison by name, in the order of their columns.
METRICS = {
    metric.name: metric
    for metric in (
        MapMetric(
            "bias",
            "|BI|",
            bias_index,
            better="nearer zero",
            signed=True,
            with_sd=True,
            tested=True,
        ),
        MapMetric("dispersion", "DI", dispersion_index, with_sd=True, tested=True),
        MapMetric("median_abs_error", "MdAPE", median_absolute_error, in_summary=False),
        _Correlation("pearson", "r", pearson),
        _Correlation("spearman", "ρ", spearman, in_summary=False),
    )
}

# Its columns are not computed by column: they need the error of a constant.
_SKILL = MapMetric("skill", "skill", skill_scores, unit="", better="higher", signed=True)

#: S0 scales with the scanner's gain: it is no property of the tissue.
NO_TISSUE = ("S0",)
#: The reference of T2v mostly sits at a bound, so no mean over parameters includes it.
AT_BOUND = "T2v"
#: The metric that tests between algorithms use by default, and that a report tests first.
RANKING_METRIC = "dispersion"


def metric_of(column: str) -> MapMetric | None:
    """Find the metric of a column of the scores, whatever they compare with; None if unknown."""
    name = column.removesuffix("_truth").removesuffix("_independent")
    return METRICS.get(name, _SKILL if name.endswith("skill") else None)


def _errors(prediction: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Give E; NaN where it is not finite: a value is missing, or the reference is (almost) 0."""
    p, r = _columns(prediction, reference)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        errors = (p - r) / r
    return np.where(np.isfinite(errors), errors, np.nan)


def _over_voxels(statistic: Callable[..., Any], errors: NDArray[np.float64], **q: Any) -> Any:
    """Compute a statistic of each column; NaN of a column without any error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return statistic(errors, axis=0, **q)


def _columns(
    prediction: ArrayLike, reference: ArrayLike, axes: Sequence[int] = (1, 2)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give arrays of one shape that has one of these numbers of axes, or any."""
    p, r = real_numbers(prediction, "the prediction"), real_numbers(reference, "the reference")
    if p.shape != r.shape:
        raise ValueError(
            f"prediction and reference must have one shape, not {p.shape} and {r.shape}"
        )
    if axes and p.ndim not in axes:
        raise ValueError(
            "scores are computed from (n_voxels,) or (n_voxels, n_columns), not from shape "
            f"{p.shape}"
        )
    return p, r


def _correlations(
    prediction: ArrayLike, reference: ArrayLike, *, ranked: bool
) -> float | NDArray[np.float64]:
    """Correlate columns over the voxels in which both are finite; NaN of a constant."""
    from scipy.stats import rankdata

    # One contiguous row for each column, so that it is added up as it would be alone.
    pair = np.array([values.T for values in _columns(prediction, reference)])
    pair[:, ~np.isfinite(pair).all(axis=0)] = np.nan
    if ranked:
        pair = rankdata(pair, axis=-1, nan_policy="omit")
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # Columns without a finite value.
        warnings.simplefilter("ignore", RuntimeWarning)
        largest = np.nanmax(pair, axis=-1, initial=-np.inf)
        is_varied = (largest > np.nanmin(pair, axis=-1, initial=np.inf)).all(axis=0)
        deviations = pair - np.nanmean(pair, axis=-1, keepdims=True)
        # Squares of tiny deviations would underflow.
        deviations /= np.nanmax(np.abs(deviations), axis=-1, keepdims=True, initial=0)
        deviations /= np.sqrt(np.nansum(deviations**2, axis=-1, keepdims=True))
    correlation = np.clip(np.nansum(deviations.prod(axis=0), axis=-1), -1.0, 1.0)
    return np.where(is_varied, correlation, np.nan)[()]
