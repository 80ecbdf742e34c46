"""What the tests of the commands share."""

from functools import partial

import nibabel as nib
import numpy as np
import pytest

from placement.cli import program


@pytest.fixture
def run(run_main):
    """Run the command line in this process; return exit code, standard output and error."""
    return partial(run_main, program.main, "dmrifit-placement")


@pytest.fixture
def done(run):
    """Run a command that succeeds; return what it prints."""

    def call(*words):
        code, text, error = run(*words)
        assert code == 0, error
        return text

    return call


@pytest.fixture
def refused(run):
    """Run a command that is refused; return its error."""

    def call(*words):
        code, text, error = run(*words)
        assert code == 2, (text, error)
        return error

    return call


@pytest.fixture
def ball(tmp_path):
    grid = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) * 2.0
    path = tmp_path / "ball.nii.gz"
    nib.save(nib.Nifti1Image((np.linalg.norm(grid - 40, axis=-1) < 18).astype(np.uint8), np.diag([2.0, 2, 2, 1])), path)
    return path


@pytest.fixture
def cases(done, tmp_path):
    folder = tmp_path / "cases"
    done("simulate", 4, "--out", folder, "--spacing", 4, "--exclude")
    return folder
