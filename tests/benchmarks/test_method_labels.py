"""Labels of methods in benchmarks name the method that is run, whatever the defaults are."""

import re

import numpy as np
import pytest

from benchmarks.fitting import bench_ivim_methods as ivim
from dmrifit import Protocol, fit_voxels

B = [0, 10, 20, 40, 80, 110, 160, 260, 400, 600, 800]


@pytest.mark.parametrize("label", ivim.METHODS)
def test_methods_for_ivim_are_those_of_their_labels(label):
    rng = np.random.default_rng(0)
    protocol = Protocol(B)
    truth = np.array([[1.0, 0.3, 20.0, 1.0]])
    signals = ivim.noisy(truth.repeat(20, axis=0), protocol, 30, rng)
    options = ivim.METHODS[label]
    result = fit_voxels(signals, protocol, "ivim", **options)
    assert result.method == label.partition(",")[0]
    # Dt of a segmented fit is determined by the signals from its threshold on.
    threshold = re.search(r"b ≥ (\d+)", label)
    assert (result.method == "segmented") == bool(threshold)
    if threshold:
        below = np.array(B) < float(threshold[1])
        changed = signals.copy()
        changed[:, below & (np.array(B) > 0)] *= 0.98
        again = fit_voxels(changed, protocol, "ivim", **options)
        np.testing.assert_array_equal(again["Dt"], result["Dt"])
        changed[:, np.flatnonzero(~below)[0]] *= 0.9
        assert (fit_voxels(changed, protocol, "ivim", **options)["Dt"] != result["Dt"]).all()
    if "S0 measured" in label:
        np.testing.assert_allclose(result["S0"], signals[:, 0])
