"""The settings of a fit: what they refuse, what the fit gets of them, what the sidecar says."""

import inspect

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, fit_image, fit_voxels
from dmrifit.engine.fit_settings import FitSettings, _check_bounds, check_values

ADC = MODELS["adc"]
KURTOSIS = MODELS["kurtosis"]
T2 = MODELS["t2-ivim-kurtosis"]


def test_settings_are_the_options_of_a_fit_with_their_defaults():
    options = inspect.signature(fit_voxels).parameters
    keywords = {
        name: option.default for name, option in options.items() if option.kind is inspect.Parameter.KEYWORD_ONLY
    }
    measured = {"noise": None, "n_averaged": 1.0, "counts": None, "is_denoised": False}
    assert vars(FitSettings()) == keywords | measured
    assert set(keywords) <= set(inspect.signature(fit_image).parameters)


def test_the_box_is_that_of_the_model_and_of_the_settings_with_only_kurtosis_kept_monotonic():
    assert FitSettings().box(ADC) == {"S0": (0.0, np.inf), "ADC": (0.0, 100.0)}
    box = FitSettings(bounds={"ADC": (1, 2)}).box(ADC)
    assert box == {"S0": (0.0, np.inf), "ADC": (1.0, 2.0)}
    assert FitSettings(bounds="published").box(T2)["S0"] == (0.8, 12.0)
    settings = FitSettings(bounds={"K": (0, "monotonic")})
    assert settings.box(KURTOSIS)["K"] == (0.0, "monotonic")
    assert FitSettings(bounds="published").capped(T2) == []
    assert FitSettings().box(KURTOSIS)["K"] == (0.0, "monotonic")
    assert FitSettings().capped(KURTOSIS) == ["K"]
    assert FitSettings(bounds={"D": (0, 4)}).capped(KURTOSIS) == ["K"]
    assert FitSettings().capped(T2) == []
    assert FitSettings(bounds={"K": (0, 5)}).box(KURTOSIS)["K"] == (0.0, 5.0)
    assert FitSettings(fixed={"K": 1.0}).box(KURTOSIS)["K"] == (0.0, 5.0)
    for method in ("ols", "wls", "map"):
        assert FitSettings(method=method).capped(KURTOSIS) == []


def test_fixed_values_are_arrays_by_name_and_noise_levels_one_or_one_for_each_voxel():
    settings = FitSettings(fixed={"K": [0.5, 1.0, 1.5]})
    values = settings.fixed_values(KURTOSIS, 3, settings.box(KURTOSIS))
    assert list(values) == ["K"]
    np.testing.assert_array_equal(values["K"], [0.5, 1.0, 1.5])
    assert FitSettings().noise_levels(3) is None
    np.testing.assert_array_equal(FitSettings(sigma=2).noise_levels(3), [2.0])
    np.testing.assert_array_equal(FitSettings(sigma=[1, 0, 3]).noise_levels(3), [1.0, 0.0, 3.0])


def test_few_free_parameters_need_one_start():
    assert [FitSettings().starts(n_free) for n_free in (1, 2, 3, 7)] == [1, 1, 3, 3]
    assert FitSettings(n_starts=np.int64(5)).starts(2) == 5


def test_the_penalty_divides_by_the_squared_width_of_finite_bounds():
    low = np.array([0.0, 1.0, 4.0])
    high = np.array([np.inf, 3.0, 4.0])
    np.testing.assert_array_equal(FitSettings(regularization=2.0).penalty(low, high), [0, 0.5, 0])
    np.testing.assert_array_equal(FitSettings().penalty(low, high), [0, 0, 0])


def test_the_sidecar_gets_the_options_that_results_depend_on():
    assert FitSettings(n_threads=4).describe() == {
        "Method": "the model's own",
        "Starts": "auto",
        "Bounds": "those of the model",
        "Regularization": None,
        "Likelihood": "gaussian",
    }
    settings = FitSettings(
        method="segmented",
        bounds={"f": (0, 0.5), "K": (0, "monotonic")},
        regularization=0.1,
        n_starts=2,
        threshold=200.0,
        weights=[1, 2.5],
    )
    assert settings.describe() == {
        "Method": "segmented",
        "Starts": 2,
        "Bounds": "f from 0 to 0.5, K from 0 to monotonic",
        "Regularization": 0.1,
        "Likelihood": "gaussian",
        "Threshold": 200.0,
        "Weights": "1, 2.5",
    }
    assert FitSettings(bounds="published").describe()["Bounds"] == "published"


# Fixed values and bounds in other units.

RELATIVE = MODELS["t2-ivim-relative"]
PROTOCOL = Protocol([0, 20, 50, 100, 200, 400, 800, 1000])


def parameter_of(name, model=T2):
    return dict(zip(model.names, model.parameters, strict=True))[name]


APPARENT = parameter_of("ADC", MODELS["adc"])
D = parameter_of("D", MODELS["kurtosis"])


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *((parameter_of("f"), share) for share in (0.0, 0.15, 1.0)),
        *((parameter_of("Dv"), fast) for fast in (3.0, 10.0, 100.0, 1000.0)),
        *((parameter_of("Dt"), slow) for slow in (-1.0, 0.0, 0.05, 0.1, 3.2)),
        *((parameter_of("K"), kurtosis) for kurtosis in (-0.5, 0.0, 8.0)),
        *((parameter_of("T2t"), time) for time in (5.0, 300.0, 2000.0)),
        *((APPARENT, diffusivity) for diffusivity in (0.0, 0.02, 20.0)),
        (parameter_of("S0"), 1e6),
        (parameter_of("dR2", RELATIVE), -0.1),
    ],
)
def test_unusual_fixed_values_are_accepted(parameter, value):
    check_values(parameter, f"fixed {parameter.name}", np.asarray(value))


def test_fits_refuse_other_units_by_the_median_of_a_map_and_never_the_box_of_ones_own_model():
    check_values(APPARENT, "fixed ADC", np.array([0.0, 0.001, 0.9, 1.1]))
    with pytest.raises(ValueError, match="looks like mm²/s"):
        check_values(APPARENT, "fixed ADC", np.array([0.0, 0.001, 0.0009, 0.0011]))
    with pytest.raises(ValueError, match=r"fixed f is 1\.5"):
        check_values(parameter_of("f"), "fixed f", np.array([0.1, 0.2, 1.5]))
    slow = Parameter("D", "µm²/ms", 0.0, 0.003)
    check_values(slow, "fixed D", np.asarray(0.002))
    _check_bounds(slow, slow.low, slow.high)
    signals = MODELS["ivim"].signal([[1000.0, 0.1, 20.0, 1.0]], PROTOCOL)
    with pytest.raises(ValueError, match=r"did you mean 0\.15"):
        fit_voxels(signals, PROTOCOL, "ivim", fixed={"f": 15})
    with pytest.raises(ValueError, match="did you mean 3 µm²/ms"):
        fit_voxels(signals, PROTOCOL, "adc", bounds={"ADC": (0, 0.003)})


@pytest.mark.parametrize(
    ("parameter", "bounds"),
    [(APPARENT, limits) for limits in ((-np.inf, np.inf), (0, 3000), (0, 0.02))]
    + [(parameter_of("f"), limits) for limits in ((-0.1, 1.1), (-np.inf, np.inf))]
    + [(parameter_of("Dv"), (30, 30)), (parameter_of("T2t"), (1, 3000))],
)
def test_bounds_that_hold_plausible_values_are_accepted(parameter, bounds):
    _check_bounds(parameter, *bounds)
