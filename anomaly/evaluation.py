"""Compare anomaly maps with lesions, inside white and gray matter: tables per scan, lesion and rule, with controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.controls import BRIGHTNESS, CONTROLS, control_maps
from anomaly.curves import coverage_curve, curve_areas
from anomaly.followup import FollowupOverlap, mismatch_counts, overlap_with_followup
from anomaly.strata import STRATA, strata_masks
from anomaly.thresholds import RULES, MeanPoolThreshold, ThresholdRule, open_map
from dmrifit.lesions import label_components, lesion_counts, lesion_table, scores_from_counts
from dmrifit.randomness import RandomState, seed_from

if TYPE_CHECKING:
    import pandas as pd

    from anomaly.cases import Case

__all__ = [
    "AS_GIVEN",
    "BRIGHTNESS",
    "CONTROLS",
    "STRATA",
    "FollowupOverlap",
    "choose_by_loss",
    "evaluate_detectors",
    "format_summary",
    "healthy_folds",
    "overlap_with_followup",
]

#: The rule of masks that were given as such.
AS_GIVEN = "as given"

_MEASURES = ("dice", "dice_opened", "sensitivity", "sensitivity_opened", "precision", "precision_opened")
_RATES = ("false_positive_rate", "false_positive_rate_opened")
_KEYS = ["method", "control", "rule", "needs_truth"]

Maps = Mapping[str, Sequence[Any]]
Rules = Mapping[str, ThresholdRule | Mapping[str, ThresholdRule]]


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
    opening: int = 3,
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
        Scans that are not learned from, with lesions; those without one only tell of false positives.
    maps : mapping of str to sequence of array_like of shape (x, y, z)
        For each method and case a map, higher where more anomalous; or a mask (bool), which no rule is applied to.
    healthy : sequence of Case, optional
        Healthy scans that nothing was learned from and no threshold was chosen on: false positives are counted here.
    healthy_maps : mapping of str to sequence, optional
        Their maps, for the same methods.
    validation : sequence of Case, optional
        Healthy scans that were not learned from, for rules that need them. By default those of `healthy`: then one
        half of their patients (every second one) has the threshold of the other half, and the cases that of all.
    validation_maps : mapping of str to sequence, optional
        Their maps.
    rules : mapping of str to rule, optional
        By default `RULES`; those that need healthy scans are left out without them. In place of a rule may stand a
        mapping from methods to rules, for those alone. What is common to all scans is fitted to the maps of the cases.
    folds : sequence of str, optional
        Names of repetitions, such as the folds of the healthy scans that a method was trained on. Then each value of
        `maps`, `healthy_maps` and `validation_maps`, and `validation`, is a sequence with one entry for each fold.
    opening : int, default=3
        Edge of the cube of `open_map`, in voxels.
    controls : bool, default=True
        Whether the rows of `CONTROLS` are added.
    lesion_wise : bool, default=True
        Whether lesions are matched one by one (of opened maps, under rules that need no truth).
    connectivity : {26, 18, 6}, default=26
        As for `lesion_table`.
    min_overlap : int, default=1
        As for `lesion_table`.
    n_jobs : int, optional
        Processes over methods, as joblib has it.

    Returns
    -------
    dict of str to DataFrame
        ``"scans"``: a row for each fold, case, method and rule: ``fold``, ``case``, ``name``, ``patient``, ``kind``,
        ``grade``, ``method``, ``control``, ``rule``, ``needs_truth``, ``n_scored``, ``n_lesion`` (voxels), ``auc`` and
        ``average_precision`` (of the map, whatever the rule; .5 and the share of lesion voxels where all scores are
        the same), ``threshold``, ``n_found``, ``dice``, ``sensitivity``, ``precision``, and the same as
        ``…_opened``. Where nothing is found dice is 0 and precision NaN. Without a lesion in what is scored there is
        only ``n_found``; the rest is NaN and enters no mean.
        ``"summary"``: ``part`` ("all" and, where there are several, each kind of lesion), the keys of methods and
        rules, ``n_patients``, then means over patients (of folds' means) and, as ``…_sd``, standard deviations over
        patients and, as ``…_sd_folds``, of the means over patients between folds; ``gain`` (opened dice / dice), and
        from the healthy scans ``false_positive_rate``, ``…_opened``, ``empty`` and ``empty_opened``.
        ``"healthy"``: for each fold, healthy scan, method and rule ``n_scored``, ``n_found``, ``false_positive_rate``,
        ``empty``, and the same opened, ``n_components_opened``.
        ``"thresholds"``: ``fold``, method, rule, ``threshold`` (NaN where each scan has its own), ``n_fitted`` (scans).
        ``"lesions"``: rows of `lesion_table` of opened maps. ``"lesion_scores"``: what `lesion_scores` gives, by
        method and rule (over folds together).
        ``"strata"``: by method, rule and ``stratum`` of `strata_masks`, means over patients: ``n_patients`` (with a
        lesion there), ``auc``, ``dice_opened``, ``sensitivity``, ``sensitivity_opened``, and on healthy scans
        ``false_positive_rate`` and ``…_opened``.
        ``"curves"``: ``fold``, ``method`` and what `coverage_curve` gives; ``"areas"``: ``method``, ``control``,
        ``area``, ``area_low`` (means over folds), see `curve_areas`.
        ``"followup"``: by method, rule and grade what `mismatch_counts` gives (of opened maps; cases with a later
        lesion; folds together).

    Raises
    ------
    ValueError
        If there is no case or none with a lesion, a healthy scan has a lesion or belongs to a patient among the cases,
        numbers, shapes or names do not fit, a map has values that are not finite, or voxels of different sizes meet a
        rule in mm.

    References
    ----------
    Weninger et al., Sci Rep, 2023, tables 1 to 6.
    """
    import pandas as pd
    from joblib import Parallel, delayed

    bench = _Bench.of(cases, healthy, opening, connectivity, min_overlap, lesion_wise)
    names = ["all"] if folds is None else [str(fold) for fold in folds]
    if not names or len(set(names)) != len(names):
        msg = f"folds need names of their own, not {names}"
        raise ValueError(msg)
    chosen = _chosen_rules(rules, list(maps), bench.spacing, has_healthy=bool(len(healthy)) or validation is not None)
    entries = _entries(bench, maps, healthy_maps, validation, validation_maps, names, single=folds is None)
    blind = []
    if controls:
        taken = [name for name in maps if name in CONTROLS]
        if taken:
            msg = f"maps need names of their own, not {taken}; controls=False leaves the controls out"
            raise ValueError(msg)
        blind = _control_entries(bench, names[0])
    jobs = [delayed(_evaluate_method)(bench, entry, _rules_of(chosen, entry.method)) for entry in (*entries, *blind)]
    parts = Parallel(n_jobs=n_jobs)(jobs)

    def joined(key: str) -> pd.DataFrame:
        filled = [part[key] for part in parts if len(part[key])]
        return pd.concat(filled, ignore_index=True) if filled else parts[0][key]

    tables = {key: joined(key) for key in ("scans", "healthy", "thresholds", "lesions", "curves")}
    strata, counts, overlaps = joined("strata"), joined("counts"), joined("followup")
    return {
        "scans": tables["scans"],
        "summary": _summary(tables["scans"], tables["healthy"]),
        "healthy": tables["healthy"],
        "thresholds": tables["thresholds"],
        "lesions": tables["lesions"],
        "lesion_scores": _lesion_scores(counts),
        "strata": _strata_summary(strata),
        "curves": tables["curves"],
        "areas": _areas(tables["curves"]),
        "followup": _followup_summary(overlaps),
    }


