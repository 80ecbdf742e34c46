"""
Fitted regressors as bytes and back, without a pickle.

skops stores what is of scikit-learn. What skops does not know stands beside it: boosted trees in xgboost's
own JSON, the weights of a network as safetensors; in the skops file a `Leaf` holds their place.
"""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from dmrifit._optional import import_optional
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, refuse_keys
from dmrifit.model_files.boosted_trees import checked_trees
from dmrifit.predict.controls import CONSTANT

__all__ = ["Leaf", "check_leaves", "dumped", "loaded", "trees", "versions_of"]

# What a file may hold, by algorithm: nothing else is built, whatever the file asks for.
_PLAIN = frozenset({
    "builtins.dict", "builtins.list", "builtins.str", "builtins.tuple", "numpy.float64", "numpy.int64",
    "numpy.ndarray",
})  # fmt: skip
_SCALED = _PLAIN | {
    "sklearn.compose._target.TransformedTargetRegressor",
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler",
}
# Classes of ours have short names in files, which stay when a module is renamed.
_MODULES = {
    "LeastSquares": "dmrifit.predict.least_squares",
    "TargetWise": "dmrifit.predict.algorithms",
    "Leaf": "dmrifit.model_files.regressor_file",
}
_LEAST_SQUARES = "dmrifit.LeastSquares"
_TREE = "sklearn.tree._tree.Tree"
_TARGETWISE = "dmrifit.TargetWise"
_PREDICTOR = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
_ADAM = "sklearn.neural_network._stochastic_optimizers.AdamOptimizer"
_LEAF = "dmrifit.Leaf"
_XGBOOST = "xgboost.XGBRegressor"
_CNN = "dmrifit.PatchCNN"
_TRANSFORMER = "dmrifit.PatchTransformer"
_NETWORK = _SCALED | {
    "numpy.random.mtrand.RandomState",
    "sklearn.neural_network._multilayer_perceptron.MLPRegressor",
    _ADAM,
}
_TYPES: dict[str, frozenset[str]] = {
    "LR": _SCALED | {_LEAST_SQUARES, "sklearn.linear_model._quantile.QuantileRegressor", _TARGETWISE},
    "RFR": _SCALED | {
        "sklearn.ensemble._forest.RandomForestRegressor",
        "sklearn.tree._classes.DecisionTreeRegressor",
        _TREE,
    },
    "ETR": _SCALED | {
        "sklearn.ensemble._forest.ExtraTreesRegressor",
        "sklearn.tree._classes.ExtraTreeRegressor",
        _TREE,
    },
    "GBR": _SCALED | {_LEAF},
    "slNN": _NETWORK,
    "mlNN": _NETWORK,
    "CNN": _SCALED | {_LEAF},
    "ViT": _SCALED | {_LEAF},
    CONSTANT: _PLAIN | {"sklearn.dummy.DummyRegressor"},
}  # fmt: skip
# What may stand beside the skops file.
_LEAVES: dict[str, frozenset[str]] = {
    "GBR": frozenset({_XGBOOST}), "CNN": frozenset({_CNN}), "ViT": frozenset({_TRANSFORMER}),
}  # fmt: skip
# Beyond these, a regressor that was given instead of a name may hold what skops trusts by default: the
# public estimators of scikit-learn, and what these are made of.
_OF_GIVEN = frozenset({
    "numpy.random._generator.Generator",
    "numpy.uint64",
    "sklearn._loss._loss.CyHalfSquaredError",
    "sklearn._loss.link.IdentityLink",
    "sklearn._loss.link.Interval",
    "sklearn._loss.loss.HalfSquaredError",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    _PREDICTOR,
    _TARGETWISE,
})  # fmt: skip
_TRUSTED_BEYOND_SKOPS = (_LEAST_SQUARES, _TREE, _PREDICTOR, _TARGETWISE, _ADAM, _LEAF)
# How skops may build them: no functions, methods, partials or reductions.
_LOADERS = frozenset({
    "CachedNode", "DTypeNode", "DictNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode",
    "RandomGeneratorNode", "RandomStateNode", "SparseMatrixNode", "TreeNode", "TupleNode", "TypeNode",
})  # fmt: skip


class Leaf:
    """
    What stands in a skops file for a part that is stored beside it.

    Parameters
    ----------
    number : int
        Its place in the list of such parts.
    """

    def __init__(self, number: int) -> None:
        self.number = number


