"""Scores of one method, scan by scan: of its maps, and of their masks by each rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.thresholds import ThresholdRule, open_map
from anomaly.study.contestants import AS_GIVEN, Bench, Entry
from anomaly.study.coverage_curves import coverage_curve
from anomaly.study.followup import overlap_with_followup
from dmrifit.stats.lesion_matching import label_components, lesion_counts, lesion_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RATES", "score_method"]

#: Columns of false-positive rates, raw and opened.
RATES = ("false_positive_rate", "false_positive_rate_opened")

_ROW_KINDS = ("scans", "healthy", "thresholds", "lesions", "counts", "strata", "followup")


@dataclass(frozen=True, eq=False)
class _Decision:
    """The masks of a rule for the maps of a method."""

    rule: str
    needs_truth: bool
    threshold: float
    n_fitted: int
    limits: list[float]
    found: list[NDArray[np.bool_]]
    healthy: list[NDArray[np.bool_]] | None


def score_method(
    bench: Bench, entry: Entry, rules: Mapping[str, ThresholdRule]
) -> dict[str, pd.DataFrame]:
    """Score the maps of a method under each rule."""
    import pandas as pd

    keys = {"fold": entry.fold, "method": entry.method, "control": entry.control}
    # Measures of the scores do not depend on the rule.
    graded = [_score_measures(bench, entry.maps[i], i) for i in range(len(bench.cases))]
    strata_aucs = []
    for values, lesion, strata in zip(entry.maps, bench.lesions, bench.strata, strict=True):
        aucs = {name: _auc(values, lesion, stratum) for name, stratum in strata.items()}
        strata_aucs.append(aucs)
    rows: dict[str, list[Any]] = {key: [] for key in _ROW_KINDS}
    for decision in _decisions(bench, entry, rules):
        rule_keys = keys | {"rule": decision.rule, "needs_truth": decision.needs_truth}
        limits = {"threshold": decision.threshold, "n_fitted": decision.n_fitted}
        rows["thresholds"].append(rule_keys | limits)
        for i, marked in enumerate(decision.found):
            # Opened first: a cube may reach beyond the scored voxels.
            opened = open_map(marked, bench.opening) & bench.scored[i]
            raw = marked & bench.scored[i]
            threshold = {"threshold": decision.limits[i]}
            scan = {**rule_keys, **_case_columns(bench, i), **graded[i], **threshold}
            scan |= _overlap(raw, bench.lesions[i])
            for name, value in _overlap(opened, bench.lesions[i]).items():
                scan[f"{name}_opened"] = value
            rows["scans"].append(scan)
            rows["strata"] += _strata_rows(bench, i, raw, opened, strata_aucs[i], rule_keys)
            # Masks that used the truth say nothing about lesions found or followed up.
            if not decision.needs_truth:
                _add_lesion_rows(rows, bench, i, opened, rule_keys)
        for i, marked in enumerate(decision.healthy or ()):
            _add_healthy_rows(rows, bench, i, marked, rule_keys)
    tables = {key: pd.DataFrame(values) for key, values in rows.items() if key != "lesions"}
    filled = [table for table in rows["lesions"] if len(table)]
    tables["lesions"] = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
    tables["curves"] = pd.DataFrame()
    if entry.healthy and not entry.is_mask:
        healthy_scores = []
        for values, mask in zip(entry.healthy, bench.healthy_scored, strict=True):
            healthy_scores.append(values[mask])
        curve = coverage_curve(
            healthy_scores,
            entry.maps,
            bench.lesions,
            bench.scored,
            connectivity=bench.matching["connectivity"],
        )
        tables["curves"] = curve.assign(**keys)
    return tables


def _case_columns(bench: Bench, i: int) -> dict[str, Any]:
    case = bench.cases[i]
    return {
        "case": i,
        "name": case.name,
        "patient": case.patient,
        "kind": case.kind,
        "grade": case.grade,
    }


def _score_measures(bench: Bench, values: NDArray[Any], i: int) -> dict[str, float]:
    lesion, mask = bench.lesions[i], bench.scored[i]
    return {
        "n_scored": int(np.count_nonzero(mask)),
        "n_lesion": int(np.count_nonzero(lesion)),
        "auc": _auc(values, lesion, mask),
        "average_precision": _average_precision(values, lesion, mask),
    }


def _strata_rows(
    bench: Bench,
    i: int,
    raw: NDArray[np.bool_],
    opened: NDArray[np.bool_],
    aucs: Mapping[str, float],
    rule_keys: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Score a case in each stratum."""
    rows = []
    for name, stratum in bench.strata[i].items():
        lesion = bench.lesions[i] & stratum
        opened_overlap = _overlap(opened & stratum, lesion)
        raw_overlap = _overlap(raw & stratum, lesion)
        rows.append(
            {
                **rule_keys,
                "patient": bench.cases[i].patient,
                "stratum": name,
                "healthy": False,
                "auc": aucs[name],
                "dice_opened": opened_overlap["dice"],
                "sensitivity": raw_overlap["sensitivity"],
                "sensitivity_opened": opened_overlap["sensitivity"],
            }
        )
    return rows


