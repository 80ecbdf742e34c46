"""The project's own detector: trees that tell healthy tissue from lesions that were put into healthy scans."""

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
from dmrifit.model_files.regressor_file import dumped, loaded, trees

__all__ = ["ImplantDetector"]

_TREES = "trees.skops"
#: Weight of the median variance against that of a place, in scans.
_PRIOR_SCANS = 4.0
#: Voxels that are learned from in a scan: of a lesion, of what is around it, and of all else, whose weight is larger.
_INSIDE, _AROUND, _FAR, _WEIGHT = 500, 1500, 600, 4.0
#: Voxels around a lesion where its border is learned: there as large a share of voxels is drawn as inside.
_SHELL = 4
#: Standard deviations in voxels of neighborhoods.
_NEAR, _WIDE = (0.7, 1.2, 2.0, 3.5), (1.2, 2.0)
_REACH = (5, 9)  # voxels
_LEAST_SD = 1e-3
#: Share of scans that have to have a place.
_ENOUGH = 0.1
#: How much signals of a scan vary; constants differ by roundings.
_LEAST_CONTRAST = 1e-7
#: Scans that are learned from, and voxels along an axis.
_LEAST_SCANS, _LEAST_SIZE = 3, 4
#: Share of healthy voxels above the threshold.
_RATE = 0.002
#: Columns of the table that trees look at.
_N_COLUMNS = 52


