"""What all detectors keep: checks, held-back subjects, stored thresholds, empty maps, model files."""

import json

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.covariance import EllipticEnvelope
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.utils import estimator_checks

from anomaly import (
    AlignedMahalanobis,
    FixedThreshold,
    ImplantDetector,
    IsolationForestDetector,
    OneMinusMean,
    OtsuThreshold,
    PCADetector,
    VoxelwiseGaussian,
)
from anomaly.detectors.base import AnomalyDetector, _folds, image_scaled
from anomaly.detectors.thresholds import HealthyRateThreshold
from dmrifit import load_model, save_model

SHAPE = (9, 10, 8)
CUBE = (slice(3, 6), slice(3, 6), slice(3, 6))

DETECTORS = {
    "1 - mean": OneMinusMean(),
    "z": VoxelwiseGaussian(),
    "z of channels": VoxelwiseGaussian("channels", side="low"),
    "Mahalanobis": VoxelwiseGaussian(("mean", "spread"), distance="mahalanobis"),
    "PCA": PCADetector(4),
    "aligned": AlignedMahalanobis(),
    "forest": IsolationForestDetector(n_voxels=4000, n_estimators=20, random_state=0),
    "implants": ImplantDetector(n_trees=10, n_implants=1, random_state=0),
}


# Of scikit-learn, those that do not need rows.
CHECKS = [
    "check_estimator_cloneable", "check_estimator_repr", "check_no_attributes_set_in_init", "check_set_params",
    "check_do_not_raise_errors_in_init_or_set_params", "check_parameters_default_constructible",
    "check_get_params_invariance",
]  # fmt: skip


def healthy_scans(n, seed, n_channels=6):
    """Make scans with a pattern that all share, and noise."""
    rng = np.random.default_rng(seed)
    pattern = 0.4 + 0.1 * np.sin(np.indices(SHAPE).sum(axis=0))[..., None]
    return np.clip(pattern + 0.03 * rng.standard_normal((n, *SHAPE, n_channels)), 0, 1).astype(np.float32)


def ball_masks(n):
    where = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    return np.repeat((np.sqrt((where**2).sum(axis=0)) < 4.2)[None], n, axis=0)


@pytest.fixture(scope="module")
def world():
    healthy, new = healthy_scans(16, 0), healthy_scans(6, 1)
    ill = new[:3].copy()
    ill[(slice(None), *CUBE)] -= 0.2
    return healthy, new, ill, ball_masks(16)


@pytest.fixture(scope="module", params=DETECTORS)
def fitted(request, world):
    healthy, _, _, masks = world
    return clone(DETECTORS[request.param]).fit(healthy, masks)


class Constant(AnomalyDetector):
    """Score scans by whether they were learned from, and keep the scores, those of folds too."""

    scored = ()

    def __init__(self, *, threshold=None, calibration=0.25, scale=None):
        self.threshold, self.calibration, self.scale = threshold, calibration, scale

    def _fit_scans(self, scans):
        self.seen_ = [float(scans.signal(i).max()) for i in range(len(scans))]

    def _score_scan(self, scans, i):
        Constant.scored += (scans.signal(i).max() in self.seen_,)
        return np.full(scans.shape[:3], float(Constant.scored[-1]))


def marked(n):
    """Make scans that can be told apart by their largest value."""
    scans = np.full((n, *SHAPE, 2), 0.1)
    scans += np.arange(n).reshape(n, 1, 1, 1, 1)
    return scans


