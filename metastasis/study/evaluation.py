"""Evaluation of segmentations: tables by scan and lesion, summary with controls, and curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from dmrifit._utils.checks import check_number, check_own_names, check_word, check_words
from dmrifit._utils.counts import counted
from dmrifit._utils.progress import progress
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.io import case_tables
from dmrifit.io.components import drop_small, label_components
from dmrifit.stats.lesion_matching import (
    SMALL_ML,
    Matching,
    lesion_counts,
    lesion_scores,
    lesion_table,
    ratio,
    scores_from_counts,
)
from dmrifit.stats.metrics import dice
from dmrifit.stats.patient_summary import in_parts, joined, summarize
from metastasis.scans.cases import Case
from metastasis.segmentation.ensemble import MARKED_BY_BOTH
from metastasis.segmentation.operating_points import THRESHOLDS, summed_curve, threshold_curve
from metastasis.study import operating_curves, reader_scores
from metastasis.study.controls import CONTROLS, control_segmentations, reference_masks

__all__ = ["evaluate_segmentations", "lesion_scores"]

#: Ending of the row for what both models of an ensemble mark.
OF_BOTH = f", {MARKED_BY_BOTH}"

#: Scores that a prediction cannot win by covering everything, unless a lesion fills a tenth of
#: that. Plain sensitivity, precision and false positives it can: one component over the whole
#: brain hits every lesion.
HEADLINES = ("strict_sensitivity", "strict_precision", "strict_f1", "mDSC", "lesion_dice")

_SCORES_OF_BOTH = ("sensitivity", "precision", "strict_sensitivity", "strict_precision")
_INTERVALS = (
    *(*HEADLINES, "sensitivity", "precision", "f1"),
    *("false_positives_per_scan", "specificity", "lesion_f1"),
)
#: Counts that add up to what a share is of.
_TRIALS = {
    "strict_sensitivity": ("n_lesions",),
    "strict_precision": ("n_distinct", "n_false_positives", "n_flagged"),
    "sensitivity": ("n_lesions",),
    "precision": ("n_found", "n_false_positives"),
    "specificity": ("n_lesion_free",),
}


#: Counts of the segments of a scan.
SEGMENT_COUNTS = ("n_positive", "n_negative", "true_positives", "true_negatives")


def evaluate_segmentations(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    *,
    threshold: float | Mapping[str, float | None] = 0.5,
    thresholds: ArrayLike = THRESHOLDS,
    families: Mapping[str, Sequence[str]] | None = None,
    segment: int = 19,
    min_voxels: int | Mapping[str, int] = 1,
    small: float = SMALL_ML,
    controls: bool = True,
    n_bootstrap: int = 1000,
    random_state: RandomState = 0,
    verbose: bool = False,
) -> dict[str, pd.DataFrame]:
    """
    Compare segmentations with reference lesions, by the study's scores and by stricter ones.

    Parameters
    ----------
    cases : sequence of Case
        Scans with a label.
    predictions : mapping of str to sequence of array_like of shape (x, y, z)
        For each method and each case: probabilities (floating point, 0 to 1), a mask (bool, or 0
        and 1), or the ensemble's labels (0, 1 and 2). An ensemble's row is the union, a second
        one, ending in `OF_BOTH`, is what both models mark.
    threshold : float or mapping of str to float, default=0.5
        Voxels whose probability reaches it are lesions; a mapping may give one for each method,
        others have 0.5. None says that labels are an ensemble's, also where none is 2.
    thresholds : array_like of shape (n,), default=THRESHOLDS
        Of the curves of methods that give probabilities.
    families : mapping of str to sequence of str, optional
        Methods that are points of one curve, such as those trained with one loss at different α.
    segment : int, default=19
        Edge in voxels of the segments of `segment_scores`, whose grid begins at the left, back and
        bottom of a scan, however it is stored. Where a case has a brain, segments outside are left
        out, except those with a lesion.
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
    verbose : bool, default=False
        Whether bars, or lines without a terminal, show how many scans are compared, and of how
        many methods the curves are drawn.

    Returns
    -------
    dict of str to DataFrame
        ``"scans"``: a row for each case and method with ``case``, ``name``, ``patient``, ``prior``
        (whether it has one), ``method``, the counts of `lesion_counts`, ``voxel_dice`` (of all
        voxels; NaN when both are empty) and the counts of `segment_scores`.
        ``"lesions"``: the rows of `lesion_table` with ``case``, ``name``, ``patient``, ``method``
        and, where the case tells, ``status`` (new, grown, stable, shrunk or unknown).
        ``"summary"``: ``part`` ("all", "with prior", "without prior"), ``method``, ``control``,
        the scores of `lesion_scores`, the mean ``voxel_dice``, and those of `segment_scores` as
        ``segment_…``. Plain scores are as published, `HEADLINES` are those that a prediction of
        everything cannot win.
        ``"intervals"``: ``part``, ``method``, ``measure``, ``value``, ``low``, ``high``:
        95 % intervals from bootstrap samples of patients, NaN of fewer than
        `FEWEST_PATIENTS`; of shares that are 0 or 1, of which all samples are alike, Wilson's
        interval.
        ``"volumes"``: see `recall_by_volume`; a lesion counts as found when any finding touches
        it, and its volume is that of the reference.
        ``"distance"``: see `distance_table`. ``"challenge"``: means of `mets_scores` over scans.
        ``"lesion_free"``: scans without lesions by name, ``n_findings`` and ``marked_mL``.
        ``"froc"``: see `froc_table`. ``"matched"``: where the threshold gives a ``sensitivity`` of
        0.85, 0.9 or 0.95 by the published rule, interpolated between thresholds: ``threshold``,
        ``false_positives_per_scan``, ``precision``, the columns ``flagged_per_scan`` and
        ``strict_…`` there, and the share found by status. False positives can fall as the
        sensitivity rises, because findings merge at low thresholds.
        ``"status"``: ``method``, ``status``, ``n``, ``n_found``, ``sensitivity``.
        ``"ensemble"``: by ``method`` the scores of all that an ensemble marks and, as ``both_…``,
        of what both models do, ``further_true`` (lesions found by one of them alone) and
        ``false_candidates`` (components of label 1 that match no lesion); of controls both mark
        all.
        ``"curves"``: ``method`` and what `threshold_curve` gives; controls are single points at
        .5.
        ``"calibration"``: ``method``, what `calibration_curve` gives, and ``error``.
        ``"families"``: the points of each family, see `family_table`.
        ``"areas"``: ``name``, ``kind`` ("thresholds", "family" or "control"), ``n_points``,
        ``low`` and ``high`` (sensitivities that the curve covers), ``area`` (see
        `precision_recall_area`) and ``area_common`` (over the range that all of its kind cover),
        of strict figures, ``area_plain``, as published, and ``froc`` with ``froc_low`` and
        ``froc_high``, its interval over patients (see `froc_score`; not of families). Areas over
        thresholds and over settings are different quantities.

    Raises
    ------
    ValueError
        If a case has no label, numbers or shapes differ, values are neither probabilities nor
        labels, or names are not possible.

    References
    ----------
    Huang et al., Med Phys 49:5773–5786, 2022, tables 1 and 2, figure 6; Moawad et al.,
    arXiv:2306.00838, 2023.
    """
    fewest_voxels = option_by_method("min_voxels", min_voxels, predictions, 1)
    limits = option_by_method("thresholds", threshold, predictions, 0.5)
    truths = reference_masks(cases)
    methods = {
        name: _checked_method(name, values, cases, limits[name], fewest_voxels[name])
        for name, values in predictions.items()
    }
    of_both = [name for name in methods if name.endswith(OF_BOTH)]
    check_own_names("predictions", methods, [*(CONTROLS if controls else ()), *of_both])
    for name, method in list(methods.items()):
        if method.labels is not None:
            methods[name + OF_BOTH] = _Method([labels == 2 for labels in method.labels])
    # Controls are no methods, so that limits by method have none for them.
    min_control_voxels = 1 if isinstance(min_voxels, Mapping) else min_voxels
    if controls:
        for name, values in control_segmentations(cases, random_state=random_state).items():
            masks = [drop_small(mask, min_control_voxels) for mask in values]
            methods[name] = _Method(masks, probabilities=masks)
    reserved = tuple(name for name in CONTROLS if name in methods) if controls else ()
    scans, further, lesions = [], [], []
    # The status of the lesions of synthetic cases by their numbers.
    statuses: list[dict[int, str]] = []
    for i, case in enumerate(progress(cases, len(cases), "compare") if verbose else cases):
        table = case.lesions
        named = () if table is None else zip(table["number"], table["status"], strict=True)
        statuses.append({int(number): str(status) for number, status in named})
        numbers = label_components(truths[i])
        # In mm to the nearest lesion.
        distance = np.full(case.shape, np.inf, np.float32)
        if truths[i].any():
            distance[:] = distance_transform_edt(~truths[i], sampling=case.spacing)
        keys: dict[str, Any] = {"case": i, "name": case.name, "patient": case.patient}
        keys["prior"] = case.prior is not None
        brain = None if case.brain is None else case.upright(case.brain)
        for name, method in methods.items():
            mask = method.masks[i]
            table = lesion_table(truths[i], mask, case.affine)
            row = {**keys, "method": name, **lesion_counts(table, small)}
            row["voxel_dice"] = dice(mask, truths[i])
            counts = segment_counts(case.upright(truths[i]), case.upright(mask), segment, brain)
            scans.append(row | {f"segment_{key}": n for key, n in counts.items()})
            row = reader_scores.scan_scores(truths[i], numbers, distance, mask, case.affine)
            further.append({**keys, "method": name, **row})
            status: Any = [statuses[i].get(number, "") for number in table["number"]]
            status = np.where(table["kind"] == "lesion", np.array(status, dtype=object), "")
            lesions.append(table.assign(**keys, method=name, status=status))
    by_scan = pd.DataFrame(scans)
    scores_by_scan = pd.DataFrame(further)
    seed = Seed(random_state)
    is_prior = by_scan["prior"]
    parts = {"all": is_prior | True}
    if is_prior.any() and not is_prior.all():
        parts |= {"with prior": is_prior, "without prior": ~is_prior}
    summary, intervals = _summary(in_parts(by_scan, parts), n_bootstrap, seed)
    summary.insert(2, "control", summary["method"].isin(reserved))
    all_lesions = joined(lesions, ["case", "name", "patient", "method"])
    with_status = all_lesions[all_lesions["status"] != ""].astype({"found": int})
    by_status = with_status.groupby(["method", "status"], sort=False)["found"]
    patients = [case.patient for case in cases]
    draws: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed.sequence("froc")}
    cases_of_parts = {part: by_scan["case"][mask].unique() for part, mask in parts.items()}
    curves, froc, matched, calibrations = {}, {}, [], []
    graded = [item for item in methods.items() if item[1].probabilities is not None]
    for name, method in progress(graded, len(graded), "curves", "method") if verbose else graded:
        volumes: Any = method.probabilities
        given: dict[str, Any] = {"min_voxels": method.min_voxels}
        if name not in reserved:
            table = reader_scores.matched_table(truths, volumes, cases_of_parts, statuses, **given)
            matched.append(table.assign(method=name))
            brains = [case.brain for case in cases]
            table = operating_curves.calibration_curve(
                truths, volumes, masks=brains, threshold=method.threshold, **given
            )
            calibrations.append(table.assign(method=name))
        # Masks have one operating point: any threshold between 0 and 1 gives it.
        given["thresholds"] = [0.5] if name in reserved else thresholds
        pairs = zip(truths, volumes, strict=True)
        curves_of_scans = [threshold_curve([truth], [scan], **given) for truth, scan in pairs]
        curves[name] = summed_curve(curves_of_scans).assign(method=name)
        froc[name] = operating_curves.froc_table(curves_of_scans, patients, **draws)
    members = operating_curves.family_table(summary[summary["part"] == "all"], families or {})
    return {
        "scans": by_scan,
        "lesions": all_lesions,
        "summary": summary,
        "intervals": intervals,
        "volumes": reader_scores.recall_by_volume(all_lesions, n_bootstrap, seed),
        "distance": reader_scores.distance_table(scores_by_scan, n_bootstrap, seed),
        "challenge": reader_scores.challenge_table(scores_by_scan),
        "lesion_free": reader_scores.lesion_free_table(scores_by_scan),
        "status": by_status.agg(n="size", n_found="sum", sensitivity="mean").reset_index(),
        "ensemble": _ensemble_table(summary, methods, reserved, truths, len(set(patients))),
        "matched": joined(matched, ["method", "part"]),
        "calibration": joined(calibrations, ["method"]),
        "families": members,
        **_curve_tables(curves, froc, members, reserved),
    }


def format_summary(tables: Mapping[str, pd.DataFrame], *, part: str = "all") -> pd.DataFrame:
    """Format the scores that marking everything cannot win, then those of the study's table 2."""
    summary = tables["summary"]
    check_word("part", part, summary["part"].unique())
    scores = summary[summary["part"] == part].set_index("method")
    published = ("sensitivity", "precision", "n_false_positives", "mDSC")
    columns = [*HEADLINES[:3], *published, "lesion_dice", "lesion_f1"]
    text = scores[columns].map(lambda value: "–" if np.isnan(value) else f"{value:.3f}")
    # By the strict rules, as the page has it, with what covers several lesions or too much.
    wrong = scores["n_false_positives"] + scores["n_flagged"]
    text.insert(2, "wrong_per_scan", (wrong / scores["n_scans"]).map("{:.2f}".format))
    text["n_false_positives"] = scores["n_false_positives"].map("{:.0f}".format)
    return text


