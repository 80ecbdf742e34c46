"""Lines of code that are written for a model, run here as plain Python on one lane."""

import ast
import math

import numpy as np
import pytest

import dmrifit
from dmrifit import MODELS, Parameter, Protocol, SignalModel
from dmrifit.engine.kernels import compiler
from dmrifit.engine.kernels.formula import source
from dmrifit.engine.kernels.layout import LANES, UNROLL, Layout, form

MODEL = MODELS["t2-ivim-kurtosis"]
FUNCTIONS = {"exp": math.exp, "sqrt": math.sqrt, "log": math.log, "l": 0}
OUTER = {"plain": np.positive, "log": np.exp, "inverse": np.reciprocal}
INNER = {"plain": np.positive, "log": np.log, "inverse": np.reciprocal}


def written(model):
    """Give the constants and lists of lines in the source of a kernel."""
    values = {}
    for statement in ast.parse(source(model)).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                values[statement.targets[0].id] = ast.literal_eval(statement.value)
            except ValueError:
                continue
    return values


def run(lines, **arrays):
    exec("\n".join(lines), {**FUNCTIONS, **arrays})


class Lane:
    """The numbers of one lane of a model, by their names in the layout."""

    def __init__(self, n):
        self.at = Layout(n)
        self.w = np.zeros(self.at.size)

    def __setitem__(self, name, values):
        for i, value in enumerate(np.atleast_1d(values)):
            self.w[(self.at.offset[name] + i) * LANES] = value

    def get(self, name, size=1):
        first = self.at.offset[name]
        return self.w[first * LANES : (first + size) * LANES : LANES].copy()

    def put_matrix(self, name, matrix):
        self[name] = [matrix[i, j] for i, j in self.at.pairs]

    def matrix(self, name):
        full = np.zeros((self.at.n, self.at.n))
        for (i, j), value in zip(self.at.pairs, self.get(name, len(self.at.pairs)), strict=True):
            full[i, j] = full[j, i] = value
        return full


def test_the_form_of_a_formula_is_recognized():
    two_parts, one_part = compiler.load(MODELS["ivim"]), compiler.load(MODELS["adc"])
    assert (two_parts.MIXTURE, two_parts.AMPLITUDE, two_parts.FIRST) == (1, 0, (2,))
    assert (one_part.MIXTURE, one_part.AMPLITUDE) == (-1, 0)
    assert compiler.load(MODEL).FIRST == (2, 3)
    assert compiler.load(MODEL).FORMS == (
        "plain",
        "plain",
        "log",
        "inverse",
        "plain",
        "plain",
        "inverse",
    )


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
    assert written(model)["FORMS"] == tuple(forms)
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


B, TE, MEASURED = (
    np.array([0.2, 0.7, 1.3]),
    np.array([60.0, 90.0, 120.0]),
    np.array([0.5, 0.3, 0.2]),
)


def check_sums(model, inner, predicted, *, high, turn_up):
    """Compare sums over three measurements with finite differences in inner coordinates."""
    code, lane, n = written(model), Lane(len(inner)), len(inner)
    steps = np.diag(1e-6 * np.abs(inner))
    columns = [
        (predicted(inner + step) - predicted(inner - step)) / (2 * step.sum()) for step in steps
    ]
    jacobian, residual = np.stack(columns, axis=1), MEASURED - predicted(inner)
    lane["T"], lane["HI"] = inner, high
    table, s = {}, np.zeros(2 * UNROLL + 2)
    s[2 * UNROLL] = turn_up
    run(code["BEGIN"], w=lane.w, s=s, t=table)
    for u in range(UNROLL):
        for name, value, row in (("TABLE_B", B[u], 1 + 2 * u), ("TABLE_TE", TE[u], 2 + 2 * u)):
            row_values = {}
            run(code[name], w=lane.w, s=[value], t=row_values)
            table |= {(row, place): number for (_, place), number in row_values.items()}
        s[2 * u], s[2 * u + 1] = B[u], TE[u]
    run(
        code["ACCUMULATE"],
        w=lane.w,
        s=s,
        y=np.repeat(MEASURED, LANES),
        v=np.ones(3 * LANES),
        t=table,
    )
    run(code["CHAIN"], w=lane.w, s=s)
    assert lane.get("CT")[0] == pytest.approx(residual @ residual, rel=1e-12)
    np.testing.assert_allclose(lane.get("GT", n), jacobian.T @ residual, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(lane.matrix("MT"), jacobian.T @ jacobian, rtol=1e-5, atol=1e-9)


def drawn(n, seed):
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(n + 4, n))
    return jacobian.T @ jacobian, rng.normal(size=n)