def test_maps_are_high_in_a_lesion_and_zero_outside_the_mask_and_predictions_above_the_threshold(fitted, world):
    _, new, ill, masks = world
    maps, found = fitted.anomaly_map(ill, masks[:3]), fitted.predict(ill, masks[:3])
    assert (maps.shape, maps.dtype, found.dtype) == ((3, *SHAPE), np.float32, bool)
    assert not maps[~masks[:3]].any()
    np.testing.assert_array_equal(found, (maps > fitted.threshold_.threshold_) & masks[:3])
    inside = np.zeros(SHAPE, dtype=bool)
    inside[CUBE] = True
    weak = isinstance(fitted, OneMinusMean | IsolationForestDetector)
    for scores in maps:
        assert scores[4, 4, 4] > np.quantile(scores[masks[0] & ~inside], 0.5 if weak else 0.99)
    # Only 6 scans of 300 voxels: the share itself is measured in the benchmark.
    assert fitted.predict(new, masks[:6])[masks[:6]].mean() < 0.04
    for method in ("predict", "anomaly_map"):
        with pytest.raises(NotFittedError):
            getattr(clone(fitted), method)(ill)


def test_maps_are_the_same_bits_however_scans_are_given_and_prediction_changes_nothing(fitted, world):
    _, _, ill, masks = world
    before = dict(vars(fitted))
    one, two = (fitted.anomaly_map(ill, masks[:3]).tobytes() for _ in range(2))
    assert one == two
    assert vars(fitted) == before
    alone = np.concatenate([fitted.anomaly_map(ill[i : i + 1], masks[i : i + 1]) for i in range(3)])
    assert alone.tobytes() == one
    healthy, _, ill, masks = world
    scans = [scan.copy() for scan in healthy]
    for scan, mask in zip(scans, masks, strict=True):
        scan[~mask] = 50
        scan.flags.writeable = False
    again = clone(fitted).fit(scans, list(masks))
    spoiled = np.where(masks[:3, ..., None], ill, 50)
    assert again.anomaly_map(spoiled, masks[:3]).tobytes() == fitted.anomaly_map(ill, masks[:3]).tobytes()
    assert again.threshold_.threshold_ == fitted.threshold_.threshold_


@pytest.mark.parametrize("name", ["forest", "implants"])
def test_a_seed_decides_the_scores(name, world):
    healthy, _, ill, masks = world
    options = {"calibration": None} | ({"n_voxels": 500} if name == "forest" else {})
    maps = [
        clone(DETECTORS[name]).set_params(random_state=seed, **options).fit(healthy, masks).anomaly_map(ill, masks[:3])
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])


