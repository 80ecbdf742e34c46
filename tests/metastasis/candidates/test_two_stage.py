"""Second stage: balls are kept and sheets rejected, with any segmenter, and in one file."""

import copy
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.base import BaseEstimator

from dmrifit import load_model, save_model
from dmrifit.networks.training import Training
from dmrifit.stats.lesion_matching import lesion_scores, lesion_table
from metastasis import DeepMedicSegmenter, TwoStageSegmenter
from metastasis.candidates.features import PRIOR_FEATURES
from metastasis.candidates.two_stage import PATH, _mark_mistakes_of, small_model_threshold
from metastasis.segmentation.sampling import MISTAKEN
from metastasis.study.findings import model_figures

SHAPE = (40, 40, 40)
GRID = np.stack(np.indices(SHAPE), axis=-1).astype(float)
BRAIN = np.linalg.norm(GRID - 20, axis=-1) < 19


class Brightness(BaseEstimator):
    """Takes everything that is bright for a metastasis, as networks do."""

    def fit(self, volumes, labels, *, masks=None):
        self.n_seen_ = len(volumes)
        return self

    def predict_proba(self, volumes, *, masks=None):
        return [np.clip((np.asarray(getattr(v, "dataobj", v)) - 130) / 40, 0, 1).astype(np.float32) for v in volumes]


def balls_and_sheets(n, seed):
    rng = np.random.default_rng(seed)
    volumes, labels, priors = [], [], []
    for _ in range(n):
        volume = rng.normal(100, 2, SHAPE) * BRAIN
        label = np.zeros(SHAPE, np.uint8)
        for center in ((12, 14, 20), (27, 14, 20), (20, 28, 20)):
            ball = np.linalg.norm(GRID - center - rng.uniform(-1, 1, 3), axis=-1) < rng.uniform(2, 3.5)
            volume[ball] += 90
            label[ball] = 1
        before = volume.copy()
        before[label > 0] -= 90
        for z in (9, 31):
            sheet = (np.abs(GRID[..., 2] - z - rng.uniform(-1, 1)) < 1) & (
                np.linalg.norm(GRID - (20, 20, z), axis=-1) < rng.uniform(5, 9)
            )
            volume[sheet], before[sheet] = 190, 190
        volumes.append(volume.astype(np.float32))
        labels.append(label)
        priors.append(before.astype(np.float32))
    return volumes, labels, priors


def small(**options):
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees = HistGradientBoostingRegressor(max_iter=30, min_samples_leaf=3, random_state=0)
    return TwoStageSegmenter(Brightness(), trees, levels=(0.2, 0.6), random_state=0, **options)


