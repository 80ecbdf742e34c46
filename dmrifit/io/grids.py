"""Scans on grids: read into memory in RAS order, resampled to other voxels, moved onto other grids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.masks import check_same_grid
from dmrifit.io.nifti import Image, image_name, image_of, load_image, values_of

if TYPE_CHECKING:
    import nibabel as nib

__all__ = [
    "array_of",
    "labels_onto",
    "onto",
    "read_scan",
    "read_scan_like",
    "resampled",
    "scan_of",
]

_SMALLEST = 8  # voxels along an axis


def read_scan(image: Image) -> nib.Nifti1Pair:
    """Read a scan into memory, in RAS order."""
    import nibabel as nib

    loaded, name = load_image(image), image_name(image)
    values = values_of(loaded, name)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise ValueError(
            f"{name} has {values.ndim} axes ({values.shape}); a volume (x, y, z) is needed"
        )
    if min(values.shape) < _SMALLEST:
        raise ValueError(
            f"{name} has {values.shape} voxels; at least {_SMALLEST} along each axis are needed"
        )
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
        n = np.count_nonzero(~np.isfinite(values)) if values.dtype.kind in "fiub" else values.size
        raise ValueError(
            f"{name} has {n} values that are no finite numbers; set voxels without a value to 0"
        )
    kept = (
        values.astype(np.float32)
        if values.dtype.kind in "fb" or values.dtype.itemsize > 2
        else values
    )
    ordered = nib.as_closest_canonical(nib.Nifti1Image(kept, loaded.affine))
    made = scan_of(np.asarray(ordered.dataobj), ordered.affine)
    if (named := loaded.get_filename()) and isinstance(image, str | Path):
        made.file_map["image"].filename = str(named)
    return made


def read_scan_like(image: Image, scan: nib.Nifti1Pair, name: str) -> nib.Nifti1Pair:
    """Read a scan that has to be on the grid of another one."""
    found = read_scan(image)
    check_same_grid(
        found.shape,
        found.affine,
        scan.shape,
        scan.affine,
        name=image_name(image),
        reference_name=name,
    )
    return found


def array_of(image: nib.Nifti1Pair) -> NDArray:
    """
    Give the values of a scan.

    Shapes: returns (x, y, z).
    """
    return np.asarray(image.dataobj)


def scan_of(values: NDArray, affine: NDArray) -> nib.Nifti1Pair:
    """
    Make a scan.

    Shapes: `values` (x, y, z).
    """
    return image_of(values if values.dtype == np.uint8 else values.astype(np.float32), affine)


def resampled(scan: nib.Nifti1Pair, spacing: float | None) -> nib.Nifti1Pair:
    """Bring a scan to cubic voxels over the same field of view."""
    if spacing is None:
        return scan
    shape, affine = _grid(scan, spacing)
    return onto(scan, scan_of(np.zeros(shape, np.uint8), affine), np.eye(4))


def onto(
    scan: nib.Nifti1Pair, target: nib.Nifti1Pair, transform: NDArray[np.float64]
) -> nib.Nifti1Pair:
    """
    Take the values of a scan at the places of another grid.

    Interpolation is linear, after smoothing where the other grid's voxels are larger. Half of an
    outermost voxel lies beyond its middle: the values there are those of the middle.
    """
    from scipy.ndimage import affine_transform, gaussian_filter

    matrix = np.linalg.inv(scan.affine) @ transform @ target.affine
    values = array_of(scan).astype(np.float32)
    if target.shape == scan.shape and np.allclose(matrix, np.eye(4), atol=1e-6):
        return scan_of(values, target.affine)
    # A larger voxel is a mean of smaller ones: smoothing that turns one's width, along an axis of the scan, into the
    # other's.
    ratio = np.maximum(np.linalg.norm(matrix[:3, :3], axis=1), 1)
    values = gaussian_filter(values, np.sqrt((ratio**2 - 1) / 12), mode="nearest")
    moved = affine_transform(
        values, matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=1, mode="nearest"
    )
    covered = affine_transform(
        np.ones(scan.shape, np.uint8), matrix[:3, :3], matrix[:3, 3], output_shape=target.shape, order=0,
        mode="grid-constant",
    )  # fmt: skip
    return scan_of(np.where(covered, moved, 0), target.affine)


def labels_onto(labels: nib.Nifti1Pair, target: nib.Nifti1Pair) -> nib.Nifti1Pair:
    """Take the nearest label at each place of another grid."""
    from scipy.ndimage import affine_transform

    values = np.rint(array_of(labels))
    if values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
        raise ValueError(
            f"labels must be whole numbers from 0 to 255, not from {values.min():g} to {values.max():g}"
        )
    matrix = np.linalg.inv(labels.affine) @ target.affine
    moved = affine_transform(
        values.astype(np.uint8),
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=target.shape,
        order=0,
        mode="grid-constant",
    )
    return scan_of(moved, target.affine)


def _grid(scan: nib.Nifti1Pair, spacing: float) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Give shape and affine of the grid of another spacing that covers the same field of view."""
    edges = np.linalg.norm(scan.affine[:3, :3], axis=0)
    shape = np.maximum(np.rint(np.array(scan.shape) * edges / spacing), 1).astype(int)
    affine = np.array(scan.affine, dtype=np.float64)
    affine[:3, :3] *= spacing / edges
    middle = (np.array(scan.shape) - 1) / 2
    affine[:3, 3] = (
        scan.affine[:3, :3] @ middle + scan.affine[:3, 3] - affine[:3, :3] @ ((shape - 1) / 2)
    )
    return tuple(int(n) for n in shape), affine
