"""Checks of scans before segmentation: headers, skull, contrast agent, likeness to training."""

import json
from functools import partial
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from metastasis import Case
from metastasis.scans.scan_checks import (
    check_edges,
    check_stripped,
    checked_range,
    contrast_note,
    label_note,
    model_remarks,
    noted_case,
    seen_range,
    slice_note,
    unlike_notes,
)

SHAPE = (40, 40, 40)


@pytest.fixture(scope="module")
def brain():
    return np.linalg.norm(np.indices(SHAPE) - 19.5, axis=0) < 17


@pytest.fixture(scope="module")
def signals(brain):
    tissue = 1 + gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    return np.where(brain, np.clip(tissue, 0.4, 1.4), 0).astype(np.float32)


@pytest.fixture(scope="module")
def vessels():
    mask = np.zeros(SHAPE, bool)
    mask[19, 20, :] = mask[10:30, 18, 21] = True
    return mask


def test_thick_slices_are_noted_and_a_prior_or_a_brain_on_another_grid_is_refused(tmp_path):
    affine = np.diag([0.8, 0.9, 4.0, 1])
    for name, shape in (("scan", (9, 9, 9)), ("prior", (9, 9, 8)), ("series", (9, 9, 9, 5))):
        nib.save(nib.Nifti1Image(np.ones(shape, np.float32), affine), tmp_path / f"{name}.nii.gz")
    read = partial(noted_case, folder=tmp_path, edges=(), finds_brain=False, uses_prior=True, files={})
    scan = {"patient": "p1", "image": "scan.nii.gz", "synthetic": "true"}
    notes = ["its brain mask is only approximate", "the prior scan x has slices of 4 mm", "not like a prior scan"]
    (tmp_path / "scan_prepared.json").write_text(json.dumps({"Notes": notes}))
    first, *others = read(scan)[1]
    assert "slices of 4 mm" in first
    assert others == notes
    # A model without prior scans is not judged by them.
    assert read(scan, uses_prior=False)[1] == [first, notes[0], notes[2]]
    # Affines in single precision are rounded.
    assert slice_note("scan", (1, 1, 3.000005)) == ""
    assert "slices of 3.3 mm" in slice_note("scan", (0.57, 0.57, 3.2999961))
    with pytest.raises(ValueError, match=r"different grids.*dmrifit-metastasis prepare"):
        read(scan | {"prior": "prior.nii.gz"})
    with pytest.raises(ValueError, match=r"different grids; bring .*resample_from_to .order=0 for masks.$"):
        read(scan | {"brain": "prior.nii.gz"})
    with pytest.raises(ValueError, match=r"series.nii.gz has 4 axes \(9 × 9 × 9 × 5\)"):
        read(scan | {"image": "series.nii.gz"})


def test_a_scan_with_its_skull_needs_a_mask():
    head = np.ones((150, 150, 150), np.float32)
    with pytest.raises(ValueError, match=r"3375 mL are not zero, .* dmrifit-metastasis prepare strips"):
        check_stripped(Case("head", head))
    check_stripped(Case("head", head, brain=head > 0))
    check_stripped(Case("head", head, affine=np.diag([0.8, 0.8, 0.8, 1])))


def test_a_post_contrast_scan_has_bright_vessels_for_which_those_in_the_depth_are_enough(signals, brain, vessels):
    bright = np.where(vessels, 2.5, signals)
    assert contrast_note(Case("p", bright, brain=brain)) == ""
    assert contrast_note(Case("p", 300 * bright)) == ""
    few = signals.copy()
    # A few voxels are bright without contrast agent, too; a tight mask removes the vessels of the surface.
    for end, is_noted in ((18, True), (20, True), (22, False)):
        few[19, 18:end, 19] = 2.5
        assert ("is this a post-contrast T1 scan?" in contrast_note(Case("p", few, brain=brain))) == is_noted


@pytest.mark.data
def test_real_scans_with_contrast_agent_are_told_from_plain_ones(data_dir):
    """Vessels of the surface are stripped from the scans of BraTS, and those in the depth are left."""
    scans = {
        "post_contrast/BraTS2021_01478_t1ce": True,
        "post_contrast/BraTS2021_01483_t1ce": True,
        "post_contrast/BraTS2021_01484_t1ce": True,
        "post_contrast/mr_gd": True,
        "ms_lesions_mni/patient19_T1POST": True,
        "mni152_tissue/mni_icbm152_t1_1mm": False,
        "mrs_boxes/t1_brain": False,
    }
    for name, has_agent in scans.items():
        image = nib.load(data_dir / f"{name}.nii.gz")
        note = contrast_note(Case(name, image.get_fdata(dtype=np.float32), affine=image.affine))
        assert (note == "") == has_agent, name


