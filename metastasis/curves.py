"""Sensitivity against false positives: over thresholds and over settings, the threshold to use, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.lesions import label_components, match_components, match_to_lesions

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FROC_RATES",
    "THRESHOLDS",
    "OperatingPoint",
    "area_table",
    "calibration_curve",
    "family_table",
    "froc_score",
    "operating_point",
    "precision_at_sensitivity",
    "precision_recall_area",
    "threshold_curve",
]

#: Thresholds of a curve.
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
#: False positives per scan at which the FROC curve is read.
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

_PLAIN = ("sensitivity", "precision")
_STRICT = ("strict_sensitivity", "strict_precision")
_LOGITS = np.linspace(-7, 7, 57)


def threshold_curve(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    thresholds: ArrayLike = THRESHOLDS,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> pd.DataFrame:
    """
    Trace sensitivity, precision and false positives over thresholds.

    Parameters
    ----------
    labels : sequence of array_like of shape (x, y, z)
        1 in lesions and 0 elsewhere, for each scan.
    probabilities : sequence of array_like of shape (x, y, z)
        Predicted, 0 to 1; voxels that reach a threshold are lesions.
    thresholds : array_like of shape (n,), default=THRESHOLDS
        Between 0 and 1.
    connectivity : {26, 18, 6}, default=26
        As for `lesion_table`.
    min_overlap : int, default=1
        As for `lesion_table`.
    min_voxels : int, default=1
        As for `lesion_table`.

    Returns
    -------
    DataFrame
        A row for each threshold, ascending: ``threshold``, ``n_lesions``, ``n_found``, ``n_distinct``,
        ``n_false_positives``, ``n_flagged``, ``sensitivity``, ``precision``, ``false_positives_per_scan``,
        ``flagged_per_scan``, ``strict_sensitivity``, ``strict_precision`` as in `lesion_scores`. At low thresholds
        components grow together: plain figures then become better without being so, strict ones do not.

    Raises
    ------
    ValueError
        If there is no scan, numbers or shapes differ, or a probability is not between 0 and 1.
    """
    import pandas as pd

    pairs = _pairs(labels, probabilities)
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    steps = np.unique(np.asarray(thresholds, dtype=np.float64))
    if steps.ndim != 1 or not len(steps) or not ((steps >= 0) & (steps <= 1)).all():
        msg = f"thresholds must lie between 0 and 1, not {np.asarray(thresholds).tolist()}"
        raise ValueError(msg)
    keys = ("n_lesions", "n_found", "n_distinct", "n_false_positives", "n_flagged")
    counts = np.zeros((len(steps), len(keys)))
    for label, probability in pairs:
        lesions = label_components(label, connectivity=connectivity)
        for row, step in zip(counts, steps.tolist(), strict=True):
            found = match_to_lesions(lesions, probability >= step, **options)
            row += [
                *(len(found.lesion_voxels), found.found.sum(), found.distinct.sum()),
                *(found.false_positive.sum(), found.flagged.sum()),
            ]
    table = pd.DataFrame(counts.astype(np.intp), columns=list(keys))
    table.insert(0, "threshold", steps)
    with np.errstate(invalid="ignore"):
        n, hits, distinct, wrong, flagged = counts.T
        table["sensitivity"], table["precision"] = hits / n, hits / (hits + wrong)
        table["false_positives_per_scan"] = wrong / len(pairs)
        table["flagged_per_scan"] = flagged / len(pairs)
        table["strict_sensitivity"] = distinct / n
        table["strict_precision"] = distinct / (distinct + wrong + flagged)
    return table


def precision_recall_area(
    sensitivity: ArrayLike, precision: ArrayLike, *, between: tuple[float, float] = (0.0, 1.0)
) -> float:
    """
    Compute the area under a curve of precision over sensitivity.

    A point counts unless another has at least its sensitivity and its precision; those that count are joined by
    straight lines. Below the smallest sensitivity the precision there is kept, above the largest it is 0, so that a
    curve gains nothing where it was not measured.

    Parameters
    ----------
    sensitivity : array_like of shape (n,)
        In any order; points where either is NaN are left out.
    precision : array_like of shape (n,)
        Of the same points.
    between : tuple of float, default=(0, 1)
        Range of sensitivities; the area is divided by its width. Curves that cover different ranges are best compared
        over the one that they share.

    Returns
    -------
    float
        Mean precision over the range, 0 to 1; NaN without points.

    Raises
    ------
    ValueError
        If shapes differ or the range is none.
    """
    x, y = np.asarray(sensitivity, dtype=np.float64), np.asarray(precision, dtype=np.float64)
    low, high = between
    if x.ndim != 1 or x.shape != y.shape or not 0 <= low < high <= 1:
        msg = f"sensitivity {x.shape} and precision {y.shape} need one shape (n,), and a range within 0 to 1: {between}"
        raise ValueError(msg)
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

    Between two thresholds figures change in a straight line with sensitivity. (At the next threshold that finds more,
    precision is lower than it has to be, the more so the fewer thresholds there are.)

    Parameters
    ----------
    curve : DataFrame
        What `threshold_curve` gave.
    sensitivity : float
        What is wanted. Below that of the highest threshold, figures are those of the highest threshold.

    Returns
    -------
    dict of str to float
        Under the names of the columns; NaN if no threshold finds as many.
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

    Parameters
    ----------
    curve : DataFrame
        What `threshold_curve` gave.
    rates : sequence of float, default=FROC_RATES
        False positives per scan, flagged components among them, that may not be exceeded.

    Returns
    -------
    float
        The mean over rates of the highest strict sensitivity within the rate (0 where there is none).

    References
    ----------
    Setio et al., Med Image Anal 42:1–13, 2017 (the rates).
    """
    wrong = curve["false_positives_per_scan"] + curve["flagged_per_scan"]
    best = [curve.loc[wrong <= rate, "strict_sensitivity"].max() for rate in rates]
    return float(np.nan_to_num(best).mean())


