"""The segmenter: what it learns, what priors do, its files, its operating point, and what it refuses."""

import copy

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from volume_contract import VolumeContract, bits

torch = pytest.importorskip("torch")
pytest.importorskip("skorch")

from dmrifit.model_files.model_file import load_model, save_model  # noqa: E402
from dmrifit.model_files.registry import register  # noqa: E402
from dmrifit.networks.training import Training, gather_training  # noqa: E402
from dmrifit.networks.volume_estimator import VolumeEstimator  # noqa: E402
from dmrifit.stats.lesion_matching import lesion_scores, lesion_table  # noqa: E402
from metastasis import DeepMedicSegmenter  # noqa: E402

pytestmark = pytest.mark.deep

SMALL = {
    "segment_size": 11,
    "low_resolution": (3,),
    "widths": (4, 6),
    "dense": (6,),
    "epochs": 2,
    "segments_per_epoch": 20,
    "device": "cpu",
}


def small(loss="bce", **more):
    return DeepMedicSegmenter(loss, **gather_training(SMALL | more))


def scans(n, seed=0):
    """Make synthetic scans with bright balls, their labels, and scans of before they were there."""
    rng = np.random.default_rng(seed)
    volumes, labels, priors = [], [], []
    for i in range(n):
        shape = (16 + i % 3, 15, 14 + i % 2)
        grid = np.stack(np.indices(shape), axis=-1)
        label = np.zeros(shape, dtype=bool)
        for _ in range(2):
            label |= np.linalg.norm(grid - rng.uniform(2, 12, 3), axis=-1) < rng.uniform(1.2, 2.5)
        before = rng.normal(100, 5, shape)
        volumes.append((before + 30 * label + rng.normal(0, 2, shape)).astype(np.float32))
        labels.append(label.astype(np.uint8))
        priors.append(before.astype(np.float32) if i % 2 else None)
    return volumes, labels, priors


@pytest.fixture(scope="module")
def cohort():
    return scans(6)


@pytest.fixture(scope="module")
def fitted(cohort):
    volumes, labels, priors = cohort
    return small(epochs=40, random_state=0, learning_rate=0.005).fit(volumes, labels, priors=priors)


class TestContract(VolumeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls):
        # Hardly trained, it marks something at a low threshold only.
        return lambda **more: small(**{"epochs": 1, "threshold": 0.05, **more})

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, cohort):
        return cohort[0], cohort[1], [f"patient {i // 2}" for i in range(6)]


def test_lesions_are_learned_from_segments(fitted):
    volumes, labels, priors = scans(4, seed=7)
    probabilities = fitted.predict_proba(volumes, priors=priors)
    assert [p.shape for p in probabilities] == [v.shape for v in volumes]
    assert {p.dtype for p in probabilities} == {np.dtype(np.float32)}
    found = fitted.predict(volumes, priors=priors)
    assert all(np.array_equal(f, p >= 0.5) and f.dtype == np.uint8 for f, p in zip(found, probabilities, strict=True))
    dice = [2 * np.sum(f * y) / (f.sum() + y.sum()) for f, y in zip(found, labels, strict=True)]
    assert np.mean(dice) > 0.6
    assert fitted.score(volumes, labels, priors=priors) > 0.4


@pytest.mark.parametrize(
    "more",
    [
        {"loss": "jvss", "alpha": 0.9},
        {"loss": "vss", "optimizer": "adamw", "sampling": "voxel"},
        {"loss": "sse", "alpha": 0.5, "reduction": "code", "normalization": None},
        {"prior": "channel", "missing_prior": "zeros", "low_resolution_input": "stride"},
        {"prior": "path", "missing_prior": "zeros", "residual": True, "widths": (3,) * 4},
        {"prior": "shared"},
        {"prior": "channel", "flips": True, "dropout": 0.3},
        {"prior": None, "low_resolution": ()},
        {"network": "unet", "prior": "channel", "widths": (4, 8)},
        {"network": "unet", "prior": None, "widths": (4, 8), "flips": True},
        {"network": "small_unet", "prior": "channel", "widths": (2, 4), "scaling": "local"},
    ],
    ids=str,
)
def test_every_choice_trains_predicts_and_comes_back_from_a_file(cohort, tmp_path, more):
    volumes, labels, priors = cohort
    model = small(**more, random_state=0).fit(volumes, labels, priors=priors)
    assert np.isfinite([row["train_loss"] for row in model.history_]).all()
    assert model.prior_ == more.get("prior", "path")
    found = model.predict_proba(volumes[:2], priors=priors[:2])
    assert all(0 <= p.min() <= p.max() <= 1 for p in found)
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    assert bits(again.predict_proba(volumes[:2], priors=priors[:2])) == bits(found)
    assert again.get_params() == model.get_params()