def test_scans_unlike_those_in_training_are_told(signals, brain, vessels):
    bright = np.where(vessels, 2.5, signals)
    label = np.zeros(SHAPE, np.uint8)
    label[20:23, 20:23, 20:23] = 1
    seen = seen_range([(bright, None, brain), (2 * bright, None, brain)], [(label, None), (0 * label, None)])
    assert seen["marked"] == [27 / brain.sum()]
    case = Case("p", 7 * bright, brain=brain)
    assert unlike_notes(case, seen, label) == []
    (note,) = unlike_notes(Case("p", signals, brain=brain), seen)
    assert "p: this scan is unlike the training scans: 99.9 % of its brain lie below" in note
    (note,) = unlike_notes(case, seen, brain & (bright > 1))
    assert "of its brain are marked, of a training scan at most 0.13 % were lesion" in note
    assert "scans: 100 % of its brain are marked, of" in unlike_notes(case, {"marked": [0.1]}, brain)[0]
    assert unlike_notes(case, None, brain) == []


def test_cores_and_surroundings_of_implants_are_no_lesion(signals, brain):
    label = np.zeros(SHAPE, np.uint8)
    label[15:26, 15:26, 15:26] = 3
    label[18:23, 18:23, 18:23] = 1
    label[20, 20, 20] = 2
    assert seen_range([(signals, None, brain)], [(label, None)])["marked"] == [124 / brain.sum()]


def test_much_that_is_marked_is_told_whatever_was_lesion_in_training():
    # A brain of 1,100 mL in voxels of 0.1 mL.
    brain = np.ones((22, 25, 20), bool)
    image = np.random.default_rng(0).normal(100, 3, brain.shape).astype(np.float32)
    seen = {"marked": [0.02]}
    marked = np.zeros(brain.shape, np.uint8)
    marked.flat[:330] = 1  # 33 mL
    (note,) = unlike_notes(Case("p", image, brain=brain), seen, marked)
    assert "3 % of its brain are marked, above the 2.5 %" in note
    marked.flat[220:] = 0
    assert unlike_notes(Case("p", image, brain=brain), seen, marked) == []


def test_ranges_of_a_model_file_are_checked():
    good = {"marked": [0.01], "low": [1.0] * 4, "high": [2.0] * 4}
    assert checked_range(good) == good
    assert checked_range(None) is None
    for bad in ([], {"low": [1.0] * 4}, good | {"low": [1.0]}, good | {"high": ["x"] * 4}, good | {"more": [1.0]}):
        with pytest.raises(ValueError, match=r"\w"):
            checked_range(bad)


def test_voxels_of_another_size_than_in_training_are_refused(tmp_path):
    check_edges(tmp_path, (1.1, 1.1, 1.1), 1.0)
    check_edges(tmp_path, (5.0, 5.0, 5.0), None)
    with pytest.raises(ValueError, match=r"voxels of 0\.5 × 0\.5 × 3 mm.* --resample, or make it anew by .* --spacing 1\.5$"):
        check_edges(tmp_path, (0.5, 0.5, 3.0), 1.5)


def test_labels_outside_the_brain_are_counted_and_refused(signals, brain):
    label = np.zeros(SHAPE, np.uint8)
    label[20, 20, 20:39] = 1
    n_outside = int((label[~brain]).sum())
    assert 0 < n_outside < 9
    note = label_note(Case("p", signals, label=label, brain=brain))
    assert f"{n_outside} of 19 voxels of the label lie outside the brain, where nothing is ever marked" in note
    assert label_note(Case("p", signals, label=label)) == ""
    with pytest.raises(ValueError, match="check that label and brain are of the same scan"):
        label_note(Case("p", signals, label=~brain, brain=brain))


def test_models_that_ignore_priors_or_learned_from_synthetic_scans_say_so_of_real_ones():
    image = np.ones((3, 3, 3))
    real, synthetic = Case("a", image, prior=image), Case("b", image, synthetic=True)
    models = [SimpleNamespace(prior_=None), SimpleNamespace(prior_="path", segmenter_=SimpleNamespace(synthetic_=True))]
    unknown = "the models were trained on synthetic scans: accuracy in people is unknown"
    assert model_remarks(models, [real, synthetic]) == [unknown]
    assert model_remarks(models, [synthetic]) == []
    assert model_remarks(models[:1], [real]) == ["prior scans are ignored: the model was trained without prior scans"]
    weighted = [SimpleNamespace(prior_="path", loss="jvss", alpha=alpha) for alpha in (0.995, 0.5)]
    assert model_remarks(weighted, [real]) == []
    (remark,) = model_remarks(weighted[::-1], [real])
    assert "wrong order: the sensitive one (named first) has α = 0.5, the specific one α = 0.995; swap" in remark
    weighted[0].loss = "bce"
    assert model_remarks(weighted[::-1], [real]) == []
