"""Voxelwise fits as scikit-learn transformers: signals in, parameter maps out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from dmrifit._utils.checks import check_word, filled
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.fitting import by_snr, fit_with, noise_and_snr
from dmrifit.engine.means import mean_of_finite
from dmrifit.engine.models import SignalModel, check_has_echo_times, resolve_model
from dmrifit.engine.protocol import TE_MATCH, Protocol, check_columns, check_protocol

__all__ = ["ClinicalMetrics", "MapFitter"]

_log = logging.getLogger(__name__)

_FAST = (0.0, 50.0, 100.0)  # s/mm², of the study
_SLOW = (100.0, 400.0, 900.0)

#: b-values of the clinical metrics, in s/mm².
CLINICAL_B = tuple(sorted({*_FAST, *_SLOW}))
_B_TOLERANCE = 10.0  # s/mm²: scanners write 5 for 0 and 895 for 900
_B_TOLERANCE_RELATIVE = 0.02
# Noise makes the signal of some voxels rise with b; a bound at zero would bias every median.
_SIGNED_ADC = {"ADC": (-100.0, 100.0)}


class _VoxelTransformer(TransformerMixin, BaseEstimator):
    """Base of the transformers: one row per voxel, one column per measurement, gaps allowed."""

    protocol: Protocol | None

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """
        Name the columns that `transform` returns.

        Parameters
        ----------
        input_features : object
            Not used.

        Returns
        -------
        ndarray of str
            Names of the model's parameters; of `ClinicalMetrics`: S0, ADC, ADC_fast, ADC_slow, F.
        """
        check_is_fitted(self)
        named: Any = getattr(self, "model_", self)
        return np.array(named.names, dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _checked(self, S: ArrayLike, *, reset: bool) -> NDArray[np.float64]:
        # Of a masked array scikit-learn would take the values under the mask.
        S = filled(S)
        signals = validate_data(self, S, reset=reset, dtype=np.float64, ensure_all_finite=False)
        if self.protocol is not None:
            check_columns(signals, self.protocol, "S")
        elif reset:
            _log.warning(
                "%s has no protocol, so nothing can be fitted and every map will be NaN; give "
                "protocol=",
                type(self).__name__,
            )
        return signals


class MapFitter(_VoxelTransformer):
    """
    Fit a signal model to every voxel.

    Voxels are fitted each for itself: `fit` learns the number of columns and the noise, by which
    `fit_voxels` chooses what `method` leaves open.

    Parameters
    ----------
    model : str or SignalModel, default="t2-ivim-kurtosis"
        A name in `MODELS`, or a model.
    protocol : Protocol, optional
        The measurements of the columns. Without it the contrasts are unknown and nothing can be
        fitted: every voxel comes out as NaN, and the log says so.
    bounds : dict of str to (float, float) or "published", optional
        Bounds by parameter name, as in `fit_voxels`.
    fixed : dict of str to float, optional
        Parameters that are not fitted, as in `fit_voxels`.
    sigma : float, optional
        Standard deviation of the noise, in the unit of the signals; adds the Rician floor.
    method : str, optional
        Method of the fit, as in `fit_voxels`; by default chosen by the noise.
    n_threads : int, optional
        Threads of the engine; the result does not depend on it.

    Attributes
    ----------
    model_ : SignalModel
        The model.
    n_features_in_ : int
        Number of measurements.
    feature_names_in_ : ndarray of str
        Column names, when fitted to a data frame.
    noise_, snr_ : float or None
        Standard deviation of the noise and the SNR of the signals that were fitted; None where
        they choose nothing or could not be measured.

    Examples
    --------
    >>> protocol = Protocol([0, 500, 1000])
    >>> fitter = MapFitter("adc", protocol).fit([[100.0, 60.0, 37.0]])
    >>> fitter.get_feature_names_out().tolist()
    ['S0', 'ADC']
    """

    noise_: float | None = None
    snr_: float | None = None

    def __init__(
        self,
        model: str | SignalModel = "t2-ivim-kurtosis",
        protocol: Protocol | None = None,
        *,
        bounds: Mapping[str, tuple[float, float]] | str | None = None,
        fixed: Mapping[str, float] | None = None,
        sigma: float | None = None,
        method: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.model = model
        self.protocol = protocol
        self.bounds = bounds
        self.fixed = fixed
        self.sigma = sigma
        self.method = method
        self.n_threads = n_threads

    def fit(self, S: ArrayLike, y: object = None) -> MapFitter:
        """
        Check model, protocol and columns, and measure the noise.

        Parameters
        ----------
        S : array_like of shape (n_voxels, n_measurements)
            Magnitudes on any common scale.
        y : object
            Not used.

        Returns
        -------
        MapFitter
            Itself.

        Raises
        ------
        ValueError
            If the model is unknown or needs echo times that the protocol lacks, or the columns are
            not those of the protocol.
        """
        model = resolve_model(self.model)
        if self.protocol is not None:
            check_protocol(self.protocol)
            check_has_echo_times(self.protocol, model)
        signals = self._checked(S, reset=True)
        self.model_ = model
        if self.protocol is not None:
            settings = self._settings(self.sigma)
            self.noise_, self.snr_ = noise_and_snr(signals, self.protocol, model, settings)
        return self

    def transform(self, S: ArrayLike, *, sigma: ArrayLike | None = None) -> NDArray[np.float64]:
        """
        Fit the model to every voxel.

        Parameters
        ----------
        S : array_like of shape (n_voxels, n_measurements)
            Magnitudes; NaN, infinite and masked ones have no weight, up to a fifth of a voxel's.
        sigma : float or array_like of shape (n_voxels,), optional
            Standard deviation of the noise, instead of the one given to the constructor.

        Returns
        -------
        ndarray of shape (n_voxels, n_parameters)
            In the order and units of the model's parameters; NaN where a voxel was not fitted.

        Raises
        ------
        ValueError
            If the columns are not those of the protocol, or an option is refused by `fit_voxels`.
        """
        check_is_fitted(self)
        signals = self._checked(S, reset=False)
        if self.protocol is None:
            return np.full((len(signals), len(self.model_.names)), np.nan)
        settings = self._settings(self.sigma if sigma is None else sigma)
        if sigma is None:
            settings = by_snr(settings, self.model_, self.protocol, self.snr_)
        if settings.sigma is None:
            settings = replace(settings, noise=self.noise_)
        return fit_with(signals, self.protocol, self.model_, settings).parameters

    def _settings(self, sigma: ArrayLike | None) -> FitSettings:
        return FitSettings(
            method=self.method,
            bounds=self.bounds,
            fixed=self.fixed,
            sigma=sigma,
            n_threads=self.n_threads,
        )

    def inverse_transform(self, P: ArrayLike) -> NDArray[np.float64]:
        """
        Compute the signals of parameter maps, without noise or noise floor.

        Parameters
        ----------
        P : array_like of shape (n_voxels, n_parameters)
            As returned by `transform`.

        Returns
        -------
        ndarray of shape (n_voxels, n_measurements)
            Signals; NaN where a parameter is NaN.

        Raises
        ------
        ValueError
            If there is no protocol, or the number of columns is wrong.
        """
        check_is_fitted(self)
        if self.protocol is None:
            raise ValueError(
                "MapFitter has no protocol, so there are no signals to compute; give protocol="
            )
        return self.model_.signal(np.asarray(P, dtype=np.float64), self.protocol)


class ClinicalMetrics(_VoxelTransformer):
    """
    Compute the metrics of a clinical diffusion scan from S = S0·exp(−b·ADC).

    S0 and ADC come from all images, ADC_fast from b = 0, 50, 100, ADC_slow and S0_slow from b =
    100, 400, 900 s/mm², and F = 1 − S0_slow / S0 is the share of the signal that is gone by b =
    100: the T2-weighted signal fraction of blood at that echo time. A signal that rises with b
    gives a negative ADC, and S0_slow above S0 a negative F: noise does that, and both are kept.

    Parameters
    ----------
    protocol : Protocol, optional
        The measurements of the columns, all at one echo time; the b-values above are looked up in
        it within 10 s/mm² (2 % above 500). Without it the contrasts are unknown and nothing can be
        fitted: every voxel comes out as NaN, and the log says so.
    method : {"nlls", "ols", "wls"}, default="nlls"
        Nonlinear least squares, or a straight line through the logarithm of the signal, with equal
        or iterated weights, as in `fit_voxels`.
    s0 : {"fit", "measured"}, default="fit"
        The S0 in F: that of the fit to all images, as in the study; or the measured signal at b =
        0. The single exponential runs below the measured signal at b = 0 where there is perfusion,
        so the first F is the smaller, typically half of the second.
    n_threads : int, optional
        Threads of the engine; the result does not depend on it.

    Attributes
    ----------
    n_features_in_ : int
        Number of measurements.
    feature_names_in_ : ndarray of str
        Column names, when fitted to a data frame.

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """

    #: Columns of the result; ADC in µm²/ms.
    names = ("S0", "ADC", "ADC_fast", "ADC_slow", "F")

    def __init__(
        self,
        protocol: Protocol | None = None,
        *,
        method: str = "nlls",
        s0: str = "fit",
        n_threads: int | None = None,
    ) -> None:
        self.protocol = protocol
        self.method = method
        self.s0 = s0
        self.n_threads = n_threads

    def fit(self, S: ArrayLike, y: object = None) -> ClinicalMetrics:
        """
        Check protocol, options and columns.

        Parameters
        ----------
        S : array_like of shape (n_voxels, n_measurements)
            Magnitudes on any common scale.
        y : object
            Not used.

        Returns
        -------
        ClinicalMetrics
            Itself.

        Raises
        ------
        ValueError
            If an option is unknown, the protocol lacks a b-value or has more than one echo time,
            or the columns are not those of the protocol.
        """
        for name, choices in {"method": ("nlls", "ols", "wls"), "s0": ("fit", "measured")}.items():
            check_word(name, getattr(self, name), choices)
        if self.protocol is not None:
            clinical_columns(self.protocol)
        self._checked(S, reset=True)
        return self

    def transform(self, S: ArrayLike) -> NDArray[np.float64]:
        """
        Compute the metrics of every voxel.

        Parameters
        ----------
        S : array_like of shape (n_voxels, n_measurements)
            Magnitudes; NaN, infinite and masked ones have no weight, up to a fifth of a voxel's.

        Returns
        -------
        ndarray of shape (n_voxels, 5)
            S0 in the unit of the signals, ADC, ADC_fast, ADC_slow in µm²/ms, F; NaN where it could
            not be fitted.

        Raises
        ------
        ValueError
            If the columns are not those of the protocol.
        """
        check_is_fitted(self)
        signals = self._checked(S, reset=False)
        if self.protocol is None:
            return np.full((len(signals), len(self.names)), np.nan)
        fast, slow, zero = clinical_columns(self.protocol)
        s0, adc = self._decay(signals, self.protocol)
        _, adc_fast = self._decay(signals[:, fast], self.protocol.take(fast))
        s0_slow, adc_slow = self._decay(signals[:, slow], self.protocol.take(slow))
        reference = s0 if self.s0 == "fit" else mean_of_finite(signals[:, zero])
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = 1.0 - s0_slow / np.where(reference > 0, reference, np.nan)
        return np.column_stack([s0, adc, adc_fast, adc_slow, fraction])

    def _decay(self, signals: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
        """Fit S0 and ADC; the result has shape (2, n_voxels)."""
        bounds = _SIGNED_ADC if self.method == "nlls" else None
        settings = FitSettings(method=self.method, bounds=bounds, n_threads=self.n_threads)
        return fit_with(signals, protocol, "adc", settings).parameters.T


def clinical_columns(
    protocol: Protocol,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Find the columns of ADC_fast, of ADC_slow and of b = 0."""
    check_protocol(protocol)
    if protocol.te is not None and np.ptp(protocol.te) > TE_MATCH:
        te = ", ".join(f"{value:g}" for value in np.unique(protocol.te))
        raise ValueError(
            f"clinical metrics need images of one echo time, and the protocol has TE = {te} ms; "
            "take its clinical part: protocol.take(protocol.clinical())"
        )
    required = np.array(CLINICAL_B)
    tolerance = np.maximum(_B_TOLERANCE, _B_TOLERANCE_RELATIVE * required)
    matches = np.abs(protocol.b[None, :] - required[:, None]) <= tolerance[:, None]
    lacking = ~matches.any(axis=1)
    if lacking.any():
        missing = ", ".join(f"{b:g}" for b in required[lacking])
        available = ", ".join(f"{b:g}" for b in np.unique(protocol.b))
        raise ValueError(
            f"clinical metrics need b = {missing} s/mm², which the protocol lacks; it has b = "
            f"{available}"
        )
    fast = matches[np.isin(required, _FAST)].any(axis=0)
    slow = matches[np.isin(required, _SLOW)].any(axis=0)
    b_zero = matches[0]
    return np.flatnonzero(fast), np.flatnonzero(slow), np.flatnonzero(b_zero)
