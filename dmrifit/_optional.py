"""Imports on demand: public names at first use, libraries of the extras, and plug-ins."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# Import name of each optional library -> the extra of setup.cfg that installs it.
EXTRAS = {
    "SimpleITK": "preprocess",
    "dask": "cluster",
    "dcm2niix": "dicom",
    "dipy": "preprocess",
    "distributed": "cluster",
    "highdicom": "dicom",
    "jinja2": "report",
    "matplotlib": "report",
    "monai": "deep",
    "pydicom": "dicom",
    "scikit_posthocs": "stats",
    "skorch": "deep",
    "statsmodels": "stats",
    "torch": "deep",
    "xgboost": "boost",
}


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package (PEP 562)."""

    def getter(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def lister() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getter, lister


def import_optional(module: str, *others: str) -> ModuleType:
    """Import a module of an optional library, or say how to install it and others it needs."""
    library = module.partition(".")[0]
    try:
        imported = _quietly_imported(module)
    except ModuleNotFoundError as error:
        # A library that is there but lacks something of its own speaks for itself.
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        target = f'"dmrifit[{EXTRAS[library]}]"' if library in EXTRAS else library
        message = f"{library} is not installed; to install it: pip install {target}"
        raise ImportError(message, name=library) from error
    for other in others:
        import_optional(other)
    return imported


def _quietly_imported(module: str) -> ModuleType:
    # What other libraries set for their warnings when they are imported is to stay.
    if module in sys.modules or module.partition(".")[0] != "SimpleITK":
        return import_module(module)
    with warnings.catch_warnings():
        # Its wrapper classes have none, which later Pythons tell at import.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        return import_module(module)


@contextmanager
def plugin_errors(entry: EntryPoint) -> Iterator[None]:
    """Name the package and its entry point in any error while the block loads and checks it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    # Code of others may raise anything, or leave by sys.exit.
    except BaseException as error:
        # A missing library of an extra has a remedy of its own.
        if type(error) is ImportError and error.name in EXTRAS:
            raise
        package = entry.dist.name if entry.dist else entry.module.partition(".")[0]
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise ImportError(
            f"the package {package} has a faulty plug-in: its entry point {entry.name} = "
            f"{entry.value} of the group {entry.group} cannot be used ({reason}); update the "
            f"package, or uninstall it (pip uninstall {package})"
        ) from error
