"""Distances of boxes from excluded regions, and boxes displaced by chemical shift."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from dmrifit._utils.checks import check_number
from dmrifit._utils.counts import counted
from dmrifit.io.grids import three_axes
from dmrifit.io.nifti import load_image, values_of
from placement.box.row_integrals import Rows
from placement.box.voxel import Voxel
from placement.search.objective import tumor_fraction
from placement.search.optimizer import VoxelOptimizer
from placement.search.scene import Scene
from placement.search.tissue_labels import OUTSIDE_BRAIN

#: Chemical shifts in ppm. Lipid: the methylene of scalp fat.
WATER_PPM, LIPID_PPM = 4.7, 1.3

#: Protons: MHz per tesla.
_LARMOR = 42.577

_SMALLEST_SHARE = 1e-5  # of a box, which sums in single precision tell from none
_ROUNDING = 1e-3  # of fractions that files scale
_ATTEMPTS = 3  # placements with the margin of the one before
_OFFSETS = 5  # chemical shifts from one end of a range to the other


def pulse_displacement(
    bandwidths: Sequence[float], tesla: float, carrier: float, metabolite: float
) -> dict[str, Any]:
    """
    Compute the arguments `ppm_range` and `percent_per_ppm` of `displacement` for given pulses.

    The range includes water, lipid and a metabolite. `bandwidths` of the pulses are in Hz, one for
    each side or one for all; `carrier`, which the pulses are tuned to, and `metabolite` are
    chemical shifts in ppm.
    """
    hertz = np.asarray(bandwidths, dtype=np.float64)
    if not (np.isfinite(hertz).all() and (hertz > 0).all() and len(hertz) in (1, 3)):
        raise ValueError(
            f"bandwidths must be one number of Hz above 0, or one for each side, got {bandwidths}"
        )
    check_number("tesla", tesla, above=0, below=25)
    # An offset of one bandwidth displaces the box by its whole side.
    percent = tuple(float(number) for number in 100 * _LARMOR * tesla / hertz)
    offsets = np.array([WATER_PPM, metabolite, LIPID_PPM]) - carrier
    return {
        "ppm_range": (float(offsets.min()), float(offsets.max())),
        "percent_per_ppm": percent if len(percent) == 3 else percent[0],
    }


def tissue_share(voxel: Voxel, path: str | Path) -> float:
    """Compute the part of a box that a tissue fills, from a map of its fractions (0 to 1)."""
    loaded = load_image(path)
    values = three_axes(values_of(loaded, str(path)), path)
    outside = ~((values >= 0) & (values <= 1 + _ROUNDING))
    if outside.any():
        raise ValueError(
            f"{path} contains {counted(outside.sum(), 'value')} outside 0 to 1; give a "
            "map of fractions of one tissue, such as of SPM or FAST"
        )
    index = apply_affine(np.linalg.inv(loaded.affine), voxel.corners)
    if ((index < -0.5) | (index > np.array(values.shape) - 0.5)).any():
        raise ValueError(
            f"the box reaches outside {path}; give a map of the session in which the spectrum was "
            "measured"
        )
    return Rows.of(np.minimum(values, 1), np.asarray(loaded.affine), (0, 0, 0)).fraction(voxel)


def placed_in_brain(
    optimizer: VoxelOptimizer, scene: Scene, shift: Mapping[str, Any]
) -> tuple[Voxel, Scene]:
    """
    Place a box whose displaced boxes stay in the brain if they can; give its scene and margin.

    `shift` holds the options of `displacement`, or nothing: then the scene's own margin counts.
    """
    voxel = optimizer.place(scene)
    if OUTSIDE_BRAIN not in scene.margins or not shift:
        return voxel, scene
    # The shift grows with the sides, so that the next box may need more of a margin.
    for _ in range(_ATTEMPTS):
        needed = float(_side_shifts(voxel, **shift).max())
        if displaced_share(voxel, scene, **shift) == 0.0:
            break
        scene = scene.with_brain_margin(max(needed, scene.margins[OUTSIDE_BRAIN]))
        voxel = optimizer.place(scene)
    return voxel, scene


def _side_shifts(
    voxel: Voxel, *, ppm_range: tuple[float, float], percent_per_ppm: float | Sequence[float]
) -> NDArray[np.float64]:
    """Give how far displaced boxes may stand out over the faces of a box, in mm: shape (3,)."""
    rate = np.asarray(percent_per_ppm, dtype=np.float64)
    return np.abs(ppm_range).max() * rate / 100 * voxel.size


def displaced_share(voxel: Voxel, scene: Scene, **shift: Any) -> float:
    """
    Give the part of the union of all displaced boxes that lies outside the brain.

    `shift` holds the options of `displacement`.
    """
    # Gradients have either sign: boxes are displaced both ways along each side. Displaced by less
    # than the side, they fill a box that is longer by twice the shift.
    union = Voxel(voxel.center, voxel.size + 2 * _side_shifts(voxel, **shift), voxel.angles)
    share = scene.excluded_fraction(OUTSIDE_BRAIN, union)
    return share if share > _SMALLEST_SHARE else 0.0


def region_distances(voxel: Voxel, scene: Scene) -> dict[str, dict[str, Any]]:
    """Measure the distance to each region to avoid, and the volume shared with it."""
    box_fractions = voxel.mask(scene.shape, scene.affine, partial=True)
    distances = {}
    for name in _regions_to_avoid(scene):
        region = scene.region(name)
        distances[name] = {
            "distance_mm": _nearest_distance([voxel], scene, name),
            "margin_mm": scene.margins[name],
            "tolerance": scene.tolerances[name],
            "overlap_mL": float(box_fractions[region].sum(dtype=np.float64)) * scene.voxel_volume,
        }
        # A tolerance is of the box with the margin around it: the margin itself is not kept.
        if scene.margins[name] and scene.tolerances[name] and region.any():
            to_region = distance_transform_edt(~region, sampling=scene.spacing)
            near = box_fractions[to_region <= scene.margins[name]].sum()
            distances[name]["share_within_margin"] = float(near / box_fractions.sum())
    return distances


def _regions_to_avoid(scene: Scene) -> list[str]:
    """Name the excluded regions and, where a brain is known, its outside."""
    # `margins` also has tissues of which a box may contain some, to which no distance is needed.
    return [*scene.excluded, *({OUTSIDE_BRAIN} & scene.margins.keys())]


def displacement(
    voxel: Voxel,
    scene: Scene,
    *,
    ppm_range: tuple[float, float],
    percent_per_ppm: float | Sequence[float],
) -> dict[str, Any]:
    """
    Find the worst case under chemical-shift displacement.

    Metabolites that resonate off the frequency of the pulses are excited in a box that is shifted
    along its sides. The directions depend on the signs of gradients, so all are tried.
    """
    ends = np.asarray(ppm_range, dtype=np.float64)
    rate = np.asarray(percent_per_ppm, dtype=np.float64)
    if not (ends.shape == (2,) and np.isfinite(ends).all() and ends[0] <= ends[1]):
        raise ValueError(
            f"ppm_range must be a finite number and one that is not below it, got {ppm_range}"
        )
    if not (rate.shape in ((), (3,)) and np.isfinite(rate).all() and (rate >= 0).all()):
        raise ValueError(
            "percent_per_ppm must be one number of 0 or more, or one for each of three sides, "
            f"got {percent_per_ppm}"
        )
    displaced = []
    for ppm in np.unique(np.linspace(ends[0], ends[1], _OFFSETS)):
        # The sign of each gradient is chosen on the console and unknown here.
        for signs in itertools.product((1.0, -1.0), repeat=3):
            shift = np.array(signs) * ppm * rate / 100 * voxel.size
            moved = Voxel(voxel.center + voxel.rotation @ shift, voxel.size, voxel.angles)
            displaced.append((ppm, shift, moved))
    fractions = [tumor_fraction(moved, scene) for _, _, moved in displaced]
    ppm, shift, moved = displaced[int(np.argmin(fractions))]
    boxes = [box for _, _, box in displaced]
    return {
        "ppm_range": ends.tolist(),
        "percent_per_ppm": np.broadcast_to(rate, (3,)).tolist(),
        "tumor_fraction": tumor_fraction(voxel, scene),
        "worst_tumor_fraction": min(fractions),
        "ppm": float(ppm),
        "shift_mm": (shift + 0.0).tolist(),
        "center_mm": moved.center.tolist(),
        "largest_shift_mm": max(float(np.linalg.norm(shift)) for _, shift, _ in displaced),
        "worst_distance_mm": {
            name: _nearest_distance(boxes, scene, name) for name in _regions_to_avoid(scene)
        },
    }


def _nearest_distance(voxels: Sequence[Voxel], scene: Scene, name: str) -> float | None:
    """Measure the least distance of boxes to an excluded region, in mm; None of an empty one."""
    nearest = min(scene.distance(name, voxel) for voxel in voxels)
    return nearest if np.isfinite(nearest) else None
