"""The project's own detector: boosted trees trained on lesions implanted into healthy scans."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingRegressor

from anomaly.detectors.aligned import AlignedDetector, AlignedScans, Deviations, template_at
from anomaly.detectors.features import masked_smoothing, nearest_inside
from anomaly.generators.implants import Look, implant, implant_patch, noise_floor
from dmrifit._utils.checks import Count, Within
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import one_thread
from dmrifit.model_files.registry import register

__all__ = ["ImplantDetector"]

#: Training voxels of a scan: in a lesion, around it, and elsewhere.
_INSIDE, _AROUND, _FAR = 500, 1500, 2400
#: Voxels around a lesion where its border is learned: the same share of voxels is drawn there as
#: inside.
_SHELL = 4
#: Standard deviations in voxels of neighborhoods.
_NEAR, _WIDE = (0.7, 1.2, 2.0, 3.5), (1.2, 2.0)
_REACH = (5, 9)  # voxels
#: Columns of the feature table.
_N_COLUMNS = 52


@register
@dataclass(repr=False, eq=False)
class ImplantDetector(AlignedDetector):
    """
    Score of a voxel: its lesion probability by trees trained on implanted lesions.

    The project's own method; no label of a patient is needed. It has three parts:

    1. *Alignment.* Residual misregistration dominates maps of deviations. Healthy scans are
       aligned to their mean by an affine map and a smooth warp, which sharpens the mean, and each
       scan is aligned to that mean before it is scored. Displacements are smoother than the size
       of a lesion, and large differences pull no harder than moderate ones, so that a lesion is
       not warped away.
    2. *Lesions to learn from.* `anomaly.generators.implants` implants tissue of faster or slower
       isotropic diffusion, with soft edges, into healthy scans. Ellipsoids of pure noise would not
       resemble any tumor.
    3. *A small discriminator.* Features of the gradient boosted trees are the mean signal and its
       spread over directions in a voxel and in neighborhoods of several sizes, the healthy mean,
       its variance, the deviation of the scan from both, and the position. Neighborhoods of
       several sizes separate compact lesions from thin folds with partial fluid, which a single
       mean signal cannot; deviations in both directions count. A training scan is compared with
       the mean of all the other ones.

    Only mean and spread over directions are used, so that any set of directions will do as long as
    it is the same for all scans. In addition to the caller's scans, ``fit`` holds 11 numbers for
    each voxel of each scan and the feature table (28 scans of 90 × 90 × 54 voxels: about 0.7 GB by
    that count). Sizes of neighborhoods are in voxels, and were chosen on voxels of 4 mm.

    The implanted lesions resemble those of `anomaly.simulate_dmri`, with the same ranges of
    diffusivity and soft edges: on synthetic patients this detector has an advantage, and its
    performance in real patients is unknown.

    Parameters
    ----------
    threshold : threshold rule, optional
        Rule that makes a map binary, fitted to scans held out of the training; by default
        ``HealthyRateThreshold(0.002)``: healthy voxels have so low scores that at 1 % lesions
        would be outlined too large.
    calibration, scale : optional
        As in `VoxelwiseGaussian`; calibration is 0.25 by default.
    smooth_mm : float, default=6.0
        Standard deviation in mm of a Gaussian, by which scores are smoothed inside the mask.
    spacing : float or tuple of float of length 3, default=4.0
        Edge or edges of a voxel in mm; `SeriesDetector` sets those of the scans.
    smoothness : float, optional, default=2.0
        Standard deviation in voxels of the Gaussian that smooths the warp; None for an affine map
        alone.
    n_implants : int, default=4
        Number of lesions implanted into each healthy scan, one at a time; the scan without a
        lesion is used, too.
    n_patches : int, default=0
        Number of foreign patches blended into each healthy scan, one at a time, from a
        training scan of another subject.
    n_trees : int, default=200
        Number of boosted trees.
    random_state : int, RandomState or None, default=None
        Seed of the implanted lesions and of the training voxels.

    Attributes
    ----------
    template_ : ndarray of shape (7, x, y, z)
        Healthy mean and standard deviation of mean signal and spread, smallest and largest mean
        signal of the 3³ voxels around, share of scans whose brain contains the voxel.
    guide_ : ndarray of shape (3, x, y, z)
        Images by which scans are aligned.
    scales_ : ndarray of shape (2,)
        Standard deviations of mean signal and spread over the brain.
    trees_ : sklearn.ensemble.HistGradientBoostingRegressor
        Fitted by least squares to 0 and 1.

    See Also
    --------
    VoxelwiseGaussian : The reference: deviations from healthy scans at the same position.
    """

    _default_rate: ClassVar[float] = 0.002
    _estimator_names: ClassVar[tuple[str, ...]] = ("trees_",)

    _: KW_ONLY
    n_implants: Count = 4
    n_patches: Annotated[int, Within()] = 0
    n_trees: Count = 200
    calibration: str | float | int | None = 0.25
    random_state: RandomState = None

    # Learning
    # -------------------------------------------------------------------------------------

    def _learn(self, aligned: AlignedScans) -> None:
        """Learn the appearance of lesions in healthy scans."""
        seed = Seed(self.random_state)
        rows, answers = [], []
        looks = aligned.looks
        floors = [noise_floor(look) for look in looks]
        for i, look in enumerate(looks):
            rng = seed.rng("implants", i)
            expected = aligned.left_out(i)
            # The first round shows the scan without a lesion.
            rounds = [(look, np.zeros(look.mask.shape, dtype=bool))]
            rounds += [implant(look, floors[i], rng) for _ in range(int(self.n_implants))]
            # In order from this scan on: the patches of a seed depend on this order.
            others = aligned.others(i)
            sources = np.roll(others, -int(np.count_nonzero(others < i)))
            patch_rng = seed.rng("patches", i)
            for _ in range(int(self.n_patches)):
                source = looks[int(patch_rng.choice(sources))]
                rounds.append(implant_patch(look, source, floors[i], patch_rng))
            for changed, lesion in rounds:
                table = _table(changed, expected, aligned.positions[i])
                voxels = _drawn(lesion, look.mask, rng)
                rows.append(table[voxels])
                answers.append(lesion[look.mask][voxels])
        self.trees_ = HistGradientBoostingRegressor(
            max_iter=int(self.n_trees),
            learning_rate=0.08,
            min_samples_leaf=60,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=0,
        )
        with one_thread():
            # Without weights, which take the trees many times as long.
            self.trees_.fit(np.concatenate(rows), np.concatenate(answers).astype(np.float64))

    # Scoring
    # --------------------------------------------------------------------------------------

    def _score(self, look: Look, positions: NDArray[np.float32]) -> NDArray[np.float32]:
        table = _table(look, template_at(self.template_, positions), positions)
        with one_thread():
            return self._smooth_scores(np.clip(self.trees_.predict(table), 0, 1), look.mask)

    # Model files
    # ----------------------------------------------------------------------------------

    def _check_restored(self) -> None:
        super()._check_restored()
        is_booster = isinstance(self.trees_, HistGradientBoostingRegressor)
        if not is_booster or getattr(self.trees_, "n_features_in_", 0) != _N_COLUMNS:
            raise ValueError(f"its trees do not look at {_N_COLUMNS} columns")


def _drawn(
    lesion: NDArray[np.bool_], mask: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw training voxels, as indices (n,) into the voxels of the mask."""
    around = lesion
    if lesion.any():
        around = ndimage.binary_dilation(lesion, iterations=_SHELL) & ~lesion
    inside, shell = np.flatnonzero(lesion[mask]), np.flatnonzero(around[mask])
    # The same share of both: with fewer voxels from outside, learned borders would move outward.
    share = min(1.0, _INSIDE / max(len(inside), 1), _AROUND / max(len(shell), 1))
    near = [
        rng.choice(voxels, round(share * len(voxels)), replace=False) for voxels in (inside, shell)
    ]
    far = np.flatnonzero(~(lesion | around)[mask])
    return np.concatenate([*near, rng.choice(far, min(_FAR, len(far)), replace=False)])