def _add_lesion_rows(
    rows: dict[str, list[Any]],
    bench: Bench,
    i: int,
    opened: NDArray[np.bool_],
    rule_keys: Mapping[str, Any],
) -> None:
    """Match the lesions of a case one by one, and compare its opened mask with the follow-up."""
    case = bench.cases[i]
    if bench.lesion_wise:
        table = lesion_table(bench.lesions[i], opened, case.affine, **bench.matching)
        rows["counts"].append({**rule_keys, **lesion_counts(table).to_dict("records")[0]})
        # What the table notes about its own scan would be wrong for all scans joined.
        table.attrs = {}
        # The table has a column "kind" already: lesion or false positive.
        columns = {}
        for key, value in _case_columns(bench, i).items():
            columns["lesion_kind" if key == "kind" else key] = value
        rows["lesions"].append(table.assign(**rule_keys, **columns))
    if case.followup is not None and case.lesion is not None:
        overlap = overlap_with_followup(
            opened,
            case.lesion,
            case.followup,
            brain=bench.scored[i],
            affine=case.affine,
            connectivity=bench.matching["connectivity"],
        )
        rows["followup"].append({**rule_keys, "grade": case.grade, "overlap": overlap})


def _add_healthy_rows(
    rows: dict[str, list[Any]],
    bench: Bench,
    i: int,
    marked: NDArray[np.bool_],
    rule_keys: Mapping[str, Any],
) -> None:
    """Count the false positives of a healthy scan, in all and in each stratum."""
    mask = bench.healthy_scored[i]
    opened = open_map(marked, bench.opening) & mask
    rows["healthy"].append({**rule_keys, **_false_positives(bench, i, marked & mask, opened)})
    for name, stratum in bench.healthy_strata[i].items():
        n = np.count_nonzero(stratum)
        rates = dict.fromkeys(RATES, np.nan)
        if n:
            rates[RATES[0]] = np.count_nonzero(marked & stratum) / n
            rates[RATES[1]] = np.count_nonzero(opened & stratum) / n
        patient = bench.healthy[i].patient
        columns = {"patient": patient, "stratum": name, "healthy": True}
        rows["strata"].append({**rule_keys, **columns, **rates})


def _decisions(
    bench: Bench, entry: Entry, rules: Mapping[str, ThresholdRule]
) -> Iterator[_Decision]:
    """Apply each rule; maps that are masks need none."""
    if entry.is_mask:
        no_limits = [float("nan")] * len(entry.maps)
        yield _Decision(AS_GIVEN, False, float("nan"), 0, no_limits, entry.maps, entry.healthy)
        return
    for name, rule in rules.items():
        free: list[NDArray[np.bool_]] | None = None
        if rule.needs_healthy:
            fitted, masks = entry.validation, entry.validation_masks
            if fitted is None:
                fitted, masks = entry.healthy, bench.healthy_scored
                # A threshold may not be judged on the scans that it was chosen from.
                free = None if fitted is None else _crosswise(bench, fitted, rule)
            if fitted is None:
                continue
            rule.fit(fitted, masks)
            n_fitted = len(fitted)
        else:
            rule.fit(entry.maps, bench.scored, bench.lesions if rule.needs_truth else None)
            n_fitted = len(entry.maps)
        each = getattr(rule, "scope", "dataset") == "image"
        # A threshold by the lesions of its own scan has no meaning for another scan.
        if entry.healthy is not None and free is None and not (each and rule.needs_truth):
            free = rule.apply(entry.healthy, bench.healthy_scored)
        limits = rule.limits(entry.maps, bench.scored)
        marked = rule.apply(entry.maps, bench.scored)
        threshold = float(rule.threshold_)
        yield _Decision(name, rule.needs_truth, threshold, n_fitted, limits, marked, free)


