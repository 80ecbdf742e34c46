"""Classes of other packages that have model files: only registered ones are ever built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from sklearn.base import BaseEstimator

from dmrifit._optional import plugin_errors

#: Entry points of this group name single registered classes of packages, loaded when a file needs
#: one; those of the second group name tables of class names with their modules.
GROUP = "dmrifit.models"
TABLES = "dmrifit.model_tables"

_CLASSES: dict[str, type[BaseEstimator]] = {}

_Class = TypeVar("_Class", bound=type[BaseEstimator])


def register(cls: _Class) -> _Class:
    """
    Let a class have model files; a decorator.

    Its `stored` returns parameters, fitted attributes and files by name; its `restore` takes the
    latter two back, with every key and shape checked, and raises ValueError where something does
    not fit. Parameters and attributes are numbers, texts, tuples, protocols and signal models, in
    lists and dictionaries; an attribute may be another fitted estimator of a registered class,
    whose files are all but the `own_files` of the class. A file is an estimator of scikit-learn
    where its name ends in .skops, and bytes otherwise. A package that wants its files read without
    being imported first lists the class among its entry points in the group ``dmrifit.models``.
    """
    missing = [name for name in ("stored", "restore", "get_params") if not hasattr(cls, name)]
    if missing:
        raise TypeError(f"{cls.__name__} cannot have model files without {', '.join(missing)}")
    earlier = _CLASSES.get(cls.__name__, cls)
    # A module that is loaded again makes its classes again.
    if f"{earlier.__module__}.{earlier.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
        raise ValueError(
            f"{earlier.__module__} has registered a {cls.__name__} already; choose another name"
        )
    _CLASSES[cls.__name__] = cls
    return cls


def registered(name: Any) -> type[BaseEstimator] | None:
    """Find a registered class by its name, in packages that are not loaded yet too."""
    if not isinstance(name, str):
        return None
    if name not in _CLASSES:
        for entry in entry_points(group=GROUP, name=name):
            with plugin_errors(entry):
                entry.load()
                if name not in _CLASSES:
                    raise TypeError(f"it registers no class {name}")
    if name not in _CLASSES:
        for entry in entry_points(group=TABLES):
            with plugin_errors(entry):
                modules: Mapping[str, str] = entry.load()
                if name in modules:
                    import_module(modules[name])
    return _CLASSES.get(name)
