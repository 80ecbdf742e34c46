"""Who is compared on which scans by which rules: what is given, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.detectors.thresholds import RULES, MeanPoolThreshold, ThresholdRule, open_map
from anomaly.study.controls import CONTROLS, control_maps
from anomaly.study.strata import strata_masks

if TYPE_CHECKING:
    from anomaly.scans.cases import Case

__all__ = [
    "AS_GIVEN",
    "Bench",
    "Entry",
    "Maps",
    "Rules",
    "checked_rules",
    "control_entries",
    "method_entries",
    "rules_of",
]

#: The rule of masks that were given as such.
AS_GIVEN = "as given"

Maps = Mapping[str, Sequence[Any]]
Rules = Mapping[str, ThresholdRule | Mapping[str, ThresholdRule]]


@dataclass(frozen=True, eq=False)
class Bench:
    """
    The scans that all methods are compared on.

    Attributes
    ----------
    cases, healthy : sequence of Case
        Scans with lesions, and healthy ones that false positives are counted on.
    scored, lesions : list of ndarray of bool, shape (x, y, z)
        Of each case the voxels that count, and those of them in the lesion.
    strata, healthy_strata : list of dict of str to ndarray of bool, shape (x, y, z)
        As `strata_masks` gives them.
    healthy_scored : list of ndarray of bool, shape (x, y, z)
        Of each healthy scan the voxels that count.
    opening : int
        Edge in voxels of the cube that maps are opened with.
    matching : dict of str to int
        Options of `lesion_table`.
    lesion_wise : bool
        Whether lesions are matched.
    """

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
    ) -> Bench:
        """Check the scans, and find out what counts."""
        if not len(cases):
            raise ValueError("there are no cases to evaluate")
        scored = [case.scored for case in cases]
        empty = [
            case.name
            for case, mask in zip(
                (*cases, *healthy), (*scored, *(one.scored for one in healthy)), strict=True
            )
            if not mask.any()
        ]
        if empty:
            raise ValueError(
                f"no white or gray matter to score in {', '.join(empty[:5])}; check the tissue maps"
            )
        nothing = [
            np.zeros(case.shape, dtype=bool) if case.lesion is None else case.lesion
            for case in cases
        ]
        lesions = [lesion & mask for lesion, mask in zip(nothing, scored, strict=True)]
        if not any(lesion.any() for lesion in lesions):
            raise ValueError(f"none of {len(cases)} case(s) has a lesion in white or gray matter")
        with_lesion = [case.name for case in healthy if not case.healthy]
        known = {case.patient for case in cases}
        shared = [case.name for case in healthy if case.patient in known]
        if with_lesion or shared:
            why = "have lesions" if with_lesion else "are of patients among the cases"
            raise ValueError(f"healthy scans that {why}: {', '.join((with_lesion or shared)[:5])}")
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
        same = all(
            np.allclose(case.spacing, first, rtol=1e-3) for case in (*self.cases, *self.healthy)
        )
        return first if same else None


@dataclass(frozen=True, eq=False)
class Entry:
    """
    The maps of one method in one fold.

    Attributes
    ----------
    fold, method : str
        Names.
    control : bool
        Whether nothing was learned.
    maps : list of ndarray of shape (x, y, z)
        Of each case; masks (bool), or scores.
    healthy, validation : list of ndarray of shape (x, y, z), or None
        Of healthy scans to count on, and to choose thresholds by.
    validation_masks : list of ndarray of bool, shape (x, y, z), or None
        The voxels of the latter that count.
    """

    fold: str
    method: str
    control: bool
    maps: list[NDArray[Any]]
    healthy: list[NDArray[Any]] | None
    validation: list[NDArray[Any]] | None
    validation_masks: list[NDArray[np.bool_]] | None

    @property
    def is_mask(self) -> bool:
        """Whether the maps are decisions already."""
        return self.maps[0].dtype == bool


def method_entries(
    bench: Bench,
    maps: Maps,
    healthy_maps: Maps | None,
    validation: Sequence[Any] | None,
    validation_maps: Maps | None,
    folds: Sequence[str],
    *,
    single: bool,
) -> list[Entry]:
    """Check what is given for each method, and divide it into folds."""
    if not maps:
        raise ValueError("there are no maps to evaluate; give those of one method at least")
    if (validation is None) != (validation_maps is None):
        raise ValueError("validation and validation_maps belong together; give both or neither")
    if bool(len(bench.healthy)) != (healthy_maps is not None):
        raise ValueError("healthy and healthy_maps belong together; give both or neither")
    for what, other in (("healthy_maps", healthy_maps), ("validation_maps", validation_maps)):
        if other is not None and set(other) != set(maps):
            raise ValueError(
                f"{what} are of {sorted(other)} and maps of {sorted(maps)}; give both for the same methods"
            )
    held = None
    if validation is not None:
        held = _by_fold(validation, "validation", folds, single)
        cohort = {case.patient for case in bench.cases}
        wrong = [
            case.name for one in held for case in one if not case.healthy or case.patient in cohort
        ]
        if wrong:
            raise ValueError(
                f"validation scans have to be healthy and of other patients than the cases: {', '.join(wrong[:5])}"
            )
        known = {case.patient for case in bench.healthy}
        twice = [case.name for one in held for case in one if case.patient in known]
        if twice:
            raise ValueError(
                f"thresholds and false positives need healthy scans of different patients: {', '.join(twice[:5])}"
            )
    found = []
    for method in maps:
        own = _by_fold(maps[method], f"maps of {method}", folds, single)
        free = (
            None
            if healthy_maps is None
            else _by_fold(healthy_maps[method], f"healthy maps of {method}", folds, single)
        )
        apart = (
            None
            if validation_maps is None
            else _by_fold(validation_maps[method], f"validation maps of {method}", folds, single)
        )
        for i, fold in enumerate(folds):
            masks = None if held is None else [case.scored for case in held[i]]
            entry = Entry(
                fold,
                str(method),
                False,
                _checked(own[i], bench.cases, f"{method}: maps"),
                None
                if free is None
                else _checked(free[i], bench.healthy, f"{method}: healthy maps"),
                None
                if apart is None or held is None
                else _checked(apart[i], held[i], f"{method}: validation maps"),
                masks,
            )
            kinds = {
                one.dtype == bool
                for part in (entry.maps, entry.healthy, entry.validation)
                for one in part or ()
            }
            if len(kinds) > 1:
                raise ValueError(
                    f"{method}: some maps are masks (bool) and some are scores; give one kind"
                )
            found.append(entry)
    return found


def control_entries(bench: Bench, fold: str) -> list[Entry]:
    """Give the rows that have learned nothing."""
    made = control_maps(bench.cases)
    free = control_maps(bench.healthy, lesions_of=bench.cases) if len(bench.healthy) else None
    return [
        Entry(fold, name, True, made[name], None if free is None else free[name], None, None)
        for name in CONTROLS
    ]


def _by_fold(values: Sequence[Any], what: str, folds: Sequence[str], single: bool) -> list[Any]:
    if single:
        return [values]
    if len(values) != len(folds):
        raise ValueError(
            f"{what}: {len(values)} entries for {len(folds)} folds; give one for each"
        )
    return list(values)


def _checked(values: Sequence[ArrayLike], cases: Sequence[Case], what: str) -> list[NDArray[Any]]:
    arrays = [np.asarray(one) for one in values]
    if len(arrays) != len(cases):
        raise ValueError(f"{what}: {len(arrays)} for {len(cases)} scans; give one for each")
    for array, case in zip(arrays, cases, strict=True):
        if array.shape != case.shape:
            raise ValueError(
                f"{what}: one of shape {array.shape} for {case.name}, whose shape is {case.shape}"
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            n = np.count_nonzero(~np.isfinite(array)) if array.dtype.kind in "fiub" else array.size
            raise ValueError(
                f"{what}: {n} values of {case.name} are no finite numbers; a map is 0 where there is no score"
            )
    return arrays


def checked_rules(
    rules: Rules | None,
    methods: Sequence[str],
    spacing: tuple[float, float, float] | None,
    *,
    has_healthy: bool,
) -> dict[str, dict[str, ThresholdRule] | ThresholdRule]:
    """Check the rules, and tell those with lengths in mm how large voxels are."""
    from sklearn.base import clone

    def fitting(name: str, rule: Any) -> ThresholdRule:
        if not isinstance(rule, ThresholdRule):
            raise ValueError(
                f"rule {name!r} must be a rule of anomaly.detectors.thresholds, not {type(rule).__name__}"
            )
        if rule.needs_healthy and not has_healthy:
            raise ValueError(
                f"rule {name!r} needs healthy scans; give validation and validation_maps, or healthy and healthy_maps"
            )
        made = clone(rule)
        if isinstance(made, MeanPoolThreshold) and made.spacing is None:
            if spacing is None:
                raise ValueError(
                    f"rule {name!r} has windows in mm, and voxels differ between scans; resample them to one size"
                )
            made.set_params(spacing=spacing)
        return made

    if rules is None:
        rules = {
            name: rule for name, rule in RULES.items() if has_healthy or not rule.needs_healthy
        }
    if AS_GIVEN in rules:
        raise ValueError(f"{AS_GIVEN!r} is the name for masks; give the rule another one")
    chosen: dict[str, dict[str, ThresholdRule] | ThresholdRule] = {}
    for name, rule in rules.items():
        if isinstance(rule, Mapping):
            unknown = [method for method in rule if method not in (*methods, *CONTROLS)]
            if unknown:
                raise ValueError(
                    f"rule {name!r} names {unknown}, which are not among the methods {list(methods)}"
                )
            chosen[name] = {method: fitting(name, one) for method, one in rule.items()}
        else:
            chosen[name] = fitting(name, rule)
    return chosen


def rules_of(chosen: Mapping[str, Any], method: str) -> dict[str, ThresholdRule]:
    """Choose the rules of a method."""
    found = {
        name: rule.get(method) if isinstance(rule, Mapping) else rule
        for name, rule in chosen.items()
    }
    return {name: rule for name, rule in found.items() if rule is not None}
