"""Linear regression from moments of patients, which cross-validation folds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["LeastSquares", "Moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of a linear regression: counts, means, sums of squares about them."""

    n: int  # voxels
    mean_x: NDArray[np.float64]  # (n_features,)
    mean_y: NDArray[np.float64]  # (n_targets,)
    xx: NDArray[np.float64]  # (n_features, n_features), products of deviations from the means
    xy: NDArray[np.float64]  # (n_features, n_targets), the same of features and targets

    @classmethod
    def of(cls, X: NDArray[np.float64], Y: NDArray[np.float64]) -> Moments:
        """
        Compute the moments of a set of voxels.

        Shapes: `X` (n_voxels, n_features), `Y` (n_voxels, n_targets).
        """
        # The last bits of a matrix product depend on the memory layout of its factors.
        X, Y = np.ascontiguousarray(X), np.ascontiguousarray(Y)
        mean_x, mean_y = X.mean(axis=0), Y.mean(axis=0)
        x = X - mean_x
        with np.errstate(over="ignore", invalid="ignore"):
            xx, xy = x.T @ x, x.T @ (Y - mean_y)
        # Squares of numbers beyond 1e±154 are infinite or zero, and coefficients would be none.
        is_lost = (np.diag(xx) == 0) & (x != 0).any(axis=0)
        if not (np.isfinite(xx).all() and np.isfinite(xy).all()) or is_lost.any():
            raise ValueError(
                f"the features of up to {np.abs(X).max():g} and targets of up to "
                f"{np.abs(Y).max():g} have squares beyond double precision; scale them, for "
                "example to a mean of 1"
            )
        return cls(len(X), mean_x, mean_y, xx, xy)

    @classmethod
    def total(cls, patients: Sequence[Moments]) -> Moments:
        """
        Compute the moments of sets taken together from those of each.

        References
        ----------
        Chan, Golub and LeVeque, Am Stat 37(3):242–247, 1983.
        """
        counts = [patient.n for patient in patients]
        mean_x = np.average([patient.mean_x for patient in patients], axis=0, weights=counts)
        mean_y = np.average([patient.mean_y for patient in patients], axis=0, weights=counts)
        xx, xy = np.zeros_like(patients[0].xx), np.zeros_like(patients[0].xy)
        for patient in patients:
            # About the common mean, to which the patient's own mean adds its distance.
            shift = patient.mean_x - mean_x
            xx += patient.xx + patient.n * np.outer(shift, shift)
            xy += patient.xy + patient.n * np.outer(shift, patient.mean_y - mean_y)
        return cls(sum(counts), mean_x, mean_y, xx, xy)


class LeastSquares(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """
    Ordinary least squares, from data or from their moments.

    Leaving one patient out of n needs the sums of each patient once, not the data of n − 1
    patients n times. Constant features get no coefficient. Where others depend on each other, up
    to about 1e-6 of their spread (sums of squares know no better), their coefficients are those of
    smallest norm for features of equal spread.
    """

    coef_: NDArray[np.float64]  # (n_targets, n_features) or (n_features,)
    intercept_: Any

    def fit(self, X: ArrayLike, y: ArrayLike) -> LeastSquares:
        """
        Fit to data.

        Shapes: `X` (n_samples, n_features).
        """
        x, targets = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        targets = targets.astype(np.float64, copy=False)
        self.fit_moments(Moments.of(x, targets.reshape(len(x), -1)))
        if targets.ndim == 1:
            self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])
        return self

    def fit_moments(self, moments: Moments) -> LeastSquares:
        """Fit to the moments of data."""
        eps = np.finfo(float).eps
        squares = np.diag(moments.xx)
        # A constant feature deviates from its mean by rounding errors, which are not to be learned
        # from.
        constant = squares <= moments.n * (moments.n * eps * moments.mean_x) ** 2
        # On features of equal length, so that what counts as saying nothing new has no unit.
        length = np.sqrt(np.where(constant, 1.0, squares))
        gram = np.where(constant[:, None] | constant, 0.0, moments.xx / np.outer(length, length))
        right = np.where(constant[:, None], 0.0, moments.xy / length[:, None])
        # Sums of n products are this accurate, and no direction is known better.
        slopes = np.linalg.lstsq(gram, right, rcond=64 * eps * np.sqrt(moments.n))[0]
        self.coef_ = (slopes / length[:, None]).T
        self.intercept_ = moments.mean_y - self.coef_ @ moments.mean_x
        self.n_features_in_ = len(moments.mean_x)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict.

        Shapes: `X` (n_samples, n_features).
        """
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        return x @ self.coef_.T + self.intercept_