def _table(look: Look, expected: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """Compute the features of each voxel of the brain, (n_voxels, n_columns)."""
    mask = look.mask

    def smooth(volume: NDArray, sd: float) -> NDArray[np.float32]:
        return masked_smoothing(volume, mask, sd)

    mean, mean_sd, spread, spread_sd, low, high, share = expected
    # Zeros outside the brain would be the minimum of every voxel at its border.
    filled = look.mean[nearest_inside(mask)]
    lowest, highest = ndimage.minimum_filter(filled, 3), ndimage.maximum_filter(filled, 3)
    deviations = Deviations.of(look, expected)
    deviation, z = deviations.mean, deviations.z_mean
    spread_deviation, spread_z = deviations.spread, deviations.z_spread
    # The deviation beyond all healthy voxels nearby: misregistration explains no more than these.
    beyond = deviation - np.clip(deviation, low - mean, high - mean)

    # The voxel itself: in the scan, in healthy scans, and the deviation between the two.
    columns = [look.mean, look.spread]
    columns += [mean, spread, mean_sd, spread_sd, share]
    columns += [deviation, z, spread_deviation, spread_z, beyond]
    # Its neighbors: range of 3 and of 5 voxels, median, and the level of healthy scans.
    columns += [lowest, highest]
    columns += [ndimage.minimum_filter(lowest, 3), ndimage.maximum_filter(highest, 3)]
    columns += [ndimage.median_filter(filled, 3), smooth(mean, 2.0), smooth(spread, 2.0)]
    # Its surroundings, ever wider: smoothed signals and deviations, and the local SD.
    near_deviations = [smooth(deviation, sd) for sd in _NEAR]
    for sd, near_deviation in zip(_NEAR, near_deviations, strict=True):
        columns += [smooth(look.mean, sd), near_deviation]
    for sd in _NEAR[:3]:
        columns += [smooth(look.spread, sd)]
    for sd in _WIDE:
        local_mean = smooth(look.mean, sd)
        columns += [np.sqrt(np.maximum(smooth(look.mean**2, sd) - local_mean**2, 0))]
        differences = (z, spread_deviation, spread_z, beyond, np.abs(z))
        columns += [smooth(volume, sd) for volume in differences]
    # The largest deviation nearby: at the border of a lesion the deviation is half of it.
    for size in _REACH:
        columns += [ndimage.minimum_filter(near_deviations[1], size)]
        columns += [ndimage.maximum_filter(near_deviations[1], size)]
    columns += [smooth(deviation, 5.0), smooth(np.abs(z), 3.5)]
    # Where it lies: depth below the border of the brain, and the position in the template.
    columns += [ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1], *positions]
    return np.stack([np.asarray(c[mask], dtype=np.float32) for c in columns], axis=1)
