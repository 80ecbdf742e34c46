"""The reader's table: each lesion of a scan, and how it compares with the prior scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.stats.lesion_matching import check_affine, label_components
from metastasis.segmentation.ensemble import (
    CONFIRMED_LABEL,
    SensitivitySpecificityEnsemble,
    segment_by,
)

if TYPE_CHECKING:
    import pandas as pd

    from metastasis.scans.cases import Case

__all__ = [
    "CHANGES",
    "FINDINGS",
    "GROWN",
    "MIN_CHANGE_ML",
    "SHRUNK",
    "TOLERANCE_MM",
    "follow_up",
    "reader_table",
]

#: What a lesion can be in comparison with the prior scan.
CHANGES = ("new", "grown", "stable", "shrunk", "vanished")
#: What it is worth: label 2, label 1, and what was in the prior scan only.
FINDINGS = ("confirmed", "candidate", "prior only")
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

_MM3_PER_ML = 1000.0
_COLUMNS = (
    *(
        "number",
        "finding",
        "change",
        "volume_mL",
        "diameter_mm",
        "x",
        "y",
        "z",
        "probability",
        "mean_probability",
    ),
    *("prior_finding", "prior_volume_mL", "volume_ratio", "n_prior", "n_now"),
)


def reader_table(
    labels: ArrayLike,
    affine: ArrayLike | None = None,
    *,
    probability: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    connectivity: int = 26,
    grown: float = GROWN,
    shrunk: float = SHRUNK,
    min_change: float = MIN_CHANGE_ML,
    tolerance: float = TOLERANCE_MM,
) -> pd.DataFrame:
    """
    List the lesions of a scan for who reads it.

    Parameters
    ----------
    labels : array_like of shape (x, y, z)
        0 background, 1 candidate, 2 confirmed; or a mask of 0 and 1, whose lesions are all
        candidates.
    affine : array_like of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm; by default voxels of 1 mm.
    probability : array_like of shape (x, y, z), optional
        0 to 1.
    prior : array_like of shape (x, y, z), optional
        Labels of the prior scan, in the same way and on the same grid. Without them nothing is
        compared.
    connectivity : {26, 18, 6}, default=26
        As for `lesion_table`.
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
        A row for each lesion, the confirmed ones first and the largest first, then those that
        vanished.

        ``number`` (of the connected component, as `label_components` counts; of a vanished one, in
        the prior scan), ``finding`` (``"confirmed"``, ``"candidate"``, ``"prior only"``),
        ``change`` (``"new"``, ``"grown"``,
        ``"stable"``, ``"shrunk"``, ``"vanished"``; empty without a prior scan), ``volume_mL``,
        ``diameter_mm`` (of the ball of that volume), ``x``, ``y``, ``z`` (center in mm RAS+),
        ``probability`` (the largest in it) and ``mean_probability`` (NaN without probabilities),
        ``prior_finding``, ``prior_volume_mL``, ``volume_ratio`` (now to then), ``n_prior`` and
        ``n_now``.

        Lesions that merged or came apart are compared together: ``prior_volume_mL`` and
        ``volume_ratio`` are then those of the ``n_prior`` lesions that became ``n_now``, and all
        of them have the same ``change``. Diameters are compared as cube roots of volumes: grown by
        20 % is 1.73 times the volume, shrunk by 30 % is 0.34 times.

    Raises
    ------
    ValueError
        If shapes differ, a label is not 0, 1 or 2, or a threshold is not possible.

    References
    ----------
    Lin et al., Lancet Oncol 16:e270–e278, 2015 (RANO-BM; there of longest diameters, with 5 mm at
    least).
    """
    import pandas as pd

    now, matrix = _labels(labels, "the labels"), check_affine(affine)
    _check_limits(grown=grown, shrunk=shrunk, min_change=min_change, tolerance=tolerance)
    values = None if probability is None else np.asarray(probability, dtype=np.float64)
    then = None if prior is None else _labels(prior, "the prior labels")
    for name, other in (("probability", values), ("prior labels", then)):
        if other is not None and other.shape != now.shape:
            raise ValueError(
                f"labels of shape {now.shape} and {name} of shape {other.shape}; bring them to "
                "one grid"
            )
    parts = label_components(now, connectivity=connectivity)
    rows = _described(now, parts, matrix, values)
    if then is not None:
        before = label_components(then, connectivity=connectivity)
        earlier = _described(then, before, matrix, None)
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        groups = _same(parts, before, len(rows), len(earlier), spacing, tolerance)
        rows += _compared(rows, earlier, groups, grown=grown, shrunk=shrunk, min_change=min_change)
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    order = np.lexsort(
        (table["number"], -table["volume_mL"], table["finding"].map(FINDINGS.index))
    )
    table = table.iloc[order].reset_index(drop=True)
    return table.astype({key: np.intp for key in ("number", "n_prior", "n_now")})


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
    import pandas as pd

    if not len(cases) or (prior_labels is not None and len(prior_labels) != len(cases)):
        n = "no" if prior_labels is None else len(prior_labels)
        raise ValueError(
            f"{len(cases)} cases and {n} prior labels; give a case at least, and labels for each "
            "or none"
        )
    tables = []
    for i, case in enumerate(cases):
        labels, probability = _segmented(segmenter, case, "image")
        known = None if prior_labels is None else prior_labels[i]
        if known is None and case.prior is not None:
            known = _segmented(segmenter, case, "prior")[0]
        table = reader_table(labels, case.affine, probability=probability, prior=known, **options)
        table.insert(0, "case", i)
        table.insert(1, "name", case.name)
        table.insert(2, "patient", case.patient)
        tables.append(table)
    filled = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(filled, ignore_index=True)


# Lesions of a scan -----------------------------------------------------------------------------


def _described(
    labels: NDArray[np.uint8],
    parts: NDArray[np.int32],
    affine: NDArray[np.float64],
    probability: NDArray[np.float64] | None,
) -> list[dict[str, Any]]:
    from scipy import ndimage

    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / _MM3_PER_ML
    rows = []
    for i, box in enumerate(ndimage.find_objects(parts)):
        inside = parts[box] == i + 1
        center = np.argwhere(inside).mean(axis=0) + [side.start for side in box]
        volume = float(inside.sum()) * voxel
        row: dict[str, Any] = {
            "number": i + 1,
            "volume_mL": volume,
            "diameter_mm": _diameter(volume),
        }
        row["finding"] = (
            FINDINGS[0] if (labels[box][inside] == CONFIRMED_LABEL).any() else FINDINGS[1]
        )
        row |= dict(zip("xyz", (affine[:3, :3] @ center + affine[:3, 3]).tolist(), strict=True))
        chosen = np.array([np.nan]) if probability is None else probability[box][inside]
        row |= {"probability": float(chosen.max()), "mean_probability": float(chosen.mean())}
        row |= {
            "change": "",
            "prior_finding": "",
            "prior_volume_mL": np.nan,
            "volume_ratio": np.nan,
        }
        rows.append(row | {"n_prior": 0, "n_now": 1})
    return rows


def _diameter(volume: float) -> float:
    """Give the diameter in mm of a ball of so many mL."""
    return float((6 * volume * _MM3_PER_ML / np.pi) ** (1 / 3))


def _same(
    parts: NDArray[np.int32],
    before: NDArray[np.int32],
    n_now: int,
    n_then: int,
    spacing: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.intp]:
    """Group matching lesions of this scan and of the prior one."""
    from scipy import ndimage
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    margin = np.ceil(tolerance / spacing).astype(int)
    near: list[tuple[int, int]] = []
    for i, box in enumerate(ndimage.find_objects(parts)):
        wide = tuple(
            slice(max(side.start - m, 0), side.stop + m)
            for side, m in zip(box, margin, strict=True)
        )
        others = before[wide]
        if others.any():
            away = ndimage.distance_transform_edt(parts[wide] != i + 1, sampling=spacing)
            near += [
                (i, n_now + int(j) - 1)
                for j in np.unique(others[(away <= tolerance) & (others > 0)])
            ]
    first, second = np.array(near, dtype=np.intp).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n_now + n_then,) * 2)
    return connected_components(graph, directed=False)[1].astype(np.intp)


def _compared(
    rows: list[dict[str, Any]],
    earlier: list[dict[str, Any]],
    groups: NDArray[np.intp],
    *,
    grown: float,
    shrunk: float,
    min_change: float,
) -> list[dict[str, Any]]:
    """Complete the rows of lesions, and give those of vanished ones."""
    vanished = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        now = [rows[k] for k in members if k < len(rows)]
        then = [earlier[k - len(rows)] for k in members if k >= len(rows)]
        for row in then if not now else ():
            gone = {
                "finding": FINDINGS[2],
                "change": "vanished",
                "prior_finding": row["finding"],
                "volume_ratio": 0.0,
            }
            gone |= {"prior_volume_mL": row["volume_mL"], "volume_mL": 0.0, "diameter_mm": 0.0}
            vanished.append(row | gone | {"n_prior": 1, "n_now": 0})
        if now and not then:
            now[0]["change"] = "new"
        if now and then:
            after, before = (sum(row["volume_mL"] for row in some) for some in (now, then))
            finding = (
                FINDINGS[0] if any(row["finding"] == FINDINGS[0] for row in then) else FINDINGS[1]
            )
            found = {
                "change": _change(before, after, grown, shrunk, min_change),
                "prior_finding": finding,
            }
            found |= {"prior_volume_mL": before, "volume_ratio": after / before}
            for row in now:
                row |= found | {"n_prior": len(then), "n_now": len(now)}
    return vanished


def _change(before: float, after: float, grown: float, shrunk: float, min_change: float) -> str:
    ratio = (after / before) ** (1 / 3)
    if abs(after - before) < min_change * (1 - 1e-9):
        return "stable"
    if ratio >= (1 + grown) * (1 - 1e-9):
        return "grown"
    return "shrunk" if ratio <= (1 - shrunk) * (1 + 1e-9) else "stable"


# What is given ---------------------------------------------------------------------------------


def _segmented(
    segmenter: Any, case: Case, which: str
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Segment the image of a case with its prior, or the prior alone."""
    models = [segmenter]
    if isinstance(segmenter, SensitivitySpecificityEnsemble):
        models = [segmenter.sensitive, segmenter.specific]
    given: dict[str, Any] = {}
    if which == "image" and case.prior is not None:
        given["priors"] = [_volume(case.prior, case, models)]
    if case.brain is not None:
        given["masks"] = [_volume(case.brain.astype(np.uint8), case, models)]
    return next(
        iter(segment_by(segmenter, [_volume(getattr(case, which), case, models)], **given))
    )


def _volume(values: NDArray[Any], case: Case, models: Sequence[Any]) -> Any:
    """Give an image where a model resamples, which it cannot do to an array."""
    if all(getattr(model, "spacing", None) is None for model in models):
        return values
    import nibabel as nib

    return nib.Nifti1Image(values, case.affine)


def _labels(values: ArrayLike, name: str) -> NDArray[np.uint8]:
    array = np.asarray(values)
    if (
        array.ndim != 3
        or array.dtype.kind not in "biuf"
        or not np.isin(array, (0, 1, CONFIRMED_LABEL)).all()
    ):
        raise ValueError(
            f"{name} must be a volume of 0, 1 (candidate) and 2 (confirmed), not {array.dtype} of "
            f"shape {array.shape}"
        )
    return array.astype(np.uint8)


def _check_limits(**limits: float) -> None:
    for name, value in limits.items():
        if not 0 <= value < (1 if name == "shrunk" else np.inf):
            raise ValueError(
                f"{name} must be 0 or more{' and below 1' if name == 'shrunk' else ''}, not "
                f"{value!r}"
            )
