"""Preparation of own scans: grid, brain, aligned prior scan, intensity, and what is refused."""

import json
import re

import nibabel as nib
import numpy as np
import pytest

from dmrifit.imaging.rigid_alignment import HeadAlignment
from metastasis import prepare_scan, read_cases
from metastasis.scans.scan_checks import scan_notes

moved_heads = pytest.importorskip("moved_heads")
pytest.importorskip("SimpleITK")


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    """Write two visits of a synthetic head, and a mask of the later one."""
    folder = tmp_path_factory.mktemp("visits")
    signals = moved_heads.head_signals(0)
    earlier, truth = moved_heads.moved(signals, (6, -4, 5), (5, -3, 4))
    nib.save(nib.Nifti1Image(300 * signals, moved_heads.AFFINE), folder / "now.nii.gz")
    nib.save(earlier, folder / "earlier.nii.gz")
    places = np.indices(signals.shape) - np.array(signals.shape)[:, None, None, None] / 2
    inside = np.linalg.norm(places, axis=0) < 0.35 * min(signals.shape)
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), moved_heads.AFFINE), folder / "mask.nii.gz")
    return folder, truth


@pytest.fixture
def aligned(visits, monkeypatch):
    """Prepare both visits with the true matrix, as if registration had found it."""
    folder, truth = visits

    def prepare(likeness):
        correlation = np.full((20, 20, 20), likeness)
        alignment = HeadAlignment(truth, {}, correlation > 0, correlation, correlation, np.eye(4))
        monkeypatch.setattr("metastasis.scans.preparation.HeadAlignment.of", lambda *_: alignment)
        files = {"prior": folder / "earlier.nii.gz", "brain": folder / "mask.nii.gz"}
        return prepare_scan(folder / "now.nii.gz", **files, spacing=2.0, out=folder / "prepared", overwrite=True)

    return prepare


def test_a_prepared_folder_is_a_case_on_one_grid(visits, aligned, tmp_path):
    aligned(0.9)
    (case,) = read_cases(visits[0] / "prepared")
    assert case.name == "now"
    np.testing.assert_allclose(case.spacing, 2)
    assert nib.aff2axcodes(case.affine) == ("R", "A", "S")
    assert np.median(case.image[case.brain]) == pytest.approx(1, abs=0.01)
    assert not case.image[~case.brain].any()
    assert not case.prior[~case.brain].any()
    assert np.corrcoef(case.image[case.brain], case.prior[case.brain])[0, 1] > 0.9
    record = json.loads((visits[0] / "prepared" / "now_prepared.json").read_text(encoding="utf-8"))
    assert record["Brain"] == "given"
    assert record["PriorLikeness"] == 0.9
    np.testing.assert_allclose(record["PriorMatrix"], visits[1])
    assert "shows" not in str(record["Notes"])
    prior = nib.load(visits[0] / "earlier.nii.gz")
    prior = prior.slicer[..., : prior.shape[2] // 2]
    notes = prepare_scan(visits[0] / "now.nii.gz", prior=prior, brain=visits[0] / "mask.nii.gz", out=tmp_path).notes
    assert re.search(r"the prior scan .* shows \d\d % of the brain", str(notes))
    (case,) = read_cases(tmp_path)
    note = f"the prior scan of now shows {100 * (case.prior[case.brain] != 0).mean():.0f} % of the brain: "
    assert note in str(scan_notes(case, visits[0] / "now.nii.gz", uses_prior=True))


def test_a_prior_scan_that_shows_another_head_is_refused(aligned):
    with pytest.raises(ValueError, match=r"does not look like the head of .* 0.53, .*; check that person"):
        aligned(0.53)


@pytest.mark.slow
def test_the_prior_scan_is_aligned(visits):
    folder, truth = visits
    files = {"prior": folder / "earlier.nii.gz", "brain": folder / "mask.nii.gz"}
    result = prepare_scan(folder / "now.nii.gz", **files, spacing=2.0)
    points = np.array([[-40.0, 30, 20, 1], [35, -25, 10, 1], [0, 0, 0, 1]])
    np.testing.assert_allclose(points @ result.matrix.T, points @ truth.T, atol=0.2)
    assert result.likeness > 0.85


def test_thick_slices_and_missing_contrast_agent_are_said(visits):
    folder, _ = visits
    image = nib.load(folder / "now.nii.gz")
    thick = nib.Nifti1Image(image.get_fdata(dtype=np.float32)[:, :, ::2], image.affine @ np.diag([1, 1, 2.0, 1]))
    mask = nib.load(folder / "mask.nii.gz")
    thick_mask = nib.Nifti1Image(np.asarray(mask.dataobj)[:, :, ::2], thick.affine)
    notes = prepare_scan(thick, brain=thick_mask, spacing=2.0).notes
    assert any("slices of 4 mm" in note for note in notes)
    assert any("no bright vessels" in note for note in notes)


def test_a_mask_of_a_brain_with_its_skull_is_called_approximate(visits, monkeypatch):
    folder, _ = visits
    image, mask = (nib.load(folder / f"{name}.nii.gz") for name in ("now", "mask"))
    monkeypatch.setattr("metastasis.scans.preparation.find_brain", lambda _: (np.asarray(mask.dataobj) > 0, not is_told))
    air = 5 * np.random.default_rng(0).random(image.shape)
    values = image.get_fdata(dtype=np.float32) + air
    whole = nib.Nifti1Image(values, image.affine)
    stripped = nib.Nifti1Image(values * np.asarray(mask.dataobj), image.affine)
    for scan, brain, is_told in ((whole, None, True), (whole, mask, False), (stripped, None, False)):
        notes = prepare_scan(scan, brain=brain, spacing=2.0).notes
        assert any("still has its skull" in note for note in notes) is is_told
