"""Template of aligned healthy scans, and the base of detectors that compare scans with it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.detectors.alignment import align, guide_images, inverted, sampled
from anomaly.detectors.base import AnomalyDetector, Scans
from anomaly.detectors.features import look_of, nearest_inside, shrunk_variance
from anomaly.generators.implants import Look
from dmrifit._utils.checks import Within
from dmrifit._utils.counts import counted

#: Weight of the median variance against that of a voxel, in scans.
_PRIOR_SCANS = 4.0
_LEAST_SD = 1e-3
#: Share of scans that must contain a voxel for the template to use it.
_LEAST_COVERAGE = 0.1
#: Share of brain in a resampled voxel from which on a scan counts as containing it.
INSIDE_SHARE = 0.6
#: Least standard deviation of the signals of a scan; that of constants is a rounding error.
_LEAST_CONTRAST = 1e-7
#: Subjects of training scans, and voxels along an axis.
LEAST_SUBJECTS, _LEAST_SIZE = 3, 4


@dataclass(frozen=True)
class AlignedScans:
    """
    Healthy scans, their positions (3, x, y, z) in their mean, and the mean itself.

    `guide` (3, x, y, z) are the images by which scans are aligned, `scales` (2,) the standard
    deviations of mean signal and spread over the brain, `stacks` (n_scans, 3, x, y, z) the scans
    resampled to their mean, `subjects` (n_scans,) the numbers of their subjects.
    """

    looks: list[Look]
    positions: list[NDArray[np.float32]]
    stacks: NDArray[np.float32]
    guide: NDArray[np.float32]
    scales: NDArray[np.float64]
    subjects: NDArray[Any]

    @classmethod
    def learn(
        cls, looks: list[Look], smoothness: float | None, subjects: NDArray[Any] | None = None
    ) -> AlignedScans:
        """Align scans to their mean; by default each is of another subject."""
        if subjects is None:
            subjects = np.arange(len(looks))
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
        """List the scans of other subjects than that of a scan."""
        return np.flatnonzero(self.subjects != self.subjects[i])


@dataclass(frozen=True)
class Deviations:
    """Differences (x, y, z) of a scan from the template, and divided by the healthy SD."""

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
            {
                "template_": (7, *self.shape_),
                "guide_": (3, *self.shape_),
                "scales_": (2,),
            }
        )


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
    mean signal of the 26 neighbors, and the share of scans whose brain contains the voxel.
    """
    weight = stacks[:, 2].sum(axis=0)
    inside = stacks[:, 2] > INSIDE_SHARE
    nearest = nearest_inside(weight > _LEAST_COVERAGE * len(stacks))
    moments = []
    for k in (0, 1):
        center = stacks[:, k].sum(axis=0) / np.maximum(weight, 0.5)
        # Resampling mixed signals with the 0 outside the brain; the share of brain undoes that.
        signals = stacks[:, k] / np.maximum(stacks[:, 2], INSIDE_SHARE)
        squares = (np.where(inside, signals - center, 0) ** 2).sum(axis=0)
        freedom = np.maximum(inside.sum(axis=0) - 1, 0)
        sd = np.sqrt(shrunk_variance(squares, freedom, _PRIOR_SCANS))
        moments += [center[nearest], sd[nearest]]
    low, high = ndimage.minimum_filter(moments[0], 3), ndimage.maximum_filter(moments[0], 3)
    return np.stack([*moments, low, high, weight / len(stacks)]).astype(np.float32)


def template_at(template: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """Look up a template (7, x, y, z) at the positions of a scan."""
    return np.stack([sampled(volume, positions) for volume in template])
