"""Intervals of models that are not one formula, and which coordinates are probed."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from dmrifit import MODELS, Parameter, SignalModel, fit_voxels
from dmrifit.engine.kernels import interval_formula
from dmrifit.engine.protocol import Protocol

S0, D = Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 5)


def called(b, S0, D):
    total = 0.0
    while total < 1.0:
        total += 1.0
    return total * S0 * math.exp(-b * D)


MADE = {
    "function": SignalModel.from_function(called, [S0, D], name="called"),
    "branch": SignalModel.from_expression("S0*exp(-b*D) if b < 1.5 else D*S0", [S0, D], name="branch"),
}


@pytest.mark.parametrize("name", MADE)
def test_a_called_function_and_a_branch_have_the_intervals_of_the_formula(name):
    protocol = Protocol(np.repeat([0.0, 400, 800], 5))
    formula = SignalModel.from_expression("S0*exp(-b*D)", [S0, D], name="line")
    signals = formula.signal([[100.0, 1.1]], protocol) + np.random.default_rng(3).normal(0, 1, (50, 15))
    ours = fit_voxels(signals, protocol, MADE[name]).intervals()
    np.testing.assert_allclose(ours, fit_voxels(signals, protocol, formula).intervals(), rtol=1e-5)


def test_a_line_whose_sides_do_not_bend_has_the_intervals_of_linear_regression():
    protocol = Protocol(np.linspace(0, 2000, 9))
    numbers = [Parameter(name, "", -np.inf, np.inf) for name in ("offset", "slope")]
    line = SignalModel.from_expression("offset + slope*b", numbers, name="straight")
    signals = line.signal([[100.0, 30.0]], protocol) + np.random.default_rng(6).normal(0, 1, (20, 9))
    result = fit_voxels(signals, protocol, line)
    reach = stdtrit(7, 0.975) * result.standard_errors
    expected = np.stack([result.parameters - reach, result.parameters + reach], axis=-1)
    np.testing.assert_allclose(result.intervals(), expected, rtol=1e-6)


def test_shares_and_plain_parameters_are_probed():
    assert "PROBED = (False, True, False, False, True, True, False)" in interval_formula.source(MODELS["t2-ivim-kurtosis"])
