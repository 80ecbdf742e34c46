"""Free-response and precision–recall curves over thresholds and settings, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from dmrifit._utils.checks import check_words
from dmrifit.stats.lesion_matching import Matching, ratio
from dmrifit.stats.patient_summary import patient_draws, share_interval
from metastasis.segmentation.operating_points import COUNTS

#: False positives per scan at which the FROC curve is read.
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FROC_COLUMNS = (
    *("method", "rate", "threshold", "sensitivity", "strict_sensitivity"),
    *("sensitivity_low", "sensitivity_high", "strict_sensitivity_low", "strict_sensitivity_high"),
)

_PLAIN = ("sensitivity", "precision")
_STRICT = ("strict_sensitivity", "strict_precision")


def precision_recall_area(
    sensitivity: ArrayLike, precision: ArrayLike, *, between: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Compute the area under the best points of precision over sensitivity, 0 beyond them."""
    low, high = between
    # A reader would choose the best of the settings that were tried, so worse ones do not count.
    x, y = _front(np.asarray(sensitivity, np.float64), np.asarray(precision, np.float64))
    if not len(x):
        return float("nan")
    knots = np.unique(np.clip([low, *x, high], low, high))
    # Beyond the largest sensitivity nothing was measured, so the curve gains nothing there.
    knots = knots[knots <= max(x[-1], low)]
    return float(np.trapezoid(np.interp(knots, x, y), knots) / (high - low))


def precision_at_sensitivity(curve: pd.DataFrame, sensitivity: float) -> dict[str, float]:
    """Interpolate a curve linearly at a sensitivity; NaN where no threshold reaches it."""
    columns = list(curve.select_dtypes("number").columns)
    # A sensitivity that was read from the curve itself counts as reached.
    sensitive = curve[curve["sensitivity"] >= sensitivity - 1e-12]
    if not len(sensitive):
        return dict.fromkeys(columns, float("nan"))
    row = sensitive.loc[sensitive["threshold"].idxmax(), columns]
    higher = curve[curve["threshold"] > row["threshold"]].dropna(subset=["precision"])
    if len(higher):
        # The row alone finds more than was asked for, so its precision is too low.
        neighbor = higher.loc[higher["threshold"].idxmin(), columns]
        excess = row["sensitivity"] - sensitivity
        weight = excess / (row["sensitivity"] - neighbor["sensitivity"])
        row = row + np.clip(weight, 0, 1) * (neighbor - row)
    return {str(key): float(value) for key, value in row.items()}


