"""Libraries of the extras: imported where they are used, asked for by name when missing."""

from importlib import import_module
from types import ModuleType

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


def import_optional(module: str) -> ModuleType:
    """Import a module of an optional library, or say how to install the library."""
    library = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A library that is there but lacks something of its own speaks for itself.
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        target = f'"dmrifit[{EXTRAS[library]}]"' if library in EXTRAS else library
        message = f"{library} is not installed; to install it: pip install {target}"
        raise ImportError(message, name=library) from error
