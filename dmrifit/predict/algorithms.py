"""Regressors of the study by name, with inputs and targets standardized inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression, QuantileRegressor
from sklearn.model_selection._search import BaseSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state, get_tags

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_word
from dmrifit._utils.threads import check_jobs
from dmrifit.predict.controls import CONSTANT

__all__ = ["ALGORITHMS", "make_regressor"]

#: Default neighborhood of the patch-wise algorithms: within the slice, because slices are thick.
_PATCH_SHAPE = (3, 3, 1)

# Losses by the names of the libraries.
_FOREST_CRITERIA = {"mean": "squared_error", "median": "absolute_error"}
_BOOSTING_OBJECTIVES = {"mean": "reg:squarederror", "median": "reg:absoluteerror"}

_EPOCHS = 30
# Setting one of these replaces the fixed number of epochs of a perceptron.
_STOPPING = {"early_stopping", "max_iter", "n_iter_no_change", "solver", "tol"}


class TargetWise(MultiOutputRegressor):
    """Fit one copy of a regressor per target, for a single target too."""

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


@dataclass(frozen=True)
class Regressor:
    """How a regressor is made."""

    # From the parameters of its class and, by name, the options that every regressor is made
    # with (loss, patch_shape, random_state, n_jobs) to the unfitted regressor.
    make: Callable[..., RegressorMixin]
    # Parameters that differ from the defaults of its class.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[str, ...] = ("mean", "median")  # that it can learn by
    is_patchwise: bool = False  # looks at a neighborhood of voxels


def _linear(params: dict[str, Any], *, loss: str, n_jobs: int, **_: Any) -> RegressorMixin:
    if loss == "median":
        quantile = QuantileRegressor(**{"alpha": 0.0, **params})
        return _standardized(TargetWise(quantile, n_jobs=n_jobs))
    return _standardized(LinearRegression(**params))


def _forest(
    forest_class: type[BaseEstimator],
    params: dict[str, Any],
    *,
    loss: str,
    patch_shape: Any,
    **settings: Any,
) -> RegressorMixin:
    settings["criterion"] = _FOREST_CRITERIA[loss]
    return _standardized(forest_class(**{**settings, **params}))


def _boosted_trees(
    params: dict[str, Any], *, loss: str, random_state: Any, **_: Any
) -> RegressorMixin:
    xgboost = import_optional("xgboost")
    unknown = params.keys() - xgboost.XGBRegressor().get_params().keys()
    if unknown:
        raise TypeError(f"XGBRegressor has no parameter {', '.join(sorted(unknown))}")
    settings = {
        "objective": _BOOSTING_OBJECTIVES[loss],
        # Sums over voxels would change their last bits with the number of threads.
        "n_jobs": 1,
        "random_state": random_state,
    }
    return _standardized(xgboost.XGBRegressor(**{**settings, **params}))


def _perceptron(params: dict[str, Any], *, random_state: Any, **_: Any) -> RegressorMixin:
    settings: dict[str, Any] = {"random_state": random_state}
    if not _STOPPING & params.keys():
        epochs = params.pop("epochs", _EPOCHS)
        # No improvement exceeds this tol, so that it stops once the epochs after the first are one
        # more than n_iter_no_change, without a warning that it did not converge.
        settings |= {"tol": 1e12, "n_iter_no_change": epochs - 2, "max_iter": epochs + 1}
    return _standardized(MLPRegressor(**{**settings, **params}))


def _patch_network(
    title: str, params: dict[str, Any], *, n_jobs: int, **settings: Any
) -> RegressorMixin:
    import_optional("torch")
    from dmrifit.predict import patch_networks

    return _standardized(getattr(patch_networks, title)(**{**settings, **params}))


def _standardized(regressor: RegressorMixin) -> RegressorMixin:
    """Standardize inputs and targets around a regressor."""
    scaled = Pipeline([("scale", StandardScaler()), ("regress", regressor)])
    return TransformedTargetRegressor(scaled, transformer=StandardScaler())


#: Regressors by name. Their defaults are the quickest within 2 % of the best
#: ("Algorithms" in benchmarks/README.md).
REGRESSORS: dict[str, Regressor] = {
    "LR": Regressor(_linear),
    "RFR": Regressor(
        partial(_forest, RandomForestRegressor),
        defaults={"n_estimators": 20, "min_samples_leaf": 3, "max_features": 0.6},
    ),
    "ETR": Regressor(
        partial(_forest, ExtraTreesRegressor),
        defaults={"n_estimators": 20, "min_samples_leaf": 10},
    ),
    "GBR": Regressor(
        _boosted_trees, defaults={"n_estimators": 40, "max_depth": 3, "learning_rate": 0.25}
    ),
    "slNN": Regressor(
        _perceptron,
        defaults={"hidden_layer_sizes": (64,), "learning_rate_init": 0.01},
        losses=("mean",),
    ),
    "mlNN": Regressor(
        _perceptron,
        defaults={"hidden_layer_sizes": (48, 48), "learning_rate_init": 0.01},
        losses=("mean",),
    ),
    "CNN": Regressor(partial(_patch_network, "PatchCNN"), is_patchwise=True),
    "ViT": Regressor(partial(_patch_network, "PatchTransformer"), is_patchwise=True),
    CONSTANT: Regressor(
        lambda params, **_: DummyRegressor(**params), defaults={"strategy": "median"}
    ),
}

#: Modules of our classes in model files, which have short names there, so that they stay when a
#: module is renamed.
CLASS_MODULES = {
    "PatchCNN": "dmrifit.predict.patch_networks",
    "PatchTransformer": "dmrifit.predict.patch_networks",
    "TargetWise": "dmrifit.predict.algorithms",
}

#: The study's algorithms: linear regression, random forest, extra trees, gradient boosting, a
#: network with one hidden layer, one with several, and the one that works on neighborhoods of
#: voxels.
ALGORITHMS = ("LR", "RFR", "ETR", "GBR", "slNN", "mlNN", "CNN")

#: The algorithms that look at a neighborhood of voxels: a convolutional network and a transformer.
PATCHWISE = tuple(name for name, entry in REGRESSORS.items() if entry.is_patchwise)

#: The study's voxel-wise algorithms.
VOXELWISE = tuple(name for name in ALGORITHMS if name not in PATCHWISE)

_OFFERED = ", ".join(REGRESSORS)
_MEDIAN = ", ".join(name for name, entry in REGRESSORS.items() if "median" in entry.losses)


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
    # A name may be of any type here, also of one without a hash.
    if name not in tuple(REGRESSORS):
        raise ValueError(
            f"no algorithm {name!r}; choose one of {_OFFERED} or give a scikit-learn regressor"
        )
    check_word("loss", loss, ("mean", "median"))
    if loss not in REGRESSORS[name].losses:
        raise ValueError(f"{name} cannot learn the median; {_MEDIAN} can (or leave loss='mean')")
    check_jobs(n_jobs)
    # Without a number of jobs joblib would take that of a surrounding block.
    options = {"loss": loss, "random_state": random_state, "n_jobs": n_jobs or 1}
    entry = REGRESSORS[name]
    return entry.make({**entry.defaults, **params}, patch_shape=patch_shape, **options)


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
            f"loss={loss!r} is for regressors by name ({_MEDIAN}); {type(regressor).__name__} was "
            "given and has a loss of its own: leave loss='mean' and set its own parameter instead"
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
    # Targets differ by orders of magnitude between parameters, and most losses would see the
    # largest only.
    return TransformedTargetRegressor(inner, transformer=StandardScaler())


def default_patch_shape(regressor: str | BaseEstimator) -> tuple[int, int, int] | None:
    """Return the default neighborhood of a regressor; None for the voxel alone."""
    if isinstance(regressor, str):
        return _PATCH_SHAPE if regressor in PATCHWISE else None
    network = next(_patchwise_regressors(regressor), None)
    if network is None:
        return None
    return _PATCH_SHAPE if network.patch_shape is None else tuple(network.patch_shape)


def _patchwise_regressors(regressor: Any) -> Iterator[Any]:
    """Yield the patch-wise regressors in a pipeline or another composition."""
    if not isinstance(regressor, BaseEstimator):
        return
    for component in (regressor, *regressor.get_params().values()):
        if getattr(type(component), "patchwise", False):
            yield component


def _takes_many_targets(regressor: BaseEstimator) -> bool:
    """Return whether the innermost regressor of a composition supports several targets."""
    while isinstance(regressor, TransformedTargetRegressor | Pipeline | BaseSearchCV):
        if isinstance(regressor, Pipeline):
            regressor = regressor[-1]
        else:
            regressor = getattr(regressor, "estimator", None) or regressor.regressor
    # scikit-learn's perceptron supports several targets, but its tag says otherwise.
    return isinstance(regressor, MLPRegressor) or get_tags(regressor).target_tags.multi_output
