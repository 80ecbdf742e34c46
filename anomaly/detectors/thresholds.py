"""From scores to decisions: rules that choose a threshold for anomaly maps, and the opening that follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from anomaly.detectors.maps import (
    ScoredScans,
    Volumes,
    checked_binary,
    checked_masks,
    checked_volumes,
    open_map,
)
from dmrifit._utils.checks import check_word

__all__ = [
    "RULES",
    "SCOPES",
    "STUDY_SPACING",
    "BestDiceThreshold",
    "FixedThreshold",
    "HealthyRateThreshold",
    "MeanPoolThreshold",
    "OtsuThreshold",
    "ThresholdRule",
    "YoudenThreshold",
    "open_map",
    "rate_limits",
]

#: A threshold is one number for all maps, or one for each.
SCOPES = ("dataset", "image")
#: Edge in mm of the voxels of the study.
STUDY_SPACING = 2.4

Scope = Literal["dataset", "image"]


class ThresholdRule(BaseEstimator, ABC):
    """
    What rules have in common; voxels are anomalous whose score is *above* the threshold.

    So a map whose scores are all the same has no anomaly under a rule that chooses among scores, and a voxel with the
    score 0 is a voxel like any other: what counts is told by masks alone.

    Attributes
    ----------
    needs_truth : bool
        Whether `fit` needs lesion masks. Such a rule says how good a map could be, not how good it is.
    needs_healthy : bool
        Whether `fit` needs maps of healthy scans.
    threshold_ : float
        The threshold; NaN where each map has its own.
    """

    needs_truth = False
    needs_healthy = False

    threshold_: float

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
            Lesions, for rules that need them; others do not look at them.

        Returns
        -------
        self
            The fitted rule.

        Raises
        ------
        ValueError
            If a parameter is not possible, numbers or shapes differ, a map has values that are not finite, a mask is
            empty, or lesions are needed and there are none.
        """
        self._check_parameters()
        volumes = checked_volumes(maps, "map")
        inside = checked_masks(masks, volumes)
        lesions = None
        if self.needs_truth:
            if truths is None:
                raise ValueError(
                    f"{type(self).__name__} needs lesions: fit(maps, masks, truths); rules without labels do not"
                )
            lesions = checked_binary(truths, volumes, "truth")
        self._choose(ScoredScans(volumes, inside, lesions))
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
            As for `fit`; or if a rule with a threshold for each map, chosen by its lesions, is given another number
            of maps.
        """
        check_is_fitted(self, "threshold_")
        scans, limits = self._applied(maps, masks)
        found = [
            (volume > limit) & mask
            for volume, mask, limit in zip(scans.volumes, scans.masks, limits, strict=True)
        ]
        return np.stack(found) if isinstance(maps, np.ndarray) else found

    def limits(self, maps: Volumes, masks: Volumes | None = None) -> list[float]:
        """
        Tell the threshold of each map.

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
        return [float(limit) for limit in self._applied(maps, masks)[1]]

    def _applied(
        self, maps: Volumes, masks: Volumes | None
    ) -> tuple[ScoredScans, list[np.float64]]:
        check_is_fitted(self, "threshold_")
        volumes = checked_volumes(maps, "map")
        scans = ScoredScans(volumes, checked_masks(masks, volumes), None)
        # In 64 bits: a Python float would be rounded to the precision of the maps when they are compared.
        return scans, [np.float64(limit) for limit in self._limits(scans)]

    def _check_parameters(self) -> None:
        scope = getattr(self, "scope", SCOPES[0])
        check_word("scope", scope, SCOPES)

    @abstractmethod
    def _choose(self, scans: ScoredScans) -> None:
        """Choose ``threshold_``."""

    def _limits(self, scans: ScoredScans) -> list[float]:
        return [self.threshold_] * len(scans.volumes)


class _OwnThreshold(ThresholdRule):
    """A rule that reads a threshold off the scores of one map, or off those of all."""

    def _choose(self, scans: ScoredScans) -> None:
        self.threshold_ = self._of_all(scans) if self._is_common() else float("nan")

    def _limits(self, scans: ScoredScans) -> list[float]:
        return (
            super()._limits(scans)
            if self._is_common()
            else [self._of_all(one) for one in scans.singly()]
        )

    def _is_common(self) -> bool:
        return getattr(self, "scope", SCOPES[0]) == SCOPES[0]

    @abstractmethod
    def _of_all(self, scans: ScoredScans) -> float:
        """Give the threshold of these scans together."""


