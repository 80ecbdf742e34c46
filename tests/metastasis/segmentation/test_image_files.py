"""Image files in, probabilities and labels on the same grid out."""

import nibabel as nib
import numpy as np
import pytest

from metastasis.segmentation.ensemble import SensitivitySpecificityEnsemble, segment_image


class Bright:
    """Marks what is bright; a stand-in for a fitted segmenter."""

    threshold_ = 0.7

    def predict_proba(self, volumes, *, priors=None, masks=None):
        found = []
        for i, volume in enumerate(volumes):
            values = np.asarray(volume.dataobj, dtype=np.float32)
            before = 0 if priors is None else np.asarray(priors[i].dataobj)
            inside = 1 if masks is None else np.asarray(masks[i].dataobj)
            found.append(((values - before) * inside).astype(np.float32))
        return found


@pytest.fixture
def scan():
    values = np.random.default_rng(0).uniform(size=(5, 6, 7)).astype(np.float32)
    affine = np.array([[0, -1.5, 0, 9], [1.2, 0, 0, -4], [0, 0, 2.0, 3], [0, 0, 0, 1]])
    return nib.Nifti1Image(values, affine)


def test_answers_lie_on_the_grid_of_the_scan(scan):
    found = segment_image(Bright(), scan)
    assert list(found) == ["probability", "label"]
    values = scan.get_fdata(dtype=np.float32)
    assert np.array_equal(found["probability"].get_fdata(dtype=np.float32), values)
    assert np.array_equal(found["label"].dataobj, (values >= np.float32(0.7)).astype(np.uint8))
    for image in found.values():
        np.testing.assert_allclose(image.affine, scan.affine)
    assert [image.get_data_dtype() for image in found.values()] == [np.float32, np.uint8]


def test_files_are_read_and_written(scan, tmp_path):
    prior = nib.Nifti1Image(np.full(scan.shape, 0.25, dtype=np.float32), scan.affine)
    mask = nib.Nifti1Image((scan.get_fdata() > 0.5).astype(np.uint8), scan.affine)
    for name, image in {"scan": scan, "prior": prior, "mask": mask}.items():
        nib.save(image, tmp_path / f"{name}.nii.gz")
    paths = {key: tmp_path / f"{key}.nii.gz" for key in ("prior", "mask")}
    found = segment_image(Bright(), tmp_path / "scan.nii.gz", **paths, out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["label.nii.gz", "probability.nii.gz"]
    values = scan.get_fdata(dtype=np.float32)
    np.testing.assert_allclose(found["probability"].get_fdata(), (values - 0.25) * (values > 0.5), atol=1e-6)
    for name, image in found.items():
        again = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert np.array_equal(again.dataobj, image.dataobj)
        np.testing.assert_allclose(again.affine, scan.affine, atol=1e-6)
    with pytest.raises(FileExistsError, match="exist already"):
        segment_image(Bright(), scan, out=tmp_path / "out")
    segment_image(Bright(), scan, out=tmp_path / "out", overwrite=True)


def test_a_scan_that_is_not_there_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        segment_image(Bright(), tmp_path / "none.nii.gz", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prior_with_a_fourth_axis_of_length_one_is_a_volume(scan):
    values = np.asarray(scan.dataobj)[..., None]
    found = segment_image(Bright(), scan, prior=nib.Nifti1Image(values, scan.affine))
    assert found["label"].shape == scan.shape


def test_a_prior_that_nobody_looks_at_is_refused(scan):
    blind = Bright()
    blind.prior_ = None
    for segmenter in (blind, SensitivitySpecificityEnsemble(blind, blind)):
        assert segment_image(segmenter, scan)["label"].shape == scan.shape
        with pytest.raises(ValueError, match="the prior scan would not be looked at"):
            segment_image(segmenter, scan, prior=scan)
    mixed = SensitivitySpecificityEnsemble(Bright(), blind)
    assert segment_image(mixed, scan, prior=scan)["label"].shape == scan.shape
