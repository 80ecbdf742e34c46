"""Threshold rules come back from JSON as they were fitted, and altered contents are refused."""

import json

import numpy as np
import pytest

from anomaly.detectors import thresholds
from anomaly.detectors.threshold_files import decoded_rule, encoded_rule
from anomaly.detectors.thresholds import (
    BestDiceThreshold,
    FixedThreshold,
    HealthyRateThreshold,
    HealthyScanThreshold,
    MeanPoolThreshold,
    OtsuThreshold,
    YoudenThreshold,
)
from dmrifit.io.parameter_json import RefusedError

SHAPE = (4, 5, 3)
MAPS = [np.random.default_rng(seed).normal(size=SHAPE) for seed in (0, 1)]

FIXED = {"rule": "FixedThreshold", "parameters": {"value": 2.5}, "fitted": {"threshold_": 2.5}}


def through_json(rule):
    return decoded_rule(json.loads(json.dumps(encoded_rule(rule), allow_nan=False)))


# Storing -----------------------------------------------------------------------------------------


def test_a_fitted_rule_is_its_class_its_parameters_and_its_threshold():
    # The highest of 60 scores is the only one above the second highest.
    ranks = np.arange(60.0).reshape(SHAPE)
    rule = HealthyRateThreshold(1 / 60).fit([ranks])
    assert encoded_rule(rule) == {
        "rule": "HealthyRateThreshold",
        "parameters": {"rate": 1 / 60},
        "fitted": {"threshold_": 58.0},
    }
    assert encoded_rule(FixedThreshold(2.5).fit(MAPS)) == FIXED


def test_no_rule_is_stored_as_nothing():
    assert encoded_rule(None) is None
    assert decoded_rule(None) is None


@pytest.mark.parametrize(
    "rule",
    [
        FixedThreshold(-0.25),
        HealthyRateThreshold(0.1),
        HealthyScanThreshold(0.6, counted="voxels", rate=0.1),
        OtsuThreshold(),
        OtsuThreshold(scope="image"),
        MeanPoolThreshold(6.0, spacing=(2.0, 1.0, 3.0)),
    ],
    ids=repr,
)
def test_a_rule_from_json_marks_the_voxels_of_the_rule_that_was_stored(rule):
    rule.fit(MAPS)
    loaded = through_json(rule)
    assert type(loaded) is type(rule)
    assert loaded.get_params() == rule.get_params()
    unseen = [np.random.default_rng(seed).normal(size=SHAPE) for seed in (7, 8, 9)]
    marked = np.array(rule.apply(unseen))
    np.testing.assert_array_equal(loaded.apply(unseen), marked)
    # Neither all nor nothing, so that another threshold would show.
    assert 0 < marked.sum() < marked.size


@pytest.mark.parametrize("rule", [YoudenThreshold(), BestDiceThreshold()], ids=repr)
def test_a_common_threshold_chosen_by_lesions_comes_back(rule):
    truths = [scores > 1 for scores in MAPS]
    # A fit with limits of single scans leaves nothing behind.
    rule.set_params(scope="image").fit(MAPS, truths=truths)
    rule.set_params(scope="dataset").fit(MAPS, truths=truths)
    loaded = through_json(rule)
    np.testing.assert_array_equal(loaded.apply(MAPS[:1]), rule.apply(MAPS[:1]))
    assert np.any(loaded.apply(MAPS[:1]))


def test_a_rule_before_its_fit_has_parameters_alone():
    loaded = through_json(YoudenThreshold(scope="image"))
    assert isinstance(loaded, YoudenThreshold)
    assert loaded.scope == "image"
    assert not hasattr(loaded, "threshold_")


def test_every_rule_of_the_module_can_be_stored_by_its_name():
    rules = [
        getattr(thresholds, name) for name in thresholds.__all__ if name.endswith("Threshold")
    ]
    assert len(rules) == 7
    for rule in rules:
        unfitted = rule(0.5) if rule is FixedThreshold else rule()
        assert type(through_json(unfitted)) is rule


def test_a_threshold_of_numpy_becomes_a_plain_number():
    rule = FixedThreshold(np.float32(0.5)).fit(MAPS)
    rule.threshold_ = np.float64(0.5)
    fitted = encoded_rule(rule)["fitted"]["threshold_"]
    assert type(fitted) is float
    assert fitted == 0.5


def test_infinite_and_missing_thresholds_survive():
    rule = OtsuThreshold(scope="image").fit(MAPS)
    assert np.isnan(through_json(rule).threshold_)
    rule.threshold_ = -np.inf
    assert through_json(rule).threshold_ == -np.inf


