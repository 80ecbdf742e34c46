"""Log-linear fits against plain numpy: ordinary and iterated weighted least squares of logarithms."""

import numpy as np
import pytest

from dmrifit import MODELS, FitStatus, Parameter, Protocol, SignalModel, fit_voxels
from dmrifit.engine.methods.loglinear import log_linear_form

PROTOCOL = Protocol([0, 50, 100, 400, 900, 1200, 1600])
WIDE = Protocol([0, 300, 700, 1200, 1800, 2400, 2400])
UM2_PER_MS = 1e-3  # mm²/s


def noisy(model, parameters, protocol, seed, sd=4.0):
    rng = np.random.default_rng(seed)
    signals = model.signal(parameters, protocol)
    return np.hypot(signals + rng.normal(0, sd, signals.shape), rng.normal(0, sd, signals.shape))


def adc_signals(n, seed=0):
    rng = np.random.default_rng(seed)
    parameters = np.column_stack([rng.uniform(50, 500, n), rng.uniform(0.2, 3, n)])
    return noisy(MODELS["adc"], parameters, PROTOCOL, seed + 1)


def straight_fit(signal, design, n_reweightings):
    """Fit by numpy; coefficients, their covariance."""
    use = np.isfinite(signal) & (signal > 0)
    x, y = design[use], np.log(signal[use])
    weight = np.ones(use.sum()) if n_reweightings is None else signal[use] ** 2
    for _ in range(1 + (n_reweightings or 0)):
        hat = np.linalg.inv(x.T @ (weight[:, None] * x)) @ x.T * weight
        coefficients, noise = hat @ y, 1 / weight
        residuals, weight = y - x @ coefficients, np.exp(2 * x @ coefficients)
    if n_reweightings is None:
        noise, residuals = 1 / weight, np.exp(residuals) - 1
    left = (np.eye(len(x)) - x @ hat) ** 2 @ noise / noise  # of a noise of these variances, in the residuals
    return coefficients, (residuals**2 / noise).sum() / left.sum() * hat * noise @ hat.T


@pytest.mark.parametrize("method", ["ols", "wls"])
def test_adc_and_kurtosis_are_those_of_plain_numpy_with_errors_to_first_order(method):
    signals = adc_signals(300)
    design = np.stack([np.ones(7), -PROTOCOL.b_ms_per_um2], axis=1)
    result = fit_voxels(signals, PROTOCOL, "adc", method=method)
    for i, signal in enumerate(signals):
        (level, adc), covariance = straight_fit(signal, design, None if method == "ols" else 2)
        # 1e-8 mm²/s is what scanners print.
        assert abs(result["ADC"][i] - adc) * UM2_PER_MS < 1e-10
        assert result["S0"][i] == pytest.approx(np.exp(level), rel=1e-8)
        errors = np.sqrt(np.diag(covariance)) * [np.exp(level), 1]
        np.testing.assert_allclose(result.standard_errors[i], errors, rtol=1e-6)
        left = ((signal - np.exp(level - PROTOCOL.b_ms_per_um2 * adc)) ** 2).sum()
        assert result.cost[i] == pytest.approx(left, rel=1e-6)
    assert (result.status == FitStatus.CONVERGED).all()
    assert result.method == method
    b, rng = WIDE.b_ms_per_um2, np.random.default_rng(3)
    truth = np.column_stack([rng.uniform(100, 500, 60), rng.uniform(0.5, 1.2, 60), rng.uniform(0.4, 1.2, 60)])
    signals = noisy(MODELS["kurtosis"], truth, WIDE, 4)
    design = np.stack([np.ones(7), -b, b**2], axis=1)
    result = fit_voxels(signals, WIDE, "kurtosis", method=method)
    for i, signal in enumerate(signals):
        (level, d, square), covariance = straight_fit(signal, design, None if method == "ols" else 2)
        np.testing.assert_allclose(result.parameters[i], [np.exp(level), d, 6 * square / d**2], rtol=1e-6)
        slope = np.array([0, -12 * square / d**3, 6 / d**2])
        assert result.standard_errors[i, 2] == pytest.approx(np.sqrt(slope @ covariance @ slope), rel=1e-5)
    wide, truth = Protocol(np.repeat(WIDE.b, 3)), np.tile([400, 1.2, 0.75], (3000, 1))
    result = fit_voxels(noisy(MODELS["kurtosis"], truth, wide, 5), wide, "kurtosis", method=method)
    np.testing.assert_allclose(np.median(result.standard_errors, axis=0), result.parameters.std(axis=0), rtol=0.08)


