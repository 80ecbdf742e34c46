"""The reader's table: each lesion of a scan, and how it compares with the prior scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.io.components import check_affine, label_components
from dmrifit.io.nifti import image_of
from metastasis.segmentation.ensemble import (
    BOTH_LABEL,
    MARKED_BY_BOTH,
    SensitivitySpecificityEnsemble,
    segment_by,
)
from metastasis.study.lesion_sizes import FIGURES, joint_figures, lesion_figures, with_core

if TYPE_CHECKING:
    import pandas as pd

    from metastasis.scans.cases import Case

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
    "number",
    "finding",
    "change",
    *FIGURES,
    "x",
    "y",
    "z",
    "probability",
    "mean_probability",
    "prior_finding",
    *(f"prior_{name}" for name in FIGURES),
    "volume_ratio",
    "n_prior",
    "n_now",
)
#: Columns of a lesion before it is compared, and of all lesions without a prior scan.
_UNCOMPARED: dict[str, Any] = {
    "change": "",
    "prior_finding": "",
    **{f"prior_{name}": np.nan for name in FIGURES},
    "volume_ratio": np.nan,
    "n_prior": 0,
    "n_now": 1,
}
# Volumes that reach a limit exactly may miss it by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Limits:
    """Least changes of diameter and volume that count, and the distance of the same lesion."""

    grown: float
    shrunk: float
    min_change: float
    tolerance: float

    def check(self) -> None:
        for name, value in asdict(self).items():
            upper, words = (1, " and below 1") if name == "shrunk" else (np.inf, "")
            if not 0 <= value < upper:
                raise ValueError(f"{name} must be 0 or more{words}, not {value!r}")

    def change(self, before: float, after: float) -> str:
        """Name the change between two volumes in mL."""
        if abs(after - before) < self.min_change * (1 - _ROUNDING):
            return "stable"
        # Of balls, diameters are in the ratio of the cube roots of volumes.
        diameter_ratio = (after / before) ** (1 / 3)
        if diameter_ratio >= (1 + self.grown) * (1 - _ROUNDING):
            return "grown"
        if diameter_ratio <= (1 - self.shrunk) * (1 + _ROUNDING):
            return "shrunk"
        return "stable"


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
        0 background, 1 candidate, 2 marked by both; or a mask of 0 and 1, whose lesions are all
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
        A row for each lesion, those that both mark first and the largest first, then those that
        vanished.

        ``number`` (of the connected component, as `label_components` counts; of a vanished one, in
        the prior scan), ``finding`` (``"marked by both"``, ``"candidate"``, ``"prior only"``),
        ``change`` (``"new"``, ``"grown"``,
        ``"stable"``, ``"shrunk"``, ``"vanished"``; empty without a prior scan), the figures of
        `metastasis.study.lesion_sizes.lesion_figures`, ``x``, ``y``, ``z`` (center in mm RAS+),
        ``probability`` (the largest in it) and ``mean_probability`` (NaN without probabilities),
        ``prior_finding``, the same figures of the prior scan (``prior_volume_mL`` and so on),
        ``volume_ratio`` (now to then, of volumes with their cores), ``n_prior`` and ``n_now``.

        Lesions that merged or came apart are compared together: the prior volumes and
        ``volume_ratio`` are then those of the ``n_prior`` lesions that became ``n_now``, prior
        diameters are those of the longest, and all of them have the same ``change``. Where a ring
        is open in either scan, ``change`` and ``volume_ratio`` compare ``hull_mL``. Diameters are
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
    import pandas as pd

    limits = _Limits(grown, shrunk, min_change, tolerance)
    label_map = _checked_labels(labels, "the labels")
    matrix = check_affine(affine)
    limits.check()
    if probability is not None:
        probability = np.asarray(probability, dtype=np.float64)
        _check_same_shape(label_map, probability, "probability")
    if prior is not None:
        prior = _checked_labels(prior, "the prior labels")
        _check_same_shape(label_map, prior, "prior labels")
    components = label_components(label_map, connectivity=connectivity)
    filled = _with_cores(components, matrix)
    lesions = _lesion_rows(label_map, components, filled, matrix, probability)
    vanished = []
    if prior is not None:
        prior_components = label_components(prior, connectivity=connectivity)
        prior_filled = _with_cores(prior_components, matrix)
        prior_lesions = _lesion_rows(prior, prior_components, prior_filled, matrix, None)
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        pairs = _neighbor_pairs(filled, prior_filled, spacing, tolerance)
        groups = _lesion_groups(pairs, len(lesions), len(prior_lesions))
        vanished = _compare(lesions, prior_lesions, groups, limits)
    table = pd.DataFrame([*lesions, *vanished], columns=list(_COLUMNS))
    # Readers look at what both models mark first, and at the largest of it.
    finding_order = table["finding"].map(FINDINGS.index)
    order = np.lexsort((table["number"], -table["volume_mL"], finding_order))
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

    n_labels = "no" if prior_labels is None else len(prior_labels)
    if prior_labels is None:
        prior_labels = [None] * len(cases)
    if not len(cases) or len(prior_labels) != len(cases):
        raise ValueError(
            f"{len(cases)} cases and {n_labels} prior labels; give a case at least, and labels "
            "for each or none"
        )
    tables = []
    for i, (case, prior) in enumerate(zip(cases, prior_labels, strict=True)):
        labels, probability = _segment(segmenter, case, "image")
        if prior is None and case.prior is not None:
            prior, _ = _segment(segmenter, case, "prior")
        table = reader_table(labels, case.affine, probability=probability, prior=prior, **options)
        table.insert(0, "case", i)
        table.insert(1, "name", case.name)
        table.insert(2, "patient", case.patient)
        tables.append(table)
    # Empty tables would change the types of columns; one of them is enough where all are empty.
    filled = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(filled, ignore_index=True)


def _lesion_rows(
    labels: NDArray[np.uint8],
    components: NDArray[np.int32],
    filled: NDArray[np.int32],
    affine: NDArray[np.float64],
    probability: NDArray[np.float64] | None,
) -> list[dict[str, Any]]:
    """Describe each connected component of a scan, before any comparison."""
    from scipy import ndimage

    rows = []
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        inside = components[box] == number
        is_of_both = (labels[box][inside] == BOTH_LABEL).any()
        center = np.argwhere(inside).mean(axis=0) + [side.start for side in box]
        x, y, z = (affine[:3, :3] @ center + affine[:3, 3]).tolist()
        row = _UNCOMPARED | {
            "number": number,
            "finding": MARKED_BY_BOTH if is_of_both else _CANDIDATE,
            **lesion_figures(inside, filled[box] == number, affine),
            "x": x,
            "y": y,
            "z": z,
            "probability": np.nan,
            "mean_probability": np.nan,
        }
        if probability is not None:
            row["probability"] = float(probability[box][inside].max())
            row["mean_probability"] = float(probability[box][inside].mean())
        rows.append(row)
    return rows


def _with_cores(components: NDArray[np.int32], affine: NDArray[np.float64]) -> NDArray[np.int32]:
    """Add its core to each lesion; another lesion in it stays: (x, y, z) to (x, y, z)."""
    from scipy import ndimage

    filled = components.copy()
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        whole = with_core(components[box] == number, affine)
        filled[box][whole & (filled[box] == 0)] = number
    return filled


def _neighbor_pairs(
    components: NDArray[np.int32],
    prior_components: NDArray[np.int32],
    spacing: NDArray[np.float64],
    tolerance: float,
) -> list[tuple[int, int]]:
    """List the indices of lesions and prior lesions that come as close as the tolerance."""
    from scipy import ndimage

    margin = np.ceil(tolerance / spacing).astype(int)
    pairs = []
    for i, box in enumerate(ndimage.find_objects(components)):
        sides = zip(box, margin, strict=True)
        # Distances are computed only where they can lie within the tolerance.
        wide_box = tuple(slice(max(side.start - m, 0), side.stop + m) for side, m in sides)
        neighbors = prior_components[wide_box]
        if not neighbors.any():
            continue
        distance = ndimage.distance_transform_edt(components[wide_box] != i + 1, sampling=spacing)
        is_near = (distance <= tolerance) & (neighbors > 0)
        pairs += [(i, int(number) - 1) for number in np.unique(neighbors[is_near])]
    return pairs


def _lesion_groups(
    pairs: Sequence[tuple[int, int]], n_lesions: int, n_prior: int
) -> NDArray[np.intp]:
    """Give the group of each lesion, then of each prior one; matching lesions share a group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Lesions merge and come apart, so that one may match several: what hangs together is compared
    # as a whole.
    lesion, prior_lesion = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    n = n_lesions + n_prior
    edges = (np.ones(len(pairs)), (lesion, n_lesions + prior_lesion))
    return connected_components(coo_array(edges, shape=(n, n)), directed=False)[1].astype(np.intp)


