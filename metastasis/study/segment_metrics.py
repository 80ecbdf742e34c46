"""Whether segments of a scan hold lesions: the level on which the losses are defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted
from dmrifit.stats.lesion_matching import ratio

__all__ = ["segment_scores"]

#: What is counted in a scan.
SEGMENT_COUNTS = ("n_positive", "n_negative", "true_positives", "true_negatives")


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
    those at the far sides may be cut. A segment is positive when any of its voxels is.

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
    n_masks = len(labels) if masks is None else len(masks)
    if not len(labels) or not len(labels) == len(probabilities) == n_masks:
        raise ValueError(
            f"{counted(len(labels), 'label')} and {counted(len(probabilities), 'prediction')} "
            "(and masks); give each for each scan"
        )
    sums = dict.fromkeys(SEGMENT_COUNTS, 0)
    for i, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        truth = np.asarray(label) > 0
        prediction = np.asarray(probability) >= threshold
        if truth.shape != prediction.shape or truth.ndim != 3:
            raise ValueError(
                f"scan {i}: a label of shape {truth.shape} and a prediction of shape "
                f"{prediction.shape}"
            )
        mask = None if masks is None else masks[i]
        counts = segment_counts(truth, prediction, segment, mask)
        for key in SEGMENT_COUNTS:
            sums[key] += counts[f"segment_{key}"]
    return {key: value.item() for key, value in segment_rates(sums).items()}


def segment_counts(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], segment: int, mask: ArrayLike | None
) -> dict[str, int]:
    """Count the segments of a scan (x, y, z), those with a voxel in a mask if there is one."""
    if isinstance(segment, bool) or not isinstance(segment, int | np.integer) or segment < 1:
        raise ValueError(f"segments need an edge of 1 voxel or more, not {segment!r}")
    positive = _any_in_segments(truth, segment)
    predicted = _any_in_segments(prediction, segment)
    if mask is not None:
        inside = _any_in_segments(np.asarray(mask) > 0, segment)
        # A lesion outside the mask counts all the same.
        counted = inside | positive
        positive, predicted = positive[counted], predicted[counted]
    counts = (positive, ~positive, positive & predicted, ~positive & ~predicted)
    names = (f"segment_{key}" for key in SEGMENT_COUNTS)
    return dict(zip(names, (int(count.sum()) for count in counts), strict=True))


def segment_rates(counts: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Compute scores from sums of counts."""
    n_positive, n_negative, true_positives, true_negatives = (
        counts[key] for key in SEGMENT_COUNTS
    )
    return {
        "sensitivity": ratio(true_positives, n_positive),
        "specificity": ratio(true_negatives, n_negative),
        "precision": ratio(true_positives, true_positives + n_negative - true_negatives),
        **{key: np.asarray(counts[key], dtype=np.intp) for key in SEGMENT_COUNTS},
    }


def _any_in_segments(mask: NDArray[np.bool_], segment: int) -> NDArray[np.bool_]:
    """Tell of each segment whether it holds a voxel of the mask."""
    # Scans are seldom a multiple of the edge; what is left over makes segments of its own.
    for axis, n in enumerate(mask.shape):
        mask = np.logical_or.reduceat(mask, np.arange(0, n, segment), axis=axis)
    return mask
