"""What is common to all voxels of a fit: bounds, contrasts, fixed values."""

import numpy as np

from dmrifit import MODELS, Protocol
from dmrifit.engine.fit_problem import Problem
from dmrifit.engine.fit_settings import FitSettings


def test_a_monotonic_bound_turns_into_the_turning_point_of_the_protocol():
    model = MODELS["kurtosis"]
    settings = FitSettings(bounds={"K": (0, "monotonic")})
    problem = Problem(model, Protocol([0, 1000, 2000]), settings, settings.box(model), {})
    assert problem.turn_up == 3 / 2.0
    assert problem.high[model.names.index("K")] == model.parameters[2].high


def test_relaxation_times_are_searched_by_their_inverse_and_fixed_values_like_a_free_parameter():
    model = MODELS["t2-ivim-kurtosis"]
    settings = FitSettings()
    problem = Problem(model, Protocol.preset("cohort1"), settings, settings.box(model), {})
    t2v = model.names.index("T2v")
    np.testing.assert_allclose([problem.inner_low[t2v], problem.inner_high[t2v]], [1 / 250, 1 / 150])
    assert (problem.inner_low <= problem.inner_high).all()
    model, settings = MODELS["ivim"], FitSettings()
    box, protocol = settings.box(model), Protocol([0, 100, 300, 600, 1000])
    free = Problem(model, protocol, settings, box, {})
    varying = Problem(model, protocol, settings, box, {"Dt": np.array([1.0, 2.0])})
    constant = Problem(model, protocol, settings, box, {"Dt": np.array(1.0)})
    np.testing.assert_array_equal(varying.dictionary.atoms.signals, free.dictionary.atoms.signals)
    assert len(constant.dictionary.atoms.signals) < len(free.dictionary.atoms.signals)
