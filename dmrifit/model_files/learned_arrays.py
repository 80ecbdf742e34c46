"""Learned arrays of estimators in model files, checked before compiled code indexes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from dmrifit.io.parameter_json import RefusedError

# Positions in the state of a Mersenne twister, which reads past its end where one is larger.
_TWISTER_LENGTH = 624


def check_branches(
    inner: NDArray[np.bool_],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    feature: NDArray[np.integer],
    n_features: int,
) -> None:
    """
    Refuse branches of a tree that leave its nodes, run in a circle or lack a feature.

    Shapes: (n_nodes,) each, the children and the feature of the nodes that are `inner`.
    """
    children = np.stack([left, right])[:, inner]
    is_sound = (
        # A child after its parent rules out circles, in which a prediction would never end.
        (children > np.flatnonzero(inner)).all()
        and (children < len(inner)).all()
        and (feature[inner] >= 0).all()
        and (feature[inner] < n_features).all()
    )
    if not is_sound:
        raise RefusedError("a tree of its regressor has branches that lead nowhere")


def check_arrays(regressor: Any) -> None:
    """
    Check all arrays that a regressor of a file has learned, before any of them is used.

    Estimators of other types than `CHECKED_TYPES` are not looked at: they come from files only
    where the caller trusts them, or where an algorithm is registered with types of its own.
    """
    for instance in _instances_in(regressor):
        if isinstance(instance, np.random.RandomState | np.random.Generator):
            _check_generator(instance)
        elif isinstance(instance, np.ndarray | np.floating):
            _check_finite(instance)
        check = CHECKED_TYPES.get(_type_name(instance))
        # One that is a parameter of another one has learned nothing.
        if check is not None and _is_fitted(instance):
            check(instance)


def _instances_in(regressor: Any) -> Iterator[Any]:
    """Find all objects in a regressor, at any depth and each once."""
    waiting, visited = [regressor], set()
    while waiting:
        item = waiting.pop()
        if id(item) in visited:
            continue
        visited.add(id(item))
        yield item
        contents = _contents_of(item)
        # Called by anything else, a compiled tree would not compare the columns of its input.
        may_have_tree = _type_name(item) in _TREE_TYPES or _type_name(item) not in _HOLDERS
        if not may_have_tree and any(_type_name(part) == _COMPILED_TREE for part in contents):
            raise RefusedError("a tree of its regressor stands where scikit-learn has none")
        waiting += contents


def _contents_of(item: Any) -> list[Any]:
    """List what an object holds: items of containers, otherwise attributes."""
    if isinstance(item, np.ndarray):
        return item.ravel().tolist() if item.dtype.hasobject else []
    if isinstance(item, list | tuple):
        return list(item)
    if isinstance(item, dict):
        return list(item.values())
    return list(getattr(item, "__dict__", {}).values())


def _type_name(instance: Any) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _is_fitted(estimator: BaseEstimator) -> bool:
    return any(name.endswith("_") and not name.startswith("__") for name in vars(estimator))


def _require(is_sound: Any, estimator: BaseEstimator, noun: str) -> None:
    if not is_sound:
        raise RefusedError(
            f"the {noun} of {type(estimator).__name__} in its regressor do not belong together"
        )


def _check_finite(values: NDArray | np.floating) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RefusedError("an array of its regressor contains non-finite values")


def _check_generator(generator: np.random.RandomState | np.random.Generator) -> None:
    """Refuse a generator that would begin to draw outside its state."""
    bits = getattr(generator, "_bit_generator", None)
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
    is_sound = isinstance(bits, np.random.PCG64)
    if isinstance(bits, np.random.MT19937):
        is_sound = 0 <= bits.state["state"]["pos"] <= _TWISTER_LENGTH
    if not is_sound:
        raise RefusedError("a random generator of its regressor has no valid state")


def _n_features(estimator: BaseEstimator) -> int:
    """Return how many features an estimator compares the columns of its input with."""
    n_features: Any = getattr(estimator, "n_features_in_", None)
    _require(isinstance(n_features, int | np.integer), estimator, "features")
    return int(n_features)


def _check_python(estimator: BaseEstimator) -> None:
    """Nothing to check: such an estimator calls others in Python and has no arrays of its own."""


def _check_columns(scaler: BaseEstimator) -> None:
    """NumPy scales each column by one number of each array, or silently all by the only one."""
    n_features = _n_features(scaler)
    for name, values in vars(scaler).items():
        if isinstance(values, np.ndarray):
            _require(values.shape == (n_features,), scaler, f"{name} and columns")
    # scikit-learn takes 1 for a column that does not vary.
    _require(np.all(scaler.scale_ if scaler.scale_ is not None else 1), scaler, "scales")


def _check_linear(estimator: BaseEstimator) -> None:
    """NumPy multiplies matrices of fitting shapes, and repeats an intercept that is too short."""
    coefficients = np.asarray(estimator.coef_)
    intercept = np.asarray(estimator.intercept_)
    n_targets = coefficients.shape[:-1]
    _require(coefficients.dtype.kind == "f", estimator, "coefficients and columns")
    _require(
        coefficients.ndim in (1, 2) and coefficients.shape[-1] == _n_features(estimator),
        estimator,
        "coefficients and columns",
    )
    # Without an intercept scikit-learn keeps a single zero.
    is_without = intercept.shape == () and intercept == 0
    _require(intercept.shape == n_targets or is_without, estimator, "intercepts and targets")


def _check_components(estimator: BaseEstimator) -> None:
    """NumPy multiplies matrices of fitting shapes, and repeats a mean that is too short."""
    n_components, n_columns = np.shape(estimator.components_)
    _require(n_columns == _n_features(estimator), estimator, "components and columns")
    _require(np.shape(estimator.mean_) == (n_columns,), estimator, "mean and columns")
    variances = np.shape(estimator.explained_variance_)
    _require(variances == (n_components,), estimator, "variances and components")


def _check_layers(perceptron: BaseEstimator) -> None:
    """NumPy multiplies matrices of fitting shapes, and repeats an intercept that is too short."""
    weights, intercepts = perceptron.coefs_, perceptron.intercepts_
    n_inputs = _n_features(perceptron)
    is_sound = len(weights) == len(intercepts) == perceptron.n_layers_ - 1
    for matrix, vector in zip(weights, intercepts, strict=False):
        is_sound = is_sound and matrix.ndim == 2 and matrix.shape[0] == n_inputs
        is_sound = is_sound and vector.shape == matrix.shape[1:]
        n_inputs = matrix.shape[-1]
    _require(is_sound and n_inputs == perceptron.n_outputs_, perceptron, "layers")


def _check_constant(dummy: BaseEstimator) -> None:
    """NumPy repeats the row of constants for every voxel."""
    _require(np.shape(dummy.constant_) == (1, dummy.n_outputs_), dummy, "constants and targets")


def _check_tree(estimator: BaseEstimator) -> None:
    """Compiled code follows branches and reads features unchecked, so all are followed here."""
    n_features = _n_features(estimator)
    tree = estimator.tree_
    # Before the nodes are looked at: scikit-learn believes their number as the file states it.
    _require(0 < tree.node_count == tree.capacity, estimator, "nodes")
    has_outputs = tree.n_outputs == estimator.n_outputs_ and tree.max_n_classes == 1
    _require(has_outputs, estimator, "outputs")
    _require(tree.n_features == n_features, estimator, "nodes and columns")
    left, right = tree.children_left, tree.children_right
    # A node with one child is no leaf either, and is refused.
    inner = (left != -1) | (right != -1)
    check_branches(inner, left, right, tree.feature, n_features)
    is_finite = np.isfinite(tree.value).all() and np.isfinite(tree.threshold[inner]).all()
    _require(is_finite, estimator, "nodes")


def _check_forest(forest: BaseEstimator) -> None:
    """Its trees, which are checked one by one, get the columns of the forest unchecked."""
    n_features = _n_features(forest)
    for tree in forest.estimators_:
        # Anything else with trees inside would be called without a check of its columns.
        _require(_type_name(tree) in _TREE_TYPES, forest, "trees")
        _require(_n_features(tree) == n_features, forest, "trees and columns")
        _require(tree.n_outputs_ == getattr(forest, "n_outputs_", 1), forest, "trees and targets")
    # A forest of isolation trees may give each tree a choice of the columns.
    columns = getattr(forest, "estimators_features_", [])
    has_all = all(np.shape(chosen) == (n_features,) for chosen in columns)
    _require(has_all, forest, "trees and columns")
    _require(getattr(forest, "_max_features", n_features) == n_features, forest, "columns")


def _check_boosting(boosting: BaseEstimator) -> None:
    """Compiled code follows branches and categories unchecked: all are followed, none allowed."""
    n_features = _n_features(boosting)
    baseline = boosting._baseline_prediction
    _require(np.size(baseline) == 1, boosting, "constants and targets")
    n_binned = len(boosting._bin_mapper.bin_thresholds_)
    _require(n_binned == n_features, boosting, "bins and columns")
    # It would give the trees other columns than those that were compared.
    _require(boosting._preprocessor is None, boosting, "columns")
    for stage in boosting._predictors:
        _require(len(stage) == boosting.n_trees_per_iteration_ == 1, boosting, "trees")
        for predictor in stage:
            nodes = predictor.nodes
            _require(nodes.ndim == 1 and len(nodes) > 0, boosting, "nodes")
            if nodes["is_categorical"].any():
                raise RefusedError("the trees of its regressor branch on categories")
            for field in ("is_leaf", "missing_go_to_left"):
                _require(np.isin(nodes[field], (0, 1)).all(), boosting, "nodes")
            is_leaf = nodes["is_leaf"] != 0
            _require(np.isfinite(nodes["value"]).all(), boosting, "nodes")
            _require(np.isfinite(nodes["num_threshold"][~is_leaf]).all(), boosting, "nodes")
            # Children are unsigned in scikit-learn.
            left, right = (nodes[side].astype(np.int64) for side in ("left", "right"))
            check_branches(~is_leaf, left, right, nodes["feature_idx"], n_features)


_COMPILED_TREE = "sklearn.tree._tree.Tree"
_TREE_TYPES = (
    "sklearn.tree._classes.DecisionTreeRegressor",
    "sklearn.tree._classes.ExtraTreeRegressor",
)

#: Estimators that are read from files without a word, with what checks their arrays; the sentence
#: of the check says why that is enough. All others crash or read beyond their arrays when these do
#: not fit, or were not looked at.
CHECKED_TYPES: dict[str, Callable[[Any], None]] = {
    "dmrifit.predict.algorithms.TargetWise": _check_python,
    "dmrifit.predict.least_squares.LeastSquares": _check_linear,
    "dmrifit.predict.perceptrons.Perceptron": _check_layers,
    "sklearn.compose._target.TransformedTargetRegressor": _check_python,
    "sklearn.decomposition._pca.PCA": _check_components,
    "sklearn.dummy.DummyRegressor": _check_constant,
    "sklearn.ensemble._forest.ExtraTreesRegressor": _check_forest,
    "sklearn.ensemble._forest.RandomForestRegressor": _check_forest,
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingRegressor": (
        _check_boosting
    ),
    "sklearn.ensemble._iforest.IsolationForest": _check_forest,
    "sklearn.linear_model._base.LinearRegression": _check_linear,
    "sklearn.linear_model._bayes.BayesianRidge": _check_linear,
    "sklearn.linear_model._coordinate_descent.ElasticNet": _check_linear,
    "sklearn.linear_model._coordinate_descent.ElasticNetCV": _check_linear,
    "sklearn.linear_model._coordinate_descent.Lasso": _check_linear,
    "sklearn.linear_model._coordinate_descent.LassoCV": _check_linear,
    "sklearn.linear_model._huber.HuberRegressor": _check_linear,
    "sklearn.linear_model._quantile.QuantileRegressor": _check_linear,
    "sklearn.linear_model._ridge.Ridge": _check_linear,
    "sklearn.linear_model._ridge.RidgeCV": _check_linear,
    "sklearn.multioutput.MultiOutputRegressor": _check_python,
    "sklearn.neural_network._multilayer_perceptron.MLPRegressor": _check_layers,
    "sklearn.pipeline.Pipeline": _check_python,
    "sklearn.preprocessing._data.MaxAbsScaler": _check_columns,
    "sklearn.preprocessing._data.MinMaxScaler": _check_columns,
    "sklearn.preprocessing._data.RobustScaler": _check_columns,
    "sklearn.preprocessing._data.StandardScaler": _check_columns,
    "sklearn.preprocessing._polynomial.PolynomialFeatures": _check_python,
} | dict.fromkeys(_TREE_TYPES, _check_tree)
_HOLDERS = frozenset({
    *CHECKED_TYPES, "builtins.dict", "builtins.list", "builtins.tuple", "numpy.ndarray",
})  # fmt: skip
