"""Placement of voxels by a network that has learned from experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from dmrifit._optional import import_optional
from dmrifit._utils.checks import Count, Within, check_number, is_number
from dmrifit.model_files.registry import register
from dmrifit.networks.training import Training
from dmrifit.networks.volume_estimator import VolumeEstimator
from placement.box.voxel import MM3_PER_ML, Voxel, allowed_sides, angles_of, expert_voxels
from placement.learned.views import CHANNELS, FLIPS, turned_pose, turned_view, view_of
from placement.search.objective import PlacementObjective, tumor_fraction
from placement.search.scene import Scene, scene_list

if TYPE_CHECKING:
    import torch

__all__ = ["VoxelRegressor"]

#: Points of a view along each axis and their distance in mm, for the usual and for the fast form.
_GRIDS = {False: (32, 3.0), True: (24, 4.0)}

#: Center, sides and rotation.
_Box: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

#: Boxes that share more than this (Dice) are one answer.
_ALIKE = 0.8

#: First steps of the polish in mm, logarithm of sides and radians; most evaluations of the search.
_POLISH_STEPS, _POLISH_TRIES = (2.0, 0.05, 0.1), 250


@register
@dataclass(repr=False, eq=False)
class VoxelRegressor(VolumeEstimator):
    """
    Place voxels by a network that learns from experts.

    The network sees the tumor on a grid of 96 mm along the scanner's axes about the centroid, and
    answers center, sides and rotation at once. A lesion that would not fit is seen on a coarser
    grid.

    Parameters
    ----------
    channels : sequence of {"tumor", "distance", "exclude", "image"}, default=("tumor", "distance")
        What the network sees; ``"tumor"`` must be there. ``"exclude"`` is what scenes exclude,
        such as necrosis: it then also counts as outside for ``"distance"``, and as no tumor in the
        loss. See `placement.learned.views.view_of`.
    training : Training, optional
        How the network is trained; by default 60 epochs, 10 samples in a step and a learning rate
        that falls from 0.001 to zero as a cosine. Where it stays constant, the running averages
        that prediction needs lag behind the weights, and answers are far worse than the loss says.
        Validation scores are Dice coefficients with the closest expert.
    device : str, default="auto"
        ``"auto"`` takes a GPU if there is one; ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    random_state : int, RandomState or None, default=None
        Seed of first weights, split and samples.
    loss : {"symmetric", "euler", "moment"}, default="symmetric"
        How boxes are compared; see `placement.learned.pose_network.PlacementLoss`. ``"euler"`` is
        the study's.
    expert_loss : {"min", "mean", "each"}, default="min"
        Where several experts placed a voxel in a case: learn from the nearest, from all at once,
        or from each as a sample of its own. The mean of two distant voxels lies between them.
    head : {"heat", "linear"}, default="heat"
        Whether the center is an average of places, weighted by how likely a linear head finds
        each, and a shift by another, or the latter alone, as in the study. With a hundred cases
        the first learns faster.
    fast : bool, default=False
        A network of half the width on a coarser grid (4 mm in place of 3 mm), for less than half
        the time.
    refine : bool, default=False
        Polish each answer by the optimizer's search from there, with the answer's own volume as
        the wanted one, and move it off what is excluded. It changes only where it comes to break
        fewer constraints, or no more and to hold no smaller part of tumor.
    size_range : pair of float, default=(10, 60)
        Least and largest side in mm.
    min_volume : float, default=6.0
        Smaller answers are enlarged to this volume in mL, as far as `size_range` allows; 0 for
        none.
    width : int, default=8
        Channels after the first convolution (half of it where `fast`); each of the next three has
        twice as many, but for the last where `fast`, which has as many as the third.
    augment : bool, default=True
        Whether each case is turned and mirrored, in one of 48 ways that is drawn anew in each
        epoch.
    weight_decay : float, default=0.01
        Of AdamW.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        The trained net.
    history_ : list of dict
        Of each epoch.
    n_channels_ : int
        Number of channels.
    n_cases_ : list of int
        Numbers of cases it learned from, and of those held out to choose the epoch; empty for
        a file of an earlier version.

    References
    ----------
    Lee et al., MICCAI 2024.
    """

    default_training: ClassVar[Training] = Training(
        epochs=60, batch_size=10, learning_rate=0.001, schedule="cosine"
    )

    _fitted_names: ClassVar[tuple[str, ...]] = ("n_channels_", "n_cases_")

    channels: Sequence[str] = ("tumor", "distance")
    _: KW_ONLY
    loss: Literal["symmetric", "euler", "moment"] = "symmetric"
    expert_loss: Literal["min", "mean", "each"] = "min"
    head: Literal["heat", "linear"] = "heat"
    fast: bool = False
    refine: bool = False
    size_range: tuple[float, float] = (10.0, 60.0)
    min_volume: float = 6.0
    width: Count = 8
    augment: bool = True
    weight_decay: Annotated[float, Within(below=1)] = 0.01

    # What users call

    def fit(  # type: ignore[override]
        self, scenes: Sequence[Scene], voxels: ArrayLike, *, groups: Sequence[Any] | None = None
    ) -> VoxelRegressor:
        """
        Learn from experts.

        Parameters
        ----------
        scenes : sequence of n Scene
            The tumors.
        voxels : array_like of shape (n, 9) or (n, n_experts, 9)
            Experts' voxels as `Voxel.as_array` gives them; rows of NaN where an expert placed
            none.
        groups : sequence of n, default=None
            The patient of each scene, for the ``validation_fraction`` of the training.

        Returns
        -------
        VoxelRegressor
            Itself.

        Raises
        ------
        ValueError
            If a parameter is not possible, scenes and voxels differ in number, or a voxel is no
            box; before the training starts.
        FloatingPointError
            If the loss becomes infinite or no number.
        ImportError
            If torch or skorch is not installed.
        """
        self._train(scenes, expert_voxels(voxels, scenes), groups)
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
            Centers in mm, sides in mm, angles in degrees, of canonical poses.
        """
        check_is_fitted(self)
        scenes = scene_list(scenes)
        return super().predict(scenes) if scenes else np.empty((0, 9))

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
            The voxel, in its canonical pose.
        """
        return Voxel.from_array(self.predict([scene])[0])

    def candidates(self, scene: Scene, n: int) -> list[tuple[Voxel, float]]:
        """
        Give distinct places: the answers to the scene in all 48 ways of turning and mirroring it.

        Parameters
        ----------
        scene : Scene
            The tumor.
        n : int
            How many at most.

        Returns
        -------
        list of (Voxel, float)
            Voxels and how well the answers agree with them (mean Dice with all), best first; no
            two share more than 80 % (Dice).

        Raises
        ------
        ValueError
            If `n` is below 1, or as for `predict`.
        """
        check_is_fitted(self)
        check_number("n", n, least=1, whole=True)
        inputs = self._inputs(scene)
        self._check_inputs(inputs)
        with self._evaluating(self.net_) as infer:
            answers = self._boxes(infer, inputs, FLIPS)
        voxels = [self._voxel(box, inputs["frame"]) for box in answers]
        dice = np.array([[a.dice(b) for b in voxels] for a in voxels])
        # Answers that agree with the others are more likely to be right.
        scores = dice.mean(axis=1)
        distinct: dict[int, Voxel] = {}
        for i in np.argsort(-scores, kind="stable"):
            if len(distinct) < n and (dice[i, list(distinct)] <= _ALIKE).all():
                voxel = self._finished(voxels[i], scene)
                # Polished boxes may have met.
                if all(voxel.dice(other) <= _ALIKE for other in distinct.values()):
                    distinct[int(i)] = voxel
        return [(voxel, float(scores[i])) for i, voxel in distinct.items()]

    # Steps that the base class calls

    def _check(self) -> None:
        super()._check()
        channels = self.channels
        named = (
            isinstance(channels, Sequence)
            and not isinstance(channels, str)
            and set(channels) <= set(CHANNELS)
        )
        if not named or "tumor" not in channels or len(set(channels)) < len(channels):
            raise ValueError(
                f"channels must be distinct names among {', '.join(CHANNELS)}, with tumor, not "
                f"{channels!r}"
            )
        sides = np.asarray(self.size_range, dtype=object)
        is_pair = sides.shape == (2,) and is_number(sides[0]) and is_number(sides[1])
        if not is_pair or not 0 < sides[0] < sides[1] < np.inf:
            raise ValueError(
                f"size_range must be the least and the largest side in mm, not {self.size_range!r}"
            )
        check_number("min_volume", self.min_volume, most=float(sides[1]) ** 3 / MM3_PER_ML)

    def _learn(self, inputs: Sequence[Any], targets: Sequence[Any] | None) -> None:
        self.n_channels_ = len(self.channels)
        boxes = np.asarray(targets, dtype=np.float64).reshape(-1, 9)
        # The network starts with the usual sides, and need not learn them first.
        sides = np.log(boxes[~np.isnan(boxes).any(axis=1), 3:6])
        self._usual_size = np.exp(sides.mean(axis=0))

    def _split(self, n_cases: int, groups: Any, seed: int) -> tuple[NDArray, NDArray]:
        parts = super()._split(n_cases, groups, seed)
        self.n_cases_ = [len(part) for part in parts]
        return parts

    def _restore_fitted(self, fitted: Mapping[str, Any]) -> None:
        # Files of earlier versions lack these numbers.
        if isinstance(fitted, dict):
            fitted = {"n_cases_": []} | fitted
        super()._restore_fitted(fitted)

    def _module(self) -> torch.nn.Module:
        from placement.learned.pose_network import PlacementNetwork

        n, step = _GRIDS[self.fast]
        width, growth = self.width, (1, 2, 4, 8)
        if self.fast:
            width, growth = max(1, self.width // 2), (1, 2, 4, 4)
        depth = self.channels.index("distance") if "distance" in self.channels else None
        return PlacementNetwork(
            self.n_channels_,
            [width * factor for factor in growth],
            n,
            step,
            size_range=self.size_range,
            # A model file brings weights of its own.
            size=getattr(self, "_usual_size", (20.0, 20.0, 20.0)),
            angles=self.loss == "euler",
            heat=self.head == "heat",
            depth=depth,
        )

    def _criterion(self) -> torch.nn.Module:
        from placement.learned.pose_network import PlacementLoss

        return PlacementLoss(self.loss, self.expert_loss)

    def _optimizer(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        return import_optional("torch.optim").AdamW, {"weight_decay": self.weight_decay}

    def _inputs(self, case: Any) -> dict[str, Any]:
        if not isinstance(case, Scene):
            raise ValueError(f"a Scene is needed, not {type(case).__name__}")
        volume, frame = view_of(case, self.channels, *_GRIDS[self.fast])
        return {"volume": volume, "frame": frame}

    def _check_inputs(self, inputs: Any) -> None:
        self._check_channels(len(inputs["volume"]))

    def _target(self, target: Any, inputs: Any) -> dict[str, Any]:
        rows = np.asarray(target, dtype=np.float64).reshape(-1, 9)
        present = np.asarray(~np.isnan(rows).any(axis=1))
        # The loss ignores missing experts, but needs a box for each to compute with.
        rows = np.where(present[:, None], rows, rows[present][:1])
        boxes = [Voxel.from_array(row).canonical() for row in rows]
        volume, frame = inputs["volume"], inputs["frame"]
        tumor = volume[self.channels.index("tumor")][None]
        # Tumor that is excluded must not count as filled in the loss.
        if "exclude" in self.channels:
            tumor = tumor * (1 - volume[self.channels.index("exclude")][None])
        return {
            "center": np.array([box.center for box in boxes]) - frame[:3],
            "size": np.array([box.size for box in boxes]),
            "rotation": np.array([box.rotation for box in boxes]),
            "present": present.astype(np.float64),
            "tumor": tumor,
            "step": frame[3],
        }

    def _stream(
        self, inputs: Sequence[Any], targets: Sequence[Any], rng: np.random.Generator, epoch: int
    ) -> Iterator[tuple[Any, Any]]:
        for i in rng.permutation(len(inputs)):
            flip = FLIPS[rng.integers(len(FLIPS))] if self.augment else FLIPS[0]
            target = targets[i]
            experts: Iterable[Any] = [None]
            if self.expert_loss == "each":
                experts = np.flatnonzero(target["present"])
            for expert in experts:
                yield self._turned(inputs[i], target, flip, expert)

    def _turned(
        self, inputs: Any, target: Any, flip: NDArray[np.float64], expert: Any
    ) -> tuple[Any, Any]:
        """Turn a sample; `expert` masks all experts but one."""
        center, size, rotation = turned_pose(
            target["center"], target["size"], target["rotation"], flip
        )
        present = target["present"]
        if expert is not None:
            present = (np.arange(len(present)) == expert).astype(np.float64)
        turned = {
            **target,
            "center": center,
            "size": size,
            "rotation": rotation,
            "present": present,
            "tumor": turned_view(target["tumor"], flip),
        }
        if self.loss == "euler":
            turned["angles"] = np.radians([angles_of(matrix) for matrix in rotation])
        return {"volume": turned_view(inputs["volume"], flip), "frame": inputs["frame"]}, turned

    def _predict_case(
        self, infer: Callable[[Any], Any], inputs: Any, case: Any
    ) -> NDArray[np.float64]:
        (box,) = self._boxes(infer, inputs, FLIPS[:1])
        return self._finished(self._voxel(box, inputs["frame"]), case).as_array()

    def _boxes(
        self, infer: Callable[[Any], Any], inputs: Any, flips: NDArray[np.float64]
    ) -> list[_Box]:
        """Predict boxes from views turned and mirrored by `flips`, and turn the boxes back."""
        frame = inputs["frame"]
        views = [{"volume": turned_view(inputs["volume"], f), "frame": frame} for f in flips]
        answer = infer(views)
        centers = answer["center"].astype(np.float64)
        sizes = np.exp(answer["log_size"].astype(np.float64))
        boxes = []
        for i, flip in enumerate(flips):
            # Flips are orthogonal, so the transpose is the inverse.
            boxes.append(turned_pose(centers[i], sizes[i], answer["rotation"][i], flip.T))
        return boxes

    def _voxel(self, box: _Box, frame: NDArray[np.float64]) -> Voxel:
        """Describe an answer by a voxel of allowed sides in its canonical pose."""
        center, size, rotation = box
        enlarged = allowed_sides(size, self.size_range, self.min_volume)
        return Voxel(frame[:3] + center, enlarged, angles_of(rotation)).canonical()

    def _finished(self, voxel: Voxel, scene: Scene) -> Voxel:
        voxel = scene.moved_inside(voxel)
        if not self.refine:
            return voxel
        return _polished(voxel, scene, self.size_range, self.min_volume)

    def _case_score(self, prediction: Any, target: Any) -> float:
        """Dice with the closest expert."""
        voxel = Voxel.from_array(prediction)
        rows = np.asarray(target, dtype=np.float64).reshape(-1, 9)
        experts = [Voxel.from_array(row) for row in rows if not np.isnan(row).any()]
        return max(voxel.dice(expert) for expert in experts)


def _polished(
    voxel: Voxel, scene: Scene, size_range: tuple[float, float], min_volume: float
) -> Voxel:
    """Search from a voxel for a better one of about its volume; take it if it is not worse."""
    from placement.search.optimizer import VoxelOptimizer
    from placement.search.scene_search import FINE, Search

    # The network has learned volumes from experts; the search shall improve the rest.
    objective = PlacementObjective(mean_volume=voxel.volume, one_sided=True)
    optimizer = VoxelOptimizer(
        objective, size_range=size_range, min_volume=min_volume, max_rotations=3, max_aspect=None
    )
    search = Search(optimizer._wishes(), scene)
    search.prepare()
    start = search.spread(voxel.center[None], voxel.size[None], (7,), voxel.rotation[None])
    end = search.descend(start, _POLISH_STEPS, [(1, _POLISH_TRIES)], FINE)
    if scene.excluded:
        end = search.cleared(end)
    polished = search.voxel(end.boxes[0])

    def worth(box: Voxel) -> tuple[int, float]:
        return -len(search.flags(box, avoidable=True)), tumor_fraction(box, scene)

    return polished if worth(polished) >= worth(voxel) else voxel