def test_what_is_learned_from_does_not_depend_on_the_loss(cohort):
    seen = {}

    class Watched(DeepMedicSegmenter):
        def _stream(self, inputs, targets, rng, epoch):
            for sample, label in super()._stream(inputs, targets, rng, epoch):
                seen.setdefault((self.loss, self.prior_), []).append((sample["image"].tobytes(), label.tobytes()))
                yield sample, label

    volumes, labels, priors = cohort
    for loss, given in (("bce", priors), ("jvss", priors), ("sse", None)):
        Watched(loss, **gather_training(SMALL), random_state=3).fit(volumes, labels, priors=given)
    streams = list(seen.values())
    assert len(streams) == 3
    assert streams[0] == streams[1] == streams[2]
    assert len(set(streams[0])) == len(streams[0]) == 40


def test_training_begins_with_the_weights_of_a_model(cohort, fitted, tmp_path):
    volumes, labels, priors = cohort
    path = tmp_path / "start.dmrifit"
    save_model(fitted, path)
    same = small("jvss", warm_start_from=str(path), learning_rate=1e-30, epochs=1, random_state=1, normalization="batch")
    same.fit(volumes, labels, priors=priors)
    ours, theirs = (one.net_.module_.state_dict() for one in (same, fitted))
    kernels = [key for key in theirs if "running" not in key and "tracked" not in key]
    assert all(torch.equal(ours[key], theirs[key]) for key in kernels)
    # The file is of one machine, the model is not.
    save_model(same, tmp_path / "next.dmrifit")
    path.unlink()
    again = load_model(tmp_path / "next.dmrifit")
    assert again.warm_start_from is None
    assert bits(again.predict(volumes, priors=priors)) == bits(same.predict(volumes, priors=priors))
    with pytest.raises(FileNotFoundError, match="no such model file"):
        same.fit(volumes, labels, priors=priors)


def test_another_start_is_another_training_in_the_folder_of_checkpoints(cohort, fitted, tmp_path):
    volumes, labels, priors = cohort
    start, folder = tmp_path / "start.dmrifit", tmp_path / "states"
    save_model(fitted, start)
    found = []
    for _ in range(2):
        model = small(epochs=1, random_state=1, warm_start_from=start, checkpoint=folder)
        found.append(bits(model.fit(volumes, labels, priors=priors).predict_proba(volumes)))
        save_model(model, start)  # other weights under the same name
    assert found[0] != found[1]
    assert len(list(folder.iterdir())) == 2


def test_training_cannot_begin_with_another_network_or_class(cohort, fitted, tmp_path):
    volumes, labels, priors = cohort
    save_model(fitted, tmp_path / "start.dmrifit")
    for change, words in (
        ({"widths": (4, 8)}, r"has the widths \(4, 6\), and this one \(4, 8\); give the same widths \(--widths 4,6\)$"),
        ({"low_resolution": (2,)}, r"has the low_resolution \(3,\), .* \(2,\); give .* low_resolution \(in Python\)$"),
        ({"dense": (9,)}, r"cannot begin with .*start.dmrifit: .* differ; give the parameters"),
    ):
        with pytest.raises(ValueError, match=words):
            small(warm_start_from=tmp_path / "start.dmrifit", **change).fit(volumes, labels, priors=priors)

    @register
    class SomethingElse(VolumeEstimator):
        def _module(self):
            return torch.nn.Conv3d(1, 1, 1)

        def _criterion(self):
            return torch.nn.MSELoss()

        def _target(self, target, inputs):
            return super()._target(target, inputs)[None]

        def _case_score(self, prediction, target):
            return 0.0

    save_model(SomethingElse(training=Training(epochs=1), device="cpu").fit(volumes[:1], labels[:1]), tmp_path / "else.dmrifit")
    with pytest.raises(ValueError, match="holds a SomethingElse; training begins with the weights of a DeepMedicSeg"):
        small(warm_start_from=tmp_path / "else.dmrifit").fit(volumes, labels)


