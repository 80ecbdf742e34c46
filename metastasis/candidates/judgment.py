"""Judgment of candidates: what they are in training, classifiers, and scores of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.inspection import permutation_importance
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metastasis.candidates.features import FEATURES, PRIOR_FEATURES, Candidates

#: Classifiers by name.
CLASSIFIERS = ("trees", "linear")
#: Features in the order of the columns; a flag for a prior follows.
NAMES = (*FEATURES, *PRIOR_FEATURES)

# A candidate is a metastasis if it covers this share of one, and this share of it lies in some.
_COVERS, _INSIDE = 0.1, 0.1


def make_classifier(classifier: Any, seed: int) -> Any:
    """Make a classifier by its name, or a copy of one that was passed; it learns 0 and 1."""
    if classifier == "trees":
        # Few features a split and small trees: the largest scores stay right in another brain.
        return HistGradientBoostingRegressor(
            # With 200 steps of 0.04 findings at one sensitivity varied more between seeds.
            max_iter=400,
            learning_rate=0.02,
            max_leaf_nodes=6,
            max_features=0.3,
            min_samples_leaf=30,
            l2_regularization=5.0,
            early_stopping=False,
            random_state=seed,
        )
    if classifier == "linear":
        return make_pipeline(StandardScaler(), Ridge(alpha=1.0))
    return clone(classifier)


def classifier_columns(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Give the columns that a classifier looks at, with a flag for a prior.

    Shapes: `table` (n, n_features); returns (n, n_features + 1).
    """
    # A linear model knows no missing values: no change, and a flag that says so.
    return np.hstack([np.where(np.isfinite(table), table, 0), has_prior(table)[:, None]])


def has_prior(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which candidates were compared with a prior: (n,)."""
    compared: NDArray[np.bool_] = np.any(np.isfinite(table[:, len(FEATURES) :]), axis=1)
    return compared


def without_prior(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the features that candidates have in a scan without a prior: (n, n_features)."""
    alone = table.copy()
    alone[:, len(FEATURES) :] = np.nan
    return alone


def scored_volume(
    classifier: Any, candidates: Candidates, shape: Sequence[int]
) -> NDArray[np.float32]:
    """
    Give each voxel the highest score of the components that it belongs to: (x, y, z).

    One that is too large to be judged has the mean score of its core.
    """
    scores = np.zeros(shape, dtype=np.float32)
    if not len(candidates):
        return scores
    flat = scores.reshape(-1)
    answers = classifier.predict(classifier_columns(candidates.table))
    for voxels, answer in zip(candidates.voxels, answers, strict=True):
        flat[voxels] = np.maximum(flat[voxels], np.clip(answer, 0, 1))
    for voxels, core in candidates.oversized:
        flat[voxels] = np.maximum(flat[voxels], flat[core].mean(dtype=np.float64))
    return scores


def candidate_truth(candidates: Candidates, label: NDArray[Any]) -> NDArray[np.int8]:
    """Tell which candidates are metastases (1), which are none (0), and which are neither (-1)."""
    flat = label.reshape(-1)
    numbers, _ = ndimage.label(label == 1, structure=np.ones((3, 3, 3)))
    numbers = numbers.reshape(-1)
    sizes = np.bincount(numbers)
    truth = np.zeros(len(candidates), dtype=np.int8)
    for row, voxels in enumerate(candidates.voxels):
        lesions = np.bincount(numbers[voxels], minlength=len(sizes))
        lesions[0] = 0
        covers = (lesions[1:] >= _COVERS * sizes[1:]).any()
        share = lesions.sum() / len(voxels)
        if covers and share >= _INSIDE:
            truth[row] = 1
        elif lesions.sum() or (flat[voxels] > 1).mean() > 0.5:
            # Neither: a bit of a lesion in something large, or its core or swelling.
            truth[row] = -1
    return truth


def shuffled_losses(
    classifier: Any, table: NDArray[np.float64], truth: NDArray[Any], seed: int
) -> dict[str, float]:
    """Give the share of variance that is no longer explained where each feature is shuffled."""
    losses = permutation_importance(
        classifier, table, truth, scoring="r2", n_repeats=1, random_state=seed
    )
    # The last column, whether there is a prior, is no feature.
    return dict(zip(NAMES, losses.importances_mean.tolist(), strict=False))
