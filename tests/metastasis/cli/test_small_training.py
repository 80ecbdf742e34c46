"""Training on implants in one's own scans: what is learned from, and what is refused in one line."""

import nibabel as nib
import numpy as np
import pytest

from metastasis.candidates.small_model import small_model_threshold
from metastasis.candidates.two_stage import TwoStageSegmenter
from metastasis.cli import small_training
from metastasis.simulate import training_scans


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    grid = np.stack(np.indices((40, 40, 40)), axis=-1)
    brain = np.linalg.norm(grid - 20, axis=-1) < 17
    for number in range(2):
        volume = np.random.default_rng(number).normal(1, 0.03, brain.shape) * brain
        image = nib.Nifti1Image(volume.astype(np.float32), np.eye(4))
        nib.save(image, folder / f"person{number}.nii.gz")
    return folder


def test_copies_of_each_scan_and_phantoms_are_learned_from(run, scans, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    fits = []
    monkeypatch.setattr(training_scans, "phantom_scans", lambda n, random_state: [None] * n)
    monkeypatch.setattr(small_training, "_fit", lambda *arguments: fits.append(arguments))
    words = ("train-small", scans, "--out", tmp_path / "mine.dmrifit", "--copies", 2)
    code, out, error = run(*words, "--phantoms", 3, "--epochs", 5)
    assert code == 0, error
    ((training, path, epochs, seed),) = fits
    names = [scan.name for scan in training[:4]]
    assert len(training) == 7
    # Copies of a person are never split between folds.
    assert len(set(names)) == 2
    assert all((scan.label == 1).any() for scan in training[:4])
    assert (path.name, epochs, seed) == ("mine.dmrifit", 5, 0)
    assert "implants in 2 scans and on 3 synthetic patients" in out
    assert "never tried on a labelled metastasis" in out


def test_the_model_is_made_as_the_one_that_comes_along(tmp_path, monkeypatch):
    pytest.importorskip("skorch")
    models = []
    monkeypatch.setattr(TwoStageSegmenter, "fit", lambda self, *_, **__: models.append(self))
    monkeypatch.setattr("dmrifit.model_files.model_file.save_model", lambda model, path: None)
    small_training._fit([], tmp_path / "mine.dmrifit", 2, 0)
    assert (models[0].comparable, models[0].threshold) == (True, small_model_threshold())
    assert models[0].n_trainings == 2


def test_a_bad_scan_is_refused_before_the_first_copy(run, scans, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    image = nib.load(scans / "person1.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([2, 2, 2, 1])), scans / "thick.nii.gz")
    monkeypatch.setattr(training_scans, "implanted_copies", None)
    code, _, error = run("train-small", scans, "--out", tmp_path / "mine.dmrifit")
    assert code == 2
    assert error.count("\n") == 1
    assert "thick.nii.gz has voxels of 2 × 2 × 2 mm" in error
    assert not (tmp_path / "mine.dmrifit").exists()
