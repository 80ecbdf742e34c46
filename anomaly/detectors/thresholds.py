"""Threshold rules, which turn anomaly maps into masks, and their form in model files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.features import check_spacing
from dmrifit._utils.affines import MM3_PER_ML
from dmrifit._utils.checks import Count, Within, check_fields, check_finite, is_number
from dmrifit._utils.counts import counted, size_text
from dmrifit._utils.randomness import Seed
from dmrifit.io.case_tables import checked_mask
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.networks.volume_cases import listed

__all__ = ["open_map"]

#: One threshold for all maps, or one for each.
SCOPES = ("dataset", "image")
#: Edge in mm of the voxels of the study.
STUDY_SPACING = 2.4
_KEYS = {"rule", "parameters", "fitted"}  # of a rule in a model file
_FITTED = "threshold_"
_N_DRAWS = 200  # of the bootstrap, each of as many scans as there are

Scope = Literal["dataset", "image"]
#: One array of several volumes, or a sequence of volumes.
Volumes = Sequence[ArrayLike] | NDArray[Any]
#: Numbers of scans; a scan may occur several times.
Draws = Sequence[NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class ScoredScan:
    """A map (x, y, z) with the voxels that count, and with the lesion where it is known."""

    map: NDArray[Any]
    mask: NDArray[np.bool_]
    lesion: Any = None

    @property
    def scores(self) -> NDArray[Any]:
        """The scores of the voxels that count, shape (n_voxels,)."""
        return self.map[self.mask]


def scored_scans(
    maps: Volumes, masks: Volumes | None = None, truths: Volumes | None = None
) -> list[ScoredScan]:
    """Check maps, their masks (by default all voxels) and lesions."""
    volumes = listed(maps, "maps")
    for label, values in (("masks", masks), ("truths", truths)):
        if values is not None:
            listed(values, label, len(volumes))
    scans = []
    for i, values in enumerate(volumes):
        volume = np.asarray(values)
        if volume.ndim != 3:
            raise ValueError(
                f"map {i} must be a volume (x, y, z), not an array of shape {volume.shape}"
            )
        check_finite(volume, f"map {i}")
        if volume.dtype.kind in "iub":
            volume = volume.astype(np.float32)
        mask, lesion = np.ones(volume.shape, dtype=bool), None
        if masks is not None:
            mask = checked_mask(masks[i], f"mask {i}", volume.shape)
        if truths is not None:
            lesion = checked_mask(truths[i], f"truth {i}", volume.shape)
        if not mask.any():
            raise ValueError(
                f"mask {i} is empty; leave the scan out or mark the voxels that count"
            )
        scans.append(ScoredScan(volume, mask, lesion))
    return scans


@dataclass(repr=False, eq=False)
class ThresholdRule(BaseEstimator, ABC):
    """
    Base of threshold rules; a voxel is anomalous if its score is *above* the threshold.

    Hence a map with equal scores has no anomaly under rules that choose among scores without
    lesions. A score of 0 has no special meaning: masks alone say which voxels count.

    Attributes
    ----------
    needs_truth : bool
        Whether `fit` needs lesion masks. Such a rule says how good a map could be, not how good it
        is.
    needs_healthy : bool
        Whether `fit` needs maps of healthy scans.
    threshold_ : float
        The threshold; NaN where each map has its own.
    """

    needs_truth = False
    needs_healthy = False

    def fit(
        self, maps: Volumes, masks: Volumes | None = None, truths: Volumes | None = None
    ) -> Self:
        """
        Choose the threshold.

        Parameters
        ----------
        maps : array_like of shape (n, x, y, z), or sequence of array_like of shape (x, y, z)
            Scores, larger where more anomalous.
        masks : as `maps`, optional
            Voxels that count; by default all.
        truths : as `maps`, optional
            Lesions, for rules that need them; the others ignore them.

        Returns
        -------
        self
            The fitted rule.

        Raises
        ------
        ValueError
            If a parameter is out of range, numbers or shapes differ, a map has values that are not
            finite, a mask is empty, or lesions are needed and missing.
        """
        self.check_parameters()
        if self.needs_truth and truths is None:
            raise ValueError(
                f"{type(self).__name__} needs lesions: fit(maps, masks, truths); rules without "
                "labels do not"
            )
        self._choose(scored_scans(maps, masks, truths if self.needs_truth else None))
        return self

    def apply(self, maps: Volumes, masks: Volumes | None = None) -> Any:
        """
        Find the voxels above the threshold.

        Parameters
        ----------
        maps : array_like of shape (n, x, y, z), or sequence of array_like of shape (x, y, z)
            Scores.
        masks : as `maps`, optional
            Voxels that count; others are never anomalous.

        Returns
        -------
        ndarray of bool, shape (n, x, y, z), or list of ndarray of bool, shape (x, y, z)
            An array where `maps` is one.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            As for `fit`; or if a rule with a threshold for each map, chosen by its lesions, is
            given another number of maps.
        """
        check_is_fitted(self, "threshold_")
        scans = scored_scans(maps, masks)
        binary_maps = []
        for scan, limit in zip(scans, self._limits(scans), strict=True):
            # In 64 bits: a Python float would be rounded to the precision of the map.
            binary_maps.append((scan.map > np.float64(limit)) & scan.mask)
        return np.stack(binary_maps) if isinstance(maps, np.ndarray) else binary_maps

    def limits(self, maps: Volumes, masks: Volumes | None = None) -> list[float]:
        """
        Return the threshold of each map.

        Parameters
        ----------
        maps : array_like of shape (n, x, y, z), or sequence of array_like of shape (x, y, z)
            Scores.
        masks : as `maps`, optional
            Voxels that count.

        Returns
        -------
        list of float
            The same for all, or each map's own.

        Raises
        ------
        NotFittedError, ValueError
            As for `apply`.
        """
        check_is_fitted(self, "threshold_")
        return [float(limit) for limit in self._limits(scored_scans(maps, masks))]

    def check_parameters(self) -> None:
        """
        Check the parameters, as `fit` does first.

        Raises
        ------
        ValueError
            If one is out of range.
        """
        self._check_parameters()

    def _check_parameters(self) -> None:
        check_fields(self)

    def _choose(self, scans: list[ScoredScan]) -> None:
        """Choose ``threshold_``."""
        self.threshold_: float = self._of_all(scans) if self._is_common() else float("nan")

    def _limits(self, scans: list[ScoredScan]) -> list[float]:
        if self._is_common():
            return [self.threshold_] * len(scans)
        return [self._of_all([scan]) for scan in scans]

    @abstractmethod
    def _of_all(self, scans: list[ScoredScan]) -> float:
        """Compute the common threshold of scans."""

    def _limits_of(self, scans: list[ScoredScan], draws: Draws) -> NDArray[np.float64]:
        """Compute the common threshold of each draw of scans."""
        return np.array([self._of_all([scans[i] for i in draw]) for draw in draws])

    def _is_common(self) -> bool:
        """Tell whether all maps have one threshold."""
        return getattr(self, "scope", SCOPES[0]) == SCOPES[0]


@dataclass(repr=False, eq=False)
class _TruthThreshold(ThresholdRule):
    """A rule that chooses the threshold with the best agreement with the lesions."""

    needs_truth = True

    _: KW_ONLY
    scope: Scope = "dataset"

    def _choose(self, scans: list[ScoredScan]) -> None:
        if not any((scan.mask & scan.lesion).any() for scan in scans):
            raise ValueError(
                f"{type(self).__name__} needs lesions inside the masks; there is no voxel in "
                f"{counted(len(scans), 'scan')}"
            )
        super()._choose(scans)
        self.thresholds_ = [] if self._is_common() else super()._limits(scans)

    def _limits(self, scans: list[ScoredScan]) -> list[float]:
        if self._is_common():
            return super()._limits(scans)
        if len(scans) != len(self.thresholds_):
            raise ValueError(
                f"{type(self).__name__}(scope='image') was fitted on "
                f"{counted(len(self.thresholds_), 'map')} with their lesions and is applied to "
                f"{len(scans)}; apply it to the same maps, or choose scope='dataset'"
            )
        return self.thresholds_

    def _of_all(self, scans: list[ScoredScan]) -> float:
        """Find the threshold with the largest mean quality over scans with lesions."""
        # The sum over scans is a step function of the threshold: a step at each score of each
        # scan.
        scores, steps = [], []
        for scan in scans:
            is_lesion = scan.lesion[scan.mask]
            if not is_lesion.any():
                continue
            # Distinct scores of the scan, the highest first, with the voxels that reach each.
            negative, inverse = np.unique(-scan.scores, return_inverse=True)
            n_true = np.cumsum(np.bincount(inverse, is_lesion))
            # At and above a scan's largest score nothing is marked, and the quality of that is 0.
            quality = self._quality(n_true, np.cumsum(np.bincount(inverse)))
            steps.append(np.diff(quality, prepend=0.0))
            scores.append(-negative)
        if not scores:
            # Without a lesion the best that a map can do is to stay empty.
            return float(scans[-1].scores.max())
        order = np.argsort(-np.concatenate(scores), kind="stable")
        ranked = np.concatenate(scores)[order]
        total = np.cumsum(np.concatenate(steps)[order])
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        best = last[int(np.argmax(total[last]))]
        # Marked is what lies above a threshold, so it has to be the next lower score.
        if best + 1 < len(ranked):
            return float(ranked[best + 1])
        return float(np.nextafter(ranked[best], -np.inf, dtype=ranked.dtype))

    @abstractmethod
    def _quality(self, n_true: NDArray[Any], n_marked: NDArray[Any]) -> NDArray[np.float64]:
        """
        Rate the masks of a scan that hold the voxels at or above each distinct score.

        Shapes: `n_true` (voxels of lesion) and `n_marked` (all voxels) of the masks (n_scores,),
        the highest score first, so that the last mask is all; returns (n_scores,).
        """


@dataclass(repr=False, eq=False)
class FixedThreshold(ThresholdRule):
    """
    A threshold that was chosen before.

    Parameters
    ----------
    value : float
        The threshold. The study's .3 for autoencoders means something only for maps that are
        scaled by their own largest values (``scale="image"``), its .5 for discriminators for
        probabilities.
    """

    value: float

    def _check_parameters(self) -> None:
        if not is_number(self.value) or not np.isfinite(self.value):
            raise ValueError(f"the threshold must be a finite number, not {self.value!r}")

    def _of_all(self, scans: list[ScoredScan]) -> float:
        return float(self.value)


@dataclass(repr=False, eq=False)
class OtsuThreshold(ThresholdRule):
    """
    The threshold that separates scores best into two groups, by Otsu's criterion.

    The variance between groups is computed for every threshold, so there is no histogram to bin.

    Parameters
    ----------
    scope : {"dataset", "image"}, default="dataset"
        One threshold for all maps of `fit`, or one for each map, computed by `apply`. With the
        latter every map that is not constant has anomalies, also those of healthy scans.

    References
    ----------
    Otsu, IEEE Trans Syst Man Cybern 9:62–66, 1979.
    """

    _: KW_ONLY
    scope: Scope = "dataset"

    def _of_all(self, scans: list[ScoredScan]) -> float:
        ranked = np.sort(np.concatenate([scan.scores for scan in scans]))
        cuts = np.flatnonzero(ranked[1:] > ranked[:-1])
        if not len(cuts):
            return float(ranked[-1])
        # Subtracting the mean first keeps digits where scores are large and close together.
        below = np.cumsum(ranked - ranked.mean(dtype=np.float64), dtype=np.float64)
        n_below = cuts + 1.0
        # Variance between groups; the sums of both about the common mean add up to 0.
        between = below[cuts] ** 2 / (n_below * (len(ranked) - n_below))
        # The largest score of the lower group.
        return float(ranked[cuts[int(np.argmax(between))]])


@dataclass(repr=False, eq=False)
class MeanPoolThreshold(ThresholdRule):
    """
    The largest mean of a map over windows, 16³ voxels of 2.4 mm in the study.

    Windows lie at every voxel, as the paper has it (a convolution; the published code uses tiles),
    inside the volume; where this is shorter than a window, the window is cut. Outside the mask a
    map counts as 0.

    Parameters
    ----------
    size_mm : float, default=38.4
        Edge of a window in mm.
    spacing : float or tuple of float of length 3, optional
        Edges of a voxel in mm; by default `STUDY_SPACING`. `evaluate_detectors` fills in that of
        the cases.
    scope : {"dataset", "image"}, default="dataset"
        The mean over all maps that `fit` saw of their largest means, or the own one of each map,
        computed by `apply`.

    References
    ----------
    Weninger et al., Sci Rep, 2023.
    """

    size_mm: Annotated[float, Within(above=0)] = 38.4
    _: KW_ONLY
    spacing: float | tuple[float, float, float] | None = None
    scope: Scope = "dataset"

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.spacing is not None:
            check_spacing(self.spacing)

    def _window(self, shape: Sequence[int]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Give the edges of a window in voxels, inside a map of a shape, and those of a voxel."""
        spacing = STUDY_SPACING if self.spacing is None else self.spacing
        steps = np.broadcast_to(np.array(spacing, dtype=np.float64), 3)
        return np.clip(np.rint(self.size_mm / steps).astype(int), 1, shape), steps

    def window_in_words(self, shape: Sequence[int]) -> str:
        """
        Give the size of a window in voxels and mm.

        Parameters
        ----------
        shape : sequence of int
            Shape of the map in which it lies, which cuts it.

        Returns
        -------
        str
            Such as ``8 × 8 × 8 voxels (40 × 40 × 40 mm)``.
        """
        box, steps = self._window(shape)
        return f"{size_text(box)} voxels ({size_text(f'{x:g}' for x in box * steps)} mm)"

    def _of_all(self, scans: list[ScoredScan]) -> float:
        means = []
        for scan in scans:
            box, _ = self._window(scan.map.shape)
            scores = np.where(scan.mask, scan.map, 0).astype(np.float64)
            pooled = ndimage.uniform_filter(scores, box, mode="constant")
            # Only around these voxels the box lies inside the volume.
            first = box // 2
            inner = map(slice, first, first + np.array(scan.map.shape) - box + 1)
            means.append(float(pooled[tuple(inner)].max()))
        return float(np.mean(means))


