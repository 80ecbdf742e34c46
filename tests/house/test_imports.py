"""Importing the packages is quick and silent, and so is the engine's first use."""

import json

HEAVY = {"dask", "dipy", "matplotlib", "pandas", "scipy", "sklearn", "torch", "xgboost"}

IMPORT = "import dmrifit, placement, anomaly, metastasis"
FIT = """
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
protocol = Protocol(np.array([0.0, 100.0, 400.0, 800.0]))
model = MODELS["adc"]
truth = np.array([[1000.0, 1.5], [800.0, 0.7]])
result = fit_voxels(model.signal(truth, protocol), protocol, model)
np.testing.assert_allclose(result.parameters, truth, rtol=1e-4)
"""
REPORT = """
import json, sys
print(json.dumps(sorted(sys.modules)))
"""


def loaded(output):
    """Return the libraries that a process lists in the last line of what it prints."""
    return {name.partition(".")[0] for name in json.loads(output.splitlines()[-1])}


def test_the_import_is_silent_and_loads_no_heavy_library(run_python):
    result = run_python("-c", f"{IMPORT}\n{REPORT}")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("\n") == 1, result.stdout
    assert {"dmrifit", "placement", "anomaly", "metastasis"} <= loaded(result.stdout)
    assert sorted(loaded(result.stdout) & {*HEAVY, "nibabel", "numba", "numpy"}) == []


def test_a_fit_loads_no_heavy_library(run_python):
    result = run_python("-c", f"{FIT}\n{REPORT}")
    assert result.returncode == 0, result.stdout
    assert "numba" in loaded(result.stdout)
    assert sorted(loaded(result.stdout) & HEAVY) == []
