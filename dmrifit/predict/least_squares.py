"""Linear regression by ordinary least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data


class LeastSquares(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """
    Ordinary least squares.

    Constant features get no coefficient. Where others depend on each other, up to about 1e-6 of
    their spread (sums of squares know no better), their coefficients are those of smallest norm
    for features of equal spread.
    """

    coef_: NDArray[np.float64]  # (n_targets, n_features) or (n_features,)
    intercept_: Any

    def fit(self, X: ArrayLike, y: ArrayLike) -> LeastSquares:
        """
        Fit to data.

        Shapes: `X` (n_samples, n_features).
        """
        features, targets = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=np.float64
        )
        # The last bits of a matrix product depend on the memory layout of its factors.
        features = np.ascontiguousarray(features)
        n, eps = len(features), np.finfo(float).eps
        outputs = np.ascontiguousarray(targets.reshape(n, -1), dtype=np.float64)
        mean_x, mean_y = features.mean(axis=0), outputs.mean(axis=0)
        x = features - mean_x
        with np.errstate(over="ignore", invalid="ignore"):
            xx, xy = x.T @ x, x.T @ (outputs - mean_y)
        squares = np.diag(xx)
        # Squares of numbers beyond 1e±154 are infinite or zero, and coefficients would be none.
        is_lost = (squares == 0) & (x != 0).any(axis=0)
        if not (np.isfinite(xx).all() and np.isfinite(xy).all()) or is_lost.any():
            raise ValueError(
                f"the features of up to {np.abs(features).max():g} and targets of up to "
                f"{np.abs(outputs).max():g} have squares beyond double precision; scale them, for "
                "example to a mean of 1"
            )
        # A constant feature deviates from its mean by rounding errors, which are not to be learned
        # from.
        constant = squares <= n * (n * eps * mean_x) ** 2
        # On features of equal length, so that what counts as saying nothing new has no unit.
        length = np.sqrt(np.where(constant, 1.0, squares))
        gram = np.where(constant[:, None] | constant, 0.0, xx / np.outer(length, length))
        right = np.where(constant[:, None], 0.0, xy / length[:, None])
        # Sums of n products are this accurate, and no direction is known better.
        slopes = np.linalg.lstsq(gram, right, rcond=64 * eps * np.sqrt(n))[0]
        self.coef_ = (slopes / length[:, None]).T
        self.intercept_ = mean_y - self.coef_ @ mean_x
        if targets.ndim == 1:
            self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict.

        Shapes: `X` (n_samples, n_features).
        """
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        return x @ self.coef_.T + self.intercept_
