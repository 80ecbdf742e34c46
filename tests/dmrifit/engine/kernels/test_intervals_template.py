"""The compiled parts of intervals against plain numpy."""

import numpy as np
import pytest

from dmrifit import MODELS
from dmrifit.engine.kernels import compiler


@pytest.fixture(scope="module")
def kernel():
    return compiler.load(MODELS["t2-ivim-kurtosis"], "intervals")


def test_the_factored_equations_are_solved_as_by_numpy(kernel):
    rng = np.random.default_rng(5)
    slopes = rng.normal(size=(21, 7)) * 10.0 ** rng.integers(-3, 4, 7)
    normal, weight = slopes.T @ slopes, rng.uniform(0, 1e-3, 7)
    right, solution, scale = rng.normal(size=(3, 7))
    lower = np.empty((7, 7))
    kept = np.array([True, True, False, True, True, True, True])
    kernel.factor(normal, 2.0, weight, kept, scale, lower)
    kernel.solve(lower, scale, kept, right, solution)
    precision = (normal / 2 + np.diag(weight))[np.ix_(kept, kept)]
    np.testing.assert_allclose(solution[kept], np.linalg.solve(precision, right[kept]), rtol=1e-8)
    assert solution[2] == 0


def test_coordinates_invert_each_other(kernel):
    for kind in range(4):
        for value in (0.05, 0.4, 0.9):
            coordinate = kernel.into(value, kind)
            assert kernel.out_of(coordinate, kind) == pytest.approx(value)
            step = 1e-6
            rise = kernel.out_of(coordinate + step, kind) - kernel.out_of(coordinate - step, kind)
            assert kernel.chain(coordinate, kind) == pytest.approx(rise / (2 * step), rel=1e-5)


def test_a_bent_side_solves_its_equation_within_its_limits(kernel):
    for curvature in (-0.1, 0.0, 0.3, 2.0):
        length = kernel.bent(1.5, 1.0, curvature)
        assert length * (1 + curvature * length) == pytest.approx(1.5)
    assert kernel.bent(1.5, 1.0, -10.0) == pytest.approx(3.0)