@register
class ImplantDetector(ArrayDetector):
    """
    Score of a voxel: how sure trees are that it belongs to a lesion, having seen lesions put into healthy scans.

    The project's own method; no label of a patient is needed. Three things make it:

    1. *Alignment.* What registration left over is most of what a map of deviations shows. Healthy scans are aligned to
       their mean by an affine map and a smooth warp, the mean gets sharper by it, and each scan is aligned to that mean
       before it is scored. Displacements are smoother than a lesion is large, and large differences pull no harder than
       moderate ones, so that a lesion is not explained away.
    2. *Lesions to learn from.* `anomaly.generators.implants` puts tissue of faster or slower diffusion, the same in all
       directions, with soft edges, into healthy scans. Noise alone, as ellipsoids of noise are, would teach what no
       tumor looks like.
    3. *A small discriminator.* Gradient boosted trees look at the mean signal and its spread over directions in a voxel
       and in neighborhoods of several sizes, at the healthy mean, its variance and how the scan deviates from both,
       and at the place. Several neighborhoods tell compact lesions from thin folds that hold some fluid, which a single
       mean signal cannot; a deviation to either side counts. A scan that is learned from is compared with the mean of
       all others.

    Only mean and spread over directions are used, so that any set of directions will do as long as it is the same for
    all scans. Beside the scans of the caller, ``fit`` holds 11 numbers for each voxel of each scan and the table that
    trees learn from (28 scans of 90 × 90 × 54 voxels: about 0.7 GB by that count). Sizes of neighborhoods are in
    voxels, and were chosen on voxels of 4 mm.

    The lesions that are put in resemble those of `anomaly.simulate_dmri`, whose ranges of diffusivity and soft edges
    they share: on synthetic patients this detector knows what it looks for, and how it does in people is not known.

    Parameters
    ----------
    smoothness : float, optional, default=2.0
        Standard deviation in voxels of the Gaussian that smooths the warp; None for an affine map alone.
    n_implants : int, default=4
        How many lesions are put into each healthy scan, one at a time; each scan is learned from without, too.
    n_trees : int, default=200
        Number of boosted trees.
    map_smoothing : float, default=0.5
        Standard deviation of a Gaussian in voxels, by which scores are smoothed inside the mask.
    threshold : threshold rule, optional
        As in `AnomalyDetector`, but by default ``HealthyRateThreshold(0.002)``: so few healthy voxels have a score of
        note that at 1 % borders of lesions lie too far out.
    calibration : float, int or None, default=0.25
        As in `AnomalyDetector`.
    scale : {None, "image"}, default=None
        As in `AnomalyDetector`.
    random_state : int, RandomState or None, default=None
        Seed of the lesions that are put in and of the voxels that are learned from.

    Attributes
    ----------
    template_ : ndarray of shape (7, x, y, z)
        Healthy mean and standard deviation of mean signal and spread, smallest and largest mean signal of the 26
        neighbors, share of scans that have the voxel.
    guide_ : ndarray of shape (3, x, y, z)
        Images by which scans are aligned.
    scales_ : ndarray of shape (2,)
        Standard deviations of mean signal and spread over the brain.
    trees_ : sklearn.ensemble.HistGradientBoostingRegressor
        Fitted by least squares to 0 and 1.

    See Also
    --------
    VoxelwiseGaussian : The reference: deviations from healthy scans at the same place.
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

    # Learning -------------------------------------------------------------------------------------

    def _fit_scans(self, scans: Scans) -> None:
        if min(scans.shape[:3]) < _LEAST_SIZE or len(scans) < _LEAST_SCANS:
            raise ValueError(
                f"{len(scans)} scans to learn from, of {' × '.join(map(str, scans.shape[:3]))} voxels; alignment and a "
                f"healthy variance need {_LEAST_SCANS} scans and {_LEAST_SIZE} voxels along each axis"
            )
        self._learn([_look(scans, i) for i in range(len(scans))])

    def _learn(self, looks: list[Look]) -> None:
        """Learn from healthy scans: their mean, then what lesions in them look like."""
        positions, stacks = self._aligned(looks)
        self._learn_trees(looks, positions, stacks)

    def _aligned(self, looks: list[Look]) -> tuple[list[NDArray], NDArray]:
        """Align scans to their mean, which gets sharper by it; give their positions, and them in one place."""
        self.scales_ = np.array([
            np.mean([look.mean[look.mask].std() for look in looks]),
            np.mean([look.spread[look.mask].std() for look in looks]),
        ])  # fmt: skip
        if not (self.scales_ > _LEAST_CONTRAST).all():
            means, spreads = self.scales_
            raise ValueError(
                f"the healthy scans are the same everywhere: mean signals vary by {means:.3g} and their spreads over "
                f"directions by {spreads:.3g} in a scan; give scans with contrast, of several directions"
            )
        images = [guide_images(look.mean, look.spread, look.mask, self.scales_) for look in looks]
        grid = np.indices(looks[0].mask.shape, dtype=np.float32)
        stacks = _stacked(looks, [grid] * len(looks))
        for smoothness in (None, self.smoothness):
            guide = _guide(stacks, self.scales_)
            positions = [
                align(i, look.mask, guide, smoothness=smoothness)
                for i, look in zip(images, looks, strict=True)
            ]
            # All scans may move together; the mean has to stay where it was.
            drift = np.mean(positions, axis=0) - grid
            positions = [one - drift for one in positions]
            stacks = _stacked(looks, [inverted(one) for one in positions])
        self.guide_ = _guide(stacks, self.scales_)
        self.template_ = _template(stacks)
        # As new scans are: trees have to see deviations from the sharpest mean.
        return [
            align(one, look.mask, self.guide_, smoothness=self.smoothness)
            for one, look in zip(images, looks, strict=True)
        ], stacks

    def _learn_trees(self, looks: list[Look], positions: list[NDArray], stacks: NDArray) -> None:
        seed = seed_from(self.random_state)
        rows, answers, weights = [], [], []
        for i, look in enumerate(looks):
            rng = np.random.default_rng(seed_for(seed, "implants", i))
            # A scan is not among those that it is compared with, as new ones are not.
            others = _template(np.delete(stacks, i, axis=0))
            seen, floor = _seen(others, positions[i]), noise_floor(look)
            for k in range(int(self.n_implants) + 1):
                changed, lesion = (
                    implant(look, floor, rng)
                    if k
                    else (look, np.zeros(look.mask.shape, dtype=bool))
                )
                table = _table(changed, seen, positions[i])
                for chosen, weight in _drawn(lesion, look.mask, rng):
                    rows.append(table[chosen])
                    answers.append(lesion[look.mask][chosen])
                    weights.append(np.full(len(chosen), weight))
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

    # Scoring --------------------------------------------------------------------------------------

    def _score_scan(self, scans: Scans, i: int) -> NDArray[np.floating]:
        return self._score(_look(scans, i))

    def _score(self, look: Look) -> NDArray[np.float32]:
        images = guide_images(look.mean, look.spread, look.mask, self.scales_)
        positions = align(images, look.mask, self.guide_, smoothness=self.smoothness)
        table = _table(look, _seen(self.template_, positions), positions)
        with one_thread():
            found = np.clip(self.trees_.predict(table), 0, 1)
        score = np.zeros(look.mask.shape, dtype=np.float32)
        score[look.mask] = found
        return _Smoother(look.mask)(score, self.map_smoothing)

    # Model files ----------------------------------------------------------------------------------

    def _other_files(self) -> dict[str, bytes]:
        return {_TREES: dumped(self.trees_, None, {}, [])}

    def _restore_others(self, files: Mapping[str, bytes]) -> None:
        refuse_keys(dict(files), {_TREES}, "file", complete=True)
        found = loaded(files[_TREES], None, [], {})
        if (
            not isinstance(found, HistGradientBoostingRegressor)
            or getattr(found, "n_features_in_", 0) != _N_COLUMNS
        ):
            raise RefusedError(f"its trees do not look at {_N_COLUMNS} columns")
        for parent, left, right, inner, feature, n_seen in trees(found):
            reachable = (np.minimum(left, right)[inner] > parent[inner]).all()
            inside = (np.maximum(left, right)[inner] < len(parent)).all()
            seen = (feature[inner] >= 0).all() and (feature[inner] < n_seen).all()
            if not (reachable and inside and seen and n_seen == _N_COLUMNS):
                raise RefusedError("one of its trees has branches that lead nowhere")
        self.trees_ = found

    def _check_restored(self) -> None:
        for name, shape in (
            ("template_", (7, *self.shape_)),
            ("guide_", (3, *self.shape_)),
            ("scales_", (2,)),
        ):
            if getattr(self, name).shape != shape:
                raise RefusedError(
                    f"its array {name} has the shape {getattr(self, name).shape} instead of {shape}"
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
    return Look(
        np.where(mask, mean_signal(signal), 0), np.where(mask, signal_spread(signal), 0), mask
    )


def _drawn(
    lesion: NDArray[np.bool_], mask: NDArray[np.bool_], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Draw the voxels that are learned from, as numbers in the mask, with their weight."""
    around = (
        ndimage.binary_dilation(lesion, iterations=_SHELL) & ~lesion if lesion.any() else lesion
    )
    inside, shell = np.flatnonzero(lesion[mask]), np.flatnonzero(around[mask])
    # One share for both: were fewer drawn outside, borders would move outward.
    share = min(1.0, _INSIDE / max(len(inside), 1), _AROUND / max(len(shell), 1))
    for where in (inside, shell):
        yield rng.choice(where, round(share * len(where)), replace=False), 1.0
    far = np.flatnonzero(~(lesion | around)[mask])
    yield rng.choice(far, min(_FAR, len(far)), replace=False), _WEIGHT