def _compare(
    lesions: list[dict[str, Any]],
    prior_lesions: list[dict[str, Any]],
    groups: NDArray[np.intp],
    limits: _Limits,
) -> list[dict[str, Any]]:
    """Enter the comparison into the rows of lesions, and give the rows of vanished ones."""
    vanished = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        now = [lesions[k] for k in members if k < len(lesions)]
        then = [prior_lesions[k - len(lesions)] for k in members if k >= len(lesions)]
        if not then:
            # Without a prior lesion, nothing joins two lesions: the group has one.
            now[0]["change"] = "new"
        elif not now:
            vanished += [_vanished_row(row) for row in then]
        else:
            comparison = _comparison(now, then, limits)
            for row in now:
                row |= comparison
    return vanished


def _vanished_row(prior_lesion: dict[str, Any]) -> dict[str, Any]:
    return prior_lesion | {
        "finding": _PRIOR_ONLY,
        "change": "vanished",
        **joint_figures([]),
        "prior_finding": prior_lesion["finding"],
        **_prior_columns([prior_lesion]),
        "volume_ratio": 0.0,
        "n_prior": 1,
        "n_now": 0,
    }


def _comparison(
    now: list[dict[str, Any]], then: list[dict[str, Any]], limits: _Limits
) -> dict[str, Any]:
    """Compare lesions that are the same, several where they merged or came apart."""
    # A ring whose core grows has grown, though its wall may thin.
    volume = "volume_with_core_mL"
    if any(row["open_ring"] for row in [*now, *then]):
        # A ring that closes in one scan only would seem to grow by its whole core.
        volume = "hull_mL"
    before = sum(row[volume] for row in then)
    after = sum(row[volume] for row in now)
    was_of_both = any(row["finding"] == MARKED_BY_BOTH for row in then)
    return {
        "change": limits.change(before, after),
        "prior_finding": MARKED_BY_BOTH if was_of_both else _CANDIDATE,
        **_prior_columns(then),
        "volume_ratio": after / before,
        "n_prior": len(then),
        "n_now": len(now),
    }


