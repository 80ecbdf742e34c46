"""Voxels of the largest objective in a scene: placement, candidates, rounding and assessment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone

from dmrifit._utils.checks import Within, check_fields, check_number
from dmrifit._utils.counts import percent
from dmrifit._utils.randomness import RandomState
from placement.box.voxel import MM3_PER_ML, Voxel, expert_voxels
from placement.search.objective import PlacementObjective, tumor_fraction
from placement.search.scene import Scene, scene_list
from placement.search.scene_search import Search, Wishes
from placement.search.tissue_labels import LEAST_TARGET, MOSTLY

__all__ = ["VoxelOptimizer"]

#: Steps of center (mm), sides (mm) and angles (degrees) on the consoles of scanners.
CONSOLE = (0.1, 1.0, 0.1)

#: Range of sides in mm for searches of boxes with more target than the constraints allow.
LOOSE_SIDES = (5.0, 60.0)

#: Rounded boxes are improved as long as a step gains this factor.
LEAST_GAIN = 1.001


@dataclass(frozen=True)
class Placement:
    """
    A voxel with its scores and the constraints that it breaks.

    Attributes
    ----------
    voxel : Voxel
        The box, in its canonical pose.
    objective : float
        Its objective, from 0 to 1, evaluated accurately.
    tumor_fraction : float
        Fraction of it that is tumor.
    tumor_volume : float
        Tumor in it, in mL.
    best_objective : float
        The best objective that the search found, which a simpler voxel may miss by the optimizer's
        ``tie_break``.
    flags : tuple of str
        Constraints that are broken, or why none could be kept; empty if all is well.
    scene : Scene
        Where it was placed.
    """

    voxel: Voxel
    objective: float
    tumor_fraction: float
    tumor_volume: float
    best_objective: float
    flags: tuple[str, ...]
    scene: Scene = field(repr=False)

    @property
    def component(self) -> int:
        """Number of the tumor's component that fills most of the voxel, see `Scene.component`."""
        return self.scene.component(self.voxel)

    @property
    def feasible(self) -> bool:
        """Whether all constraints are met."""
        return not self.flags

    def breaks_beyond(self, other: Placement) -> list[str]:
        """
        List the constraints that this voxel breaks and another one keeps.

        Parameters
        ----------
        other : Placement
            The other voxel in the same scene.

        Returns
        -------
        list of str
            Flags, without those of shares of tissues and of sides at a limit, which is kept.
        """
        flags = [flag for flag in self.flags if flag not in other.flags]
        return [flag for flag in flags if " % " not in flag and not flag.endswith("at its limit")]


