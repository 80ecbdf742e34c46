"""The regressors of the study by their names, scaled inside and light by default."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state, get_tags

__all__ = ["ALGORITHMS", "CONSTANT", "VOXELWISE", "TargetWise", "build_regressor", "make_regressor"]

#: The study's algorithms: linear regression, random forest, extra trees, gradient boosting, a network
#: with one hidden layer, one with several, and the one that works on neighborhoods of voxels.
ALGORITHMS = ("LR", "RFR", "ETR", "GBR", "slNN", "mlNN", "CNN")

#: Those of them that `make_regressor` makes: they look at one voxel at a time.
VOXELWISE = ALGORITHMS[:6]

#: The control: a predictor that ignores its input and answers with the median of the training targets.
CONSTANT = "constant"

_FOREST = {"n_estimators": 60, "min_samples_leaf": 3}
_BOOSTING = {"max_iter": 60, "max_leaf_nodes": 8, "learning_rate": 0.15, "early_stopping": False}
_NETWORK = {"learning_rate_init": 3e-3, "max_iter": 2000}


class TargetWise(MultiOutputRegressor):
    """
    Fit one copy of a regressor per target, be it one target or many.

    Parameters
    ----------
    estimator : estimator
        A regressor of one target.
    n_jobs : int, optional
        Targets fitted at the same time.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> TargetWise:
        """
        Fit one regressor per column of y.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            Inputs.
        y : array_like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array_like of shape (n_samples,), optional
            Weights of the samples.

        Returns
        -------
        TargetWise
            Itself.
        """
        values = np.asarray(y)
        flat = values.ndim == 1
        super().fit(X, values[:, None] if flat else y, sample_weight)
        self.flat_ = flat
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """
        Predict every target.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            Inputs.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            In the shape of the training targets.
        """
        prediction = super().predict(X)
        return prediction[:, 0] if self.flat_ else prediction


def make_regressor(
    name: str,
    *,
    random_state: int | np.random.RandomState | None = None,
    n_jobs: int | None = None,
    **params: Any,
) -> RegressorMixin:
    """
    Make one of the study's regressors by its name.

    Inputs and targets are scaled to zero mean and unit variance inside, with the statistics of the
    training data; predictions come back in the unit of the targets.

    Parameters
    ----------
    name : str
        ``"LR"`` ordinary least squares, ``"RFR"`` random forest, ``"ETR"`` extra trees, ``"GBR"``
        gradient boosting of histograms, one per target, ``"slNN"`` and ``"mlNN"`` perceptrons with
        32 and with 48, 48, 24 hidden units, or ``"constant"``, the median of the training targets.
    random_state : int, RandomState or None, optional
        Seed of the algorithms that draw.
    n_jobs : int, optional
        Trees or targets fitted at the same time; one when not given. Without effect on the others.
    **params : object
        Parameters of the scikit-learn class behind the name, instead of our defaults.

    Returns
    -------
    estimator
        A scikit-learn regressor of one target or many.

    Raises
    ------
    ValueError
        If there is no such algorithm, or it is not voxel-wise.
    TypeError
        If a parameter is unknown to the class behind the name.

    Examples
    --------
    >>> make_regressor("RFR", random_state=0, n_estimators=20).regressor[-1].n_estimators
    20
    """
    jobs = 1 if n_jobs is None else n_jobs
    if name == "LR":
        inner = LinearRegression(**params)
    elif name == "RFR":
        inner = RandomForestRegressor(**{**_FOREST, "n_jobs": jobs, "random_state": random_state, **params})
    elif name == "ETR":
        inner = ExtraTreesRegressor(**{**_FOREST, "n_jobs": jobs, "random_state": random_state, **params})
    elif name == "GBR":
        one = HistGradientBoostingRegressor(**{**_BOOSTING, "random_state": random_state, **params})
        inner = TargetWise(one, n_jobs=jobs)
    elif name in ("slNN", "mlNN"):
        layers = (32,) if name == "slNN" else (48, 48, 24)
        inner = MLPRegressor(
            **{**_NETWORK, "hidden_layer_sizes": layers, "random_state": random_state, **params}
        )
    elif name == CONSTANT:
        return DummyRegressor(**{"strategy": "median", **params})
    else:
        raise ValueError(_unknown(name))
    scaled = Pipeline([("scale", StandardScaler()), ("regress", inner)])
    return TransformedTargetRegressor(scaled, transformer=StandardScaler())


def build_regressor(
    regressor: str | BaseEstimator, *, n_targets: int, random_state: int | np.random.RandomState | None = None
) -> RegressorMixin:
    """
    Make the regressor that a strategy fits: one by name, or a copy of a given one.

    Parameters
    ----------
    regressor : str or estimator
        A name that `make_regressor` knows, or a scikit-learn regressor. A given one is cloned, its
        targets are scaled unless it is a `TransformedTargetRegressor` already, and it is fitted
        target by target when it has no multi-output.
    n_targets : int
        Number of targets.
    random_state : int, RandomState or None, optional
        Seed; of a given regressor it sets every ``random_state`` that is None.

    Returns
    -------
    estimator
        A regressor that is not fitted and shares nothing with the given one.

    Raises
    ------
    ValueError
        If there is no algorithm of that name.
    TypeError
        If it is neither a name nor a regressor.
    """
    # A fresh seed is drawn, because copies of a RandomState would repeat themselves.
    seed = None if random_state is None else int(check_random_state(random_state).randint(2**31 - 1))
    if isinstance(regressor, str):
        return make_regressor(regressor, random_state=seed)
    if not (isinstance(regressor, BaseEstimator) and is_regressor(regressor)):
        offered = ", ".join((*VOXELWISE, CONSTANT))
        msg = f"regressor must be a name ({offered}) or a scikit-learn regressor, not {regressor!r}"
        raise TypeError(msg)
    inner = clone(regressor)
    if seed is not None:
        params = inner.get_params().items()
        unset = [key for key, value in params if key.split("__")[-1] == "random_state" and value is None]
        inner.set_params(**dict.fromkeys(unset, seed))
    if n_targets > 1 and not get_tags(inner).target_tags.multi_output:
        inner = TargetWise(inner)
    if isinstance(inner, TransformedTargetRegressor):
        return inner
    return TransformedTargetRegressor(inner, transformer=StandardScaler())


def _unknown(name: object) -> str:
    offered = ", ".join((*VOXELWISE, CONSTANT))
    if name in ALGORITHMS:
        return (
            f"{name} is the patch-wise algorithm: it needs a network over neighborhoods of voxels, which "
            f"this version does not have; choose one of {offered} or give a scikit-learn regressor"
        )
    return f"no algorithm {name!r}; choose one of {offered} or give a scikit-learn regressor"
