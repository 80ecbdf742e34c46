"""The example plug-in, installed by pip, is found by its names: a model in fits, a detector in models and boards."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import Protocol

EXAMPLE = Path(__file__).with_name("example")
PROTOCOL = Protocol([0, 200, 500, 1000, 1500, 2000])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Install the plug-in into a folder; give a function that runs a program which sees it."""
    folder = tmp_path_factory.mktemp("plugin")
    # Building leaves files beside the source.
    source = shutil.copytree(EXAMPLE, folder / "source")
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    target = folder / "installed"
    subprocess.run([sys.executable, "-m", "pip", *words, "--target", str(target), str(source)], check=True)
    path = os.pathsep.join([str(target), *filter(None, sys.path)])

    def program(name, *arguments):
        line = f"from {name}.cli.program import main; main()"
        return subprocess.run(
            [sys.executable, "-c", line, *map(str, arguments)], cwd=folder, env={**os.environ, "PYTHONPATH": path},
            check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return program


def done(result):
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.slow
def test_a_model_of_a_plugin_is_fitted_cited_and_offered(run, tmp_path):
    rng = np.random.default_rng(0)
    truth = np.column_stack([np.full(60, 500.0), rng.uniform(0.5, 1.5, 60), rng.uniform(0.6, 0.95, 60)])
    signals = truth[:, :1] * np.exp(-((PROTOCOL.b / 1000 * truth[:, 1:2]) ** truth[:, 2:]))
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(signals.reshape(5, 4, 3, 6), np.eye(4)), scan)
    np.savetxt(tmp_path / "scan.bval", PROTOCOL.b[None], fmt="%g")
    done(run("dmrifit", "fit", scan, "--model", "stretched", "--out", tmp_path / "maps", "--no-quicklook"))
    maps = [nib.load(tmp_path / "maps" / f"scan_model-stretched_param-{name}_dwimap.nii.gz") for name in ("DDC", "alpha")]
    for image, values in zip(maps, truth.T[1:], strict=True):
        np.testing.assert_allclose(image.get_fdata().ravel(), values, rtol=0.02)
    assert "Bennett et al." in done(run("dmrifit", "cite", "stretched"))
    refused = run("dmrifit", "fit", scan, "--model", "streched", "--out", tmp_path / "other")
    assert refused.returncode == 2
    assert "did you mean stretched?" in refused.stdout


@pytest.mark.slow
def test_a_detector_of_a_plugin_is_trained_applied_and_stands_on_the_board(run, tmp_path):
    cases, model, seen, board = (tmp_path / name for name in ("cases", "model.dmrifit", "seen", "board"))
    done(run("anomaly", "simulate", 4, 3, "--directions", 6, "--shape", "24,28,20", "--spacing", 6.5, "--out", cases))
    done(run("anomaly", "train", cases / "healthy.tsv", "--detector", "asymmetry", "--out", model))
    # The file names a class that is loaded from the installed package alone.
    done(run("anomaly", "detect", model, cases / "gliomas.tsv", "--out", seen))
    detections = f"asymmetry={seen / 'detections.tsv'}"
    done(run("anomaly", "evaluate", cases / "gliomas.tsv", "--detections", detections, "--out", board))
    assert "asymmetry" in set(pd.read_csv(board / "thresholds.csv")["method"])
    refused = run("anomaly", "train", cases / "healthy.tsv", "--detector", "symmetry", "--out", tmp_path / "other.dmrifit")
    assert refused.returncode == 2
    assert "must be one of aligned, gaussian" in refused.stdout
    assert "asymmetry" in refused.stdout
