"""Voxels unlike those of the training patients, by their nearest neighbors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dmrifit._utils.checks import finite_numbers
from dmrifit.predict.intervals import weighted_quantiles

_Array = NDArray[np.float64]

#: Typicality below which voxels are unlike the training voxels: so is this share of these.
NOVEL = 0.05
_N_VOXELS = 1000  # kept; twice as many flag no more tissue that was left out
_N_NEIGHBORS = 10
_N_LEVELS = 200  # of the distribution of distances
_ROUNDING = 1e-9  # of the largest distance: equal voxels are equally far but for their last bits
_SMALLEST_VARIANCE = 1e-6  # of the largest: measurements that hardly differ carry rounding


@dataclass(frozen=True, eq=False)
class Novelty:
    """
    How far voxels lie from those of the training patients.

    The distance is the mean one to the 10 nearest of 1000 training voxels, after whitening. What
    is usual is taken from patients that were left out in turn, each with the same weight.
    """

    center: _Array  # of the training voxels, (n_features,)
    whitening: _Array  # (n_features, n_features)
    voxels: _Array  # whitened training voxels, (n, n_features)
    distances: _Array  # quantiles of those of patients that were left out, at equal steps
    shares: _Array  # of the voxels of each patient, left out, that are less typical than 5 %

    @classmethod
    def learn(
        cls, X: _Array, patients: NDArray, weight: _Array, n_splits: int, seed: int
    ) -> Novelty:
        """Learn from voxels (n, n_features) of patients, each voxel with a weight."""
        # Fits of images, which import this module, need no scikit-learn.
        from sklearn.model_selection import GroupKFold

        distance = np.empty(len(X))
        folds = GroupKFold(n_splits, shuffle=True, random_state=seed)
        for train, test in folds.split(X, groups=patients):
            distance[test] = _distance(X[test], *_neighbors(X[train], seed))
        levels = np.linspace(0, 1, _N_LEVELS + 1)
        (distances,) = weighted_quantiles(distance[:, None], weight, levels)
        novelty = cls(*_neighbors(X, seed), distances, np.empty(0))
        is_novel = novelty._typicality_of(distance) < NOVEL
        shares = [is_novel[patients == patient].mean() for patient in np.unique(patients)]
        return replace(novelty, shares=np.array(shares))

    def typicality(self, X: _Array) -> _Array:
        """Compute the share of training voxels that lie as far from other patients or farther."""
        typicality = np.full(len(X), np.nan)
        usable = np.isfinite(X).all(axis=1)
        if usable.any():
            distance = _distance(X[usable], self.center, self.whitening, self.voxels)
            typicality[usable] = self._typicality_of(distance)
        return typicality

    def describe(self, share: float) -> str:
        """Say whether the share of unlike voxels of a new patient is one that patients had."""
        low, high = self.shares.min(), self.shares.max()
        n_patients = len(self.shares)
        verdict = "no more than in the training patients"
        if share > high:
            verdict = (
                "more than in any training patient, which happens by chance in 1 of "
                f"{n_patients + 1} new patients; intervals were not measured there"
            )
        return (
            f"{100 * share:.1f} % of the voxels are unlike the training voxels ({100 * low:.1f} "
            f"to {100 * high:.1f} % in the training patients): {verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as lists, for a model file."""
        return {key: value.tolist() for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], n_features: int) -> Novelty:
        """Take numbers of `to_dict`; raise ValueError where they do not fit together."""
        names = [field.name for field in fields(cls)]
        if set(state) != set(names):
            raise ValueError(f"typical voxels have wrong fields: {sorted(state)}; train again")
        novelty = cls(**{name: finite_numbers(state[name], name) for name in names})
        n_voxels, n_shares = len(novelty.voxels), len(novelty.shares)
        shapes = [getattr(novelty, name).shape for name in names]
        features = (n_features,)
        expected = [features, 2 * features, (n_voxels, n_features), (_N_LEVELS + 1,), (n_shares,)]
        if shapes != expected or not n_voxels or not n_shares:
            raise ValueError(f"typical voxels do not have {n_features} measurements")
        if novelty.distances[0] < 0 or (np.diff(novelty.distances) < 0).any():
            raise ValueError("distances of typical voxels are not in ascending order from 0")
        if novelty.shares.min() < 0 or novelty.shares.max() > 1:
            raise ValueError("shares of unlike voxels are not between 0 and 1")
        return novelty

    def _typicality_of(self, distance: _Array) -> _Array:
        """Look up the share of distances that are as large or larger."""
        levels = np.linspace(1, 0, len(self.distances))
        typicality = np.interp(distance, self.distances, levels)
        # Of equal distances interpolation takes the lowest level, at which the others are larger.
        margin = _ROUNDING * self.distances[-1]
        first = np.searchsorted(self.distances, distance - margin)
        first = np.minimum(first, len(levels) - 1)
        is_tied = np.abs(self.distances[first] - distance) <= margin
        return np.where(is_tied, levels[first], typicality)


def _neighbors(X: _Array, seed: int) -> tuple[_Array, _Array, _Array]:
    """Whiten voxels and draw those that are kept; return center, whitening and voxels."""
    center = X.mean(axis=0)
    variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(X - center, rowvar=False)))
    smallest = max(_SMALLEST_VARIANCE * variance[-1], np.finfo(float).tiny)
    whitening = axes / np.sqrt(np.maximum(variance, smallest))
    drawn = np.random.default_rng(seed).permutation(len(X))[:_N_VOXELS]
    return center, whitening, (X[drawn] - center) @ whitening


def _distance(X: _Array, center: _Array, whitening: _Array, voxels: _Array) -> _Array:
    n_neighbors = min(_N_NEIGHBORS, len(voxels))
    distance, _ = cKDTree(voxels).query((X - center) @ whitening, k=n_neighbors)
    return np.asarray(distance).reshape(len(X), -1).mean(axis=1)
