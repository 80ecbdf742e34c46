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


def test_the_scale_is_the_95th_percentile_of_references_at_the_lowest_b_and_shortest_te(signals, protocol):
    scale = np.percentile(signals[:, 3], 95)
    assert PatientScale().of(signals, protocol) == scale
    signals[:, :3] = 1e6
    assert PatientScale().of(8.0 * signals, protocol) == 8.0 * scale
    # The lowest b need not be zero, and low b-values that differ on purpose are not averaged.
    assert PatientScale().of(np.array([[4.0, 2.0], [4.0, 2.0]]), Protocol([50, 800])) == 4.0
    assert PatientScale().of(np.array([[9.0, 7.0, 5.0, 2.0, 1.0]]), Protocol([0.2, 0.5, 1, 200, 800])) == 9.0
    signals = np.array([[1.0, 3.0], [np.nan, 5.0], [np.nan, np.inf], [6.0, 8.0]])
    assert PatientScale(percentile=50).of(signals, Protocol([0, 0])) == 5.0


def test_the_rule_survives_json_and_no_other_is_known():
    rule = PatientScale(percentile=90)
    fields = json.loads(json.dumps(rule.to_dict()))
    assert PatientScale.from_dict(fields) == rule
    assert hash(PatientScale.from_dict(fields)) == hash(rule)
    for change in ({"extra": 1}, {"rule": "maximum"}, {"percentile": 0}, {"percentile": float("nan")}):
        with pytest.raises(ValueError, match=r"scale|percentile"):
            PatientScale.from_dict(fields | change)
    with pytest.raises(ValueError, match=r"scale|percentile"):
        PatientScale.from_dict({"rule": "percentile"})
