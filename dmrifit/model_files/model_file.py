"""Model files: JSON beside the stored regressor, read without ever running a pickle."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.map_fitter import ClinicalMetrics, MapFitter, resolve_model
from dmrifit.io.atomic_files import whole_file
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, encoded_model, refuse_keys
from dmrifit.model_files.registry import registered
from dmrifit.model_files.regressor_file import check_leaves, dumped, loaded, trees, versions_of
from dmrifit.predict.conformal import ConformalIntervals
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

__all__ = ["load_model", "save_model"]

_FORMAT = 2
_METADATA = "model.json"
_REGRESSOR = "regressor.skops"
_GIVEN = "given.skops"
_ESTIMATOR = "estimator.dmrifit"
_CLASSES: dict[str, type[BaseEstimator]] = {
    cls.__name__: cls
    for cls in (SignalToSignal, MapsToMaps, ConformalIntervals, MapFitter, ClinicalMetrics)
}
_LEAF_FILE = re.compile(r"leaf\d{1,3}\.(json|safetensors)")
# Of a class that has registered itself.
_OWN = "own-"
_OWN_FILE = re.compile(r"own-[a-z]+\.(json|safetensors|skops)")
_KEYS = {
    "format",
    "class",
    "parameters",
    "fitted",
    "model",
    "scale",
    "leaves",
    "versions",
    "sha256",
}
_FITTED = ("n_features_in_", "feature_names_in_", "n_dropped_")
_PACKAGES = ("dmrifit", "scikit-learn", "skops", "numpy")
_OF_LEAVES = ("torch", "xgboost")
_SAME_MAJOR = ("dmrifit", "scikit-learn")
# What a file may unpack to: forests of constants, the densest of real ones, are packed 40 times smaller.
_ROOM, _DENSEST = 2**26, 64


def save_model(
    estimator: BaseEstimator, path: str | Path, *, scale: PatientScale | str | None = "patient"
) -> None:
    """
    Write a fitted estimator to one file.

    The file is a zip archive of ``model.json`` (class, parameters, protocols, model, rule of the
    patient's scale, versions) and, for a strategy, the fitted regressor as skops stores it, with boosted
    trees as JSON and weights of networks as safetensors beside it; for intervals, the model file of their
    estimator; for an estimator of volumes, the weights of its network as safetensors. It appears under its
    name only when it is complete, and replaces a file of that name.

    Parameters
    ----------
    estimator : SignalToSignal, MapsToMaps, ConformalIntervals, MapFitter or ClinicalMetrics
        Fitted; or of a class that is registered, such as those derived from `VolumeEstimator`
        (`dmrifit.model_files.registry.register`).
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
    parts = _contents(estimator, scale)
    with whole_file(Path(path)) as part:
        _write_archive(part, parts)


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
        Fitted. One of signals has an attribute ``patient_scale_``: the `PatientScale` that its signals were
        divided by in training, or None.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the model needs a library that is not installed; the message names the command.
    ValueError
        If it is not a model file, is damaged or was altered, comes from another major version, or
        holds an unknown class, key or type. The message names the file.

    See Also
    --------
    save_model : Write the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file; check its name and folder")
    remedy = "copy it again from where it was made, or train another model"
    try:
        with path.open("rb") as file:
            return _rebuilt(*_read_parts(file))
    except ImportError:
        raise
    except MemoryError:
        raise ValueError(
            f"{path} is refused as a model file: there is no memory for what it says it holds"
        ) from None
    except RefusedError as error:
        raise ValueError(f"{path} is refused as a model file: {error}; {remedy}") from None
    except Exception as error:
        # An archive whose table of contents is damaged may point to places before its start.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"{path} is refused as a model file: it is damaged or was altered ({error}); {remedy}"
        ) from error


