"""Search the best voxel for a tumor: many quick searches, the best made exact, the simplest of the best chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from dmrifit.randomness import RandomState, seed_for, seed_from
from placement import _overlap
from placement.objective import PlacementObjective, tumor_fraction
from placement.rows import Rows
from placement.scene import Scene
from placement.voxel import MM3_PER_ML, Voxel

__all__ = ["CONSOLE", "Placement", "VoxelOptimizer"]

#: Steps of center (mm), sides (mm) and angles (degrees) that scanners' consoles take.
CONSOLE = (0.1, 1.0, 0.1)

#: Edges of the blocks of rows that searches average over, in mm: the first, the second, the last.
BLOCK_MM = (3.0, 2.0, 0.0)
COARSE, MIDDLE, FINE = range(3)

#: Boxes whose centers are nearer than this are one start, or one candidate, in mm.
APART_MM = 8.0

#: Boxes that the first scan tries have sides up to this, in mm.
LONGEST_SCANNED_MM = 48.0

#: How many places the first scan tries, about.
N_PLACES = 700

#: Boxes along the image's axes hold less of a tilted lesion than turned ones will, so the scan asks for less purity.
LENIENCY = 3.0

#: Free searches start along the scanner's axes, and turned by this from them, in radians.
FIRST_TURN = 0.8

#: Search kinds: along the scanner's axes, turned about one, about two, freely (see `placement._overlap`).
FAMILIES = {0: (0,), 1: (1, 2, 3), 2: (4, 5, 6), 3: (7,)}

#: Refining lowers minus the logarithm of the objective by no more than about this.
NEAR_ENOUGH = 0.15

#: A box touches what is excluded where it shares more than this part of its volume.
TOUCH = 1e-9

#: The part of a box, grown by this on each side, that is tumor tells how deep it lies, in mm.
BULK_MM = 10.0


@dataclass(frozen=True)
class Placement:
    """
    A voxel, how good it is, and what is wrong with it.

    Attributes
    ----------
    voxel : Voxel
        The box, in its canonical pose.
    objective : float
        Its objective, from 0 to 1, evaluated accurately.
    tumor_fraction : float
        Part of it that is tumor.
    tumor_volume : float
        Tumor in it, in mL.
    best_objective : float
        The best objective that the search found, which a simpler voxel may miss by the optimizer's ``tie_break``.
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
        """Number of the part of the tumor that the voxel holds most of, see `Scene.component`."""
        return self.scene.component(self.voxel)

    @property
    def feasible(self) -> bool:
        """Whether all constraints are kept."""
        return not self.flags


class _Search(NamedTuple):
    """Boxes that a search ended with, in the order of their costs."""

    x: NDArray[np.float64]
    kinds: NDArray[np.int64]
    bases: NDArray[np.float64]
    origins: NDArray[np.float64]
    costs: NDArray[np.float64]
    boxes: NDArray[np.float64]

    def take(self, index: Any) -> _Search:
        return _Search(*(values[index] for values in self))


