"""The foreground of a scan, found where no mask was drawn (dipy's median Otsu)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from threadpoolctl import threadpool_limits

from dmrifit._optional import import_optional
from dmrifit.cohort.scaling import reference_columns
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.corrections import quiet_dipy
from dmrifit.io.components import largest_components
from dmrifit.io.masks import AIR
from dmrifit.io.series import Series

#: What `foreground_mask` does, or that it found no air, for sidecars and pages.
FOREGROUND_RULE = (
    "foreground found by median Otsu (dipy) in the mean of the volumes of lowest b, with holes "
    "filled and without pieces below a tenth of the largest"
)
NO_AIR = "no air around the tissue, so all voxels that are not 0 in every measurement"

_MEDIAN_RADIUS = 2  # voxels
_MEDIAN_PASSES = 2
_SMALLEST_PIECE = 0.1  # of the largest: a leg beside a leg stays, a bright vessel in air goes
_SMALLEST_SHARE = 0.01  # of the image


def otsu_mask(picture: NDArray, *, radius: int, passes: int) -> NDArray[np.bool_]:
    """Tell tissue from air in a volume (x, y, z) by dipy's median Otsu; nothing in an even one."""
    median_otsu = import_optional("dipy.segment.mask").median_otsu
    if not np.ptp(picture):
        return np.zeros(picture.shape, bool)
    with threadpool_limits(1), quiet_dipy(), np.errstate(divide="ignore", invalid="ignore"):
        _, inside = median_otsu(picture, median_radius=radius, numpass=passes)
    return np.asarray(inside)


def foreground_mask(series: Series, protocol: Protocol) -> NDArray[np.bool_] | None:
    """Find the voxels (x, y, z) of the body or head; None where there is no air around them."""
    import_optional("dipy.segment.mask")
    columns = reference_columns(protocol)
    reference = np.zeros(series.grid)
    with series.unpacked() as readable:
        for slab, inside, signals in readable.slabs(None, progress=False, task="mask"):
            volumes = np.nan_to_num(signals[:, columns], posinf=0.0, neginf=0.0)
            reference[:, :, slab][inside] = volumes.mean(axis=1)
    # An Otsu threshold of a few extreme voxels would lie between them and the tissue.
    reference = np.clip(reference, 0, np.percentile(reference, 99.5))
    # A filter wider than an image would leave nothing of it.
    radius = max(0, min(_MEDIAN_RADIUS, (min(series.grid) - 1) // 8))
    inside = binary_fill_holes(otsu_mask(reference, radius=radius, passes=_MEDIAN_PASSES))
    inside = largest_components(inside, _SMALLEST_PIECE)
    share = inside.mean()
    if share < _SMALLEST_SHARE:
        raise ValueError(
            f"{series.name}: no foreground was found, {share:.1%} of the image; name a mask "
            "(--mask FILE), or leave the option out to fit every voxel with a signal"
        )
    # In a block of tissue alone, Otsu's threshold would part bright tissue from dark.
    if inside.all() or np.median(reference[~inside]) > AIR * np.median(reference[inside]):
        return None
    return inside