# Methods and options -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Method:
    """Masks of a method, with probabilities or the labels of an ensemble where it has them."""

    masks: list[NDArray[np.bool_]]
    threshold: float = 0.5
    min_voxels: int = 1
    probabilities: list[NDArray[Any]] | None = None
    labels: list[NDArray[Any]] | None = None


def _checked_method(
    name: str,
    values: Sequence[ArrayLike],
    cases: Sequence[Case],
    threshold: float | None,
    min_voxels: int,
) -> _Method:
    of_ensemble = threshold is None
    threshold = 0.5 if threshold is None else threshold
    check_number(f"the threshold of {name}", threshold, above=0, most=1)
    arrays = case_tables.volumes_of_cases(values, cases, f"predictions of {name}")
    kinds = {"probabilities" if array.dtype.kind == "f" else "masks" for array in arrays}
    lowest, highest = min(array.min() for array in arrays), max(array.max() for array in arrays)
    limit = 1 if "probabilities" in kinds else 2
    if len(kinds) > 1 or lowest < 0 or highest > limit:
        raise ValueError(
            f"{name}: values from {lowest:g} to {highest:g} of {' and '.join(sorted(kinds))}; all "
            "cases need probabilities (floating point, 0 to 1), masks (0 and 1) or an ensemble's "
            "labels (0, 1 and 2)"
        )
    if "probabilities" in kinds:
        masks = [drop_small(array >= threshold, min_voxels) for array in arrays]
        return _Method(masks, float(threshold), min_voxels, arrays)
    masks = [drop_small(array, min_voxels) for array in arrays]
    labels = None
    # Only an ensemble has the label 2, for what both models mark.
    if of_ensemble or highest == 2:
        labels = [array * mask for array, mask in zip(arrays, masks, strict=True)]
    return _Method(masks, float(threshold), min_voxels, labels=labels)


