"""The steps of a fit, run here as plain Python on one lane."""

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.layout import UNROLL, Fields, form

MODEL = MODELS["t2-ivim-kurtosis"]
OUTER = {"plain": np.positive, "log": np.exp, "inverse": np.reciprocal}
INNER = {"plain": np.positive, "log": np.log, "inverse": np.reciprocal}


def lane_of(steps, **fields):
    """Make a lane of numbers by the names of its fields; those that are left out are zero."""
    lane = Fields(steps.layout, np.zeros(steps.layout.n_rows))
    for name, values in fields.items():
        if np.ndim(values) == 0:
            setattr(lane, name, values)
        elif np.ndim(values) == 2:
            for pair in steps.layout.pairs:
                getattr(lane, name)[pair] = values[pair]
        else:
            for i, value in enumerate(values):
                getattr(lane, name)[i] = value
    return lane


def vector(field, n):
    return np.array([field[i] for i in range(n)])


def matrix(field, n):
    return np.array([[field[i, j] for j in range(n)] for i in range(n)])


POWERS = SignalModel.from_expression(
    "S0*sqrt(a)*(1 + b*D)**(-2)*exp(-te/T2)/a**1.5",
    [
        Parameter("S0", "signal", 0, np.inf),
        Parameter("a", "", 0.1, 4),
        Parameter("D", "µm²/ms", 0.3, 3),
        Parameter("T2", "ms", 20, 200),
    ],
    name="powers",
)


@pytest.mark.parametrize(
    ("model", "truth"),
    [
        (MODELS["adc"], [1.4, 1.1]),
        (MODELS["ivim"], [1.4, 0.2, 15.0, 1.1]),
        (MODEL, [1.4, 0.2, 15.0, 190.0, 1.1, 0.8, 70.0]),
        (POWERS, [1.4, 0.7, 1.1, 80.0]),
    ],
    ids=["adc", "ivim", "t2-ivim-kurtosis", "powers"],
)
def test_signals_and_derivatives_are_those_of_the_model(model, truth):
    forms = [form(parameter) for parameter in model.parameters]
    assert tuple(forms) == compiler.load(model).FORMS
    inner = np.array([INNER[form](value) for form, value in zip(forms, truth, strict=True)])
    protocol = Protocol(1000 * B, TE if model.needs_te else None)

    def predicted(q):
        outer = [OUTER[form](value) for form, value in zip(forms, q, strict=True)]
        return model.signal(outer, protocol)[0]

    check_sums(model, inner, predicted, high=np.full(len(truth), 1e3), turn_up=np.inf)


@pytest.mark.parametrize(("d", "share"), [(1.1, 0.5), (0.4, 1.0)])
def test_a_limited_kurtosis_moves_with_the_diffusivity(d, share):
    """K is its inner coordinate times 1.65/(3·D), a half at D = 1.1, where that is below one."""
    model, inner = MODELS["kurtosis"], np.array([1.4, d, 1.9])
    assert share == pytest.approx(min(1, 1.65 / (3 * d)))

    def predicted(q):
        kurtosis = q[2] * min(1, 1.65 / (3 * q[1]))
        return q[0] * np.exp(-B * q[1] + (B * q[1]) ** 2 * kurtosis / 6)

    check_sums(model, inner, predicted, high=np.array([1e3, 1e3, 3.0]), turn_up=1.65)


B, TE, MEASURED = np.array([0.2, 0.7, 1.3]), np.array([60.0, 90.0, 120.0]), np.array([0.5, 0.3, 0.2])


def check_sums(model, inner, predicted, *, high, turn_up):
    """Compare sums over three measurements with finite differences in inner coordinates."""
    kernel, n = compiler.load(model), len(inner)
    steps = np.diag(1e-6 * np.abs(inner))
    columns = [(predicted(inner + step) - predicted(inner - step)) / (2 * step.sum()) for step in steps]
    jacobian, residual = np.stack(columns, axis=1), MEASURED - predicted(inner)
    lane = lane_of(kernel.STEPS, T=inner, HI=high)
    s = np.zeros(2 * UNROLL + 2)
    s[2 * UNROLL] = turn_up
    kernel.STEPS.begin(lane, s, None, None, None)
    tables = {}
    for u in range(UNROLL):
        kernel.STEPS.tabulate_b(lane, [B[u]], None, None, {1: tables.setdefault(1 + 2 * u, {})})
        kernel.STEPS.tabulate_te(lane, [TE[u]], None, None, {1: tables.setdefault(2 + 2 * u, {})})
        s[2 * u], s[2 * u + 1] = B[u], TE[u]
    kernel.STEPS.accumulate(lane, s, MEASURED, np.ones(3), tables)
    kernel.STEPS.chain(lane, s, None, None, None)
    assert pytest.approx(residual @ residual, rel=1e-12) == lane.CT
    np.testing.assert_allclose(vector(lane.GT, n), jacobian.T @ residual, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(matrix(lane.MT, n), jacobian.T @ jacobian, rtol=1e-5, atol=1e-9)


def drawn(n, seed):
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(n + 4, n))
    return jacobian.T @ jacobian, rng.normal(size=n)


def step_of(model, **fields):
    """Take a step of a lane; returns the lane."""
    steps = compiler.load(model).STEPS
    lane = lane_of(steps, **fields)
    steps.step(lane, np.full(2 * UNROLL + 2, 1e-9), None, None, None)
    return lane