def _contents(estimator: BaseEstimator, scale: PatientScale | str | None) -> dict[str, bytes]:
    """Give the parts of a model file."""
    name = type(estimator).__name__
    if _own(name) is type(estimator):
        return _own_contents(estimator)
    if _CLASSES.get(name) is not type(estimator):
        raise TypeError(
            f"{type(estimator).__name__} has no model file; {', '.join(_CLASSES)} have"
        )
    check_is_fitted(estimator)
    parts: dict[str, bytes] = {}
    leaves: list[dict[str, Any]] = []
    parameters = {}
    for key, value in estimator.get_params(deep=False).items():
        if isinstance(estimator, ConformalIntervals) and key == "estimator":
            buffer = io.BytesIO()
            _write_archive(buffer, _contents(estimator.estimator_, scale))
            parts[_ESTIMATOR] = buffer.getvalue()
            parameters[key] = {"$estimator": _ESTIMATOR}
        elif isinstance(value, BaseEstimator):
            parts[_GIVEN] = dumped(value, None, parts, leaves)
            parameters[key] = {"$estimator": _GIVEN}
        else:
            parameters[key] = encoded(value, key)
    if isinstance(estimator, ConformalIntervals):
        parts[_REGRESSOR] = dumped(estimator._forest, "RFR", parts, leaves)
    elif hasattr(estimator, "regressor_"):
        parts[_REGRESSOR] = dumped(estimator.regressor_, estimator.regressor, parts, leaves)
    metadata = {
        "format": _FORMAT,
        "class": name,
        "parameters": parameters,
        "fitted": _fitted(estimator),
        "model": _definition(estimator),
        "scale": _encoded_scale(estimator, scale),
        "leaves": leaves,
        "versions": {package: version(package) for package in _PACKAGES} | versions_of(leaves),
        "sha256": {part: hashlib.sha256(content).hexdigest() for part, content in parts.items()},
    }
    parts[_METADATA] = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False).encode()
    return parts


def _own(name: Any) -> type[BaseEstimator] | None:
    """Find a class of another package; none can take the place of one from here."""
    return None if name in _CLASSES else registered(name)


def _own_contents(estimator: BaseEstimator) -> dict[str, bytes]:
    """Give the parts of the model file of a registered class."""
    check_is_fitted(estimator)
    parameters, fitted, files = estimator.stored()
    parts = {f"{_OWN}{name}": content for name, content in files.items()}
    for part in parts:
        if not _OWN_FILE.fullmatch(part):
            raise ValueError(f"a part of a model file cannot be called {part[len(_OWN) :]!r}")
    # Arrays can be safetensors without any network.
    learned_by = {"torch": version("torch")} if f"{_OWN}net.safetensors" in parts else {}
    metadata = {
        "format": _FORMAT,
        "class": type(estimator).__name__,
        "parameters": parameters,
        "fitted": fitted,
        "model": None,
        "scale": None,
        "leaves": [],
        "versions": {package: version(package) for package in _PACKAGES} | learned_by,
        "sha256": {part: hashlib.sha256(content).hexdigest() for part, content in parts.items()},
    }
    parts[_METADATA] = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False).encode()
    return parts


def _rebuilt(metadata: Mapping[str, Any], parts: Mapping[str, bytes]) -> BaseEstimator:
    own = _own(metadata["class"])
    if own is not None:
        estimator = own(**{key: decoded(value) for key, value in metadata["parameters"].items()})
        estimator.restore(
            metadata["fitted"], {name.removeprefix(_OWN): part for name, part in parts.items()}
        )
        return estimator
    cls = _CLASSES[metadata["class"]]
    parameters = {}
    for key, value in metadata["parameters"].items():
        if value == {"$estimator": _GIVEN}:
            parameters[key] = loaded(parts[_GIVEN], None, metadata["leaves"], parts)
        elif value == {"$estimator": _ESTIMATOR}:
            inside = _rebuilt(*_read_parts(io.BytesIO(parts[_ESTIMATOR]), inside=True))
            parameters[key] = clone(inside)
        else:
            parameters[key] = decoded(value)
    estimator = cls(**parameters)
    for name in _FITTED:
        if name in metadata["fitted"]:
            value = metadata["fitted"][name]
            setattr(
                estimator,
                name,
                np.array(value, dtype=object) if isinstance(value, list) else value,
            )
    if metadata["model"] != _definition(estimator):
        raise RefusedError(
            f"its model {metadata['model']} is not the one of that name in this version"
        )
    if isinstance(estimator, MapFitter):
        estimator.model_ = resolve_model(estimator.model)
    if isinstance(estimator, SignalToSignal | MapsToMaps):
        estimator.regressor_ = loaded(
            parts[_REGRESSOR], estimator.regressor, metadata["leaves"], parts
        )
        estimator.check_parameters()
        _check_regressor(estimator)
    if isinstance(estimator, ConformalIntervals):
        forest = loaded(parts[_REGRESSOR], "RFR", [], {})
        _restore_intervals(estimator, inside, metadata["fitted"]["intervals"], forest)
    scale = metadata["scale"]
    estimator.patient_scale_ = None if scale is None else PatientScale.from_dict(scale)
    return estimator