def tiny_network(seed=0, **training):
    pytest.importorskip("skorch")
    return DeepMedicSegmenter(
        "lesion", prior=None, network="small_unet", widths=(2, 4), segment_size=12, segments_per_epoch=2,
        training=Training(epochs=1, batch_size=2, **training), device="cpu", random_state=seed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cohort():
    return balls_and_sheets(8, 0)


@pytest.fixture(scope="module")
def fitted(cohort):
    volumes, labels, _ = cohort
    return small().fit(volumes, labels, masks=[BRAIN] * 8)


def test_balls_are_kept_and_sheets_rejected(fitted):
    (volume,), (label,), _ = balls_and_sheets(1, 99)
    (alone,) = Brightness().predict_proba([volume])
    (marked,) = fitted.predict([volume], masks=[BRAIN])
    assert ((alone > 0.5) & (label == 0)).sum() > 100
    assert (marked > 0)[label > 0].mean() > 0.9
    assert not (marked > 0)[label == 0].any()
    tables = [lesion_table(label, marked), lesion_table(label, 0 * label)]
    expected = np.mean([lesion_scores(table)["lesion_dice"] for table in tables])
    assert fitted.score([volume, 100 * BRAIN], [label] * 2, masks=[BRAIN] * 2) == pytest.approx(expected)
    assert fitted.n_candidates_["metastases"] >= 24
    assert fitted.segmenter_.n_seen_ == 8


def test_mistakes_of_an_earlier_network_are_judged_as_what_they_are(fitted, cohort):
    volumes, labels, _ = cohort
    told = [
        np.where((volume > 150) & (label == 0), MISTAKEN, label)
        for volume, label in zip(volumes, labels, strict=True)
    ]
    again = small().fit(volumes, told, masks=[BRAIN] * 8)
    assert again.n_candidates_ == fitted.n_candidates_


def test_features_are_listed_by_weight(fitted):
    table = fitted.feature_table()
    assert table["weight"].is_monotonic_decreasing
    assert table["weight"].iloc[0] > 0
    # No scan had a prior, so that those features tell nothing.
    assert (table.loc[table["feature"].isin(PRIOR_FEATURES), "weight"] == 0).all()
    assert fitted.prior_ is None


def test_priors_are_used_where_they_tell(cohort):
    volumes, labels, priors = cohort
    # One ball of each scan was there before and is no metastasis; only the prior tells which.
    rng = np.random.default_rng(0)
    olds, news = [], []
    for volume, label, prior in zip(volumes, labels, priors, strict=True):
        numbers, _ = ndimage.label(label)
        is_old = numbers == rng.integers(1, 4)
        olds.append(np.where(is_old, volume, prior))
        news.append(np.where(is_old, 0, label).astype(np.uint8))
    model = small().fit(volumes, news, priors=olds, masks=[BRAIN] * 8)
    weights = model.feature_weights_
    assert max(weights[name] for name in PRIOR_FEATURES) > 0
    assert model.prior_ == "features"
    (marked,) = model.predict(volumes[:1], priors=olds[:1], masks=[BRAIN])
    assert (marked > 0)[news[0] > 0].mean() > 0.9
    # A scan without a prior is judged as if none had been learned from.
    never = small().fit(volumes, news, masks=[BRAIN] * 8)
    (scores,) = model.predict_proba(volumes[:1], masks=[BRAIN])
    (expected,) = never.predict_proba(volumes[:1], masks=[BRAIN])
    np.testing.assert_array_equal(scores, expected)


def test_a_prior_is_aligned_only_where_one_was_learned_from(fitted, cohort, monkeypatch):
    volumes, labels, priors = (part[:2] for part in cohort)
    aligned = []

    def recorded(image, prior, brain, steps):
        aligned.append(prior)
        return prior

    monkeypatch.setattr("metastasis.candidates.case_candidates.aligned_prior", recorded)
    with_priors, alone = (fitted.predict_proba(volumes, priors=before, masks=[BRAIN] * 2) for before in (priors, None))
    assert not aligned
    assert all((a == b).all() for a, b in zip(with_priors, alone, strict=True))
    # One that is fitted once more learns from priors that it did not have before.
    model = copy.copy(fitted).fit(volumes, labels, priors=priors, masks=[BRAIN] * 2)
    assert len(aligned) == 2
    assert model.uses_priors_
    model.predict(volumes[:1], priors=priors[:1], masks=[BRAIN])
    assert len(aligned) == 3


def test_images_and_operating_point(fitted, cohort):
    volumes, labels, _ = cohort
    image = nib.Nifti1Image(volumes[0], np.diag([2.0, 2, 2, 1]))
    (scores,) = fitted.predict_proba([image], masks=[nib.Nifti1Image(BRAIN.astype("u1"), image.affine)])
    assert scores.shape == SHAPE
    fitted.set_operating_point(volumes, labels, masks=[BRAIN] * 8, false_positives=0)
    assert 0 < fitted.threshold_ <= 1


def test_an_operating_point_is_refused_before_a_scan_is_segmented(fitted, monkeypatch):
    volumes, labels, _ = balls_and_sheets(2, 5)
    model = copy.copy(fitted)
    monkeypatch.setattr(model, "predict_proba", lambda *_, **__: pytest.fail("a scan was segmented"))
    with pytest.raises(ValueError, match="false_positives"):
        model.set_operating_point(volumes, labels, false_positives=-1)
    with pytest.raises(ValueError, match=r"a label of shape .* for a volume of shape"):
        model.set_operating_point(volumes, [labels[0], labels[1][:-1]])
    with pytest.raises(ValueError, match=r"2 .* 1|1 .* 2"):
        model.set_operating_point(volumes, labels[:1])
    for values in ([255], ["1"]):
        with pytest.raises(ValueError, match=r"case 1: a label must be 0 and 1 in each voxel, not"):
            model.score(volumes, [labels[0], np.resize(values, labels[1].shape)])


class Resampled(Brightness):
    """Has the spacing of a network; what it gets lies on that grid."""

    spacing = 1.0

    def predict_proba(self, volumes, *, masks=None):
        assert all(np.allclose(nib.affines.voxel_sizes(volume.affine), 1) for volume in volumes)
        return super().predict_proba(volumes)


@pytest.mark.parametrize(("factor", "smallest"), [(2, 4), (1, 4), (0.5, 1)])
def test_candidates_are_judged_on_the_grid_of_the_network(fitted, factor, smallest):
    (volume,), (label,), _ = balls_and_sheets(1, 99)
    affine = np.diag([1 / factor] * 3 + [1])
    affine[:3, 3] = (1 / factor - 1) / 2
    if factor == 2:
        values, truth = (np.kron(array, np.ones((2, 2, 2), array.dtype)) for array in (volume, label))
    elif factor == 1:
        values, truth = volume, label
    else:
        values = volume.reshape(20, 2, 20, 2, 20, 2).mean(axis=(1, 3, 5))
        truth = label.reshape(20, 2, 20, 2, 20, 2).min(axis=(1, 3, 5))
    model = copy.copy(fitted)
    model.segmenter_ = Resampled()
    (marked,) = model.predict([nib.Nifti1Image(values, affine)])
    assert marked.shape == values.shape
    assert (marked > 0)[truth > 0].mean() > 0.8
    # Edges of oblique grids are rounded.
    for scale in (1, 1.0000000067):
        assert model.min_voxels_on(nib.Nifti1Image(values, scale * affine)) == smallest
    if factor == 2:
        # What is marked on smaller voxels is what is marked on those of the network.
        (expected,) = model.predict([nib.Nifti1Image(volume, np.eye(4))])
        dice = 2 * np.sum(marked[::2, ::2, ::2] & expected) / (marked[::2, ::2, ::2].sum() + expected.sum())
        assert dice > 0.9
        assert not (marked > 0)[ndimage.binary_dilation(truth, iterations=3) == 0].any()


def test_a_cohort_on_smaller_voxels_is_learned_on_those_of_the_network(cohort):
    volumes, labels, _ = ([np.kron(array, np.ones((2, 2, 2), array.dtype)) for array in arrays[:3]] for arrays in cohort)
    affine = np.diag([0.5, 0.5, 0.5, 1])
    images = [nib.Nifti1Image(volume, affine) for volume in volumes]
    model = TwoStageSegmenter(Resampled(), "linear", levels=(0.2, 0.6), random_state=0)
    model.fit(images, [nib.Nifti1Image(label, affine) for label in labels])
    assert model.n_candidates_["metastases"] >= 9


def test_the_segmenter_learns_which_scans_are_of_one_patient(cohort):
    volumes, labels, _ = cohort
    fits = []

    class Grouped(Brightness):
        def fit(self, volumes, labels, *, masks=None, groups=None):
            fits.append(groups)
            return super().fit(volumes, labels)

    model = small().set_params(segmenter=Grouped())
    patients = [f"patient {number // 2}" for number in range(8)]
    model.fit(volumes, labels, masks=[BRAIN] * 8, groups=patients)
    assert [len(groups) for groups in fits] == [4, 4, 8]
    assert fits[2] == patients
    # Each patient is in one fold, with both scans.
    assert sorted(fits[0] + fits[1]) == patients
    assert not set(fits[0]) & set(fits[1])


def test_later_trainings_learn_what_the_one_before_took_for_lesions(cohort, monkeypatch):
    volumes, labels, _ = cohort
    calls = []
    fit = DeepMedicSegmenter.fit

    def spied(self, volumes, labels, **options):
        calls.append((self.warm_start_from, list(volumes), [np.asarray(label) for label in labels]))
        return fit(self, volumes, labels, **options)

    monkeypatch.setattr(DeepMedicSegmenter, "fit", spied)
    model = TwoStageSegmenter(tiny_network(), "linear", n_trainings=2, random_state=0)
    images = [nib.Nifti1Image(volume, np.eye(4)) for volume in volumes[:4]]
    model.fit(images, labels[:4], masks=[BRAIN] * 4)
    # Two folds and all, each twice.
    assert [bool(start) for start, _, _ in calls] == [False, True] * 3
    start, last, marked = calls[-1]
    found = start.predict_proba(last, masks=[BRAIN] * 4)
    for label, new, probability in zip(labels, marked, found, strict=False):
        distance = ndimage.distance_transform_edt(label == 0)
        mistaken = (probability >= 0.1) & (distance > 3)
        is_marked = new == MISTAKEN
        assert is_marked.any()
        assert mistaken[is_marked].all()
        assert (new[~is_marked] == label[~is_marked]).all()
    assert model.segmenter_.warm_start_from is None


@pytest.mark.parametrize("seed", [0, None])
def test_all_trainings_hold_out_the_same_scans_and_score_them_by_true_lesions(cohort, monkeypatch, seed):
    volumes, labels, _ = cohort
    held_outs, labels_of_trainings = [], []
    split, train = DeepMedicSegmenter._split, DeepMedicSegmenter._train

    def spied_split(self, *arguments):
        parts = split(self, *arguments)
        held_outs.append(parts[1].tolist())
        return parts

    def spied_train(self, X, y, groups):
        labels_of_trainings.append([label for label, _ in y])
        return train(self, X, y, groups)

    def bright(self, net, inputs, case):
        return Brightness().predict_proba([case[0]])[0]

    monkeypatch.setattr(DeepMedicSegmenter, "_split", spied_split)
    monkeypatch.setattr(DeepMedicSegmenter, "_train", spied_train)
    monkeypatch.setattr(DeepMedicSegmenter, "_answer", bright)
    network = tiny_network(seed, validation_fraction=0.5)
    model = TwoStageSegmenter(network, "linear", n_trainings=3, random_state=0)
    cases = [(volume, None, BRAIN) for volume in volumes]
    patients = [f"patient {number // 2}" for number in range(8)]
    numbers = [1, 2, 3, 4, 6, 7]
    segmenters = model._trained(network, cases, labels, numbers, patients)
    assert len(segmenters) == len(labels_of_trainings) == 3
    held_out = held_outs[0]
    assert all(scored == held_out for scored in held_outs)
    assert len({patients[numbers[i]] for i in held_out}) == 2
    for segmenter, marked in zip(segmenters, labels_of_trainings, strict=True):
        # Three balls are found as they are, and two sheets are false; were they true, it would be 1.
        assert segmenter.history_[0]["valid_score"] == pytest.approx(3 / 5)
        for i, number in enumerate(numbers):
            np.testing.assert_array_equal(np.where(marked[i] == MISTAKEN, 0, marked[i]), labels[number])
            is_marked = i not in held_out and segmenter is not segmenters[0]
            assert (MISTAKEN in marked[i]) == is_marked


@pytest.mark.parametrize("edge", [0.5, 1.0])
def test_blurred_edges_of_lesions_are_no_mistakes_in_voxels_of_any_size(edge):
    class Blurred(Brightness):
        def predict_proba(self, volumes, *, masks=None):
            return [np.ones(SHAPE, np.float32) for _ in volumes]

    label = (np.linalg.norm(GRID - 20, axis=-1) < 4).astype(np.uint8)
    image = nib.Nifti1Image(label.astype(np.float32), np.diag([edge] * 3 + [1]))
    marked = _mark_mistakes_of(Blurred(), (image, None, None), label, 0)
    distance = edge * ndimage.distance_transform_edt(label == 0)
    assert not (marked == MISTAKEN)[distance <= 3].any()
    # Of a mistake as large as the scan 300 voxels are marked, ± 4 standard deviations.
    assert 230 < (marked == MISTAKEN).sum() < 370


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": (0.0,)}, "each of levels must be a number above 0"),
        ({"threshold": 0}, "threshold must be a number above 0"),
        ({"classifier": "forest"}, "classifier"),
        ({"n_trainings": 2}, "n_trainings=2 needs a DeepMedicSegmenter"),
        ({}, r"metastases among .* candidates?: 0; both"),
    ],
)
def test_impossible_parameters_and_candidates_are_refused(cohort, change, said):
    with pytest.raises(ValueError, match=said):
        small().set_params(**change).fit(cohort[0], [0 * label for label in cohort[1]], masks=[BRAIN] * 8)
    with pytest.raises(ValueError, match="scans of 1 patient: a model of two stages learns from 2 or more"):
        small().fit(cohort[0][:1], cohort[1][:1])


