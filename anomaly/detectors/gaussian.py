"""Detectors without a network that know each place of a healthy brain: how far a voxel is from what is normal there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.array_detector import ArrayDetector
from anomaly.detectors.base import Scans
from anomaly.detectors.covariates import Design
from anomaly.detectors.features import FEATURES, masked_smoothing, mean_signal, voxel_features
from dmrifit._utils.checks import check_number, check_word
from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.registry import register

__all__ = ["OneMinusMean", "VoxelwiseGaussian"]

_SIDES = ("low", "high", "both")
_DISTANCES = ("z", "mahalanobis")
#: Smallest standard deviation, so that no score is infinite where all healthy scans are equal.
_LEAST_SD = 1e-4
#: Share of the identity in the correlations between features; they are estimated from some scans only.
_SHRINKAGE = 0.05


@register
class VoxelwiseGaussian(ArrayDetector):
    """
    Score of a voxel: its distance from the healthy scans at the same place, in standard deviations.

    Features of each voxel (the mean signal over directions by default) are smoothed; their mean and their variance over
    healthy scans are taken voxel by voxel, over those scans whose mask has the voxel. With covariates the mean becomes
    a regression, solved in closed form for every voxel. A variance from some scans is drawn towards the median over the
    brain, as if `prior_scans` further scans had been seen with that variance; where no healthy scan has a voxel, the
    nearest place that is known stands for it. Large differences of registration make this detector worse.

    With one feature the score is z. With several it is the absolute value of the mean of all z, or, with
    ``distance="mahalanobis"``, the Mahalanobis distance with correlations that are pooled over the brain, divided by
    the square root of the number of features.

    Scans are read one at a time for one feature, and for ``features="channels"`` one direction after the other. Beside
    the scans of the caller, ``fit`` holds one feature of all scans, twice (90 × 90 × 54 voxels, 28 scans: 0.1 GB), and
    the model takes 8 bytes for each voxel and feature (64 directions: 0.2 GB).

    Parameters
    ----------
    features : {"mean", "channels"} or tuple of str, default="mean"
        ``"mean"`` is the mean over directions, ``"channels"`` every direction by itself; or names of
        `anomaly.detectors.features.FEATURES`.
    side : {"low", "high", "both"}, default="both"
        Which differences are anomalous: a signal that is too low (more diffusion), one that is too high (less), or
        both. Not for Mahalanobis distances, which have no side.
    distance : {"z", "mahalanobis"}, default="z"
        How features are joined.
    smoothing : float, default=0.5
        Standard deviation of a Gaussian in voxels, by which each scan is smoothed inside its mask.
    template_smoothing : float, default=0.5
        The same for the healthy mean and variance; it makes up for small errors of registration.
    map_smoothing : float, default=1.0
        The same for the scores.
    prior_scans : float, default=4.0
        Weight of the median variance; 0 takes each variance as it is.
    threshold : threshold rule, optional
        As in `AnomalyDetector`.
    calibration : float, int or None, default=4
        As in `AnomalyDetector`.
    scale : {None, "image"}, default=None
        As in `AnomalyDetector`.

    Attributes
    ----------
    coefficients_ : ndarray of shape (n_features, n_columns, x, y, z)
        Of the regression in every voxel; without covariates the mean.
    variance_ : ndarray of shape (n_features, x, y, z)
        About the regression.
    counts_ : ndarray of shape (x, y, z)
        How many healthy scans have the voxel.
    correlation_ : ndarray of shape (n_features, n_features)
        Of what is left of the features, pooled over voxels; the identity for ``distance="z"``.
    design_ : list of dict
        Columns of the regression.

    See Also
    --------
    OneMinusMean : What needs no healthy scans.

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

    _array_names: ClassVar[tuple[str, ...]] = (
        "coefficients_",
        "variance_",
        "counts_",
        "correlation_",
    )
    _fact_names: ClassVar[tuple[str, ...]] = ("design_",)
    _whole_design: Design

    def __init__(
        self,
        features: str | tuple[str, ...] = "mean",
        *,
        side: str = "both",
        distance: str = "z",
        smoothing: float = 0.5,
        template_smoothing: float = 0.5,
        map_smoothing: float = 1.0,
        prior_scans: float = 4.0,
        threshold: Any = None,
        calibration: float | int | None = 4,
        scale: str | None = None,
    ) -> None:
        self.features = features
        self.side = side
        self.distance = distance
        self.smoothing = smoothing
        self.template_smoothing = template_smoothing
        self.map_smoothing = map_smoothing
        self.prior_scans = prior_scans
        self.threshold = threshold
        self.calibration = calibration
        self.scale = scale

    def fit(
        self, X: Any, masks: Any = None, *, groups: Any = None, covariates: Any = None
    ) -> VoxelwiseGaussian:
        """
        Learn what healthy scans look like at every place.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of n_scans arrays of shape (x, y, z, channels)
            Scans of healthy subjects, divided by the signal at b = 0, all of one size.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of n_scans arrays of shape (x, y, z), optional
            The brain; by default where any channel is above 0. Masks may differ.
        groups : sequence of n_scans, optional
            The subject of each scan; by default each scan is of another.
        covariates : DataFrame with n_scans rows, or mapping of sequences, optional
            What is known of the subjects, such as age, sex and site: numbers, or words for groups.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a scan, a mask or a covariate is not possible, or there are fewer scans than a regression
            on the covariates needs.
        """
        scans = Scans(X, masks, covariates)
        self._whole_design = Design.learn(covariates, len(scans))
        try:
            self._fit(scans, groups)
        finally:
            del self._whole_design
        return self

    def anomaly_map(
        self, X: Any, masks: Any = None, *, covariates: Any = None
    ) -> NDArray[np.float32]:
        """
        Score every voxel of scans.

        Parameters
        ----------
        X, masks : as in `fit`
            The scans may have lesions.
        covariates : DataFrame with n_scans rows, or mapping of sequences, optional
            Those of `fit`, if there were any.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z)
            Standard deviations, larger where a scan is less like the healthy ones; below 0 where a scan differs to the
            other side; 0 outside the mask.

        Raises
        ------
        ValueError
            If scans are not like those that were learned from, or covariates are missing or unknown.
        """
        check_is_fitted(self)
        return self._maps(self._like_learned(Scans(X, masks, covariates)))

    def predict(self, X: Any, masks: Any = None, *, covariates: Any = None) -> NDArray[np.bool_]:
        """
        Say which voxels of scans are anomalous: where the map is above the threshold that is stored.

        Parameters
        ----------
        X, masks, covariates : as in `anomaly_map`
            What is scored.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z)
            Anomalous voxels, all inside the mask.

        Raises
        ------
        ValueError
            As `anomaly_map`, or if no threshold was fitted.
        """
        check_is_fitted(self)
        self._require_threshold()
        scans = self._like_learned(Scans(X, masks, covariates))
        return self._apply(self._maps(scans), scans)

    def _check_parameters(self) -> None:
        for name, known in (("side", _SIDES), ("distance", _DISTANCES)):
            check_word(name, getattr(self, name), known)
        for name in ("smoothing", "template_smoothing", "map_smoothing", "prior_scans"):
            check_number(name, getattr(self, name))
        if self.features not in ("mean", "channels"):
            names = (self.features,) if isinstance(self.features, str) else tuple(self.features)
            if not names or not set(names) <= set(FEATURES):
                raise ValueError(
                    f"features must be 'mean', 'channels' or some of {', '.join(FEATURES)}, not {self.features!r}"
                )
        if self.distance == "mahalanobis" and self.side != "both":
            raise ValueError(
                f"a Mahalanobis distance has no side; use side='both', or distance='z' with side={self.side!r}"
            )

    # Learning -------------------------------------------------------------------------------------

    def _part(self) -> VoxelwiseGaussian:
        part: VoxelwiseGaussian = super()._part()
        # A level that only the other folds have keeps its column.
        part._whole_design = self._whole_design
        return part

    def _fit_scans(self, scans: Scans) -> None:
        design = self._whole_design
        columns = design.matrix(scans.covariates, len(scans))
        if len(scans) <= columns.shape[1]:
            raise ValueError(
                f"{len(scans)} scans are too few for a mean and {columns.shape[1] - 1} columns of covariates; give "
                "more scans or fewer covariates"
            )
        self.design_ = design.columns
        masks = np.stack([scans.mask(i) for i in range(len(scans))])
        self.counts_ = masks.sum(axis=0).astype(np.int32)
        n_features = self._n_features(scans)
        self.coefficients_ = np.empty(
            (n_features, columns.shape[1], *scans.shape[:3]), dtype=np.float32
        )
        self.variance_ = np.empty((n_features, *scans.shape[:3]), dtype=np.float32)
        seen = self.counts_ > 0
        gram = _gram(columns, masks[:, seen])
        joint = self.distance == "mahalanobis" and n_features > 1
        # A sample of voxels is enough for correlations that are the same everywhere.
        places = np.flatnonzero(self.counts_[seen] == self.counts_.max())
        places = places[:: max(1, len(places) // 4000)]
        left = np.empty((n_features, len(scans) * len(places) if joint else 0))
        for k in range(n_features):
            values = np.stack([self._feature(scans, i, k)[seen] for i in range(len(scans))])
            beta = _solved(columns, masks[:, seen], values, gram)
            rest = np.where(masks[:, seen], values - columns.astype(np.float32) @ beta, 0)
            variance = self._shrunk(
                (rest**2).sum(axis=0, dtype=np.float64), self.counts_[seen], columns.shape[1]
            )
            self._keep(k, seen, beta, variance)
            if joint:
                left[k] = (rest[:, places] / np.sqrt(variance[places])).ravel()
        self.correlation_ = np.eye(n_features)
        if joint:
            # A feature that is the same in all scans goes with no other.
            varies = left.std(axis=1) > 0
            self.correlation_[np.ix_(varies, varies)] *= _SHRINKAGE
            self.correlation_[np.ix_(varies, varies)] += (1 - _SHRINKAGE) * np.corrcoef(
                left[varies]
            )

    def _shrunk(self, squares: NDArray, counts: NDArray, n_columns: int) -> NDArray[np.float64]:
        """Give variances from sums of squares, drawn towards their median."""
        freedom = np.maximum(counts - n_columns, 0).astype(np.float64)
        known = freedom > 0
        own = squares[known] / freedom[known]
        typical = float(np.median(own)) if known.any() else 0.0
        weight = freedom + float(self.prior_scans)
        total = squares + float(self.prior_scans) * typical
        variance = np.divide(total, weight, out=np.full(len(squares), typical), where=weight > 0)
        # The mean of so many scans is not known better than this.
        return np.maximum(variance * (1 + 1 / np.maximum(counts, 1)), _LEAST_SD**2)

    def _keep(self, k: int, seen: NDArray[np.bool_], beta: NDArray, variance: NDArray) -> None:
        """Smooth the healthy mean and variance and let the nearest known place stand for one that is not."""
        from scipy import ndimage

        nearest = ndimage.distance_transform_edt(
            ~seen, return_distances=False, return_indices=True
        )
        volume = np.zeros(seen.shape, dtype=np.float32)
        for target, values in (
            *zip(self.coefficients_[k], beta, strict=True),
            (self.variance_[k], variance),
        ):
            volume[seen] = values
            target[:] = masked_smoothing(volume, seen, self.template_smoothing)[tuple(nearest)]

    # Features -------------------------------------------------------------------------------------

    def _n_features(self, scans: Scans) -> int:
        if self.features == "channels":
            return scans.shape[3]
        return 1 if isinstance(self.features, str) else len(self.features)

    def _feature(self, scans: Scans, i: int, k: int) -> NDArray[np.float32]:
        """Give one feature of a scan, smoothed."""
        mask = scans.mask(i)
        if self.features == "channels":
            volume = scans.signal(i)[..., k]
        elif self.features == "mean":
            volume = mean_signal(scans.signal(i))
        else:
            names = (self.features,) if isinstance(self.features, str) else tuple(self.features)
            volume = voxel_features(scans.signal(i), mask, names[k : k + 1])[0]
        return masked_smoothing(volume, mask, self.smoothing)

    # Scoring --------------------------------------------------------------------------------------

    def _deviations(self, scans: Scans, i: int, row: NDArray) -> Iterator[NDArray[np.float32]]:
        """Give z of each feature."""
        for k in range(len(self.coefficients_)):
            expected = np.tensordot(row.astype(np.float32), self.coefficients_[k], axes=1)
            yield (self._feature(scans, i, k) - expected) / np.sqrt(self.variance_[k])

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        mask = scans.mask(i)
        row = Design(self.design_).matrix(scans.covariates, len(scans))[i]
        if self.distance == "mahalanobis":
            z = np.stack([one[mask] for one in self._deviations(scans, i, row)]).astype(np.float64)
            whitened = np.linalg.solve(np.linalg.cholesky(self.correlation_), z)
            score = np.zeros(mask.shape, dtype=np.float32)
            score[mask] = np.sqrt((whitened**2).mean(axis=0))
            return masked_smoothing(score, mask, self.map_smoothing)
        total = np.zeros(mask.shape, dtype=np.float32)
        for one in self._deviations(scans, i, row):
            total += np.where(mask, one, 0)
        mean = masked_smoothing(total / len(self.coefficients_), mask, self.map_smoothing)
        return {"low": -mean, "high": mean, "both": np.abs(mean)}[self.side]

    def _check_restored(self) -> None:
        design = Design.from_json(self.design_)
        n_features = len(self.coefficients_)
        expected = {
            "coefficients_": (n_features, design.n_columns, *self.shape_),
            "variance_": (n_features, *self.shape_),
            "counts_": self.shape_,
            "correlation_": (n_features, n_features),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise RefusedError(
                    f"its array {name} has the shape {getattr(self, name).shape} instead of {shape}"
                )
        wanted = (
            {"channels": self.n_channels_, "mean": 1}.get(self.features)
            if isinstance(self.features, str)
            else None
        )
        if n_features != (wanted or (1 if isinstance(self.features, str) else len(self.features))):
            raise RefusedError(
                f"it has learned {n_features} features, and its parameters name others"
            )


@register
class OneMinusMean(ArrayDetector):
    """
    Score of a voxel: 1 minus its mean signal over directions. Nothing is learned; a reference for what is.

    The signal is low where diffusion is fast, in many tumors and in all cerebrospinal fluid.

    Parameters
    ----------
    smoothing : float, default=0.0
        Standard deviation in voxels of a Gaussian, by which the map is smoothed inside the mask.
    threshold : threshold rule, optional
        As in `AnomalyDetector`.
    calibration : float, int or None, default=4
        As in `AnomalyDetector`.
    scale : {None, "image"}, default=None
        As in `AnomalyDetector`.
    """

    _one_size: ClassVar[bool] = False

    def __init__(
        self,
        *,
        smoothing: float = 0.0,
        threshold: Any = None,
        calibration: float | int | None = 4,
        scale: str | None = None,
    ) -> None:
        self.smoothing = smoothing
        self.threshold = threshold
        self.calibration = calibration
        self.scale = scale

    def _check_parameters(self) -> None:
        if not 0 <= self.smoothing < np.inf:
            raise ValueError(f"smoothing must be a number of at least 0, not {self.smoothing!r}")

    def _fit_scans(self, scans: Scans) -> None:
        """Learn nothing."""

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        return masked_smoothing(1 - mean_signal(scans.signal(i)), scans.mask(i), self.smoothing)


def _gram(columns: NDArray, masks: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Give the normal equations of every voxel; None where all scans have all voxels, and one inverse will do."""
    if masks.all() or columns.shape[1] == 1:
        return None
    products = (columns[:, :, None] * columns[:, None, :]).reshape(len(columns), -1)
    gram = (masks.T.astype(np.float64) @ products).reshape(-1, columns.shape[1], columns.shape[1])
    # Where few scans have a voxel their covariates may not tell columns apart: these stay near 0.
    ridge = np.full(columns.shape[1], 1e-3)
    ridge[0] = 1e-9
    return gram + np.diag(ridge)


def _solved(
    columns: NDArray, masks: NDArray[np.bool_], values: NDArray, gram: NDArray | None
) -> NDArray[np.float32]:
    """Give the coefficients of every voxel, (n_columns, n_voxels), by least squares over the scans that have it."""
    inside = np.where(masks, values, 0)
    if columns.shape[1] == 1:
        return (inside.sum(axis=0, dtype=np.float64) / masks.sum(axis=0))[None].astype(np.float32)
    if gram is None:
        return (np.linalg.pinv(columns) @ inside).astype(np.float32)
    right = (columns.T @ inside).T[..., None]
    return np.linalg.solve(gram, right)[..., 0].T.astype(np.float32)