def option_by_method(
    option: str, setting: Any, methods: Collection[str], default: Any
) -> dict[str, Any]:
    """Give the setting of an option for each method; a mapping may hold one for some of them."""
    values = setting if isinstance(setting, Mapping) else dict.fromkeys(methods, setting)
    check_words(f"the methods of {option}", values, methods)
    return dict.fromkeys(methods, default) | dict(values)


# Tables ------------------------------------------------------------------------------------------


def _scores(counts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Compute all scores of a summary from sums of counts over scans."""
    scores: dict[str, NDArray[Any]] = scores_from_counts(counts)
    scores["voxel_dice"] = ratio(counts["voxel_dice"], scores.pop("n_voxel_dice"))
    rates = segment_rates({key: counts[f"segment_{key}"] for key in SEGMENT_COUNTS})
    return scores | {f"segment_{key}": value for key, value in rates.items()}


def _summary(
    scans: pd.DataFrame, n_bootstrap: int, seed: Seed
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score all scans of a method and part together, with intervals over patients."""
    keys = ["part", "method"]
    scans = scans.assign(n_voxel_dice=scans["voxel_dice"].notna())
    columns = scans.columns.difference(["case", "name", "patient", "prior", *keys], sort=False)
    tables = []
    for part, table in scans.groupby("part", sort=False):
        # The samples of patients are the same for all methods.
        draws: dict[str, Any] = {"seed": seed.sequence("bootstrap", part), "trials": _TRIALS}
        tables.append(summarize(table, keys, columns, _scores, n_bootstrap=n_bootstrap, **draws))
    summary = pd.concat(tables, ignore_index=True)
    rows = [
        [row["part"], row["method"], name, *(row[name + end] for end in ("", "_low", "_high"))]
        for row in summary.to_dict("records")
        for name in (_INTERVALS if n_bootstrap else ())
    ]
    intervals = pd.DataFrame(rows, columns=[*keys, "measure", "value", "low", "high"])
    ends = summary.filter(regex="_low$|_high$").columns
    return summary.drop(columns=["n_patients", *ends]), intervals


def _ensemble_table(
    summary: pd.DataFrame,
    methods: Mapping[str, _Method],
    controls: Collection[str],
    truths: Sequence[NDArray[np.bool_]],
    n_patients: int,
) -> pd.DataFrame:
    """Compare all that ensembles mark with what both models do; of controls both mark all."""
    scores = summary[summary["part"] == "all"].set_index("method")
    ensembles = [name for name, method in methods.items() if method.labels is not None]
    rows = []
    for name in (*ensembles, *controls) if ensembles else ():
        labels = methods[name].labels
        union, both = scores.loc[name], scores.loc[name if labels is None else name + OF_BOTH]
        row = {"method": name, "control": labels is None}
        row |= {key: union[key] for key in _SCORES_OF_BOTH}
        row |= {f"both_{key}": both[key] for key in _SCORES_OF_BOTH}
        # A lesion that both mark in part is no further one, so candidates are not counted alone.
        counts = {"further_true": union["n_found"] - both["n_found"], "false_candidates": 0.0}
        for truth, marks in zip(truths, labels or (), strict=labels is not None):
            matching = Matching.of(truth, marks == 1)
            counts["false_candidates"] += np.count_nonzero(matching.false_positive)
        for key, n in counts.items():
            row |= {key: n, f"{key}_per_scan": n / len(truths)}
            row[f"{key}_per_patient"] = n / n_patients
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["method", "control"])