def test_a_model_file_holds_no_segmenter_of_another_kind(fitted):
    with pytest.raises(TypeError, match="a model file cannot hold a Brightness"):
        fitted.stored()


def test_probabilities_are_made_comparable_where_asked(cohort, monkeypatch):
    volumes, labels, _ = cohort
    lesion_masks = []

    def recorded(probability, brain, steps, *, lesions=None):
        lesion_masks.append(lesions)
        return probability * (lesions is not None)

    monkeypatch.setattr("metastasis.candidates.case_candidates.comparable_probability", recorded)
    model = small(comparable=True).fit(volumes, labels, masks=[BRAIN] * 8)
    assert len(lesion_masks) == 8
    assert sorted(mask.sum() for mask in lesion_masks) == sorted((label > 0).sum() for label in labels)
    # Where lesions are not known, nothing is left of them here.
    (marked,) = model.predict(volumes[:1], masks=[BRAIN])
    assert lesion_masks[8] is None
    assert not marked.any()


@pytest.mark.deep
def test_one_file_holds_both_stages(tmp_path, cohort):
    volumes, labels, _ = (part[:2] for part in cohort)
    network = tiny_network().set_params(scaling="local").fit(volumes, labels, masks=[BRAIN] * 2)
    bright = small().fit(volumes * 4, labels * 4, masks=[BRAIN] * 8)
    table = np.random.default_rng(0).normal(size=(60, bright.classifier_.n_features_in_ - 1))
    truth = (table[:, 0] > 0).astype(np.int8)
    model = TwoStageSegmenter(levels=(0.01, 0.04), random_state=0)
    model.fit_candidates(network, table, truth)
    save_model(model, tmp_path / "model.dmrifit")
    restored = load_model(tmp_path / "model.dmrifit")
    before = model.predict_proba(volumes[:1], masks=[BRAIN])[0]
    after = restored.predict_proba(volumes[:1], masks=[BRAIN])[0]
    assert before.any()
    assert (before == after).all()
    assert restored.feature_weights_ == model.feature_weights_
    parameters, fitted, files = model.stored()
    assert parameters["segmenter"] is None
    # An earlier file holds one classifier for all scans.
    del files["alone.skops"]
    earlier = TwoStageSegmenter()
    earlier.restore(fitted, files)
    assert earlier.classifier_without_prior_ is earlier.classifier_
    del files["classifier.skops"]
    with pytest.raises(ValueError, match="no classifier"):
        TwoStageSegmenter().restore(fitted, files)


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("threshold_",), 0),
        (("threshold_",), "0.5"),
        (("uses_priors_",), 1),
        (("false_positives_",), -1),
        (("false_positives_",), "few"),
        (("n_candidates_",), {"metastases": 3}),
        (("n_candidates_", "others"), 2.5),
        (("feature_weights_",), ["depth"]),
        (("feature_weights_", "depth"), "much"),
        (("feature_weights_", "color"), 0.1),
        (("feature_weights_",), {"depth": 0.1}),
        (("segmenter",), TwoStageSegmenter()),
    ],
)
def test_damaged_content_of_a_model_file_is_refused(shipped_content, keys, value):
    _, fitted, files = copy.deepcopy(shipped_content)
    place = fitted
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(ValueError, match=r"\w"):
        TwoStageSegmenter().restore(fitted, files)