def _check_regressor(estimator: SignalToSignal | MapsToMaps) -> None:
    """Check that the regressor fits the estimator and that no tree leads out of its memory."""
    regressor = estimator.regressor_
    n_neighbors = math.prod(estimator.patch_shape_ or (1,))
    n_inputs = estimator.n_features_in_
    if isinstance(estimator, MapsToMaps) and estimator.source is not None:
        n_inputs = 3 * n_neighbors
    found = getattr(regressor, "n_features_in_", n_inputs)
    if not hasattr(regressor, "predict") or found != n_inputs:
        raise RefusedError(f"its regressor takes {found} inputs, and the estimator has {n_inputs}")
    if (
        estimator.source is not None
        and n_neighbors * len(estimator.source) != estimator.n_features_in_
    ):
        columns = f"{len(estimator.source)} measurements of {n_neighbors} voxels"
        raise RefusedError(
            f"its source protocol has {columns}, not {estimator.n_features_in_} columns"
        )
    _check_trees(regressor, n_inputs)
    if estimator.target is not None:
        names = (
            estimator.target
            if isinstance(estimator, SignalToSignal)
            else resolve_model(estimator.model).names
        )
        answer = np.shape(regressor.predict(np.ones((1, n_inputs))))
        if answer not in ((1, len(names)), (1,) * (len(names) == 1)):
            raise RefusedError(
                f"its regressor answers with {answer[-1]} numbers instead of {len(names)}"
            )


def _check_trees(regressor: Any, n_inputs: int) -> None:
    for parent, left, right, inner, feature, n_features in trees(regressor):
        reachable = (np.minimum(left, right)[inner] > parent[inner]).all()
        inside = (np.maximum(left, right)[inner] < len(parent)).all()
        seen = (feature[inner] >= 0).all() and (feature[inner] < n_features).all()
        if not (reachable and inside and seen and n_features <= n_inputs):
            raise RefusedError("a tree of its regressor has branches that lead nowhere")


# The archive ------------------------------------------------------------------------------------------