class _TruthThreshold(ThresholdRule):
    """A rule that chooses, by the lesions, what is best over all thresholds."""

    needs_truth = True
    scope: Scope

    def _choose(self, scans: ScoredScans) -> None:
        scored = [
            _graded(values, lesion)
            for values, lesion in zip(scans.inside(), scans.lesions_inside(), strict=True)
        ]
        if not any(n_lesion for _, _, _, n_lesion in scored):
            raise ValueError(
                f"{type(self).__name__} needs lesions inside the masks; there is no voxel in {len(scored)} scan(s)"
            )
        self.thresholds_ = [float("nan")] * len(scored)
        if self.scope == SCOPES[0]:
            self.threshold_ = self._best([one for one in scored if one[3]])
            return
        self.threshold_ = float("nan")
        # Without a lesion the best that a map can do is to stay empty.
        self.thresholds_ = [self._best([one]) if one[3] else float(one[0][0]) for one in scored]

    def _limits(self, scans: ScoredScans) -> list[float]:
        if self.scope == SCOPES[0]:
            return super()._limits(scans)
        if len(scans.volumes) != len(self.thresholds_):
            raise ValueError(
                f"{type(self).__name__}(scope='image') was fitted on {len(self.thresholds_)} map(s) with their lesions "
                f"and is applied to {len(scans.volumes)}; apply it to the same maps, or choose scope='dataset'"
            )
        return self.thresholds_

    def _best(self, scored: list[_Graded]) -> float:
        """Find the threshold with the largest mean over scans: a sum of steps, one at each score of each scan."""
        scores, steps = [], []
        for values, n_true, n_all, n_lesion in scored:
            quality = self._quality(n_true, n_all, n_lesion, int(n_all[-1]))
            # At and above a scan's largest score nothing is found, and the quality of nothing is 0.
            steps.append(np.diff(quality, prepend=0.0))
            scores.append(values)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        ranked = np.concatenate(scores)[order]
        total = np.cumsum(np.concatenate(steps)[order])
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        best = last[int(np.argmax(total[last]))]
        following = (
            ranked[best + 1]
            if best + 1 < len(ranked)
            else np.nextafter(ranked[best], -np.inf, dtype=ranked.dtype)
        )
        return float(following)

    @abstractmethod
    def _quality(
        self, n_true: NDArray, n_all: NDArray, n_lesion: int, n: int
    ) -> NDArray[np.float64]:
        """Tell how good each threshold of a scan is, by what lies above it."""


