"""Sizes of lesions: volumes, the core of a ring, and the diameters that readers measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume

#: Figures of a lesion, as `lesion_figures` names them: columns of all tables of lesions.
FIGURES = (
    "volume_mL",
    "volume_with_core_mL",
    "hull_mL",
    "open_ring",
    "longest_diameter_mm",
    "perpendicular_diameter_mm",
    "sphere_diameter_mm",
)
_VOLUMES = FIGURES[:3]

# Half the widths in mm of the gaps that are closed before holes are filled. The narrow ones keep
# small cores, which the widest would close altogether. Of two rings of real gliomas with 41.3 and
# 67.8 mL inside their outer surface, 10 mm fill 41.0 and 47.6 mL, 6 mm 18.6 and 47.6 mL.
_CLOSING_RADII_MM = (0.0, 1.0, 3.0, 5.0)
#: Gaps of a ring up to this width in mm are closed before its core is filled.
CLOSED_GAP_MM = 2 * _CLOSING_RADII_MM[-1]
# A ring is open when its outline encloses as many times the filled volume, and as many mL more.
# Nine solid real tumors had ratios of 1.1 to 1.4 (one above 1.3), a ring that closes 1.2 and one
# that does not 1.4. Curved lesions of multiple sclerosis have up to 1.9: the note names both.
_OPEN_RATIO = 1.3
_OPEN_ML = 0.5
# From the center of a pixel to the middle of its sides, in pixels.
_TO_SIDES = np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
# Digits in mm to which diameters are equal: rounding must not choose between mirrored ones.
_EQUAL_DIGITS = 6


def with_core(lesion: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """
    Add to a lesion the core that it encloses in 3D once gaps of its wall up to 10 mm are closed.

    Parameters
    ----------
    lesion : ndarray of shape (x, y, z)
        Whether a voxel is of the lesion.
    affine : ndarray of shape (4, 4)
        From voxel indices to mm.

    Returns
    -------
    ndarray of shape (x, y, z)
        The lesion and its core. Notches in its outer surface are not filled, so that a solid
        lesion stays as it is.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    margin = [(n, n) for n in np.ceil(_CLOSING_RADII_MM[-1] / edges).astype(int) + 2]
    marked = np.pad(lesion, margin)
    to_marked = ndimage.distance_transform_edt(~marked, sampling=edges)
    whole = marked.copy()
    for radius in _CLOSING_RADII_MM:
        # Distances are between centers of voxels, which lie half an edge behind the surface.
        reach = radius + edges.min() / 2
        closed = to_marked <= reach
        holes = ndimage.binary_fill_holes(closed) & ~closed
        if holes.any():
            # What the closing took of the core; it stays clear of the wall and its outer side.
            whole |= ndimage.distance_transform_edt(~holes, sampling=edges) <= reach
    return whole[tuple(slice(n, -n) for n, _ in margin)]


