"""Connected components of masks: numbered, and small ones left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import checked_affine
from dmrifit._utils.checks import check_number, check_word

#: Voxels that share a face; a face or an edge; a face, an edge or a corner.
CONNECTIVITIES = {6: 1, 18: 2, 26: 3}


def label_components(
    mask: ArrayLike, *, connectivity: int = 26, affine: NDArray[np.float64] | None = None
) -> NDArray[np.int32]:
    """
    Find the connected components of a mask (x, y, z) and number them.

    With an affine (4, 4) the largest is number 1, and components of equal size are numbered by
    the world coordinates of their centers: the order in which axes are stored changes nothing.
    """
    from scipy import ndimage

    check_word("connectivity", connectivity, CONNECTIVITIES)
    structure = ndimage.generate_binary_structure(3, CONNECTIVITIES[connectivity])
    components, n = ndimage.label(np.asarray(mask), structure, output=np.int32)
    if affine is None or n < 2:
        return components
    sizes = np.bincount(components.ravel())[1:]
    centers = ndimage.center_of_mass(components > 0, components, np.arange(1, n + 1))
    # Rounded to nm, because sums over voxels in another order differ in their last digits.
    x, y, z = np.round(affine[:3, :3] @ np.transpose(centers) + affine[:3, 3:], 6)
    numbers = np.zeros(n + 1, dtype=np.int32)
    numbers[1 + np.lexsort((z, y, x, -sizes))] = np.arange(1, n + 1)
    return numbers[components]


def largest_components(mask: NDArray[np.bool_], share: float = 1.0) -> NDArray[np.bool_]:
    """Leave out of a mask (x, y, z) what is smaller than a share of its largest component."""
    components = label_components(mask, connectivity=6)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return (sizes >= max(1, share * sizes.max()))[components]


def drop_small(mask: ArrayLike, min_voxels: int, *, connectivity: int = 26) -> NDArray[np.bool_]:
    """Remove components of fewer than `min_voxels` voxels from a mask (x, y, z)."""
    check_number("min_voxels", min_voxels, least=1, whole=True)
    inside = np.asarray(mask) != 0
    if min_voxels == 1:
        return inside
    components = label_components(inside, connectivity=connectivity)
    large = np.bincount(components.ravel()) >= min_voxels
    # Number 0 is the background.
    large[0] = False
    return large[components]


def check_affine(affine: ArrayLike | None) -> NDArray[np.float64]:
    """Check an affine (4, 4); give the identity for None."""
    return np.eye(4) if affine is None else checked_affine(affine, "the affine")