@pytest.mark.parametrize("method", ["ols", "wls"])
def test_values_without_a_logarithm_are_left_out_and_counted(method):
    signals = adc_signals(200, seed=5)
    rng = np.random.default_rng(6)
    gaps = rng.random(signals.shape) < 0.15
    signals[gaps] = rng.choice([0.0, -3.0, np.nan, np.inf], gaps.sum())
    result = fit_voxels(signals, PROTOCOL, "adc", method=method)
    np.testing.assert_array_equal(result.n_left_out, gaps.sum(axis=1))
    design = np.stack([np.ones(7), -PROTOCOL.b_ms_per_um2], axis=1)
    # Negative values and low zeros are data without a logarithm; of the others a fifth may lack.
    n_missing = result.screening.n_not_finite + result.screening.n_outside
    np.testing.assert_array_equal(result.screening.n_not_finite, (~np.isfinite(signals)).sum(axis=1))
    assert (result.status[n_missing > 7 / 5] == FitStatus.NOT_FITTED).all()
    for i in np.flatnonzero(((~gaps).sum(axis=1) > 2) & (n_missing <= 7 / 5)):
        (_, adc), _ = straight_fit(signals[i], design, None if method == "ols" else 2)
        assert result["ADC"][i] == pytest.approx(adc, rel=1e-8, abs=1e-9)
    n_without = result.screening.n_without_logarithm.sum()
    assert 0 < n_without < gaps.sum()
    assert f"{gaps.sum()} values left out ({n_without} without a logarithm)" in result._repr_html_()


@pytest.mark.parametrize("row", [[np.nan] * 7, [0.0] * 7, [5.0] * 7, [3.0, *[np.nan] * 6]])
@pytest.mark.parametrize("method", ["ols", "wls"])
def test_a_voxel_without_a_line_is_not_fitted(row, method):
    result = fit_voxels([row], PROTOCOL, "adc", method=method)
    assert result.status[0] == FitStatus.NOT_FITTED
    assert np.isnan([*result.parameters[0], *result.standard_errors[0], result.cost[0]]).all()


@pytest.mark.parametrize("method", ["ols", "wls"])
def test_bits_depend_on_neither_threads_nor_neighbors(method):
    signals = adc_signals(9000, seed=7)
    signals[::7, 2] = -1
    whole = fit_voxels(signals, PROTOCOL, "adc", method=method, n_threads=1)
    threads = fit_voxels(signals, PROTOCOL, "adc", method=method, n_threads=3)
    part = fit_voxels(signals[1234:5003], PROTOCOL, "adc", method=method)
    np.testing.assert_array_equal(whole.parameters, threads.parameters)
    np.testing.assert_array_equal(whole.standard_errors[1234:5003], part.standard_errors)
    np.testing.assert_array_equal(whole.parameters[1234:5003], part.parameters)
    np.testing.assert_array_equal(whole.cost[1234:5003], part.cost)


def test_a_signal_that_rises_has_a_negative_adc():
    signals = MODELS["adc"].signal([[100.0, -0.3]], PROTOCOL)
    result = fit_voxels(signals, PROTOCOL, "adc", method="ols")
    np.testing.assert_allclose(result.parameters, [[100, -0.3]], rtol=1e-12)
    assert not result.at_low.any()


def test_equal_measurements_count_like_their_weight():
    signals = adc_signals(50, seed=8)
    twice = np.concatenate([signals, signals[:, -1:]], axis=1)
    repeated = fit_voxels(twice, Protocol([*PROTOCOL.b, 1600]), "adc", method="wls")
    weighted = fit_voxels(signals, PROTOCOL, "adc", method="wls", weights=[1] * 6 + [2])
    np.testing.assert_allclose(repeated.parameters, weighted.parameters, rtol=1e-9)
    np.testing.assert_allclose(weighted.inputs.weights / weighted.inputs.weights[0], [1] * 6 + [2])


def test_users_models_are_fitted_where_their_logarithm_is_linear():
    model = SignalModel.from_expression(
        "A*exp(-te/T2 - b*D)",
        [Parameter("A", "signal", 0, 10), Parameter("D", "µm²/ms", 0, 5), Parameter("T2", "ms", 10, 200)],
        name="t2-adc",
    )
    protocol = Protocol([0, 500, 1000, 0, 500, 1000], [60, 60, 60, 100, 100, 100])
    truth = np.array([[300.0, 1.1, 80.0], [50.0, 0.4, 45.0]])
    result = fit_voxels(model.signal(truth, protocol), protocol, model, method="wls")
    np.testing.assert_allclose(result.parameters, truth, rtol=1e-9)
    sum_of_two = SignalModel.from_expression(
        "A*exp(-b*D) + C", [Parameter(name, "signal", 0, 1) for name in "ADC"], name="offset"
    )
    assert log_linear_form(sum_of_two) is None


@pytest.mark.parametrize("model", ["adc", "kurtosis"])
def test_types_and_neighbors_of_voxels_do_not_change_their_bits(model):
    signals = adc_signals(200).astype(np.float32)
    signals[20, 3], signals[21, 2], signals[22] = 0, np.nan, 5
    kept = fit_voxels(signals.astype(float), PROTOCOL, model, method="ols")
    read_only = signals.copy()
    read_only.flags.writeable = False
    for values in (signals, read_only, np.asfortranarray(signals), signals.astype(">f4")):
        result = fit_voxels(values, PROTOCOL, model, method="ols")
        for name in ("parameters", "standard_errors", "cost", "status", "n_left_out"):
            np.testing.assert_array_equal(getattr(result, name), getattr(kept, name))
    part = fit_voxels(signals[17:40], PROTOCOL, model, method="ols")
    np.testing.assert_array_equal(part.parameters, kept.parameters[17:40])
    np.testing.assert_array_equal(part.cost, kept.cost[17:40])
    assert kept.n_left_out[20:23].tolist() == [1, 1, 0]
    assert (kept.status == FitStatus.NOT_FITTED).nonzero()[0].tolist() == [22]
