"""Base of the prediction strategies: checked protocols, training voxels, one regressor."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from joblib import parallel_config
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    LeaveOneGroupOut,
    LeavePGroupsOut,
    PredefinedSplit,
    StratifiedGroupKFold,
)
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import Tags, check_array, check_consistent_length, get_tags
from sklearn.utils.validation import check_is_fitted, validate_data

from dmrifit._utils.checks import check_fields, check_magnitude, check_word, filled
from dmrifit._utils.counts import counted
from dmrifit._utils.threads import one_thread
from dmrifit.cohort.patches import check_patch_shape
from dmrifit.engine.protocol import Protocol, check_columns, check_protocol
from dmrifit.predict.algorithms import build_regressor, default_patch_shape

__all__ = ["resolve_patch_shape"]

_Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

# Splitters that keep the voxels of a patient together; a list of splits is taken on trust.
_BY_GROUP = (
    GroupKFold,
    GroupShuffleSplit,
    LeaveOneGroupOut,
    LeavePGroupsOut,
    PredefinedSplit,
    StratifiedGroupKFold,
    list,
)


def resolve_patch_shape(estimator: Any) -> tuple[int, int, int] | None:
    """
    Return the neighborhood that an estimator, fitted or not, expects in a row of X.

    Parameters
    ----------
    estimator : SignalToSignal, MapsToMaps, or an estimator that holds one
        Such as a pipeline that ends in one, a search over its options, or intervals around it.

    Returns
    -------
    tuple of 3 ints or None
        The neighborhood, for `Cohort.arrays`; None for the voxel alone. It is the estimator's own
        `patch_shape` or, where that is None, the default of its regressor.

    Raises
    ------
    ValueError
        If the estimator's `patch_shape` is not three odd numbers.

    Examples
    --------
    >>> from dmrifit import SignalToSignal
    >>> resolve_patch_shape(SignalToSignal("CNN")), resolve_patch_shape(SignalToSignal("LR"))
    ((3, 3, 1), None)
    """
    while not hasattr(estimator, "patch_shape"):
        inner = getattr(estimator, "estimator", None)
        if hasattr(estimator, "steps"):
            inner = estimator.steps[-1][1]
        if inner is None:
            return None
        estimator = inner
    if estimator.patch_shape is not None:
        return check_patch_shape(estimator.patch_shape)
    return default_patch_shape(getattr(estimator, "regressor", None))


@dataclass(frozen=True, eq=False)
class Design:
    """Usable training voxels of a strategy's regressor."""

    features: NDArray[np.float64]  # (n_voxels, n_features)
    targets: NDArray[np.float64]  # (n_voxels, n_targets)
    n_dropped: int  # voxels that are not usable
    n_columns: int  # of X
    groups: NDArray | None = None  # patients, (n_voxels,), for a regressor that is tuned by them


