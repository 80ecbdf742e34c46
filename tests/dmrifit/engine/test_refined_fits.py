"""Fits by likelihood and weights, against scipy."""

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize
from scipy.special import i0e
from scipy.stats import rice

from dmrifit import MODELS, FitStatus, Protocol, fit_voxels
from dmrifit.engine.methods.rician import expected_magnitude

PROTOCOL = Protocol([0, 50, 100, 300, 600, 900, 1500, 2500, 3500])
SIGMA = 3.0
IVIM = MODELS["ivim"]


def ivim_signals(n, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.column_stack([
        rng.uniform(50, 100, n), rng.uniform(0.05, 0.4, n), rng.uniform(8, 60, n), rng.uniform(0.4, 2.5, n)
    ])  # fmt: skip
    signals = IVIM.signal(truth, PROTOCOL)
    return np.hypot(signals + rng.normal(0, SIGMA, signals.shape), rng.normal(0, SIGMA, signals.shape)), truth


def rician_loss(signal, predicted):
    return -rice.logpdf(signal, predicted / SIGMA, scale=SIGMA).sum()


def mean_loss(signal, predicted):
    return ((signal - expected_magnitude(predicted, SIGMA)) ** 2).sum() / (2 * SIGMA**2)


@pytest.mark.parametrize(("likelihood", "loss"), [("rician", rician_loss), ("rician-mean", mean_loss)])
def test_no_search_of_scipy_finds_a_better_likelihood(likelihood, loss):
    signals, truth = ivim_signals(12)
    result = fit_voxels(signals, PROTOCOL, "ivim", sigma=SIGMA, likelihood=likelihood)
    assert result.likelihood == likelihood
    for signal, ours, unit in zip(signals, result.parameters, truth, strict=True):

        def objective(x, signal=signal, unit=unit):
            return loss(signal, IVIM.signal(x * unit, PROTOCOL)[0])

        box = [
            (low / u, None if np.isinf(high) else high / u) for (low, high), u in zip(IVIM.bounds, unit, strict=True)
        ]
        starts = np.ones(4), ours / unit
        ends = [
            minimize(objective, x, method="L-BFGS-B", bounds=box, options={"ftol": 1e-13, "gtol": 1e-9}) for x in starts
        ]
        assert objective(ours / unit) <= min(end.fun for end in ends) + 1e-6


@pytest.mark.parametrize("weights", [[1, 1, 1, 2, 2, 3, 3, 4, 5], [0.1] * 9])
def test_weighted_least_squares_are_those_of_scipy(weights):
    signals, truth = ivim_signals(12, seed=1)
    result = fit_voxels(signals, PROTOCOL, "ivim", method="nlls", weights=weights)
    root = np.sqrt(np.array(weights) / np.mean(weights))
    low, high = np.array(IVIM.bounds).T
    for signal, ours, start in zip(signals, result.parameters, truth, strict=True):

        def residuals(x, signal=signal):
            return root * (IVIM.signal(x, PROTOCOL)[0] - signal)

        ends = [
            least_squares(residuals, x, bounds=(low, high), x_scale=start, xtol=1e-12, ftol=1e-12)
            for x in (start, np.clip(ours, low + 1e-9, high - 1e-9))
        ]
        assert (residuals(ours) ** 2).sum() <= 2 * min(end.cost for end in ends) * (1 + 1e-7)


@pytest.mark.parametrize("snr", [15, 40])
def test_likelihoods_are_unbiased_where_the_floor_is_not_and_their_errors_cover(snr):
    rng = np.random.default_rng(2)
    truth = np.array([100.0, 1.8])
    clean = MODELS["adc"].signal([truth], PROTOCOL).repeat(3000, axis=0)
    sigma = 100 / snr
    signals = np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape))
    bias = {}
    for likelihood in ("gaussian", "rician", "rician-mean"):
        result = fit_voxels(signals, PROTOCOL, "adc", sigma=sigma, likelihood=likelihood)
        bias[likelihood] = abs(result["ADC"].mean() / truth[1] - 1)
        if likelihood == "rician":
            covered = np.abs(result.parameters - truth) < 1.96 * result.standard_errors
            assert (np.abs(covered.mean(axis=0) - 0.95) < 0.02).all()
    assert bias["rician"] < 0.012
    assert bias["rician-mean"] < 0.012
    assert bias["rician"] < bias["gaussian"]


