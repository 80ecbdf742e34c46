"""Free-response and precision–recall curves over thresholds and settings, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.stats.lesion_matching import match_components
from metastasis.segmentation.operating_points import paired_volumes

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FROC_RATES",
    "area_table",
    "calibration_curve",
    "family_table",
    "froc_score",
    "precision_at_sensitivity",
    "precision_recall_area",
]

#: False positives per scan at which the FROC curve is read.
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

_PLAIN = ("sensitivity", "precision")
_STRICT = ("strict_sensitivity", "strict_precision")


def precision_recall_area(
    sensitivity: ArrayLike, precision: ArrayLike, *, between: tuple[float, float] = (0.0, 1.0)
) -> float:
    """
    Compute the area under a curve of precision over sensitivity.

    A point counts unless another has at least its sensitivity and its precision; those that count
    are joined by straight lines. Below the smallest sensitivity the precision there is kept, above
    the largest it is 0, so that a curve gains nothing where it was not measured.
    """
    x, y = np.asarray(sensitivity, dtype=np.float64), np.asarray(precision, dtype=np.float64)
    low, high = between
    if x.ndim != 1 or x.shape != y.shape or not 0 <= low < high <= 1:
        raise ValueError(
            f"sensitivity {x.shape} and precision {y.shape} need one shape (n,), and a range "
            f"within 0 to 1: {between}"
        )
    x, y = _front(x, y)
    if not len(x):
        return float("nan")
    knots = np.unique(np.clip([low, *x, high], low, high))
    knots = knots[knots <= max(x[-1], low)]
    heights = np.interp(knots, x, y) if x[-1] >= low else np.zeros(len(knots))
    return float(np.trapezoid(heights, knots) / (high - low))


def precision_at_sensitivity(curve: pd.DataFrame, sensitivity: float) -> dict[str, float]:
    """
    Read a curve where it has a sensitivity.

    Between two thresholds figures change in a straight line with sensitivity. (At the next
    threshold that finds more, precision is lower than it has to be, the more so the fewer
    thresholds there are.)
    """
    columns = list(curve.select_dtypes("number").columns)
    enough = curve[curve["sensitivity"] >= sensitivity - 1e-12]
    if not len(enough):
        return dict.fromkeys(columns, float("nan"))
    row = enough.loc[enough["threshold"].idxmax(), columns]
    fewer = curve[curve["threshold"] > row["threshold"]].dropna(subset=["precision"])
    if len(fewer):
        after = fewer.loc[fewer["threshold"].idxmin(), columns]
        share = (row["sensitivity"] - sensitivity) / (row["sensitivity"] - after["sensitivity"])
        row = row + np.clip(share, 0, 1) * (after - row)
    return {str(key): float(value) for key, value in row.items()}


def froc_score(curve: pd.DataFrame, *, rates: Sequence[float] = FROC_RATES) -> float:
    """
    Compute the mean sensitivity at chosen numbers of false positives per scan.

    References
    ----------
    Setio et al., Med Image Anal 42:1–13, 2017 (the rates).
    """
    wrong = curve["false_positives_per_scan"] + curve["flagged_per_scan"]
    best = [curve.loc[wrong <= rate, "strict_sensitivity"].max() for rate in rates]
    return float(np.nan_to_num(best).mean())


def calibration_curve(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    masks: Sequence[ArrayLike | None] | None = None,
    n_bins: int = 10,
    threshold: float = 0.5,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> pd.DataFrame:
    """
    Compare predicted probabilities with how often they come true.

    Shapes: `labels` (x, y, z), `probabilities` (x, y, z), `masks` (x, y, z).

    References
    ----------
    Guo et al., ICML 2017 (expected calibration error).
    """
    import pandas as pd
    from scipy import ndimage

    if n_bins < 1:
        raise ValueError(f"n_bins must be 1 or more, not {n_bins}")
    pairs = paired_volumes(labels, probabilities)
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    sums = {level: np.zeros((3, n_bins)) for level in ("voxel", "component")}
    for i, (label, probability) in enumerate(pairs):
        chosen = None if masks is None else masks[i]
        inside = np.ones(label.shape, bool) if chosen is None else np.asarray(chosen) > 0
        _add(sums["voxel"], probability[inside], label[inside] > 0)
        found = match_components(label, probability >= threshold, **options)
        numbers = np.arange(1, len(found.component_voxels) + 1)
        means = (
            ndimage.mean(probability, found.prediction, numbers) if len(numbers) else np.empty(0)
        )
        _add(sums["component"], np.asarray(means), ~found.false_positive)
    edges = np.linspace(0, 1, n_bins + 1)
    tables, errors = [], {}
    for level, (n, total, true) in sums.items():
        mean, observed = (
            np.divide(part, n, out=np.full(n_bins, np.nan), where=n > 0) for part in (total, true)
        )
        errors[level] = (
            float(np.nansum(n * np.abs(mean - observed)) / n.sum()) if n.any() else float("nan")
        )
        columns = {"low": edges[:-1], "high": edges[1:], "n": n.astype(np.intp)}
        tables.append(
            pd.DataFrame({"level": level, **columns, "probability": mean, "observed": observed})
        )
    table = pd.concat(tables, ignore_index=True)
    table.attrs["error"] = errors
    return table


def family_table(summary: pd.DataFrame, families: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Trace curves over settings: one point for each model of a family."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    keys = (*_PLAIN, *_STRICT, "false_positives_per_scan")
    by_method = summary.set_index("method")
    for family, methods in families.items():
        for order, method in enumerate(methods):
            if method not in by_method.index:
                raise ValueError(
                    f"family {family!r} names {method!r}, which is not among "
                    f"{list(by_method.index)}"
                )
            values = {key: float(by_method.loc[method, key]) for key in keys}
            rows.append({"family": family, "order": order, "method": method, **values})
    return pd.DataFrame(rows, columns=["family", "order", "method", *keys])


def area_table(curves: Mapping[str, pd.DataFrame], kind: str) -> pd.DataFrame:
    """Compute areas of curves, each whole and over the sensitivities that all have."""
    import pandas as pd

    columns = ["name", "kind", "n_points", "low", "high", "area", "area_common", "area_plain"]
    fronts = {
        name: _front(*(curve[key].to_numpy(np.float64) for key in _STRICT))
        for name, curve in curves.items()
    }
    rows = []
    for name, curve in curves.items():
        x = fronts[name][0]
        row = {"name": name, "kind": kind, "n_points": len(curve), "area_common": np.nan}
        row |= {"low": x.min(initial=np.inf), "high": x.max(initial=-np.inf)}
        row |= {"area": precision_recall_area(*fronts[name])}
        rows.append(row | {"area_plain": precision_recall_area(*(curve[key] for key in _PLAIN))})
    table = pd.DataFrame(rows, columns=columns)
    low, high = table["low"].max(), table["high"].min()
    if low < high:
        table["area_common"] = [
            precision_recall_area(*front, between=(low, high)) for front in fronts.values()
        ]
    return table


def _front(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the points of a curve that no other surpasses, by ascending sensitivity."""
    usable = ~np.isnan(x + y)
    if not usable.any():
        return x[:0], y[:0]
    order = np.lexsort((y[usable], x[usable]))[
        ::-1
    ]  # from the most sensitive on, the more precise first
    x, y = x[usable][order], y[usable][order]
    better = np.concatenate([[True], y[1:] > np.maximum.accumulate(y)[:-1]])
    return x[better][::-1], y[better][::-1]


def _add(sums: NDArray[np.float64], probability: NDArray[Any], true: NDArray[np.bool_]) -> None:
    n_bins = sums.shape[1]
    where = np.minimum((probability * n_bins).astype(np.intp), n_bins - 1)
    for row, weights in zip(sums, (None, probability, true), strict=True):
        row += np.bincount(where, weights, n_bins)