@pytest.fixture(scope="module")
def shipped_content():
    pytest.importorskip("torch")
    model = load_model(PATH)
    TwoStageSegmenter().restore(*model.stored()[1:])
    return model.stored()


def test_the_included_model_is_small_and_has_a_card_with_its_threshold():
    assert PATH.stat().st_size <= 1.5e6
    card = PATH.with_suffix(".md").read_text()
    for word in ("## Data", "## Figures", "## Limits", "## License", "## Command", "CC BY"):
        assert word in card, word
    assert "brats 2013" not in card.partition("## Figures")[0].lower()
    with zipfile.ZipFile(PATH) as archive:
        stored = json.loads(archive.read("model.json"))
    assert stored["fitted"]["threshold_"] == small_model_threshold()
    assert stored["parameters"]["comparable"] is True


@pytest.mark.deep
@pytest.mark.slow
def test_model_finds_a_ball_in_even_tissue():
    pytest.importorskip("torch")
    model = load_model(PATH)
    grid = np.stack(np.indices((64, 64, 64)), axis=-1)
    radius = np.linalg.norm(grid - 32, axis=-1)
    brain = radius < 28
    distance = np.linalg.norm(grid - (26, 36, 30), axis=-1)
    ball = distance < 5
    # A brain ends with fluid.
    volume = ndimage.gaussian_filter(np.where(radius < 26, 300.0, 150.0), 0.7)
    volume += np.random.default_rng(0).normal(0, 6, brain.shape)
    without = volume.copy()
    volume[ball] = 480
    marked, nothing = model.predict([volume * brain, without * brain])
    assert (marked > 0)[ball].mean() > 0.5
    # Edges of implants are blurred, so the model marks up to 3 mm around a sharp ball.
    assert not marked[distance >= 8].any()
    assert not nothing.any()
    assert model.prior_ is None


