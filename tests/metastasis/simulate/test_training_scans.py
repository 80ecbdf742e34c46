"""Training scans: copies differ, phantoms mark the cores of rings, negatives are cut to the brain."""

import nibabel as nib
import numpy as np
import pytest

from metastasis.simulate.implants import implanted_copies, phantom_scans, read_negative


def test_negative_is_read_in_ras_order_and_cut_to_its_brain(tmp_path):
    values = np.zeros((50, 50, 50), np.float32)
    values[5:20, 14:26, 20:30] = 100
    values[5] = values[5] * 2
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), tmp_path / "t1.nii.gz")
    volume, brain = read_negative(tmp_path / "t1.nii.gz")
    assert brain.sum() == 15 * 12 * 10
    assert volume.shape == (15 + 12 + 5, 12 + 24, 10 + 24)
    # The first plane of a file from right to left is the last one in RAS order.
    assert (volume[brain.any(axis=(1, 2))][-1].max(), volume.min()) == (200, 0)
    nib.save(nib.Nifti1Image(0 * values, np.eye(4)), tmp_path / "empty.nii.gz")
    with pytest.raises(ValueError, match=r"empty\.nii\.gz holds zeros alone"):
        read_negative(tmp_path / "empty.nii.gz")


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((9, 9, 9), np.diag([1, 1, 1.5, 1]), "voxels of 1 × 1 × 1.5 mm, where about 1 mm .* dmrifit-metastasis prepare"),
        ((9, 9, 9, 2), np.eye(4), r"has 4 axes \(9 × 9 × 9 × 2\); .*: save one volume alone"),
        ((9, 9, 9), np.eye(4), "has 1 non-finite value "),
    ],
)
def test_other_scans_are_refused_in_one_line(tmp_path, shape, affine, message):
    values = np.ones(shape, np.float32)
    if "finite" in message:
        values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "t1.nii.gz")
    with pytest.raises(ValueError, match=rf"t1\.nii\.gz.*{message}"):
        read_negative(tmp_path / "t1.nii.gz")


def test_copies_differ_and_hold_implants():
    grid = np.stack(np.indices((48, 48, 44)), axis=-1)
    brain = np.linalg.norm(grid - 23, axis=-1) < 19
    volume = (np.random.default_rng(0).normal(100, 2, brain.shape) * brain).astype(np.float32)
    first, second = implanted_copies("one", volume, brain, 2, n_lesions=3, random_state=0)
    assert (first.volume != second.volume).any()
    for scan in (first, second):
        assert (scan.label == 1).any()
        assert (scan.label[~scan.brain] == 0).all()
        assert scan.implants.numbers.max() <= 3


@pytest.mark.slow
def test_phantoms_mark_cores():
    (scan,) = phantom_scans(1, random_state=4, shape=(80, 88, 80))
    assert set(np.unique(scan.label)) <= {0, 1, 2}
    assert (scan.label == 1).any()
    assert (scan.volume[~scan.brain] == 0).all()