def format_summary(tables: Mapping[str, pd.DataFrame], *, rule: str | None = None, part: str = "all") -> pd.DataFrame:
    """
    Write the summary as the study's tables: AUC, and Dice raw and opened, mean ± sd over patients.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        What `evaluate_detectors` gave.
    rule : str, optional
        One rule; by default all are columns.
    part : str, default="all"
        Which lesions: "all", or a kind.

    Returns
    -------
    DataFrame
        Index ``method``; numbers as text. With a rule also average precision, the rate of false positives on healthy
        scans and the share of those that come out empty, both opened.

    Raises
    ------
    ValueError
        If there is no such part or rule.
    """
    import pandas as pd

    summary = tables["summary"]
    for name, value in (("part", part), ("rule", rule)):
        if value is not None and value not in set(summary[name]):
            msg = f"{name} must be one of {', '.join(summary[name].unique())}, not {value!r}"
            raise ValueError(msg)
    own = summary[summary["part"] == part]
    rows: dict[str, dict[str, str]] = {}
    for _, line in own.iterrows():
        row = rows.setdefault(line["method"], {"AUC": _text(line, "auc")})
        if rule is None:
            row[line["rule"]] = f"{_number(line['dice'])} / {_number(line['dice_opened'])}"
        elif line["rule"] in (rule, AS_GIVEN):
            row["AP"] = _text(line, "average_precision")
            row["Dice"], row["opened"] = _text(line, "dice"), _text(line, "dice_opened")
            row["false positives"] = _number(line["false_positive_rate_opened"], 4)
            row["empty"] = _number(line["empty_opened"], 2)
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("–")
    table.index.name = "method"
    return table


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
        For each fold the scans to learn from and those to validate on. Scans of a patient stay together.

    Raises
    ------
    ValueError
        If there are fewer than two folds, or fewer patients than folds.
    """
    from sklearn.model_selection import GroupKFold

    patients = [case.patient for case in cases]
    if not 2 <= n_folds <= len(set(patients)):
        msg = f"n_folds must be 2 or more and at most the number of patients, {len(set(patients))}, not {n_folds!r}"
        raise ValueError(msg)
    splitter = GroupKFold(n_folds, shuffle=True, random_state=seed_from(random_state) % 2**32)
    return [(train.tolist(), held.tolist()) for train, held in splitter.split(patients, groups=patients)]


def choose_by_loss(losses: Mapping[str, Sequence[float]]) -> str:
    """
    Choose a configuration by its losses on healthy validation scans; lesions are not looked at.

    Parameters
    ----------
    losses : mapping of str to sequence of float
        For each configuration one loss for each fold.

    Returns
    -------
    str
        That with the lowest mean; the first of several.

    Raises
    ------
    ValueError
        If there is none, a loss is not finite, or numbers of folds differ.
    """
    if not losses or len({len(values) for values in losses.values()}) != 1 or not len(next(iter(losses.values()))):
        msg = f"each configuration needs a loss for every fold, not { ({name: len(v) for name, v in losses.items()}) }"
        raise ValueError(msg)
    wrong = [name for name, values in losses.items() if not np.isfinite(np.asarray(values, dtype=np.float64)).all()]
    if wrong:
        msg = f"losses that are not finite: {', '.join(wrong)}; leave out what did not converge"
        raise ValueError(msg)
    return min(losses, key=lambda name: float(np.mean(losses[name])))


# What is given -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Bench:
    """The scans that all methods are compared on."""

    cases: Sequence[Case]
    healthy: Sequence[Case]
    scored: list[NDArray[np.bool_]]
    lesions: list[NDArray[np.bool_]]
    strata: list[dict[str, NDArray[np.bool_]]]
    healthy_scored: list[NDArray[np.bool_]]
    healthy_strata: list[dict[str, NDArray[np.bool_]]]
    opening: int
    matching: dict[str, int]
    lesion_wise: bool

    @classmethod
    def of(
        cls,
        cases: Sequence[Case],
        healthy: Sequence[Case],
        opening: int,
        connectivity: int,
        min_overlap: int,
        lesion_wise: bool,
    ) -> _Bench:
        if not len(cases):
            msg = "there are no cases to evaluate"
            raise ValueError(msg)
        scored = [case.scored for case in cases]
        empty = [
            case.name
            for case, mask in zip((*cases, *healthy), (*scored, *(one.scored for one in healthy)), strict=True)
            if not mask.any()
        ]
        if empty:
            msg = f"no white or gray matter to score in {', '.join(empty[:5])}; check the tissue maps"
            raise ValueError(msg)
        nothing = [np.zeros(case.shape, dtype=bool) if case.lesion is None else case.lesion for case in cases]
        lesions = [lesion & mask for lesion, mask in zip(nothing, scored, strict=True)]
        if not any(lesion.any() for lesion in lesions):
            msg = f"none of {len(cases)} case(s) has a lesion in white or gray matter"
            raise ValueError(msg)
        with_lesion = [case.name for case in healthy if not case.healthy]
        known = {case.patient for case in cases}
        shared = [case.name for case in healthy if case.patient in known]
        if with_lesion or shared:
            why = "have lesions" if with_lesion else "are of patients among the cases"
            msg = f"healthy scans that {why}: {', '.join((with_lesion or shared)[:5])}"
            raise ValueError(msg)
        open_map(np.zeros((1, 1, 1), dtype=bool), opening)
        return cls(
            cases,
            healthy,
            scored,
            lesions,
            [strata_masks(case) for case in cases],
            [case.scored for case in healthy],
            [strata_masks(case) for case in healthy],
            opening,
            {"connectivity": connectivity, "min_overlap": min_overlap},
            lesion_wise,
        )

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """The edges of a voxel in mm; None where cases differ."""
        first = self.cases[0].spacing
        same = all(np.allclose(case.spacing, first, rtol=1e-3) for case in (*self.cases, *self.healthy))
        return first if same else None


@dataclass(frozen=True, eq=False)
class _Entry:
    """The maps of one method in one fold."""

    fold: str
    method: str
    control: bool
    maps: list[NDArray[Any]]
    healthy: list[NDArray[Any]] | None
    validation: list[NDArray[Any]] | None
    validation_masks: list[NDArray[np.bool_]] | None

    @property
    def is_mask(self) -> bool:
        return self.maps[0].dtype == bool


def _entries(
    bench: _Bench,
    maps: Maps,
    healthy_maps: Maps | None,
    validation: Sequence[Any] | None,
    validation_maps: Maps | None,
    folds: Sequence[str],
    *,
    single: bool,
) -> list[_Entry]:
    if not maps:
        msg = "there are no maps to evaluate; give those of one method at least"
        raise ValueError(msg)
    if (validation is None) != (validation_maps is None):
        msg = "validation and validation_maps belong together; give both or neither"
        raise ValueError(msg)
    if bool(len(bench.healthy)) != (healthy_maps is not None):
        msg = "healthy and healthy_maps belong together; give both or neither"
        raise ValueError(msg)
    for what, other in (("healthy_maps", healthy_maps), ("validation_maps", validation_maps)):
        if other is not None and set(other) != set(maps):
            msg = f"{what} are of {sorted(other)} and maps of {sorted(maps)}; give both for the same methods"
            raise ValueError(msg)
    held = None
    if validation is not None:
        held = _by_fold(validation, "validation", folds, single)
        cohort = {case.patient for case in bench.cases}
        wrong = [case.name for one in held for case in one if not case.healthy or case.patient in cohort]
        if wrong:
            msg = f"validation scans have to be healthy and of other patients than the cases: {', '.join(wrong[:5])}"
            raise ValueError(msg)
        known = {case.patient for case in bench.healthy}
        twice = [case.name for one in held for case in one if case.patient in known]
        if twice:
            msg = f"thresholds and false positives need healthy scans of different patients: {', '.join(twice[:5])}"
            raise ValueError(msg)
    found = []
    for method in maps:
        own = _by_fold(maps[method], f"maps of {method}", folds, single)
        free = (
            None if healthy_maps is None else _by_fold(healthy_maps[method], f"healthy maps of {method}", folds, single)
        )
        apart = (
            None
            if validation_maps is None
            else _by_fold(validation_maps[method], f"validation maps of {method}", folds, single)
        )
        for i, fold in enumerate(folds):
            masks = None if held is None else [case.scored for case in held[i]]
            entry = _Entry(
                fold,
                str(method),
                False,
                _checked(own[i], bench.cases, f"{method}: maps"),
                None if free is None else _checked(free[i], bench.healthy, f"{method}: healthy maps"),
                None if apart is None or held is None else _checked(apart[i], held[i], f"{method}: validation maps"),
                masks,
            )
            kinds = {one.dtype == bool for part in (entry.maps, entry.healthy, entry.validation) for one in part or ()}
            if len(kinds) > 1:
                msg = f"{method}: some maps are masks (bool) and some are scores; give one kind"
                raise ValueError(msg)
            found.append(entry)
    return found


def _control_entries(bench: _Bench, fold: str) -> list[_Entry]:
    made = control_maps(bench.cases)
    free = control_maps(bench.healthy, lesions_of=bench.cases) if len(bench.healthy) else None
    return [_Entry(fold, name, True, made[name], None if free is None else free[name], None, None) for name in CONTROLS]


def _by_fold(values: Sequence[Any], what: str, folds: Sequence[str], single: bool) -> list[Any]:
    if single:
        return [values]
    if len(values) != len(folds):
        msg = f"{what}: {len(values)} entries for {len(folds)} folds; give one for each"
        raise ValueError(msg)
    return list(values)


def _checked(values: Sequence[ArrayLike], cases: Sequence[Case], what: str) -> list[NDArray[Any]]:
    arrays = [np.asarray(one) for one in values]
    if len(arrays) != len(cases):
        msg = f"{what}: {len(arrays)} for {len(cases)} scans; give one for each"
        raise ValueError(msg)
    for array, case in zip(arrays, cases, strict=True):
        if array.shape != case.shape:
            msg = f"{what}: one of shape {array.shape} for {case.name}, whose shape is {case.shape}"
            raise ValueError(msg)
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            n = np.count_nonzero(~np.isfinite(array)) if array.dtype.kind in "fiub" else array.size
            msg = f"{what}: {n} values of {case.name} are no finite numbers; a map is 0 where there is no score"
            raise ValueError(msg)
    return arrays


def _chosen_rules(
    rules: Rules | None, methods: Sequence[str], spacing: tuple[float, float, float] | None, *, has_healthy: bool
) -> dict[str, dict[str, ThresholdRule] | ThresholdRule]:
    from sklearn.base import clone

    def fitting(name: str, rule: Any) -> ThresholdRule:
        if not isinstance(rule, ThresholdRule):
            msg = f"rule {name!r} must be a rule of anomaly.thresholds, not {type(rule).__name__}"
            raise ValueError(msg)
        if rule.needs_healthy and not has_healthy:
            msg = f"rule {name!r} needs healthy scans; give validation and validation_maps, or healthy and healthy_maps"
            raise ValueError(msg)
        made = clone(rule)
        if isinstance(made, MeanPoolThreshold) and made.spacing is None:
            if spacing is None:
                msg = f"rule {name!r} has windows in mm, and voxels differ between scans; resample them to one size"
                raise ValueError(msg)
            made.set_params(spacing=spacing)
        return made

    if rules is None:
        rules = {name: rule for name, rule in RULES.items() if has_healthy or not rule.needs_healthy}
    if AS_GIVEN in rules:
        msg = f"{AS_GIVEN!r} is the name for masks; give the rule another one"
        raise ValueError(msg)
    chosen: dict[str, dict[str, ThresholdRule] | ThresholdRule] = {}
    for name, rule in rules.items():
        if isinstance(rule, Mapping):
            unknown = [method for method in rule if method not in (*methods, *CONTROLS)]
            if unknown:
                msg = f"rule {name!r} names {unknown}, which are not among the methods {list(methods)}"
                raise ValueError(msg)
            chosen[name] = {method: fitting(name, one) for method, one in rule.items()}
        else:
            chosen[name] = fitting(name, rule)
    return chosen


def _rules_of(chosen: Mapping[str, Any], method: str) -> dict[str, ThresholdRule]:
    found = {name: rule.get(method) if isinstance(rule, Mapping) else rule for name, rule in chosen.items()}
    return {name: rule for name, rule in found.items() if rule is not None}


# One method --------------------------------------------------------------------------------------------------------


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


def _evaluate_method(bench: _Bench, entry: _Entry, rules: Mapping[str, ThresholdRule]) -> dict[str, pd.DataFrame]:
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
        key: [] for key in ("scans", "healthy", "thresholds", "lesions", "counts", "strata", "followup")
    }
    for decision in _decisions(bench, entry, rules):
        of_rule = keys | {"rule": decision.rule, "needs_truth": decision.needs_truth}
        rows["thresholds"].append(of_rule | {"threshold": decision.threshold, "n_fitted": decision.n_fitted})
        opened = [
            open_map(found, bench.opening) & mask for found, mask in zip(decision.found, bench.scored, strict=True)
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
            counts = {"n_scored": int(np.count_nonzero(bench.scored[i])), "n_lesion": int(np.count_nonzero(lesion))}
            graded = {"auc": ranks[i][0], "average_precision": ranks[i][1], "threshold": decision.limits[i]}
            both = _overlap(found[i], lesion) | {f"{k}_opened": v for k, v in _overlap(opened[i], lesion).items()}
            rows["scans"].append({**of_rule, **about, **counts, **graded, **both})
            for name, part in bench.strata[i].items():
                own = _overlap(opened[i] & part, lesion & part)
                raw = _overlap(found[i] & part, lesion & part)
                values = {"auc": by_stratum[i][name], "dice_opened": own["dice"], "sensitivity": raw["sensitivity"]}
                values["sensitivity_opened"] = own["sensitivity"]
                rows["strata"].append({**of_rule, "patient": case.patient, "stratum": name, "healthy": False, **values})
            if bench.lesion_wise and not decision.needs_truth:
                table = lesion_table(lesion, opened[i], case.affine, **bench.matching)
                rows["counts"].append(of_rule | lesion_counts(table).to_dict("records")[0])
                table.attrs = {}
                # Rows are of kinds, too: lesions and false positives.
                rows["lesions"].append(
                    table.assign(**of_rule, **{"lesion_kind" if k == "kind" else k: v for k, v in about.items()})
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
                rates = [np.count_nonzero(found & part) / n if n else np.nan for found in (one, clean)]
                about = {"patient": bench.healthy[i].patient, "stratum": name, "healthy": True}
                rows["strata"].append({**of_rule, **about, **dict(zip(_RATES, rates, strict=True))})
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


def _decisions(bench: _Bench, entry: _Entry, rules: Mapping[str, ThresholdRule]) -> Iterator[_Decision]:
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


def _crosswise(bench: _Bench, maps: list[NDArray[Any]], rule: ThresholdRule) -> list[NDArray[np.bool_]]:
    """Give each half of the healthy patients the threshold of the other; nothing where there is only one patient."""
    from sklearn.base import clone

    patients = list(dict.fromkeys(case.patient for case in bench.healthy))
    half = [patients.index(case.patient) % 2 for case in bench.healthy]
    found: list[NDArray[np.bool_]] = [np.zeros(0, dtype=bool)] * len(maps)
    if len(patients) < 2:
        msg = f"{rule!r} needs healthy scans of two patients, or validation scans, to tell its false positives"
        raise ValueError(msg)
    for side in (0, 1):
        others = [i for i, one in enumerate(half) if one != side]
        own = [i for i, one in enumerate(half) if one == side]
        fitted = clone(rule).fit([maps[i] for i in others], [bench.healthy_scored[i] for i in others])
        masks = fitted.apply([maps[i] for i in own], [bench.healthy_scored[i] for i in own])
        for i, mask in zip(own, masks, strict=True):
            found[i] = mask
    return found


def _auc(values: NDArray[Any], lesion: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Compute the share of pairs in order (ties half) inside a mask; NaN where it holds no lesion, or nothing else."""
    inside, others = values[lesion & mask], np.sort(values[mask & ~lesion])
    if not len(inside) or not len(others):
        return float("nan")
    below = np.searchsorted(others, inside, side="left") + np.searchsorted(others, inside, side="right")
    return float(below.mean() / (2 * len(others)))