def test_a_model_file_gives_the_same_bits(fitted, world, tmp_path):
    _, _, ill, masks = world
    save_model(fitted, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    assert (type(loaded), repr(loaded)) == (type(fitted), repr(fitted))
    assert loaded.anomaly_map(ill, masks[:3]).tobytes() == fitted.anomaly_map(ill, masks[:3]).tobytes()
    assert loaded.predict(ill, masks[:3]).tobytes() == fitted.predict(ill, masks[:3]).tobytes()


def test_scans_of_other_directions_or_sizes_are_refused_where_a_score_belongs_to_a_place(fitted, world):
    _, _, ill, masks = world
    with pytest.raises(ValueError, match="4 directions, but the training scans have 6"):
        fitted.anomaly_map(ill[..., :4], masks[:3])
    if fitted._one_size:
        with pytest.raises(ValueError, match="8 × 10 × 8 voxels, but the training scans have 9 × 10 × 8"):
            fitted.predict(ill[:, :8], masks[:3, :8])
    else:
        assert fitted.predict(ill[:, :8], masks[:3, :8]).shape == (3, 8, 10, 8)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("check", CHECKS)
def test_rules_of_scikit_learn_that_do_not_need_rows(name, check):
    getattr(estimator_checks, check)(name, clone(DETECTORS[name]))


def test_subjects_are_kept_together_and_those_held_back_not_learned_from(world):
    groups = np.repeat(np.arange(8), 2)
    found = cross_val_predict(VoxelwiseGaussian(), world[0], groups=groups, cv=GroupKFold(2))
    assert found.shape == world[0].shape[:4]
    scans, groups = marked(12), np.repeat(["a", "b", "c", "d", "e", "f"], 2)
    detector = Constant(calibration=0.34).fit(scans, groups=groups)
    assert len(detector.seen_) == 8
    learned = np.isin(np.arange(12) + 0.1, np.round(detector.seen_, 6))
    assert {learned[groups == name].mean() for name in np.unique(groups)} == {0.0, 1.0}
    Constant.scored = ()
    assert len(Constant(calibration=3, threshold=FixedThreshold(0.5)).fit(marked(9)).seen_) == 9
    assert Constant.scored == (False,) * 9


@pytest.mark.parametrize(("n_subjects", "n_folds"), [(3, 3), (8, 4), (39, 4), (40, 1)])
def test_few_subjects_are_dealt_into_folds_and_a_share_of_many_is_held_out(n_subjects, n_folds):
    folds = _folds(np.repeat(np.arange(n_subjects), 2), "auto")
    assert len(folds) == n_folds
    assert sum(map(len, folds)) == (2 * n_subjects if n_folds > 1 else n_subjects // 2)


def test_the_rule_is_not_changed_and_no_threshold_is_fitted_where_none_is_wanted(world):
    rule = OtsuThreshold()
    assert np.isfinite(OneMinusMean(threshold=rule).fit(world[0]).threshold_.threshold_)
    assert not hasattr(rule, "threshold_")
    detector = OneMinusMean(calibration=None).fit(world[0])
    assert detector.anomaly_map(world[2]).shape == (3, *SHAPE)
    with pytest.raises(ValueError, match="no threshold was fitted"):
        detector.predict(world[2])


def test_an_image_scale_ends_at_one_and_keeps_the_order():
    map_, mask = np.random.default_rng(0).gamma(2, size=(10, 10, 10)), np.ones((10, 10, 10), dtype=bool)
    mask[0] = False
    scaled = image_scaled(map_, mask)
    top = np.quantile(map_[mask], 0.999)
    np.testing.assert_allclose(scaled[mask], np.minimum(map_[mask] / top, 1), rtol=1e-6)
    assert not scaled[0].any()
    assert not image_scaled(np.zeros((2, 2, 2)), np.ones((2, 2, 2), dtype=bool)).any()


@pytest.fixture(scope="module")
def stored():
    """Give a detector, and what a model file holds of it."""
    detector = VoxelwiseGaussian(threshold=HealthyRateThreshold(0.1), calibration=0.34).fit(healthy_scans(6, 0))
    # The order of an array in memory is not that of the file.
    detector.counts_ = np.asfortranarray(detector.counts_)
    return detector, *detector.stored()


def test_a_detector_comes_back_from_its_parts_without_the_settings_of_one_machine(stored, tmp_path):
    detector, parameters, attributes, files = stored
    again = VoxelwiseGaussian(**parameters)
    again.restore(json.loads(json.dumps(attributes)), files)
    np.testing.assert_array_equal(again.predict(healthy_scans(2, 1)), detector.predict(healthy_scans(2, 1)))
    np.testing.assert_array_equal(again.counts_, detector.counts_)
    assert (again.shape_, again.n_channels_, again.design_, again.threshold.rate) == (SHAPE, 6, detector.design_, 0.1)
    keys = {"shape", "n_channels", "rule", "threshold", "design_"}
    assert (set(attributes), attributes["shape"]) == (keys, list(SHAPE))
    options = {"n_jobs": 1, "random_state": np.random.RandomState(0), "calibration": None}
    forest = IsolationForestDetector(n_voxels=100, n_estimators=2, **options).fit(healthy_scans(3, 0))
    parameters, _, _ = forest.stored()  # a stream has moved on, and is none to begin with again
    assert ({"threshold", "n_jobs"} & set(parameters), parameters["random_state"]) == (set(), None)
    # Other estimators are read where they are trusted.
    forest.forest_ = EllipticEnvelope(support_fraction=1.0).fit(np.eye(3))
    save_model(forest, tmp_path / "own.dmrifit")
    name = "sklearn.covariance._elliptic_envelope.EllipticEnvelope"
    for trusted, problem in (((), r"load_model\(path, trusted="), ([name], "its forest does not take")):
        with pytest.raises(ValueError, match=problem):
            load_model(tmp_path / "own.dmrifit", trusted=trusted)
