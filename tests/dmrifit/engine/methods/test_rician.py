"""Noise of magnitudes: expectations, slopes and information against quadrature and differences."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import hyp1f1
from scipy.stats import rice

from dmrifit.engine.design.precision import information_share
from dmrifit.engine.methods.rician import FlooredGaussian, Rician, RicianMean, expected_magnitude

SIGMA = np.array([[2.0]])
SIGNAL = np.array([[0.01, 0.5, 2.0, 7.0, 60.0]])
MEASURED = np.array([[1.5, 0.2, 3.1, 6.0, 64.0]])


def test_the_expected_magnitude_is_that_of_the_rician_distribution_and_the_published_floor_overstates_it():
    theirs = [rice.mean(s / 2, scale=2) for s in SIGNAL[0]]
    np.testing.assert_allclose(expected_magnitude(SIGNAL, SIGMA)[0], theirs, rtol=1e-8)
    published = 2 * np.sqrt(np.pi / 2) * hyp1f1(-0.5, 1, -(SIGNAL**2) / 8)
    np.testing.assert_allclose(expected_magnitude(SIGNAL, SIGMA), published, rtol=1e-10)
    # Neither overflows nor cancels where there is hardly any noise.
    assert expected_magnitude(np.array(1e8), np.array(1.0)) == pytest.approx(1e8)
    signal, sigma = np.array([[1.0, 2.0, 4.0]]), np.array([[1.0]])
    floor = FlooredGaussian(has_floor=True).expected(signal, sigma) - signal
    excess = expected_magnitude(signal, sigma) - signal
    assert (floor > 1.03 * excess).all()


@pytest.mark.parametrize("likelihood", [FlooredGaussian(False), FlooredGaussian(True), RicianMean(), Rician()])
def test_slopes_are_those_of_differences(likelihood):
    step = 1e-5
    above = likelihood.losses(SIGNAL + step, MEASURED, SIGMA)
    below = likelihood.losses(SIGNAL - step, MEASURED, SIGMA)
    slope, curvature = likelihood.slopes(SIGNAL, MEASURED, SIGMA)
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-5, atol=1e-7)
    assert (curvature > 0).all() or isinstance(likelihood, FlooredGaussian)


def test_losses_are_minus_the_logarithm_of_the_density():
    loss = Rician().losses(SIGNAL, MEASURED, SIGMA)[0]
    density = np.array([-rice.logpdf(y, s / 2, scale=2) for y, s in zip(MEASURED[0], SIGNAL[0], strict=True)])
    # But for a constant that depends on the measured value alone.
    np.testing.assert_allclose(loss + np.log(4 / MEASURED[0]), density, rtol=1e-9)


@pytest.mark.parametrize("snr", [0.5, 2.0, 6.0])
def test_the_information_is_the_mean_of_the_squared_score(snr):
    def squared_score(y):
        slope, _ = Rician().slopes(np.array([[snr]]), np.array([[y]]), np.array([[1.0]]))
        return slope[0, 0] ** 2 * rice.pdf(y, snr)

    assert information_share(np.array(snr)) == pytest.approx(quad(squared_score, 0, snr + 12)[0], rel=2e-3)
