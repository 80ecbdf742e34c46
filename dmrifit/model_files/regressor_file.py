"""
Fitted regressors as bytes and back, without a pickle.

skops stores what is of scikit-learn. What skops does not know stands beside it: boosted trees in
xgboost's own JSON, the weights of a network as safetensors; in the skops file a `Leaf` stands for
each of them.
"""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from dmrifit._optional import import_optional
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys
from dmrifit.model_files.learned_arrays import (
    CONTENTS,
    NOWHERE,
    TYPES,
    check_arrays,
    check_branches,
    instances_in,
)
from dmrifit.predict.algorithms import CLASS_MODULES

# Classes of ours have short names in files, which stay when a module is renamed.
_MODULES = CLASS_MODULES | {"Leaf": "dmrifit.model_files.regressor_file"}
_LEAF = "dmrifit.Leaf"
_XGBOOST = "xgboost.XGBRegressor"
# Classes whose instances stand beside the skops file.
_STORED = {_XGBOOST, "dmrifit.PatchCNN", "dmrifit.PatchTransformer"}


_KEYS = CONTENTS["boosted_trees"]
_NO_CHILD = -1
_LARGEST_INTEGER = np.iinfo(np.int32).max
# As decimals, which is how xgboost writes the largest float32: they round up in double precision.
_LARGEST_NUMBER = 3.4028235e38
# The root has no parent, which xgboost writes in one way for one answer and in another for
# several.
_PARENT_OF_ROOT = _LARGEST_INTEGER
_PARENT_OF_VECTOR_ROOT = -1

_NOT_IN_ORDER = "the trees of its regressor are not in order"
_ON_CATEGORIES = "the trees of its regressor branch on categories, not on numbers"


class Leaf:
    """What stands in a skops file for a part that is stored beside it, by its number."""

    def __init__(self, number: int) -> None:
        self.number = number


def dumped(
    regressor: BaseEstimator, parts: dict[str, bytes], leaves: list[dict[str, Any]]
) -> bytes:
    """Store a regressor by skops; add what skops does not know to the parts and leaves."""
    from skops.io import dumps

    stubs = {}
    for leaf in _leaves_in(regressor, _STORED):
        stubs[id(leaf)] = Leaf(len(leaves))
        description, weights = _described(leaf)
        if weights is not None:
            suffix = ".json" if description["class"] == _XGBOOST else ".safetensors"
            description["weights"] = f"leaf{len(leaves)}{suffix}"
            parts[description["weights"]] = weights
        leaves.append(description)
    if stubs:
        # The memo of a copy makes it take the stub where the leaf stands.
        regressor = copy.deepcopy(regressor, stubs)
    # What would not be read again is refused now, while the regressor is still there.
    try:
        check_arrays(regressor)
        # Not compressed, because the archive around it is.
        data = _with_modules(dumps(regressor), short=True)
        unknown = _types_in(data) - TYPES.keys() - _public_estimators()
    except RefusedError as error:
        raise ValueError(f"the regressor cannot be stored: {error}") from None
    if unknown:
        raise ValueError(
            "this regressor cannot be stored, because a model file does not carry "
            f"{', '.join(sorted(unknown))}; an algorithm by name, Ridge and "
            "HistGradientBoostingRegressor, for example, can be"
        )
    return data


def loaded(
    data: bytes,
    leaves: list[dict[str, Any]],
    parts: Mapping[str, bytes],
    *,
    trusted: Collection[str] = (),
) -> Any:
    """
    Build the regressor that `dumped` has stored, of types whose arrays are checked only.

    It may also consist of public estimators of scikit-learn whose arrays are not checked, where
    the caller names them as trusted.
    """
    from skops.io import loads

    allowed = TYPES.keys() | _public_estimators().intersection(trusted)
    unknown = _types_in(data) - allowed
    if unknown and unknown <= _public_estimators():
        names = ", ".join(f'"{name}"' for name in sorted(unknown))
        raise RefusedError(
            f"compiled code would follow arrays of {', '.join(sorted(unknown))} unchecked; "
            f"if you trust who made the file: load_model(path, trusted=[{names}])"
        )
    if unknown:
        raise RefusedError(
            f"it asks for {', '.join(sorted(unknown))}, which no regressor here is made of"
        )
    # Beside its own list skops then trusts what was allowed above, and nothing else.
    full_names = {f"dmrifit.{title}": f"{module}.{title}" for title, module in _MODULES.items()}
    names_for_skops = [full_names.get(name, name) for name in sorted(allowed)]
    regressor = loads(_with_modules(data, short=False), trusted=names_for_skops)
    check_arrays(regressor)
    stubs = _leaves_in(regressor, {_LEAF})
    if not stubs:
        return regressor
    memo = {}
    for stub in stubs:
        number = getattr(stub, "number", None)
        if type(number) is not int or not 0 <= number < len(leaves):
            raise RefusedError(f"it has no part {number!r} beside the regressor")
        memo[id(stub)] = _restored(leaves[number], parts)
    return copy.deepcopy(regressor, memo)


