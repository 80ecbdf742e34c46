"""Formulas of intervals: derivatives against differences, for formulas, branches and functions."""

import math

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, SignalModel, fit_voxels
from dmrifit.engine.kernels import compiler, interval_formula
from dmrifit.engine.protocol import Protocol

S0, D = Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 5)


def called(b, S0, D):
    total = 0.0
    while total < 1.0:
        total += 1.0
    return total * S0 * math.exp(-b * D)


MADE = {
    "formula": MODELS["t2-ivim-kurtosis"],
    "branch": SignalModel.from_expression("S0*exp(-b*D) if b < 1.5 else S0*exp(-1.5*D)", [S0, D], name="branch"),
}


@pytest.mark.parametrize("name", MADE)
def test_derivatives_are_those_of_the_signal(name):
    model = MADE[name]
    kernel = compiler.load(model, "intervals")
    point = np.array([100.0, 0.2, 20, 200, 1.1, 0.7, 80])[: len(model.names)]
    if name == "branch":
        point = np.array([100.0, 1.2])
    slopes = np.empty(len(point))
    for b, te in ((0.0, 60.0), (0.4, 90.0), (2.0, 120.0)):
        protocol = Protocol([1000 * b] * 2, te=te)
        assert kernel.differentiate(point, b, te, slopes) == pytest.approx(model.signal(point, protocol)[0, 0])
        for j in range(len(point)):
            step = 1e-6 * point[j]
            above, below = point.copy(), point.copy()
            above[j] += step
            below[j] -= step
            rise = np.diff(model.signal([below, above], protocol)[:, 0])[0]
            assert slopes[j] == pytest.approx(rise / (2 * step), rel=1e-5, abs=1e-7)


def test_a_called_function_has_intervals_by_differences():
    protocol = Protocol(np.repeat([0.0, 400, 800], 5))
    formula = SignalModel.from_expression("S0*exp(-b*D)", [S0, D], name="line")
    signals = formula.signal([[100.0, 1.1]], protocol) + np.random.default_rng(3).normal(0, 1, (50, 15))
    model = SignalModel.from_function(called, [S0, D], name="called")
    ours = fit_voxels(signals, protocol, model).intervals()
    np.testing.assert_allclose(ours, fit_voxels(signals, protocol, formula).intervals(), rtol=1e-5)


def test_coordinates_follow_the_parameters():
    text = interval_formula.source(MODELS["t2-ivim-kurtosis"])
    # S0 amplitude, f share, Dv and both T2 inverse, Dt and K plain.
    assert "COORDINATES = (3, 1, 2, 2, 0, 0, 2)" in text
