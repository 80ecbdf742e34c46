"""Flagged regions outside the structural lesion, and later growth into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit.io.case_tables import checked_mask
from dmrifit.io.components import check_affine, label_components
from dmrifit.io.masks import zeros_and_ones
from dmrifit.stats.lesion_matching import ratio
from dmrifit.stats.metrics import dice

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["overlap_with_followup"]


@dataclass(frozen=True, eq=False)
class FollowupOverlap:
    """
    What `overlap_with_followup` found in a patient.

    Attributes
    ----------
    regions : DataFrame
        A row for each region outside the structural lesion: ``number``, ``n_voxels``,
        ``volume_mL``, ``n_later`` (voxels in the later growth), ``share_later``, ``colocated``,
        ``chance`` (see `overlap_with_followup`).
    mismatch, colocated : bool
        Whether there is a region, and whether one lies in the later growth.
    grown : bool
        Whether the later lesion extends beyond the structural one at all.
    chance : float
        How probable at least one region in the growth would be, were each somewhere else in the
        brain; NaN without a region.
    share_flagged : float
        Share of the growth that lies in a region of `min_voxels` or more; smaller components that
        the map has flagged do not count. NaN without growth.
    share_expected : float
        Share of the brain outside the structural lesion (and its margin) that lies in such
        regions: what `share_flagged` would be by chance.
    dice_growth : float
        Between the regions and the growth; NaN when both are empty.
    """

    regions: pd.DataFrame
    mismatch: bool
    colocated: bool
    grown: bool
    chance: float
    share_flagged: float
    share_expected: float
    dice_growth: float


def overlap_with_followup(
    anomaly: ArrayLike,
    structural: ArrayLike,
    followup: ArrayLike,
    *,
    brain: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    margin_mm: float = 0.0,
    min_voxels: int = 27,
    min_overlap: int = 1,
    connectivity: int = 26,
) -> FollowupOverlap:
    """
    Tell whether regions that only the anomaly map flags belong to later lesions.

    A mismatch is a region of the map's mask without the structural lesion (and a margin around
    it): a connected component of `min_voxels` or more. The growth is the later lesion without the
    structural one. A region co-locates when it shares `min_overlap` voxels or more with the
    growth.

    Parameters
    ----------
    anomaly : array_like of bool, shape (x, y, z)
        Anomalous voxels, after opening.
    structural : array_like of bool, shape (x, y, z)
        The lesion as it was segmented on structural images of the same day.
    followup : array_like of bool, shape (x, y, z)
        The lesion at a later scan, on this grid.
    brain : array_like of bool, shape (x, y, z), optional
        Where regions may lie; by default everywhere.
    affine : array_like of shape (4, 4), optional
        From voxel indices to mm; by default voxels of 1 mm.
    margin_mm : float, default=0.0
        Distance from the structural lesion in mm up to which nothing counts as a mismatch: borders
        are drawn differently by everyone.
    min_voxels : int, default=27
        What is smaller is no region; a cube of 3³ is the least that an opening leaves.
    min_overlap : int, default=1
        Voxels in the growth that make a region co-locate.
    connectivity : {26, 18, 6}, default=26
        Of components.

    Returns
    -------
    FollowupOverlap
        Regions and what holds for the patient. ``chance`` of a region is the share of all places
        in the brain outside the structural lesion, to which its center could be moved, where it
        would co-locate: of large regions and large growth nearly all.

    Raises
    ------
    ValueError
        If shapes differ, values are not 0 and 1, or a parameter is not possible.

    References
    ----------
    Weninger et al., Sci Rep, 2023 (counts of patients; chance is not considered there).
    """
    import pandas as pd
    from scipy import ndimage

    lesion = zeros_and_ones(structural, "structural")
    if lesion.ndim != 3:
        raise ValueError(f"structural must be a volume (x, y, z), not of shape {lesion.shape}")
    masks = {"brain": np.ones(lesion.shape, dtype=bool)}
    for name, values in (("anomaly", anomaly), ("followup", followup), ("brain", brain)):
        if values is not None:
            masks[name] = checked_mask(values, lesion.shape, name)
    if not margin_mm >= 0 or min_voxels < 1 or min_overlap < 1:
        raise ValueError(
            "margin_mm must be 0 or more, min_voxels and min_overlap 1 or more, not "
            f"{margin_mm!r}, {min_voxels!r} and {min_overlap!r}"
        )
    matrix = check_affine(affine)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    excluded = lesion
    if margin_mm > 0 and lesion.any():
        excluded = ndimage.distance_transform_edt(~lesion, sampling=spacing) <= margin_mm
    # What both masks cover was seen already; only what the structural scan missed is news.
    outside = masks["brain"] & ~excluded
    growth = masks["followup"] & outside
    labels = label_components(masks["anomaly"] & outside, connectivity=connectivity)
    sizes = np.bincount(labels.ravel())
    n_later = np.bincount(labels[growth], minlength=len(sizes))
    numbers = 1 + np.flatnonzero(sizes[1:] >= min_voxels)
    boxes = ndimage.find_objects(labels)
    chances = []
    for number in numbers:
        region = labels[boxes[number - 1]] == number
        chances.append(_chance(region, growth, outside, min_overlap))
    voxel_volume_ml = voxel_volume(matrix) / MM3_PER_ML
    regions = pd.DataFrame(
        {
            "number": numbers,
            "n_voxels": sizes[numbers],
            "volume_mL": sizes[numbers] * voxel_volume_ml,
            "n_later": n_later[numbers],
            "share_later": n_later[numbers] / sizes[numbers],
            "colocated": n_later[numbers] >= min_overlap,
            "chance": np.array(chances, dtype=np.float64),
        }
    )
    flagged = np.isin(labels, numbers)
    chance = float("nan")
    if len(numbers):
        # As if regions were placed independently: that at least one of them co-locates.
        chance = float(1 - np.prod(1 - regions["chance"]))
    n_growth = np.sum(growth)
    return FollowupOverlap(
        regions=regions,
        mismatch=bool(len(numbers)),
        colocated=bool(regions["colocated"].any()),
        grown=bool(n_growth),
        chance=chance,
        share_flagged=float(ratio(np.sum(flagged & growth), n_growth)),
        share_expected=float(ratio(np.sum(flagged), np.sum(outside))),
        dice_growth=dice(flagged, growth),
    )


def _chance(
    region: NDArray[np.bool_],
    growth: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    min_overlap: int,
) -> float:
    """Give the share of centers at which a region would overlap the growth."""
    from scipy import ndimage
    from scipy.signal import fftconvolve

    if not growth.any():
        return 0.0
    # Only around the growth can there be any overlap.
    box = ndimage.find_objects(growth.astype(np.uint8))[0]
    mirrored = region[::-1, ::-1, ::-1].astype(np.float64)
    # Each value is the overlap of the region with its last corner there.
    overlap = fftconvolve(growth[box].astype(np.float64), mirrored)
    # Half a voxel of room for the rounding of the Fourier transform.
    last_corners = np.argwhere(overlap > min_overlap - 0.5) + [side.start for side in box]
    shape = np.array(region.shape)
    centers = last_corners - shape + 1 + shape // 2
    centers = centers[((centers >= 0) & (centers < outside.shape)).all(axis=1)]
    return float(np.count_nonzero(outside[tuple(centers.T)]) / np.count_nonzero(outside))
