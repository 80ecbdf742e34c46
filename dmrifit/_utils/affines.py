"""Affines of images: whether they place voxels, and how large a voxel is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import real_numbers

MM3_PER_ML = 1000.0

# A head lies within a few meters; larger numbers come from files that were damaged.
_LARGEST_ENTRY = 1e6  # mm
_FLATTEST = 1e-12  # volume of a voxel, of that of a box of the same edges


def checked_affine(affine: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return an affine as a new matrix (4, 4), or refuse one that places no voxels."""
    matrix = np.array(real_numbers(affine, name))
    if not places_voxels(matrix) or np.abs(matrix).max() > _LARGEST_ENTRY:
        raise ValueError(
            f"{name} must be a matrix (4, 4) that places voxels in mm, not {matrix.tolist()}"
        )
    return matrix


def places_voxels(matrix: NDArray[Any]) -> bool:
    """Whether a matrix is a finite affine (4, 4) with three independent axes."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return False
    # The determinant is compared with the volume of a box of the same edges, whatever the unit.
    with np.errstate(over="ignore"):
        box_volume = np.prod(np.linalg.norm(matrix[:3, :3], axis=0))
        is_flat = voxel_volume(matrix) <= _FLATTEST * box_volume
    return not is_flat and np.allclose(matrix[3], (0, 0, 0, 1))


def voxel_volume(affine: NDArray[Any]) -> float:
    """Compute the volume of a voxel in mm³."""
    return abs(float(np.linalg.det(affine[:3, :3])))