def _crosswise(
    bench: Bench, maps: list[NDArray[Any]], rule: ThresholdRule
) -> list[NDArray[np.bool_]]:
    """Apply to each half of the healthy patients the threshold of the other half."""
    from sklearn.base import clone

    patients = list(dict.fromkeys(case.patient for case in bench.healthy))
    # By patient: two scans of one person on both sides would know each other.
    half = [patients.index(case.patient) % 2 for case in bench.healthy]
    marked: list[NDArray[np.bool_]] = [np.zeros(0, dtype=bool)] * len(maps)
    if len(patients) < 2:
        raise ValueError(
            f"{rule!r} needs healthy scans of two patients, or validation scans, to count its "
            "false positives"
        )
    masks = bench.healthy_scored
    for side in (0, 1):
        fitting = [i for i in range(len(maps)) if half[i] != side]
        counting = [i for i in range(len(maps)) if half[i] == side]
        fitted = clone(rule).fit([maps[i] for i in fitting], [masks[i] for i in fitting])
        binary_maps = fitted.apply([maps[i] for i in counting], [masks[i] for i in counting])
        for i, binary_map in zip(counting, binary_maps, strict=True):
            marked[i] = binary_map
    return marked


def _auc(values: NDArray[Any], lesion: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Compute the AUC inside a mask as the share of ordered pairs; NaN without such pairs."""
    inside, outside = values[lesion & mask], np.sort(values[mask & ~lesion])
    if not len(inside) or not len(outside):
        return float("nan")
    # The mean of both sides counts ties half.
    n_lower = np.searchsorted(outside, inside, side="left")
    n_not_higher = np.searchsorted(outside, inside, side="right")
    return float((n_lower + n_not_higher).mean() / (2 * len(outside)))


def _average_precision(
    values: NDArray[Any], lesion: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> float:
    from sklearn.metrics import average_precision_score

    truth = lesion[mask]
    if not truth.any():
        return float("nan")
    return float(average_precision_score(truth, values[mask].astype(np.float64)))


def _overlap(marked: NDArray[np.bool_], lesion: NDArray[np.bool_]) -> dict[str, float]:
    n_marked = int(np.count_nonzero(marked))
    n_lesion = int(np.count_nonzero(lesion))
    n_both = int(np.count_nonzero(marked & lesion))
    # Without a lesion, or without a mark, quotients are not defined and enter no mean.
    overlap = dict.fromkeys(("n_found", "dice", "sensitivity", "precision"), float("nan"))
    overlap["n_found"] = n_marked
    if n_lesion:
        overlap["dice"] = 2 * n_both / (n_marked + n_lesion)
        overlap["sensitivity"] = n_both / n_lesion
        if n_marked:
            overlap["precision"] = n_both / n_marked
    return overlap


def _false_positives(
    bench: Bench, i: int, raw: NDArray[np.bool_], opened: NDArray[np.bool_]
) -> dict[str, Any]:
    case = bench.healthy[i]
    n = int(np.count_nonzero(bench.healthy_scored[i]))
    n_raw = int(np.count_nonzero(raw))
    n_opened = int(np.count_nonzero(opened))
    labels = label_components(opened, connectivity=bench.matching["connectivity"])
    return {
        "case": i,
        "name": case.name,
        "patient": case.patient,
        "n_scored": n,
        "n_found": n_raw,
        RATES[0]: n_raw / n,
        "empty": not n_raw,
        "n_found_opened": n_opened,
        RATES[1]: n_opened / n,
        "empty_opened": not n_opened,
        "n_components_opened": int(labels.max()),
    }
