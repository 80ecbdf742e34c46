"""
Noise of magnitudes: the expected magnitude, and likelihoods of single and averaged ones.

Least squares have a floor of their own, √(S² + π/2·σ²), in `kernels.steps`, `intervals` and
`free_water`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.design.precision import information_share

_SMALLEST_CURVATURE = 0.02  # of 1/σ²: below the noise the likelihood is not convex


def expected_magnitude(signal: NDArray, sigma: NDArray) -> NDArray[np.float64]:
    """
    Compute the mean of a Rician magnitude: σ√(π/2)·₁F₁(−½; 1; −S²/2σ²).

    The confluent hypergeometric function is written in scaled Bessel functions,
    ₁F₁(−½; 1; −x) = e^(−x/2)·((1 + x)·I₀(x/2) + x·I₁(x/2)), which neither overflow nor cancel.
    """
    from scipy.special import i0e, i1e

    x = 0.5 * (signal / sigma) ** 2
    return sigma * np.sqrt(np.pi / 2) * ((1 + x) * i0e(x / 2) + x * i1e(x / 2))


@dataclass(frozen=True)
class FlooredGaussian:
    """Gaussian noise about the signal, or about the published floor √(S² + π/2·σ²)."""

    has_floor: bool

    def expected(self, signal: NDArray, sigma: NDArray) -> NDArray:
        """Compute the expected magnitude."""
        return np.sqrt(signal**2 + np.pi / 2 * sigma**2) if self.has_floor else signal

    def losses(self, signal: NDArray, measured: NDArray, sigma: NDArray) -> NDArray:
        """Compute half the squared residuals in units of the noise."""
        return 0.5 * ((measured - self.expected(signal, sigma)) / sigma) ** 2

    def slopes(
        self, signal: NDArray, measured: NDArray, sigma: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Compute the derivative of a loss, and the curvature of Gauss and Newton."""
        expected = self.expected(signal, sigma)
        slope = self._slope(signal, sigma)
        return (expected - measured) * slope / sigma**2, (slope / sigma) ** 2

    def information(self, signal: NDArray, sigma: NDArray) -> NDArray:
        """Compute the expected curvature."""
        return (self._slope(signal, sigma) / sigma) ** 2

    def _slope(self, signal: NDArray, sigma: NDArray) -> NDArray | float:
        if not self.has_floor:
            return np.ones_like(signal)
        return signal / np.maximum(self.expected(signal, sigma), 1e-300)


class RicianMean(FlooredGaussian):
    """Gaussian noise about the mean of Rician magnitudes: averages over directions."""

    def __init__(self) -> None:
        super().__init__(has_floor=True)

    def expected(self, signal: NDArray, sigma: NDArray) -> NDArray:
        """Compute the mean of Rician magnitudes."""
        return expected_magnitude(signal, sigma)

    def _slope(self, signal: NDArray, sigma: NDArray) -> NDArray:
        """Differentiate: ₁F₁(½; 2; −x) = e^(−x/2)·(I₀(x/2) + I₁(x/2))."""
        from scipy.special import i0e, i1e

        snr = signal / sigma
        quarter = 0.25 * snr**2
        return np.sqrt(np.pi / 8) * snr * (i0e(quarter) + i1e(quarter))


class Rician:
    """The Rician density of single magnitudes, (y/σ²)·exp(−(y² + S²)/2σ²)·I₀(y·S/σ²)."""

    def expected(self, signal: NDArray, sigma: NDArray) -> NDArray:
        """Compute the mean of Rician magnitudes."""
        return expected_magnitude(signal, sigma)

    def losses(self, signal: NDArray, measured: NDArray, sigma: NDArray) -> NDArray:
        """Compute minus the log density, without terms that the signal does not change."""
        from scipy.special import i0e

        y, s = measured / sigma, np.abs(signal) / sigma
        # ln I₀(ys) = ys + ln i0e(ys), so that the square of the difference is left.
        return 0.5 * (y - s) ** 2 - np.log(i0e(y * s))

    def slopes(
        self, signal: NDArray, measured: NDArray, sigma: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Compute the derivative of a loss, and a positive curvature."""
        from scipy.special import i0e, i1e

        y, s = measured / sigma, np.abs(signal) / sigma
        product = y * s
        ratio = i1e(product) / i0e(product)
        # A' = 1 − A/z − A², which is ½ at z = 0.
        ratio_slope = 1 - np.where(product > 1e-6, ratio / np.maximum(product, 1e-6), 0.5)
        ratio_slope -= ratio**2
        curvature = np.maximum(1 - y**2 * ratio_slope, _SMALLEST_CURVATURE)
        return (s - y * ratio) / sigma * np.sign(signal), curvature / sigma**2

    def information(self, signal: NDArray, sigma: NDArray) -> NDArray:
        """Compute the expected curvature."""
        return information_share(np.abs(signal) / sigma) / sigma**2


#: Minus log-likelihood of magnitudes as a function of the signal without noise. Shapes: `signal`,
#: `measured` (n_voxels, n_measurements), `sigma` (n_voxels, 1).
Likelihood: TypeAlias = FlooredGaussian | Rician


def make_likelihood(name: str, *, has_floor: bool) -> Likelihood:
    """Make the likelihood of a name in `LIKELIHOODS`."""
    if name == "rician":
        return Rician()
    return RicianMean() if name == "rician-mean" else FlooredGaussian(has_floor)
