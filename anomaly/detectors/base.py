"""What all detectors of anomalies share: checks of scans and masks, a threshold from healthy scans, maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from dmrifit.networks.volume_cases import check_length, listed, naming

__all__ = ["AnomalyDetector", "Scans", "image_scaled"]

_SCALES = (None, "image")
#: Quantile of a map that becomes 1 with ``scale="image"``, as in the published code.
_IMAGE_QUANTILE = 0.999


class Scans:
    """
    Scans of one size with their masks, read one at a time.

    Scans are not copied: a list of arrays on the disk (`numpy.memmap`) stays there.

    Parameters
    ----------
    X : ndarray of shape (n_scans, x, y, z, channels), or sequence of n_scans arrays of shape (x, y, z, channels)
        Signals divided by that at b = 0.
    masks : ndarray of shape (n_scans, x, y, z), or sequence of n_scans arrays of shape (x, y, z), optional
        The brain; by default where any channel is above 0.
    covariates : mapping or DataFrame with n_scans values for each name, optional
        What is known of the subjects.

    Raises
    ------
    ValueError
        If there is no scan, a scan is no (x, y, z, channels) or has another shape than the first or values that are
        not finite, or a mask is empty, of another shape, or has other values than 0 and 1.
    """

    def __init__(self, X: Any, masks: Any = None, covariates: Any = None) -> None:
        self._scans: Sequence[Any] = listed(X, "scans")
        self._masks: Sequence[Any] | None = None if masks is None else listed(masks, "masks")
        if self._masks is not None:
            check_length(self._scans, self._masks, "masks")
        self.covariates = covariates
        self._numbers = np.arange(len(self._scans))
        self.shape: tuple[int, ...] = ()
        for i in range(len(self)):
            with naming(i):
                self._check(i)

    def _check(self, i: int) -> None:
        scan = np.asarray(self._scans[i])
        if scan.ndim != 4 or not scan.size or scan.dtype.kind not in "fiu":
            raise ValueError(
                f"an array of shape {scan.shape} ({scan.dtype}) instead of a scan (x, y, z, channels); "
                "give a list of such scans, one for each subject"
            )
        self.shape = self.shape or scan.shape
        if scan.shape[:3] != self.shape[:3]:
            raise ValueError(
                f"{_size(scan.shape)} voxels, where the first scan has {_size(self.shape)}; "
                "bring all scans to one grid first"
            )
        if scan.shape[3] != self.shape[3]:
            raise ValueError(
                f"{scan.shape[3]} directions, where the first scan has {self.shape[3]}; "
                "resample all scans to the same directions first"
            )
        # Slice by slice: a scan can be large, and a mask of what is finite is a quarter of it.
        n_bad = (
            sum(int(np.count_nonzero(~np.isfinite(part))) for part in scan)
            if scan.dtype.kind == "f"
            else 0
        )
        if n_bad:
            raise ValueError(
                f"{n_bad} values that are not finite (NaN or infinite); set what is outside the brain to 0"
            )
        largest = (
            max(float(np.abs(part).max()) for part in scan) if scan.dtype == np.float64 else 0.0
        )
        if largest > float(np.finfo(np.float32).max):
            raise ValueError(
                f"values up to {largest:.3g}, which single precision does not hold; divide by the signal at b = 0"
            )
        if self._masks is not None:
            mask = np.asarray(self._masks[i])
            if mask.shape != self.shape[:3]:
                raise ValueError(
                    f"its mask has the shape {mask.shape}, and the scan {self.shape[:3]}; bring it to the scan's grid"
                )
            if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
                raise ValueError(
                    "its mask has values other than 0 and 1; compare it with a level first, such as mask > 0.5"
                )
        if not self.mask(i).any():
            what = "no channel is above 0 anywhere" if self._masks is None else "its mask is empty"
            raise ValueError(f"{what}; give the mask of the brain")

    def __len__(self) -> int:
        return len(self._numbers)

    def signal(self, i: int) -> NDArray[np.float32]:
        """
        Give a scan.

        Shapes: returns (x, y, z, channels).
        """
        return np.asarray(self._scans[int(self._numbers[i])], dtype=np.float32)

    def mask(self, i: int) -> NDArray[np.bool_]:
        """
        Give the mask of a scan.

        Shapes: returns (x, y, z).
        """
        number = int(self._numbers[i])
        if self._masks is None:
            return np.asarray(np.asarray(self._scans[number]).max(axis=-1) > 0)
        return np.asarray(self._masks[number]).astype(bool)

    def take(self, numbers: Any) -> Scans:
        """Choose scans."""
        some = object.__new__(Scans)
        some.__dict__.update(self.__dict__)
        some._numbers = self._numbers[np.asarray(numbers, dtype=int)]
        if self.covariates is not None:
            chosen = np.asarray(numbers, dtype=int)
            some.covariates = {
                name: np.asarray(self.covariates[name])[chosen] for name in self.covariates
            }
        return some


class AnomalyDetector(BaseEstimator):
    """
    Base of detectors that learn what healthy scans look like and say where another scan differs.

    A derived class says what it learns in ``_fit_scans(scans)`` and how it scores a scan in ``_score_scan(scans, i)``,
    which gives an array of shape (x, y, z), higher where the scan is less like the healthy ones; both get `Scans`.
    Its constructor has three parameters of this class, `threshold`, `calibration` and `scale`. It may be combined
    with another base that is an estimator; this one stands first.

    Parameters
    ----------
    threshold : threshold rule, default=None
        What makes a map binary, fitted to scans that were not learned from. By default `HealthyRateThreshold(0.01)`:
        1 % of the voxels of healthy brains are above it, so that a healthy scan can come out empty.
    calibration : float or int
        The healthy scans for the threshold. A share, such as 0.25: so many subjects are held back, and never learned
        from. A whole number of folds, such as 4: each fold is scored by what the others have taught, then all are
        learned from. None: no threshold is fitted, and only maps are given.
    scale : {None, "image"}, default=None
        With ``"image"`` each map is divided by its own 99.9 % quantile and cut off at 1, as in the published code. A
        healthy scan then always has voxels of the highest score.

    Attributes
    ----------
    threshold_ : threshold rule
        Fitted.
    shape_ : tuple of int
        Numbers of voxels of the scans.
    n_channels_ : int
        Number of directions of the scans.
    """

    #: Whether a score belongs to a place, so that all scans have the size of those that were learned from.
    _one_size: ClassVar[bool] = True
    #: For each scan of `fit` the voxels that count for the threshold, such as those of white and gray matter; set by
    #: who knows tissues, before `fit`. By default the whole mask counts.
    _counted: Sequence[Any] | None = None

    threshold: Any
    calibration: float | int | None
    scale: str | None
    threshold_: Any
    shape_: tuple[int, int, int]
    n_channels_: int

    def fit(self, X: Any, masks: Any = None, *, groups: Any = None) -> Any:
        """
        Learn what healthy scans look like.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of n_scans arrays of shape (x, y, z, channels)
            Scans of healthy subjects, divided by the signal at b = 0, all of one size.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of n_scans arrays of shape (x, y, z), optional
            The brain; by default where any channel is above 0. Masks may differ.
        groups : sequence of n_scans, optional
            The subject of each scan; by default each scan is of another. Scans of one subject are all learned from, or
            all held back for the threshold.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a scan or a mask is not possible, or all scans are of one subject.
        """
        return self._fit(Scans(X, masks), groups)

    def anomaly_map(self, X: Any, masks: Any = None) -> NDArray[np.float32]:
        """
        Score every voxel of scans.

        Parameters
        ----------
        X, masks : as in `fit`
            The scans may have lesions.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z)
            Higher where a scan is less like the healthy ones; 0 outside the mask.

        Raises
        ------
        ValueError
            If a scan has another number of directions or another size than those that were learned from, or a scan or
            a mask is not possible.
        """
        check_is_fitted(self)
        return self._maps(self._like_learned(Scans(X, masks)))

    def predict(self, X: Any, masks: Any = None) -> NDArray[np.bool_]:
        """
        Say which voxels of scans are anomalous: where the map is above the threshold that is stored.

        Parameters
        ----------
        X, masks : as in `fit`
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
        scans = self._like_learned(Scans(X, masks))
        return self._apply(self._maps(scans), scans)

    # What derived classes say ---------------------------------------------------------------------

    @abstractmethod
    def _fit_scans(self, scans: Scans) -> None:
        """Learn from healthy scans."""

    @abstractmethod
    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        """Score the voxels of a scan."""

    def _check_parameters(self) -> None:
        """Refuse parameters, before any work."""

    def _part(self) -> Any:
        """Give an unfitted detector that learns from some folds."""
        return clone(self)

    # What is shared -------------------------------------------------------------------------------

    def _fit(self, scans: Scans, groups: Any) -> Any:
        """Learn from checked scans and fit the threshold."""
        self._check_shared()
        self._check_parameters()
        names = _names(scans, groups)
        self._remember(scans)
        rule = self._new_threshold()
        folds = _folds(names, self.calibration) if rule is not None else []
        if len(folds) <= 1:
            held = folds[0] if folds else np.zeros(0, dtype=int)
            self._fit_scans(scans.take(np.setdiff1d(np.arange(len(scans)), held)))
            maps = [self._map(scans, int(i)) for i in held]
        else:
            maps = [np.zeros(0, dtype=np.float32)] * len(scans)
            for held in folds:
                part = self._part()
                part._remember(scans)
                part._fit_scans(scans.take(np.setdiff1d(np.arange(len(scans)), held)))
                for i in held:
                    maps[i] = part._map(scans, int(i))
            held = np.arange(len(scans))
            self._fit_scans(scans)
        if rule is None:
            self.threshold_ = None
        else:
            self.threshold_ = rule.fit(
                np.stack(maps), np.stack([self._counting(scans, int(i)) for i in held])
            )
        return self

    def _counting(self, scans: Scans, i: int) -> NDArray[np.bool_]:
        """Give the voxels that count for the threshold."""
        mask = scans.mask(i)
        return (
            mask
            if self._counted is None
            else np.asarray(mask & np.asarray(self._counted[i], dtype=bool))
        )

    def _check_shared(self) -> None:
        if self.scale not in _SCALES:
            raise ValueError(f"scale must be None or 'image', not {self.scale!r}")
        value = self.calibration
        share = isinstance(value, float | np.floating) and 0 < value < 1
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 2
        if value is not None and not share and not whole:
            raise ValueError(
                f"calibration must be a share between 0 and 1, a number of folds of at least 2, or None, not {value!r}"
            )
        if self.threshold is not None:
            self._check_threshold()

    def _check_threshold(self) -> None:
        """Refuse a threshold that healthy scans cannot give, before anything is learned."""
        from anomaly.detectors.thresholds import ThresholdRule

        if not isinstance(self.threshold, ThresholdRule):
            raise ValueError(
                f"threshold must be a rule, such as FixedThreshold(0.5) or HealthyRateThreshold(0.01), "
                f"not {self.threshold!r}"
            )
        self.threshold._check_parameters()
        if self.threshold.needs_truth:
            raise ValueError(
                f"{type(self.threshold).__name__} needs lesions, and thresholds of detectors come from healthy scans; "
                "take another rule, or fit this one to what anomaly_map gives"
            )

    def _new_threshold(self) -> Any:
        if self.calibration is None:
            return None
        if self.threshold is None:
            from anomaly.detectors.thresholds import HealthyRateThreshold

            return HealthyRateThreshold(0.01)
        return clone(self.threshold)

    def _remember(self, scans: Scans) -> None:
        x, y, z, channels = scans.shape
        self.shape_ = x, y, z
        self.n_channels_ = channels

    def _like_learned(self, scans: Scans) -> Scans:
        """Refuse scans that are not like those that were learned from."""
        if scans.shape[3] != self.n_channels_:
            raise ValueError(
                f"the scans have {scans.shape[3]} directions, and those that were learned from {self.n_channels_}; "
                "resample them to these directions first"
            )
        if self._one_size and scans.shape[:3] != self.shape_:
            raise ValueError(
                f"the scans have {_size(scans.shape)} voxels, and those that were learned from {_size(self.shape_)}; "
                "bring them to that grid first, because a score belongs to a place"
            )
        return scans

    def _require_threshold(self) -> None:
        if getattr(self, "threshold_", None) is None:
            raise ValueError(
                "no threshold was fitted (calibration=None); fit with calibration=0.25, or apply a rule of "
                "anomaly.detectors.thresholds to what anomaly_map gives"
            )

    def _apply(self, maps: NDArray[np.float32], scans: Scans) -> NDArray[np.bool_]:
        masks = np.stack([scans.mask(i) for i in range(len(scans))])
        return np.asarray(self.threshold_.apply(maps, masks)).astype(bool) & masks

    def _maps(self, scans: Scans) -> NDArray[np.float32]:
        maps = np.zeros((len(scans), *scans.shape[:3]), dtype=np.float32)
        for i in range(len(scans)):
            maps[i] = self._map(scans, i)
        return maps

    def _map(self, scans: Scans, i: int) -> NDArray[np.float32]:
        mask = scans.mask(i)
        found = np.where(mask, self._score_scan(scans, i), 0).astype(np.float32)
        return image_scaled(found, mask) if self.scale == "image" else found

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "threshold_")


