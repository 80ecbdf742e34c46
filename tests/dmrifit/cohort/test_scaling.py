"""The scale of a patient's images."""

import json

import numpy as np
import pytest

from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.protocol import Protocol


@pytest.fixture
def protocol():
    return Protocol([100, 0, 50, 0], te=[75, 90, 75, 75])


@pytest.fixture
def signals():
    return np.random.default_rng(0).gamma(3.0, 100.0, (500, 4))


def test_the_scale_is_the_95th_percentile_at_the_lowest_b_and_shortest_te(signals, protocol):
    assert PatientScale().of(signals, protocol) == np.percentile(signals[:, 3], 95)


def test_the_scale_is_proportional_to_the_gain(signals, protocol):
    scale = PatientScale().of(signals, protocol)
    assert PatientScale().of(8.0 * signals, protocol) == 8.0 * scale


def test_other_columns_do_not_move_the_scale(signals, protocol):
    scale = PatientScale().of(signals, protocol)
    signals[:, :3] = 1e6
    assert PatientScale().of(signals, protocol) == scale


def test_repeated_reference_images_are_averaged_and_gaps_left_out():
    signals = np.array([[1.0, 3.0], [np.nan, 5.0], [np.nan, np.inf], [6.0, 8.0]])
    assert PatientScale(percentile=50).of(signals, Protocol([0, 0])) == 5.0


def test_the_lowest_b_need_not_be_zero_nor_an_echo_time_known():
    signals = np.array([[4.0, 2.0], [4.0, 2.0]])
    assert PatientScale().of(signals, Protocol([50, 800])) == 4.0


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_scale_that_is_not_positive_is_an_error(value, protocol):
    with pytest.raises(ValueError, match=rf"scale is {value:g}.*S_b0_TE75.*body mask"):
        PatientScale().of(np.full((9, 4), value), protocol)


@pytest.mark.parametrize("signals", [np.full((9, 4), np.nan), np.empty((0, 4)), np.full((9, 4), np.inf)])
def test_a_scale_of_nothing_is_an_error(signals, protocol):
    with pytest.raises(ValueError, match=rf"none of {len(signals)} voxels has a finite signal"):
        PatientScale().of(signals, protocol)


@pytest.mark.parametrize("shape", [(9, 5), (4,), (3, 3, 4)])
def test_signals_of_another_protocol_are_an_error(shape, protocol):
    with pytest.raises(ValueError, match=r"\(n_voxels, 4\)"):
        PatientScale().of(np.ones(shape), protocol)


def test_the_rule_survives_json():
    rule = PatientScale(percentile=90)
    assert PatientScale.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert hash(PatientScale.from_dict(rule.to_dict())) == hash(rule)


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": "percentile"},
        {"rule": "percentile", "percentile": 95, "extra": 1},
        {"rule": "maximum", "percentile": 95},
        {"rule": "percentile", "percentile": 0},
        {"rule": "percentile", "percentile": float("nan")},
    ],
)
def test_an_unknown_rule_is_an_error(fields):
    with pytest.raises(ValueError, match=r"scale|percentile"):
        PatientScale.from_dict(fields)


def test_low_b_values_that_differ_on_purpose_are_not_averaged():
    protocol = Protocol([0.2, 0.5, 1, 200, 800])
    signals = np.array([[9.0, 7.0, 5.0, 2.0, 1.0]])
    assert PatientScale().of(signals, protocol) == 9.0
