"""Scores of intervals: coverage by patient and by width, and ranking of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["coverage_table"]

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
    import pandas as pd

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
    import pandas as pd
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
    import pandas as pd

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
