"""Prediction intervals whose coverage is measured on patients outside the training set."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from joblib import parallel_config
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold
from sklearn.utils import Tags, check_consistent_length, get_tags
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from dmrifit._utils.checks import Within, check_fields, filled
from dmrifit._utils.counts import counted
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.cohort.patches import center_of
from dmrifit.engine.map_fitter import resolve_model
from dmrifit.engine.models import SignalModel
from dmrifit.predict.base import resolve_patch_shape, training_arrays
from dmrifit.predict.intervals import (
    IntervalEnds,
    coverage_table,
    patient_weights,
    ranking_table,
    weighted_quantiles,
    width_table,
)
from dmrifit.predict.novelty import Novelty
from dmrifit.predict.strategies import SignalToSignal, reference_parameters, task_in_words

__all__ = ["ConformalIntervals"]

_Array = NDArray[np.float64]

#: The quantile of fewer patients is the error of a single one.
FEWEST_PATIENTS = 5
_N_RANDOM_GROUPS = 20  # of plain rows without patients
_FOREST = {"n_estimators": 30, "min_samples_leaf": 20, "max_features": 0.5}
_SMALLEST_SPREAD = 0.05  # of the mean spread: an expected error of nearly 0 is chance


@dataclass(eq=False, repr=False)
class ConformalIntervals(MetaEstimatorMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """
    Put intervals around the predictions of an estimator.

    Patients differ more than the voxels of one patient do, so errors are taken from patients that
    were not trained on, and every patient counts the same, however many voxels it has. The
    patients are split into parts; each part is predicted by the estimator trained on the others
    (cross-conformal prediction). A forest learns from these errors how large they are at which
    signals and predictions. The interval is the prediction plus the quantiles of the errors
    relative to that, stretched where intervals are wide, and where they are narrow, until it holds
    `coverage` of the references there too. The final estimator is trained on all patients.

    The intervals hold for voxels like those that `fit` was given: of other patients of the same
    kind, and of the same region. Intervals calibrated in the body need not hold in tumors;
    `calibrate` says which voxels count. A new patient is covered in `coverage` of its voxels in
    the mean over patients, not each for itself: `calibration_` shows how far patients differ, and
    `guarantee` what their number lets expect. `typicality` finds voxels for which none of this
    need hold, because the training patients had none like them.

    Parameters
    ----------
    estimator : SignalToSignal, MapsToMaps or regressor
        The predictor. The intervals of a strategy with protocols and a model are those of the
        model's parameters around `predict_maps`; of any other estimator, those of `predict`.
    coverage : float, default=0.9
        Share of voxels whose reference lies in the interval, in the mean over patients.
    n_splits : int, default=5
        Parts of the patients; the estimator is trained once more than that.
    random_state : int, RandomState or None, default=None
        Seed of the split and of the forest. The estimator has its own.

    Attributes
    ----------
    estimator_ : estimator
        Trained on all voxels.
    quantiles_ : ndarray of shape (n_outputs, 2)
        Of the errors relative to the expected ones, half of what is outside on each side.
    names_ : tuple of str
        The outputs: parameters of the model, contrasts of the target, or "0", "1", ….
    calibration_ : DataFrame
        As `coverage_table`, for the patients of `fit`, each by the quantiles of the others, with
        the width of the interval of a constant prediction, the median of the others, in
        ``constant_width``.
    widths_ : DataFrame
        As `width_table`, for the same intervals: coverage by quintile of width.
    ranking_ : DataFrame
        As `ranking_table`, for the same intervals: whether wide ones have large errors.
    novelty_ : Novelty or None
        What `typicality` compares with; None where too few voxels have all measurements.
    has_random_groups_ : bool
        Whether there were no groups, so that rows count and not patients.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of str
        Column names of X, when fitted to a data frame.

    Notes
    -----
    Measured with linear regression by ``benchmarks/prediction/bench_uncertainty.py``: learned from
    16 synthetic patients, tested on 16 new ones of another seed (three seeds, both presets,
    formula and random walks). In the body the mean coverage of a parameter is 0.88 to 0.93, in
    quintiles of width 0.86 to 0.96 but for Dv, of which the widest hold up to 0.98; widths rank
    errors at least 0.9 times as well as draws of N(0, width) would, and the worst patient has
    0.72. In tumors the mean is 0.87 to 0.94 and quintiles 0.75 to 0.98, but the worst patient has
    0.10 (T2t, a tumor unlike the other fifteen), and within tumors widths hardly rank the errors
    of S0 and T2t, and those of f, Dt and Dv in some conditions less than 0.8 times as well as such
    draws (down to 0.51, 0.67 and 0.72). The interval of T2v, whose reference lies at a bound in
    most voxels, is the whole box. Against a reference with independent noise coverage is 0.05
    lower in the mean, of Dt in the body 0.75 to 0.79, because errors are learned against a
    reference that shares the noise of the input.

    Conformal prediction has a proof for patients that are exchangeable, where the estimator is
    trained on others than the intervals; cross-conformal intervals keep what it promises in
    practice, without a proof. A quantile raised by one patient in the number of patients would
    promise all of `coverage`, and cover 0.96 in the mean.

    Rows in another order give other intervals, as another `random_state` does: the forest draws
    its samples by their number.

    Tried and rejected: quantiles of the relative errors alone (K covered 0.83 to 0.93 by quintile
    of width, Dv 0.86 to 0.99, T2v 0.65 where its interval is not the box), shrinking the expected
    errors by their regression on errors of patients left out (no better), errors that do not
    depend on the voxel, a forest for errors of either sign, logarithms of S0 (much wider), and the
    interval of the constant where it is narrower (S0 covered in 0.84 of tumors).

    References
    ----------
    Vovk, Ann Math Artif Intell 74:9–28, 2015 (cross-conformal prediction); Lei et al., J Am Stat
    Assoc 113:1094–1111, 2018 (locally weighted errors); Dunn et al., J Am Stat Assoc
    118:2491–2502, 2023 (groups).

    Examples
    --------
    >>> import numpy as np
    >>> from dmrifit import SignalToSignal
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> Y = X @ rng.normal(size=(3, 2)) + rng.normal(size=(200, 2))
    >>> patients = np.repeat(np.arange(10), 20)
    >>> ConformalIntervals(SignalToSignal("LR")).fit(X, Y, patients).predict_interval(X[:4]).shape
    (4, 2, 2)
    """

    estimator: Any
    _: KW_ONLY
    coverage: Annotated[float, Within(above=0, below=1)] = 0.9
    n_splits: Annotated[int, Within(2)] = 5
    random_state: RandomState = None

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
        check_fields(self)
        model = self._model()
        seed = Seed(self.random_state)
        x, y = training_arrays(self, X, Y)
        patients = self._patients(groups, len(x), seed)
        self.has_random_groups_ = groups is None
        check_consistent_length(x, patients)
        targets = y.reshape(len(y), -1)
        options = {}
        if model is not None:
            targets = reference_parameters(y, self.estimator.target, model, reference_maps)
            if has_fit_parameter(self.estimator, "reference_maps"):
                options["reference_maps"] = targets
        elif reference_maps is not None:
            raise ValueError("reference_maps belong to a strategy with protocols and a model")
        # A regressor that is tuned leaves patients out, too.
        if groups is not None and has_fit_parameter(self.estimator, "groups"):
            options["groups"] = patients
        calibrated = np.ones(len(x), bool)
        if calibrate is not None:
            calibrated = np.asarray(calibrate)
            is_mask = calibrated.shape == (len(x),) and calibrated.dtype == bool
            if not is_mask or not calibrated.any():
                raise ValueError(
                    f"calibrate must be {counted(len(x), 'boolean')}, one per voxel and some of "
                    f"them true; not {calibrated.dtype} {calibrated.shape}"
                )
        self._set_outputs(model, targets.shape[1])
        self._check_patients(patients, "")
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
        self._check_patients(patients[usable], " with finite signals and fits to calibrate on")
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
        return self.intervals_of(X, self._outputs(self.estimator_, x))

    def intervals_of(self, X: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
        """
        Put intervals around predictions that were made before, as `predict_interval` does.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_features)
            As in training.
        predicted : array_like of shape (n_voxels, n_outputs)
            The estimator's maps; without a model, its predictions.

        Returns
        -------
        ndarray of shape (n_voxels, n_outputs, 2)
            As of `predict_interval`.

        Raises
        ------
        ValueError
            If the predictions do not have the shape of the outputs.
        """
        x = self._checked(X)
        center = np.asarray(predicted, dtype=np.float64)
        if center.shape != (len(x), len(self.names_)):
            raise ValueError(
                f"predicted must have the shape {(len(x), len(self.names_))}, a row for each row "
                f"of X and a column for each output, not {center.shape}"
            )
        out = np.full((*center.shape, 2), np.nan)
        usable = np.isfinite(center).all(axis=1)
        if usable.any():
            spread = self._spread(self._forest, x[usable], center[usable])
            out[usable] = self._ends.around(center[usable], spread)
        return out

    def typicality(self, X: ArrayLike) -> NDArray[np.float64]:
        """
        Compute how typical voxels are of the training patients.

        A voxel is compared by its own measurements, without its neighbors. What looks alike in
        them is typical, whatever it is: another T2 cannot be seen at one echo time.

        Parameters
        ----------
        X : array_like of shape (n_voxels, n_features)
            As in training.

        Returns
        -------
        ndarray of shape (n_voxels,)
            Share of the voxels of training patients, left out in turn, that lie as far from the
            voxels of the others as this one, or farther. Below 0.05 a voxel is unlike the training
            voxels. NaN where a measurement is missing.
        """
        x = self._checked(X)
        if self.novelty_ is None:
            return np.full(len(x), np.nan)
        return self.novelty_.typicality(self._own_measurements(x))

    def guarantee(self) -> str:
        """
        Say in a sentence what the number of patients lets expect.

        Returns
        -------
        str
            The coverage to expect of new patients of the same kind, n/(n + 1) of what the n
            exchangeable ones showed; before it, where it applies, that `coverage` cannot be
            promised with so few patients, and how many are needed. Of rows in random groups, that
            patients were not distinguished.
        """
        check_is_fitted(self)
        n = self.calibration_["patient"].nunique()
        percent = f"{100 * self.coverage:.3g} %"
        training = getattr(self.estimator_, "training_", None)
        noun = training["unit"].split()[-1] if training else "voxel"
        if self.has_random_groups_:
            return (
                f"calibrated to {percent} on rows in {n} random parts, whatever patients they are "
                "of: nothing is known about new patients"
            )
        least = 100 * self.coverage * n / (n + 1)
        rule = f"{percent} × {n}/{n + 1}, a rule without a proof"
        text = f"at least {least:.3g} % ({rule}) is expected in similar new patients"
        # Fits in more steps have other values, which intervals hold less often.
        if self._model() is not None:
            text += "; this is for fits in one step (dmrifit fit --method nlls)"
        # The margin absorbs the rounding of 0.95 / 0.05, which is 19.
        n_needed = ceil(self.coverage / (1 - self.coverage) - 1e-9)
        if n < n_needed:
            return (
                f"{percent} cannot be promised with {counted(n, 'patient')} ({n_needed} are "
                f"needed); {text}"
            )
        return f"calibrated to {percent} of the {noun}s on {counted(n, 'patient')}; {text}"

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
            import pandas as pd

            patients = np.asarray(groups)
            is_missing = pd.isna(patients)
            if patients.ndim != 1 or is_missing.any():
                raise ValueError(
                    "groups must be a list that names the patient of each voxel, not "
                    f"{patients.shape} with {counted(int(is_missing.sum()), 'missing name')}"
                )
            return patients
        if getattr(self.estimator, "source", None) is not None:
            raise ValueError("intervals are learned patient by patient: give groups")
        if n < FEWEST_PATIENTS:
            raise ValueError(
                f"intervals need at least {FEWEST_PATIENTS} rows, and there are n_samples={n}"
            )
        return np.random.default_rng(seed).permutation(n) % _N_RANDOM_GROUPS

    def _check_patients(self, patients: NDArray, usable: str) -> None:
        n_patients, fewest = len(np.unique(patients)), max(FEWEST_PATIENTS, self.n_splits)
        if n_patients < fewest:
            remedy = f", or n_splits={FEWEST_PATIENTS}" if n_patients >= FEWEST_PATIENTS else ""
            raise ValueError(
                f"intervals need at least {fewest} patients{usable}, and there are {n_patients}; "
                f"give more patients{remedy}"
            )

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
        weight = patient_weights(patients)
        # A forest overfits its own training errors; only those of other patients are unbiased.
        spread = np.empty_like(errors)
        folds = GroupKFold(self.n_splits, shuffle=True, random_state=(seed + 1) % 2**32)
        for train, test in folds.split(X, groups=patients):
            forest = _forest(X[train], predicted[train], expected[train], weight[train], seed)
            spread[test] = self._spread(forest, X[test], predicted[test])
        self._forest = _forest(X, predicted, expected, weight, seed)
        learn_ends = partial(IntervalEnds.learn, coverage=self.coverage, bounds=self._bounds)
        self._ends = learn_ends(predicted, spread, targets, weight)
        self.quantiles_ = self._ends.quantiles
        # The intervals of each patient are measured by what the others teach.
        intervals = np.empty((*targets.shape, 2))
        constant = np.empty((*targets.shape, 2))
        tails = (1 - self.coverage) / 2, (1 + self.coverage) / 2
        for patient in np.unique(patients):
            test = patients == patient
            train = ~test
            weight = patient_weights(patients[train])
            ends = learn_ends(predicted[train], spread[train], targets[train], weight)
            intervals[test] = ends.around(predicted[test], spread[test])
            constant[test] = weighted_quantiles(targets[train], weight, tails)
        measure = partial(coverage_table, groups=patients, names=self.names_)
        constant_width = measure(constant, targets)["width"]
        self.calibration_ = measure(intervals, targets).assign(constant_width=constant_width)
        self.widths_ = width_table(intervals, targets, names=self.names_)
        self.ranking_ = ranking_table(intervals, predicted, targets, names=self.names_)
        # What voxels are like is learned from those without a gap.
        own = self._own_measurements(X)
        whole = np.isfinite(own).all(axis=1)
        own, patients = own[whole], patients[whole]
        self.novelty_ = None
        if len(np.unique(patients)) >= self.n_splits:
            weight = patient_weights(patients)
            self.novelty_ = Novelty.learn(own, patients, weight, self.n_splits, seed)

    def _own_measurements(self, X: _Array) -> _Array:
        """Leave the neighbors of a voxel out."""
        patch_shape = None
        if getattr(self.estimator, "source", None) is not None:
            patch_shape = resolve_patch_shape(self.estimator)
        return center_of(X, patch_shape)

    def _spread(self, forest: RandomForestRegressor, X: _Array, predicted: _Array) -> _Array:
        """Return the expected size of the errors, in the unit of the outputs."""
        with parallel_config("sequential"):
            expected = forest.predict(np.column_stack([X, predicted])).reshape(len(X), -1)
        return np.maximum(expected, self._smallest) * self._unit

    def _set_outputs(self, model: SignalModel | None, n: int) -> None:
        """Set names and bounds of the outputs."""
        if model is None:
            target: Any = getattr(self.estimator, "target", None) or ()
            self.names_ = tuple(target.labels if len(target) == n else map(str, range(n)))
            self._bounds = np.tile([-np.inf, np.inf], (n, 1))
            return
        self.names_ = model.names
        # Bounds of an amplitude are multiples of a signal, and signals are not stored here.
        self._bounds = np.array([
            (0.0, np.inf) if parameter.is_amplitude else (parameter.low, parameter.high)
            for parameter in model.parameters
        ])  # fmt: skip


def strategy_of(estimator: Any) -> Any:
    """Return the fitted estimator that intervals are around, or the estimator itself."""
    if isinstance(estimator, ConformalIntervals):
        check_is_fitted(estimator)
        return estimator.estimator_
    return estimator


def predictor_lines(estimator: Any, file: Path) -> list[str]:
    """Say what a predictor was trained on, what it predicts, and what its intervals are worth."""
    strategy, sample = strategy_of(estimator), "data that are not recorded"
    if isinstance(training := getattr(strategy, "training_", None), dict):
        patients = counted(training["patients"], "patient")
        sample = f"{counted(training['count'], training['unit'])} of {patients}"
        sample += f" ({', '.join(map(str, training['cohorts']))})"
    lines = [f"{file}: {estimator!r}"]
    if getattr(strategy, "source", None) is not None and strategy.target is not None:
        kind = "s2s" if isinstance(strategy, SignalToSignal) else "m2m"
        lines = [f"{strategy.regressor} {kind}: trained on {sample}: {file}"]
        lines.append(f"it predicts {task_in_words(strategy)}")
    if strategy is not estimator:
        held = estimator.calibration_.groupby("parameter", sort=False)["coverage"].mean()
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in held.items())
        where = "coverage in held-out training patients"
        lines.append(f"intervals: {estimator.guarantee()}; {where}: {shares}")
    if getattr(strategy, "synthetic_", False):
        lines.append("trained on synthetic data: not for clinical use")
    return lines


def _forest(
    X: _Array, predicted: _Array, expected: _Array, weight: _Array, seed: int
) -> RandomForestRegressor:
    forest = RandomForestRegressor(**_FOREST, random_state=seed, n_jobs=1)
    targets = expected[:, 0] if expected.shape[1] == 1 else expected
    return forest.fit(np.column_stack([X, predicted]), targets, sample_weight=weight)
