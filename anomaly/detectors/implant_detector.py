"""The project's own detector: boosted trees trained on lesions implanted into healthy scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingRegressor

from anomaly.detectors.alignment import align, guide_images, inverted, sampled
from anomaly.detectors.array_detector import ArrayDetector
from anomaly.detectors.base import Scans
from anomaly.detectors.features import mean_signal, signal_spread
from anomaly.detectors.thresholds import HealthyRateThreshold
from anomaly.generators.implants import Look, implant, noise_floor
from dmrifit._utils.checks import check_number
from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from dmrifit._utils.threads import one_thread
from dmrifit.io.parameter_json import RefusedError, refuse_keys
from dmrifit.model_files.registry import register
from dmrifit.model_files.regressor_file import dumped, loaded

__all__ = ["ImplantDetector"]

_TREES = "trees.skops"
#: Weight of the median variance against that of a voxel, in scans.
_PRIOR_SCANS = 4.0
#: Training voxels of a scan: in a lesion, around it, and elsewhere, and the larger weight of the
#: latter.
_INSIDE, _AROUND, _FAR = 500, 1500, 600
_FAR_WEIGHT = 4.0
#: Voxels around a lesion where its border is learned: the same share of voxels is drawn there as
#: inside.
_SHELL = 4
#: Standard deviations in voxels of neighborhoods.
_NEAR, _WIDE = (0.7, 1.2, 2.0, 3.5), (1.2, 2.0)
_REACH = (5, 9)  # voxels
_LEAST_SD = 1e-3
#: Share of scans that must contain a voxel for the template to use it.
_LEAST_COVERAGE = 0.1
#: Share of brain in a resampled voxel from which on a scan counts as containing it.
_INSIDE_SHARE = 0.6
#: Least standard deviation of the signals of a scan; that of constants is a rounding error.
_LEAST_CONTRAST = 1e-7
#: Training scans, and voxels along an axis.
_LEAST_SCANS, _LEAST_SIZE = 3, 4
#: Share of healthy voxels above the threshold.
_RATE = 0.002
#: Columns of the feature table.
_N_COLUMNS = 52


@register
class ImplantDetector(ArrayDetector):
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
    smoothness : float, optional, default=2.0
        Standard deviation in voxels of the Gaussian that smooths the warp; None for an affine map
        alone.
    n_implants : int, default=4
        Number of lesions implanted into each healthy scan, one at a time; the scan without a
        lesion is used, too.
    n_trees : int, default=200
        Number of boosted trees.
    map_smoothing : float, default=0.5
        Standard deviation of a Gaussian in voxels, by which scores are smoothed inside the mask.
    threshold : threshold rule, optional
        As in `AnomalyDetector`, but by default ``HealthyRateThreshold(0.002)``: healthy voxels
        have so low scores that at 1 % lesions would be outlined too large.
    calibration : float, int or None, default=0.25
        As in `AnomalyDetector`.
    scale : {None, "image"}, default=None
        As in `AnomalyDetector`.
    random_state : int, RandomState or None, default=None
        Seed of the implanted lesions and of the training voxels.

    Attributes
    ----------
    template_ : ndarray of shape (7, x, y, z)
        Healthy mean and standard deviation of mean signal and spread, smallest and largest mean
        signal of the 26 neighbors, share of scans whose brain contains the voxel.
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

    _array_names: ClassVar[tuple[str, ...]] = ("template_", "guide_", "scales_")

    def __init__(
        self,
        *,
        smoothness: float | None = 2.0,
        n_implants: int = 4,
        n_trees: int = 200,
        map_smoothing: float = 0.5,
        threshold: Any = None,
        calibration: float | int | None = 0.25,
        scale: str | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.smoothness = smoothness
        self.n_implants = n_implants
        self.n_trees = n_trees
        self.map_smoothing = map_smoothing
        self.threshold = threshold
        self.calibration = calibration
        self.scale = scale
        self.random_state = random_state

    def _check_parameters(self) -> None:
        check_number("n_implants", self.n_implants, least=1, whole=True)
        check_number("n_trees", self.n_trees, least=1, whole=True)
        if self.smoothness is not None:
            check_number("smoothness", self.smoothness)
            if not self.smoothness:
                raise ValueError("smoothness must be a number above 0, or None, not 0")
        check_number("map_smoothing", self.map_smoothing)

    def _new_threshold(self) -> Any:
        if self.threshold is None and self.calibration is not None:
            return HealthyRateThreshold(_RATE)
        return super()._new_threshold()

    # Learning
    # -------------------------------------------------------------------------------------

    def _fit_scans(self, scans: Scans) -> None:
        if min(scans.shape[:3]) < _LEAST_SIZE or len(scans) < _LEAST_SCANS:
            raise ValueError(
                f"{len(scans)} scans to learn from, of {' × '.join(map(str, scans.shape[:3]))} "
                f"voxels; alignment and a healthy variance need {_LEAST_SCANS} scans and "
                f"{_LEAST_SIZE} voxels along each axis"
            )
        self._learn([_look(scans, i) for i in range(len(scans))])

    def _learn(self, looks: list[Look]) -> None:
        """Learn the template of healthy scans, then the appearance of lesions in them."""
        positions, stacks = self._align_training_scans(looks)
        self._learn_trees(looks, positions, stacks)

    def _align_training_scans(self, looks: list[Look]) -> tuple[list[NDArray], NDArray]:
        """Align scans to their mean, and return their positions in it and the aligned scans."""
        self.scales_ = np.array([
            np.mean([look.mean[look.mask].std() for look in looks]),
            np.mean([look.spread[look.mask].std() for look in looks]),
        ])  # fmt: skip
        if not (self.scales_ > _LEAST_CONTRAST).all():
            means, spreads = self.scales_
            raise ValueError(
                f"the healthy scans are the same everywhere: mean signals vary by {means:.3g} and "
                f"their spreads over directions by {spreads:.3g} in a scan; give scans with "
                "contrast, of several directions"
            )
        images = [guide_images(look.mean, look.spread, look.mask, self.scales_) for look in looks]
        grid = np.indices(looks[0].mask.shape, dtype=np.float32)
        stacks = _stacked(looks, [grid] * len(looks))
        # An affine round first: its mean is sharp enough to be warped to.
        for smoothness in (None, self.smoothness):
            guide = _guide(stacks, self.scales_)
            positions = _all_aligned(images, looks, guide, smoothness)
            # Without this all scans could drift away together from their first mean.
            drift = np.mean(positions, axis=0) - grid
            positions = [position - drift for position in positions]
            stacks = _stacked(looks, [inverted(position) for position in positions])
        self.guide_ = _guide(stacks, self.scales_)
        self.template_ = _template(stacks)
        # Align once more, as new scans will be: trees must see deviations from the sharpest mean.
        return _all_aligned(images, looks, self.guide_, self.smoothness), stacks

    def _learn_trees(self, looks: list[Look], positions: list[NDArray], stacks: NDArray) -> None:
        seed = seed_from(self.random_state)
        rows, answers, weights = [], [], []
        for i, look in enumerate(looks):
            rng = np.random.default_rng(seed_for(seed, "implants", i))
            # Leave the scan out of its template, as a new scan is not part of it either.
            template = _template(np.delete(stacks, i, axis=0))
            expected, floor = _template_at(template, positions[i]), noise_floor(look)
            for k in range(int(self.n_implants) + 1):
                # The first round shows the scan without a lesion.
                changed, lesion = look, np.zeros(look.mask.shape, dtype=bool)
                if k > 0:
                    changed, lesion = implant(look, floor, rng)
                table = _table(changed, expected, positions[i])
                for voxels, weight in _drawn(lesion, look.mask, rng):
                    rows.append(table[voxels])
                    answers.append(lesion[look.mask][voxels])
                    weights.append(np.full(len(voxels), weight))
        self.trees_ = HistGradientBoostingRegressor(
            max_iter=int(self.n_trees),
            learning_rate=0.08,
            min_samples_leaf=60,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=0,
        )
        with one_thread():
            self.trees_.fit(
                np.concatenate(rows),
                np.concatenate(answers).astype(np.float64),
                sample_weight=np.concatenate(weights),
            )

    # Scoring
    # --------------------------------------------------------------------------------------

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        return self._score(_look(scans, i))

    def _score(self, look: Look) -> NDArray[np.float32]:
        images = guide_images(look.mean, look.spread, look.mask, self.scales_)
        positions = align(images, look.mask, self.guide_, smoothness=self.smoothness)
        table = _table(look, _template_at(self.template_, positions), positions)
        score = np.zeros(look.mask.shape, dtype=np.float32)
        with one_thread():
            score[look.mask] = np.clip(self.trees_.predict(table), 0, 1)
        return _Smoother(look.mask)(score, self.map_smoothing)

    # Model files
    # ----------------------------------------------------------------------------------

    def _other_files(self) -> dict[str, bytes]:
        return {_TREES: dumped(self.trees_, None, {}, [])}

    def _restore_others(self, files: Mapping[str, bytes]) -> None:
        refuse_keys(dict(files), {_TREES}, "file", complete=True)
        booster = loaded(files[_TREES], None, [], {})
        is_booster = isinstance(booster, HistGradientBoostingRegressor)
        if not is_booster or getattr(booster, "n_features_in_", 0) != _N_COLUMNS:
            raise RefusedError(f"its trees do not look at {_N_COLUMNS} columns")
        self.trees_ = booster

    def _check_restored(self) -> None:
        self._check_shapes(
            {
                "template_": (7, *self.shape_),
                "guide_": (3, *self.shape_),
                "scales_": (2,),
            }
        )


class _Smoother:
    """Smooths inside a mask; the weights of each Gaussian are computed once."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        self.weights: dict[float, NDArray] = {}

    def __call__(self, volume: NDArray, sd: float) -> NDArray[np.float32]:
        inside = np.where(self.mask, volume, 0).astype(np.float32)
        if not sd:
            return inside
        if sd not in self.weights:
            weight = ndimage.gaussian_filter(self.mask.astype(np.float32), sd, mode="constant")
            self.weights[sd] = np.where(self.mask, weight, 1)
        total = ndimage.gaussian_filter(inside, sd, mode="constant")
        return np.where(self.mask, total / self.weights[sd], 0).astype(np.float32)


