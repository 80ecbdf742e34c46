"""Boosted trees as JSON, checked before xgboost reads them: it follows any index in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.parameter_json import RefusedError, refuse_keys

_LEARNER_KEYS = {
    "attributes",
    "feature_names",
    "feature_types",
    "gradient_booster",
    "learner_model_param",
    "objective",
}
_INTEGERS_OF_NODES = (
    "left_children",
    "right_children",
    "split_indices",
    "split_type",
    "default_left",
)
_NUMBERS_OF_NODES = ("split_conditions", "loss_changes", "sum_hessian")
_CATEGORIES = ("categories", "categories_nodes", "categories_segments", "categories_sizes")
_LEAF = -1
_LARGEST_INTEGER = np.iinfo(np.int32).max
# As decimals, which is how xgboost writes the largest float32: they round up in double precision.
_LARGEST_NUMBER = 3.4028235e38
# The root has no parent, which xgboost writes in one way for one answer and in another for
# several.
_PARENT_OF_ROOT = _LARGEST_INTEGER
_PARENT_OF_VECTOR_ROOT = -1


def checked_trees(content: bytes) -> bytes:
    """Check a model that xgboost saved as JSON, and rebuild parents from the children."""
    document = _parsed(content.decode())
    refuse_keys(document, {"learner", "version"}, "key of boosted trees", complete=True)
    learner = document["learner"]
    refuse_keys(learner, _LEARNER_KEYS, "key of boosted trees", complete=True)
    _check_texts(learner)
    booster = learner["gradient_booster"]
    if booster["name"] not in ("gbtree", "dart"):
        raise RefusedError(f"its boosted regressor is made of {booster['name']!r}, not of trees")
    if booster["name"] == "dart":
        model = booster["gbtree"]["model"]
        _check_order(len(_numbers(booster["weight_drop"])) == len(model["trees"]))
    else:
        model = booster["model"]
    _check_model(model, learner["learner_model_param"])
    return json.dumps(document, allow_nan=False).encode()


def _check_model(model: dict[str, Any], parameters: Mapping[str, str]) -> None:
    """Check all trees, the order in which they are added up, and how many outputs they have."""
    trees = model["trees"]
    n_features = _count(parameters["num_feature"])
    n_targets = _count(parameters["num_target"])
    base_scores = np.atleast_1d(_parsed(parameters["base_score"]))
    sizes = [_check_tree(tree, n_features) for tree in trees]
    _check_order(all(size in (1, n_targets) for size in sizes) and len(set(sizes)) <= 1)
    # Memory is taken for every output, so each of them needs something in the file.
    _check_order(n_targets <= max([1, base_scores.size, len(trees), *sizes]))
    _check_order(base_scores.dtype.kind in "if" and base_scores.size in (1, n_targets))
    _check_order(_count(parameters["num_class"]) <= 1)

    rounds = _integers(model["iteration_indptr"])
    targets = _integers(model["tree_info"])
    _check_order(len(targets) == len(trees) == rounds[-1] and rounds[0] == 0)
    _check_order((np.diff(rounds) >= 0).all())
    _check_order(((targets >= 0) & (targets < n_targets)).all())
    _check_order([tree["id"] for tree in trees] == list(range(len(trees))))
    _check_order(_count(model["gbtree_model_param"]["num_trees"]) == len(trees))
    if any(model.get("cats", {}).values()):
        raise RefusedError("the trees of its regressor branch on categories, not on numbers")


def _check_tree(tree: dict[str, Any], n_features: int) -> int:
    """Check one tree, rebuild its parents, and return the number of values of a leaf."""
    size = max(1, _count(tree["tree_param"]["size_leaf_vector"]))
    integers = {name: _integers(tree[name]) for name in _INTEGERS_OF_NODES}
    # xgboost crashes where one of these is missing in a tree with several values in a leaf.
    numbers = [_numbers(tree[name]) for name in _NUMBERS_OF_NODES]
    left, right = integers["left_children"], integers["right_children"]
    feature = integers["split_indices"]
    n_nodes = len(left)
    nodes = np.arange(n_nodes)
    inner = left != _LEAF
    children = np.concatenate([left[inner], right[inner]])
    branches = np.concatenate([nodes[inner], nodes[inner]])
    lengths = {len(values) for values in (*integers.values(), *numbers)}

    _check_branches(n_nodes > 0 and lengths == {n_nodes})
    _check_branches(_count(tree["tree_param"]["num_nodes"]) == n_nodes)
    _check_branches(len(_numbers(tree["base_weights"])) == n_nodes * size)
    # A child comes after its branch, so that no path is a circle, and belongs to no second branch.
    _check_branches(((children > branches) & (children < n_nodes)).all())
    _check_branches(len(np.unique(children)) == len(children))
    _check_branches((feature >= 0).all() and (feature[inner] < n_features).all())
    _check_branches(np.isin(integers["default_left"], (0, 1)).all())
    _check_branches(not integers["split_type"].any() and not any(map(tree.get, _CATEGORIES)))
    _check_branches("leaf_weights" not in tree or size > 1)
    if "leaf_weights" in tree:
        # The right child of a leaf with several values is their position among those of all
        # leaves.
        n_leaves, surplus = divmod(len(_numbers(tree["leaf_weights"])), size)
        positions = right[~inner]
        _check_branches(surplus == 0 and ((positions >= 0) & (positions < n_leaves)).all())
    else:
        _check_branches((right[~inner] == _LEAF).all())

    # xgboost crashes on a parent outside the tree; pruned nodes, which no branch reaches, get the
    # root.
    parents = np.zeros(n_nodes, int)
    parents[children] = branches
    parents[0] = _PARENT_OF_ROOT if size == 1 else _PARENT_OF_VECTOR_ROOT
    tree["parents"] = parents.tolist()
    return size


def _check_branches(is_sound: Any) -> None:
    if not is_sound:
        raise RefusedError("a tree of its regressor has branches that lead nowhere")


def _check_order(is_sound: Any) -> None:
    if not is_sound:
        raise RefusedError("the trees of its regressor are not in order")


def _check_texts(learner: Mapping[str, Any]) -> None:
    """Check the names of the features and the attributes that xgboost keeps as texts."""
    names, types = learner["feature_names"], learner["feature_types"]
    n_features = _count(learner["learner_model_param"]["num_feature"])
    if len(names) not in (0, n_features) or len(types) not in (0, n_features):
        raise RefusedError(f"its trees name {len(names)} of {n_features} features")
    if "c" in types:
        raise RefusedError("the trees of its regressor branch on categories, not on numbers")
    for text in (*names, *types, *learner["attributes"].values()):
        if not isinstance(text, str):
            raise RefusedError(f"its trees have the name or attribute {text!r}, which is no text")


def _count(text: Any) -> int:
    """Read a number of nodes, features or trees, which xgboost writes as a text of digits."""
    if not (isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 11):
        raise RefusedError(f"its trees state a count of {text!r:.80}")
    return int(text)


def _integers(values: Any) -> NDArray[np.int64]:
    array = np.asarray(values)
    # An empty list has no type of its own.
    if not isinstance(values, list) or array.ndim != 1 or (array.size and array.dtype.kind != "i"):
        raise RefusedError("its trees have an array that does not consist of integers")
    return array.astype(np.int64)


def _numbers(values: Any) -> NDArray:
    array = np.asarray(values)
    if not isinstance(values, list) or array.ndim != 1 or array.dtype.kind not in "if":
        raise RefusedError("its trees have an array that does not consist of numbers")
    return array


def _parsed(text: str) -> Any:
    """Read JSON whose keys are unique and whose numbers fit into the types of xgboost."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except RecursionError:
        raise RefusedError("its trees are nested too deeply") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise RefusedError("its trees have an entry twice")
    return entries


def _refuse_constant(text: str) -> None:
    raise RefusedError(f"its trees contain {text}, which is not a finite number")


def _float(text: str) -> float:
    value = float(text)
    if not math.fabs(value) <= _LARGEST_NUMBER:
        raise RefusedError(f"its trees contain {text[:40]}, which is too large")
    return value


def _integer(text: str) -> int:
    # The length comes first, because Python refuses to convert thousands of digits in words of its
    # own.
    if len(text) > 11 or abs(int(text)) > _LARGEST_INTEGER:
        raise RefusedError(f"its trees contain {text[:40]}, which is too large")
    return int(text)