class FixedThreshold(_OwnThreshold):
    """
    A threshold that was chosen before.

    Parameters
    ----------
    value : float
        The threshold. The study's .3 for autoencoders means something only for maps that are scaled by their own
        largest values (``scale="image"``), its .5 for discriminators for probabilities.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def _check_parameters(self) -> None:
        if not np.isfinite(self.value):
            raise ValueError(f"the threshold must be a finite number, not {self.value!r}")

    def _of_all(self, scans: ScoredScans) -> float:
        return float(self.value)


class OtsuThreshold(_OwnThreshold):
    """
    The threshold that separates scores into two groups as well as one can, by Otsu's criterion.

    The variance between groups is computed for every threshold, so there are no bins to choose.

    Parameters
    ----------
    scope : {"dataset", "image"}, default="dataset"
        One threshold for all maps that `fit` saw, or one for each map, computed by `apply`. With the latter every map
        that is not constant has anomalies, those of healthy scans, too.

    References
    ----------
    Otsu, IEEE Trans Syst Man Cybern 9:62–66, 1979.
    """

    def __init__(self, *, scope: Scope = "dataset") -> None:
        self.scope = scope

    def _of_all(self, scans: ScoredScans) -> float:
        return _otsu(np.concatenate(scans.inside()))


class MeanPoolThreshold(_OwnThreshold):
    """
    The largest mean of a map over windows, 16³ voxels of 2.4 mm in the study.

    Windows lie at every voxel, as the paper has it (a convolution; the published code uses tiles), inside the volume;
    where this is shorter than a window, the window is cut. Outside the mask a map counts as 0.

    Parameters
    ----------
    size_mm : float, default=38.4
        Edge of a window in mm.
    spacing : float or tuple of float of length 3, optional
        Edges of a voxel in mm; by default `STUDY_SPACING`. `evaluate_detectors` fills in that of the cases.
    scope : {"dataset", "image"}, default="dataset"
        The mean over all maps that `fit` saw of their largest means, or the own one of each map, computed by `apply`.

    References
    ----------
    Weninger et al., Sci Rep, 2023.
    """

    def __init__(
        self,
        size_mm: float = 38.4,
        *,
        spacing: float | tuple[float, float, float] | None = None,
        scope: Scope = "dataset",
    ) -> None:
        self.size_mm = size_mm
        self.spacing = spacing
        self.scope = scope

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, value in (("size_mm", self.size_mm), ("spacing", self._edges())):
            if not (np.isfinite(value).all() and (np.asarray(value) > 0).all()):
                raise ValueError(
                    f"{name} must be positive lengths in mm, not {getattr(self, name)!r}"
                )

    def _edges(self) -> NDArray[np.float64]:
        edges = np.asarray(
            STUDY_SPACING if self.spacing is None else self.spacing, dtype=np.float64
        )
        if edges.shape not in ((), (3,)):
            raise ValueError(f"spacing must be one length in mm or three, not {self.spacing!r}")
        return np.broadcast_to(edges, 3)

    def _of_all(self, scans: ScoredScans) -> float:
        edges = np.maximum(np.rint(self.size_mm / self._edges()), 1).astype(int)
        means = [
            _largest_mean(np.where(mask, volume, 0), edges)
            for volume, mask in zip(scans.volumes, scans.masks, strict=True)
        ]
        return float(np.mean(means))


class YoudenThreshold(_TruthThreshold):
    """
    The threshold with the largest sum of sensitivity and specificity; for comparison only.

    Parameters
    ----------
    scope : {"dataset", "image"}, default="dataset"
        One threshold, the best for the mean over scans with lesions, or one for each scan that `fit` saw.

    References
    ----------
    Youden, Cancer 3:32–35, 1950.
    """

    def __init__(self, *, scope: Scope = "dataset") -> None:
        self.scope = scope

    def _quality(
        self, n_true: NDArray, n_all: NDArray, n_lesion: int, n: int
    ) -> NDArray[np.float64]:
        # All of a scan may be lesion: then nothing can be wrong.
        return n_true / n_lesion - (n_all - n_true) / max(n - n_lesion, 1)


class BestDiceThreshold(_TruthThreshold):
    """
    The threshold with the largest Dice; for comparison only.

    Parameters
    ----------
    scope : {"dataset", "image"}, default="dataset"
        One threshold, the best for the mean over scans with lesions, or one for each scan that `fit` saw.
    """

    def __init__(self, *, scope: Scope = "dataset") -> None:
        self.scope = scope

    def _quality(
        self, n_true: NDArray, n_all: NDArray, n_lesion: int, n: int
    ) -> NDArray[np.float64]:
        return 2 * n_true / (n_all + n_lesion)


class HealthyRateThreshold(_OwnThreshold):
    """
    The lowest threshold at which healthy scans have no more false positives than a chosen share of voxels.

    Parameters
    ----------
    rate : float, default=0.01
        Share of voxels above the threshold, as a mean over the scans that `fit` sees: healthy ones that were not
        trained on.
    """

    needs_healthy = True

    def __init__(self, rate: float = 0.01) -> None:
        self.rate = rate

    def _check_parameters(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(
                f"rate must be a share of voxels, 0 or more and below 1, not {self.rate!r}"
            )

    def _of_all(self, scans: ScoredScans) -> float:
        limits, _ = rate_limits(scans.inside(), [self.rate])
        return float(limits[0])


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


def rate_limits(
    healthy: Sequence[NDArray[Any]], rates: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Find the lowest scores with no more than a share of the voxels of healthy scans above them.
    """
    values = np.concatenate(healthy)
    if values.dtype.kind in "ub":
        # Those have no negative, by which scores are ranked.
        values = values.astype(np.float64)
    shares = np.concatenate([np.full(len(one), 1 / (len(healthy) * len(one))) for one in healthy])
    order = np.argsort(-values, kind="stable")
    ranked, reached = values[order], np.cumsum(shares[order])
    # The first score down from the largest that may not be included any more; sums of shares are rounded.
    asked = np.asarray(rates, dtype=np.float64) * (1 + 1e-9)
    position = np.minimum(np.searchsorted(reached, asked, side="right"), len(ranked) - 1)
    limits = ranked[position]
    n_above = np.searchsorted(-ranked, -limits, side="left")
    return limits.astype(np.float64), np.where(
        n_above > 0, reached[np.maximum(n_above, 1) - 1], 0.0
    )


# Choosing ----------------------------------------------------------------------------------------------------------


#: Distinct scores of a scan from the largest, voxels of lesions and all voxels that reach each, voxels of lesions.
_Graded = tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]


def _otsu(values: NDArray[Any]) -> float:
    """Give the largest score of the lower group; that of constant scores is all there is, and nothing is above it."""
    ranked = np.sort(values)
    cuts = np.flatnonzero(ranked[1:] > ranked[:-1])
    if not len(cuts):
        return float(ranked[-1])
    # Sums of scores less their mean lose no digits where scores are large and alike.
    below = np.cumsum(ranked - ranked.mean(dtype=np.float64), dtype=np.float64)
    n_below = cuts + 1.0
    # Variance between groups, times the number of voxels squared: that of sums, as both of them add up to 0.
    between = below[cuts] ** 2 / (n_below * (len(ranked) - n_below))
    return float(ranked[cuts[int(np.argmax(between))]])


def _largest_mean(volume: NDArray[Any], edges: NDArray[Any]) -> float:
    """Compute the largest mean over boxes inside a volume, by sums from a corner."""
    sums = volume.astype(np.float64)
    n = 1
    for axis, edge in enumerate(edges.tolist()):
        edge = min(edge, sums.shape[axis])
        sums = np.moveaxis(np.cumsum(sums, axis=axis), axis, 0)
        first = sums[edge - 1 : edge]
        sums = np.moveaxis(np.concatenate([first, sums[edge:] - sums[:-edge]]), 0, axis)
        n *= edge
    return float(sums.max() / n)


def _graded(values: NDArray[Any], lesion: NDArray[np.bool_]) -> _Graded:
    """Count what reaches each distinct score, from the largest score down."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    n_true = np.cumsum(lesion[order])[last]
    return ranked[last], n_true, last + 1, int(n_true[-1])