def test_cores_and_swelling_of_held_out_labels_are_no_lesions():
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:6, 2:6, 2:6], label[3:5, 3:5, 3:5], label[8:11, 8:11, 8:11] = 1, 2, 3
    marked = (label == 1).astype(np.float32)
    model = small(loss="lesion")
    assert model._case_score(marked, (label, np.ones(label.shape))) == 1
    assert model._case_score((label > 0).astype(np.float32), (label, np.ones(label.shape))) < 1


def test_the_published_sizes():
    model = DeepMedicSegmenter.published(prior=None, training=Training(batch_size=4))
    assert (model.widths, model.dense) == ((30, 40, 50, 60, 70, 80, 90, 100, 110), (300, 300))
    assert model.training == Training(epochs=60, batch_size=4)
    model._check()
    model.n_channels_, model.prior_ = 1, None
    # Scales and offsets of normalizations stand for the offsets of 3 693 421 weights.
    assert sum(w.numel() for w in model._module().parameters()) == 3_693_421 + 3 * 630 + 600


def test_a_prior_of_zeros_is_a_missing_one_and_priors_are_left_out_where_the_network_can_know_of_it(fitted, cohort):
    volumes = cohort[0][:2]
    zeros = [np.zeros(volume.shape) for volume in volumes]
    assert bits(fitted.predict_proba(volumes, priors=zeros)) == bits(fitted.predict_proba(volumes))
    other = fitted.predict_proba(volumes, priors=[volume + 1 for volume in volumes])
    assert bits(other) != bits(fitted.predict_proba(volumes))
    volumes, labels, _ = cohort
    with_priors = (volumes, labels, [volume + 1 for volume in volumes])
    knows = segments_of(small(missing_prior="validity", prior_dropout=1.0), with_priors)
    assert not any(sample["prior"].any() or sample["valid"] for sample in knows)
    does_not = segments_of(small(missing_prior="zeros", prior_dropout=1.0), with_priors)
    assert all(sample["prior"].any() and "valid" not in sample for sample in does_not)


def test_without_priors_in_training_there_is_no_path_for_them(cohort):
    volumes, labels, priors = cohort
    model = small(epochs=1, random_state=0).fit(volumes, labels, priors=[None] * len(volumes))
    assert model.prior_ is None
    assert not model.net_.module_.prior_path
    with pytest.raises(ValueError, match="case 1: a prior scan for a network that was trained without any"):
        model.predict(volumes, priors=priors)
    # Who has said that priors are not looked at need not take them away.
    without = small(prior=None, epochs=1, random_state=0).fit(volumes, labels, priors=priors)
    assert bits(without.predict_proba(volumes, priors=priors)) == bits(model.predict_proba(volumes))


def segments_of(model, cohort, n_cases=2):
    """Give the inputs of the segments of an epoch, as the network of a model takes them."""
    volumes, labels, priors = (values[:n_cases] for values in cohort)
    model.n_channels_, model.prior_ = 1, model.prior
    cases = list(zip(volumes, priors, [None] * n_cases, strict=True))
    model.edge_ = None
    inputs = [model._inputs(case) for case in cases]
    targets = [model._target(pair, None) for pair in zip(labels, volumes, strict=True)]
    return [sample for sample, _ in model._stream(inputs, targets, np.random.default_rng(0), 0)]


def test_a_channel_says_whether_there_is_a_prior(cohort):
    # The first case has none, the second has one.
    samples = segments_of(small(prior="channel", missing_prior="validity", prior_dropout=0.0), cohort)
    flags = set()
    for sample in samples:
        image, prior, valid = sample["image"]
        assert set(sample) == {"image", "low_3"}
        assert bool(prior.any()) == bool(valid.all())
        assert image.any()
        flags.add((valid.min(), valid.max()))
    assert flags == {(0, 0), (1, 1)}
    plain = segments_of(small(prior="channel", missing_prior="zeros"), cohort)
    assert {len(sample["image"]) for sample in plain} == {2}


def test_segments_of_the_u_net_are_rounded_up_to_what_its_levels_halve(cohort):
    # Three levels halve twice: 11 voxels become 12, and 12 stay.
    for size in (11, 12):
        samples = segments_of(small(network="unet", prior=None, widths=(2, 4, 4), segment_size=size), cohort)
        assert {sample["image"].shape for sample in samples} == {(1, 12, 12, 12)}


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("adamw", {"weight_decay": 0.25}), ("rmsprop", {"l1": 0.125, "l2": 0.25})],
)
def test_penalties_of_weights_go_to_the_optimizer_by_their_names(optimizer, expected):
    _, options = small(optimizer=optimizer, l1=0.125, l2=0.25)._optimizer()
    assert options == expected


