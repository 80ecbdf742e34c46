"""Signal models that users write as functions."""

import math
import pickle
from math import erf

import numpy as np
import pytest
from numba import njit
from scipy.optimize import curve_fit

from dmrifit import MODELS, FitStatus, Parameter, Protocol, SignalModel, fit_voxels

SIX = 6.0
S0 = Parameter("S0", "signal", 0, np.inf)
D = Parameter("D", "µm²/ms", 0.1, 5)
A = Parameter("a", "", 0.3, 1)
PROTOCOL = Protocol([0, 50, 100, 300, 600, 900, 1200])


def relaxing(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    """Write the built-in as a user would."""
    q = b * Dt
    tissue = (1 - f) * np.exp(-q + K * q**2 / SIX - te / T2t)
    return S0 * (f * math.exp(-b * Dv - te / T2v) + tissue)


def stretched(b, S0, D, a):
    if b <= 0.0:
        return S0
    return S0 * math.exp(-((b * D) ** a))


def looped(b, S0, D):
    total = 0.0
    for i in range(3):
        total += b * D / (i + 1)
    return S0 * math.exp(-total) * (1 + erf(0.0))


def test_a_function_of_arithmetic_becomes_an_expression():
    built_in = MODELS["t2-ivim-kurtosis"]
    model = SignalModel.from_function(relaxing, built_in.parameters, name="mine")
    protocol = Protocol.preset("cohort1")
    truth = np.array([[100.0, 0.1, 20, 200, 1.0, 0.8, 70], [50, 0.3, 60, 180, 0.6, 0.4, 45]])
    assert model.expression
    assert not model.source
    assert model.needs_te
    np.testing.assert_allclose(model.signal(truth, protocol), built_in.signal(truth, protocol), rtol=1e-12)


@pytest.mark.parametrize("function", [stretched, njit(stretched)])
def test_a_function_with_branches_is_called_and_fits(function):
    model = SignalModel.from_function(function, [S0, D, A], name="stretched")
    assert model.source
    assert not model.needs_te
    rng = np.random.default_rng(850)
    truth = np.column_stack([rng.uniform(50, 100, 400), rng.uniform(0.5, 2, 400), rng.uniform(0.5, 0.95, 400)])
    b = PROTOCOL.b / 1000
    expected = truth[:, :1] * np.exp(-((b * truth[:, 1:2]) ** truth[:, 2:]))
    np.testing.assert_allclose(model.signal(truth, PROTOCOL), expected, rtol=1e-13)
    result = fit_voxels(expected, PROTOCOL, model)
    np.testing.assert_allclose(result.parameters, truth, rtol=1e-6)
    noisy = np.abs(expected + rng.normal(size=(400, 7)))
    result = fit_voxels(noisy, PROTOCOL, model)
    assert (result.status == FitStatus.CONVERGED).mean() > 0.8
    for i in np.flatnonzero(result.status == FitStatus.CONVERGED)[:20]:
        theirs, covariance = curve_fit(
            lambda b, s0, d, a: s0 * np.exp(-((b * d) ** a)), b, noisy[i], p0=truth[i], xtol=1e-12, ftol=1e-12
        )
        np.testing.assert_allclose(result.parameters[i], theirs, rtol=1e-4)
        np.testing.assert_allclose(result.standard_errors[i], np.sqrt(np.diag(covariance)), rtol=1e-2)


def test_loops_and_functions_of_math_are_copied():
    model = SignalModel.from_function(looped, [S0, D], name="looped")
    assert "math.erf" in model.source
    expected = 100 * np.exp(-PROTOCOL.b / 1000 * 0.9 * (1 + 1 / 2 + 1 / 3))
    np.testing.assert_allclose(model.signal([[100.0, 0.9]], PROTOCOL), [expected], rtol=1e-12)
    assert pickle.loads(pickle.dumps(model)) == model


def test_numbers_around_the_function_are_copied_when_the_model_is_made():
    factor = 2.0

    def scaled(b, S0, D):
        return S0 * math.exp(-factor * b * D)

    model = SignalModel.from_function(scaled, [S0, D], name="scaled")
    factor = 3.0
    expected = 10 * np.exp(-2 * PROTOCOL.b / 1000)
    np.testing.assert_allclose(model.signal([[10.0, 1.0]], PROTOCOL), [expected], rtol=1e-12)


def helper(x):
    return math.exp(-x)


def needs_helper(b, S0, D):
    return S0 * helper(b * D)


def wrong_order(b, D, S0):
    return S0 * math.exp(-b * D)


def with_default(b, S0, D=1.0):
    return S0 * math.exp(-b * D)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (needs_helper, "needs_helper uses helper"),
        (wrong_order, r"must be \(b, S0, D\) or \(b, te, S0, D\); got \(b, D, S0\)"),
        (with_default, "must be"),
        (lambda b, S0, D: S0 * math.exp(-b * D), "def"),
        (math.exp, "cannot be read"),
    ],
)
def test_functions_that_cannot_be_copied_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        SignalModel.from_function(function, [S0, D], name="mine")
