"""Formulas in kernels: their form, powers and roots, and conditions with their derivatives and edges."""

import linecache
import math
import textwrap

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

import dmrifit
from dmrifit import MODELS, Parameter, Protocol, SignalModel
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.formula import Formula, source

MODEL = MODELS["t2-ivim-kurtosis"]
S0, F = Parameter("S0", "signal", 0, np.inf), Parameter("f", "", 0, 1)
D1, D2 = Parameter("D1", "µm²/ms", 0, 100), Parameter("D2", "µm²/ms", 0.1, 3)


def test_the_form_of_a_formula_is_recognized_and_powers_roots_and_logarithms_fit_without_an_amplitude():
    two_parts, one_part = compiler.load(MODELS["ivim"]), compiler.load(MODELS["adc"])
    assert (two_parts.MIXTURE, two_parts.AMPLITUDE, two_parts.FIRST) == (1, 0, (2,))
    assert (one_part.MIXTURE, one_part.AMPLITUDE) == (-1, 0)
    assert compiler.load(MODEL).FIRST == (2, 3)
    assert compiler.load(MODEL).FORMS == ("plain", "plain", "log", "inverse", "plain", "plain", "inverse")
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


PARAMETERS = [
    Parameter("S0", "signal", 0, np.inf),
    Parameter("f", "", 0, 1),
    Parameter("D", "µm²/ms", 0.1, 5),
    Parameter("T2", "ms", 20, 140),
]
T2IK = MODELS["t2-ivim-kurtosis"]


def function_of(text, name="generated"):
    """Define a function whose source can be read, as in a notebook."""
    path = f"<generated {hash(text)}>"
    linecache.cache[path] = len(text), None, text.splitlines(keepends=True), path
    scope = {"math": math, "np": np}
    exec(compile(text, path, "exec"), scope)
    return scope[name]


def signal_and_slopes(model, x, b, te):
    """Compute with the formula of a kernel, at its coordinates."""
    kernel, x = compiler.load(model), np.array(x)
    b, te = np.float64(b), np.float64(te)
    tables = np.exp(kernel.exponents_of_b(x, b)), np.exp(kernel.exponents_of_te(x, te))
    with np.errstate(all="ignore"):
        signal, *slopes = map(float, kernel.evaluate_signal(x, b, te, *tables))
    return signal, slopes


numbers = st.sampled_from(["0", "0.3", "1", "2.5", "b * D", "te / T2", "f", "x", "y"])
terms = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["min", "max", "np.minimum", "np.maximum"]), inner, inner).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        ),
        inner.map(lambda term: f"abs({term})"),
        inner.map(lambda term: f"math.exp(-{term})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if b * D > {t[1]} else {t[2]})"),
    ),
    max_leaves=3,
)
comparisons = st.tuples(terms, st.sampled_from(["<", "<=", ">", ">=", "!="]), terms).map(" ".join)
conditions = st.one_of(
    comparisons,
    st.tuples(comparisons, st.sampled_from(["and", "or"]), comparisons).map(" ".join),
    comparisons.map(lambda text: f"not {text}"),
    st.just("0.2 < f <= 0.8"),
)
assignments = st.tuples(st.sampled_from(["x = ", "y = ", "y += "]), terms).map("".join)
ends = terms.map(lambda term: f"return S0 * (D / T2 + f) * math.exp(-abs({term}))")


@st.composite
def statements(draw):
    """Write a branch or a loop of two or three lines."""
    first, second, third = draw(assignments), draw(assignments), draw(ends)
    test, other = draw(conditions), draw(conditions)
    return draw(
        st.sampled_from(
            [
                f"if {test}:\n    {first}\nelse:\n    {second}",
                f"if {test}:\n    {first}\nelif {other}:\n    {second}\nelse:\n    pass",
                f"if {test}:\n    {third}\n{first}",
                f"for i in range(2):\n    {first}\n    if i == 1:\n        {second}",
                f"large = {test}\nif large:\n    {first}",
            ]
        )
    )


# Shrinking would take minutes, for sympy reads every example.
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(body=st.lists(statements(), min_size=1, max_size=2), end=ends, seed=st.integers(0, 99))
def test_branches_give_the_signals_and_slopes_of_the_function(body, end, seed):
    lines = ["x, y = f, b * D", *body, end]
    text = "def generated(b, te, S0, f, D, T2):\n" + textwrap.indent("\n".join(lines), "    ")
    function = function_of(text)
    model = SignalModel.from_function(function, PARAMETERS, name="generated")
    assume(model.expression)
    rng = np.random.default_rng(seed)
    b, te = rng.uniform(0.1, 2), rng.uniform(50, 120)
    outer = np.array([1.0, 0.0, 0.1, 20]) + rng.uniform(size=4) * [1, 1, 3, 100]
    expected = function(b, te, *outer.tolist())
    protocol = Protocol([1000 * b], te)
    np.testing.assert_allclose(model.signal(outer, protocol)[0, 0], expected, rtol=1e-9, atol=1e-12)
    x = outer * [1, 1, 1, 0] + [0, 0, 0, 1 / outer[3]]
    signal, slopes = signal_and_slopes(model, x, b, te)
    assert signal == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for i in range(4):
        estimates = []
        for share in (1e-5, 1e-6):
            step = np.zeros(4)
            step[i] = share * x[i]
            ends = [y * [1, 1, 1, 0] + [0, 0, 0, 1 / y[3]] for y in (x - step, x + step)]
            low, high = (function(b, te, *y.tolist()) for y in ends)
            estimates.append((high - low) / (2 * step[i]))
        # At a kink or a jump the two estimates differ, and there is no slope to compare.
        if np.isclose(*estimates, rtol=1e-4, atol=1e-6):
            scale = abs(expected / x[i]) + 1e-6
            assert slopes[i] == pytest.approx(estimates[1], rel=1e-4, abs=1e-4 * scale)


