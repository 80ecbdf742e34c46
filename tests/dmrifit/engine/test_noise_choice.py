"""What a fit chooses by the noise: noise of known scatter, steps of IVIM, the floor of water; synthetic data."""

import numpy as np
import pytest

from dmrifit import MODELS, Protocol, fit_voxels
from dmrifit.engine import noise_choice
from dmrifit.engine.doubts import DoubtReason
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.fitting import measured_noise
from dmrifit.engine.noise_choice import above_air, above_air_or_noise

IVIM, KURTOSIS = MODELS["ivim"], MODELS["kurtosis"]
LOW_B = Protocol([0, 10, 20, 40, 60, 100, 150, 200, 400, 600, 800, 1000])
SHELLS = Protocol([0, 0, 0, 500, 1000, 1500, 2000, 2000])


def magnitudes(model, parameters, protocol, snr, seed, n=2000):
    rng = np.random.default_rng([4821, seed])
    signals = model.signal(np.tile(parameters, (n, 1)), protocol)
    noise = rng.normal(scale=parameters[0] / snr, size=(2, *signals.shape))
    return np.hypot(signals + noise[0], noise[1])


@pytest.mark.parametrize("snr", [15, 40])
def test_residuals_and_repeats_measure_the_noise_that_was_added(snr):
    tissue = [100.0, 0.1, 20.0, 1.0]
    by_residuals = fit_voxels(magnitudes(IVIM, tissue, LOW_B, snr, 1), LOW_B, "ivim").noise
    signals = magnitudes(KURTOSIS, [100.0, 1.0, 0.8], SHELLS, snr, 2)
    assert (by_residuals, fit_voxels(signals, SHELLS, "kurtosis").noise) == pytest.approx((100 / snr,) * 2, rel=0.06)
    assert noise_choice.noise_of_repeats(signals, SHELLS).sigma == pytest.approx(100 / snr, rel=0.05)
    pairs = Protocol([0, 0, 800] * 2, te=np.repeat([60, 90], 3))
    signals = magnitudes(MODELS["t2-adc"], [100.0, 1.0, 80.0], pairs, 2 * snr, 2)
    assert noise_choice.noise_of_repeats(signals, pairs).sigma == pytest.approx(50 / snr, rel=0.05)
    steps = 100 + np.tile([3.0, -3, 0] * 4 + [1, -1, 0] * 4 + [0.0] * 12, (9, 1)) - np.repeat([0, 10, 99], 12)
    level = noise_choice.noise_of_repeats(steps, Protocol(np.zeros(36), te=np.repeat([50, 60, 200], 12)))
    assert level.sigma == pytest.approx((80 / 22) ** 0.5, rel=0.05)
    # Residuals would hold the anisotropy.
    assert noise_choice.directions_vary(Protocol([0, 800, 800], directions=[[0, 0, 0], [1, 0, 0], [0, 1, 0]]))


def test_residuals_measure_the_noise_with_parameters_at_bounds_and_with_few_measurements():
    protocol = Protocol(np.tile([0, 400, 800], 3), te=np.repeat([60, 90, 120], 3))
    signals = magnitudes(MODELS["t2-adc"], [100.0, 1.0, 80.0], protocol, 120, 10)
    result = fit_voxels(signals, protocol, "t2-ivim-kurtosis", method="nlls")
    assert noise_choice.noise_of_residuals(result) == pytest.approx(100 / 120, rel=0.05)
    one_left = fit_voxels(signals[:, :3], protocol.take([0, 1, 2]), "adc")
    assert np.nanmedian(noise_choice.residual_levels(one_left)) == pytest.approx(100 / 120, rel=0.05)


def test_air_of_few_gray_values_does_not_displace_the_tissue():
    """Scanners store much of the air as 0 and 1; a 0 counts as missing."""
    air = np.full((3000, 12), np.nan)
    air[np.arange(3000), np.arange(3000) % 12] = 1.0
    signals = np.concatenate([air, magnitudes(IVIM, [100.0, 0.1, 20.0, 1.0], LOW_B, 20, 5)])
    assert np.isfinite(signals[noise_choice.spread_rows(signals)]).all(axis=1).mean() > 0.9
    assert fit_voxels(signals, LOW_B, "ivim").noise == pytest.approx(5.0, rel=0.1)


def test_low_b_values_that_differ_are_no_repeats():
    """Between b = 0 and 5 s/mm² perfusion decays, as in OSIPI's protocol."""
    signals = magnitudes(IVIM, [1.0, 0.3, 80.0, 1.0], Protocol([0, 1, 2, 5, 500, 800]), 200, 3)
    level = noise_choice.noise_of_repeats(signals, Protocol([0, 1, 2, 5, 500, 800]))
    assert (str(level.sigma), level.method) == ("nan", "repeats at b = 0 to 1")


@pytest.mark.parametrize(
    ("snr", "method", "threshold"), [(10, "segmented", 40), (30, "segmented", 100), (60, "segmented", 150), (200, "nlls", None)]
)
def test_ivim_has_two_steps_at_a_low_snr_and_the_first_from_a_higher_b_the_higher_it_is(snr, method, threshold):
    signals = magnitudes(IVIM, [100.0, 0.1, 20.0, 1.0], LOW_B, snr, 4)
    result = fit_voxels(signals, LOW_B, "ivim")
    assert (result.method, result.threshold) == (method, threshold)
    same = fit_voxels(signals, LOW_B, "ivim", method=method, threshold=threshold)
    np.testing.assert_array_equal(result.parameters, same.parameters)
    assert (same.noise, same.threshold) == (None, threshold)
    assert fit_voxels(signals, LOW_B, "ivim", sigma=100 / snr).method == method


