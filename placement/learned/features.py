"""Features of candidate boxes: depth in the tumor, shape, and comparison within the case."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.box import overlap
from placement.box.voxel import MM3_PER_ML, rotated_axes
from placement.search.scene import Scene
from placement.search.scene_search import Search, spaced_points

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


class Surroundings:
    """
    Depths in a tumor on voxels of its image, with a rim of one voxel.

    `depth` (a, b, c) is the distance in mm to the outside, to which excluded regions belong;
    `axes` (3, 3) and `origin` in mm RAS+ say where its points are, `spacing` (3,) how far apart.
    """

    def __init__(self, scene: Scene) -> None:
        from scipy.ndimage import distance_transform_edt

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
        """Find where the tumor is thickest: positions (n, 3)."""
        from scipy.ndimage import gaussian_filter

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

    What `search` sees as tumor is what counts. Each quantity is given once more relative to the
    median of the first `n_compared` boxes.
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
