"""What the form of a formula tells, and formulas of powers, roots and conditions."""

import numpy as np
import pytest

import dmrifit
from dmrifit import MODELS, Parameter, Protocol, SignalModel
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.formula import Formula

MODEL = MODELS["t2-ivim-kurtosis"]
S0, F = Parameter("S0", "signal", 0, np.inf), Parameter("f", "", 0, 1)
D1, D2 = Parameter("D1", "µm²/ms", 0, 100), Parameter("D2", "µm²/ms", 0.1, 3)


def test_the_form_of_a_formula_is_recognized():
    two_parts, one_part = compiler.load(MODELS["ivim"]), compiler.load(MODELS["adc"])
    assert (two_parts.MIXTURE, two_parts.AMPLITUDE, two_parts.FIRST) == (1, 0, (2,))
    assert (one_part.MIXTURE, one_part.AMPLITUDE) == (-1, 0)
    assert compiler.load(MODEL).FIRST == (2, 3)
    assert compiler.load(MODEL).FORMS == ("plain", "plain", "log", "inverse", "plain", "plain", "inverse")


def test_powers_roots_and_logarithms_fit_without_an_amplitude():
    model = SignalModel.from_expression(
        "(1 + b*D)**(-n)*sqrt(te)/sqrt(te) + (log(1 + te) - log(te + 1))*D**3 + (b*D)**n*0",
        [Parameter("D", "µm²/ms", 0.1, 5), Parameter("n", "", 0.5, 4)],
        name="power law",
    )
    kernel = compiler.load(model)
    assert (kernel.AMPLITUDE, kernel.MIXTURE) == (-1, -1)
    protocol = Protocol([0, 200, 500, 800, 1200], te=80)
    truth = np.array([[1.2, 1.5], [0.8, 2.5]])
    result = dmrifit.fit_voxels(model.signal(truth, protocol), protocol, model)
    np.testing.assert_allclose(result.parameters, truth, rtol=1e-6)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("S0*(f*exp(-b*D1) + (1 - f)*exp(-b*D2))", (1, 0, (2,))),
        ("S0*((f*exp(-b*D1) if f > 0 else 0) + (1 - f)*exp(-b*D2))", (1, 0, (2,))),
        ("S0*(f*exp(-b*D1) + (1 - f)*exp(-b*D2*(1 + D1)))", (-1, 0, ())),
        ("S0*(f**2*exp(-b*D1) + (1 - f)*exp(-b*D2))", (-1, 0, ())),
        ("S0*exp(-b*D1)*(1 if f > 0.5 else 2*f) + S0*0*D2", (-1, 0, ())),
        ("S0**2*exp(-b*D1)*f*D2", (-1, -1, ())),
        ("(S0 + 1)*f*D1*D2", (-1, -1, ())),
        ("S0*(f*exp(-b*D1) + (1 - f)*exp(-b*D2)) if D1 < 50 else S0*(f*D1 + D2)", (-1, 0, ())),
    ],
)
def test_mixtures_are_sums_linear_in_a_share_of_parts_without_common_parameters(expression, expected):
    formula = Formula(SignalModel.from_expression(expression, [S0, F, D1, D2], name="form"))
    assert (formula.mixture, formula.amplitude, formula.first) == expected
