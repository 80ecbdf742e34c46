"""Where lesions are hard to see: near the cortex, at the deep nuclei, at the base of the brain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from anomaly.scans.cases import Case

#: The study's weak spots. They may overlap.
STRATA = ("near cortex", "deep nuclei", "basal")
#: What is left.
ELSEWHERE = "elsewhere"
#: Distance in mm up to which a voxel is near a structure.
NEAR_MM = 5.0

_CORTEX, _DEEP = 2, 4
_BASAL_SHARE = 0.25


def strata_masks(case: Case) -> dict[str, NDArray[np.bool_]]:
    """Divide the scored voxels (x, y, z) of a case by where they lie."""
    if case.tissue is None:
        # Without a tissue map the border of the brain stands for the cortex.
        cortex, deep = ~case.brain, np.zeros(case.shape, dtype=bool)
    else:
        cortex, deep = case.tissue == _CORTEX, case.tissue == _DEEP
    # By the affine, as the third axis of an image need not run from feet to head.
    x, y, z = (np.arange(n) for n in case.shape)
    a, b, c, d = case.affine[2]
    height = a * x[:, None, None] + b * y[None, :, None] + c * z[None, None, :] + d
    low, high = height[case.brain].min(), height[case.brain].max()
    scored = case.scored
    masks = {
        STRATA[0]: scored & _near(cortex, case.spacing),
        STRATA[1]: scored & _near(deep, case.spacing),
        STRATA[2]: scored & (height < low + _BASAL_SHARE * (high - low)),
    }
    elsewhere = scored & ~np.logical_or.reduce(list(masks.values()))
    return {**masks, ELSEWHERE: elsewhere}


def _near(structure: NDArray[np.bool_], spacing: tuple[float, float, float]) -> NDArray[np.bool_]:
    from scipy import ndimage

    if not structure.any():
        return np.zeros(structure.shape, dtype=bool)
    return np.asarray(ndimage.distance_transform_edt(~structure, sampling=spacing) <= NEAR_MM)