def _stacked(looks: list[Look], positions: list[NDArray]) -> NDArray[np.float32]:
    """Bring scans into one place, (n_scans, 3, x, y, z): mean and spread times the share of brain, and that share."""
    return np.stack([
        np.stack([sampled(volume.astype(np.float32), where) for volume in (look.mean, look.spread, look.mask)])
        for look, where in zip(looks, positions, strict=True)
    ])  # fmt: skip


def _guide(stacks: NDArray, scales: NDArray) -> NDArray[np.float32]:
    weight = stacks[:, 2].sum(axis=0)
    mean, spread = (stacks[:, k].sum(axis=0) / np.maximum(weight, 0.5) for k in (0, 1))
    return guide_images(mean, spread, weight / len(stacks), scales)


def _template(stacks: NDArray) -> NDArray[np.float32]:
    """Give mean and standard deviation of mean signal and spread, its smallest and largest nearby, share of brain."""
    weight = stacks[:, 2].sum(axis=0)
    known = weight > _ENOUGH * len(stacks)
    inside = stacks[:, 2] > 0.6
    counts = inside.sum(axis=0)
    made = []
    for k in (0, 1):
        center = stacks[:, k].sum(axis=0) / np.maximum(weight, 0.5)
        rest = np.where(inside, stacks[:, k] / np.maximum(stacks[:, 2], 0.6) - center, 0)
        squares = (rest**2).sum(axis=0)
        often = counts > 0.5 * len(stacks)
        typical = (
            np.median(squares[often] / np.maximum(counts[often] - 1, 1)) if often.any() else 0.0
        )
        variance = (squares + _PRIOR_SCANS * typical) / (np.maximum(counts - 1, 0) + _PRIOR_SCANS)
        made += [center, np.sqrt(variance)]
    nearest = tuple(
        ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    )
    mean, mean_sd, spread, spread_sd = (one[nearest] for one in made)
    low, high = ndimage.minimum_filter(mean, 3), ndimage.maximum_filter(mean, 3)
    return np.stack([mean, mean_sd, spread, spread_sd, low, high, weight / len(stacks)]).astype(
        np.float32
    )