def test_figures_beside_the_model_are_those_measured_at_its_threshold():
    measured = json.loads((Path(__file__).parents[3] / "benchmarks" / "results" / "metastasis_people.json").read_text())
    figures = model_figures(PATH)
    cut = json.loads(PATH.with_suffix(".json").read_text())["figures"]["threshold"]
    card = PATH.with_suffix(".md").read_text()
    found = found_small = n_all = n_small = 0
    findings = []
    for name, board in measured["boards"].items():
        (row,) = [row for row in board["new"] if row["threshold"] == cut]
        n, n_of_small = sum(row["n"].values()), row["n"]["small"]
        found, n_all = found + round(row["sensitivity"] * n), n_all + n
        found_small += round(row["by_kind"]["small"] * n_of_small)
        n_small += n_of_small
        findings.append(row["findings"])
        assert f"| {name} | {cut:g} | {row['enhancing_mL']:.0f} |" in card
    included = measured["included"]
    elsewhere = [row["elsewhere"] for row in included.values()]
    assert figures["false_findings"] == findings + [row["findings"] for row in elsewhere]
    assert figures["false_mL"][len(findings) :] == [row["mL"] for row in elsewhere]
    for name, row in included.items():
        assert f"| {name} | {row['findings']} | {row['mL']:.2f} | {row['largest_mL']:.2f} |" in card
    assert figures["sensitivity"] == pytest.approx(found / n_all, abs=1e-3)
    assert figures["sensitivity_small"] == pytest.approx(found_small / n_small, abs=1e-3)
    assert f"Marked from a score of {cut:g} on" in card
    for name, board in measured["gliomas"].items():
        (row,) = [row for row in board["new"] if row["threshold"] == cut]
        assert f"| {name} | {cut:g} | {row['enhancing_mL']:.0f} | {row['covered']:.2f} |" in card