def froc_table(
    scans: Sequence[pd.DataFrame],
    patients: Sequence[str],
    *,
    n_bootstrap: int,
    seed: Any,
    rates: Sequence[float] = FROC_RATES,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """
    Read the curve of all scans at rates of false positives per scan, with intervals over patients.

    ``threshold`` is the one with the best strict sensitivity; NaN where none reaches the rate, and
    where there are no lesions. ``…_low`` and ``…_high`` are a `share_interval` over samples of
    patients, whose scans are drawn together: each sample has its own thresholds, and a sensitivity
    of 0 where none reaches the rate. The score is the mean strict sensitivity over rates (Setio et
    al., Med Image Anal 42:1–13, 2017), with its interval: ``froc``, ``froc_low``, ``froc_high``.

    `scans` are the curves of single scans, `patients` (n_scans,) whose they are.
    """
    names, numbers = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    draws = patient_draws(len(names), n_bootstrap, seed)[:, numbers]
    counts = np.stack([scan[list(COUNTS)].to_numpy(np.float64) for scan in scans])
    # Thresholds are the last axis, after samples and rates.
    sums = np.moveaxis(np.tensordot(draws, counts, 1), -1, 0)
    n_lesions, n_found, n_distinct, n_wrong, n_flagged = sums
    n_scans = draws.sum(axis=1, keepdims=True)
    # A component that is too large to find anything is no free one.
    wrong = n_wrong / n_scans + n_flagged / n_scans
    is_allowed = wrong[:, None] <= np.asarray(rates)[:, None]
    best = np.where(is_allowed, n_distinct[:, None], -1).argmax(axis=2)
    is_reached = is_allowed.any(axis=2)
    table = pd.DataFrame({"rate": rates})
    table["threshold"] = scans[0]["threshold"].to_numpy()[best[0]]
    for name, n_hits in (("sensitivity", n_found), ("strict_sensitivity", n_distinct)):
        reading = np.take_along_axis(ratio(n_hits, n_lesions), best, axis=1) * is_reached
        table[name] = reading[0]
        ends = np.array([share_interval(one, n_lesions[0, 0], len(names)) for one in reading.T])
        table[f"{name}_low"], table[f"{name}_high"] = ends.T
    scores = reading.mean(axis=1)
    low, high = share_interval(scores, n_lesions[0, 0], len(names))
    table.loc[~is_reached[0] | np.isnan(reading[0]), table.columns[1:]] = np.nan
    return table, {"froc": float(np.nan_to_num(scores[0])), "froc_low": low, "froc_high": high}


def calibration_curve(
    labels: Sequence[NDArray[Any]],
    probabilities: Sequence[NDArray[Any]],
    *,
    masks: Sequence[ArrayLike | None],
    n_bins: int = 10,
    threshold: float = 0.5,
    min_voxels: int = 1,
) -> pd.DataFrame:
    """
    Compare probabilities (x, y, z) with how often they come true (Guo et al., ICML 2017).

    ``error`` is the expected calibration error of a level: of voxels, or of components.
    """
    # By level: numbers, probabilities, and how many came true, in each bin.
    sums = {level: np.zeros((3, n_bins)) for level in ("voxel", "component")}
    for label, probability, mask in zip(labels, probabilities, masks, strict=True):
        inside = np.ones(label.shape, bool) if mask is None else np.asarray(mask) > 0
        sums["voxel"] += _binned(probability[inside], label[inside] > 0, n_bins)
        matching = Matching.of(label, probability >= threshold, min_voxels=min_voxels)
        numbers = np.arange(1, len(matching.component_voxels) + 1)
        if len(numbers):
            means = np.asarray(ndimage.mean(probability, matching.prediction, numbers))
            sums["component"] += _binned(means, ~matching.false_positive, n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    tables = []
    for level, (n, total, true) in sums.items():
        columns = {"level": level, "low": edges[:-1], "high": edges[1:], "n": n.astype(np.intp)}
        columns |= {"probability": ratio(total, n), "observed": ratio(true, n)}
        table = pd.DataFrame(columns)
        difference = (table["probability"] - table["observed"]).abs()
        error = float((n * difference).sum() / n.sum()) if n.any() else np.nan
        tables.append(table.assign(error=error))
    return pd.concat(tables, ignore_index=True)


def _binned(
    probability: NDArray[Any], is_true: NDArray[np.bool_], n_bins: int
) -> NDArray[np.float64]:
    """Sum numbers, probabilities and what came true in bins; shape (3, n_bins)."""
    # A probability of 1 belongs to the last bin.
    bins = np.minimum((probability * n_bins).astype(np.intp), n_bins - 1)
    return np.stack([np.bincount(bins, weight, n_bins) for weight in (None, probability, is_true)])


def family_table(summary: pd.DataFrame, families: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Trace curves over settings: one point for each model of a family."""
    by_method = summary.set_index("method")[[*_PLAIN, *_STRICT, "false_positives_per_scan"]]
    points = []
    for family, methods in families.items():
        check_words(f"the methods of family {family!r}", methods, by_method.index)
        points += [(family, order, method) for order, method in enumerate(methods)]
    return pd.DataFrame(points, columns=["family", "order", "method"]).join(by_method, on="method")


def area_table(curves: Mapping[str, pd.DataFrame], kind: str) -> pd.DataFrame:
    """Compute areas of curves, each whole and over the sensitivities that all have."""
    fronts, rows = [], []
    for name, curve in curves.items():
        sensitivity, precision = _front(*(curve[key].to_numpy(np.float64) for key in _STRICT))
        fronts.append((sensitivity, precision))
        limits = sensitivity.min(initial=np.inf), sensitivity.max(initial=-np.inf)
        area = precision_recall_area(sensitivity, precision)
        plain = precision_recall_area(*(curve[key] for key in _PLAIN))
        rows.append((name, kind, len(curve), *limits, area, np.nan, plain))
    columns = ["name", "kind", "n_points", "low", "high", "area", "area_common", "area_plain"]
    table = pd.DataFrame(rows, columns=columns)
    # Areas over different ranges of sensitivity cannot be compared.
    low, high = table["low"].max(), table["high"].min()
    if low < high:
        areas = [precision_recall_area(*front, between=(low, high)) for front in fronts]
        table["area_common"] = areas
    return table


def _front(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the points of a curve that no other surpasses, by ascending sensitivity."""
    usable = ~np.isnan(x + y)
    # From the most sensitive point on; of equal ones, the more precise comes first.
    order = np.lexsort((y[usable], x[usable]))[::-1]
    x = x[usable][order]
    y = y[usable][order]
    is_better = y > np.append(-np.inf, np.maximum.accumulate(y))[:-1]
    return x[is_better][::-1], y[is_better][::-1]
