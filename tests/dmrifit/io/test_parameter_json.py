"""Parameters of model files as JSON and back."""

import json
import math

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel
from dmrifit.io.parameter_json import decoded, encoded, encoded_model, refuse_keys

DIRECTED = Protocol([0, 500, 1000], [80, 80, 90], directions=[[0, 0, 0], [1, 0, 0], [0, 1, 0]], name="three")
STRETCHED = SignalModel.from_expression(
    "S0*exp(-(b*D)**a)",
    [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 3), Parameter("a", "", 0.3, 1)],
    name="stretched",
)


def there_and_back(value):
    return decoded(json.loads(json.dumps(encoded(value, "p"), allow_nan=False)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "µ",
        3,
        0.1,
        -0.0,
        np.inf,
        -np.inf,
        (),
        (1, (2.5, "a")),
        [1, [2, (3,)]],
        {"bounds": {"Dt": (0.2, np.inf)}, "fixed": None},
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(value):
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_numbers_of_numpy_and_protocols_come_back():
    back = there_and_back([np.int64(3), np.float32(0.5), np.float64("nan")])
    assert back[:2] == [3, 0.5]
    assert [type(value) for value in back] == [int, float, float]
    assert math.isnan(back[2])
    back = there_and_back({"source": DIRECTED, "target": Protocol([0, 100])})
    assert back["source"] == DIRECTED
    assert back["source"].name == "three"
    np.testing.assert_array_equal(back["source"].te, [80, 80, 90])
    np.testing.assert_array_equal(back["source"].directions, DIRECTED.directions)
    assert back["target"].te is None


def test_a_model_comes_back_as_its_formula_and_parameters():
    assert encoded_model(STRETCHED) == {
        "name": "stretched",
        "expression": "S0*exp(-(b*D)**a)",
        "parameters": [["S0", "signal", 0, {"$float": "inf"}], ["D", "µm²/ms", 0.1, 3], ["a", "", 0.3, 1]],
    }
    back = there_and_back(STRETCHED)
    assert back == STRETCHED
    assert back.parameters[0].high == np.inf
    signals = [model.signal([[2.0, 1.5, 0.7]], Protocol([0, 400, 900])) for model in (back, STRETCHED)]
    np.testing.assert_array_equal(*signals)
    assert encoded_model(MODELS["adc"])["name"] == "adc"


def branched(b, S0, D):
    # Cut to whole s/mm², which no formula can say.
    whole = int(1000.0 * b + 0.5)
    return S0 * math.exp(-whole * D / 1000.0)


def test_a_model_that_is_a_function_is_not_written():
    model = SignalModel.from_function(branched, STRETCHED.parameters[:2], name="branched")
    with pytest.raises(TypeError, match=r"model branched is a function.* carries no code"):
        encoded(model, "model")


@pytest.mark.parametrize("keys", [[], ["a"], ["a", "b"]])
def test_known_keys_are_accepted(keys):
    refuse_keys(dict.fromkeys(keys), {"a", "b"}, "key")