class VoxelOptimizer(BaseEstimator):
    """
    Place a voxel where the objective is largest.

    A scan of boxes along the image's axes gives places to start from. From each, simplex searches of all nine
    numbers run on averaged rows; the best are made exact on all rows. Of the voxels whose objective is within
    `tie_break` of the best, the one with the fewest rotated axes is taken, and of these the one deepest in the
    tumor, because large tumors have many places that are equally good.

    Parameters
    ----------
    objective : PlacementObjective, default=None
        What is maximized; the published one by default.
    size_range : pair of float or three pairs, default=(10, 60)
        Least and largest side in mm; for the sides right–left, front–back and up–down, if there are three pairs.
    min_volume : float, default=6.0
        Least volume of the voxel in mL; 0 for none.
    max_rotations : int, default=3
        How many rotated axes are allowed (`Voxel.rotated_axes`).
    thorough : bool, default=False
        Whether to start from more places, for about three times the time.
    tie_break : float, default=0.05
        Part of the best objective that may be given up for fewer rotated axes and a deeper place; 0 to take the
        best as it is.
    rounding : tuple of 3 float, default=None
        Steps of center (mm), sides (mm) and angles (degrees) to round to, such as `CONSOLE`; the sides are then
        rounded up or down as the constraints and the objective have it.
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

    def __init__(
        self,
        objective: PlacementObjective | None = None,
        *,
        size_range: Any = (10, 60),
        min_volume: float = 6.0,
        max_rotations: int = 3,
        thorough: bool = False,
        tie_break: float = 0.05,
        rounding: tuple[float, float, float] | None = None,
        inside_image: bool = True,
        random_state: RandomState = None,
    ) -> None:
        self.objective = objective
        self.size_range = size_range
        self.min_volume = min_volume
        self.max_rotations = max_rotations
        self.thorough = thorough
        self.tie_break = tie_break
        self.rounding = rounding
        self.inside_image = inside_image
        self.random_state = random_state

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, scenes: Sequence[Scene] | None = None, voxels: ArrayLike | None = None) -> VoxelOptimizer:
        """
        Learn what experts want, if there are any.

        Parameters
        ----------
        scenes : sequence of Scene, default=None
            Tumors.
        voxels : array_like of shape (n, 9) or (n, n_experts, 9), default=None
            Experts' voxels as `Voxel.as_array` gives them; rows of NaN where an expert placed none. Mean and
            standard deviation of the volume and of the part of tumor in them become those of the objective.

        Returns
        -------
        VoxelOptimizer
            Itself.

        Raises
        ------
        ValueError
            If scenes and voxels differ in number, a voxel has sides that are not positive, or there are fewer than
            two voxels.
        """
        self._checked()
        self.objective_ = self._objective
        if voxels is None:
            return self
        experts = np.asarray(voxels, dtype=np.float64)
        if scenes is None or experts.ndim not in (2, 3) or experts.shape[-1] != 9 or len(experts) != len(scenes):
            n = "no" if scenes is None else len(scenes)
            msg = f"voxels must have shape (n, 9) or (n, n_experts, 9) for n scenes, got {experts.shape} and {n} scenes"
            raise ValueError(msg)
        volumes, fractions = [], []
        for scene, rows in zip(scenes, experts.reshape(len(experts), -1, 9), strict=True):
            for row in rows[~np.isnan(rows).all(axis=1)]:
                voxel = Voxel.from_array(row)
                fractions.append(tumor_fraction(voxel, scene))
                volumes.append(fractions[-1] * voxel.volume)
        if len(volumes) < 2:
            msg = f"the moments of experts' voxels need two voxels or more, got {len(volumes)}"
            raise ValueError(msg)
        spread = float(np.std(volumes, ddof=1)), float(np.std(fractions, ddof=1))
        if min(spread) == 0:
            msg = f"experts' voxels all have the same volume or part of tumor (standard deviations {spread}); give more"
            raise ValueError(msg)
        self.objective_ = PlacementObjective(
            float(np.mean(volumes)),
            spread[0],
            float(np.mean(fractions)),
            spread[1],
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
        rows = [self.place(scene).as_array() for scene in scenes]
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
            The voxel, in its canonical pose. `placement` says how good it is and which constraints it breaks.
        """
        return self.placement(scene).voxel

    def placement(self, scene: Scene) -> Placement:
        """
        Place a voxel and say how good it is.

        Parameters
        ----------
        scene : Scene
            The tumor.

        Returns
        -------
        Placement
            The voxel, its scores, and flags where constraints could not be kept.
        """
        case = _Case(self, scene)
        found = case.run(16, 5)
        voxels = [case.voxel(box) for box in found.boxes]
        scores = np.array([case.score(voxel) for voxel in voxels])
        best = scores.max()
        chosen = voxels[int(scores.argmax())] if self.tie_break == 0 else case.simplest(found, voxels, scores)
        if self.rounding is not None:
            chosen = case.rounded(chosen)
        return self.assess(chosen, scene, best_objective=float(max(best, 0.0)))

    def candidates(self, scene: Scene, n: int) -> list[tuple[Voxel, float]]:
        """
        Find distinct places.

        Parameters
        ----------
        scene : Scene
            The tumor.
        n : int
            How many at most.

        Returns
        -------
        list of (Voxel, float)
            Voxels and their objectives, best first; no two share more than 80 % (Dice). What breaks constraints
            comes last.
        """
        if n < 1:
            msg = f"the number of candidates must be 1 or more, got {n}"
            raise ValueError(msg)
        case = _Case(self, scene)
        found = case.run(max(16, n), max(5, n), every=True)
        scored = []
        for box in found.boxes:
            voxel = case.voxel(box)
            if self.rounding is not None:
                voxel = case.rounded(voxel)
            scored.append((voxel, case.score(voxel)))
        scored.sort(key=lambda pair: -pair[1])
        kept: list[Voxel] = []
        for voxel, _ in scored:
            if len(kept) < n and all(voxel.dice(other) <= 0.8 for other in kept):
                kept.append(voxel)
        pairs = [(voxel, case.objective(voxel, scene)) for voxel in kept]
        return sorted(pairs, key=lambda pair: (bool(case.flags(pair[0], own=True)), -pair[1]))

    def assess(self, voxel: Voxel, scene: Scene, *, best_objective: float | None = None) -> Placement:
        """
        Say how good a voxel is and which constraints it breaks, such as one placed by hand.

        Parameters
        ----------
        voxel : Voxel
            The box.
        scene : Scene
            The tumor.
        best_objective : float, default=None
            The best that a search found; the voxel's own by default.

        Returns
        -------
        Placement
            Scores and flags: ``tumor smaller than min_volume``, ``volume below min_volume``, ``side out of range``,
            ``too many rotations``, ``outside the image``, ``touches NAME``.
        """
        case = _Case(self, scene)
        voxel = voxel.canonical()
        part = tumor_fraction(voxel, scene)
        value = case.objective.value(part, part * voxel.volume)
        return Placement(
            voxel=voxel,
            objective=value,
            tumor_fraction=part,
            tumor_volume=part * voxel.volume,
            best_objective=value if best_objective is None else best_objective,
            flags=case.flags(voxel),
            scene=scene,
        )

    @property
    def _objective(self) -> PlacementObjective:
        given: Any = self.objective
        if given is not None and not isinstance(given, PlacementObjective):
            msg = f"objective must be a PlacementObjective, got {given!r}"
            raise TypeError(msg)
        return PlacementObjective() if given is None else given

    def _checked(self) -> NDArray[np.float64]:
        """Check the parameters; the range of each side, shape (3, 2)."""
        sizes = np.asarray(self.size_range, dtype=np.float64)
        if sizes.shape not in ((2,), (3, 2)) or not np.isfinite(sizes).all():
            msg = f"size_range must be a pair of mm, or three pairs, got {self.size_range}"
            raise ValueError(msg)
        sizes = np.broadcast_to(sizes, (3, 2)).copy()
        if (sizes[:, 0] <= 0).any() or (sizes[:, 0] > sizes[:, 1]).any():
            msg = f"size_range must go from a positive side up, got {self.size_range}"
            raise ValueError(msg)
        if not 0 <= self.min_volume <= np.prod(sizes[:, 1]) / MM3_PER_ML:
            msg = (
                f"min_volume must be from 0 to what size_range allows, got {self.min_volume} mL with {self.size_range}"
            )
            raise ValueError(msg)
        if self.max_rotations not in FAMILIES:
            msg = f"max_rotations must be 0, 1, 2 or 3, got {self.max_rotations}"
            raise ValueError(msg)
        if not 0 <= self.tie_break < 1:
            msg = f"tie_break must be at least 0 and below 1, got {self.tie_break}"
            raise ValueError(msg)
        if self.rounding is not None and (len(self.rounding) != 3 or min(self.rounding) <= 0):
            msg = f"rounding must be three positive steps (mm, mm, degrees), got {self.rounding}"
            raise ValueError(msg)
        return sizes


