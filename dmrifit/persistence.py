"""Model files: JSON beside what skops stores of the regressor, read without ever running a pickle."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dmrifit.algorithms import CONSTANT
from dmrifit.files import whole_file
from dmrifit.mapping import ClinicalMetrics, MapFitter, resolve_model
from dmrifit.models import Parameter, SignalModel
from dmrifit.prediction import MapsToMaps, SignalToSignal
from dmrifit.protocol import Protocol
from dmrifit.scaling import PatientScale

__all__ = ["load_model", "save_model"]

_FORMAT = 1
_METADATA = "model.json"
_REGRESSOR = "regressor.skops"
_GIVEN = "given.skops"
_CLASSES: dict[str, type[BaseEstimator]] = {
    cls.__name__: cls for cls in (SignalToSignal, MapsToMaps, MapFitter, ClinicalMetrics)
}
_KEYS = {"format", "class", "parameters", "fitted", "model", "scale", "versions", "sha256"}
_FITTED = ("n_features_in_", "feature_names_in_", "n_dropped_")
_PACKAGES = ("dmrifit", "scikit-learn", "skops", "numpy")
_SAME_MAJOR = ("dmrifit", "scikit-learn")

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
_LEAST_SQUARES = "dmrifit.least_squares.LeastSquares"
_TREE = "sklearn.tree._tree.Tree"
_TARGETWISE = "dmrifit.algorithms.TargetWise"
_PREDICTOR = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
_ADAM = "sklearn.neural_network._stochastic_optimizers.AdamOptimizer"
_NETWORK = _SCALED | {
    "numpy.random.mtrand.RandomState",
    "sklearn.neural_network._multilayer_perceptron.MLPRegressor",
    _ADAM,
}
_TYPES: dict[str, frozenset[str]] = {
    "LR": _PLAIN | {_LEAST_SQUARES},
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
    "GBR": _SCALED | {
        "numpy.random._generator.Generator",
        "numpy.uint64",
        "sklearn._loss._loss.CyHalfSquaredError",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.loss.HalfSquaredError",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingRegressor",
        _PREDICTOR,
        _TARGETWISE,
    },
    "slNN": _NETWORK,
    "mlNN": _NETWORK,
    CONSTANT: _PLAIN | {"sklearn.dummy.DummyRegressor"},
}  # fmt: skip
# Beyond these, a regressor that was given instead of a name may hold what skops trusts by default: the
# public estimators of scikit-learn.
_TRUSTED_BEYOND_SKOPS = (_LEAST_SQUARES, _TREE, _PREDICTOR, _TARGETWISE, _ADAM)
# How skops may build them: no functions, methods, partials or reductions.
_LOADERS = frozenset({
    "CachedNode", "DTypeNode", "DictNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode",
    "RandomGeneratorNode", "RandomStateNode", "SparseMatrixNode", "TreeNode", "TupleNode", "TypeNode",
})  # fmt: skip


def save_model(
    estimator: BaseEstimator, path: str | Path, *, scale: PatientScale | str | None = "patient"
) -> None:
    """
    Write a fitted estimator to one file.

    The file is a zip archive of ``model.json`` (class, parameters, protocols, model, rule of the
    patient's scale, versions) and, for a strategy, the fitted regressor as skops stores it. It appears
    under its name only when it is complete, and replaces a file of that name.

    Parameters
    ----------
    estimator : SignalToSignal, MapsToMaps, MapFitter or ClinicalMetrics
        Fitted.
    path : path
        The file, by custom with the ending ``.dmrifit``.
    scale : PatientScale, "patient" or None, default="patient"
        How the signals were scaled that the estimator was trained with: ``"patient"`` is the rule that
        the estimator was loaded with, or else the default one; None is no scaling.

    Raises
    ------
    TypeError
        If there is no model file for this class, or a parameter cannot be stored: a signal model that is a
        function, for one, because no code from a file is ever run.
    ValueError
        If the regressor holds a type that would be refused when the file is read.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    See Also
    --------
    load_model : Read the file.
    """
    path = Path(path)
    name = type(estimator).__name__
    if _CLASSES.get(name) is not type(estimator):
        msg = f"{type(estimator).__name__} has no model file; {', '.join(_CLASSES)} have"
        raise TypeError(msg)
    check_is_fitted(estimator)
    parts: dict[str, bytes] = {}
    parameters = {}
    for key, value in estimator.get_params(deep=False).items():
        if isinstance(value, BaseEstimator):
            parts[_GIVEN] = _dumped(value, None)
            parameters[key] = {"$estimator": _GIVEN}
        else:
            parameters[key] = _encoded(value, key)
    if hasattr(estimator, "regressor_"):
        parts[_REGRESSOR] = _dumped(estimator.regressor_, estimator.regressor)
    metadata = {
        "format": _FORMAT,
        "class": name,
        "parameters": parameters,
        "fitted": _fitted(estimator),
        "model": _definition(estimator),
        "scale": _encoded_scale(estimator, scale),
        "versions": {package: version(package) for package in _PACKAGES},
        "sha256": {part: hashlib.sha256(content).hexdigest() for part, content in parts.items()},
    }
    parts[_METADATA] = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False).encode()
    _write_whole(path, parts)


def load_model(path: str | Path) -> BaseEstimator:
    """
    Read an estimator that `save_model` wrote; its predictions are the same, bit for bit.

    Nothing is unpickled and no class is built that is not on a fixed list, whatever the file asks for.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    estimator
        Fitted. Its attribute ``patient_scale_`` holds the `PatientScale` that its signals were divided
        by in training, or None.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a model file, is damaged or was altered, comes from another major version, or
        holds an unknown class, key or type. The message names the file.

    See Also
    --------
    save_model : Write the file.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path}: no such model file"
        raise FileNotFoundError(msg)
    try:
        metadata, parts = _read_parts(path)
        return _rebuilt(metadata, parts)
    except (OSError, MemoryError):
        raise
    except _RefusedError as error:
        msg = f"{path} is refused as a model file: {error}"
        raise ValueError(msg) from None
    except Exception as error:
        msg = f"{path} is refused as a model file: it is damaged or was altered ({error})"
        raise ValueError(msg) from error


