"""Importing the packages is quick and silent, and so is the engine's first use."""

import json

import pytest

HEAVY = ("dask", "dipy", "matplotlib", "pandas", "scipy", "sklearn", "torch", "xgboost")

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
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("code", [IMPORT, FIT], ids=["import", "fit_voxels"])
def test_no_heavy_library_is_loaded(run_python, code):
    result = run_python("-c", f"{code}\n{REPORT}")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("\n") == 1, f"not silent: {result.stdout}"
    loaded = set(json.loads(result.stdout))
    assert "dmrifit" in loaded
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))
