"""Labels of methods in benchmarks name the method that is run, whatever the defaults are."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fitting import bench_ivim_methods as ivim
from dmrifit import Protocol, fit_voxels

SCRIPTS = sorted(Path(ivim.__file__).parent.glob("**/*.py"))
B = [0, 10, 20, 40, 80, 110, 160, 260, 400, 600, 800]


def nameless_methods(source):
    """List the labels of a script's tables of methods, its constants, that have no options."""
    labels = []
    constants = [node.value for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in [node for value in constants if value for node in ast.walk(value)]:
        if isinstance(node, ast.Dict):
            for label, options in zip(node.keys, node.values, strict=True):
                is_empty = isinstance(options, ast.Dict) and not options.keys
                if is_empty and isinstance(label, ast.Constant):
                    labels.append(label.value)
    return [label for label in labels if "default" not in label]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_no_label_of_a_method_stands_for_options_that_are_left_out(path):
    assert nameless_methods(path.read_text(encoding="utf-8")) == []


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
