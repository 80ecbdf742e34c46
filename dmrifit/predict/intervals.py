"""Ends of intervals around predictions, calibrated by class of width; their coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import finite_numbers
from dmrifit._utils.counts import counted

__all__ = ["coverage_table"]

_Array = NDArray[np.float64]

_MOST_CLASSES = 10  # of widths
_FEWEST_VOXELS = 100  # of a class, whose outermost tenth is counted
_WHOLE = 0.999  # of the box: rounding
_N_QUINTILES = 5
# Of normal errors; their mean rank correlation has an SD below .01 from 1,000 voxels.
_N_DRAWS = 10


@dataclass(frozen=True, eq=False)
class IntervalEnds:
    """
    How far the ends lie from a prediction, relative to the expected error.

    Quantiles of the relative errors give a first interval. Voxels are put into classes by its
    width, and in each the interval is stretched about its middle until it holds the share of
    the references that is asked for; between the classes, factors are interpolated.
    """

    quantiles: _Array  # (n_outputs, 2) of errors relative to the expected ones
    # Of each output, (n_classes,): logarithm of the median first width.
    log_widths: tuple[_Array, ...]
    factors: tuple[_Array, ...]  # of each output, (n_classes,)
    # Outputs whose interval is the whole box in most training voxels, and so in every voxel.
    is_whole: NDArray[np.bool_]
    bounds: _Array  # (n_outputs, 2), the box; infinite where there is none

    @classmethod
    def learn(
        cls,
        center: _Array,
        spread: _Array,
        targets: _Array,
        weight: _Array,
        *,
        coverage: float,
        bounds: _Array,
    ) -> IntervalEnds:
        """Learn from predictions, expected errors and references, (n_voxels, n_outputs)."""
        relative = (targets - center) / spread
        tails = (1 - coverage) / 2, (1 + coverage) / 2
        quantiles = weighted_quantiles(relative, weight, tails)
        n_outputs = len(quantiles)
        nowhere = np.zeros(n_outputs, bool)
        plain = (np.zeros(1),) * n_outputs, (np.ones(1),) * n_outputs
        first = cls(quantiles, *plain, nowhere, bounds)
        log_widths = first._log_widths(center, spread)
        middle, half = first._middle_and_half()
        scores = np.abs(relative - middle) / half
        classes, factors = [], []
        for i in range(n_outputs):
            width, factor = _class_factors(log_widths[:, i], scores[:, i], weight, coverage)
            classes.append(width)
            factors.append(factor)
        ends = cls(quantiles, tuple(classes), tuple(factors), nowhere, bounds)
        is_box = np.ptp(ends.around(center, spread), axis=2) >= _WHOLE * np.ptp(bounds, axis=1)
        is_whole = weight @ is_box > weight.sum() / 2
        return cls(quantiles, ends.log_widths, ends.factors, is_whole, bounds)

    def around(self, center: _Array, spread: _Array) -> _Array:
        """Compute intervals (n_voxels, n_outputs, 2) around predictions."""
        log_widths = self._log_widths(center, spread)
        middle, half = self._middle_and_half()
        out = np.empty((*center.shape, 2))
        for i in range(center.shape[1]):
            factor = np.interp(log_widths[:, i], self.log_widths[i], self.factors[i])
            for side, sign in enumerate((-1, 1)):
                end = center[:, i] + spread[:, i] * (middle[i] + sign * factor * half[i])
                out[:, i, side] = np.clip(end, *self.bounds[i])
        out[:, self.is_whole] = self.bounds[self.is_whole]
        return out

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as lists, for a model file; the box belongs to the model."""
        return {
            "quantiles": self.quantiles.tolist(),
            "log_widths": [widths.tolist() for widths in self.log_widths],
            "factors": [factors.tolist() for factors in self.factors],
            "is_whole": self.is_whole.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], bounds: _Array) -> IntervalEnds:
        """Take numbers of `to_dict`; raise ValueError where they do not fit together."""
        if set(state) != {"quantiles", "log_widths", "factors", "is_whole"}:
            raise ValueError(f"ends with {', '.join(sorted(state))}")
        log_widths, factors = (
            tuple(finite_numbers(numbers, key) for numbers in state[key])
            for key in ("log_widths", "factors")
        )
        quantiles = finite_numbers(state["quantiles"], "quantiles")
        is_whole = np.array(state["is_whole"])
        n = len(bounds)
        shapes = [numbers.shape for numbers in log_widths]
        if (
            quantiles.shape != (n, 2)
            or is_whole.shape != (n,)
            or is_whole.dtype != bool
            or len(shapes) != n
            or shapes != [numbers.shape for numbers in factors]
            or any(len(shape) != 1 or not shape[0] for shape in shapes)
            # An interval over the whole of no box has no ends.
            or not np.isfinite(bounds[is_whole]).all()
        ):
            raise ValueError(f"quantiles of {counted(len(quantiles), 'output')}, not of {n}")
        are_sorted = all((np.diff(widths) > 0).all() for widths in log_widths)
        if not are_sorted or (quantiles[:, 0] > quantiles[:, 1]).any():
            raise ValueError("widths or quantiles are not in ascending order")
        if any((factor < 0).any() for factor in factors):
            raise ValueError("a factor is negative")
        return cls(quantiles, log_widths, factors, is_whole, bounds)

    def _middle_and_half(self) -> tuple[_Array, _Array]:
        half = np.ptp(self.quantiles, axis=1) / 2
        return self.quantiles.mean(axis=1), np.where(half > 0, half, 1.0)

    def _log_widths(self, center: _Array, spread: _Array) -> _Array:
        """Compute logarithms of the widths of the first intervals, within the box."""
        ends = center[:, :, None] + spread[:, :, None] * self.quantiles
        width = np.ptp(np.clip(ends, self.bounds[:, :1], self.bounds[:, 1:]), axis=2)
        return np.log(np.maximum(width, np.finfo(float).tiny))