def _curve_tables(
    curves: Mapping[str, pd.DataFrame],
    froc: Mapping[str, tuple[pd.DataFrame, dict[str, float]]],
    members: pd.DataFrame,
    controls: Collection[str],
) -> dict[str, pd.DataFrame]:
    """Join curves over thresholds and their readings at rates of false positives; take areas."""
    graded = [name for name in curves if name not in controls]
    by_kind = {
        "thresholds": {name: curves[name] for name in graded},
        "family": {str(name): points for name, points in members.groupby("family", sort=False)},
        "control": {name: curves[name] for name in controls},
    }
    areas = [operating_curves.area_table(of_kind, kind) for kind, of_kind in by_kind.items()]
    # The points of a family are different trainings, which have no common FROC curve.
    scores = pd.DataFrame.from_dict({name: froc[name][1] for name in froc}, orient="index")
    scores = scores.reindex(columns=["froc", "froc_low", "froc_high"])
    readings = [froc[name][0].assign(method=name) for name in graded]
    return {
        "curves": joined(list(curves.values()), ["method"]),
        "froc": joined(readings, operating_curves.FROC_COLUMNS),
        "areas": joined(areas, list(areas[0])).join(scores, on="name"),
    }


def segment_scores(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    segment: int = 19,
    threshold: float = 0.5,
    masks: Sequence[ArrayLike | None] | None = None,
) -> dict[str, float]:
    """
    Score whether segments hold lesions, as losses over segments see them.

    The grid of segments is that of the network's output tiles: cubes from the first voxel on,
    those at the far sides may be cut. A segment is positive when any of its voxels is. Give
    volumes in RAS order (`Case.upright`): counts depend on where the grid begins.

    Parameters
    ----------
    labels : sequence of array_like of shape (x, y, z)
        1 in lesions and 0 elsewhere, for each scan.
    probabilities : sequence of array_like of shape (x, y, z)
        Predicted, 0 to 1, or masks.
    segment : int, default=19
        Edge of a segment in voxels.
    threshold : float, default=0.5
        Voxels that reach it are positive.
    masks : sequence of array_like of shape (x, y, z) or None, optional
        Where a segment has to have a voxel to count, such as the brain; None and by default all
        count.

    Returns
    -------
    dict of str to float
        ``sensitivity``, ``specificity`` and ``precision`` over the segments of all scans (NaN
        where there is nothing to compute from); ``n_positive`` and ``n_negative`` segments,
        ``true_positives`` and ``true_negatives`` among them.

    Raises
    ------
    ValueError
        If there is no scan, numbers or shapes differ, or the edge is none.

    References
    ----------
    Huang et al., Med Phys 49:5773–5786, 2022, table 1 (the grid is not stated there).
    """
    masks = [None] * len(labels) if masks is None else masks
    if not len(labels) or not len(labels) == len(probabilities) == len(masks):
        raise ValueError(
            f"{counted(len(labels), 'label')} and {counted(len(probabilities), 'prediction')} "
            "(and masks); give each for each scan"
        )
    rows = []
    for i, (label, probability, mask) in enumerate(zip(labels, probabilities, masks, strict=True)):
        truth = np.asarray(label) > 0
        prediction = np.asarray(probability) >= threshold
        if truth.shape != prediction.shape or truth.ndim != 3:
            raise ValueError(
                f"scan {i}: a label of shape {truth.shape} and a prediction of shape "
                f"{prediction.shape}"
            )
        rows.append(segment_counts(truth, prediction, segment, mask))
    return {key: value.item() for key, value in segment_rates(pd.DataFrame(rows).sum()).items()}