def test_a_step_inside_the_bounds_is_the_damped_one_of_linear_algebra():
    code, lane = written(MODELS["ivim"]), Lane(4)
    matrix, gradient = drawn(4, 0)
    lane["Q"], lane["LO"], lane["HI"] = np.zeros(4), np.full(4, -1e3), np.full(4, 1e3)
    lane["G"], lane["LAM"], lane["C"], lane["GB"] = gradient, 0.3, 50.0, np.inf
    lane.put_matrix("M", matrix)
    run(code["STEP"], w=lane.w, s=np.full(2 * UNROLL + 2, 1e-9))
    step = np.linalg.solve(matrix + 0.3 * np.diag(np.diag(matrix)), gradient)
    np.testing.assert_allclose(lane.get("T", 4), step, rtol=1e-10)
    # What the quadratic form promises: 2·g'd − d'Md.
    assert lane.get("P1")[0] == pytest.approx(2 * gradient @ step - step @ matrix @ step)
    assert lane.get("END")[0] == 0
    assert lane.get("LAM")[0] == 0.3


def test_a_parameter_that_the_step_carries_out_is_put_on_its_bound_and_the_rest_solved_again():
    code, lane = written(MODELS["ivim"]), Lane(4)
    matrix, gradient = drawn(4, 1)
    whole_step = np.linalg.solve(matrix + 0.1 * np.diag(np.diag(matrix)), gradient)
    high = np.full(4, 1e3)
    high[2], low = 0.5 * whole_step[2], np.full(4, -1e3)
    assert whole_step[2] > 0
    lane["Q"], lane["LO"], lane["HI"] = np.zeros(4), low, high
    lane["G"], lane["LAM"], lane["C"], lane["GB"] = gradient, 0.1, 50.0, np.inf
    lane.put_matrix("M", matrix)
    run(code["STEP"], w=lane.w, s=np.full(2 * UNROLL + 2, 1e-9))
    free = [0, 1, 3]
    inner = matrix[np.ix_(free, free)]
    expected = np.linalg.solve(
        inner + 0.1 * np.diag(np.diag(inner)), gradient[free] - matrix[free, 2] * high[2]
    )
    np.testing.assert_allclose(lane.get("T", 4)[free], expected, rtol=1e-10)
    assert lane.get("T", 4)[2] == high[2]


def test_a_parameter_on_a_bound_that_the_gradient_pushes_against_stays():
    code, lane = written(MODELS["adc"]), Lane(2)
    matrix, gradient = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([1.0, -1.0])
    lane["Q"], lane["LO"], lane["HI"] = [0, 0], [-9, 0], [9, 9]
    lane["G"], lane["LAM"], lane["C"], lane["GB"] = gradient, 1.0, 50.0, np.inf
    lane.put_matrix("M", matrix)
    run(code["STEP"], w=lane.w, s=np.full(2 * UNROLL + 2, 1e-9))
    np.testing.assert_allclose(lane.get("T", 2), [1 / 4, 0])


@pytest.mark.parametrize(("trial", "better"), [(3.0, True), (5.0, False)])
def test_only_a_better_trial_is_accepted(trial, better):
    code, lane = written(MODELS["adc"]), Lane(2)
    lane["C"], lane["CT"], lane["P1"], lane["LAM"] = 4.0, trial, 1.0, 0.1
    lane["Q"], lane["T"], lane["G"], lane["GT"] = [1, 2], [3, 4], [5, 6], [7, 8]
    lane["M"], lane["MT"], lane["SQ"], lane["SQT"] = [1, 2, 3], [4, 5, 6], 10.0, 11.0
    run(code["ACCEPT"], w=lane.w)
    assert lane.get("C")[0] == (3 if better else 4)
    assert lane.get("SQ")[0] == (11 if better else 10)
    assert lane.get("Q", 2).tolist() == ([3, 4] if better else [1, 2])
    assert lane.get("G", 2).tolist() == ([7, 8] if better else [5, 6])
    assert lane.get("M", 3).tolist() == ([4, 5, 6] if better else [1, 2, 3])
    # A gain as promised lowers the damping to a fifth; a trial that is worse raises it sixfold.
    assert lane.get("LAM")[0] == pytest.approx(0.02 if better else 0.6)
    assert lane.get("IT")[0] == 1


def test_variances_are_the_diagonal_of_the_inverse_over_the_free_parameters():
    code, lane = written(MODELS["ivim"]), Lane(4)
    matrix, _ = drawn(4, 3)
    lane["Q"], lane["LO"], lane["HI"] = [0, 0, 5, 0], np.full(4, -1), [1, 1, 5, 1]
    lane.put_matrix("M", matrix)
    run(code["VARIANCES"], w=lane.w)
    free = [0, 1, 3]
    expected = np.diag(np.linalg.inv(matrix[np.ix_(free, free)]))
    np.testing.assert_allclose(lane.get("D", 4)[free], expected, rtol=1e-10)
    assert lane.get("D", 4)[2] == 0
    matrix[3] = matrix[:, 3] = 0  # the signal does not depend on the last one
    lane.put_matrix("M", matrix)
    run(code["VARIANCES"], w=lane.w)
    assert lane.get("D", 4)[3] == 1e300