def test_a_mask_says_where_the_brain_is(fitted, cohort):
    volume = cohort[0][1].copy()
    volume[:3] = 0
    mask = volume != 0
    by_zeros, by_mask = fitted.predict_proba([volume, volume], masks=[None, mask])
    assert np.array_equal(by_zeros, by_mask)
    # Nothing is found in air.
    assert by_mask[mask].all()
    assert not by_mask[~mask].any()
    with pytest.raises(ValueError, match=r"case 0: a mask of shape \(2, 2, 2\) with 8 voxels"):
        fitted.predict_proba([volume], masks=[np.ones((2, 2, 2))])


def test_channels_are_scaled_each_by_itself(cohort):
    volumes = [np.stack([volume, 7 * volume[::-1]], axis=-1) for volume in cohort[0]]
    model = small(epochs=1, random_state=0).fit(volumes, cohort[1])
    assert model.n_channels_ == 2
    assert model.predict(volumes[:1])[0].shape == volumes[0].shape[:3]
    with pytest.raises(ValueError, match="case 0: 1 channel where the first case in training has 2"):
        model.predict(cohort[0])


def test_images_of_another_spacing_are_resampled_and_back(cohort):
    volumes, labels, priors = cohort
    model = small(epochs=12, learning_rate=0.005, spacing=2.0, random_state=0)
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (5, -7, 3)
    wide = [np.repeat(np.repeat(part, 2, axis=0), 2, axis=1) for part in (volumes[1], labels[1], priors[1])]
    image, label, prior = (nib.Nifti1Image(part, affine) for part in wide)
    others = [nib.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])) for volume in volumes]
    model.fit([*others, image], [*labels, label], priors=[*priors, prior])
    found = model.predict_proba([image, others[1]], priors=[prior, priors[1]])
    assert [p.shape for p in found] == [image.shape, others[1].shape]
    # The same scan with its first axis mirrored and voxels halved: found in the same places.
    assert np.corrcoef(found[0][::2, ::2].ravel(), found[1].ravel())[0, 1] > 0.7
    inside, outside = found[0][wide[1] > 0], found[0][wide[1] == 0]
    assert np.median(inside) > 3 * np.median(outside)
    plain = model.predict_proba([np.asarray(others[1].dataobj)], priors=[priors[1]])[0]
    np.testing.assert_allclose(plain, found[1], atol=1e-3)
    half = np.zeros(image.shape)
    half[::2] = 1
    (within,) = model.predict_proba([image], priors=[prior], masks=[nib.Nifti1Image(half, affine)])
    assert np.array_equal(within > 0, half > 0)


def test_a_wrong_last_scan_is_refused_before_the_first_is_segmented(fitted, cohort, monkeypatch):
    monkeypatch.setattr(DeepMedicSegmenter, "_answer", no_training)
    volumes, labels, _ = cohort
    colored, moved = np.stack([volumes[1]] * 2, axis=-1), [None, volumes[1][1:]]
    for ask in (fitted.predict, fitted.predict_proba):
        with pytest.raises(ValueError, match="case 1: 2 channels where the first case in training has 1"):
            ask([volumes[0], colored])
        with pytest.raises(ValueError, match="case 1: a prior of shape"):
            ask(volumes[:2], priors=moved)
    with pytest.raises(ValueError, match="case 1: a prior of shape"):
        fitted.set_operating_point(volumes[:2], labels[:2], priors=moved)


def test_images_with_other_voxels_than_those_learned_from_are_refused(cohort, tmp_path):
    volumes, labels, priors = cohort
    images = [nib.Nifti1Image(volume, np.diag([1.5, -1.5, 1.5, 1.0])) for volume in volumes]
    model = small(epochs=1, random_state=0).fit(images, labels, priors=priors)
    assert model.edge_ == pytest.approx(1.5)
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    other = nib.Nifti1Image(volumes[0], np.diag([0.9, 0.9, 0.9, 1.0]))
    near = nib.Nifti1Image(volumes[0], np.diag([1.3, 1.5, 1.6, 1.0]))
    with pytest.raises(ValueError, match=r"case 1: scan voxels: 0\.9 mm, network voxels: 1\.5 mm"):
        again.predict([images[0], other])
    assert len(again.predict([near, volumes[1]])) == 2  # an array has no spacing
    assert small(epochs=1).fit(volumes, labels).edge_ is None
    with pytest.raises(ValueError, match=r"case 0: scan voxels: 0\.9 mm"):
        small(epochs=1).fit([other, *images[1:]], labels)


