"""Signal models: formulas, and what is refused."""

from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine import models


def test_signals_are_the_published_formulas_and_the_relative_model_is_divided_by_its_own_b_0():
    protocol = Protocol.preset("cohort1")
    s0, f, dv, t2v, dt, k, t2t = 812.0, 0.13, 33.0, 190.0, 1.1, 0.9, 71.0
    b = protocol.b * 1e-3
    tissue = (1 - f) * np.exp(-b * dt + k * (b * dt) ** 2 / 6 - protocol.te / t2t)
    expected = s0 * (f * np.exp(-b * dv - protocol.te / t2v) + tissue)
    signal = MODELS["t2-ivim-kurtosis"].signal([s0, f, dv, t2v, dt, k, t2t], protocol)
    np.testing.assert_allclose(signal, [expected], rtol=1e-13)
    protocol = Protocol([0, 30, 200, 800] * 2, np.repeat([45.0, 90.0], 4))
    f, dv, t2v, dt, t2t = 0.2, 25.0, 180.0, 1.4, 70.0
    full = MODELS["t2-ivim-kurtosis"].signal([3.0, f, dv, t2v, dt, 0, t2t], protocol).reshape(2, 4)
    curves = (full / full[:, :1]).reshape(1, -1)
    relative = MODELS["t2-ivim-relative"].signal([1, f, dv, dt, 1 / t2v - 1 / t2t], protocol)
    np.testing.assert_allclose(relative, curves, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("adc", [10, 2.0], lambda b: 10 * np.exp(-2 * b)),
        ("kurtosis", [10, 1.0, 0.6], lambda b: 10 * np.exp(-b + 0.1 * b**2)),
        ("ivim", [10, 0.2, 40.0, 1.0], lambda b: 2 * np.exp(-40 * b) + 8 * np.exp(-b)),
    ],
)
def test_the_simpler_models_are_what_their_names_say(name, parameters, expected):
    protocol = Protocol([0, 50, 400, 1000])
    signal = MODELS[name].signal([parameters, parameters], protocol)
    np.testing.assert_allclose(signal, np.tile(expected(protocol.b / 1000), (2, 1)), rtol=1e-13)
    assert not MODELS[name].needs_te


@pytest.mark.parametrize("scatter", [0.0, 0.03])
def test_by_echo_time_ivim_has_an_amplitude_and_a_fraction_of_each_without_a_model_of_t2(scatter):
    b = np.array([0, 10, 20, 40, 80, 150, 300, 500, 800])
    echo_times = np.array([50, 62.5, 100])
    protocol = Protocol(np.tile(b, 3), np.repeat(echo_times, len(b)) + scatter * np.tile([0, 1, 0], len(b)))
    model = MODELS["ivim"].by_echo_time(protocol)
    assert model.names == ("S0te50", "S0te62p5", "S0te100", "fte50", "fte62p5", "fte100", "Dv", "Dt")
    # Two pools whose decay is no exponential of the echo time.
    blood, tissue = np.array([0.2, 0.19, 0.05]), np.array([0.6, 0.5, 0.45])
    curves = np.outer(blood, np.exp(-0.02 * b)) + np.outer(tissue, np.exp(-0.0011 * b))
    result = fit_voxels(1000 * curves.reshape(1, -1), protocol, model)
    expected = [*1000 * (blood + tissue), *blood / (blood + tissue), 20, 1.1]
    np.testing.assert_allclose(result.parameters[0], expected, rtol=1e-4)
    np.testing.assert_allclose(model.signal(expected, protocol), [1000 * curves.ravel()], rtol=1e-12)


def test_echo_times_that_scatter_around_a_rounded_number_are_one():
    b, te = [0, 800, 0, 800, 0, 800], [50.04, 50.06, 50.06, 50.04, 90.0, 90.02]
    assert MODELS["adc"].by_echo_time(Protocol(b, te)).names == ("S0te50", "S0te90", "ADC")
    # Groups end where echo times are farther apart, not at the middle of their means.
    te = [50.0] * 6 + [50.1, 50.2, 50.27, 50.5]
    model = MODELS["adc"].by_echo_time(Protocol([0, 800] * 5, te))
    assert len(model.names) == 3
    np.testing.assert_array_equal(model.signal([1, 2, 0], Protocol([0] * 10, te)), [[1] * 9 + [2]])


def test_a_formula_that_overflows_gives_infinity_without_a_warning():
    protocol = Protocol([0, 50000])
    signal = MODELS["kurtosis"].signal([1.0, 3.0, 5.0], protocol)
    assert signal[0, 0] == 1.0
    assert np.isinf(signal[0, 1])


def test_models_of_other_packages_are_found_by_name_and_checked(monkeypatch):
    def installed(value):
        entry = EntryPoint("mine", value, models.PLUGINS)
        monkeypatch.setattr(models, "entry_points", lambda group: [entry])

    installed("dmrifit.engine.models:MODELS")
    with pytest.raises(ImportError, match=r"mine = dmrifit\.engine\.models:MODELS .* is no SignalModel of that name"):
        models.resolve_model("mine")
    with pytest.raises(ValueError, match=r"did you mean mine\? choose one of adc, .*, mine$"):
        models.resolve_model("mien")
    monkeypatch.setattr(models, "MINE", replace(MODELS["adc"], name="mine"), raising=False)
    installed("dmrifit.engine.models:MINE")
    assert models.resolve_model("Mine") is models.MINE
    # Names in capitals are found by any case, too.
    monkeypatch.setattr(models, "MINE", replace(MODELS["adc"], name="Mine"), raising=False)
    monkeypatch.setattr(models, "entry_points", lambda group: [EntryPoint("Mine", "dmrifit.engine.models:MINE", group)])
    assert models.resolve_model("mine") is models.MINE