def _average_precision(values: NDArray[Any], lesion: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    from sklearn.metrics import average_precision_score

    truth = lesion[mask]
    return float(average_precision_score(truth, values[mask].astype(np.float64))) if truth.any() else float("nan")


def _overlap(found: NDArray[np.bool_], lesion: NDArray[np.bool_]) -> dict[str, float]:
    n_found, n_lesion, n_both = (int(np.count_nonzero(one)) for one in (found, lesion, found & lesion))
    nothing = float("nan")
    return {
        "n_found": n_found,
        "dice": 2 * n_both / (n_found + n_lesion) if n_lesion else nothing,
        "sensitivity": n_both / n_lesion if n_lesion else nothing,
        "precision": n_both / n_found if n_found and n_lesion else nothing,
    }


def _false_positives(bench: _Bench, i: int, found: NDArray[np.bool_], opened: NDArray[np.bool_]) -> dict[str, Any]:
    case = bench.healthy[i]
    n, n_found, n_opened = (int(np.count_nonzero(one)) for one in (bench.healthy_scored[i], found, opened))
    return {
        "case": i,
        "name": case.name,
        "patient": case.patient,
        "n_scored": n,
        "n_found": n_found,
        _RATES[0]: n_found / n,
        "empty": not n_found,
        "n_found_opened": n_opened,
        _RATES[1]: n_opened / n,
        "empty_opened": not n_opened,
        "n_components_opened": int(label_components(opened, connectivity=bench.matching["connectivity"]).max()),
    }


# Tables ------------------------------------------------------------------------------------------------------------


def _over_patients(table: pd.DataFrame, columns: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """Average the scans of each patient in each fold, then folds; what is NaN enters no mean."""
    by_fold = table.groupby([*keys, "fold", "patient"], sort=False)[list(columns)].mean()
    return by_fold.groupby([*keys, "patient"], sort=False).mean()


def _summary(scans: pd.DataFrame, healthy: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    columns = ["auc", "average_precision", *_MEASURES]
    kinds = [kind for kind in scans["kind"].unique() if kind]
    parts = {"all": scans} | ({kind: scans[scans["kind"] == kind] for kind in kinds} if len(kinds) > 1 else {})
    tables = []
    for part, own in parts.items():
        own = own[own["n_lesion"] > 0]
        if not len(own):
            continue
        patients = _over_patients(own, columns, _KEYS)
        grouped = patients.groupby(_KEYS, sort=False)
        mean, sd, n = grouped.mean(), grouped.std(), grouped.size()
        by_fold = own.groupby([*_KEYS, "fold", "patient"], sort=False)[columns].mean()
        between = by_fold.groupby([*_KEYS, "fold"], sort=False).mean().groupby(_KEYS, sort=False).std()
        table = pd.concat([n.rename("n_patients"), mean, sd.add_suffix("_sd"), between.add_suffix("_sd_folds")], axis=1)
        tables.append(table.reset_index().assign(part=part))
    summary = pd.concat(tables, ignore_index=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        summary["gain"] = summary["dice_opened"] / summary["dice"]
    columns = [*_RATES, "empty", "empty_opened"]
    if len(healthy):
        rates = healthy.assign(empty=healthy["empty"].astype(float), empty_opened=healthy["empty_opened"].astype(float))
        means = _over_patients(rates, columns, _KEYS).groupby(_KEYS, sort=False).mean().reset_index()
        summary = summary.merge(means, on=_KEYS, how="left")
    else:
        summary[columns] = np.nan
    return summary[["part", *(key for key in summary.columns if key != "part")]]


def _lesion_scores(counts: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for key, own in counts.groupby(_KEYS, sort=False) if len(counts) else ():
        sums = own.drop(columns=["fold", *_KEYS]).sum()
        values = {name: value.item() for name, value in scores_from_counts(sums).items()}
        rows.append(dict(zip(_KEYS, key, strict=True)) | values)
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else _KEYS)


def _strata_summary(strata: pd.DataFrame) -> pd.DataFrame:
    keys = [*_KEYS, "stratum"]
    measures = ["auc", "dice_opened", "sensitivity", "sensitivity_opened"]
    own = strata[~strata["healthy"].astype(bool) & strata["sensitivity"].notna()]
    grouped = _over_patients(own, measures, keys).groupby(keys, sort=False)
    table = grouped.mean()
    table.insert(0, "n_patients", grouped.size())
    free = strata[strata["healthy"].astype(bool)]
    if len(free):
        rates = _over_patients(free, _RATES, keys).groupby(keys, sort=False).mean()
        table = table.join(rates, how="outer", sort=False)
        table["n_patients"] = table["n_patients"].fillna(0).astype(int)
    else:
        table[list(_RATES)] = np.nan
    return table.reset_index()


def _areas(curves: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {"fold": fold, "method": method, "control": bool(own["control"].iloc[0]), **curve_areas(own)}
        for (method, fold), own in (curves.groupby(["method", "fold"], sort=False) if len(curves) else ())
    ]
    table = pd.DataFrame(rows, columns=["fold", "method", "control", "area", "area_low"])
    return table.groupby(["method", "control"], sort=False)[["area", "area_low"]].mean().reset_index()


def _followup_summary(overlaps: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    tables = []
    for key, own in overlaps.groupby(_KEYS, sort=False) if len(overlaps) else ():
        n_folds = own["fold"].nunique()
        counts = mismatch_counts(list(own["overlap"]), list(own["grade"]))
        tables.append(counts.assign(**dict(zip(_KEYS, key, strict=True)), n_folds=n_folds))
    if not tables:
        return pd.DataFrame(columns=[*_KEYS, "grade", "n_patients", "n_mismatch", "n_colocated"])
    whole = pd.concat(tables, ignore_index=True)
    return whole[[*_KEYS, *(name for name in whole.columns if name not in _KEYS)]]


def _number(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _text(line: Any, name: str) -> str:
    spread = line[f"{name}_sd"]
    return _number(line[name]) + ("" if np.isnan(spread) else f" ± {spread:.2f}")