def _class_of(instance: Any) -> str:
    """Name a class by its package and itself."""
    package = type(instance).__module__.partition(".")[0]
    return f"{package}.{type(instance).__qualname__}"


def _with_modules(data: bytes, *, short: bool) -> bytes:
    """Give classes of ours the short module that files name, or the one to import them from."""

    def rename(node: dict[str, Any]) -> None:
        module = _MODULES.get(str(node.get("__class__")))
        if module is not None and node["__module__"] in (module, "dmrifit"):
            node["__module__"] = "dmrifit" if short else module

    return _with_schema(data, rename)


def _with_schema(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Write a skops file again, with each node of its schema changed in place."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as changed:
        for entry in archive.infolist():
            content = archive.read(entry)
            if entry.filename == "schema.json":
                schema = json.loads(content)
                for node in _nodes(schema):
                    change(node)
                content = json.dumps(schema).encode()
            changed.writestr(entry, content)
    return buffer.getvalue()


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Find the dictionaries of a schema, at any depth."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _leaves_in(regressor: Any, classes: set[str]) -> list[Any]:
    """Find the objects of some classes in a regressor; their order numbers the files."""

    def is_leaf(item: Any) -> bool:
        return _class_of(item) in classes

    return [item for item in instances_in(regressor, is_leaf) if is_leaf(item)]


def _described(leaf: Any) -> tuple[dict[str, Any], bytes | None]:
    """Describe a leaf in JSON, and store what it has learned, if it is fitted."""
    parameters = {}
    for key, value in leaf.get_params().items():
        if value is not None:
            parameters[key] = encoded(value, key)
    description: dict[str, Any] = {"class": _class_of(leaf), "parameters": parameters}
    description |= {"fitted": {}, "weights": None}
    if description["class"] == _XGBOOST:
        # xgboost accepts any keyword and hands it to its booster.
        unknown = parameters.keys() - type(leaf)().get_params().keys()
        if unknown:
            raise ValueError(
                "the regressor cannot be stored: XGBRegressor has no parameter "
                f"{', '.join(sorted(unknown))}; leave it out, or use one that XGBRegressor names"
            )
        if parameters.get("booster") == "gblinear" or parameters.get("enable_categorical"):
            raise ValueError(
                "a model file carries boosted trees over numbers, "
                "neither booster='gblinear' nor categories"
            )
        if not leaf.__sklearn_is_fitted__():
            return description, None
        try:
            return description, checked_trees(bytes(leaf.get_booster().save_raw("json")))
        except RefusedError as error:
            raise ValueError(f"the regressor cannot be stored: {error}") from None
    if not hasattr(leaf, "net_"):
        return description, None
    description["fitted"] = {name: getattr(leaf, name) for name in _FITTED_NETWORK}
    return description, leaf.weights()


_FITTED_NETWORK: dict[str, Any] = {"n_features_in_": int, "n_targets_": int, "flat_": bool}


def _restored(leaf: Mapping[str, Any], parts: Mapping[str, bytes]) -> Any:
    """Build a leaf from its description and what it had learned."""
    # Its name was compared with the list before.
    title = leaf["class"].rpartition(".")[2]
    if leaf["class"] == _XGBOOST:
        cls = import_optional("xgboost").XGBRegressor
    else:
        import_optional("torch")
        cls = getattr(import_module(_MODULES[title]), title)
    refuse_keys(leaf["parameters"], set(cls().get_params()), f"parameter of {cls.__name__}")
    estimator = cls(**{key: decoded(value) for key, value in leaf["parameters"].items()})
    if leaf["weights"] is None:
        return estimator
    weights = parts[leaf["weights"]]
    if leaf["class"] == _XGBOOST:
        estimator.load_model(bytearray(checked_trees(weights)))
    else:
        names = set(_FITTED_NETWORK)
        refuse_keys(leaf["fitted"], names, "fitted attribute of a network", complete=True)
        for name, value in leaf["fitted"].items():
            # Not isinstance: true and false are integers, too.
            if type(value) is not _FITTED_NETWORK[name] or value < 0:
                raise RefusedError(f"{name} of a network is {value!r}")
            setattr(estimator, name, value)
        estimator.set_weights(weights)
    return estimator


def check_leaves(leaves: Any) -> None:
    """Refuse descriptions of leaves that `dumped` would not write."""
    if not isinstance(leaves, list):
        raise RefusedError(f"its leaves are no list: {leaves!r}")
    keys = {"class", "parameters", "fitted", "weights"}
    for leaf in leaves:
        refuse_keys(leaf, keys, "key of a leaf", complete=True)
        suffix = ".json" if leaf["class"] == _XGBOOST else ".safetensors"
        has_weights = leaf["weights"] is None or str(leaf["weights"]).endswith(suffix)
        if leaf["class"] not in _STORED or not has_weights:
            raise RefusedError(
                f"it asks for {leaf['class']} from {leaf['weights']!r}, "
                "which no regressor here is made of"
            )


def versions_of(leaves: list[dict[str, Any]]) -> dict[str, str]:
    """Name the versions of the libraries that leaves are made with."""
    names = {"xgboost" if leaf["class"] == _XGBOOST else "torch" for leaf in leaves}
    return {name: str(import_optional(name).__version__) for name in sorted(names)}


def _public_estimators() -> frozenset[str]:
    """Name the estimators of scikit-learn that skops knows, whatever their arrays do."""
    from skops.io import _trusted_types

    names = _trusted_types.SKLEARN_ESTIMATOR_TYPE_NAMES
    return frozenset(name for name in names if name.startswith("sklearn."))


def _types_in(data: bytes) -> set[str]:
    """List all types that a skops file names, at any depth, and loaders that are not allowed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_members(archive, len(data))
        schema = json.loads(archive.read("schema.json"))
    _check_pools(schema)
    names = set()
    for node in _nodes(schema):
        if not {"__class__", "__module__", "__loader__"}.isdisjoint(node):
            names.add(f"{node['__module__']}.{node['__class__']}")
            names |= {node["__loader__"]} - set(CONTENTS["loaders"])
    return names


def _check_pools(schema: Any) -> None:
    """Refuse seeds of another size than NumPy's: it would mix the numbers of a pool for hours."""
    nodes = list(_nodes(schema))
    for pool in (node["pool_size"] for node in nodes if "pool_size" in node):
        # skops builds the first node of an identity wherever it stands again.
        built = [node for node in nodes if node.get("__loader__", "CachedNode") != "CachedNode"]
        same = [node for node in built if node.get("__id__") == pool.get("__id__")]
        sizes = [(node["__loader__"], node.get("content")) for node in same]
        if not sizes or any(size != ("JsonNode", "4") for size in sizes):
            raise RefusedError("a random generator of its regressor has no valid state")


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse members that would take more memory than the archive has bytes."""
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    unpacked = sum(entry.file_size for entry in entries)
    # `dumped` compresses no member.
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_packed or len(names) != len(entries) or unpacked > size:
        raise RefusedError(
            f"the {len(entries)} parts of its regressor do not lie in it one after the other, "
            "as they are"
        )
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    for entry in entries:
        if not entry.filename.endswith(".npy"):
            continue
        with archive.open(entry) as file:
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            # NumPy takes the memory for an array before it reads the numbers.
            claimed = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or min(shape, default=0) < 0 or claimed > entry.file_size:
                raise RefusedError(
                    f"an array of its regressor says that it holds {claimed} bytes ({dtype}) "
                    f"in {entry.file_size}"
                )


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
    is_inner = left != _NO_CHILD
    check_branches(is_inner, left, right, feature, n_features)
    children = np.concatenate([left[is_inner], right[is_inner]])
    branches = np.tile(np.flatnonzero(is_inner), 2)
    # The right child of a leaf with several values is their position among those of all leaves.
    positions, first, n_leaves, surplus = right[~is_inner], _NO_CHILD, 1, 0
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
