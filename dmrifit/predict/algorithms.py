"""Regressors of the study by name, with inputs and targets standardized inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import QuantileRegressor
from sklearn.model_selection._search import BaseSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state, get_tags

from dmrifit._optional import import_optional
from dmrifit._utils.threads import check_jobs
from dmrifit.predict.controls import CONSTANT
from dmrifit.predict.least_squares import LeastSquares

__all__ = [
    "ALGORITHMS",
    "PATCHWISE",
    "VOXELWISE",
    "TargetWise",
    "build_regressor",
    "default_patch_shape",
    "learns_from_moments",
    "make_regressor",
]

#: The study's algorithms: linear regression, random forest, extra trees, gradient boosting, a
#: network with one hidden layer, one with several, and the one that works on neighborhoods of
#: voxels.
ALGORITHMS = ("LR", "RFR", "ETR", "GBR", "slNN", "mlNN", "CNN")

#: The voxel-wise ones among them.
VOXELWISE = ALGORITHMS[:6]

#: The algorithms that look at a neighborhood of voxels: a convolutional network and a transformer.
PATCHWISE = ("CNN", "ViT")

#: Default neighborhood of the patch-wise algorithms: within the slice, because slices are thick.
_PATCH_SHAPE = (3, 3, 1)

_MEDIAN = ("LR", "RFR", "ETR", "GBR", *PATCHWISE, CONSTANT)

# Chosen by benchmarks/tune_algorithms.py: the quickest within 2 % of the best.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "RFR": {"n_estimators": 20, "min_samples_leaf": 3, "max_features": 0.6},
    "ETR": {"n_estimators": 20, "min_samples_leaf": 10},
    "GBR": {"n_estimators": 40, "max_depth": 3, "learning_rate": 0.25},
    "slNN": {"hidden_layer_sizes": (64,), "learning_rate_init": 0.01},
    "mlNN": {"hidden_layer_sizes": (48, 48), "learning_rate_init": 0.01},
}
_EPOCHS = 30
# Setting one of these replaces the fixed number of epochs of a perceptron.
_STOPPING = {"early_stopping", "max_iter", "n_iter_no_change", "solver", "tol"}


class TargetWise(MultiOutputRegressor):
    """
    Fit one copy of a regressor per target, for a single target too.

    Parameters
    ----------
    estimator : estimator
        A regressor of one target.
    n_jobs : int, optional
        Targets fitted at the same time.
    """

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> TargetWise:
        """Fit one regressor per column of y."""
        targets = np.asarray(y)
        flat = targets.ndim == 1
        super().fit(X, targets[:, None] if flat else y, sample_weight)
        # Set last, so that the estimator does not look fitted after an error above.
        self.flat_ = flat
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Predict every target."""
        prediction = super().predict(X)
        return prediction[:, 0] if self.flat_ else prediction


