"""The search by damped Newton steps: coordinates and derivatives."""

import math

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel
from dmrifit.engine.methods.refinement import BOX, LINE, Coordinates, signal_and_slopes

PROTOCOL = Protocol([0, 100, 500, 1000, 1000], [60, 60, 60, 60, 90])


@pytest.mark.parametrize("kind", [BOX, LINE])
def test_coordinates_return_their_parameters_and_slopes(kind):
    low, high = np.array([0.0, 0.0, -np.inf]), np.array([np.inf, 1.0, np.inf])
    coordinates = Coordinates(kind, low, high)
    parameters = np.array([[2.5, 0.3, -4.0]])
    values = coordinates.into(parameters)
    np.testing.assert_allclose(coordinates.out_of(values), parameters, rtol=1e-12)
    step = 1e-6
    slope = (coordinates.out_of(values + step) - coordinates.out_of(values - step)) / (2 * step)
    (chain,) = coordinates.chain(np.eye(3)[None], values)
    np.testing.assert_allclose(chain, np.diag(slope[0]), rtol=1e-6)


def test_a_parameter_at_its_bound_stays_finite_on_the_line():
    coordinates = Coordinates(LINE, np.zeros(2), np.ones(2))
    values = coordinates.into(np.array([[0.0, 1.0]]))
    assert np.isfinite(values).all()
    np.testing.assert_allclose(coordinates.out_of(values), [[0, 1]], atol=1e-6)


def test_derivatives_are_those_of_differences_for_formulas_and_functions():
    model = MODELS["t2-ivim-kurtosis"]
    function = SignalModel.from_function(
        _decay, [Parameter("A", "signal", 0, 9), Parameter("D", "µm²/ms", 0, 9)], name="branch"
    )
    for tested, parameters in (
        (model, np.array([[1.0, 0.2, 20, 200, 1, 0.8, 80], [2, 0.1, 9, 180, 0.7, 0.1, 60]])),
        (function, np.array([[1.0, 0.7]])),
    ):
        signal, slopes = signal_and_slopes(tested, parameters, PROTOCOL)
        np.testing.assert_allclose(signal, tested.signal(parameters, PROTOCOL), rtol=1e-14)
        for j in range(parameters.shape[1]):
            step = np.zeros(parameters.shape[1])
            step[j] = 1e-5 * parameters[0, j]
            rise = tested.signal(parameters + step, PROTOCOL) - tested.signal(parameters - step, PROTOCOL)
            np.testing.assert_allclose(slopes[:, :, j], rise / (2 * step[j]), rtol=1e-4, atol=1e-8)


def _decay(b, A, D):
    total = 0.0
    for k in range(2):
        total += math.exp(-b * D * (k + 1))
    return A * total / 2
