"""Candidate boxes, and their features: depth in the tumor, shape, comparison within the case."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from placement.box import overlap
from placement.box.overlap import Preference
from placement.box.row_integrals import Rows
from placement.box.voxel import MM3_PER_ML, allowed_sides, rotated_axes
from placement.search.objective import PlacementObjective
from placement.search.scene import Scene
from placement.search.scene_search import (
    COARSE,
    COARSE_STEPS,
    Search,
    Wishes,
    join_boxes,
    spaced_points,
)

#: Depths are measured on every voxel of an image, or on fewer that are at most so many mm apart.
GRID_MM = 2.0

#: Standard deviation of the Gaussian that depths are smoothed by to find thickest places, in mm.
SMOOTH_MM = 2.0

#: Points along each side of a box that depths are read at.
POINTS = 5

EYE = np.eye(3)

#: Middles of the tumor weigh its points by their depth to these powers: from its center of mass to
#: its thickest place.
DEPTH_POWERS = (0, 2, 5, 12)

#: Quantities of a box; the forest sees each also less its median over the boxes of a case.
QUANTITIES = (
    *("objective", "fraction", "grown_4", "grown_8", "volume", "volume_share", "side_min"),
    *("side_mid", "side_max", "elongation", "rotated_axes", "depth_center", "depth_mean"),
    *("depth_low", "to_centroid", "to_thickest", "tumor_volume"),
)

#: Names of the columns of `describe_boxes`.
FEATURES = (*QUANTITIES, *(f"{name}, relative" for name in QUANTITIES))


#: Starts of the search for boxes of large objectives, and how many are made exact.
N_STARTS, N_FINE = 12, 8

#: Boxes whose centers and sides differ by no more than this along any axis are one, in mm.
SAME_MM = 1.5

#: Least distance of the thickest points of a tumor at which cubes are tried, in mm.
PLACES_APART_MM = 6.0

#: What boxes of a volume shall be: part of tumor with its spread, spread of the volume relative to
#: it, and what 10 mm away from their place adds to the cost.
PURE, PURE_SPREAD, VOLUME_SPREAD, NEARNESS = 0.98, 0.03, 0.15, 0.6

#: Spread of the volume of boxes that are moved off excluded regions, relative to the wanted one.
MOVED_SPREAD = 0.5

#: Evaluations of the search for a box of a volume.
N_STRETCHING = 100

#: Boxes of a volume take no more than this part of a tumor, unless the least volume is more.
LARGEST_PART = 0.6


class Surroundings:
    """
    Depths in a tumor on voxels of its image, with a rim of one voxel.

    `depth` (a, b, c) is the distance in mm to the outside, to which excluded regions belong;
    `axes` (3, 3) and `origin` in mm RAS+ say where its points are, `spacing` (3,) how far apart.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene = scene.canonical
        values = scene.occupancy
        if scene.excluded:
            values = values * ~scene.forbidden_in(scene.origin, values.shape, names=scene.excluded)
        steps = np.maximum(1, np.floor(GRID_MM / scene.spacing + 1e-6)).astype(int)
        values = values[:: steps[0], :: steps[1], :: steps[2]]
        # A tumor of low probabilities still has an inside.
        inside = np.pad((values >= min(0.5, 0.5 * float(values.max()))) & (values > 0), 1)
        if not inside.any():
            # Of a tumor that lies between these voxels, the middle stands for it.
            inside[tuple(np.array(inside.shape) // 2)] = True
        self.spacing = steps * scene.spacing
        self.depth = distance_transform_edt(inside, sampling=self.spacing).astype(np.float32)
        self.axes = scene.affine[:3, :3] * steps
        self.origin = scene.affine[:3, :3] @ (scene.origin - steps) + scene.affine[:3, 3]

    def _places(self, index: NDArray[np.intp]) -> NDArray[np.float64]:
        """Give positions in mm of flat indices (n,) of the grid: (n, 3)."""
        voxels = np.stack(np.unravel_index(index, self.depth.shape), axis=-1)
        return np.einsum("ij,nj->ni", self.axes, voxels) + self.origin

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Read depths at `points` (..., 3)."""
        # Sums of BLAS may differ in their last bits with the number of threads, and ties would
        # then be broken anew.
        index = np.einsum("ij,...j->...i", np.linalg.inv(self.axes), points - self.origin)
        # Depths are 0 on the rim, and beyond it.
        nearest = np.clip(np.rint(index), 0, np.array(self.depth.shape) - 1).astype(np.intp)
        return np.asarray(self.depth[tuple(np.moveaxis(nearest, -1, 0))])

    def thick_places(self, n: int, apart: float) -> NDArray[np.float64]:
        """Find up to `n` thickest places of the tumor, over `apart` mm apart: positions (n, 3)."""
        # A plateau has its middle as the thickest place, not its first point.
        smooth = gaussian_filter(self.depth, SMOOTH_MM / self.spacing).ravel()
        index = np.flatnonzero(self.depth.ravel() > 0)
        index = index[np.argsort(-smooth[index], kind="stable")]
        points = self._places(index)
        return points[spaced_points(points, np.arange(len(points)), n, apart)]

    def middles(self) -> NDArray[np.float64]:
        """Find the middle of the tumor, weighted more and more by depth: (4, 3)."""
        index = np.flatnonzero(self.depth.ravel() > 0)
        points = self._places(index)
        share = self.depth.ravel()[index].astype(np.float64) / float(self.depth.max())
        weights = [share**power / (share**power).sum() for power in DEPTH_POWERS]
        return np.array([(weight[:, None] * points).sum(axis=0) for weight in weights])

    @cached_property
    def thickest(self) -> NDArray[np.float64]:
        """Where the tumor is thickest, in mm RAS+: shape (3,)."""
        return self.thick_places(1, 0.0)[0]


def describe_boxes(
    surroundings: Surroundings,
    boxes: NDArray[np.float64],
    search: Search,
    n_compared: int | None = None,
) -> NDArray[np.float64]:
    """
    Measure boxes (n, 5, 3) for a choice among them: (n, n_features).

    What `search` sees as tumor is what counts. Each quantity is given once more less the
    median of the first `n_compared` boxes, by default of all.
    """
    scene = surroundings.scene
    centers, sizes, rotations = boxes[:, 0], boxes[:, 1], boxes[:, 2:5]
    line = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    unit = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.einsum("nij,nkj->nki", rotations, unit * sizes[:, None]) + centers[:, None]
    depths = surroundings.at(points)
    volumes = sizes.prod(axis=1) / MM3_PER_ML
    sides = np.sort(sizes, axis=1)
    fractions = overlap.fractions(boxes, search.whole, 0.0, 1)
    objective = search.wishes.objective
    columns: dict[str, Any] = {
        "objective": [
            objective.value(*pair) for pair in zip(fractions, fractions * volumes, strict=True)
        ],
        "fraction": fractions,
        # Of boxes that are larger by so many mm on each side, which tells how deep they lie.
        "grown_4": overlap.fractions(boxes, search.whole, 4.0, 1),
        "grown_8": overlap.fractions(boxes, search.whole, 8.0, 1),
        "volume": volumes,
        "volume_share": volumes / scene.tumor_volume,
        "side_min": sides[:, 0],
        "side_mid": sides[:, 1],
        "side_max": sides[:, 2],
        "elongation": np.log(sides[:, 2] / sides[:, 0]),
        "rotated_axes": [float(rotated_axes(rotation)) for rotation in rotations],
        "depth_center": surroundings.at(centers),
        "depth_mean": depths.mean(axis=1),
        "depth_low": np.quantile(depths, 0.1, axis=1),
        "to_centroid": np.linalg.norm(centers - scene.centroid, axis=1),
        "to_thickest": np.linalg.norm(centers - surroundings.thickest, axis=1),
        "tumor_volume": np.full(len(boxes), scene.tumor_volume),
    }
    table = np.stack([np.asarray(columns[name], dtype=np.float64) for name in QUANTITIES], axis=1)
    middle = np.median(table[:n_compared], axis=0)
    return np.concatenate([table, table - middle], axis=1)


class FreeTumorSearch(Search):
    """A search of the tumor less what is excluded from it, which knows no other exclusions."""

    def __init__(self, wishes: Wishes, scene: Scene) -> None:
        super().__init__(wishes, scene)
        if self.avoided:
            usable = self.scene.occupancy * ~self.excluded_voxels(strict=False)
            # Where all of it is excluded, any box is as bad as another.
            if usable.any():
                self.see(Rows.of(usable, self.scene.affine, self.scene.origin))
        self.avoided = {}


def candidate_boxes(
    search: FreeTumorSearch,
    surroundings: Surroundings,
    volumes: NDArray[np.float64],
    n_candidates: int,
    n_places: int,
) -> NDArray[np.float64]:
    """Find boxes (n, 5, 3), first those of large objectives."""
    fine = search.run(min(N_STARTS, n_candidates), min(N_FINE, n_candidates), every=True)
    best = fine.distinct(n_candidates, SAME_MM).boxes
    places = surroundings.thick_places(n_places, PLACES_APART_MM)
    centers = np.concatenate([surroundings.middles(), places.reshape(-1, 3)])
    sides = np.array([_sides(volume, search.wishes) for volume in volumes])
    cubes = np.zeros((len(centers), len(sides), 5, 3))
    # Experts often choose plain cubes where the tumor is thick, which the objective ranks low.
    cubes[:, :, 0] = centers[:, None]
    cubes[:, :, 1] = sides
    cubes[:, :, 2:] = EYE
    # The largest volume is rare among experts, and such a box ends where the cube does.
    adapted = _boxes_of_volumes(search, centers, volumes[:-1])
    return np.concatenate([best, cubes.reshape(-1, 5, 3), adapted])


def moved_off(
    boxes: NDArray[np.float64], search: FreeTumorSearch, volumes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """
    Search anew, from the boxes that touch an excluded region, for boxes that are clear of it.

    The wanted volume is the middle of `volumes`, quantiles of the experts' (mL), or the least one.

    Shapes: `boxes` (n, 5, 3); returns (m, 5, 3).
    """
    touching = [bool(search.touched(search.voxel(box))) for box in boxes]
    boxes = boxes[np.array(touching, dtype=bool)]
    if not len(boxes):
        return boxes
    volume = max(float(np.median(volumes)), search.wishes.min_volume)
    objective = PlacementObjective(volume, MOVED_SPREAD * volume, PURE, PURE_SPREAD)
    mover = Search(replace(search.wishes, objective=objective), search.scene)
    mover.prepare()
    # Where rotations are limited, boxes stay along the scanner's axes.
    is_free = search.wishes.max_rotations == 3
    starts = [
        mover.spread(
            box[:1], box[1:2], (7 if is_free else 0,), box[None, 2:] if is_free else EYE[None]
        )
        for box in boxes
    ]
    return mover.cleared(join_boxes(*starts)).boxes


def _boxes_of_volumes(
    search: FreeTumorSearch, centers: NDArray[np.float64], volumes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Stretch cubes along the scanner's axes to the tumor around their centers: (n, 5, 3)."""
    wishes = search.wishes
    steps = np.array(COARSE_STEPS)
    rounds = np.array([[1, N_STRETCHING]])
    boxes = []
    for volume in volumes:
        goal = max(wishes.min_volume, min(volume, LARGEST_PART * search.scene.tumor_volume))
        objective = PlacementObjective(
            goal, VOLUME_SPREAD * goal, PURE, PURE_SPREAD, one_sided=True
        )
        search.wishes = replace(wishes, objective=objective)
        problem = search.common(COARSE)
        for center in centers:
            start = search.spread(center[None], _sides(goal, wishes)[None], (0,), EYE[None])
            # Otherwise boxes of several centers would move to the same best place.
            limits = problem.limits._replace(preference=Preference(NEARNESS, center))
            problem_near_center = problem._replace(limits=limits)
            _, _, box = overlap.descend(*start[:4], problem_near_center, steps, rounds, 1e-3)
            boxes.append(box)
    search.wishes = wishes
    return np.concatenate(boxes)


def _sides(volume: float, wishes: Wishes) -> NDArray[np.float64]:
    """Give the sides of a cube in mm, or of the nearest box that is allowed."""
    volume = max(volume, wishes.min_volume)
    sides = np.full(3, np.cbrt(volume * MM3_PER_ML))
    return allowed_sides(sides, wishes.sizes, volume)
