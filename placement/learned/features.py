"""Features of candidate boxes: depth in the tumor, shape, and comparison within the case."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.components import label_components
from placement.box import overlap
from placement.box.voxel import MM3_PER_ML, TURNS, rotated_axes
from placement.search.scene import Scene
from placement.search.scene_search import Search, grid_of, spaced_points

#: Edge of the cubic grid that depths are measured on, in mm, and parts of the tumor's width that
#: it is at most.
GRID_MM = 2.0
GRID_PARTS = 8.0

#: By how much boxes are grown on each side to tell how deep they lie, in mm.
GROWN_MM = (4.0, 8.0)

#: Points along each side of a box that depths are read at.
POINTS = 5

#: Points along each side of a box that its overlap with others is estimated by.
PAIR_POINTS = 4

EYE = np.eye(3)

#: Volume of the cube at the thickest place that boxes are compared with, in mL.
CUBE_ML = 11.0

#: Middles of the tumor weigh its points by their depth to these powers: from its center of mass to
#: its thickest place.
DEPTH_POWERS = (0, 2, 5, 12)

#: Boxes count by the part of them that is tumor, to this power, where a box is compared with all
#: of a case.
PURITY_POWER = 4

#: Quantities of a box; the forest sees each also less its median over the boxes of a case.
QUANTITIES = (
    "objective",
    "objective_share",
    "rank",
    "fraction",
    "grown_4",
    "grown_8",
    "volume",
    "volume_share",
    "side_min",
    "side_mid",
    "side_max",
    "elongation",
    "rotated_axes",
    "tilt",
    "depth_center",
    "depth_share",
    "depth_mean",
    "depth_low",
    "to_centroid",
    "to_centroid_share",
    "to_thickest",
    "to_thickest_share",
    "dice_cube",
    "dice_others",
    "dice_pure",
    "part_share",
    "tumor_fraction",
    "tumor_volume",
    "tumor_depth",
    "roundness",
    "n_parts",
)

#: Names of the columns of `describe_boxes`.
FEATURES = (*QUANTITIES, *(f"{name}, relative" for name in QUANTITIES))


class Surroundings:
    """
    Depths in a tumor on a cubic grid along the scanner's axes, independent of the image.

    `origin` is where index 0, 0, 0 lies, in mm RAS+, `step` the edge of the grid, and `depth`
    (a, b, c) the distance in mm to the outside, to which excluded regions belong.
    """

    def __init__(self, scene: Scene) -> None:
        from scipy.ndimage import distance_transform_edt, map_coordinates

        self.scene = scene = scene.canonical
        width = float(np.cbrt(scene.tumor_volume * MM3_PER_ML))
        self.step = float(np.clip(width / GRID_PARTS, 0.5, GRID_MM))
        crop = scene.occupancy
        ends = np.array(
            np.meshgrid(*[(-0.5, n - 0.5) for n in crop.shape], indexing="ij")
        ).reshape(3, -1)
        shift = (
            scene.affine[:3, :3] @ np.array(scene.origin, dtype=np.float64) + scene.affine[:3, 3]
        )
        world = scene.affine[:3, :3] @ ends + shift[:, None]
        low, high = world.min(axis=1) - self.step, world.max(axis=1) + self.step
        counts = np.ceil((high - low) / self.step).astype(int) + 1
        # Centered, so that a mirrored tumor gets mirrored depths.
        self.origin = 0.5 * (low + high) - 0.5 * (counts - 1) * self.step
        grid = np.indices(counts).reshape(3, -1) * self.step + self.origin[:, None]
        # Sums of BLAS may differ in their last bits with the number of threads, and ties would
        # then be broken anew.
        index = np.einsum("ij,jn->in", np.linalg.inv(scene.affine[:3, :3]), grid - shift[:, None])
        values = map_coordinates(crop, index, order=1, mode="constant", cval=0.0)
        if scene.excluded:
            excluded = scene.forbidden_in(scene.origin, crop.shape, names=scene.excluded).astype(
                np.uint8
            )
            values = values * (
                map_coordinates(excluded, index, order=0, mode="constant", cval=0) == 0
            )
        # A tumor of low probabilities still has an inside.
        inside = (values >= min(0.5, 0.5 * float(values.max()))) & (values > 0)
        if not inside.any():
            # A tumor thinner than the grid, or all of it excluded: one point stands for it.
            inside[np.argmin(((grid - scene.centroid[:, None]) ** 2).sum(axis=0))] = True
        self.depth = distance_transform_edt(inside.reshape(counts)).astype(
            np.float32
        ) * np.float32(self.step)

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Read depths at `points` (..., 3)."""
        index = np.rint((points - self.origin) / self.step).astype(np.intp)
        last = np.array(self.depth.shape) - 1
        inside = ((index >= 0) & (index <= last)).all(axis=-1)
        index = np.clip(index, 0, last)
        depths = self.depth[tuple(np.moveaxis(index, -1, 0))]
        return np.where(inside, depths, np.float32(0))

    def thick_places(self, n: int, apart: float) -> NDArray[np.float64]:
        """Find where the tumor is thickest: positions (n, 3)."""
        from scipy.ndimage import gaussian_filter

        # A plateau has its middle as the thickest place, not its first point.
        smooth = gaussian_filter(self.depth, 1.0).ravel()
        index = np.flatnonzero(self.depth.ravel() > 0)
        index = index[np.argsort(-smooth[index], kind="stable")]
        points = (
            np.stack(np.unravel_index(index, self.depth.shape), axis=-1) * self.step + self.origin
        )
        return points[spaced_points(points, np.arange(len(points)), n, apart)]

    def middles(self) -> NDArray[np.float64]:
        """Find the middle of the tumor, weighted more and more by depth: (4, 3)."""
        index = np.flatnonzero(self.depth.ravel() > 0)
        points = (
            np.stack(np.unravel_index(index, self.depth.shape), axis=-1) * self.step + self.origin
        )
        share = self.depth.ravel()[index].astype(np.float64) / float(self.depth.max())
        weights = [share**power / (share**power).sum() for power in DEPTH_POWERS]
        return np.array([(weight[:, None] * points).sum(axis=0) for weight in weights])

    @cached_property
    def thickest(self) -> NDArray[np.float64]:
        """Where the tumor is thickest, in mm RAS+: shape (3,)."""
        return self.thick_places(1, 0.0)[0]

    @cached_property
    def parts(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Component numbers on the grid, from 1, and the share of each number; that of 0 is 0."""
        labels = label_components(self.depth > 0)
        sizes = np.bincount(labels.ravel()).astype(np.float64)
        sizes[0] = 0.0
        return labels, sizes / sizes.sum()


def describe_boxes(
    surroundings: Surroundings,
    boxes: NDArray[np.float64],
    search: Search,
    n_found: int,
    n_compared: int | None = None,
) -> NDArray[np.float64]:
    """
    Measure boxes (n, 5, 3) for a choice among them: (n, n_features).

    The first `n_found` are those of the optimizer; what `search` sees as tumor is what counts.
    Each quantity is given once more relative to the median of the first `n_compared` boxes.
    """
    scene = surroundings.scene
    centers, sizes, rotations = boxes[:, 0], boxes[:, 1], boxes[:, 2:5]
    line = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    unit = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.einsum("nij,nkj->nki", rotations, unit * sizes[:, None]) + centers[:, None]
    depths = surroundings.at(points)
    at_center = surroundings.at(centers)
    volumes = sizes.prod(axis=1) / MM3_PER_ML
    sides = np.sort(sizes, axis=1)
    total = scene.tumor_volume
    # Distances count in radii of a ball of the tumor's volume, so that sizes can be compared.
    radius = float(np.cbrt(total * MM3_PER_ML * 3 / (4 * np.pi)))
    deepest = float(surroundings.depth.max())
    to_centroid = np.linalg.norm(centers - scene.centroid, axis=1)
    to_thickest = np.linalg.norm(centers - surroundings.thickest, axis=1)
    side = float(np.cbrt(min(CUBE_ML, total) * MM3_PER_ML))
    cube = np.concatenate([surroundings.thickest[None], np.full((1, 3), side), EYE])
    labels, shares = surroundings.parts
    index = np.rint((centers - surroundings.origin) / surroundings.step).astype(np.intp)
    of_part = shares[labels[tuple(np.clip(index, 0, np.array(labels.shape) - 1).T)]]
    fractions = overlap.fractions(boxes, search.whole, 0.0, 1)
    objective = search.wishes.objective
    objectives = np.array(
        [objective.value(*pair) for pair in zip(fractions, fractions * volumes, strict=True)]
    )
    n = len(boxes)
    # Exact intersections of all pairs would take longer than everything else.
    dices = overlap.sampled_dices(np.concatenate([boxes, cube[None]]), PAIR_POINTS)
    columns = {
        "objective": objectives,
        "objective_share": objectives / max(float(objectives.max()), 1e-300),
        "rank": np.argsort(np.argsort(-objectives, kind="stable"), kind="stable") / n,
        "fraction": fractions,
        "volume": volumes,
        "volume_share": volumes / total,
        "side_min": sides[:, 0],
        "side_mid": sides[:, 1],
        "side_max": sides[:, 2],
        "elongation": np.log(sides[:, 2] / sides[:, 0]),
        "rotated_axes": np.array([float(rotated_axes(rotation)) for rotation in rotations]),
        "tilt": _tilts(rotations),
        "depth_center": at_center,
        "depth_share": at_center / deepest,
        "depth_mean": depths.mean(axis=1),
        "depth_low": np.quantile(depths, 0.1, axis=1),
        "to_centroid": to_centroid,
        "to_centroid_share": to_centroid / radius,
        "to_thickest": to_thickest,
        "to_thickest_share": to_thickest / radius,
        "dice_cube": dices[:n, n],
        "dice_others": dices[:n, :n_found].mean(axis=1),
        "dice_pure": dices[:n, :n] @ fractions**PURITY_POWER / n,
        "part_share": of_part,
        "tumor_fraction": overlap.fractions(boxes, grid_of(scene.rows), 0.0, 1),
        "tumor_volume": np.full(n, total),
        "tumor_depth": np.full(n, deepest),
        "roundness": np.full(n, deepest / radius),
        "n_parts": np.full(n, float(len(shares) - 1)),
    }
    for name, growth in zip(("grown_4", "grown_8"), GROWN_MM, strict=True):
        columns[name] = overlap.fractions(boxes, search.whole, growth, 1)
    table = np.stack([np.asarray(columns[name], dtype=np.float64) for name in QUANTITIES], axis=1)
    middle = np.median(table[:n_compared], axis=0)
    return np.concatenate([table, table - middle], axis=1)


def _tilts(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the angles between boxes and the scanner's axes, in degrees: (n,)."""
    # Of the 24 poses of a box, the least turned counts.
    traces = np.einsum("nij,mji->nm", rotations, TURNS).max(axis=1)
    return np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
