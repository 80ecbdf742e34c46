"""Signal models that users write as functions."""

import inspect
import math
import pickle
import warnings
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
    return S0 * math.exp(-total) * (1 + erf(0.0 * b))


def test_a_function_of_arithmetic_becomes_an_expression():
    built_in = MODELS["t2-ivim-kurtosis"]
    model = SignalModel.from_function(relaxing, built_in.parameters, name="mine")
    protocol = Protocol.preset("cohort1")
    truth = np.array([[100.0, 0.1, 20, 200, 1.0, 0.8, 70], [50, 0.3, 60, 180, 0.6, 0.4, 45]])
    assert model.expression
    assert not model.source
    assert model.needs_te
    np.testing.assert_allclose(model.signal(truth, protocol), built_in.signal(truth, protocol), rtol=1e-12)


@pytest.mark.parametrize("formula", ["S0*exp(-b*D) if b < 9 else S0", "S0*exp(-D*(b if b < 9 else 9))"])
@pytest.mark.parametrize(
    "options",
    [{"weights": np.linspace(1, 2, 7)}, {"likelihood": "rician", "sigma": 2.0}]
    + [{"method": name} for name in ("map", "ols", "wls")],
)
def test_a_condition_that_always_holds_changes_no_fit(formula, options):
    plain = SignalModel.from_expression("S0*exp(-b*D)", [S0, D], name="plain")
    branched = SignalModel.from_expression(formula, [S0, D], name="branched")
    rng = np.random.default_rng(412)
    truth = np.column_stack([rng.uniform(50, 100, 50), rng.uniform(0.5, 2, 50)])
    signals = plain.signal(truth, PROTOCOL) + rng.normal(0, 1, (50, 7))
    if formula.endswith("else S0") and options.get("method") in ("ols", "wls"):
        with pytest.raises(ValueError, match="logarithm"):
            fit_voxels(signals, PROTOCOL, model=branched, **options)
        return
    expected, found = (fit_voxels(signals, PROTOCOL, model=model, **options) for model in (plain, branched))
    np.testing.assert_allclose(found.parameters, expected.parameters, rtol=1e-4)


def test_a_formula_without_a_value_within_its_bounds_fits_nothing():
    model = SignalModel.from_expression("S0*exp(-b*D)*log(-a)", [S0, D, A], name="undefined")
    result = fit_voxels([[9, 8, 7, 6, 5, 4, 3]], PROTOCOL, model)
    assert result.status.tolist() == [FitStatus.NOT_FITTED]


@pytest.mark.parametrize("function", [stretched, njit(stretched)])
def test_a_function_with_branches_becomes_an_expression_and_fits(function):
    model = SignalModel.from_function(function, [S0, D, A], name="stretched")
    assert model.expression
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


def test_bounds_beyond_the_largest_number_give_no_warning():
    model = SignalModel.from_function(stretched, [S0, D, A], name="stretched")
    signals = [[1e38, 9e37, 8e37, 6e37, 5e37, 4e37, 3e37]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit_voxels(signals, PROTOCOL, model, bounds={"a": (-1e308, 1e308)}, regularization=1e300)
    assert len(result.parameters) == 1


def test_functions_of_math_and_numbers_around_the_function_are_copied_when_the_model_is_made(caplog):
    model = SignalModel.from_function(looped, [S0, D], name="looped")
    assert "math.erf" in model.source
    (record,) = caplog.records
    line = inspect.getsourcelines(looped)[1] + 4
    assert f"math.erf in line {line}" in record.getMessage()
    assert "many times longer than a formula" in record.getMessage()
    expected = 100 * np.exp(-PROTOCOL.b / 1000 * 0.9 * (1 + 1 / 2 + 1 / 3))
    np.testing.assert_allclose(model.signal([[100.0, 0.9]], PROTOCOL), [expected], rtol=1e-12)
    assert pickle.loads(pickle.dumps(model)) == model
    factor = 2.0

    def scaled(b, S0, D):
        return S0 * math.exp(-factor * b * D)

    model = SignalModel.from_function(scaled, [S0, D], name="scaled")
    factor = 3.0
    np.testing.assert_allclose(model.signal([[10, 1]], PROTOCOL), [10 * np.exp(-2 * PROTOCOL.b / 1000)], rtol=1e-12)

    def based(b, S0, D):
        return S0 * math.log(b * D + 2, 2)

    model = SignalModel.from_function(based, [S0, D], name="based")
    np.testing.assert_allclose(model.signal([[10, 1]], PROTOCOL), [10 * np.log2(PROTOCOL.b / 1000 + 2)], rtol=1e-12)


def powers(b, S0, D):
    total, sign = 0.0, 1
    for i in range(1, 4):
        sign = -sign
        if i % 2 == 1:
            total += pow(b * D, i) / (i + 1)
        elif not sign < 0:
            total += sign * np.square(b * D)
    return S0 * math.exp(-np.clip(total, 0, 3)) + np.where(b > 1, 0.0, 1.0) * (b > 2) * math.pi


def test_loops_of_fixed_length_and_variables_of_one_branch_become_an_expression():
    model = SignalModel.from_function(powers, [S0, D], name="powers")
    assert model.expression
    protocol = Protocol([0, 300, 900, 1500, 2500])
    expected = [powers(b, 100.0, 0.9) for b in (protocol.b / 1000).tolist()]
    np.testing.assert_allclose(model.signal([[100.0, 0.9]], protocol), [expected], rtol=1e-12)
    model = SignalModel.from_function(half_set, [S0, D], name="half")
    assert model.expression
    expected = [half_set(b, 100.0, 0.9) for b in (PROTOCOL.b / 1000).tolist()]
    np.testing.assert_allclose(model.signal([[100.0, 0.9]], PROTOCOL), [expected], rtol=1e-12)


def doubling(b, S0, D):
    x = b * D
    for _ in range(60):
        x = x + x
    return S0 * math.exp(-x)


def unset(b, S0, D):
    if b > 0:
        x = D
    return S0 * math.exp(-b * x)


def half_set(b, S0, D):
    if b > 0:
        x, n = D, 0
        while n < 3:
            n += 1
            if n == 2:
                break
    return S0 * math.exp(-b * x) * n / 2 if b > 0 else S0


def until(b, S0, D):
    x = b * D
    while x > 3:
        x = x - 1
    return S0 * math.exp(-x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (doubling, "a formula of more than 4096 characters in line"),
        (unset, "'x' where it is not associated with a value in line"),
        (until, "more than 16 ways through its branches"),
    ],
)
def test_what_no_formula_holds_is_called(function, reason, caplog):
    assert SignalModel.from_function(function, [S0, D], name="called").source
    assert reason in caplog.text


def helper(x):
    return math.exp(-x)


def needs_helper(b, S0, D):
    return S0 * helper(b * D)


def wrong_order(b, D, S0):
    return S0 * math.exp(-b * D)


def with_default(b, S0, D=1.0):
    return S0 * math.exp(-b * D)


def importing(b, S0, D):
    from math import exp

    return S0 * exp(-b * D)


def silent(b, S0, D):
    S0 * math.exp(-b * D)


def around():
    table = [1.0, 2.0]

    def closed(b, S0, D):
        return S0 * math.exp(-b * D * table[0])

    return closed


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (importing, r"importing, line \d+: 'from math import exp' cannot stand in a signal model"),
        (silent, "silent returns no number"),
        (around(), r"closed uses table \(line \d+\), which is neither"),
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
