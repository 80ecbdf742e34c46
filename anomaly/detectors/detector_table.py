"""Table of detectors, which front door, command line and model files read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["CLASS_MODULES", "DETECTORS", "import_detector"]

#: Names of detectors on the command line, with their module in this room and their class.
DETECTORS: Mapping[str, tuple[str, str]] = {
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


def import_detector(name: str) -> Any:
    """Import the class of a detector by its name on the command line."""
    _, title = DETECTORS[name]
    return getattr(import_module(CLASS_MODULES[title]), title)
