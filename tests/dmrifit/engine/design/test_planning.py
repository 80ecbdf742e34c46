"""What a protocol will not tell: limits of errors and sentences before a scan."""

import numpy as np
import pytest

from dmrifit import MODELS, Protocol, fit_voxels, protocol_precision
from dmrifit.engine.design.planning import largest_error

T2IK = MODELS["t2-ivim-kurtosis"]
COHORT1 = Protocol.preset("cohort1")
TISSUE = [1.0, 0.12, 20, 200, 1.2, 0.8, 80]


def advice(protocol, model, tissue, sigma, **options):
    table = protocol_precision(protocol, model, tissue, sigma, **options)
    return dict(zip(table["parameter"], table["advice"], strict=True))


def test_the_largest_error_is_that_of_the_kind_of_parameter():
    limits = {p.name: float(largest_error(p, v)) for p, v in zip(T2IK.parameters, TISSUE, strict=True)}
    assert limits == {"S0": 0.5, "f": 0.05, "Dv": 10, "T2v": 100, "Dt": 0.6, "K": 0.3, "T2t": 40}
    adc = MODELS["adc"].parameters[1]
    np.testing.assert_array_equal(largest_error(adc, [0.0, 2.0]), [0.02, 1.0])
    # A value of 0 within the box is no reason for doubt.
    change = MODELS["t2-ivim-relative"].parameters[-1]
    assert (change.name, change.low, change.high) == ("dR2", -0.05, 0.05)
    np.testing.assert_allclose(largest_error(change, [0.0, 0.02]), [0.0025, 0.01])


def test_sentences_name_parameter_reason_and_remedy():
    sentences = advice(COHORT1, T2IK, TISSUE, 1 / 100)
    assert sentences["T2v"] == (
        "T2v is not determined: SD 420 ms at 200 ms (150–250 ms searched); fix it, or measure "
        "contrasts that show T2v."
    )
    assert sentences["f"] == (
        "f is uncertain: SD 0.15 at 0.12; average 9 voxels or repeats, or choose a simpler model."
    )
    assert sentences["T2t"] == sentences["S0"] == ""
    assert advice(COHORT1, T2IK, TISSUE, 1 / 100, fixed=("T2v",))["T2v"] == ""


def test_the_averages_that_a_sentence_asks_for_are_enough():
    text = advice(COHORT1, T2IK, TISSUE, 1 / 100)["f"]
    n = int(text.split("average ")[1].split()[0])
    assert advice(COHORT1, T2IK, TISSUE, 1 / 100 / np.sqrt(n))["f"] == ""
    assert advice(COHORT1, T2IK, TISSUE, 1 / 100 / np.sqrt(n - 1))["f"] != ""


def test_b_values_too_high_for_a_kurtosis_are_named():
    protocol = Protocol(np.arange(0, 2801, 200))
    assert "b·D = 8.4" in advice(protocol, "kurtosis", [1, 3.0, 0.0], 1 / 50)["K"]
    assert "above 1667 s/mm²" in advice(protocol, "kurtosis", [1, 3.0, 0.0], 1 / 50)["K"]
    at_cap = advice(protocol, "kurtosis", [1, 1.5, 1.0], 1 / 50)["K"]
    assert "turning point 3/K, which is at b = 2000 s/mm²" in at_cap
    assert set(advice(protocol, "kurtosis", [1, 0.8, 0.9], 1 / 50).values()) == {""}


@pytest.mark.parametrize("snr", [25, 300])
def test_the_plan_and_the_fit_say_the_same(snr):
    """Where the plan finds nothing wrong, neither does the fit, and the other way round."""
    protocol = Protocol([0, 10, 20, 40, 80, 150, 300, 500, 800])
    tissue = [100.0, 0.15, 20, 1.0]
    planned = advice(protocol, "ivim", tissue, 100 / snr)
    clean = MODELS["ivim"].signal([tissue], protocol)
    noise = np.random.default_rng(5).normal(0, 100 / snr, (400, len(protocol)))
    result = fit_voxels(clean + noise, protocol, "ivim", method="nlls")
    for j, name in enumerate(result.names):
        is_doubted = result.doubt[:, j].mean() > 0.5
        assert is_doubted == bool(planned[name]), name
