"""The command prepare: what it writes and says, and what it refuses."""

import nibabel as nib
import numpy as np
import pytest

SHAPE = (40, 40, 20)


@pytest.fixture
def files(tmp_path):
    """Write a synthetic scan of 2 × 2 × 4 mm with a bright vessel, and its brain."""
    places = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2
    brain = np.linalg.norm(places / np.array(SHAPE)[:, None, None, None], axis=0) < 0.4
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    values = np.where(brain, 300 + noise, 0)
    values[18:21, 8:32, 9:11] = 700
    affine = np.diag([2.0, 2, 4, 1])
    for name, array in (("scan", values), ("mask", brain), ("short", brain[:-1])):
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_a_scan_is_prepared_with_its_brain_and_thick_slices_are_told(run, files):
    scan, mask, out = files / "scan.nii.gz", files / "mask.nii.gz", files / "prepared"
    code, said, error = run("prepare", scan, "--brain", mask, "--spacing", 2, "--out", out)
    assert code == 0, error
    assert "40 × 40 × 40 voxels of 2 mm" in said
    assert "4 mm" in error
    image = nib.load(out / "scan.nii.gz")
    brain = nib.load(out / "scan_brain.nii.gz").get_fdata() > 0
    np.testing.assert_allclose(image.header.get_zooms(), 2)
    assert np.median(image.get_fdata()[brain]) == pytest.approx(1, abs=0.01)


def test_a_brain_on_another_grid_is_refused_before_anything_is_written(run, files):
    words = ("prepare", files / "scan.nii.gz", "--brain", files / "short.nii.gz")
    code, _, error = run(*words, "--out", files / "prepared")
    assert code == 2
    assert "39 × 40 × 20" in error
    assert not (files / "prepared").exists()
