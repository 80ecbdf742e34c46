"""Scans of heads are corrected step by step: field and brain are found again where they are known."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.imaging.head_steps import correct_bias_field, find_brain

SHAPE = (60, 66, 56)
SPACING = 2.0


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_known_field_is_removed_without_a_mask_too_and_the_same_each_time(make_brain):
    picture, brain, affine = make_brain()
    x = np.linspace(-1, 1, SHAPE[0])[:, None, None]
    z = np.linspace(-1, 1, SHAPE[2])
    true = np.exp(0.5 * x + 0.4 * z**2) * np.ones(SHAPE)
    true /= np.exp(np.log(true[brain]).mean())
    even = correct_bias_field(picture * true, affine, brain, "a head")
    assert np.log(true[brain]).std() > 0.15
    assert np.log(even[brain] / picture[brain]).std() < 0.03
    picture, brain, affine = make_brain((24, 27, 23), 5.0)
    true = np.exp(0.5 * np.linspace(-1, 1, 24))[:, None, None]
    even = correct_bias_field(picture * true, affine, None, "a head")
    np.testing.assert_array_equal(correct_bias_field(picture * true, affine, None, "a head"), even)
    before, after = (np.corrcoef(values[brain], picture[brain])[0, 1] for values in (picture * true, even))
    assert after > 0.98 > before + 0.02


def test_a_brain_is_found_without_a_skull_or_inside_one_with_a_bright_tumor_at_its_surface(make_brain):
    picture, brain, affine = make_brain()
    for background in (0.0, -5.0):
        image = nib.Nifti1Image(np.where(brain, picture, background).astype(np.float32), affine)
        found, is_stripped = find_brain(image)
        assert is_stripped
        assert dice(found, brain) > 0.99
    picture, brain, affine = make_brain((76, 82, 70), skull=True)
    places = (np.indices(picture.shape) - (np.array(picture.shape)[:, None, None, None] - 1) / 2) * SPACING
    tumor = (np.linalg.norm(places - np.array([36, 5, 0])[:, None, None, None], axis=0) < 12) & brain
    found, _ = find_brain(nib.Nifti1Image(np.where(tumor, 220, picture).astype(np.float32), affine))
    assert dice(found, brain) > 0.95
    assert found[tumor].mean() > 0.95


def test_a_head_without_a_brain_is_refused(make_brain):
    _, brain, affine = make_brain((76, 82, 70), skull=True)
    noise = np.random.default_rng(0).uniform(0, 100, brain.shape).astype(np.float32)
    with pytest.raises(ValueError, match=r"no brain of 20 to 2200 mL.*brain_mask=False"):
        find_brain(nib.Nifti1Image(noise, affine))


def test_real_brains_are_found_without_skulls_or_with_one_and_a_tumor(data_dir):
    for path in sorted((data_dir / "brats2013_deepmedic").glob("brats_*"))[:1]:
        found, _ = find_brain(path / "T1c_subtrMeanDivStd.nii.gz")
        mask = nib.load(path / "brainmask.nii.gz")
        assert dice(found, np.asarray(mask.dataobj) > 0.5) > 0.97
    folder = data_dir / "brain_tumour_thick_slice_1"
    found, _ = find_brain(folder / "image.nii.gz")
    tumor = np.asarray(nib.load(folder / "label.nii.gz").dataobj) > 0
    assert 1300 < found.sum() * 0.78125**2 * 6.5 / 1000 < 1900
    assert found[tumor].mean() > 0.98
