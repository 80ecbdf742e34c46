"""Figures of boxes over the images that they were placed in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit.report.plane_figures import draw_planes
from dmrifit.report.style import FAINT, handle, new_figure, shared_style
from placement.box.voxel import Voxel
from placement.search.scene import Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NOTICE", "SYNTHETIC", "box_outline", "plot_overlay"]

_COLORS = ("#ffb000", "#56b4e9", "#cc79a7", "#009e73", "#d55e00")
_TUMOR, _REGION = "#ff5d5d", "#b9a3ff"
#: What every figure says, and what those of simulated tumors say.
NOTICE, SYNTHETIC = "Not for clinical use", "Synthetic, no person was scanned"
_AROUND = 20.0  # mm
_EDGES = [(a, b) for a, b in itertools.combinations(range(8), 2) if bin(a ^ b).count("1") == 1]


def box_outline(voxel: Voxel, axis: int, position: float) -> NDArray[np.float64]:
    """
    Cut a box with a plane perpendicular to a scanner axis.

    Shapes: returns (n_corners, 3).
    """
    corners = voxel.corners
    height = corners[:, axis] - position
    points = [corners[k] for k in range(8) if abs(height[k]) < 1e-9]
    for a, b in _EDGES:
        if height[a] * height[b] < 0 and min(abs(height[a]), abs(height[b])) >= 1e-9:
            share = height[a] / (height[a] - height[b])
            points.append(corners[a] + share * (corners[b] - corners[a]))
    if len(points) < 3:
        return np.empty((0, 3))
    outline = np.array(points)
    outline[:, axis] = position
    flat = np.delete(outline - outline.mean(axis=0), axis, axis=1)
    return outline[np.argsort(np.arctan2(flat[:, 1], flat[:, 0]))]


def plot_overlay(
    voxels: Voxel | Mapping[str, Voxel],
    scene: Scene,
    *,
    title: str = "",
    center: Sequence[float] | None = None,
) -> Figure:
    """Draw boxes in three planes through a center, with their exact outlines."""
    named = {"voxel": voxels} if isinstance(voxels, Voxel) else dict(voxels)
    if not 1 <= len(named) <= len(_COLORS):
        raise ValueError(
            f"one to {len(_COLORS)} voxels can be drawn over each other, not {len(named)}"
        )
    middle = np.array(
        next(iter(named.values())).center if center is None else center, dtype=np.float64
    )
    volumes = {"tumor": scene.tumor, **scene.forbidden}
    image = (
        scene.tumor
        if scene.image is None
        else scene.image.reshape(*scene.image.shape[:3], -1)[..., 0]
    )
    window = (-0.2, 2.0) if scene.image is None else None
    with shared_style({"axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(11.0, 4.4)
        field = _field(list(named.values()), scene)
        for plane in draw_planes(figure, image, scene.affine, middle, field, window=window):
            for name, volume in volumes.items():
                color, width = (_TUMOR, 1.1) if name == "tumor" else (_REGION, 0.8)
                plane.outline(volume, colors=[color], linewidths=width)
            for color, voxel in zip(_COLORS, named.values(), strict=False):
                outline = box_outline(voxel, plane.normal, float(middle[plane.normal]))
                if len(outline):
                    closed = np.vstack([outline, outline[:1]])
                    plane.ax.plot(
                        closed[:, plane.across], closed[:, plane.up], color=color, linewidth=1.8
                    )
        entries = [handle("tumor", color=_TUMOR, linewidth=1.5)]
        entries += [handle("excluded", color=_REGION, linewidth=1.5)] if len(volumes) > 1 else []
        entries += [
            handle(name, color=c, linewidth=2) for c, name in zip(_COLORS, named, strict=False)
        ]
        figure.legend(
            handles=entries,
            loc="lower left",
            bbox_to_anchor=(0.025, 0.0),
            ncol=len(entries),
            fontsize=9,
        )
        if scene.synthetic:  # not below, where the names of many boxes leave no room
            figure.text(0.97, 0.95, SYNTHETIC, ha="right", va="center", fontsize=9, color=FAINT)
        figure.text(0.97, 0.035, NOTICE, ha="right", fontsize=9, color=FAINT)
        figure.text(0.03, 0.95, title or scene.name, fontsize=11, fontweight="bold", va="center")
    return figure


def _field(voxels: list[Voxel], scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the part of space to show: tumor and boxes with some tissue around them."""
    ends = np.array(
        list(itertools.product(*zip([0, 0, 0], np.array(scene.occupancy.shape) - 1, strict=True)))
    )
    tumor = (ends + np.array(scene.origin)) @ scene.affine[:3, :3].T + scene.affine[:3, 3]
    points = np.vstack([tumor, *(voxel.corners for voxel in voxels)])
    low, high = points.min(axis=0) - _AROUND, points.max(axis=0) + _AROUND
    middle, half = (low + high) / 2, np.full(3, (high - low).max() / 2)
    return middle - half, middle + half
