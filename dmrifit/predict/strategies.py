"""Predict the advanced protocol from the clinical one: signals to signals, maps to maps."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from dmrifit._utils.counts import counted
from dmrifit.cohort.patches import as_neighbors, center_of
from dmrifit.cohort.scaling import reference_columns
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.map_fitter import ClinicalMetrics, resolve_model
from dmrifit.engine.models import SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitStatus
from dmrifit.predict.base import Design, Strategy

__all__ = ["MapsToMaps", "SignalToSignal"]

_Array = NDArray[np.float64]

_FEATURES = ("ADC_fast", "ADC_slow", "F")
_LOG_FLOOR = 0.01  # of a parameter's range
# A linear extrapolation has no bound, and its exponential would overflow.
_LARGEST_LOG = 50.0


class Clinical(NamedTuple):
    """Clinical metrics from which maps are predicted."""

    # ADC_fast, ADC_slow and F of the voxel or of its neighbors, (n_voxels, n_features).
    features: NDArray[np.float64]
    s0: NDArray[np.float64]  # (n_voxels,)
    largest: NDArray[np.float64]  # source signal, (n_voxels,)


def reference_parameters(
    Y: NDArray[np.float64], target: Protocol, model: SignalModel, maps: ArrayLike | None = None
) -> NDArray[np.float64]:
    """
    Fit a model to the target signals, or check maps that were fitted before.

    Shapes: `Y` (n_voxels, n_target), maps (n_voxels, n_parameters).
    """
    if maps is None:
        # References and predictions have one method, whatever their noise.
        result = fit_voxels(Y, target, model, method="nlls")
        # The last iterate of a failed fit is no reference; NaN keeps the voxel out of training.
        not_converged = result.status == FitStatus.NOT_CONVERGED
        return np.where(not_converged[:, None], np.nan, result.parameters)
    reference = np.asarray(maps, dtype=np.float64)
    if reference.shape != (len(Y), len(model.names)):
        raise ValueError(
            f"reference_maps must have shape ({len(Y)}, {len(model.names)}): one row per voxel, "
            f"columns {', '.join(model.names)}; not {reference.shape}"
        )
    return reference


def task_in_words(strategy: SignalToSignal | MapsToMaps) -> str:
    """Say what a strategy predicts, and from what."""
    source, target = strategy._protocols()
    images = ", ".join(source.labels)
    if isinstance(strategy, SignalToSignal):
        return f"{counted(len(target), 'signal')} from {images}"
    names = resolve_model(strategy.model).names
    maps = f"the maps of {len(names)} parameters ({', '.join(names)})"
    return f"{maps} from the maps {', '.join(_FEATURES)} of {images}"


@dataclass(eq=False, repr=False)
class SignalToSignal(Strategy):
    """
    Predict the signals of a target protocol from those of a source protocol, voxel by voxel.

    A voxel is predicted from its own signals or, with a patch-wise regressor, from those of its
    neighborhood. Maps come from fitting the model to the predicted signals.

    Parameters
    ----------
    regressor : str or estimator, default="LR"
        The algorithm: a name that `make_regressor` knows, such as those of `ALGORITHMS`, or a
        scikit-learn regressor.
    source : Protocol, optional
        The measurements of a voxel of X, for example the clinical part of an advanced protocol.
    target : Protocol, optional
        The measurements of Y. Without both protocols plain arrays are regressed, and may hold no
        NaN: voxels are left out only where protocols are given.
    model : str, SignalModel or None, default="t2-ivim-kurtosis"
        What `predict_maps` fits; None for signals alone.
    normalize : {None, "voxel"}, default=None
        ``"voxel"`` divides the signals of every voxel, and of its neighbors, by its own source
        signal at the lowest b-value and shortest echo time. When the source has one echo time, T2
        is known only through the intensity that this removes: see the notes.
    patch_shape : tuple of 3 odd ints, optional
        Makes a row of X the neighborhood of a voxel, as `Cohort.arrays` gives it. None is the
        voxel alone, or (3, 3, 1) for the patch-wise algorithms where protocols are given.
    random_state : int, RandomState or None, default=None
        Seed of the regressor.

    Attributes
    ----------
    regressor_ : estimator
        The fitted regressor. Targets are scaled around it: a search such as GridSearchCV is
        ``regressor_.regressor_``, with its ``best_params_``.
    n_dropped_ : int
        Training voxels left out because a signal was NaN or infinite, or could not be normalized.
    patch_shape_ : tuple of 3 ints or None
        The neighborhood that a row of X is.
    n_features_in_ : int
        Number of source measurements, times the neighbors in a row.
    feature_names_in_ : ndarray of str
        Column names of X, when fitted to a data frame.
    training_ : dict or None
        Cohorts, number of patients, and number and kind of the voxels trained on, as
        ``dmrifit train`` records them for the model file; None after `fit`.

    Notes
    -----
    What dividing by the voxel's own signal costs, measured with linear regression on simulated
    mixed cohorts (both presets, seeds 7001 to 7003, four patients held out of each, trained on 250
    voxels of the body a patient, scored in tumors): the correlation of T2t with its reference
    falls from 0.71 to 0.34, its absolute bias rises from 0.12 to 0.27, and the median relative
    error of S0 rises from 0.14 to 0.57. The median relative errors of the other parameters change
    by 0.04 or less, but for f (0.22 to 0.35).

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.

    Examples
    --------
    >>> import numpy as np
    >>> target = Protocol.preset("cohort1")
    >>> Y = np.random.default_rng(0).uniform(50, 100, (200, 21))
    >>> s2s = SignalToSignal("LR", source=target.take(target.clinical()), target=target)
    >>> s2s.fit(Y[:, target.clinical()], Y).predict(Y[:3, target.clinical()]).shape
    (3, 21)
    """

    __metadata_request__fit = {"groups": True}  # noqa: RUF012  (read by scikit-learn)
    _needed = "a finite signal in every source and target image"

    regressor: str | BaseEstimator = "LR"
    _: KW_ONLY
    source: Protocol | None = None
    target: Protocol | None = None
    model: str | SignalModel | None = "t2-ivim-kurtosis"
    normalize: Literal["voxel"] | None = None
    patch_shape: tuple[int, int, int] | None = None
    random_state: int | np.random.RandomState | None = None

    def fit(
        self, X: ArrayLike, Y: ArrayLike, *, groups: ArrayLike | None = None
    ) -> SignalToSignal:
        """
        Learn the target signals from the source signals.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_source) or (n_voxels, k * n_source)
            Source signals, of the voxel or of its k neighbors.
        Y : array_like of shape (n_voxels, n_target)
            Target signals of the same voxels, on the same scale.
        groups : array_like of shape (n_voxels,), optional
            The patient of each voxel, for a regressor that is tuned inside (`GridSearchCV` with a
            splitter such as `GroupKFold`); without effect on others.

        Returns
        -------
        SignalToSignal
            Itself.

        Raises
        ------
        ValueError
            If the columns are not those of the protocols, no voxel is usable, or an option is
            unknown.
        """
        return self.fit_design(self.design(X, Y, groups=groups))

    def design(self, X: ArrayLike, Y: ArrayLike, *, groups: ArrayLike | None = None) -> Design:
        """
        Prepare training voxels for the regressor.

        Parameters
        ----------
        X, Y, groups : array_like
            As in `fit`.

        Returns
        -------
        Design
            For `fit_design`.

        Raises
        ------
        ValueError
            If the columns are not those of the protocols, or an option is unknown.
        """
        x, y = self._checked_training(X, Y)
        if self.source is None:
            return self._design(x, y, groups)
        scale = self._voxel_scale(x)
        usable = _finite_rows(x) & _finite_rows(y) & (scale > 0)
        # Unusable rows are dropped below; 1 avoids warnings about division by zero.
        scale = np.where(usable, scale, 1.0)[:, None]
        return self._design(x / scale, y / scale, groups, usable)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict the target signals.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_source) or (n_voxels, k * n_source)
            Source signals, scaled as in training.

        Returns
        -------
        ndarray of shape (n_voxels, n_target)
            Predictions of the regressor, negative values included; NaN where a source signal is
            not finite or cannot be normalized. Without protocols the shape follows the training
            targets.

        Raises
        ------
        ValueError
            If the columns are not those of the source protocol.
        """
        x = self._checked_input(X)
        if self.source is None or self.target is None:
            return self._named(self._answer(x), X, ())
        scale = self._voxel_scale(x)
        usable = _finite_rows(x) & (scale > 0)
        scale = np.where(usable, scale, np.nan)[:, None]
        signals = self._answer_where(usable, x / scale, len(self.target)) * scale
        return self._named(signals, X, self.get_feature_names_out())

    def predict_maps(self, X: ArrayLike, *, sigma: ArrayLike | None = None) -> NDArray[np.float64]:
        """
        Predict the target signals and fit the model to them.

        A regression predicts the mean of the noisy signals; it carries no noise floor of its own,
        and the fit has none unless `sigma` is given. A predicted signal below zero is fitted as
        zero: the signal has decayed completely, and the engine would refuse the voxel otherwise.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_source) or (n_voxels, k * n_source)
            Source signals, scaled as in training.
        sigma : float or array_like of shape (n_voxels,), optional
            Standard deviation of the noise whose floor the predicted signals still have, on the
            scale of X.

        Returns
        -------
        ndarray of shape (n_voxels, n_parameters)
            In the order and units of the model's parameters; NaN where nothing could be fitted.

        Raises
        ------
        ValueError
            If there are no protocols, the model needs echo times that the target lacks, or the
            columns are not those of the source protocol.
        """
        _, target = self._protocols()
        names = _model_for(self.model, target).names
        # By the public method, so that a class that predicts in its own way has its maps too.
        signals = np.asarray(self.predict(X))
        return self._named(self.maps_of(signals, sigma=sigma), X, names)

    def maps_of(
        self, signals: ArrayLike, *, sigma: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """
        Fit the model to predicted signals, as `predict_maps` does.

        Parameters
        ----------
        signals : array_like of shape (n_voxels, n_target)
            Predictions of `predict`.
        sigma : float or array_like of shape (n_voxels,), optional
            As in `predict_maps`.

        Returns
        -------
        ndarray of shape (n_voxels, n_parameters)
            As in `predict_maps`.

        Raises
        ------
        ValueError
            If there are no protocols, or the model needs echo times that the target lacks.
        """
        _, target = self._protocols()
        model = _model_for(self.model, target)
        # A regression may predict below 0, which no magnitude is; the least positive number fits
        # as a zero does, but never counts as outside a volume.
        clipped = np.maximum(signals, np.finfo(float).tiny)
        return fit_voxels(clipped, target, model, method="nlls", sigma=sigma).parameters

    def _check_options(self) -> None:
        if self.source is None and self.normalize is not None:
            raise ValueError(
                "normalize='voxel' needs to know the measurements: give source= and target="
            )

    def _voxel_scale(self, X: _Array) -> _Array:
        """Compute each voxel's divisor; 0 where a reference signal is not finite."""
        if self.normalize is None or self.source is None:
            return np.ones(len(X))
        reference_signals = center_of(X, self.patch_shape_)[:, reference_columns(self.source)]
        return np.where(_finite_rows(reference_signals), reference_signals.mean(axis=1), 0.0)


@dataclass(eq=False, repr=False)
class MapsToMaps(Strategy):
    """
    Predict the parameters of a model from the metrics of a clinical scan, voxel by voxel.

    The features are ADC_fast, ADC_slow and F of `ClinicalMetrics`, of the voxel or, with a
    patch-wise regressor, of every voxel of its neighborhood, where those that cannot be computed
    are taken from the voxel itself. The reference maps are the fit of the model to the target
    signals. Both have no scale: an amplitude such as S0 is learned as the logarithm of its ratio
    to the clinical S0, because that ratio, which holds the decay during the echo time, has a long
    tail.

    Parameters
    ----------
    regressor : str or estimator, default="LR"
        The algorithm: a name that `make_regressor` knows, such as those of `ALGORITHMS`, or a
        scikit-learn regressor.
    source : Protocol, optional
        The measurements of X: one echo time and b = 0, 50, 100, 400, 900 s/mm².
    target : Protocol, optional
        The measurements of Y. Without both protocols plain arrays are regressed, and may hold no
        NaN: voxels are left out only where protocols are given.
    model : str or SignalModel, default="t2-ivim-kurtosis"
        Whose parameters are learned.
    loss : {"mean", "median"}, default="mean"
        What is predicted of a parameter's distribution among voxels with the same metrics, as in
        `make_regressor`.
    target_scale : {"linear", "log"}, default="linear"
        ``"log"`` learns the logarithms of the parameters, so that relative errors count and the
        prediction is a geometric mean. A parameter whose lower bound is 0 is raised to a floor of
        1 % of its range before (for the default model f ≥ 0.01, K ≥ 0.05), an amplitude to 1 % of
        the clinical S0.
    patch_shape : tuple of 3 odd ints, optional
        Makes a row of X the neighborhood of a voxel, as `Cohort.arrays` gives it. None is the
        voxel alone, or (3, 3, 1) for the patch-wise algorithms where protocols are given.
    random_state : int, RandomState or None, default=None
        Seed of the regressor.

    Attributes
    ----------
    regressor_ : estimator
        The fitted regressor. Targets are scaled around it: a search such as GridSearchCV is
        ``regressor_.regressor_``, with its ``best_params_``.
    n_dropped_ : int
        Training voxels left out because the reference fit or the clinical metrics were not usable.
    patch_shape_ : tuple of 3 ints or None
        The neighborhood that a row of X is.
    n_features_in_ : int
        Number of source measurements, times the neighbors in a row.
    feature_names_in_ : ndarray of str
        Column names of X, when fitted to a data frame.
    training_ : dict or None
        Cohorts, number of patients, and number and kind of the voxels trained on, as
        ``dmrifit train`` records them for the model file; None after `fit`.

    Notes
    -----
    Dv has a long tail, which the mean follows. Both options cure that, and each has a price; the
    median relative errors of linear regression, in the cohorts that the notes of `SignalToSignal`
    describe:

    ========================  ====  ====  ====  ====
    ..                        f     Dv    K     T2t
    ========================  ====  ====  ====  ====
    as they are               0.34  0.63  0.33  0.27
    ``loss="median"``         0.39  0.40  0.36  0.31
    ``target_scale="log"``    0.49  0.42  0.61  0.30
    ========================  ====  ====  ====  ====

    K and f are 0 in many voxels, and logarithms make much of it: the absolute bias of K rises from
    0.21 to 0.59. The median of LR takes some 250 times the time of its mean, and its T2t follows
    the reference no longer (correlation 0.55 to 0.06).

    References
    ----------
    Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
    """

    __metadata_request__fit = {"groups": True}  # noqa: RUF012
    _needed = "clinical metrics and a reference fit"

    regressor: str | BaseEstimator = "LR"
    _: KW_ONLY
    source: Protocol | None = None
    target: Protocol | None = None
    model: str | SignalModel = "t2-ivim-kurtosis"
    loss: str = "mean"
    target_scale: Literal["linear", "log"] = "linear"
    patch_shape: tuple[int, int, int] | None = None
    random_state: int | np.random.RandomState | None = None

    def fit(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        reference_maps: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> MapsToMaps:
        """
        Learn the parameters of the fit to the target signals from the clinical metrics.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_source) or (n_voxels, k * n_source)
            Source signals, of the voxel or of its k neighbors.
        Y : array_like of shape (n_voxels, n_target)
            Target signals of the same voxels, on the same scale.
        reference_maps : array_like of shape (n_voxels, n_parameters), optional
            The parameters fitted to Y, when they are known already; a row with NaN is not usable.
            Otherwise the model is fitted here, and fits that did not converge are not usable.
        groups : array_like of shape (n_voxels,), optional
            The patient of each voxel, for a regressor that is tuned inside (`GridSearchCV` with a
            splitter such as `GroupKFold`); without effect on others.

        Returns
        -------
        MapsToMaps
            Itself.

        Raises
        ------
        ValueError
            If the columns are not those of the protocols, the source lacks a b-value, the model
            needs echo times that the target lacks, an option is unknown or does not go with the
            regressor or the model, or no voxel is usable.
        """
        return self.fit_design(self.design(X, Y, reference_maps=reference_maps, groups=groups))

    def design(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        *,
        reference_maps: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Design:
        """
        Prepare training voxels for the regressor.

        Parameters
        ----------
        X, Y, reference_maps, groups : array_like
            As in `fit`.

        Returns
        -------
        Design
            For `fit_design`.

        Raises
        ------
        ValueError
            As in `fit`, but for voxels that are not usable.
        """
        x, y = self._checked_training(X, Y)
        if self.source is None or self.target is None:
            if reference_maps is not None:
                raise ValueError("reference_maps belong to protocols: give source= and target=")
            return self._design(x, y, groups)
        model = _model_for(self.model, self.target)
        clinical = self.clinical(x)
        maps = reference_parameters(y, self.target, model, reference_maps)
        targets = _scaled_amplitudes(maps, model, clinical.s0, np.divide)
        is_log, floor = self._logarithms(model)
        # Zero has no logarithm: f and K reach it in many voxels.
        targets[:, is_log] = np.log(np.maximum(targets[:, is_log], floor[is_log]))
        usable = _finite_rows(clinical.features) & _finite_rows(targets)
        return self._design(clinical.features, targets, groups, usable)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict the target signals: those of the predicted maps.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_source) or (n_voxels, k * n_source)
            Source signals, of the voxel or of its k neighbors.

        Returns
        -------
        ndarray of shape (n_voxels, n_target)
            Signals without noise; NaN where the clinical metrics could not be computed. Without
            protocols the regressed targets, in the shape of those of the training.

        Raises
        ------
        ValueError
            If the columns are not those of the source protocol.
        """
        if self.source is None or self.target is None:
            return self._named(self._answer(self._checked_input(X)), X, ())
        signals = resolve_model(self.model).signal(self._predicted_maps(X), self.target)
        return self._named(signals, X, self.get_feature_names_out())

    def predict_maps(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict the parameters of the model.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_source) or (n_voxels, k * n_source)
            Source signals, of the voxel or of its k neighbors.

        Returns
        -------
        ndarray of shape (n_voxels, n_parameters)
            In the order and units of the model's parameters, cut off at its bounds (those of an
            amplitude are multiples of the largest source signal); NaN where the clinical metrics
            could not be computed.

        Raises
        ------
        ValueError
            If there are no protocols, or the columns are not those of the source protocol.
        """
        return self._named(self._predicted_maps(X), X, resolve_model(self.model).names)

    def _predicted_maps(self, X: ArrayLike) -> _Array:
        """Predict the parameters as an array, (n_voxels, n_parameters)."""
        self._protocols()
        return self.maps_from(self.clinical(self._checked_input(X)))

    def clinical(self, X: NDArray[np.float64]) -> Clinical:
        """
        Compute the clinical metrics from which parameters are predicted; needs no training.

        Parameters
        ----------
        X : ndarray of shape (n_voxels, n_source) or (n_voxels, k * n_source)
            Source signals, of the voxel or of its k neighbors.

        Returns
        -------
        Clinical
            For `maps_from`.

        Raises
        ------
        ValueError
            If there are no protocols.
        """
        source, _ = self._protocols()
        neighbors = as_neighbors(X, self.patch_shape_)
        n, k, m = neighbors.shape
        metrics = ClinicalMetrics(source).fit_transform(neighbors.reshape(n * k, m))
        metrics = metrics.reshape(n, k, -1)
        center = metrics[:, k // 2]
        columns = [ClinicalMetrics.names.index(name) for name in _FEATURES]
        features = metrics[:, :, columns]
        # A neighbor outside the body must not cost the voxel: its own metrics stand in.
        usable = np.isfinite(features).all(axis=2, keepdims=True)
        features = np.where(usable, features, center[:, None, columns]).reshape(n, -1)
        center_signals = center_of(X, self.patch_shape_)
        largest = np.where(np.isfinite(center_signals), center_signals, 0.0).max(axis=1)
        return Clinical(features, center[:, ClinicalMetrics.names.index("S0")], largest)

    def maps_from(self, clinical: Clinical) -> NDArray[np.float64]:
        """
        Predict the parameters of the model from clinical metrics, as `predict_maps` does.

        Parameters
        ----------
        clinical : Clinical
            Of the voxels.

        Returns
        -------
        ndarray of shape (n_voxels, n_parameters)
            As in `predict_maps`.
        """
        model = resolve_model(self.model)
        usable = _finite_rows(clinical.features)
        scale_free = self._answer_where(usable, clinical.features, len(model.names))
        is_log, _ = self._logarithms(model)
        logarithms = np.clip(scale_free[:, is_log], -_LARGEST_LOG, _LARGEST_LOG)
        scale_free[:, is_log] = np.exp(logarithms)
        maps = _scaled_amplitudes(scale_free, model, clinical.s0, np.multiply)
        # Bounds of an amplitude are multiples of the largest signal, as in the fit itself.
        largest = np.where(clinical.largest > 0, clinical.largest, np.nan)
        for i, parameter in enumerate(model.parameters):
            unit = largest if parameter.is_amplitude else 1.0
            maps[:, i] = np.clip(maps[:, i], parameter.low * unit, parameter.high * unit)
        return maps

    def _check_options(self) -> None:
        if self.source is None and self.target_scale == "log":
            raise ValueError(
                "target_scale='log' needs to know the parameters: give source= and target="
            )
        if self.source is not None:
            self._logarithms(resolve_model(self.model))

    def _logarithms(self, model: SignalModel) -> tuple[NDArray[np.bool_], _Array]:
        """Return which parameters are learned as logarithms, and their lower limits before."""
        low, high = np.array(model.bounds).T
        is_amplitude = np.array([parameter.is_amplitude for parameter in model.parameters])
        is_log = is_amplitude | (self.target_scale == "log")
        kinds = [is_amplitude, low > 0, (low == 0) & np.isfinite(high)]
        floor = np.select(kinds, [_LOG_FLOOR, low, _LOG_FLOOR * high], np.nan)
        for i, parameter in enumerate(model.parameters):
            if is_log[i] and np.isnan(floor[i]):
                raise ValueError(
                    f"target_scale='log' has no floor for parameter {parameter.name} of model "
                    f"{model.name}, whose bounds are {parameter.low:g} and {parameter.high:g}; "
                    "use target_scale='linear'"
                )
        return is_log, floor


def _finite_rows(values: _Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(values).all(axis=1))


def _model_for(model: str | SignalModel | None, target: Protocol) -> SignalModel:
    if model is None:
        raise ValueError("maps need a model: give model=")
    resolved = resolve_model(model)
    if resolved.needs_te and target.te is None:
        raise ValueError(
            f"model {resolved.name} needs echo times, and the target protocol has none; "
            "give them (te in ms) or another model="
        )
    return resolved


def _scaled_amplitudes(
    maps: _Array, model: SignalModel, clinical_s0: _Array, operation: Any
) -> _Array:
    """Divide amplitudes by the clinical S0, or multiply; NaN where it is not positive."""
    unit = np.where(clinical_s0 > 0, clinical_s0, np.nan)[:, None]
    is_amplitude = [parameter.is_amplitude for parameter in model.parameters]
    scaled = maps.copy()
    scaled[:, is_amplitude] = operation(maps[:, is_amplitude], unit)
    return scaled
