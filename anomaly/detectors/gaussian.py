"""Voxelwise detectors without a network: distance from healthy scans at the same position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import AnomalyDetector, Scans
from anomaly.detectors.features import (
    FEATURES,
    look_of,
    masked_smoothing,
    nearest_inside,
    shrunk_variance,
    voxel_features,
)
from dmrifit._utils.checks import NotNegative, check_words
from dmrifit._utils.counts import counted
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.model_files.registry import register

__all__ = ["OneMinusMean", "VoxelwiseGaussian"]

#: Smallest standard deviation, so that no score is infinite where all healthy scans are equal.
_LEAST_SD = 1e-4
#: Share of the identity in the correlations between features, which few scans estimate poorly.
_SHRINKAGE = 0.05


class Design:
    """
    Turns covariates into the columns of a linear model, the first of them ones.

    Numbers become one column, centered and divided by their standard deviation; words become a
    column for each level but the first.
    """

    def __init__(self, columns: list[dict[str, Any]]) -> None:
        self.columns = columns

    @classmethod
    def learn(cls, covariates: Any, n_scans: int) -> Design:
        """Find the columns of covariates."""
        columns: list[dict[str, Any]] = []
        for name, values in _listed(covariates, n_scans).items():
            if values.dtype.kind in "fiu":
                # A constant covariate has sd 0, and no column in the matrix.
                mean, sd = float(values.mean()), float(values.std())
                ends = {"low": float(values.min()), "high": float(values.max())}
                columns.append({"name": name, "mean": mean, "sd": sd, **ends})
            else:
                columns.append({"name": name, "levels": sorted(set(values.tolist()))})
        return cls(columns)

    @property
    def n_columns(self) -> int:
        """Number of columns, including the one of ones."""
        # The first level is in the column of ones; a constant number has no column.
        levels = [len(column["levels"]) - 1 for column in self.columns if "levels" in column]
        return 1 + sum(levels) + sum(column.get("sd", 0) > 0 for column in self.columns)

    def matrix(self, covariates: Any, n_scans: int) -> NDArray[np.float64]:
        """Build the columns for scans, shape (n_scans, n_columns)."""
        covariate_values = _listed(covariates, n_scans)
        names = [column["name"] for column in self.columns]
        if set(covariate_values) != set(names):
            raise ValueError(
                f"the covariates are {sorted(covariate_values)}, and the model was fitted with "
                f"{sorted(names)}; give those"
            )
        vectors = [np.ones(n_scans)]
        for column in self.columns:
            values = covariate_values[column["name"]]
            if "levels" not in column:
                if values.dtype.kind not in "fiu":
                    raise ValueError(
                        f"covariate {column['name']} was a number, and is now {str(values[0])!r}; "
                        "give numbers"
                    )
                # A number that was the same in all is in the column of ones already.
                if column["sd"] > 0:
                    vectors.append((values - column["mean"]) / column["sd"])
                continue
            words = values.astype(str)
            unknown = sorted(set(words.tolist()) - set(column["levels"]))
            if unknown:
                raise ValueError(
                    f"covariate {column['name']} is {', '.join(unknown)}, and the healthy "
                    f"subjects have {', '.join(column['levels'])}; write it as there, or "
                    f"train with healthy scans of it, or without {column['name']}"
                )
            # The first level is in the column of ones.
            vectors += [(words == level).astype(np.float64) for level in column["levels"][1:]]
        return np.stack(vectors, axis=1)

    @classmethod
    def from_json(cls, columns: Any) -> Design:
        """Read a design from a model file."""
        if not isinstance(columns, list):
            raise ValueError(f"its covariates are {columns!r}")
        for column in columns:
            if isinstance(column, dict) and "levels" in column:
                refuse_keys(column, {"name", "levels"}, "key of a covariate", complete=True)
                is_valid = all(isinstance(level, str) for level in column["levels"])
            else:
                # The first files do not say the range.
                numbers = {"mean", "sd"} | {"low", "high"} & set(column)
                refuse_keys(column, {"name", *numbers}, "key of a covariate", complete=True)
                is_valid = all(isinstance(column[key], float | int) for key in numbers)
            if not is_valid or not isinstance(column["name"], str):
                raise ValueError(f"one of its covariates is {column!r}")
        return cls(columns)


@register
@dataclass(repr=False, eq=False)
class VoxelwiseGaussian(AnomalyDetector):
    """
    Score of a voxel: its z-score among healthy scans at the same position.

    Features of each voxel (the mean signal over directions by default) are smoothed; their mean
    and variance over healthy scans are computed voxel by voxel, over the scans whose mask contains
    the voxel. With covariates the mean becomes a regression, solved in closed form for every
    voxel. Variances are shrunk towards the median over the brain, as if there were `prior_scans`
    further scans with that variance; a voxel outside all healthy masks takes the values of the
    nearest voxel inside one. Large registration errors make this detector worse.

    The score is the smoothed mean of the z of all features: its absolute value, or with a `side`
    itself or its negative. With ``distance="mahalanobis"`` it is the smoothed Mahalanobis distance
    with correlations that are pooled over the brain, divided by the square root of the number of
    features.

    Scans are read one at a time for each feature, so that memory does not grow with their number
    (but for 4000 voxels of each for a Mahalanobis distance);
    the model takes 8 bytes for each voxel and feature (64 directions of 90 × 90 × 54 voxels:
    0.2 GB).

    Parameters
    ----------
    features : {"mean", "channels"} or tuple of str, default="mean"
        ``"mean"`` is the mean over directions, ``"channels"`` every direction by itself; or names
        of `anomaly.detectors.features.FEATURES`.
    threshold : threshold rule, optional
        Rule that makes a map binary, fitted to scans held out of the training; by default
        `HealthyRateThreshold(0.01)`: 1 % of the voxels of healthy brains are above it.
    calibration : float, int, "auto" or None, default=4
        The healthy scans for the threshold. A share, such as 0.25: this share of the subjects is
        held out of the training. A number of folds, such as 4: each fold is scored by a detector
        trained on the others, then all scans are learned from. ``"auto"``: four folds of fewer
        than 40 subjects, a quarter of more or for a guarantee. None: no threshold is fitted, and
        there are only maps.
    scale : {None, "image"}, default=None
        With ``"image"`` each map is divided by its own 99.9 % quantile and clipped at 1, as in the
        published code. A healthy scan then always has voxels of the highest score.
    smooth_mm : float, default=6.0
        Standard deviation in mm of the Gaussian that smooths the scores.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    side : {"low", "high", "both"}, default="both"
        Which differences are anomalous: a signal that is too low (more diffusion), one that is too
        high (less), or both. Not for Mahalanobis distances, which have no side.
    distance : {"z", "mahalanobis"}, default="z"
        How features are combined.
    smoothing : float, default=0.5
        Standard deviation of a Gaussian in voxels, by which each scan is smoothed inside its mask.
    template_smoothing : float, default=0.5
        The same for the healthy mean and variance; it compensates for small registration errors.
    prior_scans : float, default=4.0
        Weight of the median variance in scans; 0 for no shrinkage.

    Attributes
    ----------
    coefficients_ : ndarray of shape (n_features, n_columns, x, y, z)
        Of the regression in every voxel; without covariates the mean.
    variance_ : ndarray of shape (n_features, x, y, z)
        About the regression.
    counts_ : ndarray of shape (x, y, z)
        Number of healthy scans whose mask contains the voxel.
    correlation_ : ndarray of shape (n_features, n_features)
        Of the residuals of the features, pooled over voxels; the identity for ``distance="z"``.
    design_ : list of dict
        Columns of the regression.

    See Also
    --------
    OneMinusMean : A score that needs no healthy scans.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> healthy = 0.4 + 0.02 * rng.standard_normal((12, 8, 8, 8, 6))
    >>> detector = VoxelwiseGaussian(side="low").fit(healthy)
    >>> scan = healthy[:1].copy()
    >>> scan[0, 2:5, 2:5, 2:5] -= 0.1
    >>> bool(detector.predict(scan)[0, 3, 3, 3])
    True
    """

    _array_names = ("coefficients_", "variance_", "counts_", "correlation_")
    _fact_names = ("design_",)
    _uses_covariates = True

    features: str | tuple[str, ...] = "mean"
    _: KW_ONLY
    side: Literal["low", "high", "both"] = "both"
    distance: Literal["z", "mahalanobis"] = "z"
    smoothing: NotNegative = 0.5
    template_smoothing: NotNegative = 0.5
    prior_scans: NotNegative = 4.0

    def _check_parameters(self) -> None:
        if self.features != "channels":
            what = "features other than 'channels'"
            check_words(what, self._features(0) or (), FEATURES, least=1)
        if self.distance == "mahalanobis" and self.side != "both":
            raise ValueError(
                "a Mahalanobis distance has no side; use side='both', or distance='z' with "
                f"side={self.side!r}"
            )

    # Learning
    # -------------------------------------------------------------------------------------

    def _fit_scans(self, scans: Scans) -> None:
        """Fit each feature of each voxel by covariates; pool correlations of the features."""
        # A column also for levels that only the held-out fold has.
        design = Design.learn(*scans.of_all)
        columns = design.matrix(scans.covariates, len(scans))
        if len(scans) <= columns.shape[1]:
            raise ValueError(
                f"too few scans ({len(scans)}) for a mean and "
                f"{counted(columns.shape[1] - 1, 'column')} of covariates; give more scans or "
                "fewer covariates, or hold out fewer scans (calibration, --calibration)"
            )
        self.design_ = design.columns
        features = self._features(scans.shape[3])
        n_features = len(features)
        n_columns = columns.shape[1]
        self.counts_ = np.zeros(scans.shape[:3], dtype=np.int32)
        for i in range(len(scans)):
            self.counts_ += scans.mask(i)
        # Voxels in the mask of at least one scan; arrays below have a column for each.
        covered = self.counts_ > 0
        counts = self.counts_[covered]

        # The normal equations of every voxel, (n_voxels, n_columns, n_columns).
        gram = np.zeros((len(counts), n_columns, n_columns))
        for i, row in enumerate(columns):
            gram[scans.mask(i)[covered]] += np.outer(row, row)

        needs_correlation = self.distance == "mahalanobis" and n_features > 1
        # About 4,000 of the voxels that most scans have are enough for pooled correlations.
        best_covered = np.flatnonzero(counts == counts.max())
        sample = best_covered[:: max(1, len(best_covered) // 4000)]
        if not needs_correlation:
            sample = sample[:0]

        self.coefficients_ = np.empty((n_features, n_columns, *scans.shape[:3]), dtype=np.float32)
        self.variance_ = np.empty((n_features, *scans.shape[:3]), dtype=np.float32)
        z_sample = np.empty((n_features, len(scans) * len(sample)), dtype=np.float32)
        # Voxels without a scan take the values of the nearest one with one.
        nearest = nearest_inside(covered)
        volume = np.zeros(covered.shape, dtype=np.float32)
        for k, feature in enumerate(features):
            # Sums over scans, so that memory does not grow with their number.
            products, squares = np.zeros((n_columns, len(counts))), np.zeros(len(counts))
            sampled = np.empty((len(scans), len(sample)))
            for i in range(len(scans)):
                # 0 outside the mask of a scan.
                values = self._feature(scans, i, feature)[covered].astype(np.float64)
                sampled[i] = values[sample]
                squares += np.square(values)
                for column, weight in enumerate(columns[i]):
                    products[column] += weight * values
            beta, variance = self._regress(gram, products, squares, counts)
            targets = [*self.coefficients_[k], self.variance_[k]]
            for target, values in zip(targets, [*beta, variance], strict=True):
                volume[covered] = values
                target[:] = masked_smoothing(volume, covered, self.template_smoothing)[nearest]
            inside = np.stack([scans.mask(i)[covered][sample] for i in range(len(scans))])
            residuals = np.where(inside, sampled - columns @ beta[:, sample], 0)
            z_sample[k] = (residuals / np.sqrt(variance[sample])).ravel()

        self.correlation_ = np.eye(n_features)
        if needs_correlation:
            # A feature that is equal in all scans has no correlation.
            varies = z_sample.std(axis=1) > 0
            block = np.ix_(varies, varies)
            self.correlation_[block] *= _SHRINKAGE
            self.correlation_[block] += (1 - _SHRINKAGE) * np.corrcoef(z_sample[varies])

    def _regress(
        self, gram: NDArray, products: NDArray, squares: NDArray, counts: NDArray
    ) -> tuple[NDArray, NDArray]:
        """
        Fit a feature by the covariates; gives coefficients and the variance of a new scan.

        Shapes: of each voxel, sums over its scans (`counts`): `gram` (n_voxels, n_columns,
        n_columns) of covariates, `products` (n_columns, n_voxels) of covariates and values,
        `squares` (n_voxels,) of values.
        """
        beta = _solved(gram, products)
        # By the normal equations without their ridge.
        fitted_squares = np.einsum("cv,vcd,dv->v", beta, gram, beta)
        residual_squares = squares + (fitted_squares - 2 * (beta * products).sum(0))
        freedom = np.maximum(counts - len(products), 0)
        variance = shrunk_variance(
            np.maximum(residual_squares, 0), freedom, float(self.prior_scans)
        )
        # A new scan also differs by the error of the mean of the healthy ones.
        return beta, np.maximum(variance * (1 + 1 / np.maximum(counts, 1)), _LEAST_SD**2)

    # Features
    # -------------------------------------------------------------------------------------

    def _features(self, n_channels: int) -> Sequence[Any]:
        """List the features: names, or numbers of channels."""
        if self.features == "channels":
            return range(n_channels)
        return [self.features] if isinstance(self.features, str) else self.features

    def _feature(self, scans: Scans, i: int, feature: Any) -> NDArray[np.float32]:
        """Compute one feature of a scan, smoothed."""
        mask = scans.mask(i)
        if self.features == "channels":
            volume = scans.signal(i)[..., feature]
        else:
            volume = voxel_features(scans.signal(i), mask, [feature])[0]
        return masked_smoothing(volume, mask, self.smoothing)

    # Scoring
    # --------------------------------------------------------------------------------------

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        mask = scans.mask(i)
        row = Design(self.design_).matrix(scans.covariates, len(scans))[i].astype(np.float32)
        deviations = []
        for k, feature in enumerate(self._features(scans.shape[3])):
            expected = np.tensordot(row, self.coefficients_[k], axes=1)
            difference = self._feature(scans, i, feature) - expected
            deviations.append((difference / np.sqrt(self.variance_[k]))[mask])
        z = np.stack(deviations)
        if self.distance == "mahalanobis":
            # Features that vary together in healthy scans must not count twice.
            root = np.linalg.cholesky(self.correlation_)
            whitened = np.linalg.solve(root, z.astype(np.float64))
            return self._smooth_scores(np.sqrt((whitened**2).mean(axis=0)), mask)
        mean = self._smooth_scores(z.mean(axis=0), mask)
        if self.side == "both":
            return np.abs(mean)
        return -mean if self.side == "low" else mean

    def _check_restored(self) -> None:
        design = Design.from_json(self.design_)
        n_features = len(self.coefficients_)
        expected = {
            "coefficients_": (n_features, design.n_columns, *self.shape_),
            "variance_": (n_features, *self.shape_),
            "counts_": self.shape_,
            "correlation_": (n_features, n_features),
        }
        self._check_shapes(expected)
        if n_features != len(self._features(self.n_channels_)):
            raise ValueError(
                f"it has learned {n_features} features, and its parameters name others"
            )


@register
@dataclass(repr=False, eq=False)
class OneMinusMean(AnomalyDetector):
    """
    Score of a voxel: 1 minus its mean signal over directions; a reference that learns nothing.

    The signal is low where diffusion is fast, in many tumors and in all cerebrospinal fluid.

    Parameters
    ----------
    threshold, calibration, scale : optional
        As in `VoxelwiseGaussian`; calibration is 4 by default.
    smooth_mm : float, default=6.0
        Standard deviation in mm of a Gaussian, by which the map is smoothed inside the mask.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    """

    _one_size: ClassVar[bool] = False

    def _fit_scans(self, scans: Scans) -> None:
        """Learn nothing."""

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        mask = scans.mask(i)
        return self._smooth_scores(1 - look_of(scans.signal(i), mask).mean[mask], mask)


def _solved(gram: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the coefficients of every voxel, (n_columns, n_voxels), over the scans that have it."""
    if len(products) == 1:
        return products / gram[:, 0, 0]
    # Where few scans have a voxel, columns may be collinear; the ridge keeps their coefficients
    # near 0.
    ridge = np.full(len(products), 1e-3)
    ridge[0] = 1e-9
    solution = np.linalg.solve(gram + np.diag(ridge), products.T[..., None])
    return np.asarray(solution[..., 0].T, dtype=np.float64)


def _listed(covariates: Any, n_scans: int) -> dict[str, NDArray[Any]]:
    """Return covariates as arrays of numbers or of words, none of them missing."""
    if covariates is None:
        return {}
    if not isinstance(covariates, Mapping) and not hasattr(covariates, "columns"):
        raise ValueError(
            "covariates must be a table with a column for each, such as age, not "
            f"{type(covariates).__name__}"
        )
    import pandas as pd

    arrays = {}
    for name in covariates:
        values = np.asarray(covariates[name], dtype=object)
        if values.shape != (n_scans,):
            raise ValueError(
                f"covariate {name} has {counted(values.size, 'value')} for "
                f"{counted(n_scans, 'scan')}; give one for each"
            )
        column = pd.Series(values).infer_objects()
        if column.dtype.kind in "biuf":
            array = column.to_numpy(int if column.dtype.kind == "b" else column.dtype)
            missing = ~np.isfinite(array)
        else:
            array = np.array([str(value) for value in values])
            missing = pd.isna(values) | (array == "")
        if missing.any():
            raise ValueError(
                f"covariate {name} is missing for {int(missing.sum())} of {n_scans} scans; give "
                f"all (column {name} of a table of scans), or train without {name}"
            )
        arrays[str(name)] = array
    return arrays
