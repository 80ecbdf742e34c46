"""Scans, methods, controls and rules of a comparison, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from anomaly.detectors.thresholds import RULES, MeanPoolThreshold, ThresholdRule, open_map
from anomaly.scans.cases import Case
from dmrifit._utils.checks import check_words
from dmrifit._utils.counts import counted, first_few
from dmrifit.io import case_tables

#: The rule of methods that give masks instead of scores.
AS_GIVEN = "as given"

#: The map of one minus the mean signal: what diffuses fast, wherever it is.
BRIGHTNESS = "1 − mean signal"
#: Rows that no detector should fall short of.
CONTROLS = ("all positive", "empty", "brain mask", "another patient's lesion", BRIGHTNESS)
#: The study's weak spots. They may overlap.
STRATA = ("near cortex", "deep nuclei", "basal")
#: All voxels that count.
WHOLE = "all"
#: What is left.
ELSEWHERE = "elsewhere"
#: Distance in mm up to which a voxel is near a structure.
NEAR_MM = 5.0

_CORTEX, _DEEP = 2, 4
_BASAL_SHARE = 0.25

Maps = Mapping[str, Sequence[Any]]
Rules = Mapping[str, ThresholdRule | Mapping[str, ThresholdRule]]


@dataclass(eq=False)
class Bench:
    """
    The scans that all methods are compared on, with the voxels (x, y, z) that count.

    `scored` and `lesions` are the voxels of each case that count and those of them in the lesion,
    `regions` all voxels that count and what `strata_masks` gives.
    """

    cases: Sequence[Case]
    healthy: Sequence[Case]
    opening: int | Mapping[str, int]
    connectivity: int
    min_overlap: int
    lesion_wise: bool

    def __post_init__(self) -> None:
        cases, healthy = self.cases, self.healthy
        if not len(cases):
            raise ValueError("there are no cases to evaluate")
        self.scored = [case.scored for case in cases]
        self.healthy_scored = [case.scored for case in healthy]
        empty = [case.name for case in (*cases, *healthy) if not case.scored.any()]
        if empty:
            raise ValueError(
                f"no white or gray matter to score in {first_few(empty)}; check the tissue maps"
            )
        self.lesions: list[NDArray[np.bool_]] = [
            np.zeros_like(mask) if case.lesion is None else case.lesion & mask
            for case, mask in zip(cases, self.scored, strict=True)
        ]
        if not any(lesion.any() for lesion in self.lesions):
            raise ValueError(
                f"none of {counted(len(cases), 'case')} has a lesion in white or gray matter"
            )
        _refuse("healthy scans that have lesions", [case for case in healthy if not case.healthy])
        patients = {case.patient for case in cases}
        # A patient's second scan without the lesion is not that of a healthy person.
        shared = [case for case in healthy if case.patient in patients]
        _refuse("healthy scans that are of patients among the cases", shared)
        # Checks the size of the largest cube.
        open_map(np.zeros((1, 1, 1), dtype=bool), self.edge(""))
        self.regions = [{WHOLE: case.scored, **strata_masks(case)} for case in cases]
        self.healthy_regions = [{WHOLE: case.scored, **strata_masks(case)} for case in healthy]

    def edge(self, method: str) -> int:
        """Give the edge in voxels of the cube that the masks of a method are opened by."""
        edges = self.opening
        return edges.get(method, max(edges.values())) if isinstance(edges, Mapping) else edges

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """The edges of a voxel in mm; None where cases differ."""
        spacings = [case.spacing for case in (*self.cases, *self.healthy)]
        return spacings[0] if np.allclose(spacings, spacings[0], rtol=1e-3) else None


@dataclass(frozen=True, eq=False)
class Entry:
    """
    The maps (x, y, z) of one method in one fold: scores, or masks of `bool`.

    `healthy` are maps of healthy scans for false positives, `validation` those for thresholds.
    """

    fold: str
    method: str
    control: bool
    maps: list[NDArray[Any]]
    healthy: list[NDArray[Any]] | None = None
    validation: list[NDArray[Any]] | None = None
    validation_masks: list[NDArray[np.bool_]] | None = None

    @property
    def is_mask(self) -> bool:
        """Whether the maps are masks instead of scores."""
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
    """Check the maps of each method, and divide them into folds."""

    def by_fold(values: Sequence[Any], label: str) -> list[Any]:
        if single:
            return [values]
        if len(values) != len(folds):
            raise ValueError(
                f"{label}: {counted(len(values), 'entry', 'entries')} for "
                f"{counted(len(folds), 'fold')}; give one for each"
            )
        return list(values)

    if not maps:
        raise ValueError("there are no maps to evaluate; give those of one method at least")
    scans = {"healthy": bench.healthy or None, "validation": validation}
    tables = {"maps": maps, "healthy": healthy_maps, "validation": validation_maps}
    for key, given in scans.items():
        table = tables[key]
        if (given is None) != (table is None):
            raise ValueError(f"{key} and {key}_maps belong together; give both or neither")
        if table is not None and set(table) != set(maps):
            raise ValueError(
                f"{key}_maps are of {sorted(table)} and maps of {sorted(maps)}; give both for the "
                "same methods"
            )
    validation_folds: list[Any] = [()] * len(folds)
    if validation is not None:
        validation_folds = by_fold(validation, "validation")
    # Validation scans have no lesion, and are of patients that are used nowhere else.
    patients = {case.patient for case in bench.cases}
    healthy_patients = {case.patient for case in bench.healthy}
    scans_of_folds = [case for scans in validation_folds for case in scans]
    unusable = [case for case in scans_of_folds if not case.healthy or case.patient in patients]
    _refuse("validation scans have to be healthy and of other patients than the cases", unusable)
    shared = [case for case in scans_of_folds if case.patient in healthy_patients]
    _refuse("thresholds and false positives need healthy scans of different patients", shared)
    entries = []
    for method in maps:
        for i, fold in enumerate(folds):
            cases = {"maps": bench.cases, "healthy": bench.healthy}
            cases["validation"] = validation_folds[i]
            masks = [case.scored for case in validation_folds[i]]
            checked = {}
            for key, table in tables.items():
                label = f"{method}: {key}"
                if table is not None:
                    volumes = by_fold(table[method], label)[i]
                    checked[key] = case_tables.volumes_of_cases(volumes, cases[key], label)
            # Masks have no threshold to choose, so that rules would hold for a part of the scans.
            kinds = {values.dtype == bool for volumes in checked.values() for values in volumes}
            if len(kinds) > 1:
                raise ValueError(
                    f"{method}: some maps are masks (bool) and some are scores; give one kind"
                )
            entries.append(Entry(fold, str(method), False, validation_masks=masks, **checked))
    return entries


def _refuse(problem: str, cases: Sequence[Case]) -> None:
    """Refuse a comparison if there are such cases, and name them."""
    if cases:
        raise ValueError(f"{problem}: {first_few([case.name for case in cases])}")


def control_entries(bench: Bench, fold: str) -> list[Entry]:
    """Make the entries of controls, which learn nothing."""
    maps = control_maps(bench.cases)
    healthy_maps = control_maps(bench.healthy, lesions_of=bench.cases)
    return [Entry(fold, name, True, maps[name], healthy_maps[name] or None) for name in CONTROLS]


def checked_rules(
    rules: Rules | None,
    methods: Sequence[str],
    spacing: tuple[float, float, float] | None,
    *,
    has_healthy: bool,
) -> dict[str, dict[str, ThresholdRule]]:
    """Check the rules of each method, and set the voxel size of rules with lengths in mm."""
    from sklearn.base import clone

    if rules is None:
        rules = {name: rule for name, rule in RULES.items() if has_healthy >= rule.needs_healthy}
    if AS_GIVEN in rules:
        raise ValueError(f"{AS_GIVEN!r} is the name for masks; give the rule another one")
    checked: dict[str, dict[str, ThresholdRule]] = {str(n): {} for n in (*methods, *CONTROLS)}
    for name, common in rules.items():
        # A rule for each method, such as a fixed threshold in the units of its scores.
        by_method = common if isinstance(common, Mapping) else dict.fromkeys(checked, common)
        check_words(f"the methods of rule {name!r}", by_method, checked)
        for method, rule in by_method.items():
            if not isinstance(rule, ThresholdRule):
                raise ValueError(
                    f"rule {name!r} must be a rule of anomaly.detectors.thresholds, not "
                    f"{type(rule).__name__}"
                )
            if rule.needs_healthy and not has_healthy:
                raise ValueError(
                    f"rule {name!r} needs healthy scans; give validation and validation_maps, or "
                    "healthy and healthy_maps"
                )
            # The rule may be shared: a size set in it would stay for the next comparison.
            checked[method][name] = clone(rule)
            if isinstance(rule, MeanPoolThreshold) and rule.spacing is None:
                if spacing is None:
                    raise ValueError(
                        f"rule {name!r} has windows in mm, and voxels differ between scans; "
                        "resample them to one size"
                    )
                checked[method][name].set_params(spacing=spacing)
    return checked


def control_maps(
    cases: Sequence[Case], *, lesions_of: Sequence[Case] | None = None
) -> dict[str, list[NDArray]]:
    """Make the maps and masks (x, y, z) of all controls for each case."""
    sources = list(cases if lesions_of is None else lesions_of)
    maps = []
    for i, case in enumerate(cases):
        nothing = np.zeros(case.shape, dtype=bool)
        # Lesions are edematous and diffuse fast, so that signals alone, unlearned, find many.
        brightness = np.where(case.brain, 1 - case.signal.mean(axis=-1), 0).astype(np.float32)
        # The lesion of the next patient with one on a grid of this shape.
        first = (i + 1) % max(len(sources), 1)
        others = [s for s in sources[first:] + sources[:first] if s.patient != case.patient]
        lesions = [s.lesion for s in others if s.shape == case.shape and not s.healthy]
        lesion: Any = lesions[0] if lesions else nothing
        maps.append((case.scored, nothing, case.brain, lesion, brightness))
    return {name: [controls[k] for controls in maps] for k, name in enumerate(CONTROLS)}


def strata_masks(case: Case) -> dict[str, NDArray[np.bool_]]:
    """Give masks (x, y, z) of the scored voxels of a case by place; they may overlap."""
    if case.tissue is None:
        # Without a tissue map the border of the brain stands for the cortex.
        cortex, deep = ~case.brain, np.zeros(case.shape, dtype=bool)
    else:
        cortex, deep = case.tissue == _CORTEX, case.tissue == _DEEP
    # By the affine, as the third axis of an image need not run from feet to head.
    x, y, z = (np.arange(n) for n in case.shape)
    a, b, c, d = case.affine[2]
    height = a * x[:, None, None] + b * y[None, :, None] + c * z[None, None, :] + d
    low, high = height[case.brain].min(), height[case.brain].max()
    scored = case.scored
    masks = {
        STRATA[0]: scored & _near(cortex, case.spacing),
        STRATA[1]: scored & _near(deep, case.spacing),
        STRATA[2]: scored & (height < low + _BASAL_SHARE * (high - low)),
    }
    return masks | {ELSEWHERE: scored & ~np.logical_or.reduce(list(masks.values()))}


def _near(structure: NDArray[np.bool_], spacing: tuple[float, float, float]) -> NDArray[np.bool_]:
    if not structure.any():
        return np.zeros(structure.shape, dtype=bool)
    return np.asarray(distance_transform_edt(~structure, sampling=spacing) <= NEAR_MM)