def segment_counts(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], segment: int, mask: ArrayLike | None
) -> dict[str, int]:
    """Count the segments of a scan (x, y, z), those with a voxel in a mask if there is one."""
    check_number("segment", segment, least=1, whole=True)
    positive = _any_in_segments(truth, segment)
    predicted = _any_in_segments(prediction, segment)
    if mask is not None:
        inside = _any_in_segments(np.asarray(mask) > 0, segment)
        # A lesion outside the mask counts all the same.
        counted = inside | positive
        positive, predicted = positive[counted], predicted[counted]
    counts = (positive, ~positive, positive & predicted, ~positive & ~predicted)
    return dict(zip(SEGMENT_COUNTS, (int(count.sum()) for count in counts), strict=True))


def segment_rates(counts: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Compute scores from sums of counts."""
    n = {key: np.asarray(counts[key], dtype=np.intp) for key in SEGMENT_COUNTS}
    n_predicted = n["true_positives"] + n["n_negative"] - n["true_negatives"]
    return {
        "sensitivity": ratio(n["true_positives"], n["n_positive"]),
        "specificity": ratio(n["true_negatives"], n["n_negative"]),
        "precision": ratio(n["true_positives"], n_predicted),
        **n,
    }


def _any_in_segments(mask: NDArray[np.bool_], segment: int) -> NDArray[np.bool_]:
    """Tell of each segment whether it holds a voxel of the mask."""
    # Scans are seldom a multiple of the edge; what is left over makes segments of its own.
    for axis, n in enumerate(mask.shape):
        mask = np.logical_or.reduceat(mask, np.arange(0, n, segment), axis=axis)
    return mask