def patient_weights(patients: NDArray) -> _Array:
    """Weigh voxels so that every patient counts the same."""
    _, member, count = np.unique(patients, return_inverse=True, return_counts=True)
    return 1.0 / (len(count) * count[member])


def weighted_quantiles(values: _Array, weight: _Array, levels: ArrayLike) -> _Array:
    """Return weighted quantiles of each column, (n_columns, n_levels), without interpolation."""
    # The margin absorbs the rounding of the sums, which would shift a quantile by one value.
    levels = np.maximum(np.asarray(levels) - 1e-12, 0)
    return np.quantile(values, levels, axis=0, method="inverted_cdf", weights=weight).T


def _class_factors(
    log_width: _Array, score: _Array, weight: _Array, coverage: float
) -> tuple[_Array, _Array]:
    """Find the factor that covers each class of widths; classes hold the same weight."""
    n_classes = min(_MOST_CLASSES, max(1, len(log_width) // _FEWEST_VOXELS))
    order = np.argsort(log_width, kind="stable")
    share_below = np.cumsum(weight[order]) / weight.sum()
    class_of = np.minimum(((share_below - 1e-12) * n_classes).astype(int), n_classes - 1)
    factors: dict[float, float] = {}
    for k in np.unique(class_of):
        members = order[class_of == k]
        width = float(np.median(log_width[members]))
        factor = weighted_quantiles(score[members, None], weight[members], (coverage,))[0, 0]
        # Where many intervals are the whole box, classes share a width: the larger factor holds.
        factors[width] = max(factors.get(width, 0.0), float(factor))
    return np.array(list(factors)), np.array(list(factors.values()))


def coverage_table(
    intervals: ArrayLike,
    reference: ArrayLike,
    groups: ArrayLike,
    *,
    names: tuple[str, ...] | None = None,
) -> pd.DataFrame:
    """
    Measure for each patient how many references lie in their intervals.

    Parameters
    ----------
    intervals : array_like of shape (n_voxels, n_outputs, 2)
        As `ConformalIntervals.predict_interval` gives them.
    reference : array_like of shape (n_voxels, n_outputs)
        Values that the intervals should contain. Voxels where either is NaN do not count.
    groups : array_like of shape (n_voxels,)
        The patient of each voxel.
    names : tuple of str, optional
        Names of the outputs; numbers by default.

    Returns
    -------
    DataFrame
        Columns patient, parameter, n_voxels, coverage (share of the voxels) and width (mean, in
        the unit of the parameter). ``table.groupby("parameter")["coverage"].agg(["mean", "min"])``
        is the coverage and that of the worst patient.

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """
    table = _long_table(intervals, reference, names)
    patients, shape = np.asarray(groups), np.shape(reference)
    if len(patients) != shape[0]:
        raise ValueError(
            f"groups {patients.shape} and reference {shape} do not fit together: they need "
            "(n_voxels,) and (n_voxels, n_outputs)"
        )
    table["patient"] = np.repeat(patients, shape[1])
    return _coverage(table, ["patient", "parameter"])


def width_table(
    intervals: ArrayLike, reference: ArrayLike, *, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """
    Measure how many references lie in narrow and in wide intervals, shapes as in `coverage_table`.

    Columns: parameter, quintile (1, the narrowest, to 5), n_voxels, coverage and width (mean).
    Intervals of one width, such as those over the whole box, are one quintile.
    """
    parts = []
    for _, rows in _long_table(intervals, reference, names).groupby("parameter", sort=False):
        usable = rows.dropna().sort_values("width", kind="stable")
        limits = usable["width"].quantile(np.arange(1, _N_QUINTILES) / _N_QUINTILES)
        usable["quintile"] = 1 + np.searchsorted(limits, usable["width"])
        parts.append(_coverage(usable, ["parameter", "quintile"]))
    return pd.concat(parts, ignore_index=True)


def ranking_table(
    intervals: ArrayLike,
    predicted: ArrayLike,
    reference: ArrayLike,
    *,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """
    Measure whether wide intervals have large errors; `predicted` is what they are around.

    Shapes as in `coverage_table`. Columns: parameter; spearman, the rank correlation of widths
    with absolute errors; expected, that with errors drawn from N(0, width), which is all that
    perfect intervals reach; and ratio of the two. NaN where all intervals are equally wide.
    """
    from scipy.stats import spearmanr

    values, center = np.asarray(reference, float), np.asarray(predicted, float)
    # NumPy would subtract a list of numbers from each column.
    if center.shape != values.shape:
        raise ValueError(
            f"predicted {center.shape} and reference {values.shape} do not fit together: both "
            "need (n_voxels, n_outputs)"
        )
    table = _long_table(intervals, np.abs(values - center), names)
    rng = np.random.default_rng(0)
    rows = []
    for name, of_output in table.groupby("parameter", sort=False):
        width, error = of_output[["width", "value"]].dropna().to_numpy().T
        row: dict[str, Any] = dict.fromkeys(("spearman", "expected", "ratio"), np.nan)
        # Ranks of equal widths say nothing.
        if len(width) > 1 and np.ptp(width) > 0 and np.ptp(error) > 0:
            row["spearman"] = spearmanr(width, error)[0]
            draws = np.abs(rng.standard_normal((_N_DRAWS, len(width)))) * width
            row["expected"] = np.mean([spearmanr(width, draw)[0] for draw in draws])
            row["ratio"] = row["spearman"] / row["expected"]
        rows.append({"parameter": name, **row})
    return pd.DataFrame(rows)


def _long_table(
    intervals: ArrayLike, reference: ArrayLike, names: Sequence[str] | None
) -> pd.DataFrame:
    """Give each output of each voxel a row; NaN without an interval or a value."""
    ends, values = np.asarray(intervals, float), np.asarray(reference, float)
    if values.ndim != 2 or ends.shape != (*values.shape, 2):
        raise ValueError(
            f"intervals {ends.shape} and reference {values.shape} do not fit together: they need "
            "(n_voxels, n_outputs, 2) and (n_voxels, n_outputs)"
        )
    labels = names or [str(i) for i in range(values.shape[1])]
    low, high, value = ends[..., 0].ravel(), ends[..., 1].ravel(), values.ravel()
    table = pd.DataFrame({"parameter": np.tile(labels, len(values)), "value": value})
    table["width"] = high - low
    table["coverage"] = ((low <= value) & (value <= high)).astype(float)
    is_missing = ~np.isfinite([low, high, value]).all(axis=0)
    table.loc[is_missing, ["value", "width", "coverage"]] = np.nan
    return table


def _coverage(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    groups = table.groupby(by, sort=False, dropna=False)
    return groups.agg(
        n_voxels=("value", "count"), coverage=("coverage", "mean"), width=("width", "mean")
    ).reset_index()
