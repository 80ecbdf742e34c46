"""The scores of one method: of its maps, and of what each rule makes of them, scan by scan."""

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

#: Columns of shares of healthy voxels that are found, raw and opened.
RATES = ("false_positive_rate", "false_positive_rate_opened")


@dataclass(frozen=True, eq=False)
class _Decision:
    """The masks that a rule makes of the maps of a method."""

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
    """Score the maps of a method: what no rule changes first, then each rule."""
    import pandas as pd

    keys = {"fold": entry.fold, "method": entry.method, "control": entry.control}
    triples = list(zip(entry.maps, bench.lesions, bench.scored, strict=True))
    ranks = [(_auc(*one), _average_precision(*one)) for one in triples]
    by_stratum = [
        {name: _auc(values, lesion, part) for name, part in strata.items()}
        for (values, lesion, _), strata in zip(triples, bench.strata, strict=True)
    ]
    rows: dict[str, list[Any]] = {
        key: []
        for key in ("scans", "healthy", "thresholds", "lesions", "counts", "strata", "followup")
    }
    for decision in _decisions(bench, entry, rules):
        of_rule = keys | {"rule": decision.rule, "needs_truth": decision.needs_truth}
        rows["thresholds"].append(
            of_rule | {"threshold": decision.threshold, "n_fitted": decision.n_fitted}
        )
        opened = [
            open_map(found, bench.opening) & mask
            for found, mask in zip(decision.found, bench.scored, strict=True)
        ]
        found = [one & mask for one, mask in zip(decision.found, bench.scored, strict=True)]
        for i, case in enumerate(bench.cases):
            about: dict[str, Any] = {
                "case": i,
                "name": case.name,
                "patient": case.patient,
                "kind": case.kind,
                "grade": case.grade,
            }
            lesion = bench.lesions[i]
            counts = {
                "n_scored": int(np.count_nonzero(bench.scored[i])),
                "n_lesion": int(np.count_nonzero(lesion)),
            }
            graded = {
                "auc": ranks[i][0],
                "average_precision": ranks[i][1],
                "threshold": decision.limits[i],
            }
            both = _overlap(found[i], lesion) | {
                f"{k}_opened": v for k, v in _overlap(opened[i], lesion).items()
            }
            rows["scans"].append({**of_rule, **about, **counts, **graded, **both})
            for name, part in bench.strata[i].items():
                own = _overlap(opened[i] & part, lesion & part)
                raw = _overlap(found[i] & part, lesion & part)
                values = {
                    "auc": by_stratum[i][name],
                    "dice_opened": own["dice"],
                    "sensitivity": raw["sensitivity"],
                }
                values["sensitivity_opened"] = own["sensitivity"]
                rows["strata"].append(
                    {
                        **of_rule,
                        "patient": case.patient,
                        "stratum": name,
                        "healthy": False,
                        **values,
                    }
                )
            if bench.lesion_wise and not decision.needs_truth:
                table = lesion_table(lesion, opened[i], case.affine, **bench.matching)
                rows["counts"].append(of_rule | lesion_counts(table).to_dict("records")[0])
                table.attrs = {}
                # Rows are of kinds, too: lesions and false positives.
                rows["lesions"].append(
                    table.assign(
                        **of_rule,
                        **{"lesion_kind" if k == "kind" else k: v for k, v in about.items()},
                    )
                )
            if case.followup is not None and case.lesion is not None and not decision.needs_truth:
                overlap = overlap_with_followup(
                    opened[i], case.lesion, case.followup, brain=bench.scored[i], affine=case.affine,
                    connectivity=bench.matching["connectivity"],
                )  # fmt: skip
                rows["followup"].append({**of_rule, "grade": case.grade, "overlap": overlap})
        for i, one in enumerate(decision.healthy or ()):
            mask = bench.healthy_scored[i]
            clean = open_map(one, bench.opening) & mask
            rows["healthy"].append({**of_rule, **_false_positives(bench, i, one & mask, clean)})
            for name, part in bench.healthy_strata[i].items():
                n = np.count_nonzero(part)
                rates = [
                    np.count_nonzero(found & part) / n if n else np.nan for found in (one, clean)
                ]
                about = {"patient": bench.healthy[i].patient, "stratum": name, "healthy": True}
                rows["strata"].append({**of_rule, **about, **dict(zip(RATES, rates, strict=True))})
    tables = {key: pd.DataFrame(values) for key, values in rows.items() if key != "lesions"}
    filled = [table for table in rows["lesions"] if len(table)]
    tables["lesions"] = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
    tables["curves"] = pd.DataFrame()
    if entry.healthy and not entry.is_mask:
        curve = coverage_curve(
            [values[mask] for values, mask in zip(entry.healthy, bench.healthy_scored, strict=True)],
            entry.maps, bench.lesions, bench.scored, connectivity=bench.matching["connectivity"],
        )  # fmt: skip
        tables["curves"] = curve.assign(**keys)
    return tables


