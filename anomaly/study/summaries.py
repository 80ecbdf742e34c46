"""Summaries over patients and folds of what was scored scan by scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomaly.study.coverage_curves import curve_areas
from anomaly.study.scores import RATES
from dmrifit.stats.lesion_matching import scores_from_counts
from dmrifit.stats.patient_summary import in_parts, summarize

if TYPE_CHECKING:
    import pandas as pd

#: What tells rows of a method and a rule apart.
KEYS = ["method", "control", "rule", "needs_truth"]

_OVERLAPS = ("dice", "sensitivity", "precision")
_MEASURES = ["auc", "average_precision", *(f"{x}{e}" for x in _OVERLAPS for e in ("", "_opened"))]
_IN_STRATA = ["auc", "dice_opened", "sensitivity", "sensitivity_opened"]


def scan_summary(scans: pd.DataFrame, healthy: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of scans over patients and folds."""
    kinds = [kind for kind in scans["kind"].unique() if kind]
    scans = scans[scans["n_lesion"] > 0]
    parts = {"all": slice(None)}
    if len(kinds) > 1:
        parts |= {kind: scans["kind"] == kind for kind in kinds}
    table = in_parts(scans, parts)
    summary = summarize(table, ["part", *KEYS], _MEASURES, within=["fold"])
    # A map that marks nothing has a Dice of 0, of which opening makes no multiple.
    with np.errstate(invalid="ignore", divide="ignore"):
        summary["gain"] = summary["dice_opened"] / summary["dice"]
    columns = [*RATES, "empty", "empty_opened"]
    rates = summarize(healthy, KEYS, columns, within=["fold"])
    return summary.merge(rates[[*KEYS, *columns]], on=KEYS, how="left")


def lesion_summary(counts: pd.DataFrame) -> pd.DataFrame:
    """Score the lesions of all scans together."""
    columns = counts.columns.difference(["fold", "patient", *KEYS], sort=False)
    scores = summarize(counts, KEYS, columns, scores_from_counts)
    return scores.drop(columns="n_patients")


def strata_summary(strata: pd.DataFrame) -> pd.DataFrame:
    """Average over patients what was found in each stratum."""
    keys = [*KEYS, "stratum"]
    is_healthy = strata["healthy"].astype(bool)
    with_lesion = strata[~is_healthy & strata["sensitivity"].notna()]
    lesions = summarize(with_lesion, keys, _IN_STRATA, within=["fold"])
    rates = summarize(strata[is_healthy], keys, RATES, within=["fold"])
    # In the order of methods, rules and strata.
    table = strata[keys].drop_duplicates()
    table = table.merge(lesions[[*keys, "n_patients", *_IN_STRATA]], on=keys, how="left")
    table = table.merge(rates[[*keys, *RATES]], on=keys, how="left", indicator=True)
    table = table[table["n_patients"].notna() | (table.pop("_merge") == "both")]
    n_patients = table["n_patients"].fillna(0).astype(int)
    return table.assign(n_patients=n_patients).reset_index(drop=True)


def area_summary(curves: pd.DataFrame) -> pd.DataFrame:
    """Compute areas under curves, and average them over folds."""
    import pandas as pd

    keys = ["method", "control", "fold"]
    curves_by_fold = curves.groupby(keys, sort=False) if len(curves) else ()
    rows = [
        dict(zip(keys, key, strict=True)) | curve_areas(curve) for key, curve in curves_by_fold
    ]
    areas = summarize(pd.DataFrame(rows), keys[:2], ["area", "area_low"], unit="fold")
    return areas[["method", "control", "area", "area_low"]]


def followup_summary(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Count patients with mismatches by grade, as the study did."""
    import pandas as pd

    keys = [*KEYS, "grade"]
    if not len(overlaps):
        return pd.DataFrame(columns=[*keys, "n_patients", "n_mismatch", "n_colocated"])
    fields = pd.DataFrame([vars(overlap) for overlap in overlaps["overlap"]], overlaps.index)
    # Where nothing grew, there is no growth to share; without a mismatch, nothing is expected.
    fields["share_expected"] = fields["share_expected"].where(fields["grown"])
    fields["chance"] = fields["chance"].where(fields["mismatch"], 0)
    table = pd.concat([overlaps[[*keys, "fold"]], fields], axis=1)
    counts = table.groupby(keys, sort=False).agg(
        n_patients=("mismatch", "size"),
        n_grown=("grown", "sum"),
        n_mismatch=("mismatch", "sum"),
        n_colocated=("colocated", "sum"),
        expected=("chance", "sum"),
        share_flagged=("share_flagged", "mean"),
        share_expected=("share_expected", "mean"),
    )
    n_folds = table.groupby(KEYS)["fold"].nunique().rename("n_folds")
    return counts.reset_index().join(n_folds, on=KEYS)