def dumped(
    regressor: BaseEstimator, algorithm: Any, parts: dict[str, bytes], leaves: list[dict[str, Any]]
) -> bytes:
    """Give a regressor as skops stores it; what skops does not know goes to the parts and leaves."""
    from skops.io import dumps

    held = {
        id(leaf): (leaf, Leaf(len(leaves) + i))
        for i, leaf in enumerate(_leaves_in(regressor, _STORED))
    }
    for leaf, stub in held.values():
        description, weights = _described(leaf)
        if description["class"] not in _allowed_leaves(algorithm):
            raise ValueError(
                f"the regressor cannot be stored: {description['class']} is not what {algorithm} is made of"
            )
        if weights is not None:
            suffix = "json" if description["class"] == _XGBOOST else "safetensors"
            description["weights"] = f"leaf{stub.number}.{suffix}"
            parts[description["weights"]] = weights
        leaves.append(description)
    if held:
        regressor = copy.deepcopy(regressor, {key: stub for key, (_, stub) in held.items()})
    data = _with_short_names(dumps(regressor))  # not compressed: the archive around it is
    unknown = _types_in(data) - _allowed(algorithm)
    if unknown:
        raise ValueError(
            f"the regressor cannot be stored, because a model file does not carry {', '.join(sorted(unknown))}; "
            "use an algorithm by name or a regressor of scikit-learn"
        )
    return data


def loaded(
    data: bytes, algorithm: Any, leaves: list[dict[str, Any]], parts: Mapping[str, bytes]
) -> Any:
    """Make a regressor from what `dumped` has given, if it holds nothing that the algorithm has not."""
    from skops.io import loads

    allowed = _allowed(algorithm)
    unknown = _types_in(data) - allowed
    if unknown:
        raise RefusedError(
            f"it asks for {', '.join(sorted(unknown))}, which no regressor here is made of"
        )
    trusted = [_full_name(name) for name in sorted(allowed & set(_TRUSTED_BEYOND_SKOPS))]
    regressor = loads(_with_full_names(data), trusted=trusted)
    stubs = list(_leaves_in(regressor, {_LEAF}))
    if not stubs:
        return regressor
    memo = {}
    for stub in stubs:
        number = getattr(stub, "number", None)
        if type(number) is not int or not 0 <= number < len(leaves):
            raise RefusedError(f"it has no part {number!r} beside the regressor")
        if leaves[number]["class"] not in _allowed_leaves(algorithm):
            raise RefusedError(
                f"it asks for {leaves[number]['class']}, which no regressor here is made of"
            )
        memo[id(stub)] = _restored(leaves[number], parts)
    return copy.deepcopy(regressor, memo)


_STORED = {_XGBOOST, _CNN, _TRANSFORMER}


def _class_of(thing: Any) -> str:
    """Name a class by its package and itself."""
    package = type(thing).__module__.partition(".")[0]
    return f"{package}.{type(thing).__qualname__}"


def _full_name(name: str) -> str:
    """Give the name by which Python imports a class of ours."""
    package, _, title = name.rpartition(".")
    return f"{_MODULES[title]}.{title}" if package == "dmrifit" else name


def _with_short_names(data: bytes) -> bytes:
    def shorten(node: dict[str, Any]) -> None:
        if "__module__" in node and _MODULES.get(node["__class__"]) == node["__module__"]:
            node["__module__"] = "dmrifit"

    return _with_schema(data, shorten)


def _with_full_names(data: bytes) -> bytes:
    def expand(node: dict[str, Any]) -> None:
        if node.get("__module__") == "dmrifit":
            node["__module__"] = _MODULES[node["__class__"]]

    return _with_schema(data, expand)


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


def _leaves_in(part: Any, classes: set[str]) -> Iterator[Any]:
    """Find the objects of some classes in a regressor, each once."""
    waiting, seen = [part], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if _class_of(one) in classes:
            yield one
        elif isinstance(one, BaseEstimator):
            waiting += vars(one).values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()


