"""Detectors that compare scans with a template of aligned healthy scans."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.detectors.alignment import align, guide_images, inverted, sampled
from anomaly.detectors.base import AnomalyDetector, Scans
from anomaly.detectors.features import (
    look_of,
    nearest_inside,
    sd_in_voxels,
    shrunk_variance,
    smoothed_voxels,
)
from anomaly.generators.implants import Look
from dmrifit._utils.checks import NotNegative, Within
from dmrifit._utils.counts import counted
from dmrifit.model_files.registry import register

__all__ = ["AlignedMahalanobis"]

#: Weight of the median variance against that of a voxel, in scans.
_PRIOR_SCANS = 4.0
_LEAST_SD = 1e-3
#: Share of scans that must contain a voxel for the template to use it.
_LEAST_COVERAGE = 0.1
#: Share of brain in a resampled voxel above which a scan counts as containing it.
INSIDE_SHARE = 0.6
#: Least standard deviation of the signals of a scan; that of constants is a rounding error.
_LEAST_CONTRAST = 1e-7
#: Subjects of training scans, and voxels along an axis.
LEAST_SUBJECTS, _LEAST_SIZE = 3, 4
#: Quantile of the scores of a scan that stands for their level: near the tail that thresholds cut
#: off, but not in it, where small lesions are.
_LEVEL = 0.95
#: Standard deviations of healthy levels up to which scores are divided by their level; beyond, a
#: large lesion would hide itself.
_LEVEL_REACH = 3.0


@dataclass(frozen=True)
class AlignedScans:
    """
    Healthy scans, their positions (3, x, y, z) in their mean, and the mean itself.

    `guide` (3, x, y, z) are the images by which scans are aligned, `scales` (2,) the standard
    deviations of mean signal and spread over the brain, `stacks` (n_scans, 3, x, y, z) mean
    signal, spread and mask resampled to the mean of the scans, `subjects` (n_scans,) the numbers
    of their subjects.
    """

    looks: list[Look]
    positions: list[NDArray[np.float32]]
    stacks: NDArray[np.float32]
    guide: NDArray[np.float32]
    scales: NDArray[np.float64]
    subjects: NDArray[Any]

    @classmethod
    def learn(
        cls, looks: list[Look], smoothness: float | None, subjects: NDArray[Any]
    ) -> AlignedScans:
        """Align scans to their mean."""
        shape = looks[0].mask.shape
        n_subjects = len(np.unique(subjects))
        if min(shape) < _LEAST_SIZE or n_subjects < LEAST_SUBJECTS:
            raise ValueError(
                f"{counted(len(looks), 'scan')} to learn from, of "
                f"{counted(n_subjects, 'subject')} and "
                f"{' × '.join(map(str, shape))} voxels; alignment and a healthy variance need "
                f"scans of {LEAST_SUBJECTS} subjects and {_LEAST_SIZE} voxels along each axis"
            )
        scales = np.array([
            np.mean([look.mean[look.mask].std() for look in looks]),
            np.mean([look.spread[look.mask].std() for look in looks]),
        ])  # fmt: skip
        if not (scales > _LEAST_CONTRAST).all():
            means, spreads = scales
            raise ValueError(
                f"the healthy scans are the same everywhere: mean signals vary by {means:.3g} and "
                f"their spreads over directions by {spreads:.3g} in a scan; give scans with "
                "contrast, of several directions"
            )
        images = [guide_images(look.mean, look.spread, look.mask, scales) for look in looks]
        grid = np.indices(looks[0].mask.shape, dtype=np.float32)
        stacks = _stacked(looks, [grid] * len(looks))
        # An affine round first: its mean is sharp enough to be warped to. The last round aligns
        # as new scans will be: detectors must see deviations from the sharpest mean.
        for n_more, rounded in ((2, None), (1, smoothness), (0, smoothness)):
            guide = _guide(stacks, scales)
            positions = []
            for image, look in zip(images, looks, strict=True):
                positions.append(align(image, look.mask, guide, smoothness=rounded))
            if n_more:
                # Without this all scans could drift away together from their first mean.
                drift = np.mean(positions, axis=0) - grid
                positions = [position - drift for position in positions]
                stacks = _stacked(looks, [inverted(position) for position in positions])
        return cls(looks, positions, stacks, guide, scales, subjects)

    def left_out(self, i: int) -> NDArray[np.float32]:
        """Compute the template without the subject of a scan, at its voxels, (7, x, y, z)."""
        # A new scan is not part of the template either, nor is another scan of its subject.
        return template_at(template_of(self.stacks[self.others(i)]), self.positions[i])

    def others(self, i: int) -> NDArray[np.int64]:
        """List the numbers of scans of other subjects than that of scan `i`."""
        return np.flatnonzero(self.subjects != self.subjects[i])


@dataclass(frozen=True)
class Deviations:
    """Differences (x, y, z) of a scan from the template, plain and divided by the healthy SD."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    z_mean: NDArray[np.float32]
    z_spread: NDArray[np.float32]

    @classmethod
    def of(cls, look: Look, expected: NDArray[np.float32]) -> Deviations:
        """Compare a scan with the template at its voxels, (7, x, y, z)."""
        mean, mean_sd, spread, spread_sd = expected[:4]
        off = look.mean - mean
        # Scanners differ in the level of the whole brain, which is no anomaly.
        off = np.where(look.mask, off - np.median(off[look.mask]), 0)
        off_spread = np.where(look.mask, look.spread - spread, 0)
        z_mean = off / np.maximum(mean_sd, _LEAST_SD)
        return cls(off, off_spread, z_mean, off_spread / np.maximum(spread_sd, _LEAST_SD))


