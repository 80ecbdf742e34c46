"""Intervals against plain numpy and finite differences: whole, and their lines on one lane."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from dmrifit import MODELS, Parameter, SignalModel, fit_voxels
from dmrifit.engine.kernels import interval_formula
from dmrifit.engine.kernels.layout import LANES, UNDETERMINED_SHARE, UNROLL
from dmrifit.engine.protocol import Protocol

S0, D = Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 5)
T2IK = MODELS["t2-ivim-kurtosis"]
KINDS = ["amplitude", "share", "inverse", "inverse", "plain", "plain", "inverse"]


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


def coordinates_of(parameters):
    """Go from parameters (7,) of T2-IVIM-Kurtosis to coordinates."""
    into = {"inverse": lambda value: 1 / value, "share": lambda value: np.sqrt(value + 0.02)}
    return np.array([into.get(kind, float)(value) for kind, value in zip(KINDS, parameters, strict=True)])


def parameters_of(coordinates):
    """Go from coordinates (7,) to parameters of T2-IVIM-Kurtosis."""
    back = {"inverse": lambda value: 1 / value, "share": lambda value: value**2 - 0.02}
    return np.array([back.get(kind, float)(value) for kind, value in zip(KINDS, coordinates, strict=True)])


def expand(protocol, signals, coordinates):
    """Give residuals, and derivatives of the signal by coordinates from central differences."""
    steps = np.where(coordinates == 0, 1e-5, 1e-5 * np.abs(coordinates))
    shifted = [[parameters_of(coordinates + sign * step) for step in np.diag(steps)] for sign in (-1, 1)]
    below, above = (T2IK.signal(points, protocol) for points in shifted)
    residuals = signals - T2IK.signal([parameters_of(coordinates)], protocol)[0]
    return residuals, ((above - below) / (2 * steps[:, None])).T


def numpy_intervals(protocol, signals, estimate, bounds, turn_up):
    """Compute intervals (7, 2) of one voxel at level 0.95 by dense linear algebra."""
    low, high = np.array(bounds, dtype=float).T
    if turn_up / estimate[4] > 0:
        high[5] = min(high[5], turn_up / estimate[4])
    point = coordinates_of(estimate)
    low, high = np.sort([coordinates_of(low), coordinates_of(high)], axis=0)
    weight = np.where(np.arange(7) > 0, 12 / (high - low) ** 2, 0.0)
    prior = np.where(np.arange(7) > 0, 0.5 * (low + high), 0.0)
    residuals, jacobian = expand(protocol, signals, point)
    square = residuals @ residuals

    dof = len(signals) - 7
    variance = square / dof
    covariance = np.linalg.inv(jacobian.T @ jacobian / variance + np.diag(weight))
    reach = 2 / UNDETERMINED_SHARE * stdtrit(dof, 0.975)
    dof += (np.sqrt(np.diag(covariance)) * reach >= high - low).sum()
    variance = square / dof
    span = stdtrit(dof, 0.975)
    covariance = np.linalg.inv(jacobian.T @ jacobian / variance + np.diag(weight))
    slope = jacobian.T @ residuals / variance - weight * (point - prior)
    middle = point + covariance @ slope
    least = square / variance + weight @ (point - prior) ** 2 - slope @ covariance @ slope

    ends = np.empty((7, 2))
    for j, kind in enumerate(KINDS):
        sd = covariance[j, j] ** 0.5
        for side, sign in enumerate((-1, 1)):
            length = linear = span * sd
            if kind in ("plain", "share"):
                room = sign * ((low, high)[side][j] - middle[j])
                distance = min(linear, max(room, 0.1 * sd))
                to = middle + sign * distance / sd**2 * covariance[j]
                others = np.delete(np.arange(7), j)
                to[others] = np.clip(to[others], low[others], high[others])
                residuals, jacobian = expand(protocol, signals, to)
                # The other coordinates go to their best by one step of Gauss-Newton.
                slope = (jacobian.T @ residuals / variance - weight * (to - prior))[others]
                precision = (jacobian.T @ jacobian / variance + np.diag(weight))[np.ix_(others, others)]
                rise = residuals @ residuals / variance + weight @ (to - prior) ** 2 - least
                rise -= slope @ np.linalg.solve(precision, slope)
                bend = (max(rise, 0) ** 0.5 * sd / distance - 1) / distance
                bend = np.clip(bend, -0.5 / distance, 50 / distance)
                root = 1 + 4 * bend * linear
                length = 2 * linear
                if root >= 0:
                    length = min(length, (root**0.5 - 1) / (2 * bend))
            ends[j, side] = np.clip(middle[j] + sign * length, low[j], high[j])
    ends = np.sort([parameters_of(ends[:, side]) for side in (0, 1)], axis=0).T
    return np.stack([np.minimum(ends[:, 0], estimate), np.maximum(ends[:, 1], estimate)], axis=1)


def test_intervals_of_t2_ivim_kurtosis_are_those_of_plain_numpy():
    rng = np.random.default_rng(11)
    protocol = Protocol.preset("cohort1")
    truth = [
        [1000, 0.2, 20, 200, 1.1, 0.7, 80],
        [1000, 0.05, 40, 160, 0.7, 1.2, 60],
        [1000, 0.3, 12, 230, 1.6, 0.4, 100],
    ]
    signals = np.repeat(T2IK.signal(truth, protocol), 4, axis=0)
    signals += rng.normal(0, 15, signals.shape)
    result = fit_voxels(signals, protocol, T2IK)
    bounds, turn_up = result.bounds, result.inputs.turn_up
    expected = [
        numpy_intervals(protocol, row, estimate, bounds, turn_up)
        for row, estimate in zip(signals, result.parameters, strict=True)
    ]
    np.testing.assert_allclose(result.intervals(), expected, rtol=1e-4, atol=1e-6)


class Rows(dict):
    """Numbers of one lane by their place; those of numpy, which divide by zero."""

    def __missing__(self, key):
        return np.float64(0)

    def __setitem__(self, key, value):
        super().__setitem__(key, np.float64(value))


class Lane:
    """One lane: its work array by field, and what is the same for all lanes."""

    def __init__(self, model):
        self.writer = interval_formula._Writer(model)
        self.w, self.s, self.y, self.v, self.t = Rows(), Rows(), Rows(), Rows(), Rows()
        for j in range(self.writer.n):
            self.s[self.writer.free + j] = self.s[self.writer.kept + j] = 1.0
            self.s[self.writer.bounds + j], self.s[self.writer.bounds + self.writer.n + j] = model.bounds[j]
        self.s[self.writer.turn_up] = np.inf
        self.set("TOP", [1.0])

    def run(self, lines, **names):
        scope = {"w": self.w, "s": self.s, "y": self.y, "v": self.v, "t": self.t, "l": 0}
        scope |= {"exp": np.exp, "sqrt": np.sqrt, "log": np.log} | names
        with np.errstate(all="ignore"):
            exec("\n".join(lines), scope)
        return scope

    def get(self, field, n=1):
        return np.array([self.w[(self.writer.at.offset[field] + i) * LANES] for i in range(n)])

    def set(self, field, values):
        for i, value in enumerate(values):
            self.w[(self.writer.at.offset[field] + i) * LANES] = value

    def sum_up(self, contrasts, signals):
        """Evaluate a point for measurements (b, te), a multiple of `UNROLL` of them."""
        writer = self.writer
        self.run(writer.begin())
        for k in range(0, len(contrasts), UNROLL):
            for u in range(UNROLL):
                for i, name in enumerate(("b", "te")):
                    self.s[0], table = contrasts[k + u][i], Rows()
                    self.run(writer.formula.table(name, writer.at), t=table)
                    for (_, place), value in table.items():
                        self.t[1 + 2 * u + i, place] = value
                self.y[u * LANES], self.v[u * LANES] = signals[k + u], 1.0
            for u in range(UNROLL):
                self.s[2 * u], self.s[2 * u + 1] = contrasts[k + u]
            self.run(writer.accumulate(floored=False))
        self.run(writer.chain())


@pytest.mark.parametrize(
    ("model", "point"), [(T2IK, [100.0, 0.2, 20, 200, 1.1, 0.7, 80]), (BRANCH, [100.0, 1.2])]
)
def test_derivatives_are_those_of_the_signal(model, point):
    point = np.array(point)
    contrasts = [(0.0, 60.0), (0.4, 90.0), (2.0, 120.0)]
    protocol = Protocol([1000 * b for b, _ in contrasts], te=[te for _, te in contrasts])
    lane = Lane(model)
    n = lane.writer.n
    lane.set("P", point)
    lane.run(lane.writer.place())
    lane.sum_up(contrasts, np.zeros(3))
    signal = model.signal(point, protocol)[0]
    assert lane.get("SQ")[0] == pytest.approx(signal @ signal)
    coordinates = lane.get("U", n)
    jacobian = np.empty((3, n))
    for j in range(n):
        step = 1e-6 * coordinates[j]
        values = []
        for shifted in (coordinates[j] - step, coordinates[j] + step):
            other = point.copy()
            other[j] = {"inverse": 1 / shifted, "share": shifted**2 - 0.02}.get(lane.writer.kinds[j], shifted)
            values.append(model.signal(other, protocol)[0])
        jacobian[:, j] = (values[1] - values[0]) / (2 * step)
    np.testing.assert_allclose(lane.get("G", n), -jacobian.T @ signal, rtol=1e-5, atol=1e-7)
    expected = (jacobian.T @ jacobian)[tuple(zip(*lane.writer.at.pairs, strict=True))]
    np.testing.assert_allclose(lane.get("M", len(expected)), expected, rtol=1e-5, atol=1e-7)


def test_the_factored_precision_is_inverted_as_by_numpy():
    rng = np.random.default_rng(5)
    lane = Lane(T2IK)
    writer, n = lane.writer, lane.writer.n
    slopes = rng.normal(size=(21, n)) * 10.0 ** rng.integers(-3, 4, n)
    normal, weight = slopes.T @ slopes, rng.uniform(0, 1e-3, n)
    kept = np.array([1, 1, 0, 1, 1, 1, 1])
    lane.set("M", [normal[pair] for pair in writer.at.pairs])
    lane.set("WEIGHT", weight)
    for j in range(n):
        lane.s[writer.kept + j] = float(kept[j])
    lines = [*writer._precision(writer.kept), *writer._inverse_factor()]
    lines += [f"c{j}_{k} = {writer._covariance(j, k)}" for j, k in writer.at.pairs]
    scope = lane.run(lines, variance=2.0)
    inverse = np.array([[scope[f"c{max(j, k)}_{min(j, k)}"] for k in range(n)] for j in range(n)])
    inside = np.ix_(kept > 0, kept > 0)
    expected = np.linalg.inv((normal + 2 * np.diag(weight))[inside])
    np.testing.assert_allclose(inverse[inside], expected, rtol=1e-8)
    assert not inverse[2, kept > 0].any()


def test_coordinates_invert_each_other():
    lane = Lane(T2IK)
    for share in (0.05, 0.4, 0.9):
        point = [3.0, share, 100 * share, 150 + 100 * share, 0.2 + 2 * share, share, 20 + 100 * share]
        lane.set("P", point)
        lane.run(lane.writer.place())
        lane.set("MIDDLE", lane.get("U", 7))
        # Without width, ends are the estimates.
        lane.run(lane.writer.finish())
        np.testing.assert_allclose(lane.get("END", 14).reshape(7, 2), np.repeat(np.array(point)[:, None], 2, axis=1))


def test_a_bent_side_solves_its_equation_within_its_limits():
    lane = Lane(T2IK)

    def bent(curvature, distance=1.0):
        lane.set("DISTANCE", [distance])
        lane.set("BEND", [curvature])
        return lane.run(lane.writer._bent_length(0, 0), linear=np.float64(1.5))["length"]

    for curvature in (-0.1, 0.0, 0.3, 2.0):
        length = bent(curvature)
        assert length * (1 + curvature * length) == pytest.approx(1.5)
    assert bent(-10.0) == pytest.approx(3.0)


def test_coordinates_follow_the_parameters():
    assert interval_formula._Writer(T2IK).kinds == KINDS


def test_shares_and_plain_parameters_are_probed():
    assert "PROBED = (False, True, False, False, True, True, False)" in interval_formula.source(T2IK)
