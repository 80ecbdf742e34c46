"""The steps of fits and intervals, run here as plain Python on one lane."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from dmrifit import MODELS, Parameter, Protocol, SignalModel, fit_voxels
from dmrifit.engine.design.precision import signal_jacobian
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


def test_a_step_is_the_damped_one_of_linear_algebra_and_parameters_stop_and_stay_at_their_bounds():
    square, gradient = drawn(4, 0)
    low, high = np.full(4, -1e3), np.full(4, 1e3)
    lane = step_of(MODELS["ivim"], LO=low, HI=high, G=gradient, LAM=0.3, C=50.0, GB=np.inf, M=square)
    step = np.linalg.solve(square + 0.3 * np.diag(np.diag(square)), gradient)
    np.testing.assert_allclose(vector(lane.T, 4), step, rtol=1e-10)
    # What the quadratic form promises: 2·g'd − d'Md.
    assert pytest.approx(2 * gradient @ step - step @ square @ step) == lane.P1
    assert lane.END == 0
    assert lane.LAM == 0.3
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


S0, D = Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 5)
T2IK = MODELS["t2-ivim-kurtosis"]
K = T2IK.names.index("K")
PROTOCOL = Protocol.preset("cohort1")
KINDS = ["amplitude", "share", "inverse", "inverse", "plain", "plain", "inverse"]
TISSUE = [
    [1000.0, 0.15, 20, 200, 1.1, 0.8, 80],
    [1000.0, 0.02, 40, 170, 0.6, 1.2, 60],
    [1000.0, 0.3, 10, 240, 1.7, 0.4, 100],
]


def called(b, S0, D):
    total = 0.0
    while total < 1.0:
        total += 1.0
    return total * S0 * math.exp(-b * D)


CALLED = SignalModel.from_function(called, [S0, D], name="called")
BRANCH = SignalModel.from_expression("S0*exp(-b*D) if b < 1.5 else S0*exp(-1.5*D)", [S0, D], name="branch")


@pytest.mark.parametrize(("model", "last_b"), [(CALLED, 2000), (BRANCH, 1500)])
def test_a_called_function_and_both_arms_of_a_branch_have_the_intervals_of_the_formula(model, last_b):
    """Beyond its branch, the signal at 2000 s/mm² is that of the formula at 1500 s/mm²."""
    formula = SignalModel.from_expression("S0*exp(-b*D)", [S0, D], name="line")
    protocol, formula_protocol = (Protocol(np.repeat([0.0, 400, 800, b], 5)) for b in (2000, last_b))
    noise = np.random.default_rng(3).normal(0, 1, (50, 20))
    signals = formula.signal([[100.0, 1.1]], formula_protocol) + noise
    expected = fit_voxels(signals, formula_protocol, formula).intervals()
    np.testing.assert_allclose(fit_voxels(signals, protocol, model).intervals(), expected, rtol=1e-5)


def test_a_line_whose_sides_do_not_bend_has_the_intervals_of_linear_regression():
    protocol = Protocol(np.linspace(0, 2000, 9))
    numbers = [Parameter(name, "", -np.inf, np.inf) for name in ("offset", "slope")]
    line = SignalModel.from_expression("offset + slope*b", numbers, name="straight")
    signals = line.signal([[100.0, 30.0]], protocol) + np.random.default_rng(6).normal(0, 1, (20, 9))
    result = fit_voxels(signals, protocol, line)
    reach = stdtrit(7, 0.975) * result.standard_errors
    expected = np.stack([result.parameters - reach, result.parameters + reach], axis=-1)
    np.testing.assert_allclose(result.intervals(), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def signals():
    rng = np.random.default_rng(11)
    clean = np.tile(T2IK.signal(TISSUE, PROTOCOL), (7, 1))
    noise = rng.normal(size=(2, *clean.shape)) * clean[:, :1] / rng.uniform(20, 70, (len(clean), 1))
    signals = np.hypot(clean + noise[0], noise[1])
    signals[5, [3, 8, 9]] = np.nan
    signals[12] = np.nan
    return signals


class Voxel:
    """The intervals of one voxel, step by step."""

    def __init__(self, signal, box, floor2, free):
        self.measured = np.isfinite(signal)
        self.signal, self.floor2, self.free = signal[self.measured], floor2, free
        self.ends = np.sort([self.into(end) for end in box], axis=0)
        width = np.ptp(self.ends, axis=0)
        self.weight = np.where(free & np.isfinite(width), 12 / width**2, 0.0)
        self.weight[[0, K]] *= 0.0, 0.25 if box[1, K] < 5 else 1.0
        self.center = np.where(self.weight > 0, self.ends.mean(axis=0), 0.0)

    def into(self, values):
        pairs = zip(values, KINDS, strict=True)
        with np.errstate(divide="ignore"):
            return np.array([1 / x if k == "inverse" else np.sqrt(x + 0.02) if k == "share" else x for x, k in pairs])

    def out_of(self, point):
        pairs = zip(point, KINDS, strict=True)
        return np.array([1 / u if k == "inverse" else u * u - 0.02 if k == "share" else u for u, k in pairs])

    def derivatives(self, point):
        values = self.out_of(point)
        slopes = {"inverse": -(values**2), "share": 2 * point}
        slopes = [slopes.get(kind, np.ones(len(point)))[j] for j, kind in enumerate(KINDS)]
        signal = T2IK.signal(values, PROTOCOL)[0, self.measured]
        jacobian = signal_jacobian(T2IK, values, PROTOCOL)[0, self.measured] * slopes * self.free
        magnitude = np.sqrt(signal**2 + self.floor2)
        return self.signal - magnitude, jacobian * (signal / magnitude)[:, None]

    def intervals(self, estimate, levels):
        u = self.into(estimate)
        residual, jacobian = self.derivatives(u)
        keep = self.free
        rss, n_usable = residual @ residual, len(self.signal)
        dof = max(n_usable - keep.sum(), 1)
        for after_count in (False, True):
            variance = max(rss / dof, (1e-9 * np.abs(self.signal).max()) ** 2)
            precision = jacobian.T @ jacobian / variance + np.diag(self.weight)
            covariance = np.zeros_like(precision)
            covariance[np.ix_(keep, keep)] = np.linalg.inv(precision[np.ix_(keep, keep)])
            sd = np.sqrt(np.diag(covariance))
            if not after_count:
                wide = 2 * stdtrit(dof, 0.975) * sd >= 0.75 * np.ptp(self.ends, axis=0)
                dof = min(dof + (keep & wide).sum(), max(n_usable - 1, 1))
        away = u - self.center
        slope = jacobian.T @ residual / variance - self.weight * away
        middle = u + covariance @ slope
        least = rss / variance + self.weight @ away**2 - slope @ covariance @ slope
        ends = np.full((len(levels), len(u), 2), np.nan)
        for j in np.flatnonzero(keep):
            for side, sign in enumerate((-1, 1)):
                length = np.array([stdtrit(dof, (1 + level) / 2) for level in levels]) * sd[j]
                if KINDS[j] != "amplitude":
                    room = max(sign * (self.ends[side, j] - middle[j]), 0.1 * sd[j])
                    distance = min(stdtrit(dof, 0.975) * sd[j], room)
                    rest = keep & (np.arange(len(u)) != j)
                    probe = middle + sign * distance * covariance[j] / covariance[j, j]
                    probe = np.where(rest, np.clip(probe, *self.ends), probe)
                    bend = self.bend(probe, rest, variance, least, sd[j], distance)
                    length = np.array([bent(x, distance, bend, 2.5 if j == K else 2.0) for x in length])
                end = np.clip(middle[j] + sign * length, *self.ends[:, j])
                place = 1 - side if KINDS[j] == "inverse" else side
                for level, x in enumerate(end):
                    value = self.out_of(np.where(np.arange(len(u)) == j, x, u))[j]
                    ends[level, j, place] = (max if place else min)(value, estimate[j])
        return ends

    def bend(self, probe, rest, variance, least, sd, distance):
        residual, jacobian = self.derivatives(probe)
        away = probe - self.center
        right = (jacobian.T @ residual / variance - self.weight * away)[rest]
        precision = (jacobian.T @ jacobian / variance + np.diag(self.weight))[np.ix_(rest, rest)]
        rise = residual @ residual / variance + self.weight @ away**2 - least
        rise -= right @ np.linalg.solve(precision, right)
        return (np.sqrt(max(rise, 0)) * sd / distance - 1) / distance


def bent(linear, distance, bend, widest):
    """Solve x(1 + c·x) = linear, at most `widest` times as long."""
    bend = np.clip(bend, (1 / widest - 1) / distance, 50 / distance)
    root = 1 + 4 * bend * linear
    if abs(bend) * linear < 1e-9:
        return linear
    return widest * linear if root < 0 else min((np.sqrt(root) - 1) / (2 * bend), widest * linear)


@pytest.mark.parametrize("case", ["plain", "floor", "fixed", "monotonic"])
def test_intervals_are_those_of_plain_numpy(signals, case):
    sigma = 12.0 if case == "floor" else None
    options = {"fixed": {"fixed": {"T2v": 200.0, "K": 0.7}}, "monotonic": {"bounds": {"K": (0, "monotonic")}}}
    result = fit_voxels(signals, PROTOCOL, T2IK, method="nlls", sigma=sigma, **options.get(case, {}))
    levels = 0.68, 0.95
    ours = np.stack([result.intervals(level) for level in levels])
    free = np.array([name not in result.fixed for name in T2IK.names])
    assert np.isnan(ours[:, 12]).all()
    for i in np.flatnonzero(np.isfinite(result.cost)):
        estimate = result.parameters[i]
        box = np.array(result.bounds).T
        box[:, 0] *= np.nanmax(signals[i])
        if case == "monotonic":
            box[1, 5] = min(box[1, 5], 3 / (1.6 * estimate[4]))
        floor2 = 0.0 if sigma is None else np.pi / 2 * sigma**2
        expected = Voxel(signals[i], box, floor2, free).intervals(estimate, levels)
        np.testing.assert_allclose(ours[:, i], expected, rtol=1e-6, atol=1e-9)


class Rows(dict):
    """Numbers of one lane by row; those of numpy, which divide by zero."""

    def __missing__(self, key):
        return np.float64(0)

    def __setitem__(self, key, value):
        super().__setitem__(key, np.float64(value))


class Lane:
    """One lane of a model, and what is the same for all lanes."""

    def __init__(self, model):
        self.steps = steps = compiler.load(model).INTERVALS
        self.w, self.s = Fields(steps.layout, Rows()), Rows()
        for j in range(steps.n):
            self.s[steps.free + j] = self.s[steps.kept + j] = 1.0
            self.s[steps.bounds + j], self.s[steps.bounds + steps.n + j] = model.bounds[j]
        self.s[steps.turn_up] = np.inf
        self.w.TOP = 1.0

    def run(self, step, y=None, v=None, t=None):
        with np.errstate(all="ignore"):
            step(self.w, self.s, y, v, t)

    def get(self, field, n):
        return np.array([getattr(self.w, field)[i] for i in range(n)])

    def set(self, field, values):
        for i, value in enumerate(values):
            getattr(self.w, field)[i] = value

    def sum_up(self, contrasts, signals):
        """Evaluate a point for measurements (b, te), a multiple of `UNROLL` of them."""
        self.run(self.steps.begin)
        for k in range(0, len(contrasts), UNROLL):
            tables = {}
            for u in range(UNROLL):
                for i, tabulate in enumerate((self.steps.tabulate_b, self.steps.tabulate_te)):
                    self.s[0] = contrasts[k + u][i]
                    self.run(tabulate, t={1: tables.setdefault(1 + 2 * u + i, {})})
            for u in range(UNROLL):
                self.s[2 * u], self.s[2 * u + 1] = contrasts[k + u]
            self.run(self.steps.accumulate, signals[k : k + UNROLL], np.ones(UNROLL), tables)
        self.run(self.steps.chain)


@pytest.mark.parametrize(("model", "point"), [(T2IK, [100.0, 0.2, 20, 200, 1.1, 0.7, 80]), (BRANCH, [100.0, 1.2])])
def test_derivatives_are_those_of_the_signal(model, point):
    point = np.array(point)
    contrasts = [(0.0, 60.0), (0.4, 90.0), (2.0, 120.0)]
    protocol = Protocol([1000 * b for b, _ in contrasts], te=[te for _, te in contrasts])
    lane = Lane(model)
    n = lane.steps.n
    lane.set("P", point)
    lane.run(lane.steps.place)
    lane.sum_up(contrasts, np.zeros(3))
    signal = model.signal(point, protocol)[0]
    assert pytest.approx(signal @ signal) == lane.w.SQT
    coordinates = lane.get("U", n)
    jacobian = np.empty((3, n))
    for j in range(n):
        step = 1e-6 * coordinates[j]
        values = []
        for shifted in (coordinates[j] - step, coordinates[j] + step):
            other = point.copy()
            other[j] = {"inverse": 1 / shifted, "share": shifted**2 - 0.02}.get(lane.steps.kinds[j], shifted)
            values.append(model.signal(other, protocol)[0])
        jacobian[:, j] = (values[1] - values[0]) / (2 * step)
    np.testing.assert_allclose(lane.get("GT", n), -jacobian.T @ signal, rtol=1e-5, atol=1e-7)
    ours = [[lane.w.MT[i, j] for j in range(n)] for i in range(n)]
    np.testing.assert_allclose(ours, jacobian.T @ jacobian, rtol=1e-5, atol=1e-7)
