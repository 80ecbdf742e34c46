"""The search for the best box in a scene: many quick simplex searches, then a few exact ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from dmrifit._utils.randomness import RandomState, Seed
from placement.box import overlap
from placement.box.overlap import (
    ANY_TURN,
    NEXT_AXIS,
    ONE_AXIS,
    PREVIOUS_AXIS,
    UNTURNED,
    Excluded,
    Grid,
    Limits,
    Preference,
    Problem,
)
from placement.box.row_integrals import Rows
from placement.box.voxel import MM3_PER_ML, PARALLEL_DEGREES, Voxel
from placement.search.objective import PlacementObjective, objective_parameters, tumor_fraction
from placement.search.scene import Scene
from placement.search.tissue_labels import LEAST_TARGET, MOSTLY, OUTSIDE_BRAIN, border_title

#: Edges of the blocks of rows that searches average over, in mm: the first, the second, the last.
BLOCK_MM = (3.0, 2.0, 0.0)
COARSE, MIDDLE, FINE, EXACT = range(4)

#: Boxes whose centers are nearer than this are one start, in mm.
APART_MM = 6.0

#: Boxes that the first scan tries have sides up to this, in mm.
LONGEST_SCANNED_MM = 48.0

#: About how many lines of places the first scan tries.
N_PLACES = 100

#: Boxes along the image's axes contain less of a tilted lesion than turned ones will, so the scan
#: allows so many times the standard deviation of the fraction.
LENIENCY = 3.0

#: By how much boxes are turned before free searches start from them, in radians.
FIRST_TURN = 0.8

#: Search kinds by angles that a console sets: along the scanner's axes, turned about one, about
#: two in the order of the console (x before y before z; the other order takes three), freely.
FAMILIES = {
    0: (UNTURNED,),
    1: (ONE_AXIS, ONE_AXIS + 1, ONE_AXIS + 2),
    2: (NEXT_AXIS, NEXT_AXIS + 1, PREVIOUS_AXIS),
    3: (ANY_TURN,),
}

#: Refining lowers minus the logarithm of the objective by no more than about this.
NEAR_ENOUGH = 0.15

#: A region touches a box where its fraction of the box exceeds the tolerance by more than this.
TOUCH, TOUCH_INVERTED = 1e-9, 1e-5

#: What a distance may lack of a margin, in mm.
ROUNDING_MM = 1e-3

#: Rotations of each box of the scan; free searches start from the best of them.
N_TURNS = 24

#: Angles about one or two axes, in radians; searches with so few start from the best of them.
TILTS = tuple(itertools.product((-0.75, -0.4, -0.1, 0.1, 0.4, 0.75), repeat=2))

#: First steps of simplex searches: the center in mm, logarithms of sides, rotations in radians.
COARSE_STEPS, MIDDLE_STEPS, FINE_STEPS = (4.0, 0.15, 0.35), (1.5, 0.06, 0.12), (0.8, 0.03, 0.06)

#: Rounds of searches: the fraction of boxes that continue, the best, and how many evaluations each
#: has used at the end of the round.
QUICK = ((1.0, 30), (0.375, 80), (0.19, 130))  # on the coarsest rows beside excluded regions
FREE = ((1.0, 50), (0.5, 130), (0.25, 200))  # the same, where nothing is excluded
THOROUGH = ((1.0, 60), (0.6, 200))  # beside excluded regions, where time does not matter
ALL = ((1.0, 130),)  # on the coarsest rows, for candidates: all are searched to the end
STRAIGHT = ((1.0, 30), (0.5, 90))  # along the scanner's axes, to break ties
TURNED = ((1.0, 25), (0.25, 70))  # with one or two angles, to break ties
MIDDLE_ROUNDS = ((1.0, 60), (0.6, 170))
FINE_ROUNDS = ((1.0, 50), (0.67, 120))

#: Slices are thick above this ratio of edges of image voxels. Their faces are steps of the
#: objective, which only searches from more places overcome.
THICK = 1.5

#: Searches keep the longest side to this part of what is allowed against the shortest.
ROOM = 0.92

#: From how many places searches start; the second, for free rotations where nothing is excluded.
N_STARTS, N_FREE_STARTS = 20, 34

#: How many boxes are searched, the best: few where one costs no more than this from the start,
#: because no other can be better by more.
N_EASY, N_HARD, EASY = 8, 90, 0.02

#: At last, rows lie no farther apart than this, in mm, but no more of them to an image voxel.
EXACT_MM, MOST_ROWS = 0.5, 3

#: The last searches of the best box, on exact rows: their first steps, and evaluations of each.
#: More where time matters less or among equal boxes, which otherwise depend on the image voxels.
LAST_STEPS = (2.0, 0.1, 0.2)
LAST, LAST_THOROUGH = (200,), (400, 400)

#: What 10 mm from the centroid, or a side of 2.7 times the geometric mean of the three, add to the
#: cost among boxes that are nearly as good as the best.
PREFERENCE = 0.02

#: To break ties: how many unturned boxes are searched, and how many of these are then tilted.
N_STRAIGHT, N_TILTED = 8, 2

#: Where regions are excluded: how many points of the tumor outside them start searches, the radius
#: within which the tumor gives the directions of a box, and how much tumor the scan subtracts for
#: each excluded voxel.
N_INNER, INNER_MM, LOSS = 8, 14.0, 4.0

#: Rounds of moving boxes off excluded regions: the penalty, and how far beyond the margin, in mm,
#: because searches look at one row for each image voxel and may miss a corner.
CLEARING = ((30.0, 0.2), (300.0, 0.4))
STRICTER = 0.9
FARTHER_MM = (0.8, 1.3)

#: A second search follows where no allowed box reaches this fraction of tumor: how many boxes, and
#: their rounds.
ENOUGH = 0.8
N_SQUEEZED = 40
SQUEEZED = ((1.0, 100), (0.5, 250))

#: Where no box keeps all limits: from how many boxes a last search for one starts.
N_RESCUED = 8

#: Steps of the console by which a rounded box is moved or turned at once.
N_STEPS = (-20, -5, -1, 1, 5, 20)

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

    Shapes: `x` (n, 9), `kinds` (n,), `bases` (n, 3, 3), `origins` (n, 3), `costs` (n,), `boxes`
    (n, 5, 3): center, sides and the rows of the rotation.
    """

    x: NDArray[np.float64]
    kinds: NDArray[np.int64]
    bases: NDArray[np.float64]
    origins: NDArray[np.float64]
    costs: NDArray[np.float64]
    boxes: NDArray[np.float64]

    def take(self, index: Any) -> Boxes:
        """Take the boxes that an index array, mask or slice selects."""
        return Boxes(*(np.ascontiguousarray(values[index]) for values in self))

    def distinct(self, n: int, difference: float = 2.0) -> Boxes:
        """Take the `n` best, in order, whose centers or sides differ by over `difference` mm."""
        order = np.argsort(self.costs, kind="stable")
        numbers = self.boxes[:, :2].reshape(-1, 6)
        return self.take(spaced_points(numbers, order, n, difference, "chebyshev"))


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
        self.log_aspect = overlap.NO_LIMIT
        if wishes.max_aspect is not None:
            # Rounding of sides may make them less alike.
            self.log_aspect = float(np.log(max(1.0, ROOM * wishes.max_aspect)))
        self.log_sizes = np.ascontiguousarray(np.log(wishes.sizes).T)
        # Where searches for simpler boxes start; None before `run`, or where ties are not broken.
        self.straight: Boxes | None = None
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
        inverse = np.linalg.inv(rows.matrix).astype(np.float64)
        self.whole = Grid(rows.prefix, rows.matrix, inverse, rows.offset)

    def limits(self, penalty: float = 3.0, n_rows: int = 1) -> Limits:
        """Give the objective and the constraints of boxes to compiled code."""
        return Limits(
            objective=objective_parameters(self.wishes.objective, MM3_PER_ML),
            min_volume=self.wishes.min_volume * MM3_PER_ML,
            low_sides=self.log_sizes[0],
            high_sides=self.log_sizes[1],
            penalty=penalty,
            preference=Preference(self.preference, self.scene.centroid, self.log_aspect),
            n_rows=n_rows,
        )

    def prepare(self) -> None:
        """Average rows for the quick searches, and gather what is excluded near the tumor."""
        rows = self.rows
        edges = np.linalg.norm(rows.matrix, axis=0)
        self.n_rows = int(np.clip(np.ceil(edges[:2].max() / EXACT_MM), 1, MOST_ROWS))
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
            averaged = rows.averaged(*block[:2]) if block[:2].max() > 1 else rows.prefix
            matrix = rows.matrix * scale
            inverse = self.whole.inverse / scale[:, None]
            self.grids.append(Grid(averaged, matrix, inverse, rows.offset + rows.matrix @ move))
            self.ends.append(((low - move) / scale, (high - move) / scale))
            if len(self.grids) == 1:
                self.block = block
        self.forbid()

    def forbid(self) -> None:
        """Sum excluded regions near the tumor along rows; strict ones tolerate no overlap."""
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
        rows = self.rows
        lengths = np.linalg.norm(rows.matrix, axis=0)
        edges = lengths * self.block
        volume = abs(np.linalg.det(rows.matrix)) * np.prod(self.block)
        averaged = self.usable_sums()
        n_blocks = (averaged.shape[0] - 2) * (averaged.shape[1] - 2)
        n_places = 3 * N_PLACES if self.wishes.thorough else N_PLACES
        stride = max(1, int(np.ceil(np.sqrt(n_blocks / n_places))))
        # The scan allows less purity, and has one range for all sides.
        limits = self.limits()
        objective = limits.objective
        limits = limits._replace(
            objective=objective._replace(sd_fraction=objective.sd_fraction * LENIENCY),
            low_sides=np.full(3, limits.low_sides.min()),
            high_sides=np.full(3, limits.high_sides.max()),
        )
        shapes = scanned_shapes(edges, volume, limits)
        depth = int(self.block[2])
        block_centers, sides, costs = overlap.scan(averaged, depth, shapes, volume, limits, stride)
        # No shape has a plausible volume: begin with a cube of the least volume at the centroid.
        if not len(block_centers):
            least_volume = max(limits.min_volume, np.exp(limits.low_sides[0]) ** 3)
            return self.scene.centroid[None], np.full((1, 3), np.cbrt(least_volume))
        centers = (block_centers * self.block + (0.5, 0.5, -0.5)) @ rows.matrix.T + rows.offset
        selected = spaced_points(centers, np.argsort(costs, kind="stable"), n, APART_MM)
        # The sides go to the scanner's axes that their image axes are nearest to.
        from scipy.optimize import linear_sum_assignment

        scanner_axes, image_axes = linear_sum_assignment(-np.abs(rows.matrix / lengths))
        sizes = np.empty((len(selected), 3))
        sizes[:, scanner_axes] = (sides[selected] * edges)[:, image_axes]
        return centers[selected], sizes

    def usable_sums(self) -> NDArray[np.float32]:
        """
        Give running sums of the tumor along rows, averaged over blocks of rows as in `Rows`.

        Voxels of excluded regions and their margins count −`LOSS`.
        """
        scene = self.scene
        tumor_sums = self.grids[COARSE].prefix
        excluded = self.excluded_voxels()
        if not excluded.any():
            return tumor_sums
        rows = Rows.of(scene.occupancy - np.float32(LOSS) * excluded, scene.affine, scene.origin)
        return rows.averaged(*self.block[:2])

    def excluded_voxels(self, *, strict: bool = True) -> NDArray[np.bool_]:
        """Mark excluded voxels and margins on the tumor's grid; `strict` omits tolerated ones."""
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
            excluded |= region[tuple(slice(r, r + n) for r, n in zip(reach, shape, strict=True))]
        return excluded

    def inner(self) -> Boxes:
        """Start small boxes where the tumor is thick and not excluded."""
        depth = int(self.block[2])
        sums = self.usable_sums()[1:-1, 1:-1]
        sums = np.concatenate([sums[:, :, :-1:depth], sums[:, :, -1:]], axis=2)
        inside = np.pad(np.diff(sums, axis=2) / depth > 0.5, 1)
        edges = np.linalg.norm(self.rows.matrix, axis=0) * self.block
        index = np.argwhere(inside)
        if not len(index):
            return self.spread(np.empty((0, 3)), np.empty((0, 3)), (0,), np.eye(3)[None])
        thickness = distance_transform_edt(inside, sampling=edges)[tuple(index.T)]
        block_index = (index - 0.5) * self.block + (0.5, 0.5, -0.5)
        points = block_index @ self.rows.matrix.T + self.rows.offset
        selected = spaced_points(points, np.argsort(-thickness, kind="stable"), N_INNER, APART_MM)
        return join_boxes(*(self.inner_start(center, points) for center in points[selected]))

    def inner_start(self, center: NDArray[np.float64], points: NDArray[np.float64]) -> Boxes:
        """Start small boxes near a point; free ones along the directions of the tumor there."""
        near = points[((points - center) ** 2).sum(axis=1) <= INNER_MM**2]
        middle = near.mean(axis=0)
        spread, turn = np.linalg.eigh((near - middle).T @ (near - middle) / len(near))
        # Eigenvectors may be a reflection, which no box can be turned by.
        turn *= np.linalg.det(turn)
        max_rotations = self.wishes.max_rotations
        base, sides = np.eye(3), np.zeros(3)
        if max_rotations == 3:
            extents = np.sqrt(np.maximum(spread, 1.0))
            box = Voxel.from_rotation(center, np.exp(np.log(extents)), turn).canonical()
            base = box.rotation
            sides = np.log(box.size)
        low, high = np.log(self.wishes.sizes.T)
        least = max(self.wishes.min_volume, 0.3 * self.wishes.objective.mean_volume) * MM3_PER_ML
        # Sides at their limit leave the missing volume to the next rounds.
        for _ in range(3):
            sides = np.clip(sides + (np.log(least) - sides.sum()) / 3, low, high)
        centers = np.stack([center, middle])
        return self.spread(
            centers, np.exp(sides)[None], FAMILIES[max_rotations], base[None], (0.3,)
        )

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
            *start[:4],
            self.common(level, penalty, away),
            np.array(steps, dtype=np.float64),
            np.array(counts, dtype=np.int64),
            tolerance,
        )
        return start._replace(x=x, costs=costs, boxes=boxes)

    def spread(
        self,
        centers: NDArray,
        sizes: NDArray,
        kinds: Sequence[int],
        turns: NDArray,
        angles: Sequence[float] = (0.0,),
    ) -> Boxes:
        """Combine centers with search kinds, first rotations, and angles of kinds but 0 and 7."""
        poses = list(itertools.product(kinds, turns, angles))
        m = len(centers)
        n = m * len(poses)
        x = np.zeros((len(poses), m, 9))
        x[:, :, 3:6] = np.log(sizes)
        for row, (kind, _, angle) in zip(x, poses, strict=True):
            if kind not in (0, 7):
                row[:, 6:8] = angle
        return Boxes(
            x.reshape(n, 9),
            np.repeat(np.array([kind for kind, _, _ in poses], dtype=np.int64), m),
            np.repeat(np.array([base for _, base, _ in poses]), m, axis=0),
            np.tile(centers, (len(poses), 1)),
            np.zeros(n),
            np.zeros((n, 5, 3)),
        )

    def run(self, n_starts: int, n_fine: int, *, every: bool = False) -> Boxes:
        """Search for boxes; keeps starts along the scanner's axes in `straight`, to break ties."""
        self.prepare()
        wishes = self.wishes
        if self.thorough:
            n_starts, n_fine = (3 * n_starts) // 2, 2 * n_fine
        centers, sides = self.starts(n_starts)
        unturned = np.eye(3)[None]
        quick = self.spread(centers, sides, FAMILIES[wishes.max_rotations], unturned, (0.3,))
        rounds: tuple[tuple[float, int], ...] = FREE
        if len(self.margins):
            rounds = THOROUGH if wishes.thorough else QUICK
        if every:
            rounds = ALL
        if wishes.max_rotations == 3:
            quick = join_boxes(quick, self.best_turned(centers, sides, 4 if self.thorough else 2))
        elif wishes.max_rotations:
            quick = self.best_tilted(centers, sides, 2 if self.thorough else 1)
        if len(self.margins):
            # Room for these among the best, which are refined.
            quick = join_boxes(quick, self.inner())
            n_fine += 3
        elif every:
            # Boxes that end alike are one candidate, so that more of them are refined.
            n_fine *= 2
        elif not self.thorough:
            quick = self.eased(quick)
        quick = self.descend(quick, COARSE_STEPS, rounds, COARSE)
        fine = self.refined(quick, n_fine)
        if len(self.margins):
            if not self.satisfied(fine):
                fine = join_boxes(fine, self.squeezed(centers))
            if self.first_sound(fine.boxes)[1] is None:
                fine = join_boxes(fine, self.rescued(fine))
        else:
            fine = join_boxes(self.polished(fine), fine)
        if wishes.tie_break > 0 and not every:
            self.straight = self.spread(centers[:N_STRAIGHT], sides[:N_STRAIGHT], (0,), unturned)
            self.best = fine
        return fine

    def eased(self, quick: Boxes) -> Boxes:
        """Keep the most promising boxes: few where one is nearly perfect before it is searched."""
        costs = overlap.costs_of(*quick[:4], *self.common(COARSE))
        n = N_EASY if costs.min() <= EASY else N_HARD
        return quick.take(np.argsort(costs, kind="stable")[:n])

    def refined(self, quick: Boxes, n: int) -> Boxes:
        """Search on from the `n` best distinct boxes on finer rows, from half of them on all."""
        fine = self.descend(quick.distinct(n), MIDDLE_STEPS, MIDDLE_ROUNDS, MIDDLE)
        order = np.argsort(fine.costs, kind="stable")
        half = (n + 1) // 2
        better = self.descend(fine.take(order[:half]), FINE_STEPS, FINE_ROUNDS, FINE)
        if self.wishes.thorough:
            # With large steps again: a simplex that has shrunk stays where it is.
            better = self.descend(better, (3.0, 0.1, 0.2), ((1.0, 450),), FINE)
        fine = join_boxes(better, fine.take(order[half:]))
        return self.cleared(fine) if len(self.margins) else fine

    def polished(self, boxes: Boxes) -> Boxes:
        """Search on from the best box on exact rows."""
        best = boxes.distinct(1)
        if best.kinds[0] in FAMILIES[2]:
            reordered = self.descend(self.reordered(best), FINE_STEPS, FINE_ROUNDS, FINE)
            best = join_boxes(best, reordered).distinct(1)
        last = LAST_THOROUGH if self.thorough or self.preference else LAST
        for n_evals in last:
            best = self.descend(best, LAST_STEPS, ((1.0, n_evals),), EXACT)
        return best

    def reordered(self, best: Boxes) -> Boxes:
        """Express the best box by turns about each two axes, as starts of further searches."""
        from scipy.spatial.transform import Rotation

        voxel = self.voxel(best.boxes[0])
        starts = self.spread(voxel.center[None], voxel.size[None], FAMILIES[2], np.eye(3)[None])
        rotation = Rotation.from_matrix(voxel.rotation)
        for x, order in zip(starts.x, ("XYZ", "YZX", "XZY"), strict=True):
            # The third Euler angle, which such a box does not have, is dropped: where it is small,
            # the start is nearly the best box.
            x[6:8] = rotation.as_euler(order)[:2]
        return starts

    def cleared(self, boxes: Boxes) -> Boxes:
        """Move boxes off excluded regions, by searches with margins that grow in mm."""
        steps = (1.0, 0.05, 0.05)
        rounds = ((1.0, 150),)
        for penalty, extra_margin in CLEARING:
            boxes = self.descend(boxes, steps, rounds, FINE, penalty, extra_margin)
        # Wider margins cost tumor: only for boxes that touch a region by the exact test.
        for extra_margin in FARTHER_MM:
            touching = np.array([bool(self.touched(self.voxel(box))) for box in boxes.boxes])
            if not touching.any():
                break
            moved = self.descend(
                boxes.take(touching), steps, rounds, FINE, CLEARING[-1][0], extra_margin
            )
            boxes = join_boxes(boxes.take(~touching), moved)
        return boxes

    def rescued(self, boxes: Boxes) -> Boxes:
        """Search on from boxes that break constraints least, whatever the tumor."""
        costs = overlap.costs_of(*boxes[:4], *self.common(FINE, *CLEARING[-1]))
        near = boxes.take(np.argsort(costs, kind="stable")[:N_RESCUED])
        for steps in (MIDDLE_STEPS, FINE_STEPS):
            near = self.descend(near, steps, ((1.0, 400),), FINE, *CLEARING[-1])
        return near

    def satisfied(self, boxes: Boxes) -> bool:
        """Tell whether any of the boxes is mostly tumor and touches no excluded region."""
        fractions = overlap.fractions(boxes.boxes, self.whole, 0.0, 1)
        return any(not self.touched(self.voxel(box)) for box in boxes.boxes[fractions >= ENOUGH])

    def squeezed(self, centers: NDArray[np.float64]) -> Boxes:
        """Search longer, from small boxes in many rotations, with a high penalty."""
        inner = self.inner()
        if not len(inner.x):
            return inner
        origins = np.concatenate([inner.origins, centers])
        log_sides = inner.x[:, 3:6]
        # At the centers of the first search, too, boxes start as small as the first of these.
        sizes = np.exp(np.concatenate([log_sides, np.tile(log_sides[:1], (len(centers), 1))]))
        family = FAMILIES[self.wishes.max_rotations]
        if family == (ANY_TURN,):
            starts = join_boxes(inner, self.spread(origins, sizes, family, self.turns(N_TURNS)))
        else:
            starts = self.spread(origins, sizes, family, np.eye(3)[None], (0.0, 0.4, -0.4))
        # Far more starts than can be searched: one evaluation each picks the better ones.
        costs = overlap.costs_of(*starts[:4], *self.common(COARSE, *CLEARING[0]))
        starts = starts.take(np.argsort(costs, kind="stable")[:N_SQUEEZED])
        quick = self.descend(starts, COARSE_STEPS, SQUEEZED, COARSE, *CLEARING[0])
        fine = self.descend(quick.distinct(6), MIDDLE_STEPS, ((1.0, 250),), MIDDLE, *CLEARING[0])
        return self.cleared(fine)

    def best_turned(
        self, centers: NDArray[np.float64], sides: NDArray[np.float64], n: int
    ) -> Boxes:
        """Turn boxes by many rotations; for each center, take the `n` best to start from."""
        turned = self.spread(centers, sides, FAMILIES[3], self.turns(N_TURNS))
        costs = overlap.costs_of(*turned[:4], *self.common(COARSE)).reshape(N_TURNS, -1)
        best = np.argsort(costs, axis=0, kind="stable")[:n]
        return turned.take((best * len(centers) + np.arange(len(centers))).ravel())

    def best_tilted(
        self, centers: NDArray[np.float64], sides: NDArray[np.float64], n: int
    ) -> Boxes:
        """Tilt boxes about each choice of axes; take the `n` best of each center and choice."""
        unturned = np.eye(3)[None]
        tilted: list[Boxes] = []
        # One choice after the other, so that few boxes are in memory.
        for kind in FAMILIES[self.wishes.max_rotations]:
            boxes = self.spread(centers, sides, (kind,), np.tile(unturned, (len(TILTS), 1, 1)))
            boxes.x[:, 6:8] = np.repeat(TILTS, len(centers), axis=0)
            costs = overlap.costs_of(*boxes[:4], *self.common(COARSE)).reshape(len(TILTS), -1)
            best = np.argsort(costs, axis=0, kind="stable")[:n]
            tilted.append(boxes.take((best * len(centers) + np.arange(len(centers))).ravel()))
        return join_boxes(*tilted)

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
            excluded = excluded._replace(allowances=margins)
        limits = self.limits(penalty, self.n_rows if level == EXACT else 1)
        return Problem(self.grids[grid], excluded, low, high, limits)

    def turns(self, n: int) -> NDArray[np.float64]:
        """Draw rotations to start from, the same for the same seed."""
        axes = Seed(self.wishes.random_state).rng("turns").normal(size=(n, 3))
        x, y, z = (axes / np.sqrt((axes**2).sum(axis=1, keepdims=True))).T
        cross = np.zeros((n, 3, 3))
        cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
        cross -= cross.transpose(0, 2, 1)
        # Rodrigues' formula
        sine, cosine = np.sin(FIRST_TURN), np.cos(FIRST_TURN)
        return np.asarray(np.eye(3) + sine * cross + (1 - cosine) * cross @ cross)

    def costs(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give minus the logarithms of objectives, which differ where these round to 0."""
        fractions = overlap.fractions(boxes, self.whole, 0.0, N_ROWS)
        tumor_volumes = fractions * (boxes[:, 1].prod(axis=1) / MM3_PER_ML)
        cost = self.wishes.objective.cost
        return np.array([cost(*pair) for pair in zip(fractions, tumor_volumes, strict=True)])

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
            best = int(np.argmin([len(self.flags(voxel, avoidable=True)) for voxel in voxels]))
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
            if self.straight is not None:
                pool = np.concatenate([pool, self.simple(count, enough)])
            _, simple = self.first_sound(self.preferred_first(pool))
            if simple is not None:
                return simple, value
        return free, value

    def first_sound(self, boxes: NDArray[np.float64]) -> tuple[int, Voxel | None]:
        """Find the first box that meets all constraints: its number, or -1, and voxel."""
        for number, box in enumerate(boxes):
            voxel = self.voxel(box)
            if not self.flags(voxel, avoidable=True):
                return number, voxel
        return -1, None

    def preferred_first(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Order boxes by cost, to which distance from the centroid and unequal sides add."""
        distances = np.linalg.norm(boxes[:, 0] - self.scene.centroid, axis=1)
        log_sides = np.log(boxes[:, 1])
        unequal = ((log_sides - log_sides.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        preference = PREFERENCE * ((distances / overlap.PREFERRED_MM) ** 2 + unequal)
        return boxes[np.argsort(self.costs(boxes) + preference, kind="stable")]

    def simple(self, count: int, enough: float) -> NDArray[np.float64]:
        """Search boxes of so many angles that reach an objective; may find none."""
        assert self.straight is not None
        self.preference = PREFERENCE
        if count == 0:
            self.straight = self.descend(self.straight, COARSE_STEPS, STRAIGHT, COARSE)
            quick = self.straight
        elif count == 3:
            quick = self.best
        else:
            near_best = self.best.distinct(N_TILTED).boxes
            few = np.concatenate([self.straight.distinct(N_TILTED).boxes, near_best])
            family = FAMILIES[count]
            quick = self.spread(few[:, 0], few[:, 1], family, np.eye(3)[None], (0.35, -0.35))
            quick = self.descend(quick, COARSE_STEPS, TURNED, COARSE)
        refined = quick.take(slice(0, 0))
        # The bound keeps the logarithm finite where the objective rounds to 0.
        if quick.costs.min() <= NEAR_ENOUGH - np.log(max(enough, 1e-300)):
            refined = self.refined(quick, 2)
            if not len(self.margins):
                refined = join_boxes(self.polished(refined), refined)
        self.preference = 0.0
        return refined.boxes[self.values(refined.boxes) >= enough]

    def voxel(self, box: NDArray[np.float64]) -> Voxel:
        """Describe a box by its canonical pose."""
        return Voxel.from_rotation(box[0], box[1], box[2:5]).canonical()

    def neighbors(self, voxel: Voxel) -> list[Voxel]:
        """List boxes a few console steps away, of other sides or moved or turned, best first."""
        assert self.wishes.rounding is not None
        of_center, of_size, of_angle = self.wishes.rounding
        sides = np.pad(list(itertools.product((-of_size, 0, of_size), repeat=3)), ((0, 0), (3, 3)))
        # An angle of none stays none to set.
        steps = np.diag([*[of_center] * 3, 0, 0, 0, *np.where(voxel.angles, of_angle, 0.0)])
        rows = voxel.as_array() + np.concatenate([sides, *(n * steps for n in N_STEPS)])
        rows = rows[(rows[:, 3:6] > 0).all(axis=1)].round(6)
        return self.best_first([Voxel.from_array(row) for row in rows])

    def best_first(self, voxels: Sequence[Voxel]) -> list[Voxel]:
        """Order voxels by their objectives."""
        boxes = np.array([[v.center, v.size, *v.rotation] for v in voxels]).reshape(-1, 5, 3)
        return [voxels[index] for index in np.argsort(-self.values(boxes), kind="stable")]

    def flags(
        self, voxel: Voxel, avoidable: bool = False, n_angles: int | None = None
    ) -> tuple[str, ...]:
        """
        List the constraints that a voxel breaks, `avoidable`: only those that another could meet.

        Its angles are counted on a Philips console, unless `n_angles` gives their number.
        """
        flags = []
        least = self.wishes.min_volume
        if not avoidable and self.scene.tumor_volume < least:
            flags.append("tumor below the smallest volume")
        if voxel.volume < least * (1 - 1e-9):
            flags.append("box below the smallest volume")
        if (np.abs(np.clip(voxel.size, *self.wishes.sizes.T) - voxel.size) > 1e-6).any():
            flags.append("side out of range")
        if (voxel.rotated_angles if n_angles is None else n_angles) > self.wishes.max_rotations:
            flags.append("too many rotations")
        if self.wishes.inside_image and not self.scene.holds(voxel):
            flags.append("outside the image")
        return (*flags, *self.touched(voxel))

    def touched(self, voxel: Voxel) -> list[str]:
        """Flag excluded regions: more in a voxel than is tolerated, or nearer than the margin."""
        scene, flags = self.scene, list[str]()
        for name, margin in scene.margins.items():
            tolerance = scene.tolerances[name]
            # Distances are slower to measure than fractions, of which none in a larger box, whose
            # rows cannot miss a corner, tells that the margin is kept.
            more = 0.0 if tolerance or not margin else scene.spacing.sum() / 2
            grown = Voxel(voxel.center, voxel.size + 2 * (margin + more), voxel.angles)
            # The fraction of an inverted region is 1 less that of its complement: not as exact.
            rounding = TOUCH_INVERTED if name in scene.inverted and not more else TOUCH
            if scene.excluded_fraction(name, grown) <= tolerance + rounding or (
                more and scene.distance(name, voxel) >= margin - ROUNDING_MM
            ):
                continue
            if tolerance and name not in scene.excluded:
                flags.append(f"more than {100 * tolerance:.0f} % {name}")
            elif margin and scene.excluded_fraction(name, voxel) <= TOUCH_INVERTED:
                flags.append(f"nearer than the margin of {margin:g} mm to {border_title(name)}")
            else:
                flags.append(f"{'reaches' if name == OUTSIDE_BRAIN else 'touches'} {name}")
        return flags

    def rounded(self, voxel: Voxel) -> Voxel:
        """
        Round to the steps of a console, each side up or down.

        Of the sides nearest above and below, those that meet all constraints and have the largest
        objective; should all of these break a constraint, of the sides some steps farther. Where
        none meets all, the first that breaks no more than the voxel itself; the voxel as it is
        where each breaks another constraint, or there are no steps. A box with less than 75 % (or
        50 %) target takes the place of none with more.
        """
        if self.wishes.rounding is None:
            return voxel
        of_center, of_size, of_angle = self.wishes.rounding
        center = (np.round(voxel.center / of_center) * of_center).round(6)
        angles = (np.round(voxel.angles / of_angle) * of_angle).round(6)
        # What counts as no angle is none to set on a console.
        angles[np.abs(angles) < PARALLEL_DEGREES] = 0.0
        down = np.floor(voxel.size / of_size + 1e-9)
        broken = set(self.flags(voxel, avoidable=True))
        share = tumor_fraction(voxel, self.scene)
        least = max((limit for limit in (LEAST_TARGET, MOSTLY) if limit <= share), default=0.0)
        no_worse = None
        # First the two neighboring steps of each side; wider only where constraints refuse all of
        # these.
        for reach in (0, 1, 3):
            steps = np.array([*np.ndindex((2 + 2 * reach,) * 3)]) - reach
            sizes = ((down + steps) * of_size).round(6)
            options = [Voxel(center, size, angles) for size in sizes if (size > 0).all()]
            for option in self.best_first(options):
                flags = self.flags(option, avoidable=True)
                flags += ("less target",) * (tumor_fraction(option, self.scene) < least)
                if not flags:
                    return option
                if no_worse is None and broken.issuperset(flags):
                    no_worse = option
        return voxel if no_worse is None else no_worse

    def is_rounded(self, voxel: Voxel) -> bool:
        """Tell whether the sides of a voxel are multiples of the step of a console, if any."""
        if self.wishes.rounding is None:
            return True
        steps = voxel.size / self.wishes.rounding[1]
        return bool((np.abs(steps - np.round(steps)) < 1e-6).all())


def spaced_points(
    points: NDArray[np.float64],
    order: NDArray[np.int64],
    n: int,
    distance: float,
    metric: str = "euclidean",
) -> NDArray[np.int64]:
    """
    Select up to `n` points over `distance` apart, of close ones the first in `order`.

    Shapes: `points` (m, d); `order` and the result are indices of points.
    """
    from scipy.spatial.distance import cdist

    selected: list[int] = []
    candidates = order
    while len(candidates) and len(selected) < n:
        best = candidates[:1]
        selected.append(best[0])
        candidates = candidates[cdist(points[candidates], points[best], metric)[:, 0] > distance]
    return np.array(selected, dtype=np.int64)


def scanned_shapes(
    edges: NDArray[np.float64], block_volume: float, limits: Limits
) -> NDArray[np.int64]:
    """List the sides (n, 3), in blocks of these edges, of boxes with plausible volumes."""
    low = np.exp(limits.low_sides) / edges
    high = np.minimum(np.exp(limits.high_sides), LONGEST_SCANNED_MM) / edges
    first = np.maximum(1, np.ceil(low - 0.5)).astype(int)
    last = np.maximum(first, (high + 0.5).astype(int))
    sides = []
    for x in range(3):
        lengths = [first[x]]
        # Sides grow by a quarter at a time, so that few shapes cover the range.
        while (longer := lengths[-1] + max(1, lengths[-1] // 4)) <= last[x]:
            lengths.append(longer)
        sides.append(lengths)
    shapes = np.array(list(itertools.product(*sides)))
    volumes = shapes.prod(axis=1) * block_volume
    mean = float(limits.objective.mean_volume)
    least = 0.8 * max(limits.min_volume, 0.08 * mean)
    return shapes[(volumes >= least) & (volumes <= max(2.0 * mean, 1.4 * limits.min_volume))]


def join_boxes(*searches: Boxes) -> Boxes:
    """Put the boxes of searches together."""
    return Boxes(*(np.concatenate(columns) for columns in zip(*searches, strict=True)))
