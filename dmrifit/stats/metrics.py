"""Scores of a prediction against a reference: bias, dispersion, correlation, overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import real_numbers

__all__ = [
    "RelativeErrorIndices",
    "bias_index",
    "dice",
    "dispersion_index",
    "pearson",
    "relative_error_indices",
    "spearman",
]


@dataclass(frozen=True)
class RelativeErrorIndices:
    """
    Summary of the relative errors E = (prediction − reference) / reference of a set of voxels.

    Attributes
    ----------
    bias : float
        Bias index BI, the median of E; NaN when no voxel could be used.
    dispersion : float
        Dispersion index DI, the 75th minus the 25th percentile of E.
    abs_bias : float
        The magnitude of the bias index; "lower bias" means this one, because BI is signed.
    median_abs_error : float
        MdAPE, the median of the magnitude of E.
    n : int
        Voxels used.
    n_dropped : int
        Voxels left out because E is undefined there: the reference is zero, NaN or infinite.
    n_failed : int
        Voxels left out because the prediction is NaN or infinite although the reference is usable.
    """

    bias: float
    dispersion: float
    abs_bias: float
    median_abs_error: float
    n: int
    n_dropped: int
    n_failed: int


def relative_error_indices(prediction: ArrayLike, reference: ArrayLike) -> RelativeErrorIndices:
    """
    Summarize the relative errors of a prediction, and count the voxels that have none.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """
    p, r = _pair(prediction, reference)
    defined = np.isfinite(r) & (r != 0)
    usable = defined & np.isfinite(p)
    with np.errstate(over="ignore"):
        error = (p[usable] - r[usable]) / r[usable]
    # A reference next to zero makes E overflow; such a voxel has no usable E either.
    finite = np.isfinite(error)
    error = error[finite]
    n_dropped = int(p.size - defined.sum() + (~finite).sum())
    n_failed = int(defined.sum() - usable.sum())
    if error.size == 0:
        return RelativeErrorIndices(np.nan, np.nan, np.nan, np.nan, 0, n_dropped, n_failed)
    low, median, high = np.percentile(error, [25, 50, 75])
    return RelativeErrorIndices(
        bias=float(median),
        dispersion=float(high - low),
        abs_bias=float(abs(median)),
        median_abs_error=float(np.median(np.abs(error))),
        n=int(error.size),
        n_dropped=n_dropped,
        n_failed=n_failed,
    )


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
        Signed; NaN when no voxel has a relative error. Voxels whose reference is zero or not finite,
        or whose prediction is not finite, are left out: `relative_error_indices` counts them.

    Raises
    ------
    ValueError
        If the shapes differ or have more than two axes.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """
    return _by_column(lambda p, r: relative_error_indices(p, r).bias, prediction, reference)


def dispersion_index(prediction: ArrayLike, reference: ArrayLike) -> float | NDArray[np.float64]:
    """
    Compute the dispersion index: the interquartile range of E = (prediction − reference) / reference.

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
    return _by_column(lambda p, r: relative_error_indices(p, r).dispersion, prediction, reference)


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
    p, r = _pair(prediction, reference)
    if np.isnan(p).any() or np.isnan(r).any():
        raise ValueError("dice needs masks, and one of them holds NaN; threshold the map first")
    inside_p, inside_r = p != 0, r != 0
    total = int(inside_p.sum()) + int(inside_r.sum())
    return 2.0 * int((inside_p & inside_r).sum()) / total if total else float("nan")


def _pair(
    prediction: ArrayLike, reference: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, r = real_numbers(prediction, "the prediction"), real_numbers(reference, "the reference")
    if p.shape != r.shape:
        raise ValueError(
            f"prediction and reference must have one shape, not {p.shape} and {r.shape}"
        )
    return p, r


def _by_column(
    score: Callable[[NDArray, NDArray], float], prediction: ArrayLike, reference: ArrayLike
) -> float | NDArray[np.float64]:
    p, r = _pair(prediction, reference)
    if p.ndim == 1:
        return score(p, r)
    if p.ndim == 2:
        return np.array([score(a, b) for a, b in zip(p.T, r.T, strict=True)])
    raise ValueError(
        f"scores are computed from (n_voxels,) or (n_voxels, n_columns), not from shape {p.shape}"
    )


def _correlations(
    prediction: ArrayLike, reference: ArrayLike, *, ranked: bool
) -> float | NDArray[np.float64]:
    """Correlate columns, all at once where none has a gap."""
    from scipy.stats import rankdata

    def correlate(p: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
        # One contiguous row for each column, so that it is added up as it would be alone.
        p, r = np.ascontiguousarray(p.T), np.ascontiguousarray(r.T)
        if ranked:
            p, r = rankdata(p, axis=1), rankdata(r, axis=1)
        # A side without deviations is NaN; beyond ±1 there are only rounding errors.
        return np.clip((_unit_deviations(p) * _unit_deviations(r)).sum(axis=1), -1.0, 1.0)

    def without_gaps(p: NDArray[np.float64], r: NDArray[np.float64]) -> float:
        usable = np.isfinite(p) & np.isfinite(r)
        return (
            float(correlate(p[usable, None], r[usable, None])[0])
            if usable.sum() > 1
            else float("nan")
        )

    p, r = _pair(prediction, reference)
    if p.ndim == 2 and len(p) > 1 and np.isfinite(p).all() and np.isfinite(r).all():
        return correlate(p, r)
    return _by_column(without_gaps, p, r)


def _unit_deviations(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the mean, of length 1 in every row; NaN where all values are equal."""
    deviations = values - values.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviations = deviations / np.abs(deviations).max(
            axis=1, keepdims=True
        )  # so that no square is lost
        deviations = deviations / np.sqrt((deviations * deviations).sum(axis=1, keepdims=True))
    return np.where((values == values[:, :1]).all(axis=1, keepdims=True), np.nan, deviations)
