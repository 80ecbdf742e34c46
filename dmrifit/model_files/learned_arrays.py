"""Learned arrays of estimators in model files, checked before compiled code indexes with them."""

from __future__ import annotations

import csv
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from dmrifit.io.parameter_json import RefusedError

_DATA = files("dmrifit.model_files") / "data"

#: Keys, arrays and columns of model files.
CONTENTS: dict[str, Any] = tomllib.loads(_DATA.joinpath("contents.toml").read_text("utf-8"))

# The largest position in the state of a Mersenne twister; a larger one is read past its end.
_TWISTER_LENGTH = 624


NOWHERE = "a tree of its regressor has branches that lead nowhere"


def check_branches(
    inner: NDArray[np.bool_],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    feature: NDArray[np.integer],
    n_features: int,
) -> None:
    """
    Refuse branches of a tree that leave its nodes, run in a circle or lack a feature.

    Shapes: (n_nodes,) each; children and features of nodes that are not `inner` do not count.
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
        raise RefusedError(NOWHERE)


def instances_in(
    regressor: Any, is_closed: Callable[[Any], bool] = lambda _: False
) -> Iterator[Any]:
    """Find all objects in a regressor, each once, outer ones first, none inside closed ones."""
    waiting, visited = deque([regressor]), set()
    while waiting:
        item = waiting.popleft()
        if id(item) in visited:
            continue
        visited.add(id(item))
        yield item
        if not is_closed(item):
            waiting += _contents_of(item)


def _contents_of(item: Any) -> list[Any]:
    """List what an object holds: items of containers, otherwise attributes."""
    if isinstance(item, np.ndarray):
        return item.ravel().tolist() if item.dtype.hasobject else []
    if isinstance(item, list | tuple):
        return list(item)
    if isinstance(item, dict):
        return list(item.values())
    return list(getattr(item, "__dict__", {}).values())


def check_arrays(regressor: Any) -> None:
    """
    Check all arrays that a regressor of a file has learned, before any of them is used.

    Estimators without a check in `TYPES` are not looked at: they come from files only where the
    caller trusts them.
    """
    for instance in instances_in(regressor):
        name = _type_name(instance)
        check = TYPES.get(name, "")
        # Called by anything else, a compiled tree would not compare the columns of its input.
        may_not_have_tree = name in _HOLDERS or check not in ("", "tree")
        if may_not_have_tree and _COMPILED_TREE in map(_type_name, _contents_of(instance)):
            raise RefusedError("a tree of its regressor stands where scikit-learn has none")
        if isinstance(instance, np.random.RandomState | np.random.Generator):
            _check_generator(instance)
        elif isinstance(instance, np.ndarray | np.floating):
            if instance.dtype.kind == "f" and not np.isfinite(instance).all():
                raise RefusedError("an array of its regressor contains non-finite values")
        # One that is a parameter of another one has learned nothing.
        elif check and any(
            key.endswith("_") and not key.startswith("__") for key in vars(instance)
        ):
            _CHECKS[check](instance)


def _type_name(instance: Any) -> str:
    """Name the type as files do, in which classes of ours have no module."""
    module = type(instance).__module__
    module = "dmrifit" if module.startswith("dmrifit.") else module
    return f"{module}.{type(instance).__qualname__}"


def _require(is_sound: Any, estimator: BaseEstimator, noun: str) -> None:
    if not is_sound:
        raise RefusedError(
            f"the {noun} of {type(estimator).__name__} in its regressor do not belong together"
        )


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


def _check_vectors(estimator: BaseEstimator) -> None:
    """
    Check the vectors of an estimator that computes by NumPy and Python alone.

    NumPy refuses most shapes that do not fit, but repeats a row that is too short, and a column to
    an array of any size.
    """
    n_columns = getattr(estimator, "n_features_in_", None)
    lengths: list[tuple[Any, ...]]
    lengths = [(getattr(estimator, name, None), n_columns) for name in _ROWS]
    matrices = getattr(estimator, "coefs_", [np.transpose(getattr(estimator, "coef_", 0.0))])
    intercepts = getattr(estimator, "intercepts_", [getattr(estimator, "intercept_", None)])
    _require(len(matrices) == len(intercepts), estimator, "layers")
    lengths += [
        (row, *np.shape(matrix)[1:]) for row, matrix in zip(intercepts, matrices, strict=True)
    ]
    if hasattr(estimator, "explained_variance_"):
        lengths.append((estimator.explained_variance_, len(estimator.components_)))
    for row, *length in lengths:
        # Without an intercept, scikit-learn keeps a single zero.
        is_absent = row is None or (np.ndim(row) == 0 and row == 0)
        _require(is_absent or np.shape(row) == tuple(length), estimator, "rows")


def _check_constant(dummy: BaseEstimator) -> None:
    """Check that there is a constant for each output: NumPy repeats the row for every voxel."""
    _require(np.shape(dummy.constant_) == (1, dummy.n_outputs_), dummy, "constants and targets")


def _check_tree(estimator: BaseEstimator) -> None:
    """Check all branches and features, which compiled code follows and reads unchecked."""
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
    """Check that trees, checked one by one elsewhere, take the columns of their forest."""
    n_features = _n_features(forest)
    for tree in forest.estimators_:
        # Anything else with trees inside would be called without a check of its columns.
        _require(TYPES.get(_type_name(tree)) == "tree", forest, "trees")
        _require(_n_features(tree) == n_features, forest, "trees and columns")
        _require(tree.n_outputs_ == getattr(forest, "n_outputs_", 1), forest, "trees and targets")
    # A forest of isolation trees may give each tree a choice of the columns.
    columns = getattr(forest, "estimators_features_", [])
    has_all = all(np.shape(chosen) == (n_features,) for chosen in columns)
    _require(has_all, forest, "trees and columns")
    _require(getattr(forest, "_max_features", n_features) == n_features, forest, "columns")


def _check_boosting(boosting: BaseEstimator) -> None:
    """Check all branches, which compiled code follows unchecked; refuse those on categories."""
    n_features = _n_features(boosting)
    _require(np.size(boosting._baseline_prediction) == 1, boosting, "constants and targets")
    n_binned = len(boosting._bin_mapper.bin_thresholds_)
    _require(n_binned == n_features, boosting, "bins and columns")
    # It would give the trees other columns than those that were compared.
    _require(boosting._preprocessor is None, boosting, "columns")
    stages = boosting._predictors
    _require({boosting.n_trees_per_iteration_, *map(len, stages)} == {1}, boosting, "trees")
    for (predictor,) in stages:
        nodes = predictor.nodes
        _require(nodes.ndim == 1 and len(nodes) > 0, boosting, "nodes")
        if nodes["is_categorical"].any():
            raise RefusedError("the trees of its regressor branch on categories")
        is_leaf = nodes["is_leaf"] != 0
        is_sound = np.isin([nodes["is_leaf"], nodes["missing_go_to_left"]], (0, 1)).all()
        is_sound = is_sound and np.isfinite(nodes["value"]).all()
        is_sound = is_sound and np.isfinite(nodes["num_threshold"][~is_leaf]).all()
        _require(is_sound, boosting, "nodes")
        # Children are unsigned in scikit-learn.
        left, right = (nodes[side].astype(np.int64) for side in ("left", "right"))
        check_branches(~is_leaf, left, right, nodes["feature_idx"], n_features)


_ROWS = ("mean_", "center_", "scale_", "min_")
_COMPILED_TREE = "sklearn.tree._tree.Tree"
_CHECKS: dict[str, Callable[[Any], None]] = {
    "vectors": _check_vectors,
    "constant": _check_constant,
    "forest": _check_forest,
    "boosting": _check_boosting,
    "tree": _check_tree,
}

#: What a regressor may consist of, as files name it, with the check of what an estimator has
#: learned; the sentence of the check says why that is enough. All other estimators crash or read
#: beyond their arrays when these do not fit, or were not looked at.
TYPES: dict[str, str] = {
    row["type"]: row["check"]
    for row in csv.DictReader(_DATA.joinpath("regressor_types.csv").read_text("utf-8").split())
}
_HOLDERS = {"builtins.dict", "builtins.list", "builtins.tuple", "numpy.ndarray"}
