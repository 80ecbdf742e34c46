"""Priors learned from data: what is learned, what it is worth, and its price."""

import numpy as np
import pytest

from dmrifit import MODELS, FitStatus, Protocol, fit_voxels
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.fitting import learn_prior
from dmrifit.engine.methods.prior import PULLED, Prior

PROTOCOL = Protocol([0, 10, 20, 40, 80, 150, 250, 400, 600, 800])
ADC, IVIM = MODELS["adc"], MODELS["ivim"]


def logit(share):
    return np.log(share / (1 - share))


def adc_region(n, seed=0, snr=12.0):
    """Synthetic signals whose ADC is lognormal about 1 µm²/ms, within 25 %."""
    rng = np.random.default_rng(seed)
    truth = np.column_stack([np.full(n, 100.0), rng.lognormal(0, 0.25, n)])
    signals = ADC.signal(truth, PROTOCOL)
    return signals + rng.normal(0, 100 / snr, signals.shape), truth


def ivim_region(n, seed=1, snr=30.0):
    rng = np.random.default_rng(seed)
    truth = np.column_stack([
        np.full(n, 100.0), rng.beta(8, 40, n), rng.lognormal(np.log(25), 0.3, n), rng.lognormal(0, 0.12, n)
    ])  # fmt: skip
    signals = IVIM.signal(truth, PROTOCOL)
    return np.abs(signals + rng.normal(0, 100 / snr, signals.shape)), truth


def test_mean_spread_and_noise_of_a_region_are_learned_without_the_noise_of_estimates():
    signals, truth = adc_region(2000)
    prior = learn_prior(signals, PROTOCOL, "adc", FitSettings(method="map"))
    line = logit(truth[:, 1] / 100)
    estimates = logit(fit_voxels(signals, PROTOCOL, "adc")["ADC"] / 100)
    assert prior.mean[0] == pytest.approx(line.mean(), abs=0.03)
    spread = np.sqrt(prior.covariance[0, 0])
    assert spread == pytest.approx(line.std(), rel=0.12)
    assert spread < 0.93 * estimates.std()
    assert prior.sigma == pytest.approx(100 / 12, rel=0.03)
    assert (prior.names, prior.n_voxels) == (("ADC",), 2000)


def test_the_optimum_is_that_of_the_posterior_by_scipy():
    from scipy.optimize import minimize

    signals, _ = ivim_region(400)
    result = fit_voxels(signals, PROTOCOL, "ivim", method="map")
    mean, precision = result.prior.expanded(IVIM)
    low, high = np.array(IVIM.bounds[1:]).T

    def objective(x, signal):
        line = np.array([0, *x[1:]])
        parameters = [np.exp(x[0]), *(low + (high - low) / (1 + np.exp(-x[1:])))]
        residuals = signal - IVIM.signal(parameters, PROTOCOL)[0]
        away = line - mean
        return (residuals**2).sum() / (2 * result.prior.sigma**2) + away @ precision @ away / 2

    for i in range(8):
        ours = np.array([np.log(result["S0"][i]), *logit((result.parameters[i, 1:] - low) / (high - low))])
        ends = [minimize(objective, x, args=(signals[i],), method="BFGS").fun for x in (ours, np.r_[ours[0], mean[1:]])]
        assert objective(ours, signals[i]) <= min(ends) + 1e-6


def test_errors_of_the_region_fall_and_the_standard_errors_tell_them():
    signals, truth = ivim_region(1500)
    prior = fit_voxels(signals, PROTOCOL, "ivim", method="map")
    plain = fit_voxels(signals, PROTOCOL, "ivim", method="nlls")
    for name in ("f", "Dv", "Dt"):
        j = IVIM.names.index(name)
        errors = prior[name] - truth[:, j]
        assert np.sqrt((errors**2).mean()) < 0.7 * np.sqrt(((plain[name] - truth[:, j]) ** 2).mean())
        covered = np.abs(errors) < 1.96 * prior.standard_errors[:, j]
        assert covered.mean() > 0.9
    assert "pulled toward the region" in prior._repr_html_()
    assert prior.method == "map"


def test_a_lesion_of_five_percent_keeps_part_of_its_contrast():
    signals, truth = ivim_region(1500, seed=3)
    lesion = np.arange(1500) < 75
    truth[lesion, 1:] = [0.3, 25.0, 0.7]
    rng = np.random.default_rng(4)
    clean = IVIM.signal(truth[lesion], PROTOCOL)
    signals[lesion] = np.abs(clean + rng.normal(0, 100 / 30, clean.shape))
    result = fit_voxels(signals, PROTOCOL, "ivim", method="map")
    kept = {}
    for name in ("f", "Dt"):
        j = IVIM.names.index(name)
        contrast = truth[lesion, j].mean() - truth[~lesion, j].mean()
        kept[name] = (result[name][lesion].mean() - result[name][~lesion].mean()) / contrast
    # The price of the prior; a fit without one keeps 90 % or more.
    assert 0.5 < kept["f"] < 1.05
    assert 0.5 < kept["Dt"] < 1.05


def test_a_prior_that_was_learned_before_gives_the_same_bits_in_parts():
    signals, _ = ivim_region(300, seed=5)
    prior = learn_prior(signals, PROTOCOL, "ivim", FitSettings(method="map"))
    whole = fit_voxels(signals, PROTOCOL, "ivim", method="map")
    part = fit_voxels(signals[50:90], PROTOCOL, "ivim", method="map", prior=prior, n_threads=2)
    np.testing.assert_array_equal(part.parameters, whole.parameters[50:90])
    empty = fit_voxels([[np.nan] * 10], PROTOCOL, "ivim", method="map", prior=prior)
    assert empty.status[0] == FitStatus.NOT_FITTED


def test_too_few_voxels_or_measurements_are_refused_with_the_remedy():
    signals, _ = ivim_region(10)
    with pytest.raises(ValueError, match="learned from 20 fitted voxels or more, and there are 10"):
        fit_voxels(signals, PROTOCOL, "ivim", method="map")
    prior = learn_prior(ivim_region(30)[0], PROTOCOL, "ivim", FitSettings(method="map"))
    with pytest.raises(ValueError, match=r"prior cannot be used with .* or use method 'map'"):
        fit_voxels(signals, PROTOCOL, "ivim", prior=prior)


PRIOR = Prior(("f", "Dt"), np.array([-2.0, 0.5]), np.array([[0.5, 0.1], [0.1, 0.3]]), 3.0, 40)


def test_precision_is_the_inverse_of_the_widened_covariance_and_zero_without_a_prior():
    mean, precision = PRIOR.expanded(MODELS["ivim"], widening=2.0)
    names = MODELS["ivim"].names
    np.testing.assert_array_equal(mean, [{"f": -2.0, "Dt": 0.5}.get(name, 0.0) for name in names])
    columns = [names.index("f"), names.index("Dt")]
    block = precision[np.ix_(columns, columns)]
    np.testing.assert_allclose(block @ (2 * PRIOR.covariance), np.eye(2), atol=1e-12)
    others = [i for i in range(len(names)) if i not in columns]
    assert not precision[others].any()
    assert not precision[:, others].any()


def test_the_sidecar_says_that_maps_are_pulled_and_how_many_voxels_taught_the_prior():
    description = PRIOR.describe()
    assert description["Description"] == PULLED
    assert description["Voxels"] == 40
    assert description["TransformedMean"] == [-2.0, 0.5]
