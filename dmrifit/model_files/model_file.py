"""Model files: JSON beside the stored regressor, read without ever running a pickle."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from dmrifit._utils.checks import finite_numbers
from dmrifit._utils.counts import counted
from dmrifit._utils.text_files import check_file
from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.map_fitter import ClinicalMetrics, MapFitter, resolve_model
from dmrifit.io.atomic_files import whole_file
from dmrifit.io.parameter_json import RefusedError, decoded, encoded, encoded_model, refuse_keys
from dmrifit.model_files.learned_arrays import CONTENTS
from dmrifit.model_files.registry import registered
from dmrifit.model_files.regressor_file import check_leaves, dumped, loaded, versions_of
from dmrifit.predict.base import resolve_patch_shape
from dmrifit.predict.conformal import ConformalIntervals
from dmrifit.predict.intervals import IntervalEnds
from dmrifit.predict.novelty import Novelty
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

__all__ = ["load_model", "save_model"]

_FORMAT = 3
_METADATA = "model.json"
_REGRESSOR = "regressor.skops"
_PASSED = "given.skops"
_ESTIMATOR = "estimator.dmrifit"
_CLASSES: dict[str, type[BaseEstimator]] = {
    cls.__name__: cls
    for cls in (SignalToSignal, MapsToMaps, ConformalIntervals, MapFitter, ClinicalMetrics)
}
# Prefix of the files that a registered class stores.
_REGISTERED = "own-"
# Ending of those that are estimators of scikit-learn, and not bytes, for the class.
_ESTIMATORS = ".skops"
# Content of a fitted attribute that is an estimator of a registered class; the last beside it.
_INSIDE = ("class", "parameters", "fitted", "files")
_PART = re.compile(
    r"model\.json|(regressor|given)\.skops|estimator\.dmrifit"
    r"|leaf\d{1,3}\.(json|safetensors)|own-[a-z]+\.(json|safetensors|skops)"
)
_TABLES, _TEXTS = CONTENTS["interval_tables"], CONTENTS["errors"]
_FITTED = (
    "n_features_in_", "feature_names_in_", "n_dropped_", "synthetic_", "noise_", "snr_",
    "training_",
)  # fmt: skip
_TRAINING = {"cohorts": list, "patients": int, "count": int, "unit": str}
_PACKAGES = ("dmrifit", "scikit-learn", "skops", "numpy")
_OF_LEAVES = ("torch", "xgboost")
# Endings of the files that are named beside a model, and so may be taken for it.
_SCANS = (".tsv", ".csv", ".nii", ".nii.gz")
_SAME_MAJOR = ("dmrifit", "scikit-learn")
# Limits of the size of an unpacked file. The most compressible real models, forests of constants,
# are packed to 1/40.
_UNPACKED_BYTES = 2**26
_UNPACKED_RATIO = 64


def save_model(
    estimator: BaseEstimator, path: str | Path, *, scale: PatientScale | str | None = "patient"
) -> None:
    """
    Write a fitted estimator to one file.

    The file is a zip archive of ``model.json`` (class, parameters, protocols, model, rule of the
    patient's scale, what it was trained on, versions) and, for a strategy, the fitted regressor as
    skops stores it, with boosted trees as JSON and weights of networks as safetensors beside it;
    for intervals, the model file of their estimator; for an estimator of volumes, the weights of
    its network as safetensors. It appears under its name only when it is complete, and replaces a
    file of that name.

    Parameters
    ----------
    estimator : SignalToSignal, MapsToMaps, ConformalIntervals, MapFitter or ClinicalMetrics
        Fitted; or of a class that is registered, such as those derived from `VolumeEstimator`
        (`dmrifit.model_files.registry.register`).
    path : path
        The file, by custom with the ending ``.dmrifit``.
    scale : PatientScale, "patient" or None, default="patient"
        How the signals were scaled that the estimator was trained with: ``"patient"`` is the rule
        that the estimator was loaded with, or else the default one; None is no scaling.

    Raises
    ------
    TypeError
        If there is no model file for this class, or a parameter cannot be stored: a signal model
        that is a function, for one, because no code from a file is ever run.
    ValueError
        If the regressor holds a type that would be refused when the file is read: not all
        regressors of scikit-learn can be stored, for one KNeighborsRegressor.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    See Also
    --------
    load_model : Read the file.
    """
    parts = _contents(estimator, scale)
    with whole_file(Path(path)) as unfinished:
        _write_archive(unfinished, parts)


def load_model(path: str | Path, *, trusted: Collection[str] = ()) -> BaseEstimator:
    """
    Read an estimator that `save_model` wrote; its predictions are the same, bit for bit.

    Nothing is unpickled and no class is built that is neither on a fixed list nor registered,
    whatever the file asks for.

    Parameters
    ----------
    path : path
        The file.
    trusted : collection of str, default=()
        Estimators of scikit-learn, by module and class as the message names them, that the file
        may hold although their arrays cannot be checked: spoiled ones crash Python. Only for
        regressors that were passed to a strategy and estimators inside classes of your own, from
        somebody you trust.

    Returns
    -------
    estimator
        Fitted. One of signals has an attribute ``patient_scale_``: the `PatientScale` that its
        signals were divided by in training, or None.

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
    if isinstance(trusted, str):
        raise TypeError(f"trusted must be a list of names, not the text {trusted!r}")
    path = Path(path)
    check_file(path, "model file")
    if path.name.lower().endswith(_SCANS) and not zipfile.is_zipfile(path):
        raise ValueError(_TEXTS["scans"].format(path=path))
    remedy = "copy it again from where it was made, or train another model"
    try:
        with path.open("rb") as file:
            return _rebuilt(*_read_parts(file), trusted)
    except ImportError:
        raise
    except MemoryError:
        raise ValueError(_TEXTS["memory"].format(path=path)) from None
    except RefusedError as error:
        # A copy of a file of another version is no better.
        end = "" if str(error).endswith("train it again") else f"; {remedy}"
        raise ValueError(f"{path} is refused as a model file: {error}{end}") from None
    except Exception as error:
        # An archive whose table of contents is damaged may point before its start, which is
        # EINVAL.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        text = _TEXTS["damaged"].format(path=path, error=error)
        raise ValueError(f"{text}; {remedy}") from error


def _contents(estimator: BaseEstimator, scale: PatientScale | str | None) -> dict[str, bytes]:
    """Write the parts of a model file, by their names in the archive."""
    name = type(estimator).__name__
    if _class_named(name) is not type(estimator):
        raise TypeError(_TEXTS["no_file"].format(name, ", ".join(_CLASSES)))
    check_is_fitted(estimator)
    if name not in _CLASSES:
        parameters, fitted, files = estimator.stored()
        for key, value in fitted.items():
            if isinstance(value, BaseEstimator):
                inner = type(value).__name__
                if _class_named(inner) is not type(value) or not hasattr(estimator, "own_files"):
                    raise TypeError(_TEXTS["own_files"].format(key=key, name=name, inner=inner))
                inside = dict(zip(_INSIDE[1:], value.stored(), strict=True))
                files = {**files, **inside.pop("files")}
                fitted[key] = {"class": inner, **inside}
        parts = {}
        for key, content in files.items():
            if not _PART.fullmatch(f"{_REGISTERED}{key}"):
                raise ValueError(f"a part of a model file cannot be called {key!r}")
            is_estimator = key.endswith(_ESTIMATORS)
            parts[f"{_REGISTERED}{key}"] = dumped(content, {}, []) if is_estimator else content
        # Safetensors of any other name hold arrays that no network has learned.
        versions = {"torch": version("torch")} if "net.safetensors" in files else {}
        own = {"class": name, "parameters": _encoded(parameters), "fitted": _encoded(fitted)}
        return _with_metadata(own, parts, versions)
    if scale == "patient":
        scale = getattr(estimator, "patient_scale_", PatientScale())
    if scale is not None and not isinstance(scale, PatientScale):
        raise TypeError(f"scale must be 'patient', a PatientScale or None, not {scale!r}")
    parts = {}
    leaves: list[dict[str, Any]] = []
    parameters = {}
    for key, value in estimator.get_params(deep=False).items():
        if isinstance(estimator, ConformalIntervals) and key == "estimator":
            buffer = io.BytesIO()
            _write_archive(buffer, _contents(estimator.estimator_, scale))
            parts[_ESTIMATOR] = buffer.getvalue()
            parameters[key] = {"$estimator": _ESTIMATOR}
        elif isinstance(value, BaseEstimator):
            parts[_PASSED] = dumped(value, parts, leaves)
            parameters[key] = {"$estimator": _PASSED}
        else:
            parameters[key] = encoded(value, key)
    if isinstance(estimator, ConformalIntervals):
        parts[_REGRESSOR] = dumped(estimator._forest, parts, leaves)
    elif hasattr(estimator, "regressor_"):
        parts[_REGRESSOR] = dumped(estimator.regressor_, parts, leaves)
    metadata = {
        "class": name,
        "parameters": parameters,
        "fitted": _fitted(estimator),
        "model": _definition(estimator),
        "scale": None if scale is None else scale.to_dict(),
        "leaves": leaves,
    }
    return _with_metadata(metadata, parts, versions_of(leaves))


def _encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write the parameters or fitted attributes of a registered class as JSON."""
    return {key: encoded(value, key) for key, value in values.items()}


def _class_named(name: str) -> type[BaseEstimator] | None:
    """Find a class that has model files; one of another package takes no name from here."""
    return _CLASSES.get(name) or registered(name)


def _with_metadata(
    metadata: dict[str, Any], parts: dict[str, bytes], versions: dict[str, str]
) -> dict[str, bytes]:
    """Add the metadata of a model file to its parts, with versions and a digest of each part."""
    metadata = {"format": _FORMAT, "model": None, "scale": None, "leaves": []} | metadata
    metadata["versions"] = {package: version(package) for package in _PACKAGES} | versions
    metadata["sha256"] = {
        name: hashlib.sha256(content).hexdigest() for name, content in parts.items()
    }
    text = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False)
    return parts | {_METADATA: text.encode()}


def _rebuilt(
    metadata: Mapping[str, Any], parts: Mapping[str, bytes], trusted: Collection[str]
) -> BaseEstimator:
    """Build an estimator from the checked metadata and parts of its file."""
    parameters: dict[str, Any] = {}
    for key, value in metadata["parameters"].items():
        if value == {"$estimator": _PASSED}:
            parameters[key] = loaded(parts[_PASSED], metadata["leaves"], parts, trusted=trusted)
        elif value == {"$estimator": _ESTIMATOR}:
            inside = _rebuilt(*_read_parts(io.BytesIO(parts[_ESTIMATOR]), inside=True), trusted)
            # As a parameter it is not fitted; the fitted copy is restored below.
            parameters[key] = clone(inside)
        else:
            parameters[key] = decoded(value)
    cls: Any = _class_named(metadata["class"])
    estimator = cls(**parameters)
    if metadata["class"] not in _CLASSES:
        files: dict[str, Any] = {}
        for name, content in parts.items():
            is_estimator = name.endswith(_ESTIMATORS)
            key = name.removeprefix(_REGISTERED)
            files[key] = loaded(content, [], {}, trusted=trusted) if is_estimator else content
        fitted = decoded(metadata["fitted"])
        try:
            for key, value in fitted.items():
                is_inside = isinstance(value, dict) and set(value) == set(_INSIDE[:-1])
                if is_inside and hasattr(cls, "own_files"):
                    inner_files = {k: files.pop(k) for k in set(files) - {*cls.own_files}}
                    fitted[key] = _restored_inside(key, value, inner_files)
            estimator.restore(fitted, files)
        except ValueError as error:
            raise RefusedError(str(error)) from None
        return estimator
    for name, value in metadata["fitted"].items():
        if name in _FITTED:
            # Names of features are an array of objects in scikit-learn.
            if isinstance(value, list):
                value = np.array(value, dtype=object)
            setattr(estimator, name, value)
    # A name alone could mean another formula in another version, and maps would be wrong in
    # silence.
    if metadata["model"] != _definition(estimator):
        raise RefusedError(_TEXTS["other_model"].format(metadata["model"]))
    if isinstance(estimator, MapFitter):
        estimator.model_ = resolve_model(estimator.model)
    if isinstance(estimator, SignalToSignal | MapsToMaps):
        stored = parts[_REGRESSOR]
        estimator.regressor_ = loaded(stored, metadata["leaves"], parts, trusted=trusted)
        estimator.check_parameters()
        _check_regressor(estimator)
    if isinstance(estimator, ConformalIntervals):
        forest = loaded(parts[_REGRESSOR], [], {})
        _restore_intervals(estimator, inside, metadata["fitted"]["intervals"], forest)
    scale = metadata["scale"]
    estimator.patient_scale_ = None if scale is None else PatientScale.from_dict(scale)
    return estimator


def _restored_inside(key: str, content: Mapping[str, Any], files: Mapping[str, Any]) -> Any:
    """Rebuild an estimator of a registered class that is a fitted attribute of another one."""
    cls: Any = registered(content["class"])
    if cls is None:
        raise RefusedError(_TEXTS["unknown_inside"].format(key, content["class"]))
    names = set(cls._get_param_names())
    refuse_keys(content["parameters"], names, f"parameter of {cls.__name__}")
    estimator = cls(**content["parameters"])
    estimator.restore(content["fitted"], files)
    return estimator


def _check_regressor(estimator: SignalToSignal | MapsToMaps) -> None:
    """Check that the regressor has the inputs and outputs of the estimator."""
    regressor = estimator.regressor_
    n_neighbors = math.prod(estimator.patch_shape_ or (1,))
    n_inputs = estimator.n_features_in_
    n_outputs = None
    if estimator.source is not None and estimator.target is not None:
        n_measurements = len(estimator.source)
        if isinstance(estimator, MapsToMaps):
            n_inputs = 3 * n_neighbors
            n_outputs = len(resolve_model(estimator.model).names)
        else:
            n_outputs = len(estimator.target)
        if n_neighbors * n_measurements != estimator.n_features_in_:
            raise RefusedError(
                f"its source protocol has {counted(n_measurements, 'measurement')} of "
                f"{counted(n_neighbors, 'voxel')}, not "
                f"{counted(estimator.n_features_in_, 'column')}"
            )
    n_regressor_inputs = getattr(regressor, "n_features_in_", n_inputs)
    if not hasattr(regressor, "predict") or n_regressor_inputs != n_inputs:
        inputs = counted(n_regressor_inputs, "input")
        raise RefusedError(_TEXTS["inputs"].format(inputs, n_inputs))
    prediction = np.asarray(regressor.predict(np.ones((1, n_inputs))))
    if not np.isfinite(prediction).all():
        raise RefusedError("its regressor predicts non-finite values")
    if n_outputs is not None and not _is_one_row(prediction.shape, n_outputs):
        answer = counted(prediction.shape[-1], "number")
        raise RefusedError(_TEXTS["answer"].format(answer, n_outputs))


def _is_one_row(shape: tuple[int, ...], n_outputs: int) -> bool:
    """Whether predictions for one voxel have this shape; those of one output may have one axis."""
    return shape == (1, n_outputs) or shape == (1,) == (n_outputs,)


# The archive -------------------------------------------------------------------------------------


def _write_archive(file: Path | io.BytesIO, parts: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(parts):
            archive.writestr(name, parts[name])


def _read_parts(
    file: BinaryIO, *, inside: bool = False
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """
    Read the metadata and the other parts of a model file, checked before any object is built.

    `inside` says that the file is a part of another model file.
    """
    if not zipfile.is_zipfile(file):
        raise RefusedError("it is not an archive that save_model wrote (pickles are never read)")
    with zipfile.ZipFile(file) as archive:
        # Names and sizes are checked from the table of contents, before anything is unpacked.
        entries = archive.infolist()
        names = archive.namelist()
        has_duplicates = len(set(names)) < len(names)
        if _METADATA not in names or has_duplicates or not all(map(_PART.fullmatch, names)):
            listed = ", ".join(repr(name)[1:-1] for name in sorted(names))
            raise RefusedError(f"it holds {listed} instead of the parts of a model")
        if inside and _ESTIMATOR in names:
            raise RefusedError("it holds a model in a model in a model")
        n_unpacked = sum(entry.file_size for entry in entries)
        n_packed = file.seek(0, io.SEEK_END)
        # A model inside is an archive, which hardly shrinks further. One that does is packed
        # twice, and could unpack to the square of the ratio.
        is_packed_twice = any(
            entry.filename == _ESTIMATOR and entry.file_size > 2 * entry.compress_size + 4096
            for entry in entries
        )
        if n_unpacked > _UNPACKED_BYTES + _UNPACKED_RATIO * n_packed or is_packed_twice:
            raise RefusedError(_TEXTS["bomb"].format(packed=n_packed, unpacked=n_unpacked))
        parts = {}
        for entry in entries:
            # Reading at most the stated size: an entry may unpack to more than it states.
            with archive.open(entry) as part:
                parts[entry.filename] = part.read(entry.file_size)
    metadata = json.loads(parts.pop(_METADATA))
    _check_metadata(metadata)
    if set(metadata["sha256"]) != set(parts):
        raise RefusedError(_TEXTS["parts"].format(sorted(parts), sorted(metadata["sha256"])))
    for name, content in parts.items():
        if hashlib.sha256(content).hexdigest() != metadata["sha256"][name]:
            raise RefusedError(f"{name} was altered after it was written")
    return metadata, parts


def _check_metadata(metadata: Any) -> None:
    """Check class, names of parameters, versions, leaves and what is fitted."""
    file_format = metadata.get("format") if isinstance(metadata, dict) else None
    if file_format != _FORMAT:
        raise RefusedError(_TEXTS["other_format"].format(file_format, _FORMAT))
    refuse_keys(metadata, set(CONTENTS["metadata"]), "key", complete=True)
    cls = _class_named(metadata["class"])
    if cls is None:
        text = _TEXTS["unknown_class"]
        raise RefusedError(text.format(metadata["class"], ", ".join(_CLASSES)))
    refuse_keys(
        metadata["parameters"], set(cls._get_param_names()), f"parameter of {cls.__name__}"
    )
    # A registered class checks its own.
    if metadata["class"] in _CLASSES:
        own = {"intervals"} if cls is ConformalIntervals else set()
        refuse_keys(metadata["fitted"], {*_FITTED} | own, "fitted attribute")
        for key in set(_FITTED).intersection(metadata["fitted"]):
            value = metadata["fitted"][key]
            # Not isinstance: true and false are integers, too.
            is_sound = type(value) is int and value >= 0
            if key in ("noise_", "snr_"):
                is_sound = value is None or (type(value) is float and value > 0)
            if key == "feature_names_in_":
                is_sound = isinstance(value, list) and {*map(type, value)} <= {str}
            if key == "training_":
                entries = value.items() if isinstance(value, dict) else ()
                is_sound = {name: type(entry) for name, entry in entries} == _TRAINING
            if not is_sound:
                raise RefusedError(_TEXTS["not_counts"].format(metadata["fitted"]))
    refuse_keys(metadata["versions"], {*_PACKAGES, *_OF_LEAVES}, "package")
    if not set(_PACKAGES) <= set(metadata["versions"]):
        raise RefusedError(f"it does not say with which {', '.join(_PACKAGES)} it was written")
    check_leaves(metadata["leaves"])
    for package in _SAME_MAJOR:
        written = metadata["versions"][package]
        installed = version(package)
        if written.split(".")[0] != installed.split(".")[0]:
            text = _TEXTS["other_version"]
            raise RefusedError(text.format(package, written=written, installed=installed))


def _fitted(estimator: BaseEstimator) -> dict[str, Any]:
    """Describe the fitted attributes of an estimator in JSON, without its regressor."""
    fitted: dict[str, Any] = {}
    for name in _FITTED:
        value: Any = getattr(estimator, name, None)
        if isinstance(value, np.ndarray):
            fitted[name] = [str(feature) for feature in value]
        elif value is not None:
            fitted[name] = value if isinstance(value, float | dict) else int(value)
    if isinstance(estimator, ConformalIntervals):
        novelty = estimator.novelty_
        state = {
            "ends": estimator._ends.to_dict(),
            "unit": estimator._unit.tolist(),
            "smallest": estimator._smallest.tolist(),
            "novelty": None if novelty is None else novelty.to_dict(),
            "has_random_groups": estimator.has_random_groups_,
        }
        for name in _TABLES:
            state[name] = getattr(estimator, f"{name}_").to_dict("list")
        fitted["intervals"] = {key: encoded(value, key) for key, value in state.items()}
    return fitted


def _restore_intervals(
    estimator: ConformalIntervals, inside: BaseEstimator, state: Mapping[str, Any], forest: Any
) -> None:
    """Restore what intervals have learned, and check that it belongs together."""
    import pandas as pd

    # Older files do not say.
    state = {"has_random_groups": False} | dict(state)
    parts = {"ends", "unit", "smallest", "novelty", "has_random_groups", *_TABLES}
    refuse_keys(state, parts, "part of intervals", complete=True)
    if not isinstance(state["has_random_groups"], bool):
        raise RefusedError(f"its random groups are {state['has_random_groups']!r:.80}")
    estimator.has_random_groups_ = state["has_random_groups"]
    unit = finite_numbers(decoded(state["unit"]), "unit of its intervals")
    smallest = finite_numbers(decoded(state["smallest"]), "smallest of its intervals")
    n = unit.size
    estimator._set_outputs(estimator._model(), n)
    if unit.shape != (n,) or smallest.shape != (n,) or len(estimator.names_) != n:
        outputs = counted(len(estimator.names_), "output")
        raise RefusedError(_TEXTS["outputs"].format(outputs, n))
    if min(unit.min(), smallest.min()) <= 0:
        raise RefusedError("its intervals have an expected error of 0 or less")
    n_features = estimator.n_features_in_
    if inside.n_features_in_ != n_features or forest.n_features_in_ != n_features + n:
        inputs, predictions = counted(forest.n_features_in_, "input"), counted(n, "prediction")
        raise RefusedError(_TEXTS["forest"].format(inputs, n_features, predictions))
    n_neighbors = math.prod(resolve_patch_shape(inside) or (1,))
    if getattr(inside, "source", None) is None:
        n_neighbors = 1
    estimator._ends = IntervalEnds.from_dict(decoded(state["ends"]), estimator._bounds)
    estimator.novelty_ = None
    if state["novelty"] is not None:
        novelty = decoded(state["novelty"])
        estimator.novelty_ = Novelty.from_dict(novelty, n_features // n_neighbors)
    estimator.estimator_ = inside
    estimator.quantiles_ = estimator._ends.quantiles
    estimator._unit, estimator._smallest = unit, smallest
    for name in _TABLES:
        columns = decoded(state[name])
        refuse_keys(columns, set(_TABLES[name]), f"column of {name}", complete=True)
        # Older files number the contrasts of a target.
        labels = {str(place): name for place, name in enumerate(estimator.names_)}
        table = pd.DataFrame(columns).replace({"parameter": labels})
        numbers = table.drop(columns=["patient", "parameter"], errors="ignore")
        is_sound = all(kind.kind in "if" for kind in numbers.dtypes)
        if not is_sound or set(table["parameter"]) != set(estimator.names_):
            raise RefusedError(f"its {name} are not a table of numbers of {estimator.names_}")
        setattr(estimator, f"{name}_", table)
    estimator._forest = forest
    if not _is_one_row(np.shape(forest.predict(np.ones((1, n_features + n)))), n):
        raise RefusedError(f"its forest does not answer with {counted(n, 'number')}")


def _definition(estimator: BaseEstimator) -> Any:
    """Describe the model behind an estimator, so that one that changed is noticed."""
    model = getattr(estimator, "model", None)
    return None if model is None else encoded_model(resolve_model(model))
