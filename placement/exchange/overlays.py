"""Figures of boxes over the images that they were placed in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.report import style
from dmrifit.report.plane_figures import Outline, plot_planes
from placement.box.voxel import Voxel
from placement.search.scene import Scene

_MOST_BOXES = 5
_AROUND = 20.0  # mm
_AROUND_BOX = 60.0  # mm, so that the head is recognized
# Numbers of corners in binary name their sides, so corners of an edge differ in one digit.
_EDGES = [(a, b) for a, b in itertools.combinations(range(8), 2) if bin(a ^ b).count("1") == 1]


def box_outline(voxel: Voxel, axis: int, position: float) -> NDArray[np.float64]:
    """Cut a box with a plane perpendicular to a scanner axis: corners (n_corners, 3)."""
    corners = voxel.corners
    height = corners[:, axis] - position
    # Corners in the plane first: the edges that end there do not cross it.
    points = [corners[k] for k in range(8) if abs(height[k]) < 1e-9]
    for a, b in _EDGES:
        if height[a] * height[b] < 0 and min(abs(height[a]), abs(height[b])) >= 1e-9:
            share = height[a] / (height[a] - height[b])
            points.append(corners[a] + share * (corners[b] - corners[a]))
    if len(points) < 3:
        return np.empty((0, 3))
    outline = np.array(points)
    outline[:, axis] = position
    # A section of a box is convex, so the angle about its middle orders the corners.
    flat = np.delete(outline - outline.mean(axis=0), axis, axis=1)
    return outline[np.argsort(np.arctan2(flat[:, 1], flat[:, 0]))]


def plot_overlay(voxels: Voxel | Mapping[str, Voxel], scene: Scene) -> style.Figure:
    """Draw boxes in three planes through the center of the first, with their exact outlines."""
    boxes = {"voxel": voxels} if isinstance(voxels, Voxel) else dict(voxels)
    if not 1 <= len(boxes) <= _MOST_BOXES:
        raise ValueError(f"one figure can show 1 to {_MOST_BOXES} voxels, not {len(boxes)}")
    middle = next(iter(boxes.values())).center
    if scene.image is None:
        # A wide window leaves the bare mask gray, so that outlines show on it.
        image, window = scene.tumor, (-0.2, 2.0)
    else:
        image, window = scene.image.reshape(*scene.image.shape[:3], -1)[..., 0], None
    outlines = {}
    for name, (color, region) in scene.outlined.items():
        outlines[name] = Outline(style.OUTLINES[color], region, width=0.9)
    # Over the others and wider, because tissue around the target has the same border there.
    outlines[scene.target_name] = Outline(style.OUTLINES[0], scene.tumor, width=1.3)
    taken = {outline.color for outline in outlines.values()}
    own = style.OUTLINES[style.BOX]
    colors = itertools.cycle([own, *(c for c in style.OUTLINES if c not in {*taken, own})])
    for name, voxel in boxes.items():
        outlines[name] = _box(voxel, middle, next(colors))
    # The tumor and the boxes are shown.
    shown: dict[str, Any] = {"inside": scene.tumor, "margin": _AROUND, "window": window}
    shown["around"] = [box.corners for box in boxes.values()]
    figure = plot_planes(image, scene.affine, middle, outlines, scene.name, **shown)
    # Not below the planes, where the names of many boxes leave no room.
    if scene.synthetic:
        figure.text(
            0.97, 0.95, style.SYNTHETIC, ha="right", va="center", fontsize=9, color=style.FAINT
        )
    return figure


def plot_box(
    voxel: Voxel, image: NDArray, affine: NDArray, title: str, masks: Mapping[str, NDArray]
) -> style.Figure:
    """Draw a box and masks in three planes through its center; `image`, masks (x, y, z)."""
    outlines = {name: Outline(style.OUTLINES[0], mask) for name, mask in masks.items()}
    outlines["voxel"] = _box(voxel, voxel.center, style.OUTLINES[style.BOX])
    shown: dict[str, Any] = {"margin": _AROUND_BOX, "around": [voxel.corners]}
    return plot_planes(image, affine, voxel.center, outlines, title, **shown)


def _box(voxel: Voxel, center: NDArray[np.float64], color: str) -> Outline:
    """Outline a box where the plane through a center cuts it."""
    return Outline(color, cut=lambda axis: box_outline(voxel, axis, center[axis]), width=1.8)
