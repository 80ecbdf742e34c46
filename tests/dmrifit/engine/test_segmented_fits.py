"""Segmented fits of IVIM: the threshold, weights, and an amplitude that is measured."""

import numpy as np
import pytest

from dmrifit import MODELS, FitStatus, Protocol, fit_voxels

PROTOCOL = Protocol([0, 0, 20, 50, 100, 200, 400, 600, 800])
IVIM = MODELS["ivim"]
TRUTH = np.array([[100.0, 0.1, 30.0, 1.2], [60.0, 0.25, 60.0, 0.7]])


def noisy(n=300, sd=2.0):
    rng = np.random.default_rng(0)
    signals = IVIM.signal(np.repeat(TRUTH, n, axis=0), PROTOCOL)
    return np.abs(signals + rng.normal(0, sd, signals.shape))


@pytest.mark.parametrize("threshold", [150.0, 300.0])
def test_the_first_step_is_a_fit_from_the_threshold_on(threshold):
    signals = noisy()
    result = fit_voxels(signals, PROTOCOL, "ivim", method="segmented", threshold=threshold)
    high_b = np.flatnonzero(PROTOCOL.b >= threshold)
    tissue = fit_voxels(signals[:, high_b], PROTOCOL.take(high_b), "adc", bounds={"ADC": (0.2, 3.0)})
    np.testing.assert_array_equal(result["Dt"], tissue["ADC"])
    # Without the error of Dt, f spreads by 2.1 and 2.8 times its standard error.
    ratios = (result.parameters - np.repeat(TRUTH, 300, axis=0)) / result.standard_errors
    assert np.nanstd(ratios[:300, [1, 3]], axis=0) == pytest.approx([1.1, 1.1], abs=0.2)
    assert result.method == "segmented"
    rest = fit_voxels(signals, PROTOCOL, "ivim", method="nlls", fixed={"Dt": result["Dt"]})
    np.testing.assert_allclose(result.parameters, rest.parameters, rtol=1e-12)
    np.testing.assert_allclose(result.cost, rest.cost, rtol=1e-12)
    # A threshold alone asks for a segmented fit.
    alone = fit_voxels(signals, PROTOCOL, "ivim", threshold=threshold)
    np.testing.assert_array_equal(alone.parameters, result.parameters)


@pytest.mark.parametrize("method", ["nlls", "segmented"])
def test_the_amplitude_can_be_the_measured_signal(method):
    signals = noisy()
    signals[3, 0] = np.nan
    signals[4] = np.nan
    result = fit_voxels(signals, PROTOCOL, "ivim", method=method, fixed={"S0": "measured"})
    expected = signals[:, :2].mean(axis=1)
    expected[3] = signals[3, 1]
    fitted = np.arange(len(signals)) != 4
    np.testing.assert_allclose(result["S0"][fitted], expected[fitted], rtol=1e-12)
    assert result.status[4] == FitStatus.NOT_FITTED
    assert "S0" in result.fixed
    assert np.nanmedian(result["f"][:300]) == pytest.approx(0.1, abs=0.02)


def test_weights_enter_both_steps():
    signals = noisy(20)
    plain = fit_voxels(signals, PROTOCOL, "ivim", method="segmented")
    equal = fit_voxels(signals, PROTOCOL, "ivim", method="segmented", weights=[3.0] * 9)
    np.testing.assert_allclose(equal["Dt"], plain["Dt"], rtol=1e-4)
    np.testing.assert_allclose(equal["f"], plain["f"], atol=1e-3)
    weights = [1, 1, 1, 1, 1, 1, 1, 1, 4]
    weighted = fit_voxels(signals, PROTOCOL, "ivim", method="segmented", weights=weights)
    repeated = Protocol([*PROTOCOL.b, 800, 800, 800])
    thrice = np.concatenate([signals, signals[:, -1:].repeat(3, axis=1)], axis=1)
    other = fit_voxels(thrice, repeated, "ivim", method="segmented")
    np.testing.assert_allclose(weighted["Dt"], other["Dt"], rtol=1e-4)
    np.testing.assert_allclose(weighted["f"], other["f"], atol=1e-3)


def test_one_high_b_value_leaves_no_fit():
    protocol = Protocol([0] * 4 + [50, 100] + [400, 400, 800, 800])
    signals = MODELS["ivim"].signal([[100, 0.1, 20, 1.0]], protocol)
    assert fit_voxels(signals, protocol, "ivim", method="segmented").status[0] != FitStatus.NOT_FITTED
    signals[0, -2:] = np.nan
    assert fit_voxels(signals, protocol, "ivim", method="segmented").status[0] == FitStatus.NOT_FITTED