def lesion_figures(
    lesion: NDArray[np.bool_], whole: NDArray[np.bool_], affine: NDArray[np.float64]
) -> dict[str, Any]:
    """
    Compute the figures of a lesion.

    Axial slices are those across the stored axis that is nearest to the world's z axis. Nothing
    depends on the order or direction in which axes are stored.

    Parameters
    ----------
    lesion : ndarray of shape (x, y, z)
        Whether a voxel is marked; some are.
    whole : ndarray of shape (x, y, z)
        The lesion `with_core`.
    affine : ndarray of shape (4, 4)
        From voxel indices to RAS+ coordinates in mm.

    Returns
    -------
    dict
        ``volume_mL`` (what is marked), ``volume_with_core_mL``, ``hull_mL`` (inside the convex
        outlines of the lesion in axial slices, and at least the volume with its core),
        ``open_ring`` (whether that is 1.3 times the volume with the core and 0.5 mL more: a ring
        with gaps of more than 10 mm, or a curved lesion), ``longest_diameter_mm`` (between two
        points of the outline in one axial slice, the longest of all slices),
        ``perpendicular_diameter_mm`` (the longest line across it in that slice, within the convex
        outline) and ``sphere_diameter_mm`` (diameter of a sphere of the volume with the core).

        Outlines run midway between marked and unmarked voxels: a row of n voxels is n voxels long.
    """
    axial_axis = int(np.argmax(io_orientation(affine)[:, 0] == 2))
    in_plane = np.delete(affine[:3, :3], axial_axis, axis=1)
    # Coordinates within the plane, in mm, also where its axes are not at right angles.
    _, plane = np.linalg.qr(in_plane)
    hull_area = 0.0  # pixels
    diameters = []
    for pixels in np.moveaxis(lesion, axial_axis, 0):
        if not pixels.any():
            continue
        sides = (np.argwhere(pixels)[:, None] + _TO_SIDES).reshape(-1, 2)
        hull = ConvexHull(sides)
        hull_area += float(hull.volume)  # of two dimensions, the area
        diameters.append(_diameters(sides[hull.vertices] @ plane.T))
    # Of slices with equally long diameters, that with the longer one across.
    longest, across = max(diameters)
    voxel_ml = voxel_volume(affine) / MM3_PER_ML
    filled_ml = float(whole.sum()) * voxel_ml
    hull_ml = max(hull_area * voxel_ml, filled_ml)
    return {
        "volume_mL": float(lesion.sum()) * voxel_ml,
        "volume_with_core_mL": filled_ml,
        "hull_mL": hull_ml,
        "open_ring": hull_ml > max(_OPEN_RATIO * filled_ml, filled_ml + _OPEN_ML),
        "longest_diameter_mm": longest,
        "perpendicular_diameter_mm": across,
        "sphere_diameter_mm": _sphere_diameter(filled_ml),
    }


def joint_figures(lesions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give the figures of lesions together: all volumes, the diameters of the longest."""
    if not lesions:
        return dict.fromkeys(FIGURES, 0.0) | {"open_ring": False}
    longest = max(lesions, key=lambda lesion: lesion["longest_diameter_mm"])
    figures = {name: longest[name] for name in FIGURES}
    for name in _VOLUMES:
        figures[name] = sum(lesion[name] for lesion in lesions)
    figures["open_ring"] = any(lesion["open_ring"] for lesion in lesions)
    figures["sphere_diameter_mm"] = _sphere_diameter(figures["volume_with_core_mL"])
    return figures


def _sphere_diameter(volume: float) -> float:
    """Give the diameter in mm of a sphere of a volume in mL."""
    return float(np.cbrt(6 * volume * MM3_PER_ML / np.pi))


def _diameters(outline: NDArray[np.float64]) -> tuple[float, float]:
    """Give the longest line within a convex polygon (n, 2), and the longest one across it."""
    steps = outline[:, None] - outline
    lengths = np.hypot(steps[..., 0], steps[..., 1])
    longest = round(float(lengths.max()), _EQUAL_DIGITS)
    across = 0.0
    for i, j in np.argwhere(np.triu(lengths >= longest - 10.0**-_EQUAL_DIGITS)):
        across = max(across, _longest_chord_across(outline, steps[i, j] / lengths[i, j]))
    return longest, round(across, _EQUAL_DIGITS)


def _longest_chord_across(outline: NDArray[np.float64], direction: NDArray[np.float64]) -> float:
    """Give the longest line within a convex polygon (n, 2) at right angles to a direction (2,)."""
    along = outline @ direction
    # From the first point along the direction to the last one, and on around the polygon.
    order = np.roll(np.arange(len(outline)), -int(along.argmin()))
    n_forth = int(along[order].argmax()) + 1
    forth = order[:n_forth]
    back = np.append(order[n_forth - 1 :], order[0])[::-1]
    heights = outline @ np.array([-direction[1], direction[0]])
    # Between two neighboring points the width changes linearly.
    width = np.interp(along, along[forth], heights[forth]) - np.interp(
        along, along[back], heights[back]
    )
    return float(np.abs(width).max())
