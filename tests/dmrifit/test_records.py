"""Descriptions by which results are found again, and the folder that keeps them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dmrifit import MODELS, Parameter, Protocol, SignalModel, SignalToSignal
from dmrifit.records import StudyFolder, describe, digest

DECAY = SignalModel.from_expression("S0*exp(-b*D)", [Parameter("S0", "signal", 0, 10), Parameter("D", "µm²/ms", 0, 3)],
                                    name="decay")  # fmt: skip


def branched(b, S0, D):
    return S0 * math.exp(-b * D) if b < 0.2 else S0 * math.exp(-0.2 * D)


BRANCHED = SignalModel.from_function(branched, DECAY.parameters, name="decay")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(4.0), np.array([0.0, 1, 2, 3])),
        (Protocol([0, 100], te=80), Protocol([0, 100], te=80, name="same measurements")),
        (SignalToSignal(Ridge()), SignalToSignal(Ridge())),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2}, {1, 2, 3}),
        (np.float64(2), 2.0),
        (replace(DECAY), DECAY),
        (BRANCHED, SignalModel.from_function(branched, DECAY.parameters, name="decay")),
    ],
)
def test_equal_values_have_equal_digests(one, other):
    assert digest(one) == digest(other)
    assert json.loads(json.dumps(describe(one))) == describe(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(4.0), np.array([0, 1, 2, np.nextafter(3, 4)])),
        (np.arange(4), np.arange(4.0)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (Protocol([0, 100], te=80), Protocol([0, 100], te=81)),
        (SignalToSignal(Ridge()), SignalToSignal(Ridge(alpha=2.0))),
        (MODELS["adc"], MODELS["kurtosis"]),
        (DECAY, replace(DECAY, parameters=(DECAY.parameters[0], Parameter("D", "µm²/ms", 0, 4)))),
        (DECAY, replace(DECAY, expression="S0*exp(-2*b*D)")),
        (DECAY, replace(DECAY, parameters=(DECAY.parameters[0], Parameter("D", "other", 0, 3)))),
        (DECAY, replace(DECAY, parameters=DECAY.parameters[::-1])),
        (BRANCHED, replace(BRANCHED, source=BRANCHED.source.replace("0.2", "0.3"))),
        (np.mean, np.median),
        (np.random.RandomState(0), np.random.RandomState(1)),
        ([1, 2], [2, 1]),
    ],
)
def test_different_values_have_different_digests(one, other):
    assert digest(one) != digest(other)


def test_what_has_no_lasting_description_is_refused():
    with pytest.raises(TypeError, match="cannot be described"):
        describe({"function": lambda: 0})


def test_a_folder_remembers_its_study_and_its_cells(tmp_path):
    folder = StudyFolder(tmp_path / "study")
    assert folder.settings() == {}
    assert folder.get("key") is None
    folder.claim({"seed": 1, "cohorts": {"A": ["p1"]}})
    folder.put("key", {"scores": [1.5], "signals": []})
    again = StudyFolder(tmp_path / "study")
    again.claim({"seed": 1, "cohorts": {"A": ["p1"]}})
    assert again.get("key") == {"scores": [1.5], "signals": []}
    with pytest.raises(ValueError, match="seed was 1 there and is 2 now"):
        again.claim({"seed": 2, "cohorts": {"A": ["p1"]}})


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "study").write_text("text")
    with pytest.raises(ValueError, match="is a file"):
        StudyFolder(tmp_path / "study").settings()
    with pytest.raises(FileNotFoundError, match="dmrifit benchmark"):
        StudyFolder(tmp_path).read_study()