class Strategy(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Base of the strategies: checked protocols, usable voxels, one regressor inside."""

    regressor: str | BaseEstimator
    source: Protocol | None
    target: Protocol | None
    model: Any  # a name, a SignalModel, or None for signals alone
    patch_shape: tuple[int, int, int] | None
    random_state: int | np.random.RandomState | None
    regressor_: RegressorMixin
    _needed = ""  # of a training voxel

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.source is not None
        return tags

    def check_parameters(self) -> None:
        """
        Check the parameters, each and against each other, without data; `fit` does so too.

        Raises
        ------
        ValueError
            If a value is unknown or not supported, or one of two protocols is missing.
        TypeError
            If the regressor is neither a name nor a scikit-learn regressor.
        """
        check_fields(self)
        # What cannot be built is refused here, before any voxel is prepared.
        self._new_regressor(2)
        if (self.source is None) != (self.target is None):
            missing = "source" if self.source is None else "target"
            raise ValueError(
                f"{missing} is missing: give both protocols, or neither to regress plain arrays"
            )
        if self.source is not None:
            check_protocol(self.source)
            check_protocol(self.target)
        search = _search(self.regressor)
        if self.source is not None and search is not None and not isinstance(search.cv, _BY_GROUP):
            raise ValueError(
                f"regressor {type(search).__name__} is tuned with cv={search.cv!r}, which puts "
                "voxels of one patient on both sides of a split; "
                "give it cv=GroupKFold() or LeaveOneGroupOut(), and fit the groups"
            )
        self._check_options()

    def _check_options(self) -> None:
        """Check the parameters that only one strategy has."""

    @property
    def patch_shape_(self) -> tuple[int, int, int] | None:
        """The neighborhood that a row of X is; None for the voxel alone."""
        if self.source is None and self.patch_shape is None:
            return None
        return resolve_patch_shape(self)

    def _new_regressor(self, n_targets: int, random_state: Any = None) -> RegressorMixin:
        return build_regressor(
            self.regressor,
            n_targets=n_targets,
            patch_shape=self.patch_shape_,
            loss=getattr(self, "loss", "mean"),
            random_state=random_state,
        )

    def _checked_training(self, X: ArrayLike, Y: ArrayLike) -> tuple[_Array, _Array]:
        """Check the training data against the protocols."""
        self.check_parameters()
        x, y = training_arrays(self, X, Y)
        if self.source is not None and self.patch_shape_ is None:
            check_columns(x, self.source, "X")
        else:
            n_source = None if self.source is None else len(self.source)
            _check_neighbors(x, n_source, self.patch_shape_)
        if self.target is not None:
            check_columns(y, self.target, "Y")
        check_magnitude(x, "X")
        check_magnitude(y, "Y")
        return x, y

    def _checked_input(self, X: ArrayLike) -> _Array:
        check_is_fitted(self)
        finite = self.source is None
        X = filled(X)
        return validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite=finite)

    def _protocols(self) -> tuple[Protocol, Protocol]:
        if self.source is None or self.target is None:
            raise ValueError(
                "maps need to know the measurements: give the protocols source= and target="
            )
        return self.source, self.target

    def set_output(self, *, transform: str | None = None) -> Self:
        """
        Choose between arrays and data frames, as scikit-learn's transformers do.

        Parameters
        ----------
        transform : {"default", "pandas"}, optional
            What `predict` and `predict_maps` return: arrays, or data frames with the columns of
            `get_feature_names_out` (numbers without protocols) and the names of the model's
            parameters, and with the index of X where that is a data frame. None leaves it.

        Returns
        -------
        estimator
            Itself.

        Raises
        ------
        ValueError
            If the word is another one.
        """
        check_word("transform", transform, (None, "default", "pandas"))
        if transform is not None:
            # The name under which scikit-learn's clone copies the choice.
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_feature_names_out(
        self, input_features: ArrayLike | None = None
    ) -> NDArray[np.object_]:
        """
        Name the columns of `predict`.

        Parameters
        ----------
        input_features : ignored
            There for scikit-learn, whose pipelines give it.

        Returns
        -------
        ndarray of str, shape (n_target,)
            Contrasts of the target protocol, such as ``"S_b0_TE93"``.

        Raises
        ------
        ValueError
            If there are no protocols.
        """
        if self.target is None:
            raise ValueError("columns have no names without protocols: give source= and target=")
        return np.array(self.target.labels, dtype=object)

    def _named(self, values: _Array, X: ArrayLike, names: Sequence[str] | NDArray) -> Any:
        """Give predictions the names of their columns where data frames are asked for."""
        config = getattr(self, "_sklearn_output_config", {})
        if config.get("transform") != "pandas":
            return values
        import pandas as pd

        index = X.index if isinstance(X, pd.DataFrame) else None
        return pd.DataFrame(values, index=index, columns=list(names) or None)

    def fit_design(self, design: Design) -> Self:
        """
        Fit to the design of training voxels.

        A comparison trains on each patient repeatedly, and prepares its design only once.

        Parameters
        ----------
        design : Design
            Of an estimator with the same parameters, but for the regressor and the seed.

        Returns
        -------
        estimator
            Itself.

        Raises
        ------
        ValueError
            If no voxel is usable.
        """
        # Whatever an earlier fit learned from; `dmrifit train` knows the patients, and sets both.
        self.synthetic_ = False
        self.training_: dict[str, Any] | None = None
        self.n_dropped_ = design.n_dropped
        self.n_features_in_ = design.n_columns
        if not len(design.features):
            raise ValueError(
                f"none of {counted(self.n_dropped_, 'training voxel')} has {self._needed}; check "
                "images, masks and protocols"
            )
        options = {}
        if _search(self.regressor) is not None and self.source is not None:
            if design.groups is None:
                name = type(self.regressor).__name__
                raise ValueError(
                    f"regressor {name} is tuned by leaving patients out: fit needs groups=patients"
                )
            options["groups"] = design.groups
        n_targets = 1 if design.targets.ndim == 1 else design.targets.shape[1]
        regressor = self._new_regressor(n_targets, self.random_state)
        with one_thread():
            self.regressor_ = regressor.fit(design.features, design.targets, **options)
        return self

    def _design(
        self,
        x: _Array,
        y: _Array,
        groups: ArrayLike | None,
        usable: NDArray[np.bool_] | None = None,
    ) -> Design:
        """Keep the usable rows of features and targets, and count the dropped ones."""
        patients: NDArray | None = None
        if groups is not None:
            patients = check_array(groups, ensure_2d=False, dtype=None, input_name="groups")
            check_consistent_length(x, patients)
        n_dropped = 0
        if usable is not None and not usable.all():
            n_dropped = int((~usable).sum())
            n_voxels, x, y = len(x), x[usable], y[usable]
            text = "%d of %d training voxels are left out: they lack %s"
            _log.info(text, n_dropped, n_voxels, self._needed)
            patients = None if patients is None else patients[usable]
        # The last bits of a matrix product depend on the memory layout of its factors.
        x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
        return Design(x, y, n_dropped, self.n_features_in_, groups=patients)

    def _answer(self, X: _Array) -> _Array:
        # A forest in threads sums its trees in the order in which they finish: bits would differ.
        with one_thread(), parallel_config("sequential"):
            # xgboost and torch predict in single precision.
            return np.asarray(self.regressor_.predict(X), dtype=np.float64)

    def _answer_where(self, usable: NDArray[np.bool_], X: _Array, n_columns: int) -> _Array:
        """Predict the usable rows of X; NaN elsewhere."""
        out = np.full((len(X), n_columns), np.nan)
        if usable.any():
            out[usable] = self._answer(X[usable]).reshape(-1, n_columns)
        return out


def training_arrays(estimator: Any, X: ArrayLike, Y: ArrayLike) -> tuple[_Array, _Array]:
    """Check training data as scikit-learn does; NaN may be in both where the tags allow it."""
    X, Y = filled(X), filled(Y)
    if not get_tags(estimator).input_tags.allow_nan:
        x, y = validate_data(estimator, X, Y, multi_output=True, y_numeric=True, dtype=np.float64)
        return x, y.astype(np.float64, copy=False)
    x = validate_data(estimator, X, dtype=np.float64, ensure_all_finite=False)
    y = check_array(Y, dtype=np.float64, ensure_all_finite=False, ensure_2d=False, input_name="Y")
    check_consistent_length(x, y)
    return x, y


def _search(regressor: Any) -> BaseSearchCV | None:
    """Return the search by which a regressor is tuned, or None."""
    if isinstance(regressor, TransformedTargetRegressor):
        regressor = regressor.regressor
    return regressor if isinstance(regressor, BaseSearchCV) else None


def _check_neighbors(X: _Array, n: int | None, patch_shape: tuple[int, int, int] | None) -> None:
    """Check that rows have the measurements of each neighbor, any number where it is not known."""
    k = 1 if patch_shape is None else math.prod(patch_shape)
    if n is None:
        n = max(X.shape[1] // k, 1)
    if X.shape[1] != k * n:
        raise ValueError(
            f"X of shape {X.shape} does not have the {k * n} columns of "
            f"{counted(k, 'neighbor')} (patch_shape={patch_shape}) with "
            f"{counted(n, 'measurement')} each; "
            f"Cohort.arrays(patch_shape={patch_shape}) gives them"
        )
