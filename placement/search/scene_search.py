"""The search for the best box in one scene: many quick simplex searches, the best of them made exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from placement.box import overlap
from placement.box.row_integrals import Rows
from placement.box.voxel import MM3_PER_ML, Voxel, rotated_axes
from placement.search.objective import PlacementObjective
from placement.search.scene import Scene

__all__ = ["Boxes", "Search", "Wishes"]

#: Edges of the blocks of rows that searches average over, in mm: the first, the second, the last.
BLOCK_MM = (3.0, 2.0, 0.0)
COARSE, MIDDLE, FINE = range(3)

#: Boxes whose centers are nearer than this are one start, in mm.
APART_MM = 8.0

#: Boxes that the first scan tries have sides up to this, in mm.
LONGEST_SCANNED_MM = 48.0

#: How many rows of places the first scan tries, about.
N_PLACES = 100

#: Boxes along the image's axes hold less of a tilted lesion than turned ones will, so the scan asks for less purity.
LENIENCY = 3.0

#: By how much boxes are turned before free searches start from them, in radians.
FIRST_TURN = 0.8

#: Search kinds: along the scanner's axes, turned about one, about two, freely (see `placement.box.overlap`).
FAMILIES = {0: (0,), 1: (1, 2, 3), 2: (4, 5, 6), 3: (7,)}

#: Refining lowers minus the logarithm of the objective by no more than about this.
NEAR_ENOUGH = 0.15

#: A box touches what is excluded where it shares more than this part of its volume beyond what is tolerated.
TOUCH = 1e-9

#: The part of a box, grown by this on each side, that is tumor tells how deep it lies, in mm.
BULK_MM = 10.0

#: Ways to turn the boxes of the scan; free searches start from the best of them at each place.
N_TURNS = 24

#: Rounds of searches: which part of the boxes, the best, goes on, and how many evaluations each has used at the end.
QUICK = ((1.0, 30), (0.375, 80), (0.19, 130))  # on the coarsest rows
THOROUGH = ((1.0, 60), (0.6, 200))  # in place of it, where time does not matter
ALL = ((1.0, 130),)  # in place of it, for candidates, of which none is to be left behind
STRAIGHT = ((1.0, 30), (0.5, 90))  # along the scanner's axes, to break ties
TURNED = ((1.0, 25), (0.25, 70))  # with one or two rotated axes, to break ties
MIDDLE_ROUNDS = ((1.0, 60), (0.6, 170))
FINE_ROUNDS = ((1.0, 50), (0.67, 120))

#: Where something is excluded: how many places in what is left start searches of their own, and within which reach of
#: them, in mm, its directions are taken; what a block of the scan loses for what is excluded in it, in parts of tumor.
N_LEFT, LEFT_MM, LOSS = 8, 14.0, 4.0

#: Rounds of moving boxes off what is excluded: the weight of touching it, and how far to stay off beyond the margin, in
#: mm, because searches look at one row for each image voxel and may miss a corner.
CLEARING = ((30.0, 0.2), (300.0, 0.4))
FARTHER_MM = (0.8, 1.3)

#: A second search follows where no box that touches nothing holds this part of tumor: how many boxes, and their rounds.
ENOUGH = 0.8
N_SQUEEZED = 40
SQUEEZED = ((1.0, 100), (0.5, 250))

#: Rows to an image voxel along each of two axes where boxes are compared.
PARTS = 3


@dataclass(frozen=True)
class Wishes:
    """What is asked of a voxel and of its search: the checked parameters of `placement.VoxelOptimizer`."""

    objective: PlacementObjective
    sizes: NDArray[np.float64]
    min_volume: float
    max_rotations: int
    thorough: bool
    tie_break: float
    rounding: tuple[float, float, float] | None
    inside_image: bool
    random_state: RandomState


class Boxes(NamedTuple):
    """Boxes that a search ended with, or is to start from."""

    x: NDArray[np.float64]
    kinds: NDArray[np.int64]
    bases: NDArray[np.float64]
    origins: NDArray[np.float64]
    costs: NDArray[np.float64]
    boxes: NDArray[np.float64]

    def take(self, index: Any) -> Boxes:
        """Take those of these numbers."""
        return Boxes(*(np.ascontiguousarray(values[index]) for values in self))

    def distinct(self, n: int) -> Boxes:
        """Take the best that differ in center or sides by 2 mm, best first."""
        return self.take(
            overlap.distinct(self.boxes, np.argsort(self.costs, kind="stable"), n, 2.0)
        )

    def promising(self, objective: float) -> bool:
        """Tell whether the best is near enough to an objective that refining may reach it."""
        return bool(self.costs.min() <= NEAR_ENOUGH - np.log(max(objective, 1e-300)))


class Search:
    """
    A search in one scene.

    Parameters
    ----------
    wishes : Wishes
        What is asked.
    scene : Scene
        The tumor.

    Raises
    ------
    TypeError
        If the scene is something else.
    """

    def __init__(self, wishes: Wishes, scene: Scene) -> None:
        given: Any = scene
        if not isinstance(given, Scene):
            raise TypeError(
                f"a voxel is placed in a Scene, got {type(given).__name__}; make one of the tumor and its affine"
            )
        self.wishes = wishes
        self.scene = scene
        self.rows: Rows = scene.rows
        self.whole = (
            self.rows.prefix,
            self.rows.matrix,
            np.linalg.inv(self.rows.matrix),
            self.rows.offset,
        )

    def limits(self, weight: float = 3.0) -> NDArray[np.float64]:
        """Give the numbers that the compiled search takes; see `placement.box.overlap.descend`."""
        o = self.wishes.objective
        return np.array(
            [
                o.mean_volume * MM3_PER_ML,
                o.sd_volume * MM3_PER_ML,
                o.mean_fraction,
                o.sd_fraction,
                float(o.one_sided),
                self.wishes.min_volume * MM3_PER_ML,
                *np.log(self.wishes.sizes[:, 0]),
                *np.log(self.wishes.sizes[:, 1]),
                weight,
            ]
        )

    def prepare(self) -> None:
        """Average rows for the quick searches, and gather what is excluded near the tumor."""
        rows = self.rows
        edges = np.linalg.norm(rows.matrix, axis=0)
        axes = list(rows.axes)
        low = np.array([0.5, 0.5, -0.5]) - np.array(self.scene.origin, dtype=np.float64)[axes]
        high = low + np.array(self.scene.shape)[axes]
        if not self.wishes.inside_image:
            low, high = np.full(3, -1e9), np.full(3, 1e9)
        self.grids, self.ends = [], []
        # Boxes in small tumors are small, and need finer blocks to be told apart.
        largest = 0.12 * np.cbrt(self.scene.tumor_volume * MM3_PER_ML)
        for size in BLOCK_MM:
            block = np.maximum(1, np.rint(min(size, largest) / edges)).astype(int)
            # The first block's middle, at index 1, lies half a block from the outer face of the first row, at index 1.
            scale, move = np.array([*block[:2], 1.0]), np.array([*(1 - block[:2]) / 2, 0.0])
            averaged = rows.prefix
            if block[:2].max() > 1:
                averaged = overlap.average_rows(rows.prefix, int(block[0]), int(block[1]))
            wide = rows.matrix * scale
            self.grids.append(
                (averaged, wide, self.whole[2] / scale[:, None], rows.offset + rows.matrix @ move)
            )
            self.ends.append(((low - move) / scale, (high - move) / scale))
            if len(self.grids) == 1:
                self.block = block
        self.forbid()

    def forbid(self) -> None:
        """Stack running sums of what is excluded: one of each strict margin, one of each region that is tolerated."""
        scene = self.scene
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, margin in scene.margins.items():
            tolerated = scene.tolerances[name]
            groups.setdefault((margin, tolerated, name if tolerated else ""), []).append(name)
        self.margins = np.array([key[:2] for key in groups], dtype=np.float64).reshape(-1, 2)
        stacked, place = np.zeros((0, 2, 2, 2), dtype=np.float32), self.rows.offset
        if groups:
            reach = np.ceil(
                (self.wishes.sizes.max() * 0.87 + self.margins[:, 0].max()) / scene.spacing
            ).astype(int)
            origin = np.array(scene.origin) - reach
            shape = np.array(scene.occupancy.shape) + 2 * reach
            found = [
                Rows.of(scene.forbidden_in(origin, shape, names=names), scene.affine, origin)
                for names in groups.values()
            ]
            stacked, place = np.stack([one.prefix for one in found]), found[0].offset
        self.forbidden = stacked, place, self.rows.matrix, self.whole[2]

    def starts(self, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scan boxes along the image's axes: centers in mm and sides, of at most `n` that lie apart."""
        rows = self.rows
        edges = np.linalg.norm(rows.matrix, axis=0) * self.block
        volume = abs(np.linalg.det(rows.matrix)) * np.prod(self.block)
        averaged = self.left()
        n_blocks = (averaged.shape[0] - 2) * (averaged.shape[1] - 2)
        stride = max(
            1, int(np.ceil(np.sqrt(n_blocks / (N_PLACES * (3 if self.wishes.thorough else 1)))))
        )
        limits = self.limits()
        limits[3] *= LENIENCY
        limits[6:9], limits[9:12] = limits[6:9].min(), limits[9:12].max()
        places, sides, costs = overlap.scan(
            averaged, int(self.block[2]), edges, volume, limits, stride, LONGEST_SCANNED_MM
        )
        if not len(places):
            return self.scene.centroid[None], np.full(
                (1, 3), np.cbrt(max(limits[5], np.exp(limits[6]) ** 3))
            )
        centers = (places * self.block + (0.5, 0.5, -0.5)) @ rows.matrix.T + rows.offset
        kept = overlap.apart(centers, np.argsort(costs, kind="stable"), n, APART_MM)
        # The sides go to the scanner's axes that their image axes are nearest to.
        from scipy.optimize import linear_sum_assignment

        which, axis = linear_sum_assignment(
            -np.abs(rows.matrix / np.linalg.norm(rows.matrix, axis=0))
        )
        sizes = np.empty((len(kept), 3))
        sizes[:, which] = (sides[kept] * edges)[:, axis]
        return centers[kept], sizes

    def left(self) -> NDArray[np.float32]:
        """Give running sums of blocks of rows of the tumor, less what is excluded in it and within its margins."""
        scene, averaged = self.scene, self.grids[COARSE][0]
        strict = {
            name: margin for name, margin in scene.margins.items() if not scene.tolerances[name]
        }
        if not strict:
            return averaged
        from scipy.ndimage import distance_transform_edt

        shape = scene.occupancy.shape
        lost = np.zeros(shape, dtype=bool)
        for name, margin in strict.items():
            reach = np.ceil(margin / scene.spacing).astype(int)
            region = scene.forbidden_in(
                np.array(scene.origin) - reach, np.array(shape) + 2 * reach, names=[name]
            )
            if margin > 0 and region.any():
                region = distance_transform_edt(~region, sampling=scene.spacing) <= margin
            lost |= region[tuple(slice(r, r + n) for r, n in zip(reach, shape, strict=True))]
        if not lost.any():
            return averaged
        rows = Rows.of(scene.occupancy - np.float32(LOSS) * lost, scene.affine, scene.origin)
        return overlap.average_rows(rows.prefix, int(self.block[0]), int(self.block[1]))

    def inner(self) -> Boxes:
        """Lay boxes of the least volume along the thick places of what of the tumor is not excluded."""
        from scipy.ndimage import distance_transform_edt

        depth = int(self.block[2])
        sums = self.left()[1:-1, 1:-1]
        sums = np.concatenate([sums[:, :, :-1:depth], sums[:, :, -1:]], axis=2)
        inside = np.pad(np.diff(sums, axis=2) / depth > 0.5, 1)
        edges = np.linalg.norm(self.rows.matrix, axis=0) * self.block
        index = np.argwhere(inside)
        if not len(index):
            return self.spread(np.empty((0, 3)), np.empty((0, 3)), (0,), np.eye(3)[None])
        thick = distance_transform_edt(inside, sampling=edges)[tuple(index.T)]
        points = (
            (index - 0.5) * self.block + (0.5, 0.5, -0.5)
        ) @ self.rows.matrix.T + self.rows.offset
        kept = overlap.apart(points, np.argsort(-thick, kind="stable"), N_LEFT, APART_MM)
        low, high = np.log(self.wishes.sizes.T)
        least = max(self.wishes.min_volume, 0.3 * self.wishes.objective.mean_volume) * MM3_PER_ML
        found = []
        for place in points[kept]:
            near = points[((points - place) ** 2).sum(axis=1) <= LEFT_MM**2]
            middle = near.mean(axis=0)
            spread, turn = np.linalg.eigh((near - middle).T @ (near - middle) / len(near))
            turn *= np.linalg.det(turn)
            sides = np.log(np.sqrt(np.maximum(spread, 1.0)))
            if self.wishes.max_rotations == 3:
                box = Voxel.from_rotation(place, np.exp(sides), turn).canonical()
                base, sides = box.rotation, np.log(box.size)
            else:
                base, sides = np.eye(3), np.zeros(3)
            for _ in range(3):
                sides = np.clip(sides + (np.log(least) - sides.sum()) / 3, low, high)
            kind = (7,) if self.wishes.max_rotations == 3 else FAMILIES[self.wishes.max_rotations]
            found.append(
                self.spread(
                    np.stack([place, middle]), np.exp(sides)[None], kind, base[None], (0.3,)
                )
            )
        return _join(*found)

    def descend(
        self,
        start: Boxes,
        steps: Sequence[float],
        rounds: Sequence[tuple[float, int]],
        level: int,
        weight: float = 3.0,
        away: float = 0.0,
    ) -> Boxes:
        """Run the simplex searches: in each round a part of them, the best, until each has used so many evaluations."""
        x, costs, boxes = overlap.descend(
            start.x,
            start.kinds,
            start.bases,
            start.origins,
            *self.common(level, weight, away),
            np.array(steps, dtype=np.float64),
            np.array(
                [(max(1, round(part * len(start.x))), n_evals) for part, n_evals in rounds],
                dtype=np.int64,
            ),
            1e-3 if level == COARSE else 1e-5,
        )
        return Boxes(x, start.kinds, start.bases, start.origins, costs, boxes)

    def spread(
        self,
        centers: NDArray,
        sizes: NDArray,
        kinds: Sequence[int],
        turns: NDArray,
        angles: Sequence[float] = (0.0,),
    ) -> Boxes:
        """Combine places with search kinds and first rotations."""
        ways = [(kind, base, angle) for kind in kinds for base in turns for angle in angles]
        m = len(centers)
        n = m * len(ways)
        x = np.zeros((len(ways), m, 9))
        x[:, :, 3:6] = np.log(sizes)
        for row, (kind, _, angle) in zip(x, ways, strict=True):
            row[:, 6:8] = angle if 0 < kind < 7 else 0.0
        return Boxes(
            x.reshape(n, 9),
            np.repeat(np.array([kind for kind, _, _ in ways], dtype=np.int64), m),
            np.repeat(np.array([base for _, base, _ in ways]), m, axis=0),
            np.tile(centers, (len(ways), 1)),
            np.zeros(n),
            np.zeros((n, 5, 3)),
        )

    def run(self, n_starts: int, n_fine: int, *, every: bool = False) -> Boxes:
        """Search: the refined boxes, free ones and, where ties are to be broken, ones along the scanner's axes."""
        self.prepare()
        wishes = self.wishes
        if wishes.thorough:
            n_starts, n_fine = (3 * n_starts) // 2, 2 * n_fine
        centers, sides = self.starts(n_starts)
        one = np.eye(3)[None]
        quick = self.spread(centers, sides, FAMILIES[wishes.max_rotations], one, (0.3,))
        if wishes.max_rotations == 3:
            quick = _join(quick, self.best_turned(centers, sides, 4 if wishes.thorough else 1))
        if len(self.margins):
            quick, n_fine = _join(quick, self.inner()), n_fine + 3
        rounds = ALL if every else THOROUGH if wishes.thorough else QUICK
        quick = self.descend(quick, (4.0, 0.15, 0.35), rounds, COARSE)
        fine = self.refined(quick, n_fine)
        if len(self.margins) and not self.satisfied(fine):
            fine = _join(fine, self.squeezed(centers))
        self.straight = quick
        if wishes.max_rotations > 0 and wishes.tie_break > 0 and not every:
            straight = self.spread(centers[:8], sides[:8], (0,), one)
            self.straight = self.descend(straight, (4.0, 0.15, 0.35), STRAIGHT, COARSE)
            if self.straight.promising(float(np.exp(-fine.costs.min())) * (1 - wishes.tie_break)):
                fine = _join(fine, self.refined(self.straight, 2))
        return fine

    def refined(self, quick: Boxes, n: int) -> Boxes:
        """Make the best distinct ones exact."""
        fine = self.descend(quick.distinct(n), (1.5, 0.06, 0.12), MIDDLE_ROUNDS, MIDDLE)
        order = np.argsort(fine.costs, kind="stable")
        half = (n + 1) // 2
        better = self.descend(fine.take(order[:half]), (0.8, 0.03, 0.06), FINE_ROUNDS, FINE)
        if self.wishes.thorough:
            better = self.descend(better, (3.0, 0.1, 0.2), ((1.0, 450),), FINE)
        fine = _join(better, fine.take(order[half:]))
        return self.cleared(fine) if len(self.margins) else fine

    def cleared(self, boxes: Boxes) -> Boxes:
        """Move boxes off what is excluded."""
        for weight, away in CLEARING:
            boxes = self.descend(boxes, (1.0, 0.05, 0.05), ((1.0, 150),), FINE, weight, away)
        for away in FARTHER_MM:
            touching = np.array([bool(self.touched(self.voxel(box))) for box in boxes.boxes])
            if not touching.any():
                break
            moved = self.descend(
                boxes.take(touching), (1.0, 0.05, 0.05), ((1.0, 150),), FINE, CLEARING[-1][0], away
            )
            boxes = _join(boxes.take(~touching), moved)
        return boxes

    def satisfied(self, boxes: Boxes) -> bool:
        """Tell whether a box that touches nothing is mostly tumor."""
        parts = overlap.fractions(boxes.boxes, self.whole, 0.0, 1)
        return any(
            part >= ENOUGH and not self.touched(self.voxel(b))
            for part, b in zip(parts, boxes.boxes, strict=True)
        )

    def squeezed(self, centers: NDArray[np.float64]) -> Boxes:
        """Search longer, from the least boxes turned in all ways, and hardly let them touch what is excluded."""
        start = self.inner()
        if not len(start.x):
            return start
        places = np.concatenate([start.origins, centers])
        sizes = np.exp(
            np.concatenate([start.x[:, 3:6], np.tile(start.x[:1, 3:6], (len(centers), 1))])
        )
        family = FAMILIES[self.wishes.max_rotations]
        if family == (7,):
            turned = _join(start, self.spread(places, sizes, family, self.turns(N_TURNS)))
        else:
            turned = self.spread(places, sizes, family, np.eye(3)[None], (0.0, 0.4, -0.4))
        costs = overlap.costs_of(*turned[:4], *self.common(COARSE, *CLEARING[0]))
        turned = turned.take(np.argsort(costs, kind="stable")[:N_SQUEEZED])
        found = self.descend(turned, (4.0, 0.15, 0.35), SQUEEZED, COARSE, *CLEARING[0])
        found = self.descend(
            found.distinct(6), (1.5, 0.06, 0.12), ((1.0, 250),), MIDDLE, *CLEARING[0]
        )
        return self.cleared(found)

    def best_turned(
        self, centers: NDArray[np.float64], sides: NDArray[np.float64], n: int
    ) -> Boxes:
        """Turn boxes in many ways and take, for each place, the `n` ways that are best before any search."""
        turned = self.spread(centers, sides, FAMILIES[3], self.turns(N_TURNS))
        costs = overlap.costs_of(*turned[:4], *self.common(COARSE)).reshape(N_TURNS, -1)
        best = np.argsort(costs, axis=0, kind="stable")[:n]
        return turned.take((best * len(centers) + np.arange(len(centers))).ravel())

    def common(
        self, level: int, weight: float = 3.0, away: float = 0.0
    ) -> tuple[Any, Any, Any, Any, Any, Any]:
        """Give the arguments that all compiled searches share; margins of what is strict grow by `away`, in mm."""
        low, high = self.ends[level]
        margins = self.margins
        if away:
            margins = margins + np.outer(margins[:, 1] == 0, (away, 0.0))
        return self.grids[level], self.forbidden, margins, low, high, self.limits(weight)

    def turns(self, n: int) -> NDArray[np.float64]:
        """Draw rotations to start from, the same for the same seed."""
        rng = np.random.default_rng(seed_for(seed_from(self.wishes.random_state), "turns"))
        axes = rng.normal(size=(n, 3))
        x, y, z = (axes / np.sqrt((axes**2).sum(axis=1, keepdims=True))).T
        cross = np.zeros((n, 3, 3))
        cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
        cross -= cross.transpose(0, 2, 1)
        # Rodrigues
        return np.asarray(
            np.eye(3) + np.sin(FIRST_TURN) * cross + (1 - np.cos(FIRST_TURN)) * cross @ cross
        )

    def costs(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give minus the logarithms of the objectives of boxes, which tell them apart where objectives are 0."""
        parts = overlap.fractions(boxes, self.whole, 0.0, PARTS)
        volumes = boxes[:, 1].prod(axis=1) / MM3_PER_ML
        return np.array(
            [self.wishes.objective.cost(f, f * v) for f, v in zip(parts, volumes, strict=True)]
        )

    def values(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the objectives of boxes."""
        return np.exp(-self.costs(boxes))

    def chosen(self, found: Boxes) -> tuple[Voxel, float]:
        """Take the best voxel, or a simpler one that is nearly as good; with it, the objective of the best."""
        costs = self.costs(found.boxes)
        values = np.exp(-costs)
        order = np.argsort(costs, kind="stable")
        best, free = self.first_sound(found.boxes[order])
        if free is None:
            # What breaks fewest constraints, if all break some.
            voxels = [self.voxel(box) for box in found.boxes[order]]
            best = int(np.argmin([len(self.flags(voxel, own=True)) for voxel in voxels]))
            return voxels[best], float(values[order[best]])
        value = float(values[order[best]])
        if self.wishes.tie_break == 0:
            return free, value
        enough = value * (1 - self.wishes.tie_break)
        near = found.boxes[order[values[order] >= enough]]
        counts = np.array([rotated_axes(box[2:5]) for box in near])
        for count in range(free.rotated_axes + 1):
            pool = near[counts <= count]
            if not len(pool) and 0 < count < free.rotated_axes:
                pool = self.turned(count, enough)
            _, simple = self.first_sound(self.deepest_first(pool))
            if simple is not None:
                return simple, value
        return free, value

    def first_sound(self, boxes: NDArray[np.float64]) -> tuple[int, Voxel | None]:
        """Find the first box that keeps all constraints: its number and the voxel."""
        for number, box in enumerate(boxes):
            voxel = self.voxel(box)
            if not self.flags(voxel, own=True):
                return number, voxel
        return -1, None

    def deepest_first(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Order boxes by how deep in the tumor they lie: how much of them is tumor when they are grown."""
        if len(boxes) < 2:
            return boxes
        return boxes[np.argsort(-overlap.fractions(boxes, self.whole, BULK_MM, 1), kind="stable")]

    def turned(self, count: int, enough: float) -> NDArray[np.float64]:
        """Search boxes with one or two rotated axes that reach an objective; none if no quick search comes near."""
        few = self.straight.distinct(2).boxes
        quick = self.spread(few[:, 0], few[:, 1], FAMILIES[count], np.eye(3)[None], (0.35, -0.35))
        quick = self.descend(quick, (3.0, 0.1, 0.3), TURNED, COARSE)
        if not quick.promising(enough):
            return few[:0]
        found = self.refined(quick, 1).boxes
        return found[self.values(found) >= enough]

    def voxel(self, box: NDArray[np.float64]) -> Voxel:
        """Describe a box by its canonical pose."""
        return Voxel.from_rotation(box[0], box[1], box[2:5]).canonical()

    def value(self, voxel: Voxel) -> float:
        """Give the objective of a voxel, as `values` does."""
        box = np.concatenate([voxel.center[None], voxel.size[None], voxel.rotation])
        return float(self.values(box[None])[0])

    def flags(self, voxel: Voxel, *, own: bool = False) -> tuple[str, ...]:
        """List the constraints that a voxel breaks; `own` leaves out what no voxel could keep."""
        found = []
        least = self.wishes.min_volume
        if not own and self.scene.tumor_volume < least:
            found.append("tumor smaller than min_volume")
        if voxel.volume < least * (1 - 1e-9):
            found.append("volume below min_volume")
        ranges = self.wishes.sizes
        if (voxel.size < ranges[:, 0] - 1e-6).any() or (voxel.size > ranges[:, 1] + 1e-6).any():
            found.append("side out of range")
        if voxel.rotated_axes > self.wishes.max_rotations:
            found.append("too many rotations")
        if self.wishes.inside_image and not self.scene.holds(voxel):
            found.append("outside the image")
        found += [f"touches {name}" for name in self.touched(voxel)]
        return tuple(found)

    def touched(self, voxel: Voxel) -> list[str]:
        """Name the excluded regions of which a voxel, grown by their margins, holds more than is tolerated."""
        names = []
        for name, margin in self.scene.margins.items():
            grown = Voxel(voxel.center, voxel.size + 2 * margin, voxel.angles)
            rows = self.scene.forbidden_rows[name]
            if (
                rows is not None
                and rows.fraction(grown, row_mm=1.0) > self.scene.tolerances[name] + TOUCH
            ):
                names.append(name)
        return names

    def rounded(self, voxel: Voxel) -> Voxel:
        """
        Round to what a console takes, each side up or down.

        Of the sides nearest above and below, and, should all of those break a constraint, of those some steps farther,
        the ones that keep all constraints and have the largest objective.
        """
        assert self.wishes.rounding is not None
        of_center, of_size, of_angle = self.wishes.rounding
        center = (np.round(voxel.center / of_center) * of_center).round(6)
        angles = (np.round(voxel.angles / of_angle) * of_angle).round(6)
        down = np.floor(voxel.size / of_size + 1e-9)
        nearest = None
        for reach in (0, 1, 3):
            options = []
            for steps in np.ndindex((2 + 2 * reach,) * 3):
                size = ((down + np.array(steps) - reach) * of_size).round(6)
                if (size > 0).all():
                    options.append(Voxel(center, size, angles))
            boxes = np.array([[v.center, v.size, *v.rotation] for v in options]).reshape(-1, 5, 3)
            order = np.argsort(-self.values(boxes), kind="stable")
            nearest = options[order[0]] if nearest is None and len(order) else nearest
            for index in order:
                if not self.flags(options[index], own=True):
                    return options[index]
        return voxel if nearest is None else nearest


def _join(*searches: Boxes) -> Boxes:
    return Boxes(*(np.concatenate(columns) for columns in zip(*searches, strict=True)))
