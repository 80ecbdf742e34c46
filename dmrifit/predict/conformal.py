"""Prediction intervals whose coverage is measured on patients outside the training set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import parallel_config
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold
from sklearn.utils import Tags, check_array, check_consistent_length, get_tags
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from dmrifit._utils.checks import check_number, filled
from dmrifit._utils.randomness import RandomState, seed_from
from dmrifit.engine.map_fitter import resolve_model
from dmrifit.predict.strategies import reference_parameters

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.engine.models import SignalModel

__all__ = ["ConformalIntervals", "coverage_table"]

_Array = NDArray[np.float64]

_FEWEST = 5  # patients: the quantile of fewer is the error of a single patient
_N_RANDOM_GROUPS = 20  # of plain rows without patients
_FOREST = {"n_estimators": 30, "min_samples_leaf": 20, "max_features": 0.5}
_SMALLEST_SPREAD = 0.05  # of the mean spread: an expected error of nearly 0 is chance


class ConformalIntervals(MetaEstimatorMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """
    Put intervals around the predictions of an estimator.

    Patients differ more than the voxels of one patient do, so errors are taken from patients that
    were not trained on, and every patient counts the same, however many voxels it has. The
    patients are split into parts; each part is predicted by the estimator trained on the others
    (cross-conformal prediction). A forest learns from these errors how large they are at which
    signals and predictions, and the interval is the prediction plus the quantiles of the errors
    relative to that. The final estimator is trained on all patients.

    The intervals hold for voxels like those that `fit` was given: of other patients of the same
    kind, and of the same region. Intervals calibrated in the body need not hold in tumors;
    `calibrate` says which voxels count. A new patient is covered in `coverage` of its voxels in
    the mean over patients, not each for itself: `calibration_` shows how far patients differ.

    Parameters
    ----------
    estimator : SignalToSignal, MapsToMaps or regressor
        The predictor. The intervals of a strategy with protocols and a model are those of the
        model's parameters around `predict_maps`; of any other estimator, those of `predict`.
    coverage : float, default=0.9
        Share of voxels whose reference lies in the interval; split evenly between both ends.
    n_splits : int, default=5
        Parts of the patients; the estimator is trained once more than that.
    random_state : int, RandomState or None, default=None
        Seed of the split and of the forest. The estimator has its own.

    Attributes
    ----------
    estimator_ : estimator
        Trained on all voxels.
    quantiles_ : ndarray of shape (n_outputs, 2)
        Of the errors relative to the expected ones.
    names_ : tuple of str
        The outputs: parameters of the model, or "0", "1", ….
    calibration_ : DataFrame
        As `coverage_table`, for the patients of `fit`, each by the quantiles of the others, with
        the width of the interval of a constant prediction, the median of the others, in
        ``constant_width``.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of str
        Column names of X, when fitted to a data frame.

    Notes
    -----
    Measured with linear regression on simulated mixed cohorts of 16 patients (both presets, seeds
    7001 to 7003), each patient held out in turn, calibrated and tested in the body or in tumors:
    the mean coverage of each parameter in each cohort is 0.86 to 0.93. The worst patient of all
    has 0.69 in the body and 0.10 in tumors (S0, a tumor unlike the other fifteen). Widths relative
    to the interval of a constant, mean over the six parameters but S0, are 0.71 (tumors) and 0.78
    (body) for signals to signals, 0.78 and 0.79 for maps to maps; Dt 0.52 to 0.57, T2v 0.95 to
    0.98, because its reference lies at a bound in most voxels. The interval of S0 is wider than a
    constant's, but for signals to signals in tumors: 1.0 to 1.4.

    Tried and rejected: errors that do not depend on the voxel (as well covered, T2v always covers
    everything, wider for f and Dv), a forest for errors of either sign (0.92 covered in tumors,
    wider), logarithms of S0 (much wider), the interval of the constant where it is narrower (S0
    covered in 0.84 of tumors), and quantiles raised by one patient in the number of patients (0.96
    covered).

    References
    ----------
    Vovk, Ann Math Artif Intell 74:9–28, 2015 (cross-conformal prediction); Lei et al., J Am Stat
    Assoc 113:1094–1111, 2018 (locally weighted errors); Dunn et al., J Am Stat Assoc
    118:2491–2502, 2023 (groups).

    Examples
    --------
    >>> from dmrifit import SignalToSignal
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> Y = X @ rng.normal(size=(3, 2)) + rng.normal(size=(200, 2))
    >>> patients = np.repeat(np.arange(10), 20)
    >>> ConformalIntervals(SignalToSignal("LR")).fit(X, Y, patients).predict_interval(X[:4]).shape
    (4, 2, 2)
    """

    def __init__(
        self,
        estimator: Any,
        *,
        coverage: float = 0.9,
        n_splits: int = 5,
        random_state: RandomState = None,
    ) -> None:
        self.estimator = estimator
        self.coverage = coverage
        self.n_splits = n_splits
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags.allow_nan = inner.input_tags.allow_nan
        tags.target_tags.multi_output = inner.target_tags.multi_output
        tags.regressor_tags = inner.regressor_tags
        return tags

    def fit(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        groups: ArrayLike | None = None,
        *,
        reference_maps: ArrayLike | None = None,
        calibrate: ArrayLike | None = None,
    ) -> ConformalIntervals:
        """
        Train the estimator and learn its errors in patients that it was not trained on.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_features)
            As for the estimator.
        Y : array_like of shape (n_voxels, n_target)
            Target signals of the same voxels, on the same scale.
        groups : array_like of shape (n_voxels,)
            The patient of each voxel. An estimator of plain arrays may do without; its rows are
            then split at random.
        reference_maps : array_like of shape (n_voxels, n_parameters), optional
            The parameters fitted to Y, where they were fitted before; a row with NaN is not used.
        calibrate : array_like of bool, shape (n_voxels,), optional
            The voxels whose errors count, such as those of the tumor; all by default. All are
            trained on.

        Returns
        -------
        ConformalIntervals
            Itself.

        Raises
        ------
        ValueError
            If an option is out of range, there are no groups or fewer than five patients, fewer
            than `n_splits`, or what the estimator refuses.
        """
        self._check_options()
        X, Y = filled(X), filled(Y)
        model = self._model()
        seed = seed_from(self.random_state)
        if get_tags(self).input_tags.allow_nan:
            x = validate_data(self, X, dtype=np.float64, ensure_all_finite=False)
            y = check_array(
                Y, dtype=np.float64, ensure_2d=False, ensure_all_finite=False, input_name="Y"
            )
        else:
            x, y = validate_data(self, X, Y, dtype=np.float64, multi_output=True, y_numeric=True)
            y = y.astype(np.float64, copy=False)
        patients = self._patients(groups, len(x), seed)
        check_consistent_length(x, y, patients)
        targets = y.reshape(len(y), -1)
        options = {}
        if model is not None:
            targets = reference_parameters(y, self.estimator.target, model, reference_maps)
            if has_fit_parameter(self.estimator, "reference_maps"):
                options["reference_maps"] = targets
        elif reference_maps is not None:
            raise ValueError("reference_maps belong to a strategy with protocols and a model")
        calibrated = np.ones(len(x), bool)
        if calibrate is not None:
            calibrated = _checked_calibrate(calibrate, len(x))
        self._set_outputs(model, targets.shape[1])
        _check_patients(patients, max(_FEWEST, self.n_splits))
        folds = GroupKFold(self.n_splits, shuffle=True, random_state=seed)
        predicted = np.full(targets.shape, np.nan)
        for train, test in folds.split(x, groups=patients):
            train_options = {key: value[train] for key, value in options.items()}
            # Errors in voxels that were learned from would make the intervals too narrow.
            estimator = clone(self.estimator).fit(x[train], y[train], **train_options)
            calibration_rows = test[calibrated[test]]
            if len(calibration_rows):
                predicted[calibration_rows] = self._outputs(estimator, x[calibration_rows])
        usable = calibrated & np.isfinite(predicted).all(axis=1) & np.isfinite(targets).all(axis=1)
        # Again, because voxels without a prediction or reference can cost whole patients.
        _check_patients(patients[usable], max(_FEWEST, self.n_splits))
        self._learn_errors(x[usable], predicted[usable], targets[usable], patients[usable], seed)
        # Predictions are made by an estimator that has learned from all patients.
        self.estimator_ = clone(self.estimator).fit(x, y, **options)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict as the estimator does.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_features)
            As in training.

        Returns
        -------
        ndarray of shape (n_voxels, n_target)
            The estimator's predictions.
        """
        x = self._checked(X)
        return np.asarray(self.estimator_.predict(x), dtype=np.float64)

    def predict_maps(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict the parameters of the model as the estimator does.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_features)
            As in training.

        Returns
        -------
        ndarray of shape (n_voxels, n_parameters)
            The estimator's maps.

        Raises
        ------
        AttributeError
            If the estimator predicts no maps.
        """
        x = self._checked(X)
        return np.asarray(self.estimator_.predict_maps(x))

    def predict_interval(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Predict the interval of every output.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_features)
            As in training.

        Returns
        -------
        ndarray of shape (n_voxels, n_outputs, 2)
            Lower and upper ends, within the bounds of the model; NaN where the prediction is
            missing.
        """
        x = self._checked(X)
        center = self._outputs(self.estimator_, x)
        out = np.full((*center.shape, 2), np.nan)
        usable = np.isfinite(center).all(axis=1)
        if usable.any():
            spread = self._spread(self._forest, x[usable], center[usable])
            out[usable] = self._interval(center[usable], spread, self.quantiles_)
        return out

    def _check_options(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, as 0.9, not {self.coverage!r}")
        check_number("n_splits", self.n_splits, least=2, whole=True)

    def _model(self) -> SignalModel | None:
        """Return the model whose parameters get intervals; None for intervals of `predict`."""
        if not hasattr(self.estimator, "predict_maps"):
            return None
        if getattr(self.estimator, "target", None) is None or self.estimator.model is None:
            return None
        return resolve_model(self.estimator.model)

    def _patients(self, groups: ArrayLike | None, n: int, seed: int) -> NDArray:
        """Return the patient of each row; random groups for rows of plain arrays without."""
        if groups is not None:
            return np.asarray(groups)
        if getattr(self.estimator, "source", None) is not None:
            raise ValueError(
                "intervals hold for new patients, so they are learned patient by patient: "
                "give groups"
            )
        if n < _FEWEST:
            raise ValueError(
                f"intervals need at least {_FEWEST} rows, and there are n_samples={n}"
            )
        return np.random.default_rng(seed).permutation(n) % _N_RANDOM_GROUPS

    def _checked(self, X: ArrayLike) -> _Array:
        check_is_fitted(self)
        finite = not get_tags(self).input_tags.allow_nan
        return np.asarray(
            validate_data(self, filled(X), reset=False, dtype=np.float64, ensure_all_finite=finite)
        )

    def _outputs(self, estimator: Any, X: _Array) -> _Array:
        predict = estimator.predict if self._model() is None else estimator.predict_maps
        return np.asarray(predict(X), dtype=np.float64).reshape(len(X), -1)

    def _learn_errors(
        self, X: _Array, predicted: _Array, targets: _Array, patients: NDArray, seed: int
    ) -> None:
        """Learn the expected size of errors, and the quantiles of errors relative to it."""
        errors = targets - predicted
        unit = np.sqrt((errors**2).mean(axis=0))
        self._unit = np.where(unit > 0, unit, 1.0)
        expected = np.abs(errors) / self._unit
        self._smallest = np.maximum(_SMALLEST_SPREAD * expected.mean(axis=0), np.finfo(float).tiny)
        weight = _patient_weights(patients)
        # A forest overfits its own training errors; only those of other patients are unbiased.
        spread = np.empty_like(errors)
        folds = GroupKFold(self.n_splits, shuffle=True, random_state=seed + 1)
        for train, test in folds.split(X, groups=patients):
            forest = _forest(X[train], predicted[train], expected[train], weight[train], seed)
            spread[test] = self._spread(forest, X[test], predicted[test])
        self._forest = _forest(X, predicted, expected, weight, seed)
        relative = errors / spread
        ends = (1 - self.coverage) / 2, (1 + self.coverage) / 2
        self.quantiles_ = _weighted_quantiles(relative, weight, ends)
        self.calibration_ = self._calibration(predicted, spread, relative, targets, patients, ends)

    def _calibration(
        self,
        predicted: _Array,
        spread: _Array,
        relative: _Array,
        targets: _Array,
        patients: NDArray,
        ends: tuple[float, float],
    ) -> pd.DataFrame:
        """Measure the coverage of each patient by the quantiles of the others."""
        intervals = np.empty((*targets.shape, 2))
        constant = np.empty((*targets.shape, 2))
        for patient in np.unique(patients):
            test = patients == patient
            weight = _patient_weights(patients[~test])
            quantiles = _weighted_quantiles(relative[~test], weight, ends)
            intervals[test] = self._interval(predicted[test], spread[test], quantiles)
            constant[test] = _weighted_quantiles(targets[~test], weight, ends)
        table = coverage_table(intervals, targets, patients, names=self.names_)
        constant_table = coverage_table(constant, targets, patients, names=self.names_)
        table["constant_width"] = constant_table["width"]
        return table

    def _spread(self, forest: RandomForestRegressor, X: _Array, predicted: _Array) -> _Array:
        """Return the expected size of the errors, in the unit of the outputs."""
        with parallel_config("sequential"):
            expected = forest.predict(np.column_stack([X, predicted])).reshape(len(X), -1)
        return np.maximum(expected, self._smallest) * self._unit

    def _set_outputs(self, model: SignalModel | None, n: int) -> None:
        """Set names and bounds of the outputs."""
        if model is None:
            self.names_ = tuple(map(str, range(n)))
            self._bounds = np.tile([-np.inf, np.inf], (n, 1))
            return
        self.names_ = model.names
        bounds = []
        for parameter in model.parameters:
            # Bounds of an amplitude are multiples of a signal, and signals are not stored here.
            if parameter.is_amplitude:
                bounds.append((0.0, np.inf))
            else:
                bounds.append((parameter.low, parameter.high))
        self._bounds = np.array(bounds)

    def _interval(self, center: _Array, spread: _Array, quantiles: _Array) -> _Array:
        ends = center[:, :, None] + spread[:, :, None] * quantiles
        return np.clip(ends, self._bounds[:, :1], self._bounds[:, 1:])


def coverage_table(
    intervals: ArrayLike,
    reference: ArrayLike,
    groups: ArrayLike,
    *,
    names: tuple[str, ...] | None = None,
) -> pd.DataFrame:
    """
    Measure for each patient how many references lie in their intervals.

    Parameters
    ----------
    intervals : array_like of shape (n_voxels, n_outputs, 2)
        As `ConformalIntervals.predict_interval` gives them.
    reference : array_like of shape (n_voxels, n_outputs)
        Values that the intervals should contain. Voxels where either is NaN do not count.
    groups : array_like of shape (n_voxels,)
        The patient of each voxel.
    names : tuple of str, optional
        Names of the outputs; numbers by default.

    Returns
    -------
    DataFrame
        Columns patient, parameter, n_voxels, coverage (share of the voxels) and width (mean, in
        the unit of the parameter). ``table.groupby("parameter")["coverage"].agg(["mean", "min"])``
        is the coverage and that of the worst patient.

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """
    import pandas as pd

    ends = np.asarray(intervals, float)
    values = np.asarray(reference, float)
    patients = np.asarray(groups)
    if values.ndim != 2 or ends.shape != (*values.shape, 2) or len(patients) != len(values):
        raise ValueError(
            f"intervals {ends.shape}, reference {values.shape} and groups {patients.shape} do not "
            "fit together: they need "
            "(n_voxels, n_outputs, 2), (n_voxels, n_outputs) and (n_voxels,)"
        )
    labels = names or tuple(map(str, range(values.shape[1])))
    usable = np.isfinite(ends).all(axis=2) & np.isfinite(values)
    inside = usable & (ends[..., 0] <= values) & (values <= ends[..., 1])
    rows = []
    for patient in pd.unique(patients):
        of_patient = patients == patient
        for i, name in enumerate(labels):
            voxels = of_patient & usable[:, i]
            row = {
                "patient": patient,
                "parameter": name,
                "n_voxels": int(voxels.sum()),
                "coverage": np.nan,
                "width": np.nan,
            }
            # The mean of no voxels would warn.
            if voxels.any():
                row["coverage"] = inside[voxels, i].mean()
                row["width"] = np.ptp(ends[voxels, i], axis=1).mean()
            rows.append(row)
    return pd.DataFrame(rows)


def _checked_calibrate(calibrate: ArrayLike, n: int) -> NDArray[np.bool_]:
    calibrated = np.asarray(calibrate)
    if calibrated.shape != (n,) or calibrated.dtype != bool or not calibrated.any():
        raise ValueError(
            f"calibrate must be {n} booleans, one per voxel and some of them true; not "
            f"{calibrated.dtype} {calibrated.shape}"
        )
    return calibrated


def _check_patients(patients: NDArray, fewest: int) -> None:
    n_patients = len(np.unique(patients))
    if n_patients < fewest:
        raise ValueError(
            f"intervals need usable voxels of at least {fewest} patients, and there are "
            f"{n_patients}; give more patients, or smaller n_splits where that is the reason"
        )


def _patient_weights(patients: NDArray) -> _Array:
    """Weigh voxels so that every patient counts the same."""
    _, member, count = np.unique(patients, return_inverse=True, return_counts=True)
    return 1.0 / (len(count) * count[member])


def _weighted_quantiles(values: _Array, weight: _Array, ends: tuple[float, float]) -> _Array:
    """Return two weighted quantiles of each column, (n_columns, 2), without interpolation."""
    out = np.empty((values.shape[1], 2))
    for i, column in enumerate(values.T):
        order = np.argsort(column, kind="stable")
        cumulative = np.cumsum(weight[order])
        cumulative /= cumulative[-1]
        # The margin absorbs the rounding of the sums, which would shift a quantile by one value.
        rank = np.searchsorted(cumulative, np.asarray(ends) - 1e-12)
        out[i] = column[order][np.minimum(rank, len(column) - 1)]
    return out


def _forest(
    X: _Array, predicted: _Array, expected: _Array, weight: _Array, seed: int
) -> RandomForestRegressor:
    forest = RandomForestRegressor(**_FOREST, random_state=seed, n_jobs=1)
    targets = expected[:, 0] if expected.shape[1] == 1 else expected
    return forest.fit(np.column_stack([X, predicted]), targets, sample_weight=weight)
