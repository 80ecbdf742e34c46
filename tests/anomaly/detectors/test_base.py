"""What all detectors keep: checks, held-back subjects, stored thresholds, empty maps, model files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.utils import estimator_checks

from anomaly import (
    AlignedMahalanobis,
    FixedThreshold,
    IsolationForestDetector,
    OneMinusMean,
    OtsuThreshold,
    PCADetector,
    VoxelwiseGaussian,
    YoudenThreshold,
)
from anomaly.detectors.base import AnomalyDetector, _folds, image_scaled
from anomaly.detectors.thresholds import HealthyRateThreshold
from dmrifit import load_model, save_model
from dmrifit.io.parameter_json import RefusedError

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
}


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
    """Scores of what is learned: the number of scans it has seen."""

    def __init__(self, *, threshold=None, calibration=0.25, scale=None):
        self.threshold = threshold
        self.calibration = calibration
        self.scale = scale

    def _fit_scans(self, scans):
        self.n_ = len(scans)
        self.seen_ = [float(scans.signal(i).max()) for i in range(len(scans))]

    def _score_scan(self, scans, i):
        return np.full(scans.shape[:3], float(self.n_) + scans.signal(i).max())


def marked(n):
    """Make scans that can be told apart by their largest value."""
    scans = np.full((n, *SHAPE, 2), 0.1)
    scans += np.arange(n).reshape(n, 1, 1, 1, 1)
    return scans


def test_maps_are_high_in_a_lesion_and_zero_outside_the_mask(fitted, world):
    _, _, ill, masks = world
    maps = fitted.anomaly_map(ill, masks[:3])
    assert maps.shape == (3, *SHAPE)
    assert maps.dtype == np.float32
    assert not maps[~masks[:3]].any()
    inside = np.zeros(SHAPE, dtype=bool)
    inside[CUBE] = True
    weak = isinstance(fitted, OneMinusMean | IsolationForestDetector)
    for scores in maps:
        assert scores[4, 4, 4] > np.quantile(scores[masks[0] & ~inside], 0.5 if weak else 0.99)


def test_predictions_are_what_the_stored_threshold_makes_of_maps(fitted, world):
    _, _, ill, masks = world
    maps, found = fitted.anomaly_map(ill, masks[:3]), fitted.predict(ill, masks[:3])
    assert found.dtype == bool
    np.testing.assert_array_equal(found, (maps > fitted.threshold_.threshold_) & masks[:3])


def test_new_healthy_scans_have_about_the_chosen_share_of_false_positives(fitted, world):
    # Only 6 scans of 300 voxels: the share itself is measured in the benchmark.
    _, new, _, masks = world
    rate = fitted.predict(new, masks[:6])[masks[:6]].mean()
    assert rate < 0.04


def test_two_maps_are_the_same_bits_and_prediction_changes_nothing(fitted, world):
    _, _, ill, masks = world
    before = dict(vars(fitted))
    one, two = (fitted.anomaly_map(ill, masks[:3]).tobytes() for _ in range(2))
    assert one == two
    assert vars(fitted) == before
    alone = np.concatenate([fitted.anomaly_map(ill[i : i + 1], masks[i : i + 1]) for i in range(3)])
    assert alone.tobytes() == one


def test_learning_again_from_lists_of_scans_that_cannot_be_written_gives_the_same_bits(fitted, world):
    healthy, _, ill, masks = world
    scans = [scan.copy() for scan in healthy]
    for scan in scans:
        scan.flags.writeable = False
    again = clone(fitted).fit(scans, list(masks))
    assert again.anomaly_map(ill, masks[:3]).tobytes() == fitted.anomaly_map(ill, masks[:3]).tobytes()
    assert again.threshold_.threshold_ == fitted.threshold_.threshold_


def test_a_model_file_gives_the_same_bits(fitted, world, tmp_path):
    _, _, ill, masks = world
    save_model(fitted, tmp_path / "model.dmrifit")
    loaded = load_model(tmp_path / "model.dmrifit")
    assert type(loaded) is type(fitted)
    assert repr(loaded) == repr(fitted)
    assert loaded.anomaly_map(ill, masks[:3]).tobytes() == fitted.anomaly_map(ill, masks[:3]).tobytes()
    assert loaded.predict(ill, masks[:3]).tobytes() == fitted.predict(ill, masks[:3]).tobytes()


def test_scans_of_other_directions_or_sizes_are_refused_where_a_score_belongs_to_a_place(fitted, world):
    _, _, ill, masks = world
    with pytest.raises(ValueError, match="4 directions, and those that were learned from 6"):
        fitted.anomaly_map(ill[..., :4], masks[:3])
    if fitted._one_size:
        with pytest.raises(ValueError, match="8 × 10 × 8 voxels, and those that were learned from 9 × 10 × 8"):
            fitted.predict(ill[:, :8], masks[:3, :8])
    else:
        assert fitted.predict(ill[:, :8], masks[:3, :8]).shape == (3, 8, 10, 8)


@pytest.mark.parametrize("name", DETECTORS)
def test_nothing_is_said_before_fit(name, world):
    with pytest.raises(NotFittedError):
        clone(DETECTORS[name]).predict(world[2])
    with pytest.raises(NotFittedError):
        clone(DETECTORS[name]).anomaly_map(world[2])


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
    ],
)
def test_rules_of_scikit_learn_that_do_not_need_rows(name, check):
    getattr(estimator_checks, check)(name, clone(DETECTORS[name]))


def test_cross_validation_by_subjects(world):
    healthy = world[0]
    groups = np.repeat(np.arange(8), 2)
    found = cross_val_predict(VoxelwiseGaussian(), healthy, groups=groups, cv=GroupKFold(2))
    assert found.shape == healthy.shape[:4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, m: (X[:0], None), "no scans"),
        (lambda X, m: (X[0], None), "case 0: an array of shape"),
        (lambda X, m: (X[:1], None), "of one subject"),
        (
            lambda X, m: ([*X[:3], X[3][:, :, :5]], None),
            "case 3: 9 × 10 × 5 voxels, where the first scan has 9 × 10 × 8",
        ),
        (lambda X, m: ([*X[:3], X[3][..., :2]], None), "case 3: 2 directions, where the first scan has 6"),
        (lambda X, m: (np.where(np.arange(16).reshape(-1, 1, 1, 1, 1) == 2, np.nan, X), None), "case 2: 4320 non-finite values"),
        (lambda X, m: (X, m[:-1]), "15 masks for 16"),
        (lambda X, m: (X, m & False), "case 0: its mask is empty"),
        (lambda X, m: (X, m[:, :8]), "case 0: its mask has the shape"),
        (lambda X, m: (X, m * 2), "case 0: its mask must hold 0 and 1 only"),
        (lambda X, m: (X * 0, None), "no channel is above 0"),
        (lambda X, m: ("scans", None), "must be a list or an array"),
    ],
)
def test_bad_scans_and_masks_are_refused_with_their_number(world, change, message):
    healthy, _, _, masks = world
    X, m = change(healthy, masks)
    with pytest.raises(ValueError, match=message):
        VoxelwiseGaussian().fit(X, m)


@pytest.mark.parametrize(
    ("parameters", "groups", "message"),
    [
        ({}, [1, 2, 3], "3 groups for 16 cases"),
        ({}, ["a"] * 16, "16 scans of one subject"),
        ({"calibration": 1}, None, "calibration"),
        ({"calibration": 1.5}, None, "calibration"),
        ({"calibration": True}, None, "calibration"),
        ({"scale": "dataset"}, None, "scale"),
    ],
)
def test_groups_and_shared_parameters_are_checked(world, parameters, groups, message):
    with pytest.raises(ValueError, match=message):
        OneMinusMean(**parameters).fit(world[0], groups=groups)
    with pytest.raises(ValueError, match="OneMinusMean takes no covariates into account"):
        OneMinusMean().fit(world[0], covariates={"age": np.arange(16)})


@pytest.mark.parametrize(("n_subjects", "n_folds"), [(3, 3), (8, 4), (39, 4), (40, 1)])
def test_few_subjects_are_dealt_into_folds_and_a_share_of_many_is_held_out(n_subjects, n_folds):
    folds = _folds(np.repeat(np.arange(n_subjects), 2), "auto")
    assert len(folds) == n_folds
    n_scans = 2 * n_subjects
    assert sum(map(len, folds)) == (n_scans if n_folds > 1 else n_scans // 4)


def test_held_back_subjects_are_not_learned_from():
    scans, groups = marked(12), np.repeat(["a", "b", "c", "d", "e", "f"], 2)
    detector = Constant(calibration=0.34).fit(scans, groups=groups)
    assert detector.n_ == 8
    learned = np.isin(np.arange(12) + 0.1, np.round(detector.seen_, 6))
    whole = [learned[groups == name].mean() for name in np.unique(groups)]
    assert set(whole) == {0.0, 1.0}


def test_with_folds_all_subjects_are_learned_from_and_none_scores_itself():
    class Inside(Constant):
        def _score_scan(self, scans, i):
            own = float(scans.signal(i).max())
            return np.full(scans.shape[:3], float(own in self.seen_))

    detector = Inside(calibration=3, threshold=FixedThreshold(0.5))
    seen = []
    original = Inside._map

    def spy(self, scans, i):
        found = original(self, scans, i)
        seen.append(float(found.max()))
        return found

    Inside._map = spy
    detector.fit(marked(9))
    assert detector.n_ == 9
    assert seen == [0.0] * 9


def test_no_threshold_is_fitted_where_none_is_wanted(world):
    detector = OneMinusMean(calibration=None).fit(world[0])
    assert detector.anomaly_map(world[2]).shape == (3, *SHAPE)
    with pytest.raises(ValueError, match="no threshold was fitted"):
        detector.predict(world[2])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (YoudenThreshold(), "needs lesions"),
        (FixedThreshold(np.nan), "finite"),
        (OtsuThreshold(scope="map"), "scope"),
        (0.3, "must be a rule, such as FixedThreshold"),
    ],
)
def test_a_rule_that_healthy_scans_cannot_give_is_refused_before_anything_is_learned(world, rule, message):
    class Unhurried(OneMinusMean):
        def _fit_scans(self, scans):
            pytest.fail("it has learned already")

    with pytest.raises(ValueError, match=message):
        Unhurried(threshold=rule).fit(world[0])


def test_the_rule_that_was_given_is_not_changed(world):
    rule = OtsuThreshold()
    detector = OneMinusMean(threshold=rule).fit(world[0])
    assert not hasattr(rule, "threshold_")
    assert np.isfinite(detector.threshold_.threshold_)


def test_a_healthy_scan_comes_out_empty_unless_each_map_has_its_own_scale(world):
    healthy, new, _, masks = world
    detector = VoxelwiseGaussian(threshold=FixedThreshold(5.0)).fit(healthy, masks)
    assert not detector.predict(new, masks[:6]).any()
    published = VoxelwiseGaussian(threshold=FixedThreshold(0.3), scale="image").fit(healthy, masks)
    assert all(found.any() for found in published.predict(new, masks[:6]))


def test_an_image_scale_ends_at_one_and_keeps_the_order():
    rng = np.random.default_rng(0)
    map_, mask = rng.gamma(2, size=(10, 10, 10)), np.ones((10, 10, 10), dtype=bool)
    mask[0] = False
    scaled = image_scaled(map_, mask)
    top = np.quantile(map_[mask], 0.999)
    np.testing.assert_allclose(scaled[mask], np.minimum(map_[mask] / top, 1), rtol=1e-6)
    assert not scaled[0].any()
    assert not image_scaled(np.zeros((2, 2, 2)), np.ones((2, 2, 2), dtype=bool)).any()


SMALL = (3, 4, 2)
FILE = "arrays.safetensors"


class Template(AnomalyDetector):
    """Score voxels by their distance from the mean scan."""

    _array_names = ("mean_", "counts_")
    _fact_names = ("n_scans_", "levels_")

    def __init__(self, power=2.0, *, threshold=None, calibration=None, scale=None, n_jobs=None, random_state=None):
        self.power = power
        self.threshold = threshold
        self.calibration = calibration
        self.scale = scale
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _check_parameters(self):
        if not self.power > 0:
            msg = f"power must be above 0, not {self.power}"
            raise ValueError(msg)

    def _fit_scans(self, scans):
        signals = np.stack([scans.signal(i) for i in range(len(scans))])
        self.mean_ = signals.mean(axis=0)
        self.counts_ = np.count_nonzero(signals, axis=0).transpose(3, 0, 1, 2)
        self.n_scans_ = len(scans)
        self.levels_ = (0.25, "low")

    def _score_scan(self, scans, i):
        return (np.abs(scans.signal(i) - self.mean_) ** self.power).mean(axis=-1)

    def _check_restored(self):
        if self.mean_.shape != (*self.shape_, self.n_channels_):
            msg = f"its mean has the shape {self.mean_.shape}"
            raise RefusedError(msg)


@pytest.fixture(scope="module")
def small_scans():
    return np.random.default_rng(0).uniform(0.1, 0.9, (6, *SMALL, 5)).astype(np.float32)


@pytest.fixture
def learned(small_scans):
    options = {"threshold": HealthyRateThreshold(0.1), "calibration": 0.34, "n_jobs": 1}
    return Template(1.5, **options, random_state=np.random.RandomState(0)).fit(small_scans)


def test_a_detector_comes_back_from_its_parts(learned, small_scans):
    parameters, attributes, files = learned.stored()
    again = Template(1.5)
    again.restore(json.loads(json.dumps(attributes)), files)
    np.testing.assert_array_equal(again.anomaly_map(small_scans), learned.anomaly_map(small_scans))
    np.testing.assert_array_equal(again.predict(small_scans), learned.predict(small_scans))
    assert (again.shape_, again.n_channels_) == (SMALL, 5)
    assert (again.n_scans_, again.levels_) == (4, (0.25, "low"))
    assert again.threshold.rate == 0.1
    assert again.threshold_.threshold_ == learned.threshold_.threshold_
    np.testing.assert_array_equal(again.counts_, learned.counts_)
    assert parameters["power"] == 1.5


def test_parameters_of_one_machine_and_the_rule_are_not_among_the_parameters(learned):
    parameters, attributes, _ = learned.stored()
    assert set(parameters) == {"power", "calibration", "scale", "random_state"}
    # A stream has moved on, and is none to begin with again.
    assert parameters["random_state"] is None
    assert set(attributes) == {"shape", "n_channels", "rule", "threshold", "n_scans_", "levels_"}
    assert attributes["shape"] == list(SMALL)


def test_attributes_that_do_not_fit_are_refused(learned):
    _, attributes, files = learned.stored()
    for change, message in (
        ({"shape": [3, 4]}, r"its scans have \[3, 4\] voxels and 5 directions"),
        ({"shape": [3, 4, 0]}, "its scans have"),
        ({"shape": [3, 4, 2.0]}, "its scans have"),
        ({"n_channels": True}, "and True directions"),
        ({"shape": [4, 3, 2]}, r"its mean has the shape \(3, 4, 2, 5\)"),
        ({"strange": 1}, "fitted attribute"),
        ({"rule": {"rule": "os", "parameters": {}, "fitted": {}}}, "no threshold rule 'os'"),
    ):
        with pytest.raises(RefusedError, match=message):
            Template(1.5).restore(attributes | change, files)
    for name in attributes:
        with pytest.raises(RefusedError, match="fitted attribute"):
            Template(1.5).restore({key: value for key, value in attributes.items() if key != name}, files)


def test_arrays_that_do_not_fit_are_refused(learned):
    _, attributes, files = learned.stored()
    arrays = load(files[FILE])
    broken = {**arrays, "mean_": np.where(arrays["mean_"] > 0.5, np.nan, arrays["mean_"]).astype(np.float32)}
    for content, message in (
        (broken, "its array mean_ has values that are not finite"),
        ({"mean_": arrays["mean_"]}, "array"),
        ({**arrays, "more_": arrays["counts_"]}, "array"),
    ):
        with pytest.raises(RefusedError, match=message):
            Template(1.5).restore(attributes, {FILE: save(content)})
    with pytest.raises(RefusedError, match=r"it holds the files \[\]"):
        Template(1.5).restore(attributes, {})
    with pytest.raises(RefusedError, match="file"):
        Template(1.5).restore(attributes, files | {"trees.bin": b""})


def test_parameters_that_fit_would_refuse_are_refused(learned):
    _, attributes, files = learned.stored()
    with pytest.raises(RefusedError, match="power must be above 0, not -1"):
        Template(-1).restore(attributes, files)
    with pytest.raises(RefusedError, match="scale must be one of"):
        Template(1.5, scale="all").restore(attributes, files)
