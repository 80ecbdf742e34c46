"""Maps of gray and white matter of one brain, read from images."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_fill_holes

from dmrifit.io.masks import check_same_grid
from dmrifit.io.nifti import Image, image_name, load_image, values_of

_TISSUE = 0.2  # least probability of gray plus white matter in a brain voxel


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """Gray and white matter of one brain, whose middle is at 0."""

    gray: NDArray[np.float32]  # probabilities (x, y, z)
    white: NDArray[np.float32]
    brain: NDArray[np.float32]  # the mask of the brain with its fluid
    affine: NDArray[np.float64]
    half_axes: NDArray[np.float64]  # of the brain in mm


def read_tissues(gray: Image, white: Image) -> TissueMaps:
    """Read maps of gray and white matter of one brain, such as those of the MNI."""
    images = [load_image(source) for source in (gray, white)]
    names = [image_name(source) for source in (gray, white)]
    reference, grid = ((image.shape, image.affine) for image in images)
    check_same_grid(grid, reference, name=names[1], reference_name=names[0])
    # In RAS order for every file, so that the same random numbers fall on the same voxels.
    orientation = nib.io_orientation(images[0].affine)
    to_ras = inv_ornt_aff(orientation, images[0].shape[:3])
    affine = np.asarray(images[0].affine @ to_ras, dtype=np.float64)
    maps = []
    for image, name in zip(images, names, strict=True):
        values = _probabilities(values_of(image, name), name)
        maps.append(np.ascontiguousarray(apply_orientation(values, orientation)))
    matter = maps[0] + maps[1] > _TISSUE
    if not matter.any():
        raise ValueError(
            f"{names[0]} and {names[1]} hold no brain: their sum is nowhere above {_TISSUE}"
        )
    # Padded, because the closing would otherwise erode the mask at the border of the image.
    closed = binary_closing(np.pad(matter, 8), iterations=6)
    brain = binary_fill_holes(closed)[8:-8, 8:-8, 8:-8]
    positions = (np.argwhere(brain) @ affine[:3, :3].T) + affine[:3, 3]
    low, high = positions.min(axis=0), positions.max(axis=0)
    affine[:3, 3] -= (low + high) / 2
    return TissueMaps(maps[0], maps[1], brain.astype(np.float32), affine, (high - low) / 2)


def _probabilities(values: NDArray, name: str) -> NDArray[np.float32]:
    """Check probabilities of a volume; those of 8-bit images are stored as 0 to 255."""
    if values.dtype == np.uint8:
        values = values / np.float32(255)
    values = np.asarray(values, dtype=np.float32)
    is_finite_volume = values.ndim == 3 and np.isfinite(values).all()
    # Interpolated maps exceed the range a little.
    if not is_finite_volume or values.min() < -0.01 or values.max() > 1.01:
        raise ValueError(
            f"{name} holds no probabilities from 0 to 1 on three axes: shape {values.shape}, "
            f"up to {values.max()}"
        )
    return values


def coarser_maps(tissues: TissueMaps, spacing: float) -> TissueMaps:
    """Average maps of fine voxels over blocks of about a spacing in mm."""
    steps = np.linalg.norm(tissues.affine[:3, :3], axis=0)
    # Rounding of the affine must not halve the blocks.
    blocks = np.maximum(spacing / steps + 1e-3, 1).astype(int)
    affine = tissues.affine @ np.diag([*blocks, 1])
    affine[:3, 3] += tissues.affine[:3, :3] @ ((blocks - 1) / 2)
    gray, white, brain = (
        _block_means(values, blocks) for values in (tissues.gray, tissues.white, tissues.brain)
    )
    return TissueMaps(gray, white, brain, affine, tissues.half_axes)


def _block_means(values: NDArray, blocks: NDArray[np.intp]) -> NDArray[np.float32]:
    x, y, z = np.array(values.shape) // blocks
    whole = values[: x * blocks[0], : y * blocks[1], : z * blocks[2]]
    split = whole.reshape(x, blocks[0], y, blocks[1], z, blocks[2])
    return np.asarray(split.mean(axis=(1, 3, 5)), dtype=np.float32)