class _RefusedError(Exception):
    """A model file that is not read, with the reason."""


def _rebuilt(metadata: Mapping[str, Any], parts: Mapping[str, bytes]) -> BaseEstimator:
    cls = _CLASSES[metadata["class"]]
    parameters = {}
    for key, value in metadata["parameters"].items():
        if value == {"$estimator": _GIVEN}:
            parameters[key] = _loaded(parts[_GIVEN], None)
        else:
            parameters[key] = _decoded(value)
    estimator = cls(**parameters)
    for name in _FITTED:
        if name in metadata["fitted"]:
            value = metadata["fitted"][name]
            setattr(estimator, name, np.array(value, dtype=object) if isinstance(value, list) else value)
    if metadata["model"] != _definition(estimator):
        msg = f"its model {metadata['model']} is not the one of that name in this version"
        raise _RefusedError(msg)
    if isinstance(estimator, MapFitter):
        estimator.model_ = resolve_model(estimator.model)
    if isinstance(estimator, SignalToSignal | MapsToMaps):
        estimator.regressor_ = _loaded(parts[_REGRESSOR], estimator.regressor)
        estimator.check_parameters()
        _check_regressor(estimator)
    scale = metadata["scale"]
    estimator.patient_scale_ = None if scale is None else PatientScale.from_dict(scale)
    return estimator


# The archive ------------------------------------------------------------------------------------------