def image_scaled(map: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """
    Divide a map by its own quantile of 0.999 and cut it off at 1.

    Only so has a fixed threshold, such as the published 0.3, a meaning; and only so a healthy scan
    always has voxels of the highest score.

    Shapes: `map` (x, y, z), `mask` (x, y, z); returns (x, y, z).
    """
    top = float(np.quantile(map[mask], _IMAGE_QUANTILE)) if mask.any() else 0.0
    scaled = np.where(mask, map, 0).astype(np.float32)
    return (
        np.minimum(scaled / np.float32(top), np.float32(1)) if top > 0 else np.zeros_like(scaled)
    )


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape[:3]))


def _names(scans: Scans, groups: Any) -> NDArray[Any]:
    """Give each scan the number of its subject, in the order of their first scans."""
    if groups is None:
        names = [str(i) for i in range(len(scans))]
    else:
        names = [str(group) for group in listed(groups, "groups")]
        if len(names) != len(scans):
            raise ValueError(
                f"{len(names)} groups for {len(scans)} scans; give the subject of each scan"
            )
    order: Mapping[str, int] = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(order) < 2:
        raise ValueError(
            f"all {len(scans)} scans are of one subject; what is healthy is learned from several, and others are "
            "needed for the threshold: give scans of more subjects"
        )
    return np.array([order[name] for name in names])


def _folds(subjects: NDArray[Any], calibration: float | int | None) -> list[NDArray[np.int64]]:
    """
    List the scans of each fold; of a share there is one fold.

    Subjects go to folds in turn, so that a fold has its share of each part of an ordered cohort.
    """
    n_subjects = int(subjects.max()) + 1
    if calibration is None:
        return []
    if isinstance(calibration, int | np.integer):
        n_folds = min(int(calibration), n_subjects)
        return [np.flatnonzero(subjects % n_folds == k) for k in range(n_folds)]
    n_held = min(max(1, round(float(calibration) * n_subjects)), n_subjects - 1)
    held = np.floor((np.arange(n_held) + 0.5) * n_subjects / n_held).astype(int)
    return [np.flatnonzero(np.isin(subjects, held))]