def _described(leaf: Any) -> tuple[dict[str, Any], bytes | None]:
    """Describe a leaf in JSON, and give what it has learned, if it is fitted."""
    given = leaf.get_params()
    parameters = {key: encoded(value, key) for key, value in given.items() if value is not None}
    description: dict[str, Any] = {
        "class": _class_of(leaf),
        "parameters": parameters,
        "fitted": {},
        "weights": None,
    }
    if description["class"] == _XGBOOST:
        if parameters.get("booster") == "gblinear" or parameters.get("enable_categorical"):
            raise ValueError(
                "a model file carries boosted trees over numbers, neither booster='gblinear' nor categories"
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


_FITTED_NETWORK = {"n_features_in_": int, "n_targets_": int, "flat_": bool}


def _restored(leaf: Mapping[str, Any], parts: Mapping[str, bytes]) -> Any:
    """Make a leaf from its description and what it had learned."""
    if leaf["class"] == _XGBOOST:
        cls = import_optional("xgboost").XGBRegressor
    else:
        import_optional("torch")
        from dmrifit.predict import patch_networks

        cls = patch_networks.PatchCNN if leaf["class"] == _CNN else patch_networks.PatchTransformer
    refuse_keys(leaf["parameters"], set(cls().get_params()), f"parameter of {cls.__name__}")
    estimator = cls(**{key: decoded(value) for key, value in leaf["parameters"].items()})
    if leaf["weights"] is None:
        return estimator
    weights = parts[leaf["weights"]]
    if leaf["class"] == _XGBOOST:
        estimator.load_model(bytearray(checked_trees(weights)))
    else:
        refuse_keys(
            leaf["fitted"], set(_FITTED_NETWORK), "fitted attribute of a network", complete=True
        )
        for name, kind in _FITTED_NETWORK.items():
            if type(leaf["fitted"][name]) is not kind or leaf["fitted"][name] < 0:
                raise RefusedError(f"{name} of a network is {leaf['fitted'][name]!r}")
            setattr(estimator, name, leaf["fitted"][name])
        estimator.set_weights(weights)
    return estimator


def check_leaves(leaves: Any) -> None:
    """Refuse descriptions of leaves that `dumped` would not write."""
    if not isinstance(leaves, list):
        raise RefusedError(f"its leaves are no list: {leaves!r}")
    for leaf in leaves:
        refuse_keys(
            leaf, {"class", "parameters", "fitted", "weights"}, "key of a leaf", complete=True
        )
        suffix = ".json" if leaf["class"] == _XGBOOST else ".safetensors"
        if leaf["class"] not in _STORED or not (
            leaf["weights"] is None or str(leaf["weights"]).endswith(suffix)
        ):
            raise RefusedError(
                f"it asks for {leaf['class']} from {leaf['weights']!r}, which no regressor here is made of"
            )


def versions_of(leaves: list[dict[str, Any]]) -> dict[str, str]:
    """Name the versions of the libraries that leaves are made with."""
    names = {"xgboost" if leaf["class"] == _XGBOOST else "torch" for leaf in leaves}
    return {name: str(import_optional(name).__version__) for name in sorted(names)}


def _allowed_leaves(algorithm: Any) -> frozenset[str]:
    return (
        _LEAVES.get(algorithm, frozenset()) if isinstance(algorithm, str) else frozenset(_STORED)
    )


def _allowed(algorithm: Any) -> frozenset[str]:
    """Return the types that a regressor by name, or one that was given, may consist of."""
    if isinstance(algorithm, str):
        return _TYPES.get(algorithm, frozenset())
    from skops.io import _trusted_types

    public = {
        name for name in _trusted_types.SKLEARN_ESTIMATOR_TYPE_NAMES if name.startswith("sklearn.")
    }
    return frozenset(public).union(_OF_GIVEN, *_TYPES.values())


def _types_in(data: bytes) -> set[str]:
    """List every type that a skops file names, at any depth, and every unusual way of building one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_members(archive, len(data))
        schema = json.loads(archive.read("schema.json"))
    names = set()
    for node in _nodes(schema):
        if not {"__class__", "__module__", "__loader__"}.isdisjoint(node):
            names.add(f"{node['__module__']}.{node['__class__']}")
            names |= {node["__loader__"]} - _LOADERS
    return names


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse members that would take more memory than the archive has bytes: `dumped` packs none of them."""
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or len(names) != len(entries) or sum(entry.file_size for entry in entries) > size:
        raise RefusedError(
            f"the {len(entries)} parts of its regressor do not lie in it one after the other, as they are"
        )
    for entry in entries:
        if not entry.filename.endswith(".npy"):
            continue
        with archive.open(entry) as file:
            # Memory for an array is taken before its numbers are read.
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, _, dtype = read[np.lib.format.read_magic(file)](file)
            told = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or min(shape, default=0) < 0 or told > entry.file_size:
                raise RefusedError(
                    f"an array of its regressor says that it holds {told} bytes ({dtype}) in {entry.file_size}"
                )


def trees(part: Any) -> Iterator[tuple[Any, ...]]:
    """Find the trees of a regressor: node numbers, children, which nodes branch and on what."""
    if hasattr(part, "tree_"):
        tree = part.tree_
        nodes = np.arange(tree.node_count)
        left, right = tree.children_left, tree.children_right
        yield nodes, left, right, (left != -1) | (right != -1), tree.feature, tree.n_features
        return
    for stage in getattr(part, "_predictors", ()):
        for predictor in stage:
            nodes = predictor.nodes
            left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
            inner = nodes["is_leaf"] == 0
            yield (
                np.arange(len(nodes)),
                left,
                right,
                inner,
                nodes["feature_idx"],
                part.n_features_in_,
            )
    inside = [getattr(part, "regressor_", None), *getattr(part, "estimators_", ())]
    inside += [step for _, step in getattr(part, "steps", ())]
    for deeper in inside:
        if deeper is not None:
            yield from trees(deeper)