def _write_archive(file: Path | io.BytesIO, parts: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(parts):
            archive.writestr(name, parts[name])


def _read_parts(
    file: BinaryIO, *, inside: bool = False
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read the archive, or the one inside it, and check everything that can be checked before an object is made."""
    if not zipfile.is_zipfile(file):
        raise RefusedError("it is not an archive that save_model wrote (pickles are never read)")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        known = {_METADATA, _REGRESSOR, _GIVEN, _ESTIMATOR}
        known |= {
            name for name in names if _LEAF_FILE.fullmatch(name) or _OWN_FILE.fullmatch(name)
        }
        if len(set(names)) != len(names) or not {_METADATA} <= set(names) <= known:
            raise RefusedError(
                f"it holds {', '.join(sorted(names))} instead of the parts of a model"
            )
        if inside and _ESTIMATOR in names:
            raise RefusedError("it holds a model in a model in a model")
        unpacked, packed = (
            sum(entry.file_size for entry in archive.infolist()),
            file.seek(0, io.SEEK_END),
        )
        # A model inside is packed already: packed once more, it would unpack to the square of what is allowed.
        twice = [entry for entry in archive.infolist() if entry.filename == _ESTIMATOR]
        again = any(entry.file_size > 2 * entry.compress_size + 4096 for entry in twice)
        if unpacked > _ROOM + _DENSEST * packed or again:
            raise RefusedError(
                f"its {packed} bytes say that they unpack to {unpacked}, more than any model does"
            )
        parts = {entry.filename: _read(archive, entry) for entry in archive.infolist()}
    metadata = json.loads(parts.pop(_METADATA))
    _check_metadata(metadata)
    if set(metadata["sha256"]) != set(parts):
        raise RefusedError(
            f"its parts are {sorted(parts)}, and it lists {sorted(metadata['sha256'])}"
        )
    for name, content in parts.items():
        if hashlib.sha256(content).hexdigest() != metadata["sha256"][name]:
            raise RefusedError(f"{name} was altered after it was written")
    return metadata, parts


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read as many bytes as an entry tells of: asked for all of them, zipfile unpacks those that it does not, too."""
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _check_metadata(metadata: Any) -> None:
    file_format = metadata.get("format") if isinstance(metadata, dict) else None
    if file_format != _FORMAT:
        raise RefusedError(
            f"its format is {file_format!r}, not {_FORMAT}: it was written by another version; train again"
        )
    refuse_keys(metadata, _KEYS, "key", complete=True)
    own = _own(metadata["class"])
    cls = _CLASSES.get(metadata["class"]) if own is None else own
    if cls is None:
        raise RefusedError(
            f"its class is {metadata['class']!r}, not one of {', '.join(_CLASSES)}, nor one that an installed or "
            "imported package has registered; import the package that has it"
        )
    refuse_keys(
        metadata["parameters"], set(cls._get_param_names()), f"parameter of {cls.__name__}"
    )
    intervals = {"intervals"} if cls is ConformalIntervals else set()
    if own is None:
        refuse_keys(metadata["fitted"], {*_FITTED, *intervals}, "fitted attribute")
    refuse_keys(metadata["versions"], {*_PACKAGES, *_OF_LEAVES}, "package")
    if not set(_PACKAGES) <= set(metadata["versions"]):
        raise RefusedError(f"it does not say with which {', '.join(_PACKAGES)} it was written")
    check_leaves(metadata["leaves"])
    for package in _SAME_MAJOR:
        written, here = metadata["versions"][package], version(package)
        if written.split(".")[0] != here.split(".")[0]:
            raise RefusedError(
                f"it was written with {package} {written}, and {here} is installed; install {package} "
                f"{written} to read it, or train the model again"
            )
    if own is not None:  # which checks what is its own
        return
    fitted = metadata["fitted"]
    names = fitted.get("feature_names_in_", [])
    counts = [
        value for key, value in fitted.items() if key not in ("feature_names_in_", *intervals)
    ]
    sound = all(type(count) is int and count >= 0 for count in counts)
    if (
        not sound
        or not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
    ):
        raise RefusedError(f"its fitted attributes are not counts and names: {fitted}")


def _fitted(estimator: BaseEstimator) -> dict[str, Any]:
    found = {name: getattr(estimator, name) for name in _FITTED if hasattr(estimator, name)}
    fitted = {
        k: [str(v) for v in x] if isinstance(x, np.ndarray) else int(x) for k, x in found.items()
    }
    return fitted | (
        {"intervals": _intervals(estimator)} if isinstance(estimator, ConformalIntervals) else {}
    )


def _intervals(estimator: ConformalIntervals) -> dict[str, Any]:
    """Give what intervals have learned beside their forest."""
    state = {
        "quantiles": estimator.quantiles_.tolist(),
        "unit": estimator._unit.tolist(),
        "smallest": estimator._smallest.tolist(),
        "calibration": estimator.calibration_.to_dict("list"),
    }
    return {key: encoded(value, key) for key, value in state.items()}


def _restore_intervals(
    estimator: ConformalIntervals, inside: BaseEstimator, state: Mapping[str, Any], forest: Any
) -> None:
    """Give intervals what they have learned, and check that it belongs together."""
    import pandas as pd

    refuse_keys(
        state, {"quantiles", "unit", "smallest", "calibration"}, "part of intervals", complete=True
    )
    quantiles, unit, smallest = (
        np.array(decoded(state[key]), float) for key in ("quantiles", "unit", "smallest")
    )
    n = len(unit)
    estimator._set_outputs(estimator._model(), n)
    if not (
        quantiles.shape == (n, 2)
        and unit.shape == smallest.shape == (n,)
        and len(estimator.names_) == n
    ):
        raise RefusedError(
            f"its intervals are those of {len(estimator.names_)} outputs, and it holds quantiles of {len(quantiles)}"
        )
    estimator.estimator_ = inside
    estimator.quantiles_, estimator._unit, estimator._smallest = quantiles, unit, smallest
    estimator.calibration_ = pd.DataFrame(decoded(state["calibration"]))
    estimator._forest = forest
    n_features = estimator.n_features_in_
    if inside.n_features_in_ != n_features or forest.n_features_in_ != n_features + n:
        raise RefusedError(
            f"its forest takes {forest.n_features_in_} inputs instead of {n_features} and {n} predictions"
        )
    _check_trees(forest, n_features + n)
    if np.shape(forest.predict(np.ones((1, n_features + n)))) not in ((1, n), (1,) * (n == 1)):
        raise RefusedError(f"its forest does not answer with {n} numbers")


def _definition(estimator: BaseEstimator) -> Any:
    """Describe the model behind an estimator, so that one that changed is noticed."""
    model = getattr(estimator, "model", None)
    return None if model is None else encoded_model(resolve_model(model))


def _encoded_scale(
    estimator: BaseEstimator, scale: PatientScale | str | None
) -> dict[str, Any] | None:
    if scale == "patient":
        scale = getattr(estimator, "patient_scale_", PatientScale())
    if scale is None:
        return None
    if not isinstance(scale, PatientScale):
        raise TypeError(f"scale must be 'patient', a PatientScale or None, not {scale!r}")
    return scale.to_dict()
