"""What both models see is told apart, nothing that one sees is lost."""

import nibabel as nib
import numpy as np
import pytest
from sklearn.base import BaseEstimator

from dmrifit.io.components import label_components
from dmrifit.networks.training import Training
from dmrifit.stats.lesion_matching import lesion_scores, lesion_table
from metastasis.segmentation.ensemble import (
    SensitivitySpecificityEnsemble,
    merge_segmentations,
    segment_by,
    segment_image,
)
from metastasis.segmentation.segmenter import DeepMedicSegmenter
from metastasis.simulate.patients import simulate_metastases
from metastasis.study.followup import CHANGES, follow_up


class Stub(BaseEstimator):
    """Take the scan itself, times a factor, for its probability, and note what else is given."""

    def __init__(self, factor=1.0):
        self.factor = factor
        self.seen = []

    def predict_proba(self, volumes, *, priors=None):
        self.seen.append(priors)
        return [np.asarray(volume, np.float32) * self.factor for volume in volumes]


class Plain:
    """Know nothing of priors."""

    threshold_ = 0.9

    def predict_proba(self, volumes):
        return [np.asarray(volume, np.float32) for volume in volumes]


@pytest.fixture
def volume():
    image = np.zeros((12, 12, 12), np.float32)
    image[1:3, 1:3, 1:3] = 0.6  # seen by the sensitive model only
    image[6:9, 6:9, 6:9] = 0.6
    image[7, 7, 7] = 0.95  # the other one, too
    image[11, 11, 11] = 0.3
    return image


def test_a_lesion_is_marked_by_both_as_a_whole_when_the_specific_model_sees_a_voxel_or_sees_it_alone(volume):
    ensemble = SensitivitySpecificityEnsemble(Stub(), Stub(0.6))
    (labels,) = ensemble.predict([volume])
    assert labels.dtype == np.uint8
    assert (labels[1:3, 1:3, 1:3] == 1).all()
    assert (labels[6:9, 6:9, 6:9] == 2).all()
    assert np.count_nonzero(labels) == 8 + 27
    (probability,) = ensemble.predict_proba([volume])
    np.testing.assert_allclose(probability, volume)
    sensitive, specific = np.zeros((2, 5, 5, 5), bool)
    specific[2, 2, 2] = True
    assert merge_segmentations(sensitive, specific)[2, 2, 2] == 2
    sensitive[2, 2, 3] = sensitive[0, 0, 0] = True
    labels = merge_segmentations(sensitive, specific)
    assert (labels[2, 2, 3], labels[0, 0, 0], labels.sum()) == (2, 1, 5)
    specific[3, 3, 4] = True
    assert merge_segmentations(sensitive, specific)[2, 2, 3] == 2
    assert not merge_segmentations(np.zeros((3, 3, 3)), np.zeros((3, 3, 3))).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_union_finds_all_that_either_finds_and_false_alarms_of_the_specific_model_do_not_multiply(seed):
    rng = np.random.default_rng(seed)
    truth, sensitive, specific = (rng.random((16, 16, 16)) > level for level in (0.99, 0.97, 0.995))
    labels = merge_segmentations(sensitive, specific)
    np.testing.assert_array_equal(labels > 0, sensitive | specific)
    union, sure = (lesion_table(truth, labels > 0), lesion_table(truth, labels == 2))
    for mask in (sensitive, specific):
        alone = lesion_table(truth, mask)["found"][: len(label_components(truth)[truth])]
        assert lesion_scores(union)["n_found"] >= alone.sum()
    assert lesion_scores(sure)["n_false_positives"] <= lesion_scores(lesion_table(truth, specific))["n_false_positives"]
    assert lesion_scores(sure)["n_found"] >= lesion_scores(lesion_table(truth, specific))["n_found"]


def test_thresholds_are_the_models_own_unless_given(volume):
    own = SensitivitySpecificityEnsemble(Stub(), Plain())
    assert (own.predict([volume])[0] == 2).sum() == 27
    low = SensitivitySpecificityEnsemble(Stub(), Plain(), thresholds=(0.25, 0.5))
    labels = low.predict([volume])[0]
    assert (labels == 2).sum() == 27 + 8
    assert labels[11, 11, 11] == 1
    exact = SensitivitySpecificityEnsemble(Stub(), Plain(), thresholds=(1.0, float(volume[7, 7, 7])))
    assert exact.predict([volume])[0].sum() == 2  # a probability that reaches the threshold counts


