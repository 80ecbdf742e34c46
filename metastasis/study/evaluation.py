"""Compare segmentations with reference lesions: tables per scan and lesion, a summary with controls, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import check_number
from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from dmrifit.io.components import drop_small
from dmrifit.stats.lesion_matching import (
    HEADLINES,
    SMALL_ML,
    lesion_counts,
    lesion_scores,
    lesion_table,
    scores_from_counts,
)
from metastasis.segmentation.operating_points import (
    THRESHOLDS,
    OperatingPoint,
    operating_point,
    threshold_curve,
)
from metastasis.study.controls import CONTROLS, control_segmentations, reference_masks
from metastasis.study.operating_curves import (
    area_table,
    calibration_curve,
    family_table,
    froc_score,
    precision_at_sensitivity,
    precision_recall_area,
)
from metastasis.study.segment_metrics import (
    SEGMENT_COUNTS,
    segment_counts,
    segment_rates,
    segment_scores,
)

if TYPE_CHECKING:
    import pandas as pd

    from metastasis.scans.cases import Case

__all__ = [
    "CONFIRMED",
    "CONTROLS",
    "HEADLINES",
    "OperatingPoint",
    "calibration_curve",
    "candidate_scores",
    "control_segmentations",
    "evaluate_segmentations",
    "format_summary",
    "lesion_scores",
    "lesion_table",
    "operating_point",
    "precision_at_sensitivity",
    "precision_recall_area",
    "segment_scores",
    "threshold_curve",
]

#: Ending of the row for the confirmed lesions of an ensemble.
CONFIRMED = ", confirmed"

_PARTS = ("all", "with prior", "without prior")
_CONFIRMABLE = ("sensitivity", "precision", "strict_sensitivity", "strict_precision")
_INTERVALS = (
    *HEADLINES,
    "sensitivity",
    "precision",
    "f1",
    "false_positives_per_scan",
    "specificity",
    "lesion_f1",
)


def evaluate_segmentations(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    *,
    threshold: float | Mapping[str, float] = 0.5,
    thresholds: ArrayLike = THRESHOLDS,
    families: Mapping[str, Sequence[str]] | None = None,
    segment: int = 19,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int | Mapping[str, int] = 1,
    small: float = SMALL_ML,
    controls: bool = True,
    n_bootstrap: int = 1000,
    random_state: RandomState = 0,
) -> dict[str, pd.DataFrame]:
    """
    Compare segmentations with reference lesions, as the study did and as it could have.

    Parameters
    ----------
    cases : sequence of Case
        Scans with a label.
    predictions : mapping of str to sequence of array_like of shape (x, y, z)
        For each method and each case: probabilities (floating point, 0 to 1), a mask (bool, or 0
        and 1), or the ensemble's labels (0, 1 and 2). An ensemble's row is the union, a second
        one, ending in `CONFIRMED`, is what it confirms.
    threshold : float or mapping of str to float, default=0.5
        Voxels whose probability reaches it are lesions; a mapping may give one for each method,
        others have 0.5.
    thresholds : array_like of shape (n,), default=THRESHOLDS
        Of the curves of methods that give probabilities.
    families : mapping of str to sequence of str, optional
        Methods that are points of one curve, such as those trained with one loss at different α.
    segment : int, default=19
        Edge in voxels of the segments of `segment_scores`. Where a case has a brain, segments
        outside are left out.
    connectivity : {26, 18, 6}, default=26
        As for `lesion_table`.
    min_overlap : int, default=1
        As for `lesion_table`.
    min_voxels : int or mapping of str to int, default=1
        As for `lesion_table`, left out before anything is counted; a mapping may give one for each
        method, others and controls have 1.
    small : float, default=0.1
        Volume in mL below which a lesion is small.
    controls : bool, default=True
        Whether the rows of `CONTROLS` are added; see `control_segmentations`.
    n_bootstrap : int, default=1000
        Samples of patients for the intervals; 0 leaves them out.
    random_state : int, RandomState or None, default=0
        Seed of controls and of bootstrap samples.

    Returns
    -------
    dict of str to DataFrame
        ``"scans"``: a row for each case and method with ``case``, ``name``, ``patient``, ``prior``
        (whether it has one), ``method``, the counts of `lesion_counts`, ``voxel_dice`` (of all
        voxels; NaN when both are empty) and the counts of `segment_scores`.
        ``"lesions"``: the rows of `lesion_table` with ``case``, ``name``, ``patient``, ``method``
        and, where the case tells, ``status`` (new, grown, stable).
        ``"summary"``: ``part`` ("all", "with prior", "without prior"), ``method``, ``control``,
        the scores of `lesion_scores`, the mean ``voxel_dice``, and those of `segment_scores` as
        ``segment_…``. Plain scores are as published, `HEADLINES` are those that a prediction of
        everything cannot win.
        ``"intervals"``: ``part``, ``method``, ``measure``, ``value``, ``low``, ``high``:
        percentiles 2.5 and 97.5 of bootstrap samples of patients.
        ``"status"``: ``method``, ``status``, ``n``, ``n_found``, ``sensitivity``.
        ``"ensemble"``: what `candidate_scores` gives, by ``method``; controls confirm all that
        they have.
        ``"curves"``: ``method`` and what `threshold_curve` gives; controls are single points at
        .5.
        ``"calibration"``: ``method``, what `calibration_curve` gives, and ``error``.
        ``"families"``: the points of each family, see `family_table`.
        ``"areas"``: ``name``, ``kind`` ("thresholds", "family" or "control"), ``n_points``,
        ``low`` and ``high`` (sensitivities that the curve covers), ``area`` (see
        `precision_recall_area`) and ``area_common`` (over the range that all of its kind cover),
        of strict figures, ``area_plain``, as published, and ``froc`` (see `froc_score`; not of
        families). Areas over thresholds and over settings are different quantities.

    Raises
    ------
    ValueError
        If a case has no label, numbers or shapes differ, values are of no known kind, or names are
        not possible.

    References
    ----------
    Huang et al., Med Phys 49:5773–5786, 2022, tables 1 and 2, figure 6; Moawad et al.,
    arXiv:2306.00838, 2023.
    """
    import pandas as pd

    _check_named("min_voxels", min_voxels, predictions)
    _check_named("thresholds", threshold, predictions)
    truths = reference_masks(cases)
    named = {
        name: _Method(
            name,
            values,
            cases,
            _threshold_of(threshold, name),
            for_method(min_voxels, name, 1),
            connectivity,
        )
        for name, values in predictions.items()
    }
    _check_names(named, controls)
    masks = {name: method.masks for name, method in named.items()}
    for name, method in named.items():
        if method.confirmed is not None:
            masks[name + CONFIRMED] = method.confirmed
    blind = control_segmentations(cases, random_state=random_state) if controls else {}
    least = 1 if isinstance(min_voxels, Mapping) else min_voxels
    masks |= {
        name: [drop_small(one, least, connectivity=connectivity) for one in values]
        for name, values in blind.items()
    }
    options: dict[str, Any] = {"connectivity": connectivity, "min_overlap": min_overlap}
    scans, lesions = [], []
    for i, case in enumerate(cases):
        keys = {
            "case": i,
            "name": case.name,
            "patient": case.patient,
            "prior": case.prior is not None,
        }
        statuses = _statuses(case, connectivity)
        for name, found in masks.items():
            table = lesion_table(truths[i], found[i], case.affine, **options)
            row = {**keys, "method": name} | lesion_counts(table, small=small).to_dict("records")[
                0
            ]
            row["voxel_dice"] = _voxel_dice(truths[i], found[i])
            scans.append(row | segment_counts(truths[i], found[i], segment, case.brain))
            is_lesion = table["kind"] == "lesion"
            status = [
                statuses.get(n, "") if own else ""
                for n, own in zip(table["number"], is_lesion, strict=True)
            ]
            lesions.append(
                table.assign(**keys, method=name, status=np.array(status, dtype=object))
            )
    by_scan = pd.DataFrame(scans)
    summary = _summary(by_scan, CONTROLS if controls else ())
    graded = {
        name: method.probabilities
        for name, method in named.items()
        if method.probabilities is not None
    }
    own = {name: options | {"min_voxels": method.min_voxels} for name, method in named.items()}
    curves = {
        name: threshold_curve(truths, values, thresholds=thresholds, **own[name])
        for name, values in graded.items()
    }
    points = {
        name: threshold_curve(truths, masks[name], thresholds=[0.5], **options) for name in blind
    }
    brains = [case.brain for case in cases]
    calibrations = []
    for name, values in graded.items():
        limit = named[name].threshold
        one = calibration_curve(truths, values, masks=brains, threshold=limit, **own[name])
        calibrations.append(one.assign(method=name, error=one["level"].map(one.attrs["error"])))
    members = family_table(summary[summary["part"] == "all"], families or {})
    return {
        "scans": by_scan,
        "lesions": _joined(lesions, ["case", "name", "patient", "method"]),
        "summary": summary,
        "intervals": _intervals(by_scan, n_bootstrap, seed_from(random_state)),
        "status": _status_table(lesions),
        "ensemble": _ensemble_table(
            named, {name: masks[name] for name in blind}, cases, truths, options
        ),
        "curves": _joined(
            [one.assign(method=name) for name, one in (curves | points).items()], ["method"]
        ),
        "calibration": _joined(calibrations, ["method"]),
        "families": members,
        "areas": _areas(curves, points, members),
    }


def candidate_scores(
    labels: Sequence[ArrayLike],
    predictions: Sequence[ArrayLike],
    *,
    patients: Sequence[Any] | None = None,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> dict[str, float]:
    """
    Score what an ensemble confirms, and what it leaves to review.

    Shapes: `labels` (x, y, z), `predictions` (x, y, z).
    """
    options: dict[str, Any] = {
        "connectivity": connectivity,
        "min_overlap": min_overlap,
        "min_voxels": min_voxels,
    }
    found = [np.asarray(one) for one in predictions]
    union = [
        lesion_table(label, one > 0, **options) for label, one in zip(labels, found, strict=True)
    ]
    sure = [
        lesion_table(label, one == 2, **options) for label, one in zip(labels, found, strict=True)
    ]
    review = [
        lesion_table(label, one == 1, **options) for label, one in zip(labels, found, strict=True)
    ]
    both, confirmed = lesion_scores(union), lesion_scores(sure)
    further = both["n_found"] - confirmed["n_found"]
    wrong = lesion_scores(review)["n_false_positives"]
    n_patients = len(labels if patients is None else set(patients))
    return {
        **{key: both[key] for key in _CONFIRMABLE},
        **{f"confirmed_{key}": confirmed[key] for key in _CONFIRMABLE},
        "further_true": further,
        "further_true_per_scan": further / len(labels),
        "further_true_per_patient": further / n_patients,
        "false_candidates": wrong,
        "false_candidates_per_scan": wrong / len(labels),
        "false_candidates_per_patient": wrong / n_patients,
    }


def format_summary(tables: Mapping[str, pd.DataFrame], *, part: str = "all") -> pd.DataFrame:
    """
    Write the summary as the study's table 2, a line for each method, with what cannot be won by
    covering all.
    """
    summary = tables["summary"]
    chosen = summary[summary["part"] == part].set_index("method")
    if not len(chosen):
        raise ValueError(
            f"part must be one of {', '.join(summary['part'].unique())}, not {part!r}"
        )
    columns = [
        *("sensitivity", "precision", "n_false_positives", "mDSC"),
        *HEADLINES[:3],
        "lesion_dice",
        "lesion_f1",
    ]
    text = chosen[columns].map(lambda value: "–" if np.isnan(value) else f"{value:.3f}")
    text["n_false_positives"] = chosen["n_false_positives"].map("{:.0f}".format)
    return text


# What is given -----------------------------------------------------------------------------------


@dataclass(frozen=True, init=False)
class _Method:
    """Masks of a method, with probabilities or confirmed ones where it has them."""

    masks: list[NDArray[np.bool_]]
    threshold: float
    min_voxels: int
    labels: list[NDArray[Any]] | None = None
    confirmed: list[NDArray[np.bool_]] | None = None
    probabilities: list[NDArray[Any]] | None = None

    def __init__(
        self,
        name: str,
        values: Sequence[ArrayLike],
        cases: Sequence[Case],
        threshold: float,
        min_voxels: int,
        connectivity: int,
    ) -> None:
        arrays = [np.asarray(one) for one in values]
        if len(arrays) != len(cases):
            raise ValueError(f"{name}: {len(arrays)} predictions for {len(cases)} cases")
        for array, case in zip(arrays, cases, strict=True):
            if array.shape != case.shape:
                raise ValueError(
                    f"{name}: a prediction of shape {array.shape} for {case.name}, whose shape is "
                    f"{case.shape}"
                )
        kinds = {"probabilities" if array.dtype.kind == "f" else "masks" for array in arrays}
        highest = max(array.max() for array in arrays)
        known = all(np.isfinite(array).all() and array.min() >= 0 for array in arrays)
        if len(kinds) > 1 or not known or highest > (1 if "probabilities" in kinds else 2):
            raise ValueError(
                f"{name}: values up to {highest:g} of {' and '.join(sorted(kinds))}; all cases "
                "need probabilities (floating point, 0 to 1), masks (0 and 1) or an ensemble's "
                "labels (0, 1 and 2)"
            )
        found: dict[str, Any] = {"threshold": threshold, "min_voxels": min_voxels}
        found |= {"labels": None, "confirmed": None, "probabilities": None}
        graded = kinds == {"probabilities"}
        marked = [array >= threshold if graded else array > 0 for array in arrays]
        found["masks"] = [drop_small(one, min_voxels, connectivity=connectivity) for one in marked]
        if graded:
            found["probabilities"] = arrays
        elif highest == 2:
            labels = [
                np.where(mask, array, 0)
                for array, mask in zip(arrays, found["masks"], strict=True)
            ]
            found |= {"labels": labels, "confirmed": [one == 2 for one in labels]}
        for key, value in found.items():
            object.__setattr__(self, key, value)


def for_method(value: Any, name: str, default: Any) -> Any:
    """Give a method's own value of an option."""
    return value.get(name, default) if isinstance(value, Mapping) else value