@dataclass(repr=False, eq=False)
class VoxelOptimizer(BaseEstimator):
    """
    Place a voxel where the objective is largest.

    A scan of boxes along the image's axes gives places to start from. From each, simplex searches
    vary center, sides and as many angles as `max_rotations` allows on averaged rows, and the best
    boxes again on all rows. Of the voxels
    whose objective is within `tie_break` of the best, the one with the fewest angles is taken, and
    of these one near the centroid of the tumor and nearly cubic, because large tumors have many
    places that are equally good. The order and direction in which the axes of the image are stored
    do not matter.

    Parameters
    ----------
    objective : PlacementObjective, default=None
        What is maximized. By default the published one; in scenes whose target follows from named
        labels, the same without a penalty for more than its `mean_fraction`.
    size_range : pair of float or three pairs, default=(10, 60)
        Least and largest side in mm; for the sides right–left, front–back and up–down, if there
        are three pairs.
    min_volume : float, default=6.0
        Least volume of the voxel in mL; 0 for none.
    max_rotations : int, default=2
        How many angles the console may have to turn (`Voxel.rotated_angles`): experts of the study
        were told to turn about one or two axes; with 3, the search is free.
    max_aspect : float or None, default=2.5
        Ratio of the longest to the shortest side above which a voxel is flagged; the search
        penalizes ratios above 92 % of it. None to leave both out, as the study did.
    thorough : bool, default=False
        Whether to search from more places and turns, too, and take the better box, for about three
        times the time.
    tie_break : float, default=0.03
        Part of the best objective that may be given up for fewer angles, and for a place
        nearer the centroid with sides more alike; 0 to take the best as it is.
    rounding : tuple of 3 float, default=None
        Steps of center (mm), sides (mm) and angles (degrees) to round to, such as `CONSOLE`; the
        rounded box is then improved by such steps, the sides, the center and the angles, as
        the constraints and the objective have it. Where every rounded box breaks a constraint that
        the voxel keeps, the voxel stays as it is and has the flag ``sides not rounded``.
    inside_image : bool, default=True
        Whether the voxel must lie within the image.
    random_state : int, RandomState or None, default=None
        Where the free searches start to turn from. The same number gives the same voxel.

    Attributes
    ----------
    objective_ : PlacementObjective
        The objective, with experts' moments after `fit` with their voxels.

    Notes
    -----
    It can place without `fit`, which only learns what is wanted.

    References
    ----------
    The objective: Lee et al., MICCAI 2024; after Bolan et al., MICCAI 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from placement import Scene, VoxelOptimizer
    >>> tumor = np.zeros((60, 60, 60), bool)
    >>> tumor[15:45, 15:45, 15:45] = True
    >>> voxel = VoxelOptimizer(random_state=0).place(Scene(tumor, np.eye(4)))
    >>> voxel.rotated_axes
    0
    """

    objective: PlacementObjective | None = None
    _: KW_ONLY
    size_range: Any = (10, 60)
    min_volume: float = 6.0
    max_rotations: Annotated[int, Within(0, 3)] = 2
    max_aspect: Annotated[float, Within(1)] | None = 2.5
    thorough: bool = False
    tie_break: Annotated[float, Within(below=1)] = 0.03
    rounding: tuple[float, float, float] | None = None
    inside_image: bool = True
    random_state: RandomState = None

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(
        self, scenes: Sequence[Scene] | None = None, voxels: ArrayLike | None = None
    ) -> VoxelOptimizer:
        """
        Set the objective to the moments of experts' voxels, if there are any.

        Parameters
        ----------
        scenes : sequence of Scene, default=None
            Tumors.
        voxels : array_like of shape (n, 9) or (n, n_experts, 9), default=None
            Experts' voxels as `Voxel.as_array` gives them; rows of NaN where an expert placed
            none. Mean and standard deviation of the volume and of the part of tumor in them become
            those of the objective.

        Returns
        -------
        VoxelOptimizer
            Itself.

        Raises
        ------
        ValueError
            If scenes and voxels differ in number, a voxel has sides that are not positive, or
            there are fewer than two voxels.
        """
        self._wishes()
        self.objective_ = self._objective
        if voxels is None:
            return self
        scenes = [] if scenes is None else list(scenes)
        volumes, fractions = [], []
        for scene, rows in zip(scenes, expert_voxels(voxels, scenes), strict=True):
            for row in rows[~np.isnan(rows).any(axis=1)]:
                voxel = Voxel.from_array(row)
                fraction = tumor_fraction(voxel, scene)
                fractions.append(fraction)
                volumes.append(fraction * voxel.volume)
        if len(volumes) < 2:
            raise ValueError(
                f"the moments of experts' voxels need two voxels or more, got {len(volumes)}"
            )
        sds = float(np.std(volumes, ddof=1)), float(np.std(fractions, ddof=1))
        if min(sds) == 0:
            raise ValueError(
                "experts' voxels all have the same volume or part of tumor (standard deviations "
                f"{sds}); give more"
            )
        self.objective_ = PlacementObjective(
            mean_volume=float(np.mean(volumes)),
            sd_volume=sds[0],
            mean_fraction=float(np.mean(fractions)),
            sd_fraction=sds[1],
            one_sided=self._objective.one_sided,
        )
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
        """
        rows = [self.place(scene).as_array() for scene in scene_list(scenes)]
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
            The voxel, in its canonical pose. `placement` says how good it is and which constraints
            it breaks.
        """
        return self.placement(scene).voxel

    def placement(self, scene: Scene) -> Placement:
        """
        Place a voxel and score it.

        Parameters
        ----------
        scene : Scene
            The tumor.

        Returns
        -------
        Placement
            The voxel, its scores, and flags where constraints could not be kept. Limits of labeled
            tissues yield where they leave less than half of the voxel to the target. Where less
            than half would still be target, `purest` is taken if at least half of that is, and it
            breaks no other constraint.
        """
        placement = self._placed(scene)
        if self.thorough:
            # More starts may end in another optimum, after rounding in a lower one.
            quick = copy(self).set_params(thorough=False)._placed(scene)
            placement = max(placement, quick, key=lambda p: (-len(p.flags), p.objective))
        if placement.tumor_fraction < LEAST_TARGET:
            purest = self.assess(self.purest(scene), scene)
            if purest.tumor_fraction >= LEAST_TARGET and not purest.breaks_beyond(placement):
                return purest
        return placement

    def _placed(self, scene: Scene) -> Placement:
        """Search for the best objective within the constraints."""
        wishes = self._wishes(scene)
        search = Search(wishes, scene)
        if len(scene.margins) > len(scene.excluded):
            # Limits seldom matter where the target is pure, and the search without them is quick.
            quick = Search(wishes, scene.unlimited)
            voxels, best = self._best(quick)
            if not search.touched(voxels[0]):
                return _settled(voxels, best, scene, search)
        placement = _settled(*self._best(search), scene, search)
        if placement.tumor_fraction < LEAST_TARGET and scene.margins != scene.strict.margins:
            # Limits of tissues are worth no box that is useless.
            lenient = _settled(*self._best(Search(wishes, scene.strict)), scene, search)
            more = lenient.tumor_fraction > placement.tumor_fraction
            return lenient if more and not lenient.breaks_beyond(placement) else placement
        return placement

    def candidates(self, scene: Scene, n: int) -> list[tuple[Voxel, float]]:
        """
        List distinct boxes of large objectives.

        Parameters
        ----------
        scene : Scene
            The tumor.
        n : int
            How many at most.

        Returns
        -------
        list of (Voxel, float)
            Voxels and their objectives, best first; no two share more than 80 % (Dice). What
            breaks constraints comes last.
        """
        check_number("n", n, least=1, whole=True)
        search = Search(self._wishes(scene), scene)
        boxes = search.run(max(20, n), max(6, n), every=True).boxes
        order = np.argsort(-search.values(boxes), kind="stable")
        distinct: list[Voxel] = []
        for box in boxes[order]:
            voxel = search.rounded(search.voxel(box))
            # Boxes that overlap by more are one candidate to a reader.
            if len(distinct) < n and all(voxel.dice(better) <= 0.8 for better in distinct):
                distinct.append(voxel)
        pairs = [(voxel, search.wishes.objective(voxel, scene)) for voxel in distinct]

        def rank(pair: tuple[Voxel, float]) -> tuple[int, float]:
            voxel, score = pair
            # Whatever their score, boxes come later that break constraints or have sides that are
            # not round.
            faults = (bool(search.flags(voxel, avoidable=True)), not search.is_rounded(voxel))
            return faults.count(True), -score

        return sorted(pairs, key=rank)

    def rounded(self, voxel: Voxel, scene: Scene) -> Voxel:
        """
        Round a voxel, such as one that a network placed, to the steps of `rounding`.

        Parameters
        ----------
        voxel : Voxel
            The box.
        scene : Scene
            The tumor.

        Returns
        -------
        Voxel
            Center and angles to the nearest step; of the sides around its own those that keep all
            constraints, if any do, and have the largest objective; otherwise those that break
            no other constraint than the voxel. The canonical voxel as it is where there are none
            of these, or `rounding` is None.
        """
        return Search(self._wishes(scene), scene).rounded(voxel.canonical())

    def purest(self, scene: Scene) -> Voxel:
        """
        Search for a box of `min_volume` or more with as much target as there can be.

        Parameters
        ----------
        scene : Scene
            The tumor.

        Returns
        -------
        Voxel
            The box found within the constraints (with the fewest broken ones where none keeps
            them), if at least half of it is target. Otherwise one of any turns, with sides from
            5 mm, whatever limits of tissues and the mask of the brain it breaks; `assess` lists
            these.
        """
        least = max(self.min_volume, 1e-3)
        purity = PlacementObjective(least, sd_volume=1e3, mean_fraction=1.0, one_sided=True)
        # What was fitted is left behind; the same box each time, so that verdicts agree.
        constrained = clone(self).set_params(objective=purity, random_state=0)
        placement = constrained._placed(scene)
        if placement.tumor_fraction >= LEAST_TARGET:
            return placement.voxel
        loose = clone(constrained).set_params(
            size_range=LOOSE_SIDES, max_rotations=3, max_aspect=None, thorough=True, tie_break=0
        )
        return loose._placed(scene.unlimited).voxel

    def assess(self, voxel: Voxel, scene: Scene) -> Placement:
        """
        Score a voxel, such as one placed by hand, and list the constraints that it breaks.

        Parameters
        ----------
        voxel : Voxel
            The box.
        scene : Scene
            The tumor.

        Returns
        -------
        Placement
            Scores and flags: ``tumor below the smallest volume``, ``box below the smallest
            volume``, ``side out of range``, ``too many rotations``, ``outside the image``,
            ``touches NAME`` (more of it than is tolerated) or ``reaches outside the brain``,
            ``nearer than the margin of MARGIN mm to NAME``, ``more than LIMIT % TISSUE``,
            ``side at its limit`` (which decides it), ``less than 75 % target`` (or 50 %),
            ``longest side over 2.5 times the shortest``, ``sides not rounded``. As nothing was
            searched, its ``best_objective`` is the voxel's own.
        """
        search = Search(self._wishes(scene), scene)
        return _assessed(voxel.canonical(), 0.0, scene, search, voxel.rotated_angles)

    def objective_in(self, scene: Scene) -> PlacementObjective:
        """
        Give the objective of a scene.

        Parameters
        ----------
        scene : Scene
            The tumor.

        Returns
        -------
        PlacementObjective
            What `place` maximizes there, see `objective`.
        """
        return self._wishes(scene).objective

    def _best(self, search: Search) -> tuple[list[Voxel], float]:
        """Search a simple box and the best, rounded if asked for; with them, its objective."""
        simple, best = search.simplest(search.run(search.n_starts, 6))
        return [search.rounded(voxel) for voxel in (simple, search.free or simple)], best

    @property
    def _objective(self) -> PlacementObjective:
        # Typed as anything, because mypy would take the check for unreachable.
        objective: Any = self.objective
        if objective is None:
            return PlacementObjective()
        if not isinstance(objective, PlacementObjective):
            raise TypeError(f"objective must be a PlacementObjective, got {objective!r}")
        return objective

    def _wishes(self, scene: Scene | None = None) -> Wishes:
        """Check the parameters and collect them for a search."""
        check_fields(self)
        sizes = np.asarray(self.size_range, dtype=np.float64)
        if sizes.shape not in ((2,), (3, 2)) or not np.isfinite(sizes).all():
            raise ValueError(
                f"size_range must be a pair of mm, or three pairs, got {self.size_range}"
            )
        sizes = np.broadcast_to(sizes, (3, 2)).copy()
        for low, high in sizes:
            if not 0 < low <= high:
                raise ValueError(
                    f"size_range {low:g},{high:g}: give positive sides, smaller first"
                )
        most = np.prod(sizes[:, 1]) / MM3_PER_ML
        if not 0 <= self.min_volume <= most:
            raise ValueError(
                f"min_volume {self.min_volume:g}: give 0 to {most:.4g} mL, which fit into sides "
                f"of {sizes.min():g} to {sizes.max():g} mm (size_range)"
            )
        if self.rounding is not None:
            steps = self.rounding
            if np.shape(steps) != (3,) or not min(steps) > 0:
                raise ValueError(
                    f"rounding must be three positive steps (mm, mm, degrees), got {steps}"
                )
        objective = getattr(self, "objective_", self._objective)
        is_default = self.objective is None and objective == PlacementObjective()
        if is_default and isinstance(scene, Scene) and scene.targets:
            objective = PlacementObjective(one_sided=True)
        parameters = self.get_params(deep=False) | {"objective": objective, "sizes": sizes}
        # A subclass may have parameters of its own.
        return Wishes(**{wish.name: parameters[wish.name] for wish in fields(Wishes)})