def test_a_step_inside_the_bounds_is_the_damped_one_of_linear_algebra():
    square, gradient = drawn(4, 0)
    low, high = np.full(4, -1e3), np.full(4, 1e3)
    lane = step_of(MODELS["ivim"], LO=low, HI=high, G=gradient, LAM=0.3, C=50.0, GB=np.inf, M=square)
    step = np.linalg.solve(square + 0.3 * np.diag(np.diag(square)), gradient)
    np.testing.assert_allclose(vector(lane.T, 4), step, rtol=1e-10)
    # What the quadratic form promises: 2·g'd − d'Md.
    assert pytest.approx(2 * gradient @ step - step @ square @ step) == lane.P1
    assert lane.END == 0
    assert lane.LAM == 0.3


def test_a_parameter_that_the_step_carries_out_is_put_on_its_bound_and_the_rest_solved_again():
    square, gradient = drawn(4, 1)
    whole_step = np.linalg.solve(square + 0.1 * np.diag(np.diag(square)), gradient)
    high = np.full(4, 1e3)
    high[2], low = 0.5 * whole_step[2], np.full(4, -1e3)
    assert whole_step[2] > 0
    lane = step_of(MODELS["ivim"], LO=low, HI=high, G=gradient, LAM=0.1, C=50.0, GB=np.inf, M=square)
    free = [0, 1, 3]
    inner = square[np.ix_(free, free)]
    right = gradient[free] - square[free, 2] * high[2]
    expected = np.linalg.solve(inner + 0.1 * np.diag(np.diag(inner)), right)
    np.testing.assert_allclose(vector(lane.T, 4)[free], expected, rtol=1e-10)
    assert lane.T[2] == high[2]


def test_a_parameter_on_a_bound_that_the_gradient_pushes_against_stays():
    square, gradient = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([1.0, -1.0])
    lane = step_of(MODELS["adc"], LO=[-9, 0], HI=[9, 9], G=gradient, LAM=1.0, C=50.0, GB=np.inf, M=square)
    np.testing.assert_allclose(vector(lane.T, 2), [1 / 4, 0])


@pytest.mark.parametrize(("trial", "better"), [(3.0, True), (5.0, False)])
def test_only_a_better_trial_is_accepted(trial, better):
    steps = compiler.load(MODELS["adc"]).STEPS
    here = {"C": 4.0, "SQ": 10.0, "Q": [1, 2], "G": [5, 6], "M": np.array([[1, 2], [2, 3]])}
    there = {"C": trial, "SQ": 11.0, "Q": [3, 4], "G": [7, 8], "M": np.array([[4, 5], [5, 6]])}
    trials = dict(zip(("CT", "SQT", "T", "GT", "MT"), there.values(), strict=True))
    lane = lane_of(steps, P1=1.0, LAM=0.1, **here, **trials)
    steps.accept(lane, None, None, None, None)
    expected = there if better else here
    assert (expected["C"], expected["SQ"]) == (lane.C, lane.SQ)
    assert (vector(lane.Q, 2).tolist(), vector(lane.G, 2).tolist()) == (expected["Q"], expected["G"])
    np.testing.assert_array_equal(matrix(lane.M, 2), expected["M"])
    # A gain as promised lowers the damping to a fifth; a trial that is worse raises it sixfold.
    assert pytest.approx(0.02 if better else 0.6) == lane.LAM
    assert lane.IT == 1


def test_variances_are_the_diagonal_of_the_inverse_over_the_free_parameters():
    steps = compiler.load(MODELS["ivim"]).STEPS
    square, _ = drawn(4, 3)
    bounds = {"Q": [0, 0, 5, 0], "LO": np.full(4, -1), "HI": [1, 1, 5, 1]}
    lane = lane_of(steps, M=square, **bounds)
    steps.variances(lane, None, None, None, None)
    free = [0, 1, 3]
    expected = np.diag(np.linalg.inv(square[np.ix_(free, free)]))
    np.testing.assert_allclose(vector(lane.D, 4)[free], expected, rtol=1e-10)
    assert lane.D[2] == 0
    square[3] = square[:, 3] = 0  # the signal does not depend on the last one
    lane = lane_of(steps, M=square, **bounds)
    steps.variances(lane, None, None, None, None)
    assert lane.D[3] == 1e300


@pytest.mark.parametrize(("d", "share"), [(1.3, 0.4), (0.5, 1.0)])
def test_sums_at_the_limit_become_those_of_the_kurtosis_itself(d, share):
    """K is κ·c/D with κ the inner coordinate, so that ∂K/∂D = −K/D and ∂K/∂κ = c/D."""
    steps = compiler.load(MODELS["kurtosis"]).STEPS
    rng = np.random.default_rng(2)
    inner = 2.1
    plain = rng.normal(size=(9, 3))  # derivatives by S0, D and K
    moved = plain.copy()
    if share < 1:
        moved[:, 1] -= plain[:, 2] * inner * share / d
        moved[:, 2] *= share
    # K = κ·turn_up/(D·high) below the bound.
    s = np.full(2 * UNROLL + 1, 0.4 * 1.3 * 3.0)
    lane = lane_of(steps, Q=[1.0, d, inner], HI=[9, 9, 3.0], M=moved.T @ moved)
    steps.leave_limit(lane, s, None, None, None)
    assert pytest.approx(share) == lane.CT
    np.testing.assert_allclose(matrix(lane.M, 3), plain.T @ plain, rtol=1e-10)
