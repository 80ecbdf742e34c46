"""Whether segments of a scan hold lesions: the level on which the losses are defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SEGMENT_COUNTS", "segment_counts", "segment_rates", "segment_scores"]

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
    if not len(labels) == len(probabilities) == len(labels if masks is None else masks) or not len(
        labels
    ):
        raise ValueError(
            f"{len(labels)} labels and {len(probabilities)} predictions (and masks); give each "
            "for each scan"
        )
    rows = []
    for i, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        truth, found = np.asarray(label) > 0, np.asarray(probability) >= threshold
        if truth.shape != found.shape or truth.ndim != 3:
            raise ValueError(
                f"scan {i}: a label of shape {truth.shape} and a prediction of shape {found.shape}"
            )
        rows.append(segment_counts(truth, found, segment, None if masks is None else masks[i]))
    return segment_rates(
        {key: sum(row[f"segment_{key}"] for row in rows) for key in SEGMENT_COUNTS}
    )


def segment_counts(
    truth: NDArray[np.bool_], found: NDArray[np.bool_], segment: int, mask: ArrayLike | None
) -> dict[str, int]:
    """
    Count the segments of a scan.

    Shapes: `truth` (x, y, z), `found` (x, y, z), `mask` (x, y, z).
    """
    if isinstance(segment, bool) or not isinstance(segment, int | np.integer) or segment < 1:
        raise ValueError(f"segments need an edge of 1 voxel or more, not {segment!r}")
    positive, predicted = _any_in_segments(truth, segment), _any_in_segments(found, segment)
    if mask is not None:
        inside = _any_in_segments(np.asarray(mask) > 0, segment)
        # A lesion outside the mask counts all the same.
        positive, predicted = positive[inside | positive], predicted[inside | positive]
    counts = (
        positive.sum(),
        (~positive).sum(),
        (positive & predicted).sum(),
        (~positive & ~predicted).sum(),
    )
    return {
        f"segment_{key}": int(value) for key, value in zip(SEGMENT_COUNTS, counts, strict=True)
    }


def _any_in_segments(mask: NDArray[np.bool_], segment: int) -> NDArray[np.bool_]:
    padded = np.pad(mask, [(0, -n % segment) for n in mask.shape])
    parts = [side for n in padded.shape for side in (n // segment, segment)]
    return np.any(padded.reshape(parts), axis=(1, 3, 5))


def segment_rates(counts: Mapping[str, float]) -> dict[str, float]:
    """Compute scores from sums of counts."""
    positive, negative, hits, right = (float(counts[key]) for key in SEGMENT_COUNTS)
    predicted = hits + negative - right
    return {
        "sensitivity": hits / positive if positive else float("nan"),
        "specificity": right / negative if negative else float("nan"),
        "precision": hits / predicted if predicted else float("nan"),
        **{key: int(counts[key]) for key in SEGMENT_COUNTS},
    }