def _assessed(
    voxel: Voxel, best: float, scene: Scene, search: Search, n_angles: int | None = None
) -> Placement:
    """
    Score a canonical voxel and list the constraints that it breaks.

    `n_angles` are those to set of the box as it was given, whose sides may have another order.
    """
    fraction = tumor_fraction(voxel, scene)
    tumor_volume = fraction * voxel.volume
    objective = search.wishes.objective.value(fraction, tumor_volume)
    flags = search.flags(voxel, n_angles=n_angles)
    if not search.is_rounded(voxel):
        # A box placed by hand may lie between steps that would do.
        flags += ("sides not rounded",) * (search.rounded(voxel) == voxel)
    sizes = search.wishes.sizes
    # A range of one length is what was asked for, and decides nothing.
    is_range = sizes[:, 1] > sizes[:, 0]
    if (np.isclose(voxel.size[:, None], sizes, rtol=0, atol=1e-6).any(axis=1) & is_range).any():
        flags += ("side at its limit",)
    if missed := [limit for limit in (LEAST_TARGET, MOSTLY) if fraction < limit]:
        flags += (f"less than {100 * missed[0]:.0f} % target",)
    aspect = search.wishes.max_aspect
    if aspect is not None and voxel.size.max() > aspect * voxel.size.min():
        flags += (f"longest side over {aspect:g} times the shortest",)
    return Placement(
        voxel=voxel,
        objective=objective,
        tumor_fraction=fraction,
        tumor_volume=tumor_volume,
        best_objective=max(objective, best),
        flags=flags,
        scene=scene,
    )


