"""Detectors that learn arrays come back from what model files hold, and contents that do not fit are refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from anomaly.detectors.array_detector import ArrayDetector
from anomaly.detectors.thresholds import FixedThreshold, HealthyRateThreshold
from dmrifit.io.parameter_json import RefusedError

SHAPE = (3, 4, 2)
FILE = "arrays.safetensors"


class Template(ArrayDetector):
    """Score voxels by their distance from the mean scan."""

    _array_names = ("mean_", "counts_")
    _fact_names = ("n_scans_", "levels_")

    def __init__(
        self,
        power=2.0,
        *,
        threshold=None,
        calibration=None,
        scale=None,
        n_jobs=None,
        random_state=None,
    ):
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


class Bare(ArrayDetector):
    """Learn nothing but the size of scans."""

    def __init__(self, *, threshold=None, calibration=None, scale=None):
        self.threshold = threshold
        self.calibration = calibration
        self.scale = scale

    def _fit_scans(self, scans):
        pass

    def _score_scan(self, scans, i):
        return scans.signal(i).mean(axis=-1)


@pytest.fixture(scope="module")
def scans():
    return np.random.default_rng(0).uniform(0.1, 0.9, (6, *SHAPE, 5)).astype(np.float32)


@pytest.fixture
def fitted(scans):
    options = {"threshold": HealthyRateThreshold(0.1), "calibration": 0.34, "n_jobs": 1}
    return Template(1.5, **options, random_state=np.random.RandomState(0)).fit(scans)


def test_a_detector_comes_back_from_its_parts(fitted, scans):
    parameters, attributes, files = fitted.stored()
    again = Template(1.5)
    again.restore(json.loads(json.dumps(attributes)), files)
    np.testing.assert_array_equal(again.anomaly_map(scans), fitted.anomaly_map(scans))
    np.testing.assert_array_equal(again.predict(scans), fitted.predict(scans))
    assert (again.shape_, again.n_channels_) == (SHAPE, 5)
    assert (again.n_scans_, again.levels_) == (4, (0.25, "low"))
    assert again.threshold.rate == 0.1
    assert again.threshold_.threshold_ == fitted.threshold_.threshold_
    np.testing.assert_array_equal(again.counts_, fitted.counts_)
    assert parameters["power"] == 1.5


def test_parameters_of_one_machine_and_the_rule_are_not_among_the_parameters(fitted):
    parameters, attributes, _ = fitted.stored()
    assert set(parameters) == {"power", "calibration", "scale", "random_state"}
    # A stream has moved on, and is none to begin with again.
    assert parameters["random_state"] is None
    assert set(attributes) == {"shape", "n_channels", "rule", "threshold", "n_scans_", "levels_"}
    assert attributes["shape"] == list(SHAPE)


def test_arrays_are_those_named_in_the_format_of_safetensors(fitted):
    _, _, files = fitted.stored()
    assert list(files) == [FILE]
    arrays = load(files[FILE])
    assert set(arrays) == {"mean_", "counts_"}
    np.testing.assert_array_equal(arrays["mean_"], fitted.mean_)


def test_detectors_without_arrays_have_no_file(scans):
    model = Bare(threshold=FixedThreshold(0.5), calibration=2).fit(scans)
    _, attributes, files = model.stored()
    assert files == {}
    again = Bare()
    again.restore(attributes, files)
    np.testing.assert_array_equal(again.predict(scans), model.predict(scans))
    with pytest.raises(RefusedError, match="it holds the files"):
        Bare().restore(attributes, {FILE: save({"mean_": np.zeros(3)})})


def test_attributes_that_do_not_fit_are_refused(fitted):
    _, attributes, files = fitted.stored()
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
            Template(1.5).restore(
                {key: value for key, value in attributes.items() if key != name}, files
            )


def test_arrays_that_do_not_fit_are_refused(fitted):
    _, attributes, files = fitted.stored()
    arrays = load(files[FILE])
    broken = {
        **arrays,
        "mean_": np.where(arrays["mean_"] > 0.5, np.nan, arrays["mean_"]).astype(np.float32),
    }
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


def test_parameters_that_fit_would_refuse_are_refused(fitted):
    _, attributes, files = fitted.stored()
    with pytest.raises(RefusedError, match="power must be above 0, not -1"):
        Template(-1).restore(attributes, files)
    with pytest.raises(RefusedError, match="scale must be None or 'image'"):
        Template(1.5, scale="all").restore(attributes, files)