def test_priors_go_case_by_case_to_models_that_take_them(volume):
    first, prior = Stub(), np.ones_like(volume)
    SensitivitySpecificityEnsemble(first, Plain()).predict([volume, volume], priors=[prior, None])
    assert first.seen[0][0] is prior
    assert first.seen[1] is None
    trained_without = Stub()
    trained_without.prior_ = None
    SensitivitySpecificityEnsemble(trained_without, Plain()).predict([volume], priors=[prior])
    assert trained_without.seen == [None]


def test_the_smallest_finding_and_the_threshold_of_a_single_model_are_kept_to(volume):
    model = Plain()
    ((labels, _),) = segment_by(model, [volume])
    assert labels.sum() == 1
    model.min_voxels = 2
    ((labels, _),) = segment_by(model, [volume])
    assert not labels.any()
    labels = SensitivitySpecificityEnsemble(Plain(), model).predict([volume])[0]
    assert (labels == 1).sum() == 1
    assert not (labels == 2).any()
    model = Plain()
    model.threshold_ = float(volume[7, 7, 7])
    ((labels, _),) = segment_by(model, [volume])
    assert labels[7, 7, 7] == labels.sum() == 1


@pytest.mark.deep
def test_what_a_sensitive_network_marks_is_never_lost():
    cases = simulate_metastases(2, prior=1.0, shape=(30, 30, 30), spacing=3.0, random_state=3)
    sizes = {"widths": (2,) * 9, "low_resolution": (), "segment_size": 25, "dense": (4,)}
    volumes, priors = [case.image for case in cases], [case.prior for case in cases]
    labels, brains = [case.label for case in cases], [case.brain for case in cases]
    models = [
        DeepMedicSegmenter(
            **sizes, alpha=alpha, segments_per_epoch=8, training=Training(epochs=1, batch_size=4), random_state=0
        ).fit(volumes, labels, priors=priors, masks=brains)
        for alpha in (0.995, 0.5)
    ]
    seen = {"volumes": volumes[:1], "priors": priors[:1], "masks": brains[:1]}
    marked = []
    for model, share in zip(models, (0.99, 0.998), strict=True):
        (found,) = model.predict_proba(**seen)
        model.threshold_ = float(np.quantile(found, share))
        marked.append(found >= model.threshold_)
    (label,) = SensitivitySpecificityEnsemble(*models).predict(**seen)
    np.testing.assert_array_equal(label > 0, marked[0] | marked[1])
    assert (label[marked[1]] == 2).all()
    assert (label == 1).any()
    table = follow_up(SensitivitySpecificityEnsemble(*models), cases[:1])
    assert set(table["finding"]) >= {"marked by both", "candidate"}
    assert set(table["change"]) <= set(CHANGES)


def test_what_cannot_be_joined_is_refused(volume):
    with pytest.raises(ValueError, match="2 priors for 1 case;"):
        SensitivitySpecificityEnsemble(Stub(), Stub()).predict([volume], priors=[None, None])
    with pytest.raises(ValueError, match="thresholds"):
        SensitivitySpecificityEnsemble(Stub(), Stub(), thresholds=(0.5, 0)).predict([volume])
    with pytest.raises(ValueError, match="case 0"):
        SensitivitySpecificityEnsemble(Stub(), Stub()).predict([volume[0]])


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


def test_answers_lie_on_the_grid_of_the_scan_and_a_fourth_axis_of_length_one_is_no_axis(scan):
    found = segment_image(Bright(), scan)
    assert list(found) == ["probability", "label"]
    values = scan.get_fdata(dtype=np.float32)
    assert np.array_equal(found["probability"].get_fdata(dtype=np.float32), values)
    assert np.array_equal(found["label"].dataobj, (values >= np.float32(0.7)).astype(np.uint8))
    for image in found.values():
        np.testing.assert_allclose(image.affine, scan.affine)
    assert [image.get_data_dtype() for image in found.values()] == [np.float32, np.uint8]
    values = np.asarray(scan.dataobj)[..., None]
    found = segment_image(Bright(), scan, prior=nib.Nifti1Image(values, scan.affine))
    assert found["label"].shape == scan.shape


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


def test_a_prior_that_nobody_looks_at_is_refused(scan):
    blind = Bright()
    blind.prior_ = None
    for segmenter in (blind, SensitivitySpecificityEnsemble(blind, blind)):
        assert segment_image(segmenter, scan)["label"].shape == scan.shape
        with pytest.raises(ValueError, match="the prior scan would be ignored"):
            segment_image(segmenter, scan, prior=scan)
    mixed = SensitivitySpecificityEnsemble(Bright(), blind)
    assert segment_image(mixed, scan, prior=scan)["label"].shape == scan.shape
