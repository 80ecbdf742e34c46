"""The search for the best box in a scene: many quick searches, then a few exact ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from placement.box import overlap
from placement.box.overlap import Excluded, Grid, Preference, Problem, SlideSettings
from placement.box.row_integrals import Rows
from placement.box.voxel import MM3_PER_ML, PARALLEL_DEGREES, Voxel, allowed_sides, angles_of
from placement.search.objective import PlacementObjective, objective_parameters
from placement.search.scene import Scene

#: Edges of the blocks of rows that searches average over, in mm: the first, the second, the last.
BLOCK_MM = (3.0, 2.0, 0.0)
COARSE, MIDDLE, FINE, EXACT = range(4)

#: Boxes whose centers are nearer than this are one start, in mm.
APART_MM = 6.0

#: Boxes that the first scan tries have sides up to this, in mm.
LONGEST_SCANNED_MM = 48.0

#: About how many lines of places the first scan tries.
N_PLACES = 100

#: Part of the fraction of tumor in a box grown by two blocks that the scan subtracts.
DEEP = 0.05

#: Boxes along the image's axes contain less of a tilted lesion than turned ones will, so the scan
#: allows so many times the standard deviation of the fraction.
LENIENCY = 3.0

#: Angles of the console that searches of so many angles vary.
FAMILIES = {
    0: [(0, 0, 0)],
    1: [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
    2: [(1, 1, 0), (0, 1, 1), (1, 0, 1)],
    3: [(1, 1, 1)],
}

#: Angles that searches start from, in radians; with three angles, so many are drawn between.
TILTS = (-0.75, -0.4, -0.1, 0.1, 0.4, 0.75)
N_TURNS = 24

#: A region touches a box where its fraction of the box exceeds the tolerance by more than this.
TOUCH, TOUCH_INVERTED = 1e-9, 1e-5

#: First steps of simplex searches: the center in mm, logarithms of sides, rotations in radians.
COARSE_STEPS, MIDDLE_STEPS, FINE_STEPS = (4.0, 0.15, 0.35), (1.5, 0.06, 0.12), (0.8, 0.03, 0.06)

#: Rounds of simplex searches: the fraction of boxes that continue, the best, and how many
#: evaluations each has used at the end of the round.
QUICK = ((1.0, 30), (0.375, 80), (0.19, 130))  # on the coarsest rows
ALL = ((1.0, 130),)  # the same, for candidates, all of which must be searched to the end
SIMPLE = ((1.0, 30), (0.5, 90))  # with fewer angles, to break ties
MIDDLE_ROUNDS = ((1.0, 60), (0.6, 170))
FINE_ROUNDS = ((1.0, 50), (0.67, 120))

#: The last simplex search, because the objective bends where voxels end and searches along the
#: gradient may stop there: its first steps and evaluations.
LAST_STEPS, LAST_ROUNDS = (2.0, 0.1, 0.2), ((1.0, 140),)

#: Slices are thick from this ratio of edges of image voxels on. Their faces are steps of the
#: objective, which only searches from more places overcome.
THICK = 1.5

#: Searches keep the longest side to this part of what is allowed against the shortest.
ROOM = 0.92

#: Largest steps along the gradient: of the center in mm, of the logarithms of sides, of angles.
SLIDE_STEPS = (4.0, 0.2, 0.2)

#: Along the gradient, by level of rows: mm between the points on faces where it is measured, at
#: what change of the cost a box is done, and after how many steps.
SLIDE_LEVELS = ((5.0, 2e-3, 20), (2.5, 1e-4, 15), (1.5, 1e-5, 15), (1.0, 1e-6, 20))

#: From how many places boxes start: limited rotations and free ones.
N_STARTS, N_FREE_STARTS = 20, 34

#: How many boxes are searched, the best: few where one costs no more than this from the start,
#: because no other can be better by more.
N_EASY, N_HARD, EASY = 12, 90, 0.02

#: At last, rows lie no farther apart than this, in mm, but no more of them to an image voxel.
EXACT_MM, MOST_ROWS = 0.5, 4

#: How many boxes are made exact at last.
N_EXACT = 2

#: Curvature to start with where the objective is flat.
FLAT = 0.1

#: What 10 mm from the centroid, or a side longer by a factor of 2.7, add to the cost among boxes
#: that are nearly as good as the best.
PREFERENCE = 0.02

#: To break ties: from how many places and from how many of the best boxes simpler ones start.
N_STRAIGHT, N_TILTED = 5, 2

#: Where regions are excluded: how many points of the tumor outside them start searches, the
#: radius within which the tumor gives the directions of a box, its part of the target volume, and
#: how much tumor the scan subtracts for each excluded voxel.
N_INNER, INNER_MM, INNER_PART, LOSS = 8, 14.0, 0.3, 4.0

#: Rounds of moving boxes off excluded regions: the penalty, and how far beyond the margin, in mm,
#: because searches look at one row for each image voxel and may miss a corner.
CLEARING = ((30.0, 0.2), (300.0, 0.4))
STRICTER = 0.9
FARTHER_MM = (0.8, 1.3)

#: Rows to an image voxel along each of two axes where boxes are compared.
N_ROWS = 3


@dataclass(frozen=True)
class Wishes:
    """The checked parameters of `placement.VoxelOptimizer`."""

    objective: PlacementObjective
    sizes: NDArray[np.float64]
    min_volume: float
    max_rotations: int
    max_aspect: float | None
    thorough: bool
    tie_break: float
    rounding: tuple[float, float, float] | None
    inside_image: bool
    random_state: RandomState


class Boxes(NamedTuple):
    """
    Boxes at the start or the end of a search.

    Shapes: `x` (n, 9): center, logarithms of sides, angles in radians; `free` (n, 3), 1 for angles
    that are varied and else 0; `costs` (n,); `boxes` (n, 5, 3): center, sides and the rows of the
    rotation.
    """

    x: NDArray[np.float64]
    free: NDArray[np.float64]
    costs: NDArray[np.float64]
    boxes: NDArray[np.float64]

    def take(self, index: Any) -> Boxes:
        """Take the boxes of these numbers."""
        return Boxes(*(np.ascontiguousarray(values[index]) for values in self))

    def distinct(self, n: int, difference: float = 2.0) -> Boxes:
        """Take the best that differ in center or sides by more, in mm; best first."""
        order = np.argsort(self.costs, kind="stable")
        numbers = self.boxes[:, :2].reshape(-1, 6)
        return self.take(overlap.apart(numbers, order, n, difference, True))


def grid_of(rows: Rows) -> Grid:
    """Describe running sums to compiled code."""
    inverse = np.linalg.inv(rows.matrix).astype(np.float64)
    return Grid(rows.prefix, rows.matrix, inverse, rows.offset)


class Search:
    """A search in one scene, with the parameters `wishes` of the optimizer."""

    def __init__(self, wishes: Wishes, scene: Scene) -> None:
        # Typed as anything, because mypy would take the check for unreachable.
        candidate: Any = scene
        if not isinstance(candidate, Scene):
            raise TypeError(
                f"a voxel is placed in a Scene, got {type(candidate).__name__}; "
                "make one of the tumor and its affine"
            )
        self.wishes = wishes
        # Searches run in one storage, so that all storages of a scene get the same box.
        self.scene = scene.canonical
        # Regions to stay away from, with their margins in mm.
        self.avoided: Mapping[str, float] = scene.margins
        self.preference = 0.0
        self.preferred = self.scene.centroid
        self.log_aspect = overlap.NO_LIMIT
        if wishes.max_aspect is not None:
            # Rounding of sides may make them less alike.
            self.log_aspect = float(np.log(max(1.0, ROOM * wishes.max_aspect)))
        self.log_sizes = np.ascontiguousarray(np.log(wishes.sizes).T)
        # Centers and sides that searches for simpler boxes start from; None before `run`.
        self.places: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        # The best box, whether or not a simpler one is taken.
        self.free: Voxel | None = None
        # Simplex searches, where regions are excluded, are slower.
        is_free = wishes.max_rotations == 3 and not scene.margins
        self.n_starts = N_FREE_STARTS if is_free else N_STARTS
        edges = np.linalg.norm(scene.rows.matrix, axis=0)
        self.thorough = wishes.thorough or bool(edges.max() > THICK * edges.min())
        self.see(scene.rows)

    def see(self, rows: Rows) -> None:
        """Search in a tumor of these rows."""
        self.rows: Rows = rows
        self.whole = grid_of(rows)

    def prepare(self) -> None:
        """Average rows for the quick searches, and gather what is excluded near the tumor."""
        rows = self.rows
        edges = np.linalg.norm(rows.matrix, axis=0)
        finest = np.ceil(edges[:2].max() / EXACT_MM)
        self.n_rows = int(np.clip(finest, 1, MOST_ROWS))
        axes = list(rows.axes)
        # Outer faces of the image in indices of the prefix sums, whose first rows are empty.
        low = np.array([0.5, 0.5, -0.5]) - np.array(self.scene.origin, dtype=np.float64)[axes]
        high = low + np.array(self.scene.shape)[axes]
        if not self.wishes.inside_image:
            low, high = np.full(3, -1e9), np.full(3, 1e9)
        self.grids: list[Grid] = []
        self.ends: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        # Boxes in small tumors are small, and need finer blocks to be told apart.
        largest = 0.12 * np.cbrt(self.scene.tumor_volume * MM3_PER_ML)
        for size in BLOCK_MM:
            block = np.maximum(1, np.rint(min(size, largest) / edges)).astype(int)
            scale = np.array([*block[:2], 1.0])
            # The first block's middle, at index 1, lies half a block from the outer face of the
            # first row, at index 1.
            move = np.array([*(1 - block[:2]) / 2, 0.0])
            averaged = rows.prefix
            if block[:2].max() > 1:
                averaged = overlap.average_rows(rows.prefix, int(block[0]), int(block[1]))
            matrix = rows.matrix * scale
            inverse = self.whole.inverse / scale[:, None]
            self.grids.append(Grid(averaged, matrix, inverse, rows.offset + rows.matrix @ move))
            self.ends.append(((low - move) / scale, (high - move) / scale))
            if len(self.grids) == 1:
                self.block = block
        self.forbid()

    def forbid(self) -> None:
        """Sum excluded regions along rows, strict ones of one margin together."""
        scene = self.scene
        groups: dict[tuple[float, float, str], list[str]] = {}
        for name, margin in self.avoided.items():
            tolerance = scene.tolerances[name]
            # Strict regions of one margin can be joined; tolerated ones are measured one by one.
            key = (margin, tolerance, name if tolerance else "")
            groups.setdefault(key, []).append(name)
        margins = [(margin, tolerance) for margin, tolerance, _ in groups]
        self.margins = np.array(margins, dtype=np.float64).reshape(-1, 2)
        sums = np.zeros((0, 2, 2, 2), dtype=np.float32)
        offset = self.rows.offset
        if groups:
            # Half the diagonal of a cube is 0.87 of its side.
            farthest = self.wishes.sizes.max() * 0.87 + self.margins[:, 0].max()
            reach = np.ceil(farthest / scene.spacing).astype(int)
            origin = np.array(scene.origin) - reach
            shape = np.array(scene.occupancy.shape) + 2 * reach
            regions = []
            for names in groups.values():
                region = scene.forbidden_in(origin, shape, names=names)
                regions.append(Rows.of(region, scene.affine, origin))
            sums = np.stack([region.prefix for region in regions])
            offset = regions[0].offset
        self.excluded = Excluded(sums, self.margins, self.rows.matrix, self.whole.inverse, offset)

    def starts(self, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scan boxes along the image's axes; returns centers and sides of up to `n`, in mm."""
        from scipy.optimize import linear_sum_assignment

        usable = self.usable()
        shapes = self.shapes()
        # Beyond the ends the sums stay constant, so that boxes need no clipping along the last
        # axis.
        pad = max(3, int(shapes[:, 2].max(initial=0)) + 3)
        sums = np.pad(
            usable.cumsum(axis=2).cumsum(axis=1).cumsum(axis=0), ((1, 0), (1, 0), (pad + 1, 0))
        )
        sums = np.pad(sums, ((0, 0), (0, 0), (0, pad)), mode="edge")
        n_places = 3 * N_PLACES if self.wishes.thorough else N_PLACES
        stride = max(1, int(np.ceil(np.sqrt(usable.shape[0] * usable.shape[1] / n_places))))
        objective = self.wishes.objective
        lenient = replace(objective, sd_fraction=LENIENCY * objective.sd_fraction)
        element = abs(np.linalg.det(self.rows.matrix)) * np.prod(self.block)
        best, numbers = overlap.scan(
            sums, pad, shapes, element, objective_parameters(lenient, MM3_PER_ML), stride
        )
        if not len(shapes):
            # No plausible shape fits into the image: begin with the least volume in the middle.
            low = self.wishes.sizes.min()
            least = max(self.wishes.min_volume * MM3_PER_ML, low**3)
            return self.scene.centroid[None], np.full((1, 3), np.cbrt(least))
        # Neighbors of a place would be dropped one by one.
        order = np.argsort(best.ravel(), kind="stable")[: 40 * n]
        places = np.stack(np.unravel_index(order, best.shape), axis=1) * (stride, stride, 1)
        sides = shapes[numbers.ravel()[order]]
        low = places + np.array([stride // 2, stride // 2, 0]) - sides // 2
        # Of nearly equal costs the deeper box wins: it stays full when it is turned.
        ends = np.stack([low - 2, low + sides + 2])
        ends[:, :, :2] = np.clip(ends[:, :, :2], 0, usable.shape[:2])
        deep = np.zeros(len(low))
        for corner in itertools.product((0, 1), repeat=3):
            i, j, k = (ends[end, :, axis] for axis, end in enumerate(corner))
            deep += (-1) ** (1 + sum(corner)) * sums[i, j, pad + k]
        costs = best.ravel()[order] - DEEP * deep / (sides + 4).prod(axis=1)
        centers = self.points(low + 0.5 * sides - 0.5)
        selected = overlap.apart(centers, np.argsort(costs, kind="stable"), n, APART_MM)
        # The sides go to the scanner's axes that their image axes are nearest to.
        edges = np.linalg.norm(self.rows.matrix, axis=0)
        _, image_axes = linear_sum_assignment(-np.abs(self.rows.matrix / edges))
        return centers[selected], (sides[selected] * edges * self.block)[:, image_axes]

    def shapes(self) -> NDArray[np.int64]:
        """List the sides, in blocks of image voxels, of boxes with plausible volumes: (n, 3)."""
        wishes = self.wishes
        edges = np.linalg.norm(self.rows.matrix, axis=0) * self.block
        shortest, longest = wishes.sizes.min(), min(wishes.sizes.max(), LONGEST_SCANNED_MM)
        lengths = []
        for edge in edges:
            first = max(1, int(np.ceil(shortest / edge - 0.5)))
            length, side = [], first
            while side <= max(first, int(longest / edge + 0.5)):
                length.append(side)
                # Sides grow by a quarter at a time, so that few shapes cover the range.
                side += max(1, side // 4)
            lengths.append(length)
        shapes = np.array(list(itertools.product(*lengths)))
        volumes = shapes.prod(axis=1) * edges.prod() / MM3_PER_ML
        mean, least = wishes.objective.mean_volume, wishes.min_volume
        is_plausible = volumes >= 0.8 * max(least, 0.08 * mean)
        return shapes[is_plausible & (volumes <= max(2.0 * mean, 1.4 * least))]

    def points(self, index: NDArray[Any]) -> NDArray[np.float64]:
        """Give the middles of blocks of image voxels, by their indices (n, 3), in mm."""
        rows_index = (index + 0.5) * self.block + (0.5, 0.5, -0.5)
        return np.asarray(rows_index @ self.rows.matrix.T + self.rows.offset)

    def usable(self) -> NDArray[np.float32]:
        """Average the tumor over blocks, less excluded regions and their margins."""
        scene = self.scene
        sums = self.grids[COARSE].prefix
        excluded = self.excluded_voxels()
        if excluded.any():
            usable = scene.occupancy - np.float32(LOSS) * excluded
            rows = Rows.of(usable, scene.affine, scene.origin)
            sums = overlap.average_rows(rows.prefix, int(self.block[0]), int(self.block[1]))
        depth = int(self.block[2])
        sums = sums[1:-1, 1:-1]
        if (sums.shape[2] - 1) % depth:
            sums = np.concatenate([sums, sums[:, :, -1:].repeat(depth, axis=2)], axis=2)
        return np.diff(sums[:, :, ::depth], axis=2) / np.float32(depth)

    def excluded_voxels(self, *, strict: bool = True) -> NDArray[np.bool_]:
        """Mark excluded voxels, with their margins, on the tumor's grid; strict ones only."""
        from scipy.ndimage import distance_transform_edt

        scene = self.scene
        shape = scene.occupancy.shape
        excluded = np.zeros(shape, dtype=bool)
        for name, margin in self.avoided.items():
            if strict and scene.tolerances[name]:
                continue
            # Regions beyond the tumor's grid reach into it with their margins.
            reach = np.ceil(margin / scene.spacing).astype(int)
            origin = np.array(scene.origin) - reach
            region = scene.forbidden_in(origin, np.array(shape) + 2 * reach, names=[name])
            if margin > 0 and region.any():
                region = distance_transform_edt(~region, sampling=scene.spacing) <= margin
            inner = tuple(slice(r, r + n) for r, n in zip(reach, shape, strict=True))
            excluded |= region[inner]
        return excluded

    def inner(self) -> Boxes:
        """Start small boxes where the tumor is thick and not excluded."""
        from scipy.ndimage import distance_transform_edt

        count = self.wishes.max_rotations
        inside = np.pad(self.usable() > 0.5, 1)
        index = np.argwhere(inside)
        edges = np.linalg.norm(self.rows.matrix, axis=0) * self.block
        thickness = distance_transform_edt(inside, sampling=edges)[tuple(index.T)]
        points = self.points(index - 1.0)
        order = np.argsort(-thickness, kind="stable")
        volume = max(self.wishes.min_volume, INNER_PART * self.wishes.objective.mean_volume)
        starts = [self.spread(np.empty((0, 3)), np.empty((0, 3)), FAMILIES[count][0], np.zeros(3))]
        for center in points[overlap.apart(points, order, N_INNER, APART_MM)]:
            near = points[((points - center) ** 2).sum(axis=1) <= INNER_MM**2]
            middle = near.mean(axis=0)
            spread, turn = np.linalg.eigh((near - middle).T @ (near - middle) / len(near))
            sides, angles = np.ones(3), np.zeros(3)
            if count == 3:
                # Along the directions of the tumor; eigenvectors may be a reflection.
                turn *= np.linalg.det(turn)
                sides = np.sqrt(np.maximum(spread, 1.0))
                box = Voxel.from_rotation(center, sides, turn).canonical()
                sides, angles = box.size, np.radians(box.angles)
            sides = sides * np.cbrt(volume * MM3_PER_ML / sides.prod())
            sides = allowed_sides(sides, self.wishes.sizes, volume)
            for free in FAMILIES[count]:
                turned = angles if count == 3 else 0.3 * np.array(free)
                starts.append(self.spread(np.stack([center, middle]), sides[None], free, turned))
        return join_boxes(*starts)

    def descend(
        self,
        start: Boxes,
        steps: Sequence[float],
        rounds: Sequence[tuple[float, int]],
        level: int,
        penalty: float = 3.0,
        away: float = 0.0,
    ) -> Boxes:
        """
        Run simplex searches in rounds, each with a fraction of the boxes, the best.

        A round is that fraction and the number of evaluations that each box has used at its end;
        `penalty` and `away` are those of `common`.
        """
        # Averaged rows tell objectives apart no better than this.
        tolerance = 1e-3 if level == COARSE else 1e-5
        counts = [(max(1, round(share * len(start.x))), n_evals) for share, n_evals in rounds]
        x, costs, boxes = overlap.descend(
            start.x,
            start.free,
            self.common(level, penalty, away),
            np.array(steps, dtype=np.float64),
            np.array(counts, dtype=np.int64),
            tolerance,
        )
        return Boxes(x, start.free, costs, boxes)

    def slide(self, start: Boxes, level: int) -> Boxes:
        """Improve boxes along the gradient; excluded regions are not seen."""
        spacing, tolerance, n_steps = SLIDE_LEVELS[level]
        settings = SlideSettings(
            np.repeat(np.array(SLIDE_STEPS), 3), spacing, n_steps, tolerance, FLAT
        )
        x, costs, boxes = overlap.slide(start.x, start.free, self.common(level), settings)
        return Boxes(x, start.free, costs, boxes)

    def spread(
        self, centers: NDArray, sizes: NDArray, free: Sequence[int], angles: ArrayLike
    ) -> Boxes:
        """Combine centers and sides (m, 3) with angles (k, 3), of which `free` are varied."""
        turns = np.asarray(angles, dtype=np.float64).reshape(-1, 3)
        n = len(centers) * len(turns)
        x = np.zeros((len(turns), len(centers), 9))
        x[:, :, :3] = centers
        x[:, :, 3:6] = np.log(sizes)
        x[:, :, 6:] = turns[:, None]
        varied = np.tile(np.array(free, dtype=np.float64), (n, 1))
        return Boxes(x.reshape(n, 9), varied, np.zeros(n), np.zeros((n, 5, 3)))

    def started(self, boxes: NDArray[np.float64], free: Sequence[int]) -> Boxes:
        """Start from boxes (n, 5, 3) as they are."""
        angles = np.radians([angles_of(box[2:]) for box in boxes]).reshape(-1, 3)
        x = np.concatenate([boxes[:, 0], np.log(boxes[:, 1]), angles], axis=1)
        varied = np.tile(np.array(free, dtype=np.float64), (len(boxes), 1))
        return Boxes(x, varied, np.zeros(len(boxes)), boxes)

    def tilted(self, centers: NDArray, sizes: NDArray, count: int, n: int) -> Boxes:
        """Turn boxes by so many angles; for each center, take the `n` best of each choice."""
        tilted: list[Boxes] = []
        # One choice after the other, so that few boxes are in memory.
        for free in FAMILIES[count]:
            angles = np.array(list(itertools.product(TILTS, repeat=count)))
            if count == 3:
                rng = np.random.default_rng(seed_for(seed_from(self.wishes.random_state), "turns"))
                angles = rng.uniform(min(TILTS), max(TILTS), (N_TURNS, 3))
            turns = np.zeros((len(angles), 3))
            turns[:, np.array(free, dtype=bool)] = angles
            boxes = self.spread(centers, sizes, free, turns)
            costs = overlap.costs_of(boxes.x, self.common(COARSE)).reshape(len(turns), -1)
            best = np.argsort(costs, axis=0, kind="stable")[:n]
            tilted.append(boxes.take((best * len(centers) + np.arange(len(centers))).ravel()))
        return join_boxes(*tilted)

    def run(self, n_starts: int, n_fine: int, *, every: bool = False) -> Boxes:
        """Search: refined boxes of as many angles as are allowed."""
        self.prepare()
        if self.thorough:
            n_starts, n_fine = (3 * n_starts) // 2, 2 * n_fine
        centers, sides = self.starts(n_starts)
        self.places = centers[:N_STRAIGHT], sides[:N_STRAIGHT]
        count = self.wishes.max_rotations
        quick = self.tilted(centers, sides, count, (3 if count == 3 else 1) + self.thorough)
        if not len(self.margins):
            if not (every or self.thorough):
                costs = overlap.costs_of(quick.x, self.common(COARSE))
                n = N_EASY if costs.min() <= EASY else N_HARD
                quick = quick.take(np.argsort(costs, kind="stable")[:n])
            return self.refined(self.slide(quick, COARSE), n_fine)
        quick = join_boxes(quick, self.inner())
        rounds = ALL if every or self.wishes.thorough else QUICK
        # Room for boxes of inner places among the best, which are refined.
        return self.refined(self.descend(quick, COARSE_STEPS, rounds, COARSE), n_fine + 3)

    def refined(self, quick: Boxes, n: int) -> Boxes:
        """Make the best distinct ones exact."""
        if not len(self.margins):
            middle = self.slide(quick.distinct(2 * n), MIDDLE)
            fine = self.slide(middle.distinct(n), FINE)
            exact = self.slide(fine.distinct(N_EXACT), EXACT)
            return join_boxes(self.polished(exact), exact, fine, middle)
        middle = self.descend(quick.distinct(n), MIDDLE_STEPS, MIDDLE_ROUNDS, MIDDLE)
        order = np.argsort(middle.costs, kind="stable")
        half = (n + 1) // 2
        fine = self.descend(middle.take(order[:half]), FINE_STEPS, FINE_ROUNDS, FINE)
        return self.cleared(join_boxes(fine, middle.take(order[half:])))

    def polished(self, boxes: Boxes) -> Boxes:
        """Search on from the best box; simplex searches do not stop where voxels end."""
        from scipy.spatial.transform import Rotation

        best = boxes.distinct(1)
        if best.free.sum() == 2:
            voxel = self.voxel(best.boxes[0])
            rotation = Rotation.from_matrix(voxel.rotation)
            # About each two axes; each leaves out one of its turns.
            for free, order in zip(FAMILIES[2], ("XYZ", "YZX", "XZY"), strict=True):
                angles = np.zeros(3)
                angles[np.array(free, dtype=bool)] = rotation.as_euler(order)[:2]
                start = self.spread(voxel.center[None], voxel.size[None], free, angles)
                best = join_boxes(best, self.slide(start, FINE))
        best = best.distinct(1)
        # Among equal boxes on all rows, or the one that is taken depends on the image voxels.
        level = EXACT if self.thorough or self.preference else FINE
        return self.slide(self.descend(best, LAST_STEPS, LAST_ROUNDS, level), EXACT)

    def cleared(self, boxes: Boxes) -> Boxes:
        """Move boxes off what is excluded."""
        steps = (1.0, 0.05, 0.05)
        rounds = ((1.0, 150),)
        for penalty, away in CLEARING:
            boxes = self.descend(boxes, steps, rounds, FINE, penalty, away)
        strongest = CLEARING[-1][0]
        # Only boxes that the exact test still finds touching go farther away, which costs tumor.
        for away in FARTHER_MM:
            touching = np.array([bool(self.touched(self.voxel(box))) for box in boxes.boxes])
            if not touching.any():
                break
            moved = self.descend(boxes.take(touching), steps, rounds, FINE, strongest, away)
            boxes = join_boxes(boxes.take(~touching), moved)
        return boxes

    def common(self, level: int, penalty: float = 3.0, away: float = 0.0) -> Problem:
        """
        Give the problem of compiled searches.

        With `away`, in mm, strict margins grow by it, and less than the tolerance is tolerated.
        """
        grid = min(level, FINE)
        low, high = self.ends[grid]
        excluded = self.excluded
        if away:
            margins = self.margins.copy()
            margins[margins[:, 1] == 0, 0] += away
            margins[:, 1] *= STRICTER
            excluded = excluded._replace(margins=margins)
        return Problem(
            self.grids[grid],
            excluded,
            low,
            high,
            objective=objective_parameters(self.wishes.objective, MM3_PER_ML),
            min_volume=self.wishes.min_volume * MM3_PER_ML,
            low_sides=self.log_sizes[0],
            high_sides=self.log_sizes[1],
            penalty=penalty,
            preference=Preference(self.preference, self.preferred, self.log_aspect),
            n_rows=self.n_rows if level == EXACT else 1,
        )

    def costs(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give minus the logarithms of objectives, which differ where these round to 0."""
        fractions = overlap.fractions(boxes, self.whole, 0.0, N_ROWS)
        tumor_volumes = fractions * (boxes[:, 1].prod(axis=1) / MM3_PER_ML)
        return np.asarray(self.wishes.objective.cost(fractions, tumor_volumes))

    def values(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the objectives of boxes."""
        return np.exp(-self.costs(boxes))

    def simplest(self, candidates: Boxes) -> tuple[Voxel, float]:
        """Take the best voxel, or a simpler one nearly as good; with it, the best objective."""
        costs = self.costs(candidates.boxes)
        values = np.exp(-costs)
        order = np.argsort(costs, kind="stable")
        best, free = self.first_sound(candidates.boxes[order])
        if free is None:
            # Every box breaks a constraint, so take one that breaks fewest.
            voxels = [self.voxel(box) for box in candidates.boxes[order]]
            n_flags = [len(self.flags(voxel, own=True)) for voxel in voxels]
            best = int(np.argmin(n_flags))
            return voxels[best], float(values[order[best]])
        value = float(values[order[best]])
        self.free = free
        if self.wishes.tie_break == 0:
            return free, value
        # A technician sets fewer angles; that is worth a little objective.
        enough = value * (1 - self.wishes.tie_break)
        near = candidates.boxes[order[values[order] >= enough]]
        counts = np.array([self.voxel(box).rotated_angles for box in near])
        for count in range(free.rotated_angles + 1):
            pool = near[counts <= count]
            if self.places is not None:
                pool = np.concatenate([pool, self.simple(count, candidates, enough)])
            _, simple = self.first_sound(self.preferred_first(pool))
            if simple is not None:
                return simple, value
        return free, value

    def first_sound(self, boxes: NDArray[np.float64]) -> tuple[int, Voxel | None]:
        """Find the first box that meets all constraints: its number, or -1, and voxel."""
        for number, box in enumerate(boxes):
            voxel = self.voxel(box)
            if not self.flags(voxel, own=True):
                return number, voxel
        return -1, None

    def preferred_first(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Order boxes by cost, to which distance from the centroid and unequal sides add."""
        distances = np.linalg.norm(boxes[:, 0] - self.scene.centroid, axis=1)
        log_sides = np.log(boxes[:, 1])
        unequal = ((log_sides - log_sides.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        preference = PREFERENCE * ((distances / overlap.PREFERRED_MM) ** 2 + unequal)
        return boxes[np.argsort(self.costs(boxes) + preference, kind="stable")]

    def simple(self, count: int, best: Boxes, enough: float) -> NDArray[np.float64]:
        """Search boxes of so many angles that reach an objective; may find none."""
        assert self.places is not None
        self.preference = PREFERENCE
        near = best.distinct(N_TILTED).boxes
        centers = np.concatenate([self.places[0], near[:, 0]])
        sides = np.concatenate([self.places[1], near[:, 1]])
        boxes = self.tilted(centers, sides, count, 1)
        if len(self.margins):
            boxes = self.descend(boxes, COARSE_STEPS, SIMPLE, COARSE)
        else:
            boxes = self.slide(boxes, COARSE)
        boxes = self.refined(boxes, 2 * N_EXACT)
        self.preference = 0.0
        return boxes.boxes[self.values(boxes.boxes) >= enough]

    def voxel(self, box: NDArray[np.float64]) -> Voxel:
        """Describe a box by its canonical pose."""
        return Voxel.from_rotation(box[0], box[1], box[2:5]).canonical()

    def rounded_simple(self, simple: Voxel) -> Voxel:
        """Round a simple box, or the best one where rounding costs the simple one too much."""
        rounded = self.rounded(simple)
        if self.free is None or self.free == simple:
            return rounded
        best = self.rounded(self.free)
        if best is self.free or self.flags(best, own=True):
            return rounded
        if rounded is simple:  # which cannot be rounded
            return best
        enough = self.value(best) * (1 - self.wishes.tie_break)
        return rounded if self.value(rounded) >= enough else best

    def value(self, voxel: Voxel) -> float:
        """Give the objective of a voxel, as `values` does."""
        box = np.concatenate([voxel.center[None], voxel.size[None], voxel.rotation])
        return float(self.values(box[None])[0])

    def flags(self, voxel: Voxel, *, own: bool = False) -> tuple[str, ...]:
        """List the constraints that a voxel breaks; `own` omits what no voxel could meet."""
        flags = []
        least = self.wishes.min_volume
        if not own and self.scene.tumor_volume < least:
            flags.append("tumor smaller than min_volume")
        if voxel.volume < least * (1 - 1e-9):
            flags.append("volume below min_volume")
        shortest, longest = self.wishes.sizes.T
        too_short = (voxel.size < shortest - 1e-6).any()
        too_long = (voxel.size > longest + 1e-6).any()
        if too_short or too_long:
            flags.append("side out of range")
        if voxel.rotated_angles > self.wishes.max_rotations:
            flags.append("too many rotations")
        if self.wishes.inside_image and not self.scene.holds(voxel):
            flags.append("outside the image")
        for name in self.touched(voxel):
            if name in self.scene.excluded or not self.scene.tolerances[name]:
                flags.append(f"touches {name}")
            else:
                flags.append(f"more than {100 * self.scene.tolerances[name]:.0f} % {name}")
        return tuple(flags)

    def touched(self, voxel: Voxel) -> list[str]:
        """Name the excluded regions that exceed their tolerance in a voxel and its margins."""
        names = []
        for name, margin in self.scene.margins.items():
            grown = Voxel(voxel.center, voxel.size + 2 * margin, voxel.angles)
            # What a box leaves out is 1 less a sum in single precision.
            touch = TOUCH_INVERTED if name in self.scene.inverted else TOUCH
            if self.scene.excluded_fraction(name, grown) > self.scene.tolerances[name] + touch:
                names.append(name)
        return names

    def rounded(self, voxel: Voxel) -> Voxel:
        """
        Round to the steps of a console, each side up or down.

        Of the sides nearest above and below, those that meet all constraints and have the largest
        objective; should all of these break a constraint, of the sides some steps farther. Where
        none meets all, the first that breaks no more than the voxel itself; the voxel as it is
        where each breaks another constraint, or there are no steps.
        """
        if self.wishes.rounding is None:
            return voxel
        of_center, of_size, of_angle = self.wishes.rounding
        center = (np.round(voxel.center / of_center) * of_center).round(6)
        angles = (np.round(voxel.angles / of_angle) * of_angle).round(6)
        # What counts as no angle is none to set on a console.
        angles[np.abs(angles) < PARALLEL_DEGREES] = 0.0
        down = np.floor(voxel.size / of_size + 1e-9)
        broken = set(self.flags(voxel, own=True))
        no_worse = None
        # First the two neighboring steps of each side; wider only where constraints refuse all of
        # these.
        for reach in (0, 1, 3):
            options = []
            for steps in np.ndindex((2 + 2 * reach,) * 3):
                size = ((down + np.array(steps) - reach) * of_size).round(6)
                if (size > 0).all():
                    options.append(Voxel(center, size, angles))
            boxes = np.array([[v.center, v.size, *v.rotation] for v in options]).reshape(-1, 5, 3)
            for index in np.argsort(-self.values(boxes), kind="stable"):
                flags = self.flags(options[index], own=True)
                if not flags:
                    return options[index]
                if no_worse is None and broken.issuperset(flags):
                    no_worse = options[index]
        return voxel if no_worse is None else no_worse

    def is_rounded(self, voxel: Voxel) -> bool:
        """Tell whether the sides of a voxel are multiples of the step of a console, if any."""
        if self.wishes.rounding is None:
            return True
        steps = voxel.size / self.wishes.rounding[1]
        return bool((np.abs(steps - np.round(steps)) < 1e-6).all())


def join_boxes(*searches: Boxes) -> Boxes:
    """Put the boxes of searches together."""
    return Boxes(*(np.concatenate(columns) for columns in zip(*searches, strict=True)))