def _write_whole(path: Path, parts: Mapping[str, bytes]) -> None:
    """Write an archive under a temporary name beside the file, then give it its name."""
    with whole_file(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(parts):
            archive.writestr(name, parts[name])


def _read_parts(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read the archive and check everything that can be checked before an object is made."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            msg = "it is not an archive that save_model wrote (pickles are never read)"
            raise _RefusedError(msg)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names) or not {_METADATA} <= set(names) <= {_METADATA, _REGRESSOR, _GIVEN}:
                msg = f"it holds {', '.join(sorted(names))} instead of the parts of a model"
                raise _RefusedError(msg)
            parts = {name: archive.read(name) for name in names}
    metadata = json.loads(parts.pop(_METADATA))
    _check_metadata(metadata)
    if set(metadata["sha256"]) != set(parts):
        msg = f"its parts are {sorted(parts)}, and it lists {sorted(metadata['sha256'])}"
        raise _RefusedError(msg)
    for name, content in parts.items():
        if hashlib.sha256(content).hexdigest() != metadata["sha256"][name]:
            msg = f"{name} was altered after it was written"
            raise _RefusedError(msg)
    return metadata, parts


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or "format" not in metadata or metadata["format"] != _FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        msg = f"its format is {found!r}, and this version reads {_FORMAT}"
        raise _RefusedError(msg)
    _refuse_keys(metadata, _KEYS, "key", complete=True)
    if metadata["class"] not in _CLASSES:
        msg = f"its class is {metadata['class']!r}, not one of {', '.join(_CLASSES)}"
        raise _RefusedError(msg)
    cls = _CLASSES[metadata["class"]]
    _refuse_keys(metadata["parameters"], set(cls._get_param_names()), f"parameter of {cls.__name__}")
    _refuse_keys(metadata["fitted"], set(_FITTED), "fitted attribute")
    _refuse_keys(metadata["versions"], set(_PACKAGES), "package", complete=True)
    for package in _SAME_MAJOR:
        written, here = metadata["versions"][package], version(package)
        if written.split(".")[0] != here.split(".")[0]:
            msg = (
                f"it was written with {package} {written}, and {here} is installed; install {package} "
                f"{written} to read it, or train the model again"
            )
            raise _RefusedError(msg)
    fitted = metadata["fitted"]
    names = fitted.get("feature_names_in_", [])
    counts = [value for key, value in fitted.items() if key != "feature_names_in_"]
    sound = all(type(count) is int and count >= 0 for count in counts)
    if not sound or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        msg = f"its fitted attributes are not counts and names: {fitted}"
        raise _RefusedError(msg)


def _refuse_keys(found: Any, known: set[str], what: str, *, complete: bool = False) -> None:
    if not isinstance(found, dict) or not set(found) <= known or (complete and set(found) != known):
        keys = sorted(found) if isinstance(found, dict) else found
        msg = f"{keys} instead of {sorted(known)}: unknown or missing {what}"
        raise _RefusedError(msg)


# Regressors -------------------------------------------------------------------------------------------


def _dumped(regressor: BaseEstimator, algorithm: Any) -> bytes:
    from skops.io import dumps

    data: bytes = dumps(regressor)  # not compressed: the archive around it is
    unknown = _types_in(data) - _allowed(algorithm)
    if unknown:
        msg = (
            f"the regressor cannot be stored, because a model file does not carry {', '.join(sorted(unknown))}; "
            "use an algorithm by name or a regressor of scikit-learn"
        )
        raise ValueError(msg)
    return data


def _loaded(data: bytes, algorithm: Any) -> Any:
    from skops.io import loads

    allowed = _allowed(algorithm)
    unknown = _types_in(data) - allowed
    if unknown:
        msg = f"it asks for {', '.join(sorted(unknown))}, which no regressor here is made of"
        raise _RefusedError(msg)
    return loads(data, trusted=sorted(allowed & set(_TRUSTED_BEYOND_SKOPS)))


def _allowed(algorithm: Any) -> frozenset[str]:
    """Return the types that a regressor by name, or one that was given, may consist of."""
    if isinstance(algorithm, str):
        return _TYPES.get(algorithm, frozenset())
    from skops.io import _trusted_types

    public = {name for name in _trusted_types.SKLEARN_ESTIMATOR_TYPE_NAMES if name.startswith("sklearn.")}
    return frozenset(public).union(*_TYPES.values())


def _types_in(data: bytes) -> set[str]:
    """List every type that a skops file names, at any depth, and every unusual way of building one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        schema = json.loads(archive.read("schema.json"))
    found = set()
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if not {"__class__", "__module__", "__loader__"}.isdisjoint(node):
                found.add(f"{node['__module__']}.{node['__class__']}")
                found |= {node["__loader__"]} - _LOADERS
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found


def _check_regressor(estimator: SignalToSignal | MapsToMaps) -> None:
    """Check that the regressor fits the estimator and that no tree leads out of its memory."""
    regressor = estimator.regressor_
    n_inputs = 3 if isinstance(estimator, MapsToMaps) and estimator.source else estimator.n_features_in_
    found = getattr(regressor, "n_features_in_", n_inputs)
    if not hasattr(regressor, "predict") or found != n_inputs:
        msg = f"its regressor takes {found} inputs, and the estimator has {n_inputs}"
        raise _RefusedError(msg)
    if estimator.source is not None and len(estimator.source) != estimator.n_features_in_:
        msg = f"its source protocol has {len(estimator.source)} measurements, not {estimator.n_features_in_}"
        raise _RefusedError(msg)
    for parent, left, right, inner, feature, n_features in _trees(regressor):
        reachable = (np.minimum(left, right)[inner] > parent[inner]).all()
        inside = (np.maximum(left, right)[inner] < len(parent)).all()
        seen = (feature[inner] >= 0).all() and (feature[inner] < n_features).all()
        if not (reachable and inside and seen and n_features <= n_inputs):
            msg = "a tree of its regressor has branches that lead nowhere"
            raise _RefusedError(msg)
    if estimator.target is not None:
        names = estimator.target if isinstance(estimator, SignalToSignal) else resolve_model(estimator.model).names
        answer = np.shape(regressor.predict(np.ones((1, n_inputs))))
        if answer not in ((1, len(names)), (1,) * (len(names) == 1)):
            msg = f"its regressor answers with {answer[-1]} numbers instead of {len(names)}"
            raise _RefusedError(msg)


def _trees(part: Any) -> Iterator[tuple[Any, ...]]:
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
            yield np.arange(len(nodes)), left, right, inner, nodes["feature_idx"], part.n_features_in_
    inside = [getattr(part, "regressor_", None), *getattr(part, "estimators_", ())]
    inside += [step for _, step in getattr(part, "steps", ())]
    for deeper in inside:
        if deeper is not None:
            yield from _trees(deeper)


# JSON -------------------------------------------------------------------------------------------------


def _fitted(estimator: BaseEstimator) -> dict[str, Any]:
    found = {name: getattr(estimator, name) for name in _FITTED if hasattr(estimator, name)}
    return {k: [str(v) for v in x] if isinstance(x, np.ndarray) else int(x) for k, x in found.items()}


def _definition(estimator: BaseEstimator) -> Any:
    """Describe the model behind an estimator, so that one that changed is noticed."""
    model = getattr(estimator, "model", None)
    return None if model is None else _encoded_model(resolve_model(model))


def _encoded_scale(estimator: BaseEstimator, scale: PatientScale | str | None) -> dict[str, Any] | None:
    if scale == "patient":
        scale = getattr(estimator, "patient_scale_", PatientScale())
    if scale is None:
        return None
    if not isinstance(scale, PatientScale):
        msg = f"scale must be 'patient', a PatientScale or None, not {scale!r}"
        raise TypeError(msg)
    return scale.to_dict()


def _encoded(value: Any, key: str) -> Any:
    """Give a parameter as JSON; what JSON does not know gets a key that begins with a dollar."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Protocol):
        return {"$protocol": value.to_dict()}
    if isinstance(value, SignalModel):
        return {"$model": _encoded_model(value)}
    if isinstance(value, tuple):
        return {"$tuple": [_encoded(item, key) for item in value]}
    if isinstance(value, list):
        return [_encoded(item, key) for item in value]
    if isinstance(value, Mapping) and not any(str(name).startswith("$") for name in value):
        return {str(name): _encoded(item, key) for name, item in value.items()}
    msg = f"parameter {key} cannot be stored in a model file: {value!r}; give numbers, names and protocols"
    raise TypeError(msg)


def _encoded_model(model: SignalModel) -> dict[str, Any]:
    if model.source:
        msg = (
            f"model {model.name} is a function with branches or loops, and a model file carries no code; write it as "
            "one formula (SignalModel.from_expression), or train without maps (model=None)"
        )
        raise TypeError(msg)
    parameters = [[p.name, p.unit, _encoded(p.low, "low"), _encoded(p.high, "high")] for p in model.parameters]
    return {"name": model.name, "expression": model.expression, "parameters": parameters}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    tagged = [key for key in value if key.startswith("$")]
    if not tagged:
        return {key: _decoded(item) for key, item in value.items()}
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "$float":
            return float(content)
        if tag == "$tuple":
            return tuple(_decoded(item) for item in content)
        if tag == "$protocol":
            _refuse_keys(content, {"name", "b", "te", "directions"}, "key of a protocol", complete=True)
            return Protocol.from_dict(content)
        if tag == "$model":
            if isinstance(content, dict) and content.get("source"):
                msg = f"its model {content.get('name')!r} is the source of a function, and code from files is never run"
                raise _RefusedError(msg)
            _refuse_keys(content, {"name", "expression", "parameters"}, "key of a model", complete=True)
            parameters = [
                Parameter(name, unit, _decoded(low), _decoded(high))
                for name, unit, low, high in content["parameters"]
            ]
            return SignalModel.from_expression(content["expression"], parameters, name=content["name"])
    msg = f"a parameter has the unknown key {tagged[0]!r}"
    raise _RefusedError(msg)