def _settled(voxels: Sequence[Voxel], best: float, scene: Scene, search: Search) -> Placement:
    """Improve a simple box and the best after rounding; take the simple one if it will do."""
    ends = [_climbed(_assessed(v, best, scene, search), search) for v in dict.fromkeys(voxels)]
    simple, free = ends[0], ends[-1]
    enough = free.objective * (1 - search.wishes.tie_break)
    is_enough = search.is_rounded(simple.voxel) and simple.objective >= enough
    return simple if is_enough or set(free.flags) - set(simple.flags) else free


def _climbed(start: Placement, search: Search) -> Placement:
    """Improve a rounded box by steps of the console that break no further constraint."""
    best = start
    is_rounded = search.wishes.rounding is not None and search.is_rounded(start.voxel)
    while is_rounded and best.objective * LEAST_GAIN < start.best_objective:
        # The box itself is among its neighbors, so that one will do.
        for voxel in search.neighbors(best.voxel):
            better = _assessed(voxel, start.best_objective, start.scene, search)
            # Another pose of a box turned by over 45 degrees would have other angles.
            is_canonical = np.allclose(voxel.canonical().angles, voxel.angles, atol=1e-4)
            if is_canonical and set(better.flags) <= set(start.flags):
                break
        if better.objective <= best.objective * LEAST_GAIN:
            break
        best = better
    return best


def share_words(share: float) -> str:
    """Give a share of a box in percent, never rounded up to a limit that it misses."""
    for limit in (LEAST_TARGET, MOSTLY):
        if share < limit <= round(share, 2):
            return f"{100 * min(round(share, 3), limit - 0.001):.1f} %"
    return percent(round(share, 3))
