"""Base of all anomaly detectors: checks, threshold from healthy scans, maps, model files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.features import SMOOTH_MM, check_spacing, masked_smoothing, sd_in_voxels
from anomaly.detectors.thresholds import (
    HealthyRateThreshold,
    HealthyScanThreshold,
    ThresholdRule,
    decoded_rule,
    encoded_rule,
)
from dmrifit._utils.checks import NotNegative, check_fields, check_finite, is_number
from dmrifit._utils.counts import counted, size_text
from dmrifit.io.case_tables import checked_mask
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.networks.volume_cases import listed, naming

#: File of arrays in model files.
ARRAYS = "arrays.safetensors"
#: Parameters that do not belong to a model, or are stored separately.
_NOT_STORED = frozenset({"threshold", "n_jobs", "n_threads"})
_SHARED = frozenset({"shape", "n_channels", "rule", "threshold"})
#: With ``calibration="auto"``: subjects from which on a share of them is enough, and that share;
#: with fewer so many folds.
_ENOUGH_SUBJECTS, _SHARE, _N_FOLDS = 40, 0.25, 4
#: Quantile of a map that becomes 1 with ``scale="image"``, as in the published code.
_IMAGE_QUANTILE = 0.999


class Scans:
    """
    Scans of one size with their masks, read one at a time.

    Scans are not copied: a list of arrays on the disk (`numpy.memmap`) stays there. `X` are scans
    (x, y, z, channels) divided by the signal at b = 0; `masks` (x, y, z) the brains, by default
    where any channel is above 0; `covariates` hold a value for each scan; `subjects` are the
    numbers of their subjects, by default another one for each scan, and `groups` their names.
    """

    def __init__(self, X: Any, masks: Any = None, covariates: Any = None) -> None:
        self._scans: Sequence[Any] = listed(X, "scans")
        self._masks: Sequence[Any] | None = None
        if masks is not None:
            self._masks = listed(masks, "masks", len(self._scans))
        self.covariates = covariates
        #: Covariates and number of all scans, those that `take` leaves out included.
        self.of_all = covariates, len(self._scans)
        self._numbers = np.arange(len(self._scans))
        self.subjects: NDArray[Any] = self._numbers
        self.groups: NDArray[Any] | None = None
        self.shape: tuple[int, ...] = ()
        for i in range(len(self)):
            with naming(i):
                self._check(i)

    def _check(self, i: int) -> None:
        scan = np.asarray(self._scans[i])
        if scan.ndim != 4 or not scan.size or scan.dtype.kind not in "fiu":
            raise ValueError(
                f"an array of shape {scan.shape} ({scan.dtype}) instead of a scan (x, y, z, "
                "channels); give a list of such scans, one for each subject"
            )
        self.shape = self.shape or scan.shape
        if scan.shape[:3] != self.shape[:3]:
            raise ValueError(
                f"{size_text(scan.shape[:3])} voxels, where the first scan has "
                f"{size_text(self.shape[:3])}; bring all scans to one grid first"
            )
        if scan.shape[3] != self.shape[3]:
            raise ValueError(
                f"{counted(scan.shape[3], 'direction')}, where the first scan has "
                f"{self.shape[3]}; resample all scans to the same directions first"
            )
        check_finite(scan, "the scan", "set what is outside the brain to 0")
        largest = max(float(scan.max()), -float(scan.min()))
        if largest > float(np.finfo(np.float32).max):
            raise ValueError(
                f"values up to {largest:.3g}, which single precision does not hold; "
                "divide by the signal at b = 0"
            )
        problem = "no channel is above 0 anywhere"
        mask = scan.max(axis=-1) > 0
        if self._masks is not None:
            problem = "its mask is empty"
            mask = np.asarray(self._masks[i])
            if mask.shape != self.shape[:3]:
                raise ValueError(
                    f"its mask has the shape {mask.shape}, and the scan {self.shape[:3]}; "
                    "bring it to the scan's grid"
                )
            checked_mask(mask, "its mask")
        if not mask.any():
            raise ValueError(f"{problem}; give the mask of the brain")

    def __len__(self) -> int:
        return len(self._numbers)

    def signal(self, i: int) -> NDArray[np.float32]:
        """Return a scan, shape (x, y, z, channels)."""
        return np.asarray(self._scans[int(self._numbers[i])], dtype=np.float32)

    def mask(self, i: int) -> NDArray[np.bool_]:
        """Return the mask of a scan, shape (x, y, z)."""
        number = int(self._numbers[i])
        if self._masks is None:
            return np.asarray(self._scans[number]).max(axis=-1) > 0
        return np.asarray(self._masks[number]).astype(bool)

    def take(self, numbers: Any) -> Scans:
        """Select scans by their number."""
        index = np.asarray(numbers, dtype=int)
        # The scans were checked already, and reading all of them again would take long.
        subset = object.__new__(Scans)
        subset.__dict__.update(self.__dict__)
        subset._numbers = self._numbers[index]
        subset.subjects = self.subjects[index]
        if self.groups is not None:
            subset.groups = self.groups[index]
        if self.covariates is not None:
            subset.covariates = {
                name: np.asarray(self.covariates[name])[index] for name in self.covariates
            }
        return subset


@dataclass(repr=False, eq=False)
class AnomalyDetector(BaseEstimator):
    """
    Base of detectors that learn from healthy scans and score how other scans differ from them.

    A derived class learns in ``_fit_scans(scans)`` and scores in ``_score_scan(scans, i)``, which
    returns an array of shape (x, y, z), higher where the scan is less like the healthy ones; both
    get `Scans`. It is a dataclass, whose fields are its parameters beside those of this class, or
    its constructor has the parameters `threshold`, `calibration` and `scale`. It may be combined
    with another base that is an estimator; this one comes first.

    Model files hold its fitted arrays, whose names it lists in ``_array_names``, and the fitted
    numbers, names and lists of them in ``_fact_names``; inconsistent ones it rejects in
    ``_check_restored``.

    Parameters
    ----------
    threshold : threshold rule, default=None
        Rule that makes a map binary, fitted to scans held out of the training. By default
        `HealthyRateThreshold(0.01)`: 1 % of the voxels of healthy brains are above it, so a
        healthy scan can come out empty.
    calibration : float, int or "auto", default=4
        The healthy scans for the threshold. A share, such as 0.25: this share of the subjects is
        held out of the training. A number of folds, such as 4: each fold is scored by a detector
        trained on the others (cross-fitting), then all scans are learned from. ``"auto"``: four
        folds of fewer than 40 subjects, a quarter of more or for a guarantee. None: no threshold
        is fitted, and there are only maps.
    scale : {None, "image"}, default=None
        With ``"image"`` each map is divided by its own 99.9 % quantile and clipped at 1, as in the
        published code. A healthy scan then always has voxels of the highest score.
    smooth_mm : float, default=6.0
        Standard deviation in mm of a Gaussian, by which scores are smoothed inside the mask.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.

    Attributes
    ----------
    threshold_ : threshold rule
        Fitted.
    shape_ : tuple of int
        Numbers of voxels of the scans.
    n_channels_ : int
        Number of directions of the scans.
    """

    #: Whether scores depend on the position of a voxel, so that all scans need the size of the
    #: training scans.
    _one_size: ClassVar[bool] = True
    #: Least number of subjects that the detector can learn from.
    _least_subjects: ClassVar[int] = 1
    #: What else can be done where scans are of fewer subjects than that.
    _other_remedy: ClassVar[str] = ""
    #: Whether scores need several directions, which powder averages lack.
    _needs_directions: ClassVar[bool] = False
    #: Whether `fit` takes covariates of the subjects into account.
    _uses_covariates: ClassVar[bool] = False
    #: False-positive rate per healthy voxel of the default threshold.
    _default_rate: ClassVar[float] = 0.01
    _array_names: ClassVar[tuple[str, ...]] = ()
    #: Arrays that older model files lack, with values by which those models score as before.
    _later_arrays: ClassVar[Mapping[str, NDArray[Any]]] = {}
    _fact_names: ClassVar[tuple[str, ...]] = ()
    #: Fitted estimators of scikit-learn; ``forest_`` is the file ``forest.skops`` of the model.
    _estimator_names: ClassVar[tuple[str, ...]] = ()

    _: KW_ONLY
    threshold: Any = None
    calibration: str | float | int | None = 4
    scale: Literal["image"] | None = None
    smooth_mm: NotNegative = SMOOTH_MM
    spacing: float | tuple[float, float, float] = 4.0

    def fit(self, X: Any, masks: Any = None, *, groups: Any = None, covariates: Any = None) -> Any:
        """
        Learn what healthy scans look like.

        Parameters
        ----------
        X : ndarray of shape (n_scans, x, y, z, channels), or sequence of such scans
            Scans of healthy subjects, divided by the signal at b = 0, all of one size.
        masks : ndarray of shape (n_scans, x, y, z), or sequence of such masks, optional
            The brain; by default where any channel is above 0. Masks may differ.
        groups : sequence of n_scans, optional
            The subject of each scan; by default each scan is of another subject. Scans of one
            subject are all in the training, or all held out for the threshold.
        covariates : DataFrame with n_scans rows, or mapping of sequences, optional
            Covariates of the subjects, such as age, sex and site: numbers, or words for groups;
            for `VoxelwiseGaussian` alone.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a scan, a mask or a covariate is not possible, all scans are of one
            subject, or there are fewer than a regression on the covariates needs.
        """
        self._fit_counting(X, masks, groups=groups, covariates=covariates)
        return self

    def _fit_counting(
        self,
        X: Any,
        masks: Any = None,
        counted_voxels: Sequence[NDArray[np.bool_]] | None = None,
        *,
        groups: Any = None,
        covariates: Any = None,
    ) -> tuple[list[int], NDArray[np.float32], NDArray[np.bool_]]:
        """
        Learn as `fit` does, but fit the threshold to given voxels alone, such as white matter.

        Gives the numbers of the scans that the threshold was fitted to, their maps (n, x, y, z)
        and the voxels (n, x, y, z) that counted.
        """
        self._check_shared()
        # A training that fails must not leave the threshold of an earlier one.
        self.__dict__.pop("threshold_", None)
        scans = self._scans_of(X, masks, covariates)
        scans.subjects = self._subject_numbers(len(scans), groups)
        if groups is not None:
            scans.groups = np.array([str(group) for group in groups])
        self.shape_, self.n_channels_ = scans.shape[:3], scans.shape[3]
        rule = self._new_threshold()
        if rule is None:
            self._fit_scans(scans)
            self.threshold_: Any = None
            nothing = np.empty((0, *self.shape_), dtype=np.float32)
            return [], nothing, nothing > 0
        folds = _folds(scans.subjects, self._held_out())
        scan_maps: dict[int, NDArray[np.float32]] = {}
        # Each fold is scored by a detector that learned from the other scans.
        for fold in folds:
            detector: Any = self if len(folds) == 1 else clone(self)
            detector.shape_, detector.n_channels_ = scans.shape[:3], scans.shape[3]
            detector._fit_scans(scans.take(np.setdiff1d(np.arange(len(scans)), fold)))
            scan_maps |= {int(i): detector._map(scans, int(i)) for i in fold}
        if len(folds) > 1:
            self._fit_scans(scans)
        held_out = sorted(scan_maps)
        maps = np.stack([scan_maps[i] for i in held_out])
        if counted_voxels is None:
            counted_voxels = [scans.mask(i) for i in range(len(scans))]
        voxels = np.stack([counted_voxels[i] for i in held_out])
        self.threshold_ = rule.fit(maps, voxels)
        return held_out, maps, voxels

    def anomaly_map(
        self, X: Any, masks: Any = None, *, covariates: Any = None
    ) -> NDArray[np.float32]:
        """
        Score every voxel of scans.

        Parameters
        ----------
        X, masks, covariates : as in `fit`
            The scans may have lesions.

        Returns
        -------
        ndarray of shape (n_scans, x, y, z)
            Higher where a scan is less like the healthy ones; 0 outside the mask.

        Raises
        ------
        ValueError
            If a scan has another number of directions or another size than those that were learned
            from, a scan or a mask is not possible, or covariates are missing or unknown.
        """
        check_is_fitted(self)
        return self._maps(self._like_learned(self._scans_of(X, masks, covariates)))

    def predict(self, X: Any, masks: Any = None, *, covariates: Any = None) -> NDArray[np.bool_]:
        """
        Mark the anomalous voxels of scans: those whose score is above the fitted threshold.

        Parameters
        ----------
        X, masks, covariates : as in `fit`
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
        if getattr(self, "threshold_", None) is None:
            raise ValueError(
                "no threshold was fitted (calibration=None); fit with calibration=0.25, or apply "
                "a rule of anomaly.detectors.thresholds to maps of anomaly_map"
            )
        scans = self._like_learned(self._scans_of(X, masks, covariates))
        inside = np.stack([scans.mask(i) for i in range(len(scans))])
        return np.asarray(self.threshold_.apply(self._maps(scans), inside)).astype(bool) & inside

    # Methods of derived classes
    # -------------------------------------------------------------------

    @abstractmethod
    def _fit_scans(self, scans: Scans) -> None:
        """Learn from healthy scans."""

    @abstractmethod
    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        """Score the voxels of a scan."""

    def _check_parameters(self) -> None:
        """Raise if a parameter is out of range; called before any work."""

    def _check_restored(self) -> None:
        """Reject inconsistent arrays and facts of a model file."""

    # Shared methods
    # -------------------------------------------------------------------------------

    def _subject_numbers(self, n_scans: int, groups: Any) -> NDArray[Any]:
        """Return the number of each scan's subject, in the order of their first scans."""
        names: Sequence[Any] = range(n_scans)
        if groups is not None:
            names = [str(group) for group in listed(groups, "groups", n_scans)]
        number_of = {name: i for i, name in enumerate(dict.fromkeys(names))}
        n_subjects = len(number_of)
        if n_subjects < 2:
            raise ValueError(
                f"{counted(n_scans, 'scan')} of one subject; what is healthy is learned from "
                "several, and others are needed for the threshold: give scans of more subjects"
            )
        if self._new_threshold() is not None:
            folds = _folds(np.arange(n_subjects), self._held_out())
            n_held_out = max(map(len, folds))
            if n_subjects - n_held_out < self._least_subjects:
                remedy = f"{self._least_subjects + 1} or more subjects"
                if n_held_out > 1:
                    remedy = "more subjects, or hold out fewer (calibration, --calibration)"
                raise ValueError(
                    f"{counted(n_scans, 'scan')} of {counted(n_subjects, 'subject')}: holding "
                    f"out {n_held_out} for the threshold leaves {n_subjects - n_held_out} to "
                    f"learn from, and {type(self).__name__} needs {self._least_subjects}; give "
                    f"scans of {remedy}{self._other_remedy}"
                )
        return np.array([number_of[name] for name in names])

    def _check_shared(self) -> None:
        """Check all parameters, and that healthy scans can fit the threshold rule."""
        check_fields(self)
        value = self.calibration
        is_share = isinstance(value, float | np.floating) and 0 < value < 1
        is_number_of_folds = is_number(value, whole=True) and value >= 2
        is_known = value is None or (isinstance(value, str) and value == "auto")
        if not is_known and not is_share and not is_number_of_folds:
            raise ValueError(
                "calibration must be a share between 0 and 1, a number of folds of at least 2, "
                f"or 'auto', not {value!r}"
            )
        check_spacing(self.spacing)
        self._check_parameters()
        if self.threshold is None:
            return
        if not isinstance(self.threshold, ThresholdRule):
            raise ValueError(
                "threshold must be a rule, such as FixedThreshold(0.5) or "
                f"HealthyRateThreshold(0.01), not {self.threshold!r}"
            )
        self.threshold.check_parameters()
        if self.threshold.needs_truth:
            raise ValueError(
                f"{type(self.threshold).__name__} needs lesions, and thresholds of detectors come "
                "from healthy scans; use another rule, or fit this one to maps of anomaly_map"
            )

    def _held_out(self) -> Any:
        """Give `calibration`; for "auto" a share to hold out, if the threshold is a guarantee."""
        if self.calibration == "auto" and isinstance(self.threshold, HealthyScanThreshold):
            return _SHARE
        return self.calibration

    def _new_threshold(self) -> Any:
        if self.calibration is None:
            return None
        if self.threshold is None:
            return HealthyRateThreshold(self._default_rate)
        return clone(self.threshold)

    def _scans_of(self, X: Any, masks: Any, covariates: Any) -> Scans:
        if covariates is not None and not self._uses_covariates:
            raise ValueError(
                f"{type(self).__name__} takes no covariates into account; VoxelwiseGaussian does"
            )
        return Scans(X, masks, covariates)

    def _like_learned(self, scans: Scans) -> Scans:
        """Reject scans whose directions or size differ from those of the training scans."""
        if scans.shape[3] != self.n_channels_:
            raise ValueError(
                f"the scans have {counted(scans.shape[3], 'direction')}, but the training scans "
                f"have {self.n_channels_}; resample them to these directions first"
            )
        if self._one_size and scans.shape[:3] != self.shape_:
            raise ValueError(
                f"the scans have {size_text(scans.shape[:3])} voxels, but the training scans have "
                f"{size_text(self.shape_)}; bring them to that grid first, because scores "
                "depend on the position of a voxel"
            )
        return scans

    def _maps(self, scans: Scans) -> NDArray[np.float32]:
        return np.stack([self._map(scans, i) for i in range(len(scans))])

    def _smooth_scores(
        self, scores: NDArray[np.floating], mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Smooth the scores (n_voxels,) of a mask (x, y, z) by `smooth_mm`; gives (x, y, z)."""
        volume = np.zeros(mask.shape, dtype=np.float32)
        volume[mask] = scores
        return masked_smoothing(volume, mask, sd_in_voxels(self.smooth_mm, self.spacing))

    def _map(self, scans: Scans, i: int) -> NDArray[np.float32]:
        mask = scans.mask(i)
        scores = np.where(mask, self._score_scan(scans, i), 0).astype(np.float32)
        return image_scaled(scores, mask) if self.scale == "image" else scores

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "threshold_")

    # Model files
    # ----------------------------------------------------------------------------------

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """
        Return the content of a model file.

        Returns
        -------
        parameters : dict
            Of the constructor, without the threshold rule and settings of one machine.
        fitted : dict
            The size of scans, the unfitted and the fitted threshold rule, numbers and names.
        files : dict
            The arrays in the format of safetensors, and fitted estimators of scikit-learn.

        Raises
        ------
        TypeError
            If a parameter cannot be stored.
        """
        check_is_fitted(self)
        parameters = {}
        for name, value in self.get_params(deep=False).items():
            # The state of a random generator cannot be stored.
            if name == "random_state" and isinstance(value, np.random.RandomState):
                value = None
            if name not in _NOT_STORED:
                parameters[name] = value
        rules, files = self._stored_parts()
        fitted = {"shape": list(self.shape_), "n_channels": self.n_channels_, **rules}
        fitted |= {name: getattr(self, name) for name in self._fact_names}
        for name, file in self._estimator_files.items():
            files[file] = getattr(self, name)
        return parameters, fitted, files

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """
        Restore the content of a model file.

        Parameters
        ----------
        fitted, files : mapping
            As returned by `stored`.

        Raises
        ------
        ValueError
            If an entry is missing or unknown, or entries are inconsistent.
        """
        refuse_keys(fitted, {*_SHARED, *self._fact_names}, "fitted attribute", complete=True)
        self.shape_, self.n_channels_ = fitted["shape"], fitted["n_channels"]
        self._check_size()
        self._restore_parts(fitted, files)
        for name in self._fact_names:
            setattr(self, name, fitted[name])
        self._check_shared()
        estimator_files = self._estimator_files
        others = {file: content for file, content in files.items() if file != ARRAYS}
        refuse_keys(others, set(estimator_files.values()), "file", complete=True)
        for name, file in estimator_files.items():
            setattr(self, name, files[file])
        self._check_restored()

    @property
    def _estimator_files(self) -> dict[str, str]:
        """Files of the fitted estimators by attribute: `forest_` is in forest.skops."""
        return {name: f"{name.removesuffix('_')}.skops" for name in self._estimator_names}

    def _stored_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give the unfitted and the fitted threshold rule, and the file of the arrays."""
        from safetensors.numpy import save

        rules = {"rule": encoded_rule(self.threshold), "threshold": encoded_rule(self.threshold_)}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self._array_names}
        return rules, {ARRAYS: save(arrays)} if arrays else {}

    def _restore_parts(self, fitted: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """Restore what `_stored_parts` gave."""
        from safetensors.numpy import load

        self.threshold = decoded_rule(fitted["rule"])
        self.threshold_ = decoded_rule(fitted["threshold"])
        if (ARRAYS in files) != bool(self._array_names):
            raise ValueError(f"it holds the files {sorted(files)}: it is of another version")
        # Older files lack some arrays, which take these values.
        arrays = dict(self._later_arrays)
        if self._array_names:
            arrays |= load(files[ARRAYS])
        refuse_keys(arrays, set(self._array_names), "array", complete=True)
        for name, values in arrays.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(f"its array {name} has values that are not finite")
            setattr(self, name, values)

    def _check_size(self) -> None:
        """Reject restored numbers of voxels and directions that no scans have."""
        shape, n_channels = self.shape_, self.n_channels_
        has_three_axes = isinstance(shape, list | tuple) and len(shape) == 3
        if not has_three_axes or not all(type(n) is int and n > 0 for n in (*shape, n_channels)):
            raise ValueError(f"its scans have {shape} voxels and {n_channels} directions")
        self.shape_ = tuple(shape)

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Reject restored arrays of another shape than expected."""
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"its array {name} has the shape {getattr(self, name).shape} instead of "
                    f"{shape}"
                )


def image_scaled(map: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """
    Divide a map by its own 99.9 % quantile and clip it at 1.

    The published threshold of 0.3 only makes sense on this scale, on which every healthy scan has
    voxels of the highest score.
    """
    top = float(np.quantile(map[mask], _IMAGE_QUANTILE)) if mask.any() else 0.0
    inside = np.where(mask, map, 0).astype(np.float32)
    if top <= 0:
        return np.zeros_like(inside)
    return np.minimum(inside / np.float32(top), np.float32(1))


def _folds(subjects: NDArray[Any], calibration: str | float | int) -> list[NDArray[np.int64]]:
    """
    List the scans that each fold holds out.

    A number of folds deals the subjects in turn; a share of the subjects makes a single fold.
    """
    n_subjects = int(subjects.max()) + 1
    if calibration == "auto":
        calibration = _N_FOLDS if n_subjects < _ENOUGH_SUBJECTS else _SHARE
    if isinstance(calibration, int | np.integer):
        n_folds = min(int(calibration), n_subjects)
        return [np.flatnonzero(subjects % n_folds == k) for k in range(n_folds)]
    n_held_out = min(max(1, round(float(calibration) * n_subjects)), n_subjects - 1)
    # Evenly spaced over the order of the cohort, which may follow age or scanner.
    held_out = np.floor((np.arange(n_held_out) + 0.5) * n_subjects / n_held_out).astype(int)
    return [np.flatnonzero(np.isin(subjects, held_out))]