@dataclass(repr=False, eq=False)
class AlignedDetector(AnomalyDetector):
    """
    Base of detectors that align scans to the mean of healthy scans before they compare.

    A derived class learns in ``_learn(aligned)`` from `AlignedScans`, after the template, and
    scores in ``_score(look, positions)``; its parameter `smoothness` is that of `align`.
    """

    _array_names: ClassVar[tuple[str, ...]] = ("template_", "guide_", "scales_")

    _needs_directions: ClassVar[bool] = True
    _least_subjects: ClassVar[int] = LEAST_SUBJECTS

    _: KW_ONLY
    smoothness: Annotated[float, Within(above=0)] | None = 2.0

    def _fit_scans(self, scans: Scans) -> None:
        looks = [look_of(scans.signal(i), scans.mask(i)) for i in range(len(scans))]
        self._learn_aligned(AlignedScans.learn(looks, self.smoothness, scans.subjects))

    def _learn_aligned(self, aligned: AlignedScans) -> None:
        """Keep the template of scans that are aligned already, and learn from them."""
        self.scales_, self.guide_ = aligned.scales, aligned.guide
        self.template_ = template_of(aligned.stacks)
        self._learn(aligned)

    @abstractmethod
    def _learn(self, aligned: AlignedScans) -> None:
        """Learn from aligned healthy scans."""

    @abstractmethod
    def _score(self, look: Look, positions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score a scan at its positions in the template."""

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        look = look_of(scans.signal(i), scans.mask(i))
        return self._score(look, self._aligned(look))

    def _aligned(self, look: Look) -> NDArray[np.float32]:
        """Align a scan to the template."""
        images = guide_images(look.mean, look.spread, look.mask, self.scales_)
        return align(images, look.mask, self.guide_, smoothness=self.smoothness)

    def _check_restored(self) -> None:
        self._check_shapes(
            {"template_": (7, *self.shape_), "guide_": (3, *self.shape_), "scales_": (2,)}
        )


@register
@dataclass(repr=False, eq=False)
class AlignedMahalanobis(AlignedDetector):
    """
    Score of a voxel: how far mean and spread of its signals are from aligned healthy scans.

    Healthy scans are aligned to their mean by an affine map and a smooth warp, and each scan is
    aligned to that mean before it is scored, as of `ImplantDetector`. The deviations of the mean
    signal over directions and of its spread, each divided by the healthy standard deviation of the
    place, are smoothed; the score is their Mahalanobis distance, with the covariance of healthy
    scans that are compared with the template of all the others, divided by the square root of 2
    and smoothed. No lesion is learned, deviations in both directions count, and there is no seed.

    Scores of some healthy persons are higher everywhere. Those of a scan are divided by its level,
    the 95 % quantile in the mask over that of healthy scans, as far as healthy levels reach: three
    standard deviations, a factor of 1.1 to 1.4 with 16 synthetic persons. The scores of a large
    lesion, which raises the level, are lowered by no more than that.

    Parameters
    ----------
    threshold, calibration, scale : optional
        As in `VoxelwiseGaussian`; calibration is ``"auto"`` by default.
    smooth_mm : float, default=6.0
        Standard deviation in mm of the Gaussian that smooths the scores inside the mask.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    smoothness : float, optional, default=2.0
        Standard deviation in voxels of the Gaussian that smooths the warp; None for an affine map
        alone.
    feature_mm : float, default=4.0
        Standard deviation in mm of the Gaussian that smooths deviations inside the mask.

    Attributes
    ----------
    template_ : ndarray of shape (7, x, y, z)
        Healthy mean and standard deviation of mean signal and spread, smallest and largest mean
        signal of the 3³ voxels around, share of scans whose brain contains the voxel.
    guide_ : ndarray of shape (3, x, y, z)
        Images by which scans are aligned.
    scales_ : ndarray of shape (2,)
        Standard deviations of mean signal and spread over the brain.
    covariance_ : ndarray of shape (2, 2)
        Of both smoothed deviations in healthy scans, over all voxels.
    levels_ : ndarray of shape (2,)
        Mean and standard deviation of the logarithms of the levels of healthy scans; 0 of models
        that follow no level.

    See Also
    --------
    VoxelwiseGaussian : Deviations without alignment.
    ImplantDetector : Learns lesions from the same alignment.
    """

    _array_names = (*AlignedDetector._array_names, "covariance_", "levels_")
    _later_arrays: ClassVar[Mapping[str, NDArray]] = {"levels_": np.zeros(2)}

    _: KW_ONLY
    feature_mm: NotNegative = 4.0
    calibration: str | float | int | None = "auto"

    @property
    def largest_division_(self) -> float:
        """The largest number that scores of a scan are divided by."""
        return float(np.exp(_LEVEL_REACH * self.levels_[1]))

    def _learn(self, aligned: AlignedScans) -> None:
        products = np.zeros((2, 2))
        n_voxels = 0
        deviations = []
        for i, look in enumerate(aligned.looks):
            deviation = self._smoothed(look, aligned.left_out(i))
            deviations.append(deviation)
            z = deviation.astype(np.float64)
            # Not a matrix product, whose last bits depend on the number of threads.
            products += np.einsum("in,jn->ij", z, z)
            n_voxels += z.shape[1]
        self.covariance_ = products / n_voxels
        if not np.linalg.eigvalsh(self.covariance_).min() > 0:
            raise ValueError(
                "the healthy scans do not differ in mean signal and spread over directions; give "
                "scans of several persons, with several directions"
            )
        levels = []
        for look, deviation in zip(aligned.looks, deviations, strict=True):
            levels.append(_log_level(self._distance(look, deviation), look.mask))
        self.levels_ = np.array([np.mean(levels), np.std(levels, ddof=1)])

    def _smoothed(self, look: Look, expected: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute smoothed deviations of mean and spread, (2, n_voxels)."""
        deviations = Deviations.of(look, expected)
        sd = sd_in_voxels(self.feature_mm, self.spacing)
        volumes = (deviations.z_mean, deviations.z_spread)
        return np.stack([smoothed_voxels(volume, look.mask, sd) for volume in volumes])

    def _score(self, look: Look, positions: NDArray[np.float32]) -> NDArray[np.float32]:
        z = self._smoothed(look, template_at(self.template_, positions))
        score = self._distance(look, z)
        mean, sd = self.levels_
        reach = _LEVEL_REACH * sd
        factor = np.exp(np.clip(_log_level(score, look.mask) - mean, -reach, reach))
        return score / np.float32(factor)

    def _distance(self, look: Look, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the smoothed distance (x, y, z) of deviations (2, n_voxels)."""
        inverse = np.linalg.inv(self.covariance_)
        squares = np.einsum("in,ij,jn->n", z, inverse, z)
        return self._smooth_scores(np.sqrt(np.maximum(squares, 0) / 2), look.mask)

    def _check_restored(self) -> None:
        super()._check_restored()
        self._check_shapes({"covariance_": (2, 2), "levels_": (2,)})
        if not np.linalg.eigvalsh(self.covariance_).min() > 0:
            raise ValueError("its covariance_ is none of two features")
        if self.levels_[1] < 0:
            raise ValueError(f"the standard deviation of its levels_ is {self.levels_[1]:g}")


def _stacked(looks: list[Look], positions: list[NDArray]) -> NDArray[np.float32]:
    """Resample mean, spread and mask of scans at positions, (n_scans, 3, x, y, z)."""
    stacks = []
    for look, position in zip(looks, positions, strict=True):
        volumes = (look.mean, look.spread, look.mask)
        stacks.append(np.stack([sampled(v.astype(np.float32), position) for v in volumes]))
    return np.stack(stacks)


def _guide(stacks: NDArray, scales: NDArray) -> NDArray[np.float32]:
    weight = stacks[:, 2].sum(axis=0)
    mean, spread = (stacks[:, k].sum(axis=0) / np.maximum(weight, 0.5) for k in (0, 1))
    return guide_images(mean, spread, weight / len(stacks), scales)


def template_of(stacks: NDArray) -> NDArray[np.float32]:
    """
    Compute the template (7, x, y, z) of aligned scans.

    It holds healthy mean and standard deviation of mean signal and spread, smallest and largest
    mean signal of the 3³ voxels around, and the share of scans whose brain contains the voxel.

    Shapes: `stacks` (n_scans, 3, x, y, z) of mean signal, spread and share of brain.
    """
    brain_share = stacks[:, 2]
    weight = brain_share.sum(axis=0)
    inside = brain_share > INSIDE_SHARE
    nearest = nearest_inside(weight > _LEAST_COVERAGE * len(stacks))
    moments = []
    for k in (0, 1):
        mean = stacks[:, k].sum(axis=0) / np.maximum(weight, 0.5)
        # Resampling mixed signals with the 0 outside the brain; the share of brain undoes that.
        signals = stacks[:, k] / np.maximum(brain_share, INSIDE_SHARE)
        squares = (np.where(inside, signals - mean, 0) ** 2).sum(axis=0)
        freedom = np.maximum(inside.sum(axis=0) - 1, 0)
        sd = np.sqrt(shrunk_variance(squares, freedom, _PRIOR_SCANS))
        moments += [mean[nearest], sd[nearest]]
    low, high = ndimage.minimum_filter(moments[0], 3), ndimage.maximum_filter(moments[0], 3)
    return np.stack([*moments, low, high, weight / len(stacks)]).astype(np.float32)


def template_at(template: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """Look up a template (7, x, y, z) at the positions of a scan."""
    return np.stack([sampled(volume, positions) for volume in template])


def _log_level(score: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    level = np.quantile(score[mask], _LEVEL)
    return float(np.log(max(level, np.finfo(np.float32).tiny)))
