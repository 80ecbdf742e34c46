"""Summaries over patients and folds of what was scored scan by scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly.study.coverage_curves import curve_areas
from anomaly.study.followup import mismatch_counts
from anomaly.study.scores import RATES
from dmrifit.stats.lesion_matching import scores_from_counts

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "KEYS",
    "area_summary",
    "followup_summary",
    "lesion_summary",
    "scan_summary",
    "strata_summary",
]

#: What tells rows of a method and a rule apart.
KEYS = ["method", "control", "rule", "needs_truth"]

_MEASURES = (
    "dice",
    "dice_opened",
    "sensitivity",
    "sensitivity_opened",
    "precision",
    "precision_opened",
)


def _over_patients(
    table: pd.DataFrame, columns: Sequence[str], keys: Sequence[str]
) -> pd.DataFrame:
    """Average the scans of each patient in each fold, then folds; what is NaN enters no mean."""
    # In steps, so that a patient with many scans counts as much as one with a single scan.
    by_fold = table.groupby([*keys, "fold", "patient"], sort=False)[list(columns)].mean()
    return by_fold.groupby([*keys, "patient"], sort=False).mean()


def _groups(table: pd.DataFrame, keys: Sequence[str]) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Divide a table by keys; one without rows has no columns to divide it by."""
    if not len(table):
        return ()
    return table.groupby(list(keys), sort=False)


def scan_summary(scans: pd.DataFrame, healthy: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of scans over patients and folds."""
    import pandas as pd

    columns = ["auc", "average_precision", *_MEASURES]
    kinds = [kind for kind in scans["kind"].unique() if kind]
    subsets = {"all": scans}
    if len(kinds) > 1:
        subsets |= {kind: scans[scans["kind"] == kind] for kind in kinds}
    tables = []
    for subset, subset_scans in subsets.items():
        with_lesion = subset_scans[subset_scans["n_lesion"] > 0]
        if not len(with_lesion):
            continue
        patients = _over_patients(with_lesion, columns, KEYS)
        grouped = patients.groupby(KEYS, sort=False)
        mean, sd, n = grouped.mean(), grouped.std(), grouped.size()
        # The spread between folds is that of trainings, the one between patients that of scans.
        by_fold = with_lesion.groupby([*KEYS, "fold", "patient"], sort=False)[columns].mean()
        between = (
            by_fold.groupby([*KEYS, "fold"], sort=False).mean().groupby(KEYS, sort=False).std()
        )
        table = pd.concat(
            [n.rename("n_patients"), mean, sd.add_suffix("_sd"), between.add_suffix("_sd_folds")],
            axis=1,
        )
        tables.append(table.reset_index().assign(part=subset))
    summary = pd.concat(tables, ignore_index=True)
    # A map that marks nothing has a Dice of 0, of which opening makes no multiple.
    with np.errstate(invalid="ignore", divide="ignore"):
        summary["gain"] = summary["dice_opened"] / summary["dice"]
    columns = [*RATES, "empty", "empty_opened"]
    if len(healthy):
        rates = healthy.assign(
            empty=healthy["empty"].astype(float),
            empty_opened=healthy["empty_opened"].astype(float),
        )
        means = _over_patients(rates, columns, KEYS).groupby(KEYS, sort=False).mean().reset_index()
        summary = summary.merge(means, on=KEYS, how="left")
    else:
        summary[columns] = np.nan
    return summary[["part", *(key for key in summary.columns if key != "part")]]


def lesion_summary(counts: pd.DataFrame) -> pd.DataFrame:
    """Score the lesions of all scans together."""
    import pandas as pd

    rows = []
    for key, method_counts in _groups(counts, KEYS):
        sums = method_counts.drop(columns=["fold", *KEYS]).sum()
        values = {name: value.item() for name, value in scores_from_counts(sums).items()}
        rows.append(dict(zip(KEYS, key, strict=True)) | values)
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else KEYS)


def strata_summary(strata: pd.DataFrame) -> pd.DataFrame:
    """Average over patients what was found in each stratum."""
    keys = [*KEYS, "stratum"]
    measures = ["auc", "dice_opened", "sensitivity", "sensitivity_opened"]
    with_lesion = strata[~strata["healthy"].astype(bool) & strata["sensitivity"].notna()]
    grouped = _over_patients(with_lesion, measures, keys).groupby(keys, sort=False)
    table = grouped.mean()
    table.insert(0, "n_patients", grouped.size())
    free = strata[strata["healthy"].astype(bool)]
    if len(free):
        rates = _over_patients(free, RATES, keys).groupby(keys, sort=False).mean()
        table = table.join(rates, how="outer", sort=False)
        table["n_patients"] = table["n_patients"].fillna(0).astype(int)
    else:
        table[list(RATES)] = np.nan
    # In the order of methods, rules and strata, which a join loses.
    order = strata.groupby(keys, sort=False).size().index
    return table.reindex(order[order.isin(table.index)]).reset_index()


def area_summary(curves: pd.DataFrame) -> pd.DataFrame:
    """Compute areas under curves."""
    import pandas as pd

    rows = []
    for (method, fold), curve in _groups(curves, ["method", "fold"]):
        row = {"fold": fold, "method": method, "control": bool(curve["control"].iloc[0])}
        rows.append(row | curve_areas(curve))
    table = pd.DataFrame(rows, columns=["fold", "method", "control", "area", "area_low"])
    return (
        table.groupby(["method", "control"], sort=False)[["area", "area_low"]].mean().reset_index()
    )


def followup_summary(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Count mismatches by grade."""
    import pandas as pd

    tables = []
    for key, method_overlaps in _groups(overlaps, KEYS):
        n_folds = method_overlaps["fold"].nunique()
        counts = mismatch_counts(list(method_overlaps["overlap"]), list(method_overlaps["grade"]))
        tables.append(counts.assign(**dict(zip(KEYS, key, strict=True)), n_folds=n_folds))
    if not tables:
        return pd.DataFrame(columns=[*KEYS, "grade", "n_patients", "n_mismatch", "n_colocated"])
    whole = pd.concat(tables, ignore_index=True)
    return whole[[*KEYS, *(name for name in whole.columns if name not in KEYS)]]