def _threshold_of(threshold: float | Mapping[str, float], name: str) -> float:
    value = for_method(threshold, name, 0.5)
    if not 0 < value <= 1:
        raise ValueError(f"the threshold of {name} must be above 0 and at most 1, not {value!r}")
    return float(value)


def _check_named(what: str, values: Any, predictions: Mapping[str, Any]) -> None:
    """Refuse values for methods that are not there, and numbers of voxels that are none."""
    unknown = (
        [name for name in values if name not in predictions] if isinstance(values, Mapping) else []
    )
    if unknown:
        raise ValueError(
            f"{what} name {unknown}, which are not among the predictions {list(predictions)}"
        )
    if what == "min_voxels":
        for value in values.values() if isinstance(values, Mapping) else [values]:
            check_number("min_voxels", value, least=1, whole=True)


def _check_names(named: Mapping[str, _Method], controls: bool) -> None:
    taken = [name for name in named if (controls and name in CONTROLS) or name.endswith(CONFIRMED)]
    if not named or taken:
        raise ValueError(f"predictions need names of their own, not {taken or 'none at all'}")


def _statuses(case: Case, connectivity: int) -> dict[int, str]:
    """Give what a synthetic case tells about its lesions; their numbers are those of voxels joined at corners."""
    if case.lesions is None or connectivity != 26:
        return {}
    return dict(
        zip(case.lesions["number"].astype(int), case.lesions["status"].astype(str), strict=True)
    )