def _look(scans: Scans, i: int) -> Look:
    signal, mask = scans.signal(i), scans.mask(i)
    mean = np.where(mask, mean_signal(signal), 0)
    spread = np.where(mask, signal_spread(signal), 0)
    return Look(mean, spread, mask)


def _drawn(
    lesion: NDArray[np.bool_], mask: NDArray[np.bool_], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Draw training voxels, as indices into the mask, with their weight."""
    around = lesion
    if lesion.any():
        around = ndimage.binary_dilation(lesion, iterations=_SHELL) & ~lesion
    inside, shell = np.flatnonzero(lesion[mask]), np.flatnonzero(around[mask])
    # The same share of both: with fewer voxels from outside, learned borders would move outward.
    share = min(1.0, _INSIDE / max(len(inside), 1), _AROUND / max(len(shell), 1))
    for voxels in (inside, shell):
        yield rng.choice(voxels, round(share * len(voxels)), replace=False), 1.0
    far = np.flatnonzero(~(lesion | around)[mask])
    yield rng.choice(far, min(_FAR, len(far)), replace=False), _FAR_WEIGHT


def _all_aligned(
    images: list[NDArray], looks: list[Look], guide: NDArray, smoothness: float | None
) -> list[NDArray]:
    positions = []
    for image, look in zip(images, looks, strict=True):
        positions.append(align(image, look.mask, guide, smoothness=smoothness))
    return positions


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


def _template(stacks: NDArray) -> NDArray[np.float32]:
    """Compute the template of aligned scans, as described for ``template_``."""
    weight = stacks[:, 2].sum(axis=0)
    inside = stacks[:, 2] > _INSIDE_SHARE
    nearest = _nearest_inside(weight > _LEAST_COVERAGE * len(stacks))
    moments = []
    for k in (0, 1):
        center = stacks[:, k].sum(axis=0) / np.maximum(weight, 0.5)
        # Resampling mixed signals with the 0 outside the brain; the share of brain undoes that.
        signals = stacks[:, k] / np.maximum(stacks[:, 2], _INSIDE_SHARE)
        squares = (np.where(inside, signals - center, 0) ** 2).sum(axis=0)
        sd = _shrunk_sd(squares, inside.sum(axis=0), len(stacks))
        moments += [center[nearest], sd[nearest]]
    low, high = ndimage.minimum_filter(moments[0], 3), ndimage.maximum_filter(moments[0], 3)
    return np.stack([*moments, low, high, weight / len(stacks)]).astype(np.float32)


def _shrunk_sd(squares: NDArray, counts: NDArray, n_scans: int) -> NDArray:
    """Compute standard deviations from sums of squares, shrunk towards the median variance."""
    typical = 0.0
    common = counts > 0.5 * n_scans
    if common.any():
        typical = np.median(squares[common] / np.maximum(counts[common] - 1, 1))
    variance = (squares + _PRIOR_SCANS * typical) / (np.maximum(counts - 1, 0) + _PRIOR_SCANS)
    return np.asarray(np.sqrt(variance))


def _nearest_inside(inside: NDArray[np.bool_]) -> tuple[NDArray, ...]:
    """Find the indices of the nearest voxel inside a mask, for every voxel."""
    return tuple(
        ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    )


def _template_at(template: NDArray, positions: NDArray) -> NDArray[np.float32]:
    return np.stack([sampled(volume, positions) for volume in template])


def _table(look: Look, expected: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """Compute the features of each voxel of the brain, (n_voxels, n_columns)."""
    mask, smooth = look.mask, _Smoother(look.mask)
    mean, mean_sd, spread, spread_sd, low, high, share = expected
    # Zeros outside the brain would be the minimum of every voxel at its border.
    filled = look.mean[_nearest_inside(mask)]
    small, large = ndimage.minimum_filter(filled, 3), ndimage.maximum_filter(filled, 3)
    off = look.mean - mean
    # Scanners differ in the level of the whole brain, which is no anomaly.
    off = np.where(mask, off - np.median(off[mask]), 0)
    off_spread = np.where(mask, look.spread - spread, 0)
    scaled = off / np.maximum(mean_sd, _LEAST_SD)
    scaled_spread = off_spread / np.maximum(spread_sd, _LEAST_SD)
    # The deviation beyond all healthy voxels nearby: misregistration explains no more than these.
    beyond = off - np.clip(off, low - mean, high - mean)
    columns = [look.mean, look.spread, mean, spread, mean_sd, spread_sd, share]
    columns += [off, scaled, off_spread, scaled_spread]
    columns += [beyond, small, large]
    columns += [ndimage.minimum_filter(small, 3), ndimage.maximum_filter(large, 3)]
    columns += [ndimage.median_filter(filled, 3), smooth(mean, 2.0), smooth(spread, 2.0)]
    for sd in _NEAR:
        columns += [smooth(look.mean, sd), smooth(off, sd)]
    for sd in _NEAR[:3]:
        columns += [smooth(look.spread, sd)]
    for sd in _WIDE:
        local = smooth(look.mean, sd)
        columns += [np.sqrt(np.maximum(smooth(look.mean**2, sd) - local**2, 0))]
        deviations = (scaled, off_spread, scaled_spread, beyond, np.abs(scaled))
        columns += [smooth(volume, sd) for volume in deviations]
    # The largest deviation nearby: at the border of a lesion the deviation is half of it.
    local = smooth(off, 1.2)
    for size in _REACH:
        columns += [ndimage.minimum_filter(local, size), ndimage.maximum_filter(local, size)]
    columns += [smooth(off, 5.0), smooth(np.abs(scaled), 3.5)]
    columns += [ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1], *positions]
    return np.stack([np.asarray(c[mask], dtype=np.float32) for c in columns], axis=1)