def test_findings_of_few_voxels_are_not_marked_and_probabilities_that_reach_the_threshold_are(fitted, cohort):
    volumes, labels, priors = cohort
    model = copy.copy(fitted).set_params(min_voxels=12)
    every, kept = (one.predict(volumes, priors=priors) for one in (fitted, model))
    sizes = [np.bincount(ndimage.label(one, np.ones((3, 3, 3)))[0].ravel())[1:] for one in every]
    assert any((one < 12).any() for one in sizes)
    assert any((one >= 12).any() for one in sizes)
    for before, after, size in zip(every, kept, sizes, strict=True):
        assert after.sum() == size[size >= 12].sum()
        assert not (after & ~before).any()
    tables = [lesion_table(y, f) for y, f in zip(labels, kept, strict=True)]
    assert model.score(volumes, labels, priors=priors) == pytest.approx(lesion_scores(tables)["lesion_dice"])
    volumes, _, priors = cohort
    (probability,) = fitted.predict_proba(volumes[:1], priors=priors[:1])
    model = copy.deepcopy(fitted)
    model.threshold_ = float(probability.max())
    (label,) = model.predict(volumes[:1], priors=priors[:1])
    np.testing.assert_array_equal(label > 0, probability == probability.max())
    assert label.any()


def test_an_operating_point_keeps_its_number_of_false_positives(cohort, tmp_path):
    volumes, labels, priors = cohort
    # Hardly trained, so that there are false positives to choose from.
    model = small("jvss", alpha=0.99, epochs=2, learning_rate=0.005, random_state=0)
    model.fit(volumes, labels, priors=priors)
    assert (model.threshold_, model.false_positives_) == (0.5, None)
    kept = {}
    for wanted in (0.0, 1.0, 3.0):
        assert model.set_operating_point(volumes, labels, priors=priors, false_positives=wanted) is model
        kept[wanted] = model.threshold_
        found = model.predict(volumes, priors=priors)
        scores = lesion_scores([lesion_table(y, f) for f, y in zip(found, labels, strict=True)])
        assert scores["false_positives_per_scan"] <= wanted
        assert model.false_positives_ == wanted
    assert kept[0.0] >= kept[1.0] >= kept[3.0]
    # The score is that of what is marked now.
    assert model.score(volumes, labels, priors=priors) == pytest.approx(scores["lesion_dice"])
    save_model(model, tmp_path / "model.dmrifit")
    again = load_model(tmp_path / "model.dmrifit")
    assert (again.threshold_, again.false_positives_) == (kept[3.0], 3.0)
    assert bits(again.predict(volumes, priors=priors)) == bits(found)
    with pytest.raises(ValueError, match="false_positives must be a number of at least 0"):
        model.set_operating_point(volumes, labels, false_positives=-1)


def no_training(*args, **kwargs):
    pytest.fail("training began")


def test_model_files_with_another_threshold_than_a_probability_are_refused(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(fitted, "threshold_", 1.5)
    save_model(fitted, tmp_path / "model.dmrifit")
    with pytest.raises(ValueError, match=r"refused as a model file: threshold_ must be a number .* not 1\.5"):
        load_model(tmp_path / "model.dmrifit")


def test_labels_of_implants_train_a_network_by_lesions(cohort):
    volumes, labels, _ = cohort
    marked = [label * np.uint8(1) for label in labels]
    for label in marked:
        label[:2, :2, :2], label[4:6, :2, :2] = 2, 3
    options = {"network": "small_unet", "widths": (2, 4), "prior": None, "segment_size": 8}
    model = small("lesion", **options, random_state=0).fit(volumes, marked)
    (probability,) = model.predict_proba(volumes[:1])
    assert probability.shape == volumes[0].shape
    assert 0 < probability.max() < 1
    with pytest.raises(ValueError, match="a label must be 0 and 1"):
        small("bce", **options, random_state=0).fit(volumes, marked)
