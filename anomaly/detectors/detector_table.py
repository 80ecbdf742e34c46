"""Table of detectors, which front door, command line and model files read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from dmrifit._optional import plugin_errors

#: Entry points of this group name detectors that other packages bring, loaded when asked for.
PLUGINS = "anomaly.detectors"

#: Names of detectors on the command line, with their module in this room and their class.
DETECTORS: Mapping[str, tuple[str, str]] = {
    "aligned": ("aligned", "AlignedMahalanobis"),
    "gaussian": ("gaussian", "VoxelwiseGaussian"),
    "pca": ("subspace", "PCADetector"),
    "forest": ("isolation", "IsolationForestDetector"),
    "implants": ("implant_detector", "ImplantDetector"),
    "mean": ("gaussian", "OneMinusMean"),
    "dae": ("autoencoder", "DenoisingAutoencoder"),
    "recdisc": ("recdisc", "RecDiscNet"),
}

#: Modules of the classes, which register themselves for model files when they are imported.
CLASS_MODULES: Mapping[str, str] = {
    title: f"anomaly.detectors.{module}" for module, title in DETECTORS.values()
}


def detector_names() -> list[str]:
    """List the names of detectors on the command line, those of other packages last."""
    plugins = [entry.name for entry in entry_points(group=PLUGINS)]
    return [*DETECTORS, *sorted(set(plugins) - set(DETECTORS))]


def import_detector(name: str) -> Any:
    """Import the class of a detector by its name on the command line."""
    if name not in DETECTORS:
        from anomaly.detectors.base import AnomalyDetector

        entry, *_ = entry_points(group=PLUGINS, name=name)
        with plugin_errors(entry):
            detector = entry.load()
            if not (isinstance(detector, type) and issubclass(detector, AnomalyDetector)):
                raise TypeError("it is no class under anomaly.detectors.base.AnomalyDetector")
        return detector
    _, title = DETECTORS[name]
    return getattr(import_module(CLASS_MODULES[title]), title)