@dataclass(frozen=True)
class OperatingPoint:
    """
    A threshold, and what it gave on the cases that it was chosen on.

    Attributes
    ----------
    threshold : float
        Voxels that reach it are lesions.
    false_positives : float
        Per scan.
    sensitivity, precision : float
        Of lesions; NaN without lesions, or without any prediction.
    wanted : float
        The false positives per scan that were allowed.
    n_scans, n_lesions : int
        What it was chosen on.
    """

    threshold: float
    false_positives: float
    sensitivity: float
    precision: float
    wanted: float
    n_scans: int
    n_lesions: int


def operating_point(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    false_positives: float,
    thresholds: ArrayLike | None = None,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> OperatingPoint:
    """
    Choose the threshold that gives a number of false positives per scan.

    Parameters
    ----------
    labels : sequence of array_like of shape (x, y, z)
        1 in lesions and 0 elsewhere, of validation cases: neither of patients who were learned from nor of those to
        be predicted.
    probabilities : sequence of array_like of shape (x, y, z)
        Predicted, 0 to 1.
    false_positives : float
        How many per scan are allowed.
    thresholds : array_like of shape (n,), optional
        Those to choose from; by default 57, evenly spaced in logits from −7 to 7 (.0009 to .9991).
    connectivity : {26, 18, 6}, default=26
        As for `lesion_table`.
    min_overlap : int, default=1
        As for `lesion_table`.
    min_voxels : int, default=1
        As for `lesion_table`.

    Returns
    -------
    OperatingPoint
        The lowest threshold from which on all higher ones, too, have no more false positives. Components that are
        flagged count among them: at low thresholds all grows together to a few.

    Raises
    ------
    ValueError
        If the number is negative, no threshold gives as few, or as for `threshold_curve`.
    """
    if not false_positives >= 0:
        msg = f"false positives per scan must be 0 or more, not {false_positives!r}"
        raise ValueError(msg)
    steps = 1 / (1 + np.exp(-_LOGITS)) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    curve = threshold_curve(labels, probabilities, thresholds=steps, **options)
    n_scans = len(labels)
    wrong = (curve["false_positives_per_scan"] + curve["flagged_per_scan"]).to_numpy()
    highest_above = np.maximum.accumulate(wrong[::-1])[::-1]
    if not highest_above[-1] <= false_positives:
        highest = curve["threshold"].iloc[-1]
        msg = f"{wrong[-1]:g} false positives per scan at the threshold {highest:g}, not {false_positives:g} or fewer"
        raise ValueError(msg)
    row = curve.iloc[int(np.argmax(highest_above <= false_positives))]
    return OperatingPoint(
        threshold=float(row["threshold"]),
        false_positives=float(row["false_positives_per_scan"]),
        sensitivity=float(row["sensitivity"]),
        precision=float(row["precision"]),
        wanted=float(false_positives),
        n_scans=n_scans,
        n_lesions=int(row["n_lesions"]),
    )


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

    Parameters
    ----------
    labels : sequence of array_like of shape (x, y, z)
        1 in lesions and 0 elsewhere.
    probabilities : sequence of array_like of shape (x, y, z)
        Predicted, 0 to 1.
    masks : sequence of array_like of shape (x, y, z) or None, optional
        Voxels to count in each scan, such as the brain; None and by default all.
    n_bins : int, default=10
        Bins of the same width from 0 to 1.
    threshold : float, default=0.5
        Components are of voxels that reach it.
    connectivity : {26, 18, 6}, default=26
        Of components.
    min_overlap : int, default=1
        Voxels of a lesion that a component must cover to be true.
    min_voxels : int, default=1
        As for `lesion_table`.

    Returns
    -------
    DataFrame
        A row for each level and bin: ``level`` (``"voxel"``, or ``"component"``: its mean probability against whether
        it matches a lesion), ``low`` and ``high`` (of the bin; the upper end belongs to the next), ``n``,
        ``probability`` (mean) and ``observed`` (share that is true); NaN where n is 0. ``attrs["error"]`` holds the
        expected calibration error of each level: the mean of their absolute difference, weighted by n.

    Raises
    ------
    ValueError
        As for `threshold_curve`, or if there is no bin.

    References
    ----------
    Guo et al., ICML 2017 (expected calibration error).
    """
    import pandas as pd
    from scipy import ndimage

    if n_bins < 1:
        msg = f"n_bins must be 1 or more, not {n_bins}"
        raise ValueError(msg)
    pairs = _pairs(labels, probabilities)
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    sums = {level: np.zeros((3, n_bins)) for level in ("voxel", "component")}
    for i, (label, probability) in enumerate(pairs):
        chosen = None if masks is None else masks[i]
        inside = np.ones(label.shape, bool) if chosen is None else np.asarray(chosen) > 0
        _add(sums["voxel"], probability[inside], label[inside] > 0)
        found = match_components(label, probability >= threshold, **options)
        numbers = np.arange(1, len(found.component_voxels) + 1)
        means = ndimage.mean(probability, found.prediction, numbers) if len(numbers) else np.empty(0)
        _add(sums["component"], np.asarray(means), ~found.false_positive)
    edges = np.linspace(0, 1, n_bins + 1)
    tables, errors = [], {}
    for level, (n, total, true) in sums.items():
        mean, observed = (np.divide(part, n, out=np.full(n_bins, np.nan), where=n > 0) for part in (total, true))
        errors[level] = float(np.nansum(n * np.abs(mean - observed)) / n.sum()) if n.any() else float("nan")
        columns = {"low": edges[:-1], "high": edges[1:], "n": n.astype(np.intp)}
        tables.append(pd.DataFrame({"level": level, **columns, "probability": mean, "observed": observed}))
    table = pd.concat(tables, ignore_index=True)
    table.attrs["error"] = errors
    return table


def family_table(summary: pd.DataFrame, families: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """
    Trace curves over settings: one point for each model of a family.

    Parameters
    ----------
    summary : DataFrame
        A row for each ``method`` with ``sensitivity``, ``precision``, ``strict_sensitivity``, ``strict_precision`` and
        ``false_positives_per_scan``.
    families : mapping of str to sequence of str
        Methods of each family, such as those trained with one loss at different α.

    Returns
    -------
    DataFrame
        ``family``, ``order`` (from 0), ``method``, and these figures.

    Raises
    ------
    ValueError
        If a method is not in the summary.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    keys = (*_PLAIN, *_STRICT, "false_positives_per_scan")
    by_method = summary.set_index("method")
    for family, methods in families.items():
        for order, method in enumerate(methods):
            if method not in by_method.index:
                msg = f"family {family!r} names {method!r}, which is not among {list(by_method.index)}"
                raise ValueError(msg)
            values = {key: float(by_method.loc[method, key]) for key in keys}
            rows.append({"family": family, "order": order, "method": method, **values})
    return pd.DataFrame(rows, columns=["family", "order", "method", *keys])


def area_table(curves: Mapping[str, pd.DataFrame], kind: str) -> pd.DataFrame:
    """
    Compute areas of curves, each whole and over the sensitivities that all have.

    Parameters
    ----------
    curves : mapping of str to DataFrame
        With plain and strict sensitivity and precision.
    kind : str
        What they are traced over.

    Returns
    -------
    DataFrame
        ``name``, ``kind``, ``n_points``, ``low`` and ``high`` (strict sensitivities of points that count), ``area`` and
        ``area_common`` (NaN without a common range), both from strict figures, and ``area_plain``. When components grow
        together, plain figures reach 1 and 1.
    """
    import pandas as pd

    columns = ["name", "kind", "n_points", "low", "high", "area", "area_common", "area_plain"]
    fronts = {name: _front(*(curve[key].to_numpy(np.float64) for key in _STRICT)) for name, curve in curves.items()}
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
        table["area_common"] = [precision_recall_area(*front, between=(low, high)) for front in fronts.values()]
    return table


def _front(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the points of a curve that no other surpasses, by ascending sensitivity."""
    usable = ~np.isnan(x + y)
    if not usable.any():
        return x[:0], y[:0]
    order = np.lexsort((y[usable], x[usable]))[::-1]  # from the most sensitive on, the more precise first
    x, y = x[usable][order], y[usable][order]
    better = np.concatenate([[True], y[1:] > np.maximum.accumulate(y)[:-1]])
    return x[better][::-1], y[better][::-1]


def _add(sums: NDArray[np.float64], probability: NDArray[Any], true: NDArray[np.bool_]) -> None:
    n_bins = sums.shape[1]
    where = np.minimum((probability * n_bins).astype(np.intp), n_bins - 1)
    for row, weights in zip(sums, (None, probability, true), strict=True):
        row += np.bincount(where, weights, n_bins)


def _pairs(labels: Sequence[ArrayLike], probabilities: Sequence[ArrayLike]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    if len(labels) != len(probabilities) or not len(labels):
        msg = f"{len(labels)} labels and {len(probabilities)} predictions; give both for each scan, one at least"
        raise ValueError(msg)
    pairs = []
    for i, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        # Compared in their own precision, as the segmenter compares them with its threshold.
        values, truth = np.asarray(probability), np.asarray(label)
        if truth.shape != values.shape:
            msg = f"scan {i}: a label of shape {truth.shape} and a prediction of shape {values.shape}"
            raise ValueError(msg)
        if not np.isin(truth, (0, 1)).all():
            msg = f"scan {i}: a label holds values from {truth.min():g} to {truth.max():g} where 0 and 1 may stand"
            raise ValueError(msg)
        if values.dtype.kind not in "fb" or not ((values >= 0) & (values <= 1)).all():
            msg = f"scan {i}: values from {values.min():g} to {values.max():g} ({values.dtype}) are no probabilities"
            raise ValueError(msg)
        pairs.append((truth, values))
    return pairs