class YoudenThreshold(_TruthThreshold):
    """
    The threshold with the largest sum of sensitivity and specificity; for comparison only.

    Parameters
    ----------
    scope : {"dataset", "image"}, default="dataset"
        One threshold, the best for the mean over scans with lesions, or one for each scan that
        `fit` saw.

    References
    ----------
    Youden, Cancer 3:32–35, 1950.
    """

    def _quality(self, n_true: NDArray[Any], n_marked: NDArray[Any]) -> NDArray[np.float64]:
        # If all of a scan is lesion, there are no false positives to divide.
        n_healthy = max(int(n_marked[-1] - n_true[-1]), 1)
        return np.asarray(n_true / n_true[-1] - (n_marked - n_true) / n_healthy)


class BestDiceThreshold(_TruthThreshold):
    """
    The threshold with the largest Dice; for comparison only.

    Parameters
    ----------
    scope : {"dataset", "image"}, default="dataset"
        One threshold, the best for the mean over scans with lesions, or one for each scan that
        `fit` saw.
    """

    def _quality(self, n_true: NDArray[Any], n_marked: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(2 * n_true / (n_marked + n_true[-1]))


class _HealthyThreshold(ThresholdRule):
    """A rule that chooses the threshold by maps of healthy scans."""

    needs_healthy = True

    def _of_all(self, scans: list[ScoredScan]) -> float:
        (limit,) = self._limits_of(scans, [np.arange(len(scans))])
        return float(limit)


@dataclass(repr=False, eq=False)
class HealthyRateThreshold(_HealthyThreshold):
    """
    The lowest threshold that keeps false positives in healthy scans at or below a rate.

    Parameters
    ----------
    rate : float, default=0.01
        Share of voxels above the threshold, as a mean over the scans that `fit` gets: healthy ones
        outside the training.
    """

    rate: Annotated[float, Within(below=1)] = 0.01

    def _limits_of(self, scans: list[ScoredScan], draws: Draws) -> NDArray[np.float64]:
        # One ranking of all scores serves all draws, which only change the weights of scans.
        ranked, weights, scan_numbers = _ranked([scan.scores for scan in scans])
        limits = []
        for draw in draws:
            scan_weights = np.bincount(draw, minlength=len(scans)) * len(scans) / len(draw)
            limit, _ = _limits_at(ranked, weights * scan_weights[scan_numbers], self.rate)
            limits.append(limit)
        return np.array(limits, dtype=np.float64)


@dataclass(repr=False, eq=False)
class HealthyScanThreshold(_HealthyThreshold):
    """
    The lowest threshold with a guarantee for a new healthy scan of the same site and protocol.

    With a probability of `level` or more nothing of the scan is left above the threshold after
    opening (``counted="components"``), or at most `rate` of its voxels are above it
    (``counted="voxels"``). The unit is the scan: of each scan that `fit` gets counts one number,
    the lowest score that serves as its own threshold, and the threshold is the k-th smallest of
    these, k = ⌈(n + 1) · level⌉ (split conformal prediction). So n scans guarantee n / (n + 1) at
    best, whatever the number of their voxels, and components are judged by the largest of each
    scan.

    The probability is one over draws of the calibration scans together with the new one, which
    have to be exchangeable: healthy scans of one site and protocol, each of another subject, from
    none of which the detector has learned.

    Parameters
    ----------
    level : float, default=0.9
        Probability, from 0.5 and below 1.
    counted : {"components", "voxels"}, default="components"
        What is counted in a scan.
    rate : float, default=0.01
        Largest share of voxels, for ``counted="voxels"``.
    opening : int, default=3
        Edge in voxels of the cube of the opening, for ``counted="components"``.

    References
    ----------
    Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005.
    """

    level: Annotated[float, Within(0.5, below=1)] = 0.9
    _: KW_ONLY
    counted: Literal["components", "voxels"] = "components"
    rate: Annotated[float, Within(below=1)] = 0.01
    opening: Count = 3

    def _limits_of(self, scans: list[ScoredScan], draws: Draws) -> NDArray[np.float64]:
        ranks = [self.rank(len(draw)) for draw in draws]
        # Of each scan the lowest score that serves as its own threshold.
        each = []
        for scan in scans:
            if self.counted == "voxels":
                each.append(float(rate_limits([scan.scores], [self.rate])[0][0]))
                continue
            # The largest over all cubes inside the mask of the smallest score in a cube.
            inside = np.where(scan.mask, scan.map, -np.inf)
            size = int(self.opening)
            smallest = ndimage.minimum_filter(inside, size, mode="constant", cval=-np.inf)
            # Where no cube fits into the mask, any threshold leaves nothing.
            highest = smallest.max()
            each.append(float(highest if np.isfinite(highest) else scan.scores.min()))
        limits = [np.sort(np.array(each)[d])[k - 1] for d, k in zip(draws, ranks, strict=True)]
        return np.array(limits)

    def rank(self, n: int) -> int:
        """
        Give the rank of the threshold among the numbers of n scans.

        Parameters
        ----------
        n : int
            Number of calibration scans.

        Returns
        -------
        int
            From 1 to n.

        Raises
        ------
        ValueError
            If n scans guarantee no such level.
        """
        # Without the rounding error of levels such as .9, whose products are just above integers.
        rank = int(np.ceil((n + 1) * self.level * (1 - 1e-12)))
        if rank > n:
            raise ValueError(
                f"no guarantee at this level with {counted(n, 'scan')}: {self.level:g} needs "
                f"{self.fewest_scans()} calibration scans or more, and {n} give at best "
                f"{n}/{n + 1}; keep more scans for the calibration, or ask for a lower level"
            )
        return rank

    def fewest_scans(self) -> int:
        """
        Give the smallest number of scans that guarantee the level.

        Returns
        -------
        int
            The smallest n whose n / (n + 1) is the level or more.
        """
        # A quotient that is whole, as 19 at level 0.95, may come out a rounding error above.
        return int(np.ceil(self.level / (1 - self.level) * (1 - 1e-12)))


#: The rules by the names that tables give them, with the study's parameters.
RULES: dict[str, ThresholdRule] = {
    "Otsu": OtsuThreshold(),
    "Otsu, each scan": OtsuThreshold(scope="image"),
    "mean pool": MeanPoolThreshold(),
    "mean pool, each scan": MeanPoolThreshold(scope="image"),
    "healthy rate": HealthyRateThreshold(),
    "Youden": YoudenThreshold(),
    "best Dice": BestDiceThreshold(),
}

#: Classes of rules by name, which model files may name: those of `RULES`, and two that no table
#: of a study compares.
RULE_CLASSES: dict[str, type[ThresholdRule]] = {
    type(rule).__name__: type(rule)
    for rule in (FixedThreshold(0.5), HealthyScanThreshold(), *RULES.values())
}


def rate_limits(
    healthy: Sequence[NDArray[Any]], rates: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the lowest thresholds with false-positive rates up to `rates`, and the real rates."""
    ranked, weights, _ = _ranked(healthy)
    return _limits_at(ranked, weights, rates)


def _limits_at(
    ranked: NDArray[Any], weights: NDArray[np.float64], rates: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find thresholds at rates, and the rates that they realize, by ranked scores with weights."""
    cumulative = np.cumsum(weights)
    # Sums of weights are rounded, and must not miss the rate that they make.
    largest = np.asarray(rates, dtype=np.float64) * (1 + 1e-9)
    # The first score from the top down that must not be marked any more.
    position = np.minimum(np.searchsorted(cumulative, largest, side="right"), len(ranked) - 1)
    limits = ranked[position]
    n_above = np.searchsorted(-ranked, -limits, side="left")
    realized = np.where(n_above > 0, cumulative[np.maximum(n_above, 1) - 1], 0.0)
    return limits.astype(np.float64), realized


def limit_spread(
    rule: ThresholdRule, maps: Volumes, masks: Volumes | None = None
) -> tuple[float, float] | None:
    """
    Estimate how far a threshold depends on which healthy scans were drawn.

    Gives the interval of 95 % of the thresholds of draws with replacement (bootstrap); None for
    rules that need no healthy scans. Shapes: `maps`, `masks` (n, x, y, z).
    """
    if not rule.needs_healthy:
        return None
    scans = scored_scans(maps, masks)
    n = len(scans)
    rng = Seed(0).rng("limit_spread")
    limits = rule._limits_of(scans, list(rng.integers(n, size=(_N_DRAWS, n))))
    low, high = np.quantile(limits, (0.025, 0.975))
    return float(low), float(high)


def limits_left_out(
    rule: ThresholdRule, maps: Volumes, masks: Volumes, groups: ArrayLike
) -> NDArray[np.float64] | None:
    """
    Fit a threshold for each healthy scan (n_scans,) to the scans of the other subjects.

    None where these are too few, and for rules that need no healthy scans and are not fixed.
    """
    subjects, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if isinstance(rule, FixedThreshold):
        return np.full(len(numbers), float(rule.value))
    rest = [np.flatnonzero(numbers != i) for i in range(len(subjects))]
    fewest = rule.fewest_scans() if isinstance(rule, HealthyScanThreshold) else 1
    if not rule.needs_healthy or min(map(len, rest)) < fewest:
        return None
    return rule._limits_of(scored_scans(maps, masks), rest)[numbers]


# Choosing ----------------------------------------------------------------------------------------


def _ranked(
    healthy: Sequence[NDArray[Any]],
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.intp]]:
    """Rank the scores of all scans, the largest first, with their weights and scan numbers."""
    values = np.concatenate(healthy)
    if values.dtype.kind in "ub":
        # Scores are ranked by their negative, which these types do not have.
        values = values.astype(np.float64)
    counts = [len(scores) for scores in healthy]
    # Each scan counts once, however many voxels it has.
    weights = np.repeat([1 / (len(healthy) * count) for count in counts], counts)
    order = np.argsort(-values, kind="stable")
    return values[order], weights[order], np.repeat(np.arange(len(healthy)), counts)[order]


# Maps -------------------------------------------------------------------------------------------


def open_map(binary: ArrayLike, size: int = 3) -> NDArray[np.bool_]:
    """
    Remove structures that are smaller than a cube (binary opening).

    Parameters
    ----------
    binary : array_like of shape (x, y, z) or (n, x, y, z)
        Anomalous voxels; each volume is opened by itself.
    size : int, default=3
        Edge of the cube in voxels.

    Returns
    -------
    ndarray of bool
        Of the same shape: the union of all cubes of anomalous voxels that lie in the volume.

    Raises
    ------
    ValueError
        If there are not three or four axes, values are not 0 and 1, or the size is below 1.
    """
    marked = np.asarray(binary)
    if marked.ndim not in (3, 4):
        raise ValueError(
            "a map has the axes (x, y, z), or (n, x, y, z) where there are several, not the "
            f"shape {marked.shape}"
        )
    marked = checked_mask(marked, "the map")
    if not is_number(size) or int(size) != size or size < 1:
        raise ValueError(f"size must be a whole number of voxels of 1 or more, not {size!r}")
    sizes = (1,) * (marked.ndim - 3) + (int(size),) * 3
    return ndimage.grey_opening(marked.view(np.uint8), sizes, mode="constant").astype(bool)


def ball_diameter(volume: Any) -> Any:
    """Compute the diameter in mm of balls of a volume in mL."""
    return np.cbrt(6 * volume * MM3_PER_ML / np.pi)


def opening_of(volume: float, spacing: ArrayLike) -> int:
    """
    Find the largest opening that leaves a ball, wherever it lies between the voxels.

    Parameters
    ----------
    volume : float
        Volume of the ball in mL.
    spacing : array_like of shape (3,)
        Edges of the voxels in mm.

    Returns
    -------
    int
        Edge of the cube in voxels, for `open_map`; 1, which removes nothing, if the ball is small.

    Raises
    ------
    ValueError
        If the volume is not above 0.
    """
    if not is_number(volume) or not volume > 0:
        raise ValueError(f"the smallest lesion must have a volume above 0 mL, not {volume!r}")
    diameter = ball_diameter(volume)
    return max(1, int(diameter / np.linalg.norm(np.asarray(spacing, dtype=float)) * (1 + 1e-9)))


def smallest_ball(size: int, spacing: ArrayLike) -> float:
    """Compute the volume in mL of the smallest ball that an opening leaves at every position."""
    diameter = size * np.linalg.norm(np.asarray(spacing, dtype=float))
    return float(np.pi / 6 * diameter**3 / MM3_PER_ML)


# Model files ------------------------------------------------------------------------------------


def encoded_rule(rule: ThresholdRule | None) -> dict[str, Any] | None:
    """Describe a threshold rule for a model file."""
    if rule is None:
        return None
    name = type(rule).__name__
    # A user's rule of the same name has other code, and must not come back as ours.
    if RULE_CLASSES.get(name) is not type(rule):
        raise TypeError(
            f"the threshold {rule!r} cannot be stored in a model file; "
            f"{', '.join(sorted(RULE_CLASSES))} can"
        )
    if getattr(rule, "thresholds_", ()):
        raise TypeError(
            f"the threshold {rule!r} has a limit for each scan it was fitted to, "
            "which belong to no others"
        )
    fitted = {_FITTED: rule.threshold_} if hasattr(rule, _FITTED) else {}
    return {"rule": name, "parameters": rule.get_params(deep=False), "fitted": fitted}


def decoded_rule(content: Any) -> ThresholdRule | None:
    """Build a threshold rule from its description."""
    if content is None:
        return None
    refuse_keys(content, _KEYS, "key of a threshold", complete=True)
    name = content["rule"]
    if not isinstance(name, str) or name not in RULE_CLASSES:
        raise ValueError(f"there is no threshold rule {name!r}")
    cls = RULE_CLASSES[name]
    expected = set(cls._get_param_names())
    refuse_keys(content["parameters"], expected, "parameter of a threshold", complete=True)
    rule: ThresholdRule = cls(**content["parameters"])
    try:
        rule.check_parameters()
    except (TypeError, ValueError) as error:
        raise ValueError(f"a threshold has an impossible parameter: {error}") from None
    fitted = content["fitted"]
    refuse_keys(fitted, {_FITTED}, "fitted value of a threshold")
    if not fitted:
        return rule
    threshold = fitted[_FITTED]
    if not is_number(threshold):
        raise ValueError(f"{_FITTED} of a threshold is {threshold!r}, not a number")
    if np.isnan(threshold) and rule._is_common():
        raise ValueError(f"{_FITTED} of a threshold of all maps is missing (NaN)")
    if rule.needs_truth and not rule._is_common():
        raise ValueError(f"{rule!r} has a limit for each scan it was fitted to")
    rule.threshold_ = threshold
    return rule
