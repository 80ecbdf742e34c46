"""Boosted trees as JSON, checked before xgboost reads them: it follows any index in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.parameter_json import RefusedError, refuse_keys
from dmrifit.model_files.learned_arrays import CONTENTS, NOWHERE, check_branches

_KEYS = CONTENTS["boosted_trees"]
_LEAF = -1
_LARGEST_INTEGER = np.iinfo(np.int32).max
# As decimals, which is how xgboost writes the largest float32: they round up in double precision.
_LARGEST_NUMBER = 3.4028235e38
# The root has no parent, which xgboost writes in one way for one answer and in another for
# several.
_PARENT_OF_ROOT = _LARGEST_INTEGER
_PARENT_OF_VECTOR_ROOT = -1

_NOT_IN_ORDER = "the trees of its regressor are not in order"
_ON_CATEGORIES = "the trees of its regressor branch on categories, not on numbers"


def checked_trees(content: bytes) -> bytes:
    """Check a model that xgboost saved as JSON, and rebuild parents from the children."""
    document = _parsed(content.decode())
    refuse_keys(document, {"learner", "version"}, "key of boosted trees", complete=True)
    learner = document["learner"]
    refuse_keys(learner, set(_KEYS["learner"]), "key of boosted trees", complete=True)
    parameters = learner["learner_model_param"]
    names, types = learner["feature_names"], learner["feature_types"]
    n_features = _count(parameters["num_feature"])
    if len(names) not in (0, n_features) or len(types) not in (0, n_features):
        raise RefusedError(f"its trees name {len(names)} of {n_features} features")
    _require("c" not in types, _ON_CATEGORIES)
    for text in (*names, *types, *learner["attributes"].values()):
        is_text = isinstance(text, str)
        _require(is_text, f"its trees have the name or attribute {text!r}, which is no text")
    booster = learner["gradient_booster"]
    if booster["name"] not in ("gbtree", "dart"):
        raise RefusedError(f"its boosted regressor is made of {booster['name']!r}, not of trees")
    if booster["name"] == "dart":
        model = booster["gbtree"]["model"]
        has_weights = len(_array(booster["weight_drop"])) == len(model["trees"])
        _require(has_weights, _NOT_IN_ORDER)
    else:
        model = booster["model"]
    _check_model(model, parameters)
    return json.dumps(document, allow_nan=False).encode()


def _check_model(model: dict[str, Any], parameters: Mapping[str, str]) -> None:
    """Check all trees, the order in which they are added up, and how many outputs they have."""
    trees = model["trees"]
    n_features = _count(parameters["num_feature"])
    n_targets = _count(parameters["num_target"])
    base_scores = np.atleast_1d(_parsed(parameters["base_score"]))
    rounds = _array(model["iteration_indptr"], whole=True)
    targets = _array(model["tree_info"], whole=True)
    sizes = [_check_tree(tree, n_features) for tree in trees]
    is_sound = (
        all(size in (1, n_targets) for size in sizes)
        and len(set(sizes)) <= 1
        # Memory is taken for every output, so each of them needs something in the file.
        and n_targets <= max([1, base_scores.size, len(trees), *sizes])
        and base_scores.dtype.kind in "if"
        and base_scores.size in (1, n_targets)
        and _count(parameters["num_class"]) <= 1
        and len(targets) == len(trees) == rounds[-1]
        and rounds[0] == 0
        and (np.diff(rounds) >= 0).all()
        and ((targets >= 0) & (targets < n_targets)).all()
        and [tree["id"] for tree in trees] == list(range(len(trees)))
        and _count(model["gbtree_model_param"]["num_trees"]) == len(trees)
    )
    _require(is_sound, _NOT_IN_ORDER)
    _require(not any(model.get("cats", {}).values()), _ON_CATEGORIES)


def _check_tree(tree: dict[str, Any], n_features: int) -> int:
    """Check one tree, rebuild its parents, and return the number of values of a leaf."""
    size = max(1, _count(tree["tree_param"]["size_leaf_vector"]))
    integers = [_array(tree[name], whole=True) for name in _KEYS["integers"]]
    left, right, feature, split_type, default_left = integers
    # xgboost crashes where one of these is missing in a tree with several values in a leaf.
    numbers = [_array(tree[name]) for name in _KEYS["numbers"]]
    n_nodes = len(left)
    _require(n_nodes > 0 and {*map(len, integers + numbers)} == {n_nodes}, NOWHERE)
    is_inner = left != _LEAF
    check_branches(is_inner, left, right, feature, n_features)
    children = np.concatenate([left[is_inner], right[is_inner]])
    branches = np.tile(np.flatnonzero(is_inner), 2)
    # The right child of a leaf with several values is their position among those of all leaves.
    positions, first, n_leaves, surplus = right[~is_inner], _LEAF, 1, 0
    if "leaf_weights" in tree:
        first = 0
        n_leaves, surplus = divmod(len(_array(tree["leaf_weights"])), size)
    is_sound = (
        _count(tree["tree_param"]["num_nodes"]) == n_nodes
        and len(_array(tree["base_weights"])) == n_nodes * size
        # No node belongs to two branches.
        and len(np.unique(children)) == len(children)
        and (feature >= 0).all()
        and np.isin(default_left, (0, 1)).all()
        and not split_type.any()
        and not any(map(tree.get, _KEYS["categories"]))
        and ("leaf_weights" not in tree or size > 1)
        and surplus == 0
        and ((positions >= first) & (positions < first + n_leaves)).all()
    )
    _require(is_sound, NOWHERE)
    # xgboost crashes on a parent outside the tree; pruned nodes, which no branch reaches, get the
    # root.
    parents = np.zeros(n_nodes, int)
    parents[children] = branches
    parents[0] = _PARENT_OF_ROOT if size == 1 else _PARENT_OF_VECTOR_ROOT
    tree["parents"] = parents.tolist()
    return size


def _require(is_sound: Any, problem: str) -> None:
    if not is_sound:
        raise RefusedError(problem)


def _count(text: Any) -> int:
    """Read a number of nodes, features or trees, which xgboost writes as a text of digits."""
    if not (isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 11):
        raise RefusedError(f"its trees state a count of {text!r:.80}")
    return int(text)


def _array(values: Any, *, whole: bool = False) -> NDArray[Any]:
    """Read a list of numbers, or of integers."""
    array = np.asarray(values)
    kinds, noun = ("i", "integers") if whole else ("if", "numbers")
    # An empty list has no type of its own.
    is_typed = not array.size or array.dtype.kind in kinds
    is_sound = isinstance(values, list) and array.ndim == 1 and is_typed
    _require(is_sound, f"its trees have an array that does not consist of {noun}")
    return array.astype(np.int64) if whole else array


def _number(text: str) -> int | float:
    """Read a number that fits into the types of xgboost."""
    is_integer = text.removeprefix("-").isdecimal()
    largest = _LARGEST_INTEGER if is_integer else _LARGEST_NUMBER
    # Compared as a float, because Python refuses to convert thousands of digits to an integer.
    is_sound = abs(float(text)) <= largest
    _require(is_sound, f"its trees contain {text[:40]}, which is too large or not a finite number")
    return int(text) if is_integer else float(text)


_parsed = partial(json.loads, parse_constant=_number, parse_float=_number, parse_int=_number)