def make_regressor(
    name: str,
    *,
    patch_shape: tuple[int, int, int] | None = None,
    loss: str = "mean",
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
        ``"LR"`` ordinary least squares; ``"RFR"`` random forest of 20 trees, at least 3 voxels in
        a leaf, 0.6 of the inputs tried at a split; ``"ETR"`` 20 extremely random trees, at least
        10 voxels in a leaf; ``"GBR"`` gradient boosting (xgboost), for each target 40 trees of
        depth 3, learning rate 0.25; ``"slNN"`` and ``"mlNN"`` perceptrons with 64 and with 48, 48
        hidden units, trained by Adam for 30 epochs in batches of 200, learning rate 0.01;
        ``"CNN"`` a convolutional network over the neighborhood of a voxel (`PatchCNN`); ``"ViT"``
        a transformer over it (`PatchTransformer`); or ``"constant"``, the median of the training
        targets.
    patch_shape : tuple of 3 odd ints, optional
        Neighborhood in a row of X, for the patch-wise algorithms: in the order of
        ``np.ndindex(patch_shape)`` and then of the measurements. Without it a row is one voxel.
        The voxel-wise algorithms ignore it.
    loss : {"mean", "median"}, default="mean"
        What is predicted of the targets' distribution: its mean, by squared errors, or its median,
        by absolute errors. The perceptrons have no median.
    random_state : int, RandomState or None, optional
        Seed of the algorithms that draw.
    n_jobs : int, optional
        Trees or targets fitted at the same time; one when not given. Without effect on the others.
    **params : object
        Parameters of the class behind the name, instead of our defaults. The perceptrons also
        accept `epochs`, the passes over the training data after which they stop; a stopping rule
        of scikit-learn (`max_iter`, `tol`, `early_stopping` …) takes precedence.

    Returns
    -------
    estimator
        A regressor of one target or many with scikit-learn's interface.

    Raises
    ------
    ValueError
        If there is no such algorithm, or not with this loss.
    TypeError
        If a parameter is unknown to the class behind the name.
    ImportError
        If the algorithm needs a library that is not installed; the message names the command.

    Examples
    --------
    >>> make_regressor("RFR", random_state=0, n_estimators=20).regressor[-1].n_estimators
    20
    """
    _check_loss(name, loss)
    check_jobs(n_jobs)
    jobs = 1 if n_jobs is None else n_jobs
    median = loss == "median"
    if name == "LR":
        if median:
            inner = TargetWise(QuantileRegressor(**{"alpha": 0.0, **params}), n_jobs=jobs)
        else:
            return LeastSquares(**params)  # scaling would not change its predictions
    elif name in ("RFR", "ETR"):
        forest = RandomForestRegressor if name == "RFR" else ExtraTreesRegressor
        criterion = "absolute_error" if median else "squared_error"
        options = {"criterion": criterion, "n_jobs": jobs, "random_state": random_state}
        inner = forest(**{**_DEFAULTS[name], **options, **params})
    elif name == "GBR":
        xgboost = import_optional("xgboost")
        objective = "reg:absoluteerror" if median else "reg:squarederror"
        unknown = params.keys() - xgboost.XGBRegressor().get_params().keys()
        if unknown:
            raise TypeError(f"XGBRegressor has no parameter {', '.join(sorted(unknown))}")
        # Sums over voxels would change their last bits with the number of threads.
        options = {"objective": objective, "n_jobs": 1, "random_state": random_state}
        inner = xgboost.XGBRegressor(**{**_DEFAULTS[name], **options, **params})
    elif name in ("slNN", "mlNN"):
        options = {**_DEFAULTS[name], "random_state": random_state}
        if not _STOPPING & params.keys():
            options |= _fixed_epochs(params.pop("epochs", _EPOCHS))
        inner = MLPRegressor(**{**options, **params})
    elif name in PATCHWISE:
        import_optional("torch")
        import_optional("skorch")
        from dmrifit.predict import patch_networks

        network = patch_networks.PatchCNN if name == "CNN" else patch_networks.PatchTransformer
        options = {"patch_shape": patch_shape, "loss": loss, "random_state": random_state}
        inner = network(**{**options, **params})
    else:
        return DummyRegressor(**{"strategy": "median", **params})
    scaled = Pipeline([("scale", StandardScaler()), ("regress", inner)])
    return TransformedTargetRegressor(scaled, transformer=StandardScaler())


def learns_from_moments(name: str, *, loss: str = "mean") -> bool:
    """Return whether an algorithm can be fitted from the moments of the training data."""
    return name == "LR" and loss == "mean"


def build_regressor(
    regressor: str | BaseEstimator,
    *,
    n_targets: int,
    patch_shape: tuple[int, int, int] | None = None,
    loss: str = "mean",
    random_state: int | np.random.RandomState | None = None,
) -> RegressorMixin:
    """Make the regressor that a strategy fits: by name, or a copy of an estimator."""
    seed = None
    if random_state is not None:
        # A fresh seed is drawn, because copies of a RandomState would repeat themselves.
        seed = int(check_random_state(random_state).randint(2**31 - 1))
    if isinstance(regressor, str):
        return make_regressor(regressor, patch_shape=patch_shape, loss=loss, random_state=seed)
    if not (isinstance(regressor, BaseEstimator) and is_regressor(regressor)):
        raise TypeError(
            f"regressor must be a name ({_OFFERED}) or a scikit-learn regressor, not {regressor!r}"
        )
    if loss != "mean":
        raise ValueError(
            f"loss={loss!r} is for regressors by name ({', '.join(_MEDIAN)}); "
            f"{type(regressor).__name__} was given and has a loss of its own: "
            "leave loss='mean' and set its own parameter instead"
        )
    inner = clone(regressor)
    if seed is not None:
        # A seed that the user has set stays.
        for key, value in inner.get_params().items():
            if key.split("__")[-1] == "random_state" and value is None:
                inner.set_params(**{key: seed})
    for network in _patchwise_regressors(inner):
        if network.patch_shape is None:
            network.set_params(patch_shape=patch_shape)
    if n_targets > 1 and not _takes_many_targets(inner):
        inner = TargetWise(inner)
    if isinstance(inner, TransformedTargetRegressor):
        return inner
    return TransformedTargetRegressor(inner, transformer=StandardScaler())


def default_patch_shape(regressor: str | BaseEstimator) -> tuple[int, int, int] | None:
    """Return the default neighborhood of a regressor; None for the voxel alone."""
    if isinstance(regressor, str):
        return _PATCH_SHAPE if regressor in PATCHWISE else None
    network = next(_patchwise_regressors(regressor), None)
    if network is None:
        return None
    if network.patch_shape is None:
        return _PATCH_SHAPE
    return tuple(network.patch_shape)


_OFFERED = ", ".join((*ALGORITHMS, PATCHWISE[-1], CONSTANT))


def _patchwise_regressors(regressor: Any) -> Iterator[Any]:
    """Yield the patch-wise regressors in a pipeline or another composition."""
    if not isinstance(regressor, BaseEstimator):
        return
    for component in (regressor, *regressor.get_params().values()):
        if getattr(type(component), "patchwise", False):
            yield component


def _fixed_epochs(epochs: int) -> dict[str, Any]:
    """Stop a perceptron at its last epoch without a warning that it did not converge."""
    # No improvement exceeds this tol, so that it stops once the epochs after the first are one
    # more than n_iter_no_change.
    return {"tol": 1e12, "n_iter_no_change": epochs - 2, "max_iter": epochs + 1}


def _takes_many_targets(regressor: BaseEstimator) -> bool:
    """Return whether the innermost regressor of a composition supports several targets."""
    while isinstance(regressor, TransformedTargetRegressor | Pipeline | BaseSearchCV):
        if isinstance(regressor, Pipeline):
            regressor = regressor[-1]
        else:
            regressor = getattr(regressor, "estimator", None) or regressor.regressor
    # scikit-learn's perceptron supports several targets, but its tag says otherwise.
    return isinstance(regressor, MLPRegressor) or get_tags(regressor).target_tags.multi_output


def _check_loss(name: object, loss: object) -> None:
    if name not in (*ALGORITHMS, *PATCHWISE, CONSTANT):
        raise ValueError(
            f"no algorithm {name!r}; choose one of {_OFFERED} or give a scikit-learn regressor"
        )
    if loss not in ("mean", "median"):
        raise ValueError(f"loss must be 'mean' or 'median', not {loss!r}")
    if loss == "median" and name not in _MEDIAN:
        raise ValueError(
            f"{name} cannot learn the median; {', '.join(_MEDIAN)} can (or leave loss='mean')"
        )