def _prior_columns(prior_lesions: list[dict[str, Any]]) -> dict[str, Any]:
    return {f"prior_{name}": value for name, value in joint_figures(prior_lesions).items()}


def _segment(
    segmenter: Any, case: Case, field: str
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Segment the image of a case with its prior, or the prior alone."""
    models = [segmenter]
    if isinstance(segmenter, SensitivitySpecificityEnsemble):
        models = [segmenter.sensitive, segmenter.specific]
    scan: dict[str, Any] = {"volumes": [_volume(getattr(case, field), case, models)]}
    if field == "image" and case.prior is not None:
        scan["priors"] = [_volume(case.prior, case, models)]
    if case.brain is not None:
        scan["masks"] = [_volume(case.brain.astype(np.uint8), case, models)]
    return next(iter(segment_by(segmenter, **scan)))


def _volume(values: NDArray[Any], case: Case, models: Sequence[Any]) -> Any:
    """Give an image where a model resamples, which it cannot do to an array."""
    if all(getattr(model, "spacing", None) is None for model in models):
        return values
    return image_of(values, case.affine)


def _checked_labels(values: ArrayLike, name: str) -> NDArray[np.uint8]:
    labels = np.asarray(values)
    is_volume = labels.ndim == 3 and labels.dtype.kind in "biuf"
    if not is_volume or not np.isin(labels, (0, 1, BOTH_LABEL)).all():
        raise ValueError(
            f"{name} must be a volume of 0, 1 (candidate) and 2 (marked by both), not "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.uint8)


def _check_same_shape(labels: NDArray[Any], values: NDArray[Any], name: str) -> None:
    if values.shape != labels.shape:
        raise ValueError(
            f"labels of shape {labels.shape} and {name} of shape {values.shape}; bring them to "
            "one grid"
        )
