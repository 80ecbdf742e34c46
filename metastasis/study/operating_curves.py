"""Free-response and precision–recall curves over thresholds and settings, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.io.components import Matching, match_components
from metastasis.segmentation.operating_points import COUNTS, add_rates, paired_volumes
from metastasis.study.patient_samples import patient_draws

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FROC_RATES",
    "area_table",
    "calibration_curve",
    "family_table",
    "froc_samples",
    "froc_score",
    "precision_at_sensitivity",
    "precision_recall_area",
    "summed_curve",
]

#: False positives per scan at which the FROC curve is read.
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

_PLAIN = ("sensitivity", "precision")
_STRICT = ("strict_sensitivity", "strict_precision")


def summed_curve(scans: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the curves of single scans to what `threshold_curve` gives for all of them."""
    curve = scans[0][["threshold"]].copy()
    for key in COUNTS:
        curve[key] = np.sum([scan[key].to_numpy() for scan in scans], axis=0)
    add_rates(curve, len(scans))
    return curve


def precision_recall_area(
    sensitivity: ArrayLike, precision: ArrayLike, *, between: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Compute the area under the best points of precision over sensitivity, 0 beyond them."""
    x = np.asarray(sensitivity, dtype=np.float64)
    y = np.asarray(precision, dtype=np.float64)
    low, high = between
    if x.ndim != 1 or x.shape != y.shape or not 0 <= low < high <= 1:
        raise ValueError(
            f"sensitivity {x.shape} and precision {y.shape} need one shape (n,), and a range "
            f"within 0 to 1: {between}"
        )
    # A reader would choose the best of the settings that were tried, so worse ones do not count.
    x, y = _front(x, y)
    if not len(x):
        return float("nan")
    knots = np.unique(np.clip([low, *x, high], low, high))
    # Beyond the largest sensitivity nothing was measured, so the curve gains nothing there.
    knots = knots[knots <= max(x[-1], low)]
    heights = np.zeros(len(knots))
    if x[-1] >= low:
        heights = np.interp(knots, x, y)
    return float(np.trapezoid(heights, knots) / (high - low))


def precision_at_sensitivity(curve: pd.DataFrame, sensitivity: float) -> dict[str, float]:
    """Read a curve where it has a sensitivity, on straight lines between its thresholds."""
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


def froc_score(curve: pd.DataFrame, *, rates: Sequence[float] = FROC_RATES) -> float:
    """Compute the mean sensitivity at some rates of false positives (Setio et al., 2017)."""
    # A component that is too large to find anything is no free one.
    wrong = curve["false_positives_per_scan"] + curve["flagged_per_scan"]
    sensitivities = [curve.loc[wrong <= rate, "strict_sensitivity"].max() for rate in rates]
    return float(np.nan_to_num(sensitivities).mean())


def froc_samples(
    scans: Sequence[pd.DataFrame],
    patients: Sequence[str],
    *,
    n_bootstrap: int,
    seed: np.random.SeedSequence,
    rates: Sequence[float] = FROC_RATES,
) -> NDArray[np.float64]:
    """
    Read the curves of bootstrap samples of patients at some rates of false positives.

    All scans of a patient are drawn together. Each sample has its own thresholds, those with the
    best strict sensitivity; it is 0 where no threshold reaches the rate, as in `froc_score`.
    Samples without lesions are left out.

    `scans` are the curves of single scans, `patients` (n_scans,) whose they are; returns shape
    (n_samples, n_rates, 2): sensitivity and strict sensitivity.
    """
    counts = np.stack([scan[list(COUNTS)].to_numpy(np.float64) for scan in scans])
    names, numbers = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    draws = patient_draws(len(names), n_bootstrap, seed)[:, numbers]
    sums = np.tensordot(draws, counts, 1)
    has_lesions = sums[:, 0, 0] > 0
    draws, sums = draws[has_lesions], sums[has_lesions]
    n_lesions, n_found, n_distinct, n_wrong, n_flagged = np.moveaxis(sums, -1, 0)
    n_scans = draws.sum(axis=1, keepdims=True)
    wrong = n_wrong / n_scans + n_flagged / n_scans
    # Thresholds are the last axis, after samples and rates.
    is_allowed = wrong[:, None] <= np.asarray(rates)[:, None]
    best = np.where(is_allowed, n_distinct[:, None], -1).argmax(axis=2)
    sensitivities = np.stack([n_found / n_lesions, n_distinct / n_lesions], axis=2)
    readings = sensitivities[np.arange(len(sums))[:, None], best]
    return readings * is_allowed.any(axis=2, keepdims=True)


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
    """Compare probabilities (x, y, z) with how often they come true (Guo et al., ICML 2017)."""
    import pandas as pd

    if n_bins < 1:
        raise ValueError(f"n_bins must be 1 or more, not {n_bins}")
    pairs = paired_volumes(labels, probabilities)
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    voxels, components = _Bins(n_bins), _Bins(n_bins)
    for i, (label, probability) in enumerate(pairs):
        mask = None if masks is None else masks[i]
        inside = np.ones(label.shape, bool) if mask is None else np.asarray(mask) > 0
        voxels.add(probability[inside], label[inside] > 0)
        matching = match_components(label, probability >= threshold, **options)
        components.add(_component_means(probability, matching), ~matching.false_positive)
    levels = {"voxel": voxels, "component": components}
    table = pd.concat([bins.table(level) for level, bins in levels.items()], ignore_index=True)
    table.attrs["error"] = {level: bins.error() for level, bins in levels.items()}
    return table


class _Bins:
    """Sums over bins of probability: numbers, probabilities, and how many came true."""

    def __init__(self, n_bins: int) -> None:
        self.n, self.total, self.true = np.zeros((3, n_bins))

    def add(self, probability: NDArray[Any], is_true: NDArray[np.bool_]) -> None:
        n_bins = len(self.n)
        # A probability of 1 belongs to the last bin.
        bins = np.minimum((probability * n_bins).astype(np.intp), n_bins - 1)
        self.n += np.bincount(bins, minlength=n_bins)
        self.total += np.bincount(bins, probability, n_bins)
        self.true += np.bincount(bins, is_true, n_bins)

    def mean(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Divide sums by numbers; NaN in empty bins."""
        return np.divide(sums, self.n, out=np.full(len(self.n), np.nan), where=self.n > 0)

    def error(self) -> float:
        """Give the expected calibration error."""
        if not self.n.any():
            return float("nan")
        difference = np.abs(self.mean(self.total) - self.mean(self.true))
        return float(np.nansum(self.n * difference) / self.n.sum())

    def table(self, level: str) -> pd.DataFrame:
        import pandas as pd

        edges = np.linspace(0, 1, len(self.n) + 1)
        columns = {
            "level": level,
            "low": edges[:-1],
            "high": edges[1:],
            "n": self.n.astype(np.intp),
            "probability": self.mean(self.total),
            "observed": self.mean(self.true),
        }
        return pd.DataFrame(columns)


def _component_means(probability: NDArray[Any], matching: Matching) -> NDArray[np.float64]:
    """Give the mean probability of each predicted component."""
    from scipy import ndimage

    numbers = np.arange(1, len(matching.component_voxels) + 1)
    if not len(numbers):
        return np.empty(0)
    return np.asarray(ndimage.mean(probability, matching.prediction, numbers))


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

    fronts = {}
    for name, curve in curves.items():
        sensitivity, precision = (curve[key].to_numpy(np.float64) for key in _STRICT)
        fronts[name] = _front(sensitivity, precision)
    rows = []
    for name, curve in curves.items():
        sensitivity, precision = fronts[name]
        row = {
            "name": name,
            "kind": kind,
            "n_points": len(curve),
            "low": sensitivity.min(initial=np.inf),
            "high": sensitivity.max(initial=-np.inf),
            "area": precision_recall_area(sensitivity, precision),
            "area_common": np.nan,
            "area_plain": precision_recall_area(*(curve[key] for key in _PLAIN)),
        }
        rows.append(row)
    columns = ["name", "kind", "n_points", "low", "high", "area", "area_common", "area_plain"]
    table = pd.DataFrame(rows, columns=columns)
    # Areas over different ranges of sensitivity cannot be compared.
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
    # From the most sensitive point on; of equal ones, the more precise comes first.
    order = np.lexsort((y[usable], x[usable]))[::-1]
    x = x[usable][order]
    y = y[usable][order]
    is_better = np.concatenate([[True], y[1:] > np.maximum.accumulate(y)[:-1]])
    return x[is_better][::-1], y[is_better][::-1]