def _decisions(
    bench: Bench, entry: Entry, rules: Mapping[str, ThresholdRule]
) -> Iterator[_Decision]:
    """Apply each rule; a mask is a decision already."""
    nothing = [float("nan")] * len(entry.maps)
    if entry.is_mask:
        yield _Decision(AS_GIVEN, False, float("nan"), 0, nothing, entry.maps, entry.healthy)
        return
    for name, rule in rules.items():
        free: list[NDArray[np.bool_]] | None = None
        if rule.needs_healthy:
            fitted, masks = entry.validation, entry.validation_masks
            if fitted is None:
                fitted, masks = entry.healthy, bench.healthy_scored
                free = None if fitted is None else _crosswise(bench, fitted, rule)
            if fitted is None:
                continue
            rule.fit(fitted, masks)
            n_fitted = len(fitted)
        else:
            rule.fit(entry.maps, bench.scored, bench.lesions if rule.needs_truth else None)
            n_fitted = len(entry.maps)
        each = getattr(rule, "scope", "dataset") == "image"
        # Thresholds that were chosen scan by scan, by their lesions, say nothing about others.
        if entry.healthy is not None and free is None and not (each and rule.needs_truth):
            free = rule.apply(entry.healthy, bench.healthy_scored)
        yield _Decision(
            name, rule.needs_truth, float(rule.threshold_), n_fitted, rule.limits(entry.maps, bench.scored),
            rule.apply(entry.maps, bench.scored), free,
        )  # fmt: skip


def _crosswise(
    bench: Bench, maps: list[NDArray[Any]], rule: ThresholdRule
) -> list[NDArray[np.bool_]]:
    """Give each half of the healthy patients the threshold of the other; one patient alone is refused."""
    from sklearn.base import clone

    patients = list(dict.fromkeys(case.patient for case in bench.healthy))
    half = [patients.index(case.patient) % 2 for case in bench.healthy]
    found: list[NDArray[np.bool_]] = [np.zeros(0, dtype=bool)] * len(maps)
    if len(patients) < 2:
        raise ValueError(
            f"{rule!r} needs healthy scans of two patients, or validation scans, to tell its false positives"
        )
    for side in (0, 1):
        others = [i for i, one in enumerate(half) if one != side]
        own = [i for i, one in enumerate(half) if one == side]
        fitted = clone(rule).fit(
            [maps[i] for i in others], [bench.healthy_scored[i] for i in others]
        )
        masks = fitted.apply([maps[i] for i in own], [bench.healthy_scored[i] for i in own])
        for i, mask in zip(own, masks, strict=True):
            found[i] = mask
    return found


def _auc(values: NDArray[Any], lesion: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Compute the share of pairs in order (ties half) inside a mask; NaN where it holds no lesion, or nothing else."""
    inside, others = values[lesion & mask], np.sort(values[mask & ~lesion])
    if not len(inside) or not len(others):
        return float("nan")
    below = np.searchsorted(others, inside, side="left") + np.searchsorted(
        others, inside, side="right"
    )
    return float(below.mean() / (2 * len(others)))


def _average_precision(
    values: NDArray[Any], lesion: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> float:
    from sklearn.metrics import average_precision_score

    truth = lesion[mask]
    return (
        float(average_precision_score(truth, values[mask].astype(np.float64)))
        if truth.any()
        else float("nan")
    )


def _overlap(found: NDArray[np.bool_], lesion: NDArray[np.bool_]) -> dict[str, float]:
    n_found, n_lesion, n_both = (
        int(np.count_nonzero(one)) for one in (found, lesion, found & lesion)
    )
    nothing = float("nan")
    return {
        "n_found": n_found,
        "dice": 2 * n_both / (n_found + n_lesion) if n_lesion else nothing,
        "sensitivity": n_both / n_lesion if n_lesion else nothing,
        "precision": n_both / n_found if n_found and n_lesion else nothing,
    }


def _false_positives(
    bench: Bench, i: int, found: NDArray[np.bool_], opened: NDArray[np.bool_]
) -> dict[str, Any]:
    case = bench.healthy[i]
    n, n_found, n_opened = (
        int(np.count_nonzero(one)) for one in (bench.healthy_scored[i], found, opened)
    )
    return {
        "case": i,
        "name": case.name,
        "patient": case.patient,
        "n_scored": n,
        "n_found": n_found,
        RATES[0]: n_found / n,
        "empty": not n_found,
        "n_found_opened": n_opened,
        RATES[1]: n_opened / n,
        "empty_opened": not n_opened,
        "n_components_opened": int(
            label_components(opened, connectivity=bench.matching["connectivity"]).max()
        ),
    }