def _seen(template: NDArray, positions: NDArray) -> NDArray[np.float32]:
    return np.stack([sampled(one, positions) for one in template])


def _table(look: Look, seen: NDArray, positions: NDArray) -> NDArray[np.float32]:
    """Tell of each voxel of the brain what trees look at, (n_voxels, n_columns)."""
    mask, smooth = look.mask, _Smoother(look.mask)
    mean, mean_sd, spread, spread_sd, low, high, share = seen
    nearest = tuple(
        ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    )
    filled = look.mean[nearest]
    small, large = ndimage.minimum_filter(filled, 3), ndimage.maximum_filter(filled, 3)
    off = look.mean - mean
    off = np.where(mask, off - np.median(off[mask]), 0)
    off_spread = np.where(mask, look.spread - spread, 0)
    scaled, scaled_spread = (
        off / np.maximum(mean_sd, _LEAST_SD),
        off_spread / np.maximum(spread_sd, _LEAST_SD),
    )
    # What no healthy voxel nearby explains.
    beyond = off - np.clip(off, low - mean, high - mean)
    columns = [
        look.mean,
        look.spread,
        mean,
        spread,
        mean_sd,
        spread_sd,
        share,
        off,
        scaled,
        off_spread,
        scaled_spread,
    ]
    columns += [
        beyond,
        small,
        large,
        ndimage.minimum_filter(small, 3),
        ndimage.maximum_filter(large, 3),
    ]
    columns += [ndimage.median_filter(filled, 3), smooth(mean, 2.0), smooth(spread, 2.0)]
    for sd in _NEAR:
        columns += [smooth(look.mean, sd), smooth(off, sd)]
    for sd in _NEAR[:3]:
        columns += [smooth(look.spread, sd)]
    for sd in _WIDE:
        local = smooth(look.mean, sd)
        columns += [np.sqrt(np.maximum(smooth(look.mean**2, sd) - local**2, 0))]
        columns += [
            smooth(one, sd) for one in (scaled, off_spread, scaled_spread, beyond, np.abs(scaled))
        ]
    # How far the most anomalous voxels nearby deviate: a border is where the deviation is half of that.
    local = smooth(off, 1.2)
    for size in _REACH:
        columns += [ndimage.minimum_filter(local, size), ndimage.maximum_filter(local, size)]
    columns += [smooth(off, 5.0), smooth(np.abs(scaled), 3.5)]
    columns += [ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1], *positions]
    return np.stack([np.asarray(one[mask], dtype=np.float32) for one in columns], axis=1)
