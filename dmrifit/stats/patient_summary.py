"""
Summary of scores over patients: means, spread and bootstrap intervals.

A table of scores has one row for each case and method (and fold, part, parameter), its metrics or
counts in columns, and the patient, who is the unit of all spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

#: Patients below which there is no interval: samples of two to four take a few values only.
FEWEST_PATIENTS = 5


def patient_draws(n_patients: int, n_bootstrap: int, seed: Any) -> NDArray[np.int64]:
    """
    Draw patients with replacement, and give how often each of them is in each sample.

    The first row is all patients once. Shapes: returns (1 + n_bootstrap, n_patients), of one
    patient no sample.
    """
    n_samples = n_bootstrap if n_patients > 1 else 0
    shares = np.full(n_patients, 1 / n_patients)
    samples = np.random.default_rng(seed).multinomial(n_patients, shares, n_samples)
    return np.vstack([np.ones((1, n_patients), dtype=np.int64), samples])


def percentile_interval(
    samples: NDArray[np.float64], n_patients: int, level: float = 0.95
) -> tuple[float, float]:
    """
    Give the interval of a mean over patients from samples (n,) without NaN.

    Plain percentiles are too narrow for few patients (of 6, 95 % intervals held 87 % of the means
    of normal scores); these are those of Student's t in place of the normal distribution. NaN
    below `FEWEST_PATIENTS`, or where no sample is left.

    References: Hesterberg, Am Stat 69:371–386, 2015 (expanded percentiles).
    """
    defined = samples[~np.isnan(samples)]
    if not len(defined) or n_patients < FEWEST_PATIENTS:
        return np.nan, np.nan
    t = special.stdtrit(n_patients - 1, (1 - level) / 2)
    tail = special.ndtr(t * np.sqrt(n_patients / (n_patients - 1)))
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high)


def share_interval(
    samples: NDArray, n: float, n_patients: int, level: float = 0.95
) -> tuple[float, float]:
    """
    Give the interval of a share of `n`; its value is the first of `samples` (1 + n_bootstrap,).

    Of 0 and 1 all samples may be alike: they have Wilson's interval, others without a width none.
    """
    from scipy.stats import binomtest

    low, high = percentile_interval(samples[1:], n_patients, level)
    if low < high:
        return low, high
    if samples[0] in (0, 1) and n and n_patients >= FEWEST_PATIENTS and len(samples) > 1:
        return binomtest(round(samples[0] * n), round(n)).proportion_ci(level, method="wilson")
    return np.nan, np.nan


def in_parts(table: pd.DataFrame, parts: Mapping[str, Any], name: str = "part") -> pd.DataFrame:
    """Repeat the rows of a table for each part that they belong to; parts are masks of rows."""
    return pd.concat([table[mask].assign(**{name: part}) for part, mask in parts.items()])


def joined(tables: Sequence[pd.DataFrame], first: Sequence[str] = ()) -> pd.DataFrame:
    """Join tables with rows, which keeps the types of columns; `first` names their first ones."""
    table = pd.concat(
        [table for table in tables if len(table)] or [*tables, pd.DataFrame(columns=first)][:1],
        ignore_index=True,
    )
    return table[[*first, *table.columns.difference(first, sort=False)]]


def summarize(
    table: pd.DataFrame,
    by: Sequence[str],
    columns: Sequence[str],
    score: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, Any]] | None = None,
    *,
    unit: str = "patient",
    within: Sequence[str] = (),
    n_bootstrap: int = 0,
    seed: Any = 0,
    level: float = 0.95,
    trials: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """
    Summarize the rows of each group, in which each patient counts once.

    Without `score`, columns are averaged over the rows of a patient in each of `within` (folds,
    parameters), then over these, then over patients; what is NaN enters no mean. ``…_sd`` is over
    patients, ``…_sd_folds`` that of the means of folds. With `score`, columns are counts, and
    their sums over patients are given to it.

    With `n_bootstrap`, ``…_low`` and ``…_high`` are the `percentile_interval` over samples of
    patients; with `trials`, which names for a share the counts whose sum is its denominator, the
    `share_interval`.
    """
    by, columns = list(by), list(columns)
    if not len(table):
        return table.reindex(columns=[*by, f"n_{unit}s", *columns])
    rows = table.groupby([*by, *within, unit], sort=False)[columns]
    values = rows.sum() if score else rows.mean()
    spread = pd.DataFrame(index=values.groupby(by, sort=False).size().index)
    if score is None:
        units = values.groupby([*by, unit], sort=False).mean()
        spread = units.groupby(by, sort=False).std().add_suffix("_sd")
        for name in within:
            means = values.groupby([*by, name], sort=False).mean()
            spread = spread.join(means.groupby(by).std().add_suffix(f"_sd_{name}s"))
        values = units
    summary = []
    for key, group in values.groupby(by, sort=False):
        # The order of rows must move no sample.
        patients = group.sort_index(level=unit).to_numpy(np.float64)
        n_defined = dict(zip(columns, np.sum(~np.isnan(patients), axis=0), strict=True))
        # Counts add up, so one product gives all sums.
        draws = patient_draws(len(patients), n_bootstrap, seed)
        sums = draws @ patients if score else _means(draws, patients)
        scores: Mapping[str, NDArray[Any]] = dict(zip(columns, sums.T, strict=True))
        if score:
            scores = score(scores)
        row = {**dict(zip(by, key, strict=True)), f"n_{unit}s": len(patients)}
        for name, samples in scores.items():
            n_patients = n_defined.get(name, len(patients))
            row[name] = samples[0].item()
            # A number of patients, scans or lesions is no estimate.
            if n_bootstrap and not name.startswith("n_"):
                ends = percentile_interval(samples[1:], n_patients, level)
                if trials:
                    n = sum(scores[count][0] for count in trials.get(name, ()))
                    ends = share_interval(samples, n, n_patients, level)
                row[f"{name}_low"], row[f"{name}_high"] = ends
        summary.append(row)
    return pd.DataFrame(summary).join(spread, on=by)


def _means(draws: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Average over the patients of each sample.

    Shapes: `draws` (n_samples, n_patients), `values` (n_patients, n_columns); returns
    (n_samples, n_columns).
    """
    is_defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # of samples without a value
        return draws @ np.where(is_defined, values, 0) / (draws @ is_defined)