@pytest.mark.parametrize("digits", [0, 8])
def test_what_is_chosen_does_not_depend_on_order_or_scale(digits):
    signals = magnitudes(IVIM, [100.0, 0.1, 20.0, 1.0], LOW_B, 30, 5, n=5000).round(digits)
    result = fit_voxels(signals, LOW_B, "ivim")
    order = np.random.default_rng(0).permutation(len(signals))
    other = fit_voxels(signals[order] * 8, LOW_B, "ivim")
    assert other.noise == result.noise * 8
    np.testing.assert_array_equal(other["f"], result["f"][order])
    assert fit_voxels(signals[:, ::-1], LOW_B.take(range(11, -1, -1)), "ivim").noise == pytest.approx(result.noise, rel=1e-6)


@pytest.mark.parametrize("snr", [60, 90])
def test_water_shows_no_kurtosis_by_its_noise_floor(snr):
    """Below 3 % of the 95 % intervals of K exclude 0, where a fit without floor has 5 %; nominally 2.5 %."""
    water = magnitudes(KURTOSIS, [100.0, 2.0, 0.0], SHELLS, snr, 6, n=4000)
    result = fit_voxels(water, SHELLS, "kurtosis")
    assert result.has_floor.mean() > 0.9
    assert (result.intervals()[:, 2, 0] > 0).mean() < 0.03
    without = fit_voxels(water, SHELLS, "kurtosis", method="nlls")
    excludes = without.intervals()[:, 2, 0] > 0
    assert excludes.mean() > 0.04
    assert (without.doubt_reasons[excludes, 2] == DoubtReason.NEAR_NOISE).any()


def test_tissue_has_no_floor_and_water_its_own_beside_it():
    tissue = magnitudes(KURTOSIS, [100.0, 1.0, 0.8], SHELLS, 30, 7)
    result = fit_voxels(tissue, SHELLS, "kurtosis")
    assert not result.has_floor.any()
    same = fit_voxels(tissue, SHELLS, "kurtosis", method="nlls")
    np.testing.assert_array_equal(result.parameters, same.parameters)
    water, tissue = [100.0, 2.0, 0.0], [100.0, 1.0, 0.8]
    signals = np.concatenate([magnitudes(KURTOSIS, one, SHELLS, 60, 8) for one in (water, tissue)])
    result = fit_voxels(signals, SHELLS, "kurtosis")
    assert result.has_floor[:2000].mean() > 0.9
    assert not result.has_floor[2000:].any()
    assert np.isnan(result.reduced_chi2[2000:]).all()
    assert np.nanmedian(result.reduced_chi2[:2000]) == pytest.approx(0.9, abs=0.15)


def test_without_residuals_intervals_come_from_a_known_noise_or_all_is_in_doubt():
    protocol, truth = Protocol([0, 1000, 2000]), np.array([100.0, 1.0, 0.8])
    signals = magnitudes(KURTOSIS, truth, protocol, 40, 9)
    unknown = fit_voxels(signals, protocol, "kurtosis")
    assert unknown.noise is None
    assert (unknown.doubt_reasons == DoubtReason.NO_RESIDUALS).all()
    for result in (unknown, fit_voxels(signals, protocol, "kurtosis", method="ols")):
        assert result.readings() == dict.fromkeys(("S0", "D", "K"), "not known")
        assert result.advice()[0].endswith('known; use method="nlls" with the noise (sigma), or measure more contrasts.')
    known = fit_voxels(signals, protocol, "kurtosis", sigma=2.5)
    low, high = np.moveaxis(known.intervals(), -1, 0)
    holds = ((low <= truth) & (truth <= high)).mean(axis=0)
    assert ((holds > 0.92) & (holds < 0.995)).all(), holds


def test_tissue_is_told_from_air_and_ghosts_and_not_from_darker_tissue_or_fluid():
    rng = np.random.default_rng(0)
    air, tissue = np.abs(rng.normal(0, 10, 900)), rng.uniform(200, 600, 300)
    signals = np.concatenate([air, tissue, [1e6, np.nan]])
    inside = above_air(signals)
    assert not inside[[*range(900), -1]].any()
    assert inside[900:1201].mean() > 0.95
    assert above_air(tissue).all()
    assert above_air(np.full(4, 7.0)).tolist() == [True] * 4
    assert above_air(np.empty(0)).shape == (0,)
    ghosts, tissue, fluid = np.full(300, 70.0), np.full(500, 200.0), np.full(200, 1000.0)
    signals = np.concatenate([ghosts, tissue, fluid])
    assert above_air_or_noise(signals, 10.0).tolist() == [False] * 300 + [True] * 700
    # Tissue of five times the noise may be air, and where the level is not known nothing is added.
    for level in (50.0, 0.0, np.nan, np.full(1000, np.nan)):
        assert above_air_or_noise(signals, level).tolist() == [False] * 800 + [True] * 200
    assert above_air_or_noise(np.empty(0), 1.0).shape == (0,)
    # Air at an SNR of 5, and tissue of that brightness at a lower noise.
    protocol, truth = Protocol([0, 0, 0, 0, 500, 800]), np.repeat([0.0, 1000.0], 400)
    clean = truth[:, None] * np.exp(-protocol.b / 1000)
    noisy = np.hypot(clean + rng.normal(0, 200, clean.shape), rng.normal(0, 200, clean.shape))
    level = measured_noise(noisy, protocol, MODELS["adc"], FitSettings())
    assert level.sigma == pytest.approx(200, rel=0.05)
    assert np.mean(above_air_or_noise(noisy[:, :4].mean(axis=1), level.sigma) == (truth > 0)) > 0.99
    assert above_air_or_noise(np.repeat([250.0, 1000.0], 400) + rng.normal(0, 100, 800), 100.0).all()
