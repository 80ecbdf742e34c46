"""The foreground of scans without a mask."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image
from dmrifit.imaging.head_steps import NO_AIR, foreground_mask
from dmrifit.imaging.scan_info import scan_info
from dmrifit.io.series import Series

pytest.importorskip("dipy")
PROTOCOL = Protocol([0, 1000])


def phantom(shape=(40, 36, 12)):
    """A synthetic ball of tissue with a dark hole, in noisy air, and a bright speck beside it."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm((grid - np.array(shape) / 2) / (14, 12, 5), axis=-1)
    truth = distance < 1
    signal = np.where(truth, 500.0, 0.0)
    signal[distance < 0.2] = 60
    signal[1:3, 1:3, 1] = 800
    rng = np.random.default_rng(0)
    volumes = np.stack([signal, 0.4 * signal], axis=-1)
    noisy = np.hypot(volumes + rng.normal(0, 10, volumes.shape), rng.normal(0, 10, volumes.shape))
    return nib.Nifti1Image(noisy.astype(np.float32), np.eye(4)), truth


def test_the_body_is_found_with_its_dark_hole_and_without_specks():
    image, truth = phantom()
    found = foreground_mask(Series.open(image), PROTOCOL)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95
    assert found[20, 18, 6]
    assert not found[:4, :4].any()
    clean, rng = 500.0 * truth[..., None] * [1.0, 1.0, 1.0, 1.0, 0.4], np.random.default_rng(0)
    noisy = np.hypot(clean + rng.normal(0, 100, clean.shape), rng.normal(0, 100, clean.shape))
    found = foreground_mask(Series.open(nib.Nifti1Image(noisy, np.eye(4))), Protocol([0, 0, 0, 0, 1000]))
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95


def test_a_block_of_tissue_alone_and_an_empty_image_have_no_foreground():
    values = np.random.default_rng(0).uniform(200, 600, (8, 8, 8, 2)).astype(np.float32)
    assert foreground_mask(Series.open(nib.Nifti1Image(values, np.eye(4))), PROTOCOL) is None
    values = np.zeros((8, 8, 8, 2), np.float32)
    with pytest.raises(ValueError, match="no foreground was found"):
        foreground_mask(Series.open(nib.Nifti1Image(values, np.eye(4))), PROTOCOL)


def test_a_fit_takes_the_foreground_and_says_so(tmp_path):
    image, truth = phantom()
    maps = fit_image(image, PROTOCOL, "adc", mask="auto", out=tmp_path, quicklook=True)
    assert np.count_nonzero(np.asarray(maps["status"].dataobj) != 255) < 1.1 * truth.sum()
    assert "median Otsu" in next(tmp_path.glob("*quicklook.html")).read_text(encoding="utf-8")
    assert "Warnings" not in maps.sidecar
    auto, tissue, none, unmasked = (
        scan_info(image, PROTOCOL, mask=mask).snr for mask in ("auto", nib.Nifti1Image(1.0 * truth, np.eye(4)), "none", None)
    )
    assert none == unmasked != auto == pytest.approx(tissue, rel=0.15)
    # Tissue as dark as air, but above the noise.
    dark = nib.Nifti1Image(np.maximum(image.get_fdata(), 90).astype(np.float32), np.eye(4))
    with pytest.warns(UserWarning, match=r"mask auto leaves out 8\d % of the voxels with signal above the noise"):
        fit_image(dark, PROTOCOL, "adc", mask="auto", sigma=10.0)
    values = np.random.default_rng(0).uniform(200, 600, (8, 8, 8, 2)).astype(np.float32)
    fit_image(nib.Nifti1Image(values, np.eye(4)), PROTOCOL, "adc", mask="auto", out=tmp_path / "block")
    assert NO_AIR in next((tmp_path / "block").glob("*.json")).read_text(encoding="utf-8")


@pytest.mark.data
def test_legs_are_found_in_a_real_scan(data_dir):
    folder = data_dir / "leg_ivim"
    found = foreground_mask(Series.open(folder / "dwi.nii.gz"), Protocol.read(folder / "dwi.bval"))
    muscles = np.asarray(nib.load(folder / "labels.nii.gz").dataobj) > 0
    assert (found & muscles).sum() / muscles.sum() > 0.98
    assert found.sum() < 1.7 * muscles.sum()  # skin, fat and bone beside muscles
