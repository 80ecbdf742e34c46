"""Ranking of candidate boxes by a forest that has learned from experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.utils.validation import check_is_fitted

from dmrifit._utils.checks import Count, Within, check_fields, check_number
from dmrifit._utils.progress import progress
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit._utils.threads import check_jobs, one_thread
from dmrifit.io.parameter_json import refuse_keys
from dmrifit.model_files.registry import register
from placement.box.voxel import MM3_PER_ML, Voxel, expert_voxels
from placement.learned.features import (
    FEATURES,
    FreeTumorSearch,
    Surroundings,
    candidate_boxes,
    describe_boxes,
    moved_off,
)
from placement.search.objective import PlacementObjective
from placement.search.optimizer import VoxelOptimizer
from placement.search.scene import Scene, scene_list
from placement.search.scene_search import Search

__all__ = ["VoxelRanker"]

#: Cubes are tried in these quantiles of experts' volumes.
VOLUME_QUANTILES = (0.25, 0.5, 0.75, 0.9)

#: Expected Dice coefficients that agree in so many decimals are tied; the earlier box goes first.
SCORE_DIGITS = 9

#: How many boxes, the best, are moved off excluded regions.
N_MOVED = 6

#: Part of the features that each split of a tree draws from: in 375 cases of three seeds, 0.25
#: agreed better with experts than 0.5 or 1.
MAX_FEATURES = 0.25

#: Two boxes that share more than this (Dice) are one candidate.
SAME_DICE = 0.8

_FOREST = "forest.skops"
#: Name of the forest among the regressors of model files.
_ALGORITHM = "ETR"


@register
@dataclass(repr=False, eq=False)
class VoxelRanker(BaseEstimator):
    """
    Select from many boxes the one that experts agree with most.

    The objective function has many maxima that are nearly equal, and its boxes all hold about the
    same volume. Here the boxes that a short search finds are joined by cubes in the middle of the
    tumor, weighted more and more by depth, and at its thickest places, in volumes that experts
    chose, as they are and stretched to the tumor. What is excluded counts as no tumor; the best
    boxes are moved off it. A forest of extremely randomized trees learns from experts' boxes which
    Dice coefficient to expect of each, from its depth, size, purity and rotation, and how these
    differ from the case's other boxes.

    Parameters
    ----------
    optimizer : VoxelOptimizer, default=None
        Finds candidates, and says which boxes are allowed. By its parameters: what it has fitted
        is not used.
    n_candidates : int, default=15
        Boxes of the optimizer at most.
    n_places : int, default=1
        Thickest places that cubes are tried at, beside four middles; 0 for none. More candidates
        are not always better: the best-looking of many is more often a mistake.
    target : {"mean", "closest"}, default="closest"
        Whether the mean of the Dice coefficients with a case's experts is learned, or the largest.
    n_estimators : int, default=100
        Trees.
    min_samples_leaf : int, default=100
        Boxes in a leaf at least. Those of one case have much in common, so that leaves must hold
        several cases.
    verbose : bool, default=False
        Whether to show progress.
    n_jobs : int, default=None
        Cases that are searched in parallel, by joblib's rule. The result is the same.
    random_state : int, RandomState or None, default=None
        Seed of the trees, and of the optimizer if it has no number of its own.

    Attributes
    ----------
    optimizer_ : VoxelOptimizer
        What finds candidates.
    forest_ : ExtraTreesRegressor
        What ranks them, by the features of `placement.learned.features.FEATURES`.
    volumes_ : ndarray of shape (4,)
        Volumes of the cubes in mL, quantiles of the experts' volumes.
    feature_importances_ : ndarray of shape (n_features,)
        How much each feature serves the forest; they add up to 1.

    See Also
    --------
    VoxelOptimizer : The largest objective, without experts.

    Examples
    --------
    >>> from placement import VoxelRanker, simulate_gliomas
    >>> scenes, voxels = simulate_gliomas(6, random_state=0)
    >>> ranker = VoxelRanker(n_candidates=5, n_places=2, n_estimators=10, random_state=0)
    >>> ranker.fit(scenes[:5], voxels[:5]).predict(scenes[5:]).shape
    (1, 9)
    """

    optimizer: VoxelOptimizer | None = None
    _: KW_ONLY
    n_candidates: Count = 15
    n_places: Annotated[int, Within()] = 1
    target: Literal["mean", "closest"] = "closest"
    n_estimators: Count = 100
    min_samples_leaf: Count = 100
    verbose: bool = False
    n_jobs: int | None = None
    random_state: RandomState = None

    def fit(self, scenes: Sequence[Scene], voxels: ArrayLike) -> VoxelRanker:
        """
        Learn which boxes experts choose.

        Parameters
        ----------
        scenes : sequence of n Scene
            Tumors.
        voxels : array_like of shape (n, 9) or (n, n_experts, 9)
            Experts' boxes as `Voxel.as_array` gives them; rows of NaN where an expert placed none.

        Returns
        -------
        VoxelRanker
            Itself.

        Raises
        ------
        TypeError
            If `optimizer` is neither None nor a VoxelOptimizer.
        ValueError
            If a parameter is not possible, scenes and voxels differ in number, a voxel is no box,
            or there is one case only.
        """
        optimizer = self._checked()
        experts = expert_voxels(voxels, scenes)
        if len(scenes) < 2:
            raise ValueError(
                "a ranker learns from two cases or more, got 1; more than 50 are advisable"
            )
        seed = Seed(self.random_state)
        # A number of its own makes the optimizer repeatable; anything else is replaced by one.
        if not isinstance(optimizer.random_state, int | np.integer):
            optimizer.set_params(random_state=seed.derived("optimizer"))
        volumes = np.prod(experts[..., 3:6], axis=-1) / MM3_PER_ML
        self.optimizer_ = optimizer
        self.volumes_ = np.nanquantile(volumes, VOLUME_QUANTILES)
        features, targets = [], []
        found = self._gather(self._training_boxes, scenes, "candidates")
        for (boxes, columns), rows in zip(found, experts, strict=True):
            placed = [Voxel.from_array(row) for row in rows[~np.isnan(rows).all(axis=1)]]
            candidates = [Voxel.from_rotation(box[0], box[1], box[2:]) for box in boxes]
            dice = np.array([[box.dice(one) for one in placed] for box in candidates])
            features.append(columns)
            targets.append(dice.mean(axis=1) if self.target == "mean" else dice.max(axis=1))
        forest = ExtraTreesRegressor(
            self.n_estimators,
            min_samples_leaf=self.min_samples_leaf,
            max_features=MAX_FEATURES,
            n_jobs=1,
            random_state=seed.derived("forest"),
        )
        # One thread, so that the forest does not depend on how many there are.
        with one_thread():
            self.forest_ = forest.fit(np.concatenate(features), np.concatenate(targets))
        return self

    def predict(self, scenes: Iterable[Scene]) -> NDArray[np.float64]:
        """
        Place a voxel in each scene.

        Parameters
        ----------
        scenes : iterable of Scene
            The tumors.

        Returns
        -------
        ndarray of shape (n, 9)
            Centers in mm, sides in mm, angles in degrees.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        check_is_fitted(self)
        voxels = self._gather(self.place, scene_list(scenes), "place")
        rows = [voxel.as_array() for voxel in voxels]
        return np.array(rows, dtype=np.float64).reshape(-1, 9)

    def place(self, scene: Scene) -> Voxel:
        """
        Place a voxel.

        Parameters
        ----------
        scene : Scene
            The tumor.

        Returns
        -------
        Voxel
            The first of `candidates`, in its canonical pose.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        return self.candidates(scene, 1)[0][0]

    def candidates(self, scene: Scene, n: int) -> list[tuple[Voxel, float]]:
        """
        Rank distinct boxes.

        Parameters
        ----------
        scene : Scene
            The tumor.
        n : int
            How many at most.

        Returns
        -------
        list of (Voxel, float)
            Voxels and the Dice coefficient with experts that is expected of them, best first; no
            two share more than 80 % (Dice). What breaks constraints of the optimizer comes last.

        Raises
        ------
        ValueError
            If `n` is below 1.
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        check_is_fitted(self)
        check_number("n", n, least=1, whole=True)
        return self._ranked(scene, *self._described(scene), n)

    @property
    def feature_importances_(self) -> NDArray[np.float64]:
        """Importance of each feature in the forest: shape (n_features,), sum 1."""
        check_is_fitted(self)
        return np.asarray(self.forest_.feature_importances_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "forest_")

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
        """
        Give the content of a model file: parameters, optimizer and forest.

        Returns
        -------
        parameters : dict
            Of the constructor, but for the optimizer and for what belongs to one machine.
        fitted : dict
            The optimizer's parameters and the volumes.
        files : dict
            The forest.

        Raises
        ------
        TypeError
            If a parameter cannot be stored.
        """
        parameters = self.get_params(deep=False)
        # The optimizer is stored by its own parameters; the other two belong to a session.
        for name in ("optimizer", "n_jobs", "verbose"):
            del parameters[name]
        # The state of a generator cannot be stored.
        if isinstance(parameters["random_state"], np.random.RandomState):
            parameters["random_state"] = None
        search = self.optimizer_.get_params(deep=False)
        objective = search.pop("objective")
        search["size_range"] = np.asarray(search["size_range"], dtype=np.float64).tolist()
        fitted = {
            "optimizer": search,
            "objective": None if objective is None else asdict(objective),
            "volumes": self.volumes_.tolist(),
            "features": list(FEATURES),
        }
        return parameters, fitted, {_FOREST: self.forest_}

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """
        Take what `stored` has given.

        Parameters
        ----------
        fitted, files : mapping
            As given by `stored`.

        Raises
        ------
        ValueError
            If something is missing or unknown, or does not fit.
        """
        refuse_keys(
            fitted,
            {"optimizer", "objective", "volumes", "features"},
            "fitted attribute",
            complete=True,
        )
        refuse_keys(files, {_FOREST}, "file", complete=True)
        if fitted["features"] != list(FEATURES):
            raise ValueError(
                f"it ranks by other features than this version: {fitted['features']}; "
                "train the model again"
            )
        names = set(VoxelOptimizer().get_params(deep=False)) - {"objective"}
        refuse_keys(fitted["optimizer"], names, "parameter of VoxelOptimizer", complete=True)
        objective = None
        if fitted["objective"] is not None:
            refuse_keys(
                fitted["objective"],
                set(asdict(PlacementObjective())),
                "part of an objective",
                complete=True,
            )
            objective = PlacementObjective(**fitted["objective"])
        self.optimizer = VoxelOptimizer(objective, **fitted["optimizer"])
        volumes = np.array(fitted["volumes"], dtype=np.float64)
        n_volumes = len(VOLUME_QUANTILES)
        positive = (np.isfinite(volumes) & (volumes > 0)).all()
        if volumes.shape != (n_volumes,) or not positive:
            raise ValueError(
                f"its volumes are not {n_volumes} positive numbers: {fitted['volumes']}"
            )
        self.optimizer_ = self._checked()
        self.volumes_ = volumes
        forest = files[_FOREST]
        n_inputs = getattr(forest, "n_features_in_", None)
        if not isinstance(forest, ExtraTreesRegressor) or n_inputs != len(FEATURES):
            raise ValueError(f"its regressor is no forest over {len(FEATURES)} features")
        self.forest_ = forest

    def _checked(self) -> VoxelOptimizer:
        """Check the parameters and copy the optimizer."""
        # Typed as anything, because mypy would take the check for unreachable.
        optimizer: Any = self.optimizer
        if optimizer is None:
            optimizer = VoxelOptimizer(max_rotations=3, max_aspect=None)
        if not isinstance(optimizer, VoxelOptimizer):
            raise TypeError(f"optimizer must be a VoxelOptimizer or None, got {optimizer!r}")
        check_fields(self)
        check_jobs(self.n_jobs)
        copy: VoxelOptimizer = clone(optimizer)
        # Without voxels, `fit` checks the parameters and learns nothing.
        return copy.fit()

    def _gather(self, function: Any, scenes: Sequence[Scene], task: str) -> Iterator[Any]:
        """Call a function with each scene, in their order."""
        results = Parallel(n_jobs=self.n_jobs, return_as="generator")(
            delayed(function)(scene) for scene in scenes
        )
        # A caller that places in one scene at a time shows its own bar.
        if not self.verbose or len(scenes) == 1:
            yield from results
            return
        yield from progress(results, len(scenes), task)

    def _find_boxes(
        self, scene: Scene
    ) -> tuple[FreeTumorSearch, Surroundings, NDArray[np.float64]]:
        """Find candidate boxes (n, 5, 3); returns the search and the depths that it made, too."""
        search = FreeTumorSearch(self.optimizer_._wishes(), scene)
        surroundings = Surroundings(scene)
        boxes = candidate_boxes(
            search, surroundings, self.volumes_, self.n_candidates, self.n_places
        )
        return search, surroundings, boxes

    def _training_boxes(self, scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Find boxes (n, 5, 3) and describe them: (n, n_features)."""
        search, surroundings, boxes = self._find_boxes(scene)
        return boxes, describe_boxes(surroundings, boxes, search)

    def _expected(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict Dice coefficients: the mean of the trees, without a forest's checks."""
        rows = features.astype(np.float32)
        trees = [tree.tree_.predict(rows)[:, 0] for tree in self.forest_.estimators_]
        return np.asarray(np.mean(trees, axis=0))

    def _described(self, scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Find boxes, and ones moved off excluded regions; predict their Dice coefficients."""
        search, surroundings, boxes = self._find_boxes(scene)
        scores = self._expected(describe_boxes(surroundings, boxes, search))
        if scene.margins:
            best = np.argsort(-scores.round(SCORE_DIGITS), kind="stable")[:N_MOVED]
            n_found = len(boxes)
            boxes = np.concatenate([boxes, moved_off(boxes[best], search, self.volumes_)])
            # Copies of the best boxes would move the median, which training cases do not have.
            scores = self._expected(describe_boxes(surroundings, boxes, search, n_found))
        return boxes, scores

    def _ranked(
        self, scene: Scene, boxes: NDArray[np.float64], scores: NDArray[np.float64], n: int
    ) -> list[tuple[Voxel, float]]:
        """Sort boxes by broken constraints, then by expected Dice; take `n` distinct ones."""
        optimizer = self.optimizer_
        search = Search(optimizer._wishes(), scene)
        ranked: list[tuple[Voxel, float]] = []
        flagged: list[tuple[int, Voxel, float]] = []
        for index in np.argsort(-scores.round(SCORE_DIGITS), kind="stable"):
            voxel = search.voxel(boxes[index])
            if optimizer.inside_image:
                voxel = scene.moved_inside(voxel)
            voxel = search.rounded(voxel)
            n_flags = len(search.flags(voxel, avoidable=True)) + (not search.is_rounded(voxel))
            if n_flags:
                flagged.append((n_flags, voxel, float(scores[index])))
            elif _is_distinct(voxel, ranked):
                ranked.append((voxel, float(scores[index])))
                if len(ranked) == n:
                    return ranked
        # Fewest broken constraints first; among equals the order of scores stays.
        for _, voxel, score in sorted(flagged, key=lambda entry: entry[0]):
            if len(ranked) < n and _is_distinct(voxel, ranked):
                ranked.append((voxel, score))
        return ranked


def _is_distinct(voxel: Voxel, ranked: Sequence[tuple[Voxel, float]]) -> bool:
    return all(voxel.dice(better) <= SAME_DICE for better, _ in ranked)
