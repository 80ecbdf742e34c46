"""Which model a protocol can carry: rules, reasons, and expected precision."""

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel, protocol_precision, suggest_model
from dmrifit.engine.design.identifiability import (
    expected_precision,
    missing_for,
    nominal_contrasts,
    snr_of_amplitude,
    typical_tissue,
)

LOW_B = [0, 20, 60, 150]


@pytest.mark.parametrize(
    ("protocol", "name", "reason"),
    [
        (Protocol([0, 1000]), "adc", "kurtosis needs 3 different contrasts"),
        (Protocol([0, 500, 1000, 1500]), "adc", "b-value above 1500 s/mm², and the highest is 1500"),
        (Protocol([0, 6.2, 1000, 1004, 2000]), "kurtosis", "4 b-values (nearly equal ones count as one) support"),
        (Protocol([0, 50, 400, 900, 1600]), "kurtosis", "three b-values from 10 to 200"),
        (Protocol([*LOW_B, 600]), "adc", "kurtosis needs a b-value above 1500"),
        (Protocol([*LOW_B, 400, 800]), "ivim", "two echo times or more, and the protocol has none"),
        (Protocol([*LOW_B, 400, 800], te=60), "ivim", "and the protocol has 1"),
        (Protocol.preset("cohort1"), "t2-ivim-kurtosis", "7 b-values at 3 echo times"),
        (Protocol.preset("cohort2"), "t2-ivim-kurtosis", "7 b-values at 3 echo times"),
        (Protocol([0, 400, 800] * 3, np.repeat([60, 90, 120], 3)), "t2-adc", "two b-values from 10 to 200 s/mm²"),
        (Protocol([*LOW_B, 400, 800] * 2, np.repeat([60, 90], 6)), "t2-adc", "a b-value above 1400 s/mm², and"),
    ],
)
def test_suggested_model_is_the_richest_that_the_protocol_determines(protocol, name, reason):
    suggestion, sentence = suggest_model(protocol)
    assert suggestion == name
    assert reason in sentence


def test_scattered_b_values_count_once_and_a_protocol_of_one_has_no_model():
    for protocol in (Protocol([1000, 1000, 1000]), Protocol([0, 500, 1000], te=[50, 70, 90])):
        with pytest.raises(ValueError, match="two b-values at one echo time"):
            suggest_model(protocol)
    b = np.concatenate([[0, 3, 9.5], 1000 + np.random.default_rng(93).uniform(-5, 5, 30), [1990, 2000, 2010]])
    assert len(nominal_contrasts(Protocol(b))) == 3
    assert suggest_model(Protocol(b))[0] == suggest_model(Protocol(b[::-1]))[0] == "kurtosis"
    at_two_te = Protocol(np.tile(b, 2), te=np.repeat([60, 90], len(b)))
    assert len(nominal_contrasts(at_two_te)) == 6
    protocol = Protocol([100, 500], te=[40, 90])
    by_te = MODELS["adc"].by_echo_time(protocol)
    for model in (MODELS["t2-adc"], by_te):
        assert snr_of_amplitude(10, protocol, model) == pytest.approx(10 * np.exp(40 / 80 + 0.1))
    np.testing.assert_allclose(typical_tissue(by_te), [np.exp(-40 / 80), np.exp(-90 / 80), 1])
    # Of low b-values alone, as --b-max leaves them.
    assert len(expected_precision(Protocol([0, 9, 500], te=80).take([0, 1]), MODELS["adc"])) == 2


def test_expected_precision_is_the_bound_for_typical_tissue_at_the_snr_of_the_scan_with_its_advice():
    table = expected_precision(Protocol.preset("cohort1"), MODELS["t2-ivim-kurtosis"], ("Dv",), 40)
    advice = dict(zip(table["parameter"], table["advice"], strict=True))
    assert advice["T2v"].startswith("T2v is not determined")
    assert advice["Dv"] == ""
    protocol = Protocol([0, 500, 1000])
    expected = expected_precision(protocol, MODELS["adc"], snr=25)
    table = protocol_precision(protocol, "adc", [1.0, 1.0], sigma=1 / 25)
    np.testing.assert_allclose(expected["cv"], table["cv"])


def test_fixed_parameters_lower_what_a_model_needs():
    protocol = Protocol([*LOW_B, 400, 800, 1600], te=60)
    model = MODELS["t2-ivim-kurtosis"]
    assert "two echo times" in missing_for(protocol, model)
    assert missing_for(protocol, model, fixed=("T2v", "T2t")) == ""


def test_parameters_that_only_enter_as_a_product_are_not_distinguished():
    model = SignalModel.from_expression(
        "S0*exp(-b*D*q)",
        [Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0, 5), Parameter("q", "", 0, 2)],
        name="product",
    )
    assert missing_for(Protocol([0, 500, 1000, 2000]), model) == "measurements that distinguish D from q"


def test_names_of_models_in_any_case():
    from dmrifit.engine.models import resolve_model

    assert resolve_model("ADC") is MODELS["adc"]
