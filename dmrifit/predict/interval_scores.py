"""Scores of intervals: coverage by patient and by width, and ranking of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["coverage_table"]

_Array = NDArray[np.float64]

_N_QUINTILES = 5
# Of normal errors; their mean rank correlation has an SD below .01 from 1,000 voxels.
_N_DRAWS = 10


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
    import pandas as pd

    ends, values, labels = _checked(intervals, reference, names)
    patients = np.asarray(groups)
    if len(patients) != len(values):
        raise ValueError(
            f"groups {patients.shape} and reference {values.shape} do not fit together: they need "
            "(n_voxels,) and (n_voxels, n_outputs)"
        )
    rows = []
    for patient in pd.unique(patients):
        members = patients == patient
        for i, name in enumerate(labels):
            low, high, value = _usable(ends[members], values[members], i)
            row = {"patient": patient, "parameter": name, "n_voxels": len(value)}
            row |= {"coverage": np.nan, "width": np.nan}
            # The mean of no voxels would warn.
            if len(value):
                row["coverage"] = ((low <= value) & (value <= high)).mean()
                row["width"] = (high - low).mean()
            rows.append(row)
    return pd.DataFrame(rows)


def width_table(
    intervals: ArrayLike, reference: ArrayLike, *, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """
    Measure how many references lie in narrow and in wide intervals, shapes as in `coverage_table`.

    Columns: parameter, quintile (1, the narrowest, to 5), n_voxels, coverage and width (mean).
    Intervals of one width, such as those over the whole box, are one quintile.
    """
    import pandas as pd

    ends, values, labels = _checked(intervals, reference, names)
    rows = []
    for i, name in enumerate(labels):
        low, high, value = _usable(ends, values, i)
        width = high - low
        inside = (low <= value) & (value <= high)
        if not len(width):
            continue
        limits = np.quantile(width, np.arange(1, _N_QUINTILES) / _N_QUINTILES)
        quintile = np.searchsorted(limits, width)
        for k in np.unique(quintile):
            members = quintile == k
            rows.append(
                {
                    "parameter": name,
                    "quintile": int(k) + 1,
                    "n_voxels": int(members.sum()),
                    "coverage": inside[members].mean(),
                    "width": width[members].mean(),
                }
            )
    return pd.DataFrame(rows)


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
    import pandas as pd
    from scipy.stats import spearmanr

    ends, values, labels = _checked(intervals, reference, names)
    center = np.asarray(predicted, float)
    # NumPy would subtract a list of numbers from each column.
    if center.shape != values.shape:
        raise ValueError(
            f"predicted {center.shape} and reference {values.shape} do not fit together: both "
            "need (n_voxels, n_outputs)"
        )
    errors = np.abs(values - center)
    rng = np.random.default_rng(0)
    rows = []
    for i, name in enumerate(labels):
        low, high, error = _usable(ends, errors, i)
        width = high - low
        row: dict[str, Any] = dict.fromkeys(("spearman", "expected", "ratio"), np.nan)
        # Ranks of equal widths say nothing.
        if len(width) > 1 and np.ptp(width) > 0 and np.ptp(error) > 0:
            row["spearman"] = spearmanr(width, error)[0]
            draws = np.abs(rng.standard_normal((_N_DRAWS, len(width)))) * width
            row["expected"] = np.mean([spearmanr(width, draw)[0] for draw in draws])
            row["ratio"] = row["spearman"] / row["expected"]
        rows.append({"parameter": name, **row})
    return pd.DataFrame(rows)


def _checked(
    intervals: ArrayLike, reference: ArrayLike, names: Sequence[str] | None
) -> tuple[_Array, _Array, Sequence[str]]:
    ends, values = np.asarray(intervals, float), np.asarray(reference, float)
    if values.ndim != 2 or ends.shape != (*values.shape, 2):
        raise ValueError(
            f"intervals {ends.shape} and reference {values.shape} do not fit together: they need "
            "(n_voxels, n_outputs, 2) and (n_voxels, n_outputs)"
        )
    return ends, values, names or tuple(map(str, range(values.shape[1])))


def _usable(ends: _Array, values: _Array, i: int) -> tuple[_Array, _Array, _Array]:
    """Select the voxels with an interval and a value of one output: low, high, value."""
    usable = np.isfinite(ends[:, i]).all(axis=1) & np.isfinite(values[:, i])
    low, high = ends[usable, i].T
    return low, high, values[usable, i]
