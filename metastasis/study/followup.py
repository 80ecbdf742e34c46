"""The reader's table: each lesion of a scan, and how it compares with the prior scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dmrifit._utils.checks import check_number
from dmrifit.io import case_tables
from dmrifit.io.components import check_affine, label_components
from dmrifit.io.grids import Volume
from dmrifit.stats.patient_summary import joined
from metastasis.scans.cases import Case
from metastasis.segmentation.ensemble import BOTH_LABEL, MARKED_BY_BOTH, models_of, segment_by
from metastasis.study.lesion_sizes import FIGURES, joint_figures, lesion_figures, with_core

__all__ = ["follow_up", "reader_table"]

#: What a lesion can be in comparison with the prior scan.
CHANGES = ("new", "grown", "stable", "shrunk", "vanished")
#: What it is worth: label 2, label 1, and what was in the prior scan only.
FINDINGS = (MARKED_BY_BOTH, "candidate", "prior only")
#: A lesion has grown when its diameter did by 20 % or more, as RANO-BM calls progress.
GROWN = 0.2
#: It has shrunk when its diameter did by 30 % or more, as RANO-BM calls a partial response.
SHRUNK = 0.3
#: Smaller changes of the volume in mL are none: ten voxels of 1 mm, and one more or less is
#: chance.
MIN_CHANGE_ML = 0.01
#: Lesions of both scans are the same when they come as close as this, in mm: priors are aligned to
#: a voxel or two.
TOLERANCE_MM = 2.0

_, _CANDIDATE, _PRIOR_ONLY = FINDINGS
_COLUMNS = (
    *("number", "finding", "change", *FIGURES, "x", "y", "z", "probability", "mean_probability"),
    *("prior_finding", *(f"prior_{name}" for name in FIGURES), "volume_ratio", "n_prior", "n_now"),
)
#: What these columns hold of a lesion that is compared with none; others hold NaN.
_UNCOMPARED: dict[str, Any] = {"change": "", "prior_finding": "", "n_prior": 0, "n_now": 1}
# Volumes that reach a limit exactly may miss it by rounding.
_ROUNDING = 1e-9


def reader_table(
    labels: ArrayLike,
    affine: ArrayLike | None = None,
    *,
    probability: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    grown: float = GROWN,
    shrunk: float = SHRUNK,
    min_change: float = MIN_CHANGE_ML,
    tolerance: float = TOLERANCE_MM,
) -> pd.DataFrame:
    """
    List the lesions of a scan for its reader.

    Parameters
    ----------
    labels : array_like of shape (x, y, z)
        0 background, 1 candidate, 2 marked by both; or a mask of 0 and 1, whose lesions are all
        candidates.
    affine : array_like of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm; by default voxels of 1 mm.
    probability : array_like of shape (x, y, z), optional
        0 to 1.
    prior : array_like of shape (x, y, z), optional
        Labels of the prior scan, in the same way and on the same grid. Without them nothing is
        compared.
    grown : float, default=0.2
        Relative growth in diameter from which a lesion has grown.
    shrunk : float, default=0.3
        Relative loss in diameter from which it has shrunk.
    min_change : float, default=0.01
        Least change in mL for either.
    tolerance : float, default=2.0
        Distance in mm up to which lesions of both scans are the same.

    Returns
    -------
    DataFrame
        A row for each lesion, those that both mark first and the largest first, then those that
        vanished.

        ``number`` (1 is the largest connected component of either label; of a vanished one, in
        the prior scan), ``finding`` (``"marked by both"``, ``"candidate"``, ``"prior only"``),
        ``change`` (``"new"``, ``"grown"``,
        ``"stable"``, ``"shrunk"``, ``"vanished"``; empty without a prior scan), the figures of
        `metastasis.study.lesion_sizes.lesion_figures`, ``x``, ``y``, ``z`` (center in mm RAS+),
        ``probability`` (the largest in it) and ``mean_probability`` (NaN without probabilities),
        ``prior_finding``, the same figures of the prior scan (``prior_volume_mL`` and so on),
        ``volume_ratio`` (now to then, of volumes with their cores), ``n_prior`` and ``n_now``.

        Lesions that merged or came apart are compared together: the prior volumes and
        ``volume_ratio`` are then those of the ``n_prior`` lesions that became ``n_now``, prior
        diameters (but for the sphere's) are those of the longest, and all of them have the same
        ``change``, while ``volume_mL`` and the other figures without ``prior_`` are those of each
        lesion alone: a piece may have less volume than its ``volume_ratio`` says. Where a ring is
        open in either scan, ``change`` and ``volume_ratio`` compare ``hull_mL``. Diameters are
        compared as cube roots of volumes: grown by 20 % is 1.73 times the volume, shrunk by 30 %
        is 0.34 times.

    Raises
    ------
    ValueError
        If shapes differ, a label is not 0, 1 or 2, or a threshold is not possible.

    References
    ----------
    Lin et al., Lancet Oncol 16:e270–e278, 2015 (RANO-BM; there of longest diameters, with 5 mm at
    least).
    """
    limits = {"grown": grown, "shrunk": shrunk, "min_change": min_change}
    for name, value in (limits | {"tolerance": tolerance}).items():
        check_number(name, value, below=1 if name == "shrunk" else np.inf)
    label_map = _checked_labels(labels, "the labels")
    matrix = check_affine(affine)
    if probability is not None:
        probability = np.asarray(probability, dtype=np.float64)
        case_tables.check_shape(probability, label_map.shape, "the probability")
    filled, rows = _lesions(label_map, matrix, probability)
    if prior is not None:
        prior = _checked_labels(prior, "the prior labels")
        case_tables.check_shape(prior, label_map.shape, "the label of the prior scan")
        prior_filled, prior_rows = _lesions(prior, matrix, None)
        groups = _groups(filled, prior_filled, matrix, tolerance)
        rows = _changed_rows(rows, prior_rows, groups, limits)
    table = pd.DataFrame([_UNCOMPARED | row for row in rows], columns=list(_COLUMNS))
    # Readers look at what both models mark first, and at the largest of it.
    finding_order = table["finding"].map(FINDINGS.index)
    order = np.lexsort((table["number"], -table["volume_mL"], finding_order))
    table = table.iloc[order].reset_index(drop=True)
    return table.astype({key: np.intp for key in ("number", "n_prior", "n_now")})


def changes_in_words(table: pd.DataFrame) -> str:
    """Count the changes in a `reader_table`; lesions that merged or came apart count once."""
    words = []
    for change in CHANGES:
        rows = table[table["change"] == change]
        # Each of the n_now rows of a group is one part in n_now of a change; vanished ones have 0.
        n_changes = round((1 / rows["n_now"].clip(lower=1)).sum())
        pieces = f" (in {len(rows)} pieces)" if len(rows) > n_changes else ""
        if n_changes:
            words.append(f"{n_changes} {change}{pieces}")
    return ", ".join(words) or "no finding in either scan"


def follow_up(
    segmenter: Any,
    cases: Sequence[Case],
    *,
    prior_labels: Sequence[ArrayLike | None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """
    Segment scans and, where there are any, the prior scans, and list what is in them.

    Parameters
    ----------
    segmenter : estimator
        Fitted: a `SensitivitySpecificityEnsemble`, or a single model, whose lesions are all
        candidates.
    cases : sequence of Case
        Scans; their prior scans are segmented, too, without a prior of their own.
    prior_labels : sequence of array_like of shape (x, y, z) or None, optional
        Known lesions of the prior scans, instead of segmenting them.
    **options
        Thresholds of `reader_table`.

    Returns
    -------
    DataFrame
        The rows of `reader_table`, after ``case`` (number), ``name`` and ``patient``.

    Raises
    ------
    ValueError
        If there is no case, or as `reader_table`.
    """
    if prior_labels is None:
        prior_labels = [None] * len(cases)
    if not len(cases) or len(prior_labels) != len(cases):
        raise ValueError(
            f"{len(cases)} cases and {len(prior_labels)} prior labels; give a case at least, and "
            "labels for each or none"
        )
    tables = []
    for i, (case, prior) in enumerate(zip(cases, prior_labels, strict=True)):
        labels, probability = _segment(segmenter, case, "image")
        if prior is None and case.prior is not None:
            prior, _ = _segment(segmenter, case, "prior")
        table = reader_table(labels, case.affine, probability=probability, prior=prior, **options)
        tables.append(table.assign(case=i, name=case.name, patient=case.patient))
    return joined(tables, ["case", "name", "patient"])


def _lesions(
    labels: NDArray[np.uint8], affine: NDArray[np.float64], probability: NDArray[np.float64] | None
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Describe the lesions of a scan (x, y, z), and number them with their cores."""
    components = label_components(labels, affine=affine)
    filled = components.copy()
    rows = []
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        inside = components[box] == number
        # Another lesion in the core stays.
        filled[box][with_core(inside, affine) & (filled[box] == 0)] = number
        is_of_both = (labels[box][inside] == BOTH_LABEL).any()
        center = np.argwhere(inside).mean(axis=0) + [side.start for side in box]
        x, y, z = (affine[:3, :3] @ center + affine[:3, 3]).tolist()
        row = {"number": number, "finding": MARKED_BY_BOTH if is_of_both else _CANDIDATE}
        row |= lesion_figures(inside, filled[box] == number, affine) | {"x": x, "y": y, "z": z}
        if probability is not None:
            values = probability[box][inside]
            row |= {"probability": values.max(), "mean_probability": values.mean()}
        rows.append(row)
    return filled, rows


def _groups(
    lesions: NDArray[np.int32],
    prior_lesions: NDArray[np.int32],
    affine: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.intp]:
    """Give the group of each lesion, then of each prior one; matching lesions share a group."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    margin = np.ceil(tolerance / spacing).astype(int)
    n_lesions = int(lesions.max(initial=0))
    pairs = []
    for i, box in enumerate(ndimage.find_objects(lesions)):
        # Distances are computed only where they can lie within the tolerance.
        sides = zip(box, margin, strict=True)
        wide_box = tuple(slice(max(side.start - m, 0), side.stop + m) for side, m in sides)
        distance = ndimage.distance_transform_edt(lesions[wide_box] != i + 1, sampling=spacing)
        neighbors = np.unique(prior_lesions[wide_box][distance <= tolerance])
        pairs += [(i, n_lesions + number - 1) for number in neighbors[neighbors > 0]]
    # Lesions merge and come apart, so that one may match several: what hangs together is compared
    # as a whole.
    n = n_lesions + int(prior_lesions.max(initial=0))
    places = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), tuple(places)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.intp)


def _changed_rows(
    lesions: list[dict[str, Any]],
    prior_lesions: list[dict[str, Any]],
    groups: NDArray[np.intp],
    limits: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Add the changes since the prior scan to the rows of lesions; add rows of vanished ones."""
    rows = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        current = [lesions[k] for k in members if k < len(lesions)]
        previous = [prior_lesions[k - len(lesions)] for k in members if k >= len(lesions)]
        if not previous:
            rows += [row | {"change": "new"} for row in current]
            continue
        # A ring whose core grows has grown, though its wall may thin. One that closes in one scan
        # only would seem to grow by its whole core.
        is_open = any(row["open_ring"] for row in [*current, *previous])
        volume = "hull_mL" if is_open else "volume_with_core_mL"
        before = sum(row[volume] for row in previous)
        after = sum(row[volume] for row in current)
        was_of_both = any(row["finding"] == MARKED_BY_BOTH for row in previous)
        comparison = {
            "change": _change(before, after, **limits) if current else "vanished",
            "prior_finding": MARKED_BY_BOTH if was_of_both else _CANDIDATE,
            **{f"prior_{name}": value for name, value in joint_figures(previous).items()},
            "volume_ratio": after / before,
            "n_prior": len(previous),
            "n_now": len(current),
        }
        rows += [row | comparison for row in current]
        if not current:
            # There is one: only a current lesion joins several prior ones to a group.
            rows.append(previous[0] | joint_figures([]) | comparison | {"finding": _PRIOR_ONLY})
    return rows


def _change(before: float, after: float, *, grown: float, shrunk: float, min_change: float) -> str:
    """Name the change between two volumes in mL."""
    # Of balls, diameters are in the ratio of the cube roots of volumes.
    diameter_ratio = (after / before) ** (1 / 3)
    if abs(after - before) < min_change * (1 - _ROUNDING):
        return "stable"
    if diameter_ratio >= (1 + grown) * (1 - _ROUNDING):
        return "grown"
    return "shrunk" if diameter_ratio <= (1 - shrunk) * (1 + _ROUNDING) else "stable"


def _segment(
    segmenter: Any, case: Case, field: str
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Segment the image of a case with its prior, or the prior alone."""
    priors = case.prior if field == "image" else None
    volumes = {"volumes": getattr(case, field), "priors": priors, "masks": case.brain}
    scan = {key: values for key, values in volumes.items() if values is not None}
    # A model resamples images; arrays it cannot.
    if any(getattr(model, "spacing", None) is not None for model in models_of(segmenter)):
        scan = {key: Volume.of(values, case.affine) for key, values in scan.items()}
    return next(iter(segment_by(segmenter, **{key: [values] for key, values in scan.items()})))


def _checked_labels(values: ArrayLike, name: str) -> NDArray[np.uint8]:
    labels = np.asarray(values)
    is_volume = labels.ndim == 3 and labels.dtype.kind in "biuf"
    if not is_volume or not np.isin(labels, (0, 1, BOTH_LABEL)).all():
        raise ValueError(
            f"{name} must be a volume of 0, 1 (candidate) and 2 (marked by both), not "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.uint8)
