"""Operating points: scores over thresholds, and the one for a number of false positives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted
from dmrifit.io.components import label_components, match_to_lesions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["operating_point"]

#: Thresholds of a curve.
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
#: Counts of a curve, which add up over scans.
COUNTS = ("n_lesions", "n_found", "n_distinct", "n_false_positives", "n_flagged")
_LOGITS = np.linspace(-7, 7, 57)


def threshold_curve(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    thresholds: ArrayLike = THRESHOLDS,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> pd.DataFrame:
    """
    Trace sensitivity, precision and false positives over thresholds.

    Shapes: `labels` (x, y, z), `probabilities` (x, y, z).
    """
    import pandas as pd

    pairs = paired_volumes(labels, probabilities)
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    steps = np.unique(np.asarray(thresholds, dtype=np.float64))
    if steps.ndim != 1 or not len(steps) or not ((steps >= 0) & (steps <= 1)).all():
        raise ValueError(
            f"thresholds must lie between 0 and 1, not {np.asarray(thresholds).tolist()}"
        )
    counts = np.zeros((len(steps), len(COUNTS)))
    for label, probability in pairs:
        # Labels do not change with the threshold, so their components are found once.
        lesions = label_components(label, connectivity=connectivity)
        for row, step in zip(counts, steps.tolist(), strict=True):
            found = match_to_lesions(lesions, probability >= step, **options)
            row += [
                len(found.lesion_voxels),
                found.found.sum(),
                found.distinct.sum(),
                found.false_positive.sum(),
                found.flagged.sum(),
            ]
    table = pd.DataFrame(counts.astype(np.intp), columns=list(COUNTS))
    table.insert(0, "threshold", steps)
    add_rates(table, len(pairs))
    return table


def add_rates(curve: pd.DataFrame, n_scans: int) -> None:
    """Add sensitivity, precision and false positives per scan to the counts of a curve."""
    n, hits, distinct, wrong, flagged = (curve[key] for key in COUNTS)
    # 0 / 0 is NaN where nothing is marked, or there is no lesion.
    curve["sensitivity"], curve["precision"] = hits / n, hits / (hits + wrong)
    curve["false_positives_per_scan"] = wrong / n_scans
    curve["flagged_per_scan"] = flagged / n_scans
    curve["strict_sensitivity"] = distinct / n
    curve["strict_precision"] = distinct / (distinct + wrong + flagged)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it gave on the cases that it was chosen on."""

    threshold: float  # voxels that reach it are lesions
    false_positives: float  # per scan
    sensitivity: float  # of lesions; NaN without lesions
    precision: float  # NaN without any prediction
    wanted: float  # the false positives per scan that were allowed
    n_scans: int
    n_lesions: int


def operating_point(
    labels: Sequence[ArrayLike],
    probabilities: Sequence[ArrayLike],
    *,
    false_positives: float,
    thresholds: ArrayLike | None = None,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> OperatingPoint:
    """
    Choose the threshold that gives a number of false positives per scan.

    Parameters
    ----------
    labels : sequence of array_like of shape (x, y, z)
        1 in lesions and 0 elsewhere, of validation cases: neither of patients who were learned
        from nor of those to be predicted.
    probabilities : sequence of array_like of shape (x, y, z)
        Predicted, 0 to 1.
    false_positives : float
        How many per scan are allowed.
    thresholds : array_like of shape (n,), optional
        Those to choose from; by default 57, evenly spaced in logits from −7 to 7 (.0009 to .9991).
    connectivity : {26, 18, 6}, default=26
        As for `lesion_table`.
    min_overlap : int, default=1
        As for `lesion_table`.
    min_voxels : int, default=1
        As for `lesion_table`.

    Returns
    -------
    OperatingPoint
        The lowest threshold from which on all higher ones, too, have no more false positives.
        Components that are flagged count among them: at low thresholds all grows together to a
        few.

    Raises
    ------
    ValueError
        If the number is negative, no threshold gives as few, or as for `threshold_curve`.
    """
    if not false_positives >= 0:
        raise ValueError(f"false positives per scan must be 0 or more, not {false_positives!r}")
    steps = (
        1 / (1 + np.exp(-_LOGITS))
        if thresholds is None
        else np.asarray(thresholds, dtype=np.float64)
    )
    options = {"connectivity": connectivity, "min_overlap": min_overlap, "min_voxels": min_voxels}
    curve = threshold_curve(labels, probabilities, thresholds=steps, **options)
    n_scans = len(labels)
    wrong = (curve["false_positives_per_scan"] + curve["flagged_per_scan"]).to_numpy()
    # False positives may fall and rise again as components merge; a threshold counts only if no
    # higher one gives more.
    highest_above = np.maximum.accumulate(wrong[::-1])[::-1]
    if not highest_above[-1] <= false_positives:
        highest = curve["threshold"].iloc[-1]
        raise ValueError(
            f"{wrong[-1]:g} false positives per scan at the threshold {highest:g}, not "
            f"{false_positives:g} or fewer"
        )
    row = curve.iloc[int(np.argmax(highest_above <= false_positives))]
    return OperatingPoint(
        threshold=float(row["threshold"]),
        false_positives=float(row["false_positives_per_scan"]),
        sensitivity=float(row["sensitivity"]),
        precision=float(row["precision"]),
        wanted=float(false_positives),
        n_scans=n_scans,
        n_lesions=int(row["n_lesions"]),
    )


def paired_volumes(
    labels: Sequence[ArrayLike], probabilities: Sequence[ArrayLike]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Pair labels with probabilities of the same shape, both in their own precision."""
    if len(labels) != len(probabilities) or not len(labels):
        raise ValueError(
            f"{counted(len(labels), 'label')} and {counted(len(probabilities), 'prediction')}; "
            "give both for each scan, one at least"
        )
    pairs = []
    for i, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        # Compared in their own precision, as the segmenter compares them with its threshold.
        values, truth = np.asarray(probability), np.asarray(label)
        if truth.shape != values.shape:
            raise ValueError(
                f"scan {i}: a label of shape {truth.shape} and a prediction of shape "
                f"{values.shape}"
            )
        if not np.isin(truth, (0, 1)).all():
            raise ValueError(
                f"scan {i}: a label holds values from {truth.min():g} to {truth.max():g} where 0 "
                "and 1 may stand"
            )
        if values.dtype.kind not in "fb" or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"scan {i}: values from {values.min():g} to {values.max():g} ({values.dtype}) are "
                "no probabilities"
            )
        pairs.append((truth, values))
    return pairs
