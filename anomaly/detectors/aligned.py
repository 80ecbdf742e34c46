"""Mahalanobis distance of mean and spread from aligned healthy scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.features import Smoother, sd_in_voxels
from anomaly.detectors.template import AlignedDetector, AlignedScans, Deviations, template_at
from anomaly.generators.implants import Look
from dmrifit._utils.checks import NotNegative
from dmrifit.io.parameter_json import RefusedError
from dmrifit.model_files.registry import register

__all__ = ["AlignedMahalanobis"]

#: Quantile of the scores of a scan that stands for their level: near the tail that thresholds cut
#: off, but not in it, where small lesions are.
_LEVEL = 0.95
#: Standard deviations of healthy levels up to which scores are divided by their level; beyond, a
#: large lesion would hide itself.
_LEVEL_REACH = 3.0


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
    threshold : threshold rule, optional
        As in `AnomalyDetector`.
    calibration : "auto", float, int or None, default="auto"
        As in `AnomalyDetector`.
    scale : {None, "image"}, default=None
        As in `AnomalyDetector`.
    smooth_mm : float, default=6.0
        The same for the scores.
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
        signal of the 26 neighbors, share of scans whose brain contains the voxel.
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

    _array_names: ClassVar[tuple[str, ...]] = (
        *AlignedDetector._array_names,
        "covariance_",
        "levels_",
    )
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
            deviation = self._smoothed(look, aligned.left_out(i))[:, look.mask]
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
        """Compute smoothed deviations of mean and spread, (2, x, y, z)."""
        deviations = Deviations.of(look, expected)
        smooth = Smoother(look.mask)
        sd = sd_in_voxels(self.feature_mm, self.spacing)
        return np.stack([smooth(deviations.z_mean, sd), smooth(deviations.z_spread, sd)])

    def _score(self, look: Look, positions: NDArray[np.float32]) -> NDArray[np.float32]:
        z = self._smoothed(look, template_at(self.template_, positions))[:, look.mask]
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
            raise RefusedError("its covariance_ is none of two features")
        if self.levels_[1] < 0:
            raise RefusedError(f"the standard deviation of its levels_ is {self.levels_[1]:g}")


def _log_level(score: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    level = np.quantile(score[mask], _LEVEL)
    return float(np.log(max(level, np.finfo(np.float32).tiny)))