def test_limits_of_the_scans_of_a_fit_are_not_stored():
    truths = [scores > 1 for scores in MAPS]
    rule = YoudenThreshold(scope="image").fit(MAPS, truths=truths)
    with pytest.raises(TypeError, match=r"YoudenThreshold.* a limit for each scan"):
        encoded_rule(rule)


@pytest.mark.parametrize("name", ["MeanPlusThree", "FixedThreshold"])
def test_a_rule_of_a_users_own_is_not_stored_even_under_a_name_of_the_library(name):
    own_class = type(name, (FixedThreshold,), {"__init__": lambda self, value=3.0: None})
    own_class.__repr__ = lambda self: "Own()"
    with pytest.raises(
        TypeError, match=r"Own\(\) cannot be stored in a model file; BestDiceThreshold, Fixed"
    ):
        encoded_rule(own_class())


# Altered contents --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["os", "open_map", "RULES", "BaseEstimator", "ThresholdRule", "", None, 3, ["a"]]
)
def test_only_names_of_rules_become_classes(name):
    with pytest.raises(RefusedError, match="there is no threshold rule"):
        decoded_rule(FIXED | {"rule": name})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "missing key of a threshold"),
        ([FIXED], "missing key of a threshold"),
        ("FixedThreshold", "missing key of a threshold"),
        ({key: FIXED[key] for key in ("rule", "fitted")}, "missing key of a threshold"),
        (FIXED | {"code": "1"}, "unknown or missing key of a threshold .unknown: code"),
        (FIXED | {"parameters": {}}, "missing parameter of a threshold"),
        (FIXED | {"parameters": {"value": 1, "rate": 0}}, "unknown or missing parameter"),
        (FIXED | {"parameters": [2.5]}, "missing parameter of a threshold"),
    ],
)
def test_contents_with_unknown_or_missing_keys_are_refused(content, message):
    with pytest.raises(RefusedError, match=message):
        decoded_rule(content)


@pytest.mark.parametrize(
    "fitted",
    [
        [2.5],
        None,
        {"fit": 1},
        {"_limits_": 1.0},
        {"__class__": 1},
        {"value": 3},
        {"thresholds_": 1.0},
        {"threshold_": 2.5, "limit_": 1.0},
    ],
)
def test_only_fitted_attributes_are_set(fitted):
    with pytest.raises(RefusedError, match="not what a threshold has fitted"):
        decoded_rule(FIXED | {"fitted": fitted})


@pytest.mark.parametrize("value", [True, "2.5", None, [2.5], {"$tuple": [2.5]}, {"a": 1}])
def test_a_fitted_value_that_is_no_number_is_refused(value):
    with pytest.raises(RefusedError, match=r"threshold_ of a threshold is .*, not a number"):
        decoded_rule(FIXED | {"fitted": {"threshold_": value}})


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        ("FixedThreshold", {"value": "high"}),
        ("FixedThreshold", {"value": True}),
        ("FixedThreshold", {"value": [2.5]}),
        ("FixedThreshold", {"value": None}),
        ("HealthyRateThreshold", {"rate": 1.5}),
        ("HealthyRateThreshold", {"rate": "0.01"}),
        ("OtsuThreshold", {"scope": "everything"}),
        ("OtsuThreshold", {"scope": ["image"]}),
        ("MeanPoolThreshold", {"size_mm": -1, "spacing": None, "scope": "image"}),
        ("MeanPoolThreshold", {"size_mm": [1, 1, 1], "spacing": None, "scope": "image"}),
        ("MeanPoolThreshold", {"size_mm": 1, "spacing": [1, 2], "scope": "image"}),
        ("MeanPoolThreshold", {"size_mm": 1, "spacing": [1, 2, [3]], "scope": "image"}),
        ("MeanPoolThreshold", {"size_mm": 1, "spacing": ["1", "2", "3"], "scope": "image"}),
    ],
)
def test_parameters_out_of_range_are_refused(rule, parameters):
    with pytest.raises(RefusedError, match="a threshold has an impossible parameter"):
        decoded_rule({"rule": rule, "parameters": parameters, "fitted": {}})


def test_a_threshold_that_the_scope_does_not_have_is_refused():
    missing = {"rule": "OtsuThreshold", "parameters": {"scope": "dataset"}}
    with pytest.raises(RefusedError, match=r"threshold_ .* is missing"):
        decoded_rule(missing | {"fitted": {"threshold_": {"$float": "nan"}}})
    limits = {"rule": "YoudenThreshold", "parameters": {"scope": "image"}}
    with pytest.raises(RefusedError, match="a limit for each scan"):
        decoded_rule(limits | {"fitted": {"threshold_": 1.0}})
