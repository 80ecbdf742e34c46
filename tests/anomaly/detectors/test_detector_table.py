"""The table of detectors is what front door, command line and model files know."""

import subprocess
import sys

import pytest

import anomaly
from anomaly.detectors.detector_table import CLASS_MODULES, DETECTORS, import_detector
from dmrifit.model_files.registry import registered


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_public_and_has_model_files(name):
    if name in ("dae", "recdisc"):
        pytest.importorskip("torch")
    detector = import_detector(name)
    assert getattr(anomaly, detector.__name__) is detector
    assert registered(detector.__name__) is detector
    assert detector.__module__ == CLASS_MODULES[detector.__name__]


def test_a_model_file_finds_a_detector_that_was_not_imported():
    program = ("from dmrifit.model_files.registry import registered;" "print(registered('PCADetector').__module__)")
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "anomaly.detectors.subspace"