# Measures of a scan ------------------------------------------------------------------------------


def _voxel_dice(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(truth) + np.count_nonzero(found)
    return 2 * np.count_nonzero(truth & found) / total if total else float("nan")


# Tables ------------------------------------------------------------------------------------------


def _parts(scans: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split scans by whether they have a prior, where some have and some have not."""
    split = {True: scans[scans["prior"]], False: scans[~scans["prior"]]}
    parts = {_PARTS[0]: scans}
    if all(len(part) for part in split.values()):
        parts |= {_PARTS[1]: split[True], _PARTS[2]: split[False]}
    return parts


def _count_columns(scans: pd.DataFrame) -> list[str]:
    keys = ("case", "name", "patient", "prior", "method", "voxel_dice")
    return [key for key in scans.columns if key not in keys]


def _summary(scans: pd.DataFrame, controls: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    columns = _count_columns(scans)
    for part, table in _parts(scans).items():
        for method, own in table.groupby("method", sort=False):
            sums = own[columns].sum()
            row: dict[str, Any] = {"part": part, "method": method, "control": method in controls}
            row |= {key: value.item() for key, value in scores_from_counts(sums).items()}
            row["voxel_dice"] = float(own["voxel_dice"].mean())
            rates = segment_rates({key: sums[f"segment_{key}"] for key in SEGMENT_COUNTS})
            rows.append(row | {f"segment_{key}": value for key, value in rates.items()})
    return pd.DataFrame(rows)


def _intervals(scans: pd.DataFrame, n_bootstrap: int, seed: int) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    columns = _count_columns(scans)
    for part, table in _parts(scans).items() if n_bootstrap else ():
        rng = np.random.default_rng(seed_for(seed, "bootstrap", part))
        n = table["patient"].nunique()
        # The same patients for all methods.
        drawn = rng.multinomial(n, np.full(n, 1 / n), n_bootstrap)
        for method, own in table.groupby("method", sort=False):
            by_patient = own.groupby("patient", sort=False)[columns].sum()
            whole = scores_from_counts(by_patient.sum())
            samples = scores_from_counts(
                dict(zip(columns, (drawn @ by_patient.to_numpy(np.float64)).T, strict=True))
            )
            for measure in _INTERVALS:
                values = samples[measure][~np.isnan(samples[measure])]
                low, high = np.percentile(values, (2.5, 97.5)) if len(values) else (np.nan, np.nan)
                keys = {"part": part, "method": method, "measure": measure}
                rows.append({**keys, "value": whole[measure].item(), "low": low, "high": high})
    return pd.DataFrame(rows, columns=["part", "method", "measure", "value", "low", "high"])


def _joined(tables: Sequence[pd.DataFrame], first: Sequence[str]) -> pd.DataFrame:
    """Put tables under each other, with some columns first."""
    import pandas as pd

    if not tables:
        return pd.DataFrame(columns=list(first))
    for table in tables:
        table.attrs = {}
    filled = [table for table in tables if len(table)] or list(tables[:1])
    whole = pd.concat(filled, ignore_index=True)
    return whole[[*first, *(key for key in whole.columns if key not in first)]]


def _status_table(lesions: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    whole = _joined(lesions, ["method"])
    rows = []
    for (method, status), own in whole[whole["status"] != ""].groupby(
        ["method", "status"], sort=False
    ):
        n, found = len(own), int(own["found"].sum())
        rows.append(
            {
                "method": method,
                "status": status,
                "n": n,
                "n_found": found,
                "sensitivity": found / n,
            }
        )
    return pd.DataFrame(rows, columns=["method", "status", "n", "n_found", "sensitivity"])


def _ensemble_table(
    named: Mapping[str, _Method],
    blind: Mapping[str, Sequence[NDArray[np.bool_]]],
    cases: Sequence[Case],
    truths: Sequence[NDArray[np.bool_]],
    options: Mapping[str, Any],
) -> pd.DataFrame:
    import pandas as pd

    labels = {name: method.labels for name, method in named.items() if method.labels is not None}
    if labels:
        labels |= {
            name: [2 * mask.astype(np.uint8) for mask in masks] for name, masks in blind.items()
        }
    patients = [case.patient for case in cases]
    rows = [
        {"method": name, "control": name in blind}
        | candidate_scores(truths, found, patients=patients, **options)
        for name, found in labels.items()
    ]
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["method", "control"])


def _areas(
    curves: Mapping[str, pd.DataFrame], points: Mapping[str, pd.DataFrame], members: pd.DataFrame
) -> pd.DataFrame:
    families = {str(name): own for name, own in members.groupby("family", sort=False)}
    tables = []
    for kind, some in (("thresholds", curves), ("family", families), ("control", points)):
        froc = [np.nan if kind == "family" else froc_score(curve) for curve in some.values()]
        tables.append(area_table(some, kind).assign(froc=froc))
    return _joined(
        [table for table in tables if len(table)] or tables[:1], list(tables[0].columns)
    )
