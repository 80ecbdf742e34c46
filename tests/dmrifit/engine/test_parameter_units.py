"""Fixed values and bounds in other units: what is refused, and what a user may know better."""

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel, fit_voxels
from dmrifit.engine.parameter_units import check_bounds, check_fixed

T2 = MODELS["t2-ivim-kurtosis"]
RELATIVE = MODELS["t2-ivim-relative"]
PROTOCOL = Protocol([0, 20, 50, 100, 200, 400, 800, 1000])


def parameter_of(name, model=T2):
    return dict(zip(model.names, model.parameters, strict=True))[name]


ADC = parameter_of("ADC", MODELS["adc"])
D = parameter_of("D", MODELS["kurtosis"])


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (
            parameter_of("f"),
            15.0,
            r"fixed f is 15: f is a share .* 0 to 1, this looks like percent; .* 0\.15\?",
        ),
        (parameter_of("f"), 1.5, r"fixed f is 1\.5: .* did you mean 0\.015\?"),
        (parameter_of("f"), -0.1, r"fixed f is -0\.1: f is a share of the signal, from 0 to 1$"),
        (
            parameter_of("Dt"),
            0.0015,
            r"fixed Dt is 0\.0015: Dt must be in µm²/ms \(0\.2 to 3 by default\), this looks like mm²/s; "
            r"did you mean 1\.5 µm²/ms\?",
        ),
        (parameter_of("Dt"), 0.0001, r"looks like mm²/s; did you mean 0\.1 µm²/ms"),
        (parameter_of("Dt"), 1.5e-5, r"looks like cm²/s; did you mean 1\.5 µm²/ms"),
        (parameter_of("Dt"), 1.5e-9, r"looks like m²/s; did you mean 1\.5 µm²/ms"),
        (parameter_of("Dt"), 1500.0, r"looks like µm²/s; did you mean 1\.5 µm²/ms"),
        (parameter_of("Dv"), 0.01, r"looks like mm²/s; did you mean 10 µm²/ms"),
        (parameter_of("Dv"), 0.1, r"looks like mm²/s; did you mean 100 µm²/ms"),
        (ADC, 0.003, r"\(0 to 100 by default\), this looks like mm²/s; did you mean 3 µm²/ms"),
        (ADC, 800.0, r"looks like µm²/s; did you mean 0\.8 µm²/ms"),
        (D, 0.0007, r"looks like mm²/s; did you mean 0\.7 µm²/ms"),
        (
            parameter_of("T2t"),
            0.07,
            r"T2t must be in ms .* looks like seconds; did you mean 70 ms",
        ),
        (parameter_of("T2v"), 200_000.0, r"looks like µs; did you mean 200 ms"),
        (parameter_of("dR2", RELATIVE), -10.0, r"looks like 1/s; did you mean -0\.01 1/ms"),
    ],
)
def test_fixed_values_in_another_unit_are_refused(parameter, value, message):
    with pytest.raises(ValueError, match=message):
        check_fixed(parameter, np.asarray(value))


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *((parameter_of("f"), share) for share in (0.0, 0.15, 1.0)),
        *((parameter_of("Dv"), fast) for fast in (3.0, 10.0, 100.0, 1000.0)),
        *((parameter_of("Dt"), slow) for slow in (-1.0, 0.0, 0.05, 0.1, 3.2)),
        *((parameter_of("K"), kurtosis) for kurtosis in (-0.5, 0.0, 8.0)),
        *((parameter_of("T2t"), time) for time in (5.0, 300.0, 2000.0)),
        *((ADC, diffusivity) for diffusivity in (0.0, 0.02, 20.0)),
        (parameter_of("S0"), 1e6),
        (parameter_of("dR2", RELATIVE), -0.1),
    ],
)
def test_unusual_fixed_values_are_accepted(parameter, value):
    check_fixed(parameter, np.asarray(value))


def test_maps_of_fixed_values_are_judged_by_their_median():
    check_fixed(ADC, np.array([0.0, 0.001, 0.9, 1.1]))
    with pytest.raises(ValueError, match="looks like mm²/s"):
        check_fixed(ADC, np.array([0.0, 0.001, 0.0009, 0.0011]))
    with pytest.raises(ValueError, match=r"fixed f is 1\.5"):
        check_fixed(parameter_of("f"), np.array([0.1, 0.2, 1.5]))


@pytest.mark.parametrize(
    ("parameter", "bounds", "message"),
    [
        (ADC, (0, 0.003), r"the upper bound of ADC is 0\.003: .* mm²/s; did you mean 3 µm²/ms\?"),
        (ADC, (700, 3000), r"the lower bound of ADC is 700: .* µm²/s; did you mean 0\.7 µm²/ms\?"),
        (
            parameter_of("Dv"),
            (0.004, 0.2),
            r"the upper bound of Dv is 0\.2: .* did you mean 200 µm²/ms\?",
        ),
        (
            parameter_of("f"),
            (0, 30),
            r"the upper bound of f is 30: .* percent; did you mean 0\.3\?",
        ),
        (
            parameter_of("T2t"),
            (0.02, 0.14),
            r"the upper bound of T2t is 0\.14: .* seconds; did you mean 140 ms",
        ),
    ],
)
def test_bounds_in_another_unit_are_refused(parameter, bounds, message):
    with pytest.raises(ValueError, match=message):
        check_bounds(parameter, *bounds)


@pytest.mark.parametrize(
    ("parameter", "bounds"),
    [
        (ADC, (-np.inf, np.inf)),
        (ADC, (0, 3000)),
        (ADC, (0, 0.02)),
        (parameter_of("f"), (-0.1, 1.1)),
        (parameter_of("f"), (-np.inf, np.inf)),
        (parameter_of("Dv"), (30, 30)),
        (parameter_of("T2t"), (1, 3000)),
    ],
)
def test_bounds_that_hold_plausible_values_are_accepted(parameter, bounds):
    check_bounds(parameter, *bounds)


def test_the_box_of_ones_own_model_is_never_refused():
    slow = Parameter("D", "µm²/ms", 0.0, 0.003)
    check_fixed(slow, np.asarray(0.002))
    check_bounds(slow, slow.low, slow.high)


def test_fits_refuse_other_units():
    signals = MODELS["ivim"].signal([[1000.0, 0.1, 20.0, 1.0]], PROTOCOL)
    with pytest.raises(ValueError, match=r"did you mean 0\.15"):
        fit_voxels(signals, PROTOCOL, "ivim", fixed={"f": 15})
    with pytest.raises(ValueError, match="did you mean 3 µm²/ms"):
        fit_voxels(signals, PROTOCOL, "adc", bounds={"ADC": (0, 0.003)})
    model = SignalModel.from_expression(
        "S0*exp(-te/T2)",
        [Parameter("S0", "signal", 0, np.inf), Parameter("T2", "ms", 10, 2000)],
        name="T2",
    )
    with pytest.raises(ValueError, match="looks like seconds; did you mean 80 ms"):
        fit_voxels([[1.0, 0.5]], Protocol([0, 0], te=[50, 90]), model, fixed={"T2": 0.08})
