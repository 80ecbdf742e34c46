"""Lines of the intervals, run as plain Python on one lane, against numpy and differences."""

import math

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, SignalModel, fit_voxels
from dmrifit.engine.kernels import interval_formula
from dmrifit.engine.kernels.layout import LANES, UNROLL
from dmrifit.engine.protocol import Protocol

S0, D = Parameter("S0", "signal", 0, np.inf), Parameter("D", "µm²/ms", 0.1, 5)
T2IK = MODELS["t2-ivim-kurtosis"]


def called(b, S0, D):
    total = 0.0
    while total < 1.0:
        total += 1.0
    return total * S0 * math.exp(-b * D)


MADE = {
    "formula": T2IK,
    "branch": SignalModel.from_expression("S0*exp(-b*D) if b < 1.5 else S0*exp(-1.5*D)", [S0, D], name="branch"),
}


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


@pytest.mark.parametrize("name", MADE)
def test_derivatives_are_those_of_the_signal(name):
    model = MADE[name]
    point = np.array([100.0, 0.2, 20, 200, 1.1, 0.7, 80] if name == "formula" else [100.0, 1.2])
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


def test_a_called_function_has_intervals_by_differences():
    protocol = Protocol(np.repeat([0.0, 400, 800], 5))
    formula = SignalModel.from_expression("S0*exp(-b*D)", [S0, D], name="line")
    signals = formula.signal([[100.0, 1.1]], protocol) + np.random.default_rng(3).normal(0, 1, (50, 15))
    model = SignalModel.from_function(called, [S0, D], name="called")
    ours = fit_voxels(signals, protocol, model).intervals()
    np.testing.assert_allclose(ours, fit_voxels(signals, protocol, formula).intervals(), rtol=1e-5)


def test_coordinates_follow_the_parameters():
    kinds = interval_formula._Writer(T2IK).kinds
    assert kinds == ["amplitude", "share", "inverse", "inverse", "plain", "plain", "inverse"]
    assert "PROBED = (False, True, False, False, True, True, False)" in interval_formula.source(T2IK)