class _Case:
    """One scene, prepared for the search."""

    def __init__(self, optimizer: VoxelOptimizer, scene: Scene) -> None:
        self.sizes = optimizer._checked()
        self.optimizer = optimizer
        self.scene = scene
        self.objective: PlacementObjective = getattr(optimizer, "objective_", optimizer._objective)
        self.rows: Rows = scene.rows

    def limits(self, weight: float = 3.0) -> NDArray[np.float64]:
        """Give the numbers that the compiled search takes; see `placement._overlap.descend`."""
        o = self.objective
        return np.array(
            [
                o.mean_volume * MM3_PER_ML,
                o.sd_volume * MM3_PER_ML,
                o.mean_fraction,
                o.sd_fraction,
                float(o.one_sided),
                self.optimizer.min_volume * MM3_PER_ML,
                *np.log(self.sizes[:, 0]),
                *np.log(self.sizes[:, 1]),
                weight,
            ]
        )

    def prepare(self) -> None:
        """Average rows for the quick searches, and gather what is excluded near the tumor."""
        rows = self.rows
        edges = np.linalg.norm(rows.matrix, axis=0)
        axes = list(rows.axes)
        low = -0.5 - np.array(self.scene.origin, dtype=np.float64)[axes]
        high = low + np.array(self.scene.shape)[axes]
        if not self.optimizer.inside_image:
            low, high = np.full(3, -1e9), np.full(3, 1e9)
        self.grids, self.ends = [], []
        # Boxes in small tumors are small, and need finer blocks to be told apart.
        largest = 0.12 * np.cbrt(self.scene.tumor_volume * MM3_PER_ML)
        for size in BLOCK_MM:
            block = np.maximum(1, np.rint(min(size, largest) / edges)).astype(int)
            # A block's middle lies half a block from its first voxel's outer face.
            scale, move = np.array([*block[:2], 1.0]), np.array([*(block[:2] - 1) / 2, 0.0])
            averaged = rows.prefix
            if block[:2].max() > 1:
                averaged = _overlap.average_rows(rows.prefix, int(block[0]), int(block[1]))
            wide = rows.matrix * scale
            self.grids.append((averaged, wide, np.linalg.inv(wide), rows.offset + rows.matrix @ move))
            self.ends.append(((low - move) / scale, (high - move) / scale))
            if len(self.grids) == 1:
                self.block = block
        self.forbid()

    def forbid(self) -> None:
        """Stack running sums of what is excluded, one for each margin."""
        margins = np.unique([*self.scene.margins.values()])
        stacked = np.zeros((0, 1, 1, 2), dtype=np.float32)
        place = self.rows.offset
        if len(margins):
            reach = np.ceil((self.sizes.max() * 0.87 + margins.max()) / self.scene.spacing).astype(int)
            origin = np.array(self.scene.origin) - reach
            shape = np.array(self.scene.occupancy.shape) + 2 * reach
            found = [
                Rows.of(self.scene.forbidden_in(origin, shape, margin=m), self.scene.affine, origin) for m in margins
            ]
            stacked, place = np.stack([one.prefix for one in found]), found[0].offset
        self.margins = np.asarray(margins, dtype=np.float64)
        self.forbidden = stacked, place, self.rows.matrix, np.linalg.inv(self.rows.matrix)

    def starts(self, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scan boxes along the image's axes: centers in mm and sides, of at most `n` that lie apart."""
        rows = self.rows
        edges = np.linalg.norm(rows.matrix, axis=0) * self.block
        volume = abs(np.linalg.det(rows.matrix)) * np.prod(self.block)
        averaged = self.grids[COARSE][0]
        n_blocks = averaged.shape[0] * averaged.shape[1] * np.ceil((averaged.shape[2] - 1) / self.block[2])
        stride = max(1, int(np.ceil(np.cbrt(n_blocks / (N_PLACES * (3 if self.optimizer.thorough else 1))))))
        limits = self.limits()
        limits[3] *= LENIENCY
        limits[6:9], limits[9:12] = limits[6:9].min(), limits[9:12].max()
        places, sides, costs = _overlap.scan(
            averaged, int(self.block[2]), edges, volume, limits, stride, LONGEST_SCANNED_MM
        )
        if not len(places):
            return self.scene.centroid[None], np.full((1, 3), np.cbrt(max(limits[5], np.exp(limits[6]) ** 3)))
        centers = (places * self.block - 0.5) @ rows.matrix.T + rows.offset
        kept: list[int] = []
        for index in np.argsort(costs, kind="stable"):
            if all(np.sum((centers[index] - centers[k]) ** 2) > APART_MM**2 for k in kept):
                kept.append(int(index))
                if len(kept) == n:
                    break
        # The sides go to the scanner's axes that their image axes are nearest to.
        from scipy.optimize import linear_sum_assignment

        which, axis = linear_sum_assignment(-np.abs(rows.matrix / np.linalg.norm(rows.matrix, axis=0)))
        sizes = np.empty((len(kept), 3))
        sizes[:, which] = (sides[kept] * edges)[:, axis]
        return centers[kept], sizes

    def descend(self, start: _Search, steps: Sequence[float], n_evals: int, level: int, weight: float = 3.0) -> _Search:
        """Run the simplex searches."""
        x, costs, boxes = _overlap.descend(
            np.ascontiguousarray(start.x),
            np.ascontiguousarray(start.kinds),
            np.ascontiguousarray(start.bases),
            np.ascontiguousarray(start.origins),
            self.grids[level],
            self.forbidden,
            self.margins,
            *self.ends[level],
            self.limits(weight),
            np.array(steps, dtype=np.float64),
            n_evals,
            1e-3 if level == COARSE else 1e-5,
            1,
        )
        return _Search(x, start.kinds, start.bases, start.origins, costs, boxes)

    def spread(self, centers: NDArray, sizes: NDArray, kinds: Sequence[int], turns: NDArray, angle: float) -> _Search:
        """Combine places with search kinds and first rotations."""
        rows = []
        for kind in kinds:
            for base in turns if kind == 7 else np.eye(3)[None]:
                for center, size in zip(centers, sizes, strict=True):
                    x = np.zeros(9)
                    x[3:6] = np.log(size)
                    x[6:8] = angle if 0 < kind < 7 else 0.0
                    rows.append((x, kind, base, center))
        x, kinds_, bases, origins = (np.array(column) for column in zip(*rows, strict=True))
        n = len(rows)
        return _Search(x, kinds_.astype(np.int64), bases, origins, np.zeros(n), np.zeros((n, 5, 3)))

    def run(self, n_starts: int, n_fine: int, *, every: bool = False) -> _Search:
        """Search: the refined boxes, free ones and ones along the scanner's axes."""
        self.prepare()
        thorough, most = self.optimizer.thorough, self.optimizer.max_rotations
        if thorough:
            n_starts, n_fine = (3 * n_starts) // 2, 2 * n_fine
        self.centers, self.sides = self.starts(n_starts)
        turns = np.concatenate([np.eye(3)[None], self.turns(2 if thorough else 1)])
        quick = self.spread(self.centers, self.sides, FAMILIES[most], turns, 0.3)
        quick = self.descend(quick, (4.0, 0.15, 0.35), 80, COARSE)
        quick = quick.take(np.argsort(quick.costs, kind="stable")[: max(n_starts if every else 14, 2 * n_fine)])
        quick = self.descend(quick, (2.0, 0.08, 0.2), 120, COARSE)
        fine = self.refined(quick, n_fine)
        self.straight = quick
        if most > 0 and self.optimizer.tie_break > 0 and not every:
            straight = self.spread(self.centers[:10], self.sides[:10], (0,), turns, 0.0)
            self.straight = self.descend(straight, (4.0, 0.15, 0.35), 90, COARSE)
            if _promising(self.straight, float(np.exp(-fine.costs.min())) * (1 - self.optimizer.tie_break)):
                fine = _join(fine, self.refined(self.straight, 2))
        return fine

    def refined(self, quick: _Search, n: int) -> _Search:
        """Make the best distinct ones exact."""
        fine = self.descend(quick.take(_distinct(quick, n)), (1.5, 0.06, 0.12), 170, MIDDLE)
        half = np.argsort(fine.costs, kind="stable")
        half, rest = half[: (n + 1) // 2], half[(n + 1) // 2 :]
        better = self.descend(fine.take(half), (0.8, 0.03, 0.06), 100, FINE)
        if self.optimizer.thorough:
            better = self.descend(better, (3.0, 0.1, 0.2), 450, FINE)
        fine = _join(better, fine.take(rest))
        if len(self.margins):
            fine = self.descend(fine, (1.0, 0.05, 0.05), 250, FINE, weight=1e4)
        return fine

    def turns(self, n: int) -> NDArray[np.float64]:
        """Draw rotations to start from, the same for the same seed."""
        rng = np.random.default_rng(seed_for(seed_from(self.optimizer.random_state), "turns"))
        axes = rng.normal(size=(n, 3))
        return np.array([_rotation(axis / np.linalg.norm(axis) * FIRST_TURN) for axis in axes])

    def voxel(self, box: NDArray[np.float64]) -> Voxel:
        return Voxel.from_rotation(box[0], box[1], box[2:5]).canonical()

    def score(self, voxel: Voxel) -> float:
        """Give the objective; what breaks constraints is below 0, the more the worse."""
        value = self.objective.value(*self.measured(voxel))
        flags = self.flags(voxel, own=True)
        return value - 1.0 - len(flags) if flags else value

    def measured(self, voxel: Voxel) -> tuple[float, float]:
        part = float(
            _overlap.fraction(self.fine_grid(), voxel.center, np.ascontiguousarray(voxel.rotation), voxel.size / 2, 3)
        )
        return part, part * voxel.volume

    def fine_grid(self) -> tuple[NDArray, ...]:
        return self.rows.prefix, self.rows.matrix, np.linalg.inv(self.rows.matrix), self.rows.offset

    def bulk(self, voxel: Voxel) -> float:
        """Tell how deep in the tumor a voxel lies: how much of it is tumor when it is grown."""
        return self.measured(Voxel(voxel.center, voxel.size + 2 * BULK_MM, voxel.angles))[0]

    def simplest(self, found: _Search, voxels: list[Voxel], scores: NDArray[np.float64]) -> Voxel:
        """Of the voxels near the best, take the deepest of those with the fewest rotations."""
        best = scores.max()
        enough = best - self.optimizer.tie_break * max(best, 0.0)
        free = voxels[int(scores.argmax())]
        for count in range(free.rotated_axes + 1):
            pool = [v for v, s in zip(voxels, scores, strict=True) if s >= enough and v.rotated_axes <= count]
            if not pool and 0 < count < free.rotated_axes:
                pool = [v for v in self.turned(count, enough) if self.score(v) >= enough]
            if pool:
                return max(pool, key=self.bulk)
        return free

    def turned(self, count: int, enough: float) -> list[Voxel]:
        """Search voxels with one or two rotated axes; none if no quick search comes near an objective."""
        few = self.straight.boxes[_distinct(self.straight, 2)]
        centers, sides = few[:, 0], few[:, 1]
        starts = [self.spread(centers, sides, FAMILIES[count], np.eye(3)[None], angle) for angle in (0.35, -0.35)]
        quick = self.descend(_join(*starts), (3.0, 0.1, 0.3), 80, COARSE)
        return [self.voxel(box) for box in self.refined(quick, 2).boxes] if _promising(quick, enough) else []

    def flags(self, voxel: Voxel, *, own: bool = False) -> tuple[str, ...]:
        """List the constraints that a voxel breaks; `own` leaves out what no voxel could keep."""
        found = []
        least = self.optimizer.min_volume
        if not own and self.scene.tumor_volume < least:
            found.append("tumor smaller than min_volume")
        if voxel.volume < least * (1 - 1e-9):
            found.append("volume below min_volume")
        ranges = self.sizes
        if (voxel.size < ranges[:, 0] - 1e-6).any() or (voxel.size > ranges[:, 1] + 1e-6).any():
            found.append("side out of range")
        if voxel.rotated_axes > self.optimizer.max_rotations:
            found.append("too many rotations")
        if self.optimizer.inside_image and not self.scene.holds(voxel):
            found.append("outside the image")
        found += [f"touches {name}" for name in self.touched(voxel)]
        return tuple(found)

    def touched(self, voxel: Voxel) -> list[str]:
        """Name the excluded regions that a voxel, grown by their margins, touches."""
        names = []
        for name, margin in self.scene.margins.items():
            grown = Voxel(voxel.center, voxel.size + 2 * margin, voxel.angles)
            rows = self.scene.forbidden_rows[name]
            if rows is not None and rows.fraction(grown, row_mm=1.0) > TOUCH:
                names.append(name)
        return names

    def rounded(self, voxel: Voxel) -> Voxel:
        """Round to what a console takes, and choose each side up or down by the objective evaluated again."""
        assert self.optimizer.rounding is not None
        of_center, of_size, of_angle = self.optimizer.rounding
        center = np.round(voxel.center / of_center) * of_center
        angles = np.round(voxel.angles / of_angle) * of_angle
        down = np.floor(voxel.size / of_size + 1e-9) * of_size
        options = []
        for steps in np.ndindex(2, 2, 2):
            size = down + np.array(steps) * of_size
            if (size > 0).all():
                options.append(Voxel(center.round(6), size.round(6), angles.round(6)))
        return max(options, key=self.score)


def _rotation(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn an axis, as long as the angle in radians, into a matrix (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _promising(search: _Search, objective: float) -> bool:
    """Tell whether a quick search is near enough to an objective that refining may reach it."""
    return bool(search.costs.min() <= NEAR_ENOUGH - np.log(max(objective, 1e-300)))


def _distinct(search: _Search, n: int) -> list[int]:
    """List the best boxes that differ in center or sides, by number."""
    kept: list[int] = []
    for index in np.argsort(search.costs, kind="stable"):
        box = search.boxes[index, :2]
        if all(np.abs(box - search.boxes[k, :2]).max() > 2.0 for k in kept):
            kept.append(int(index))
            if len(kept) == n:
                break
    return kept


def _join(*searches: _Search) -> _Search:
    return _Search(*(np.concatenate(columns) for columns in zip(*searches, strict=True)))
