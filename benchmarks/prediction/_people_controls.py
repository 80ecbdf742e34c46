"""Predictors that need no other people: interpolation, a fit of each curve's inputs, and metrics of them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit import MapsToMaps, Protocol, SignalToSignal, fit_voxels
from dmrifit.predict.strategies import Clinical

# s/mm²: up to here blood decays, beyond it mostly tissue.
FAST_B = 100.0


class OwnCurve(SignalToSignal):
    """Base of controls that see the inputs of one curve at a time; they know no T2."""

    def fit(self, X: ArrayLike, Y: ArrayLike, *, groups: ArrayLike | None = None) -> "OwnCurve":
        """Learn nothing but the number of columns."""
        self.check_parameters()
        self.n_features_in_ = np.shape(X)[1]
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predict every target contrast by the curve at its b-value."""
        return self._curve(np.asarray(X, float), self.target.b)


class Interpolation(OwnCurve):
    """Straight lines through the logarithm of the signal; the outermost ones go on beyond the inputs."""

    def _curve(self, signals: NDArray, b: NDArray) -> NDArray[np.float64]:
        order = np.argsort(self.source.b)
        knots, logarithms = self.source.b[order], np.log(signals[:, order])
        left = np.clip(np.searchsorted(knots, b) - 1, 0, len(knots) - 2)
        share = (b - knots[left]) / (knots[left + 1] - knots[left])
        return np.exp((1 - share) * logarithms[:, left] + share * logarithms[:, left + 1])


class InputFit(OwnCurve):
    """The IVIM curve that is fitted to the inputs."""

    def _curve(self, signals: NDArray, b: NDArray) -> NDArray[np.float64]:
        result = fit_voxels(signals, Protocol(self.source.b), "ivim")
        return result.model.signal(result.parameters, Protocol(b))


class CurveMetricsToMaps(MapsToMaps):
    """`MapsToMaps` for inputs without the b-values of a clinical scan: the metrics come from those there are."""

    def clinical(self, X: NDArray[np.float64]) -> Clinical:
        """Compute S0 and ADC from all inputs, and those of fast and slow decay from each part."""
        b = self.source.b / 1000
        logarithms = np.log(X)
        is_fast = self.source.b <= FAST_B
        # The last fast b-value belongs to both, as in a clinical scan.
        is_slow = self.source.b >= self.source.b[is_fast].max()
        s0, _ = _decay(b, logarithms)
        _, fast = _decay(b[is_fast], logarithms[:, is_fast])
        s0_slow, slow = _decay(b[is_slow], logarithms[:, is_slow])
        return Clinical(np.column_stack([fast, slow, 1 - s0_slow / s0]), s0, X.max(axis=1))


def _decay(b: NDArray, logarithms: NDArray) -> tuple[NDArray, NDArray]:
    """Fit S0 and ADC by a straight line through the logarithm."""
    slope, intercept = np.polyfit(b, logarithms.T, 1)
    return np.exp(intercept), -slope
