"""Masks, and the grids that images must share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted, size_text

#: Shape and affine (4, 4) of a volume.
Grid: TypeAlias = tuple[tuple[int, ...], NDArray[Any]]

#: A voxel belongs to a mask above this value: integer masks and labels count from 1, probabilities
#: from one half, and a one that a file's scale factor turned into 0.99999997 is still a one.
MASK_THRESHOLD = 0.5

# Of labels above 1, which a scale factor leaves as 1.9999999.
_ROUNDING = 0.01

# Numbers of an image; anatomical label images may have more, in regions of many voxels.
_FEWEST_OF_IMAGE = 20

#: A scaled integer label may come out of its file as 2.9999999.
_LABEL_ROUNDING = 1e-3
_LARGEST_LABEL = 2**53  # beyond it, files of floating point do not hold whole numbers

#: Grids are the same when no corner lies farther apart than this part of the smallest voxel edge.
#: Files round affines to single precision and quaternions; a neighboring voxel is ten times
#: farther away.
GRID_TOLERANCE = 0.1


def binarize(
    values: ArrayLike, *, name: str = "mask", may_be_empty: bool = False
) -> NDArray[np.bool_]:
    """Turn a mask of any number type into a boolean one."""
    values = np.asarray(values)
    if values.dtype.kind not in "buif":
        raise ValueError(
            f"{name} holds values of type {values.dtype}; "
            "a mask is of booleans, integers or other real numbers"
        )
    is_above_one = values > 1
    above_one = values[is_above_one]
    with np.errstate(invalid="ignore"):
        is_label = np.abs(above_one - np.rint(above_one)) <= _ROUNDING
    # Interpolation leaves small negative values; a label of −1 or an image is something else.
    for bad in (values[values <= -MASK_THRESHOLD], above_one[~is_label]):
        if bad.size:
            raise ValueError(
                f"{name} holds {bad[0]:g} (in all {counted(bad.size, 'such value')}), neither a "
                "label nor a probability; a mask is 1 inside and 0 outside: set its values to "
                "these"
            )
    n_labels = np.unique(np.rint(above_one)).size
    axes = range(values.ndim)
    if n_labels > _FEWEST_OF_IMAGE and all(_differ(values, is_above_one, axis) for axis in axes):
        raise ValueError(
            f"{name} holds {n_labels} values up to {above_one.max():g}, which differ from "
            "voxel to voxel as those of an image do; a mask is 1 inside and 0 outside: name "
            "the mask of this image, or compare the image with a threshold first"
        )
    finite = values[np.isfinite(values)]
    inside = values > MASK_THRESHOLD
    if not inside.any() and not (may_be_empty and finite.size):
        largest = f"its largest value is {finite.max():g}" if finite.size else ""
        raise ValueError(
            f"{name}: no voxel is inside the mask ({largest or 'it holds no finite value'}; "
            f"inside means above {MASK_THRESHOLD:g}); check it, or leave an empty mask out"
        )
    return inside


def _differ(values: NDArray, inside: NDArray[np.bool_], axis: int) -> bool:
    """Tell whether neighbors along an axis differ: in an image 90 % do, and few among labels."""
    inside, values = np.moveaxis(inside, axis, 0), np.moveaxis(values, axis, 0)
    changes = np.diff(values, axis=0)[inside[1:] & inside[:-1]]
    return bool(2 * np.count_nonzero(np.rint(changes)) >= changes.size)


def zeros_and_ones(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    """Turn a mask of 0 and 1 into a boolean one; refuse labels and probabilities."""
    array = np.asarray(values)
    if array.dtype == bool:
        return array
    inside = np.asarray(array == 1)
    invalid = array[~inside & (array != 0)]
    if invalid.size:
        raise ValueError(
            f"{name} must hold 0 and 1 only, not {np.unique(invalid)[:5].tolist()}; choose its "
            "classes, for example label == 1, or compare it with a threshold first"
        )
    return inside


def whole_labels(values: NDArray, name: str) -> NDArray[np.int64]:
    """Round labels (x, y, z), NaN to 0; refuse values that are not whole numbers from 0."""
    if values.dtype in (bool, np.float16):
        values = values.astype(np.float32)
    numbers = np.nan_to_num(values, posinf=np.inf, neginf=-np.inf)
    rounded = np.round(numbers)
    is_label = (rounded >= 0) & (rounded <= _LARGEST_LABEL)
    is_label &= np.isclose(numbers, rounded, rtol=0, atol=_LABEL_ROUNDING)
    if not is_label.all():
        wrong = numbers[~is_label]
        raise ValueError(
            f"{name}: labels are whole numbers from 0, but not in {counted(wrong.size, 'voxel')}, "
            f"such as {wrong[0]:g}; name a label image whose background is 0, not probabilities, "
            "and resample label images by the nearest neighbor"
        )
    return rounded.astype(np.int64)


class OtherGridError(ValueError):
    """Two volumes have their voxels at different places."""


def check_same_grid(grid: Grid, reference: Grid, *, name: str, reference_name: str) -> None:
    """Make sure that two volumes have their voxels at the same places."""
    shape, affine = grid[0], np.asarray(grid[1], dtype=float)
    reference_shape, reference_affine = reference[0], np.asarray(reference[1], dtype=float)
    remedy = (
        f"bring {name} to the grid of {reference_name}, "
        "for example by nibabel.processing.resample_from_to (order=0 for masks)"
    )
    if tuple(shape) != tuple(reference_shape):
        raise OtherGridError(
            f"{name} has {size_text(shape)} voxels and {reference_name} has "
            f"{size_text(reference_shape)}: they are on different grids; {remedy}"
        )
    # Voxels between corners that agree agree too.
    last_voxel = np.array([*(np.array(shape) - 1), 1])
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * last_voxel
    apart = np.linalg.norm(corners @ (affine - reference_affine)[:3].T, axis=1).max()
    if not apart <= GRID_TOLERANCE * np.linalg.norm(reference_affine[:3, :3], axis=0).min():
        raise OtherGridError(
            f"{name} and {reference_name} both have {size_text(shape)} voxels, but corners lie up "
            f"to {apart:.3g} mm apart. Affine of {name}: {_rows(affine)}; of {reference_name}: "
            f"{_rows(reference_affine)}; {remedy}"
        )


def _rows(affine: NDArray) -> str:
    return str(np.round(affine[:3], 4).tolist())
