"""Comparison of anomaly maps with lesions in white and gray matter, with controls, in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from anomaly.scans.cases import Case
from anomaly.study.contestants import (
    AS_GIVEN,
    CONTROLS,
    Bench,
    Maps,
    Rules,
    checked_rules,
    control_entries,
    method_entries,
)
from anomaly.study.scores import RATES, score_method
from dmrifit._utils.checks import check_number, check_own_names, check_word
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import check_jobs
from dmrifit.report.numerals import wording
from dmrifit.stats.lesion_matching import scores_from_counts
from dmrifit.stats.patient_summary import in_parts, joined, summarize

__all__ = ["evaluate_detectors", "healthy_folds"]

#: What tells rows of a method and a rule apart.
KEYS = ["method", "control", "rule", "needs_truth"]

_OVERLAPS = ("dice", "sensitivity", "precision")
_MEASURES = ["auc", "average_precision", *(f"{x}{e}" for x in _OVERLAPS for e in ("", "_opened"))]
_IN_STRATA = ["auc", "dice_opened", "sensitivity", "sensitivity_opened"]


def evaluate_detectors(
    cases: Sequence[Case],
    maps: Maps,
    *,
    healthy: Sequence[Case] = (),
    healthy_maps: Maps | None = None,
    validation: Sequence[Any] | None = None,
    validation_maps: Maps | None = None,
    rules: Rules | None = None,
    folds: Sequence[str] | None = None,
    opening: int | Mapping[str, int] = 3,
    controls: bool = True,
    lesion_wise: bool = True,
    connectivity: int = 26,
    min_overlap: int = 1,
    n_jobs: int | None = None,
) -> dict[str, pd.DataFrame]:
    """
    Compare anomaly maps with lesions under every rule, raw and opened.

    All is counted inside white and gray matter (`Case.scored`), and each patient counts once.

    Parameters
    ----------
    cases : sequence of Case
        Test scans with lesions; scans without one only count for ``n_found``.
    maps : mapping of str to sequence of array_like of shape (x, y, z)
        For each method and case a map, higher where more anomalous; or a mask (bool), which no
        rule is applied to.
    healthy : sequence of Case, optional
        Healthy scans that nothing was learned from and no threshold was chosen on: false positives
        are counted here.
    healthy_maps : mapping of str to sequence, optional
        Their maps, for the same methods.
    validation : sequence of Case, optional
        Healthy scans that were not learned from, for rules that need them. By default those of
        `healthy`: then each of their patients has the threshold of all the others, and the cases
        that of all.
    validation_maps : mapping of str to sequence, optional
        Their maps.
    rules : mapping of str to rule, optional
        By default `RULES`; those that need healthy scans are left out without them. In place of a
        rule may stand a mapping from methods to rules, for those alone. What is common to all
        scans is fitted to the maps of the cases.
    folds : sequence of str, optional
        Names of repetitions, such as the folds of the healthy scans that a method was trained on.
        Then each value of `maps`, `healthy_maps` and `validation_maps`, and `validation`, is a
        sequence with one entry for each fold.
    opening : int or mapping of str to int, default=3
        Edge of the cube of `open_map`, in voxels, of all or of each method; controls have the
        largest.
    controls : bool, default=True
        Whether the rows of `CONTROLS` are added.
    lesion_wise : bool, default=True
        Whether lesions are matched one by one (of opened maps, under rules that need no truth).
    connectivity, min_overlap : int
        As for `lesion_table`.
    n_jobs : int, optional
        Processes over methods, as joblib has it.

    Returns
    -------
    dict of str to DataFrame
        ``"scans"``: a row for each fold, case, method and rule: ``fold``, ``case``, ``name``,
        ``patient``, ``kind``, ``grade``, ``method``, ``control``, ``rule``, ``needs_truth``,
        ``n_scored``, ``n_lesion`` (voxels), ``auc`` and ``average_precision`` (of the map,
        whatever the rule; .5 and the share of lesion voxels where all scores are the same),
        ``threshold``, ``n_found``, ``dice``, ``sensitivity``, ``precision``, and the same as
        ``…_opened``. Where nothing is found dice is 0 and precision NaN. Without a lesion in what
        is scored there is only ``n_found``; the rest is NaN and enters no mean.
        ``"summary"``: ``part`` ("all" and, where there are several, each kind of lesion), the keys
        of methods and rules, ``n_patients``, then means over patients (of folds' means) and, as
        ``…_sd``, standard deviations over patients and, as ``…_sd_folds``, of the means over
        patients between folds; ``gain`` (opened dice / dice), ``opening``, and from the healthy
        scans ``false_positive_rate``, ``…_opened``, ``empty`` and ``empty_opened``.
        ``"healthy"``: for each fold, healthy scan, method and rule ``n_scored``, ``n_found``,
        ``false_positive_rate``, ``empty``, and the same opened, ``n_components_opened``.
        ``"thresholds"``: ``fold``, method, rule, ``threshold`` (NaN where each scan has its own),
        ``n_fitted`` (scans).
        ``"lesions"``: rows of `lesion_table` of opened maps. ``"lesion_scores"``: what
        `lesion_scores` gives, by method and rule (over folds together).
        ``"strata"``: by method, rule and ``stratum`` of `strata_masks`, means over patients:
        ``n_patients`` (with a lesion there), ``auc``, ``dice_opened``, ``sensitivity``,
        ``sensitivity_opened``, and on healthy scans ``false_positive_rate`` and ``…_opened``.
        ``"curves"``: ``fold``, ``method`` and what `coverage_curve` gives; ``"areas"``:
        ``method``, ``control``, ``area``, ``area_low`` (means over folds), see `curve_areas`.
        ``"followup"``: by method, rule and grade the patients with growth, with mismatches and
        with co-located ones (of opened maps; cases with a later lesion; folds together).

    Raises
    ------
    ValueError
        If there is no case or none with a lesion, a healthy scan has a lesion or belongs to a
        patient among the cases, numbers, shapes or names do not fit, a map has values that are not
        finite, or voxels of different sizes meet a rule in mm.

    References
    ----------
    Weninger et al., Sci Rep, 2023, tables 1 to 6.
    """
    from joblib import Parallel, delayed

    check_jobs(n_jobs)
    bench = Bench(cases, healthy, opening, connectivity, min_overlap, lesion_wise)
    names = ["all"] if folds is None else [str(fold) for fold in folds]
    check_own_names("folds", names)
    checked = checked_rules(
        rules, list(maps), bench.spacing, has_healthy=bool(len(healthy)) or validation is not None
    )
    entries = method_entries(
        bench, maps, healthy_maps, validation, validation_maps, names, single=folds is None
    )
    if controls:
        check_own_names("maps", maps, CONTROLS)
        # Controls do not depend on a training, so one fold is enough.
        entries += control_entries(bench, names[0])
    jobs = [delayed(score_method)(bench, entry, checked[entry.method]) for entry in entries]
    results = Parallel(n_jobs=n_jobs)(jobs)
    tables = {key: joined([result[key] for result in results]) for key in results[0]}
    tables["summary"] = scan_summary(tables["scans"], tables["healthy"])
    tables["summary"]["opening"] = tables["summary"]["method"].map(bench.edge)
    tables["lesion_scores"] = lesion_summary(tables.pop("counts"))
    tables["strata"] = strata_summary(tables["strata"])
    tables["areas"] = area_summary(tables.pop("areas"))
    tables["followup"] = followup_summary(tables["followup"])
    return tables


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
    summary["gain"] = summary["dice_opened"] / summary["dice"]
    columns = [*RATES, "empty", "empty_opened"]
    rates = summarize(healthy, KEYS, columns, within=["fold"])
    return summary.merge(rates[[*KEYS, *columns]], on=KEYS, how="left")


def lesion_summary(counts: pd.DataFrame) -> pd.DataFrame:
    """Score the lesions of all scans together."""
    columns = counts.columns.difference(["fold", "patient", *KEYS], sort=False)
    return summarize(counts, KEYS, columns, scores_from_counts).drop(columns="n_patients")


def strata_summary(strata: pd.DataFrame) -> pd.DataFrame:
    """Average over patients what was found in each stratum."""
    keys = [*KEYS, "stratum"]
    is_healthy = strata["healthy"].astype(bool)
    with_lesion = strata[~is_healthy & strata["sensitivity"].notna()]
    lesions = summarize(with_lesion, keys, _IN_STRATA, within=["fold"])
    rates = summarize(strata[is_healthy], keys, RATES, within=["fold"])
    table = lesions[[*keys, "n_patients", *_IN_STRATA]]
    table = table.merge(rates[[*keys, *RATES]], on=keys, how="outer")
    # In the order of methods, rules and strata.
    table = strata[keys].drop_duplicates().merge(table, on=keys)
    return table.assign(n_patients=table["n_patients"].fillna(0).astype(int))


def area_summary(areas: pd.DataFrame) -> pd.DataFrame:
    """Average areas under curves over folds."""
    means = summarize(areas, ["method", "control"], ["area", "area_low"], unit="fold")
    return means[["method", "control", "area", "area_low"]]


def followup_summary(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Count patients with mismatches by grade, as the study did."""
    keys = [*KEYS, "grade"]
    if not len(overlaps):
        return pd.DataFrame(columns=[*keys, "n_patients", "n_mismatch", "n_colocated"])
    # Where nothing grew, there is no growth to share; without a mismatch, nothing is expected.
    table = overlaps.assign(
        share_expected=overlaps["share_expected"].where(overlaps["grown"]),
        chance=overlaps["chance"].where(overlaps["mismatch"], 0),
    )
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


def format_summary(
    tables: Mapping[str, pd.DataFrame], *, rule: str | None = None, part: str = "all"
) -> pd.DataFrame:
    """Format the summary like the study's tables: mean ± sd of AUC and Dice over patients."""
    summary = tables["summary"]
    check_word("part", part, summary["part"].unique())
    check_word("rule", rule, [None, *summary["rule"].unique()])
    rows: dict[str, dict[str, str]] = {}
    for _, line in summary[summary["part"] == part].iterrows():
        row = rows.setdefault(line["method"], {"AUC": _text(line, "auc")})
        if rule is None:
            row[line["rule"]] = wording("{dice:.3f} / {dice_opened:.3f}", line)
        # Masks follow no rule, and stand in the table of every rule.
        elif line["rule"] in (rule, AS_GIVEN):
            row["average precision"] = _text(line, "average_precision")
            row["Dice, raw"], row["Dice, opened"] = _text(line, "dice"), _text(line, "dice_opened")
            row["opened by"] = f"{line['opening']}³"
            rate = wording("{false_positive_rate_opened:.2%}", line)
            row["healthy: false positives, opened, %"] = rate
            row["healthy: nothing marked, opened, %"] = wording("{empty_opened:.1%}", line)
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("method")


def healthy_folds(
    cases: Sequence[Case], n_folds: int = 7, *, random_state: RandomState = 0
) -> list[tuple[list[int], list[int]]]:
    """
    Divide healthy scans into those to learn from and those to validate on, as the study's 7 folds.

    Parameters
    ----------
    cases : sequence of Case
        Healthy scans.
    n_folds : int, default=7
        Number of folds.
    random_state : int, RandomState or None, default=0
        Seed of the shuffling.

    Returns
    -------
    list of (list of int, list of int)
        For each fold the scans to learn from and those to validate on. Scans of a patient stay
        together.

    Raises
    ------
    ValueError
        If there are fewer than two folds, or fewer patients than folds.
    """
    from sklearn.model_selection import GroupKFold

    patients = [case.patient for case in cases]
    check_number("n_folds", n_folds, least=2, most=len(set(patients)), whole=True)
    # scikit-learn takes seeds of 32 bits.
    splitter = GroupKFold(n_folds, shuffle=True, random_state=Seed(random_state) % 2**32)
    splits = splitter.split(patients, groups=patients)
    return [(train.tolist(), validation.tolist()) for train, validation in splits]


def _text(line: Any, name: str) -> str:
    mean, sd = wording(f"{{{name}:.3f}}", line), line[f"{name}_sd"]
    return mean if np.isnan(sd) else f"{mean} ± {sd:.2f}"