def test_gaps_bounds_and_voxels_without_signal_keep_their_contract():
    signals, _ = ivim_signals(40, seed=3)
    signals[0] = np.nan
    signals[1, 3] = np.nan
    options = {"sigma": np.full(40, SIGMA), "likelihood": "rician", "bounds": {"f": (0.0, 0.1)}}
    result = fit_voxels(signals, PROTOCOL, "ivim", **options)
    assert result.status[0] == FitStatus.NOT_FITTED
    assert np.isnan(result.parameters[0]).all()
    assert np.isfinite(result.parameters[1:]).all()
    assert (result["f"][1:] <= 0.1).all()
    at_high = result.at_high[1:, 1]
    assert at_high.any()
    np.testing.assert_array_equal(result["f"][1:][at_high], 0.1)
    assert np.isnan(result.standard_errors[1:, 1][at_high]).all()
    part = fit_voxels(signals[10:20], PROTOCOL, "ivim", **options | {"sigma": np.full(10, SIGMA), "n_threads": 2})
    np.testing.assert_array_equal(part.parameters, result.parameters[10:20])


def test_fixed_parameters_stay():
    signals, truth = ivim_signals(5, seed=4)
    result = fit_voxels(signals, PROTOCOL, "ivim", sigma=SIGMA, likelihood="rician", fixed={"Dt": truth[:, 3]})
    np.testing.assert_allclose(result["Dt"], truth[:, 3], rtol=1e-12)
    assert np.isnan(result.standard_errors[:, 3]).all()


@pytest.mark.parametrize("options", [{"likelihood": "rician"}, {"weights": [1, 1, 2, 2, 3, 3]}])
def test_a_kurtosis_at_its_cap_is_the_best_that_keeps_the_signal_falling(options):
    rng = np.random.default_rng(12)
    protocol = Protocol([0, 500, 1000, 1500, 2000, 2800])
    model, b = MODELS["kurtosis"], protocol.b_ms_per_um2
    sigma = None if "weights" in options else 3.0
    clean = model.signal(np.tile([100.0, 1.4, 0.6], (60, 1)), protocol)
    noise = rng.normal(0, 3.0, (2, *clean.shape))
    signals = np.hypot(clean + noise[0], noise[1])
    result = fit_voxels(signals, protocol, model, sigma=sigma, **options)
    limit = 3 / (2.8 * result["D"])
    assert (result["K"] <= limit * (1 + 1e-9)).all()
    held = result.at_high[:, 2]
    assert 3 < held.sum() < 50
    np.testing.assert_allclose(result["K"][held], limit[held])
    weight = np.ones(6) if sigma else np.array([1, 1, 2, 2, 3, 3]) / 2

    def objective(x, signal):
        s0, d, share = x
        k = share * min(5.0, 3 / (2.8 * max(d, 1e-9)))
        predicted = s0 * np.exp(-b * d + k * (b * d) ** 2 / 6)
        if sigma is None:
            return 1e-3 * (weight * (signal - predicted) ** 2).sum()
        z = signal * predicted / sigma**2
        return ((signal - predicted) ** 2 / (2 * sigma**2) - np.log(i0e(z))).sum()

    for i in np.flatnonzero(held)[:4]:
        ours = np.array([*result.parameters[i, :2], 1.0])
        best = min(
            minimize(
                objective, [ours[0], d, share], signals[i], method="L-BFGS-B", bounds=[(1, 500), (0.01, 10), (0, 1)]
            ).fun
            for d in (ours[1], 1.0)
            for share in (0.2, 0.95)
        )
        assert objective(ours, signals[i]) <= best + 1e-6


def test_the_cap_leaves_standard_errors_inside_it_as_they_are():
    rng = np.random.default_rng(13)
    protocol = Protocol(np.arange(0, 2801, 200))
    clean = MODELS["kurtosis"].signal(np.tile([100.0, 0.9, 0.8], (50, 1)), protocol)
    signals = clean + rng.normal(0, 1, clean.shape)
    options = {"sigma": 1.0, "likelihood": "rician"}
    capped = fit_voxels(signals, protocol, "kurtosis", **options)
    free = fit_voxels(signals, protocol, "kurtosis", bounds={"K": (0, 5)}, **options)
    assert not capped.at_high.any()
    np.testing.assert_allclose(capped.parameters, free.parameters, rtol=1e-3)
    np.testing.assert_allclose(capped.standard_errors, free.standard_errors, rtol=2e-3)


def test_a_prior_has_the_bounds_of_the_model_alone():
    rng = np.random.default_rng(14)
    protocol = Protocol(np.arange(0, 2801, 400))
    clean = MODELS["kurtosis"].signal(np.tile([100.0, 2.8, 0.0], (60, 1)), protocol)
    signals = np.hypot(clean + rng.normal(0, 2, clean.shape), rng.normal(0, 2, clean.shape))
    result = fit_voxels(signals, protocol, "kurtosis", method="map")
    assert np.isinf(result.turn_up)