def switched(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    fast = 0.0
    if f > 0 and T2v > 0:
        fast = f * math.exp(-b * Dv - te / T2v)
    return S0 * (fast + (1 - f) * math.exp(-x + K * x**2 / 6 - te / T2t))


def returning(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    tissue = S0 * (1 - f) * math.exp(-b * Dt + max(0.0, K) * (b * Dt) ** 2 / 6 - te / T2t)
    if f <= 0 or f == 0:
        return tissue
    return tissue + S0 * f * math.exp(-b * Dv - te / T2v)


def limited(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    tissue = math.exp(-b * Dt + K * (b * Dt) ** 2 / 6 - te / (T2t if T2t < 140 else 140))
    fast = math.exp(-b * (4 if Dv <= 4 else Dv) - te / T2v)
    return S0 * ((1 - f) * tissue + f * fast)


@pytest.mark.parametrize("function", [switched, returning, limited])
def test_the_branch_of_the_edge_has_the_slope_of_the_inside(function):
    model = SignalModel.from_function(function, T2IK.parameters, name="edges")
    # f = 0, Dv = 4, K = 0 and T2t = 140 lie on the edge, where logarithms and inverses round.
    x = [1.2, 0.0, 4 * (1 - 1e-15), 1 / 200, 1.1, 0.0, (1 - 1e-15) / 140]
    signal, slopes = signal_and_slopes(model, x, 0.4, 93.0)
    expected, built_in = signal_and_slopes(T2IK, x, 0.4, 93.0)
    assert signal == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(slopes, built_in, rtol=1e-10, atol=1e-15)
    assert "MIXTURE = 1\n" in source(model)


def test_jumps_at_the_edge_and_bends_inside_stay_and_conditions_hold_beyond_the_box():
    jumping = SignalModel.from_expression("S0*exp(-b*D)*(1 if f > 0 else 0.5)*(1 + f)", PARAMETERS[:3], name="jumping")
    assert signal_and_slopes(jumping, [1.0, 0.0, 1.0], 0.0, 0.0) == (0.5, [0.5, 0.5, 0.0])
    bent = SignalModel.from_expression("S0*exp(-b*D)*(1 if f > 0.5 else 2*f)", PARAMETERS[:3], name="bent")
    assert signal_and_slopes(bent, [1.0, 0.5, 1.0], 0.0, 0.0)[1][1] == 2.0
    assert signal_and_slopes(bent, [1.0, 0.6, 1.0], 0.0, 0.0)[1][1] == 0.0
    model = SignalModel.from_expression(
        "S0*((f*exp(-b*D) if f > 0 else 0) + (1 - f)*exp(-b))", PARAMETERS[:3], name="wide"
    )
    b, x = 0.7, [1.0, -0.1, 2.0]
    expected = 1.1 * math.exp(-b)
    assert signal_and_slopes(model, x, b, 0.0)[0] == pytest.approx(expected, rel=1e-12)
    assert model.signal(x, Protocol([1000 * b]))[0, 0] == pytest.approx(expected, rel=1e-12)


def test_exponentials_within_exponentials_are_not_tabulated():
    model = SignalModel.from_expression("S0*exp(-b*D*exp(-te/T2)*exp(-b*f))", PARAMETERS, name="nested")
    signal, _ = signal_and_slopes(model, [2.0, 0.5, 1.1, 1 / 70], 0.7, 90.0)
    expected = 2 * math.exp(-0.7 * 1.1 * math.exp(-90 / 70) * math.exp(-0.35))
    assert signal == pytest.approx(expected, rel=1e-12)


def test_roots_of_squares_have_the_slope_of_an_absolute_value():
    model = SignalModel.from_expression("S0*exp(-sqrt((b*D - 1)**2))", [PARAMETERS[0], PARAMETERS[2]], name="root")
    for d, sign in ((0.5, 1.0), (2.0, -1.0)):
        signal, slopes = signal_and_slopes(model, [1.0, d], 1.0, 0.0)
        assert slopes[1] == pytest.approx(sign * signal)
