"""Connected components of masks: their numbers, and which of them match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import checked_affine
from dmrifit._utils.checks import check_number, check_word
from dmrifit.io.masks import zeros_and_ones

#: Voxels that share a face; a face or an edge; a face, an edge or a corner.
CONNECTIVITIES = {6: 1, 18: 2, 26: 3}
#: A component larger than so many times the lesion that it hits is flagged.
OVERSIZED = 10


@dataclass(frozen=True, eq=False)
class Matching:
    """
    Which components of a prediction match which lesions.

    Shapes: volumes (x, y, z), with numbers from 1 and 0 elsewhere; pairs (n_pairs,).
    """

    reference: NDArray[np.int32]
    prediction: NDArray[np.int32]
    # Pairs that match, by their numbers less 1, and the voxels that they share.
    lesion: NDArray[np.intp]
    component: NDArray[np.intp]
    overlap: NDArray[np.intp]
    # Size of each lesion and of each component.
    lesion_voxels: NDArray[np.intp]
    component_voxels: NDArray[np.intp]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Whether a component matches: shape (n_lesions,)."""
        return np.bincount(self.lesion, minlength=len(self.lesion_voxels)) > 0

    @property
    def false_positive(self) -> NDArray[np.bool_]:
        """Whether no lesion matches: shape (n_components,)."""
        return np.bincount(self.component, minlength=len(self.component_voxels)) == 0

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Whether it matches several lesions or is far larger than its own: (n_components,)."""
        n = len(self.component_voxels)
        flagged = np.bincount(self.component, minlength=n) > 1
        lesion_voxels = self.lesion_voxels[self.lesion]
        oversized = self.component_voxels[self.component] > OVERSIZED * lesion_voxels
        flagged[self.component[oversized]] = True
        return flagged

    @property
    def distinct(self) -> NDArray[np.bool_]:
        """Whether a component matches that is not flagged: shape (n_lesions,)."""
        unflagged = ~self.flagged[self.component]
        return np.bincount(self.lesion[unflagged], minlength=len(self.lesion_voxels)) > 0


def match_components(
    reference: ArrayLike,
    prediction: ArrayLike,
    *,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> Matching:
    """Find the components of two masks (x, y, z) that match, by the rule of `lesion_table`."""
    lesions = label_components(_mask(reference, "the reference"), connectivity=connectivity)
    return match_to_lesions(
        lesions,
        prediction,
        connectivity=connectivity,
        min_overlap=min_overlap,
        min_voxels=min_voxels,
    )


def match_to_lesions(
    lesions: NDArray[np.int32],
    prediction: ArrayLike,
    *,
    connectivity: int = 26,
    min_overlap: int = 1,
    min_voxels: int = 1,
) -> Matching:
    """Find the components of a mask (x, y, z) that match lesions (x, y, z) numbered before."""
    check_number("min_overlap", min_overlap, least=1, whole=True)
    predicted = _mask(prediction, "the prediction")
    if predicted.shape != lesions.shape:
        raise ValueError(
            f"a reference of shape {lesions.shape} and a prediction of shape {predicted.shape} "
            "are on different grids"
        )
    predicted = drop_small(predicted, min_voxels, connectivity=connectivity)
    components = label_components(predicted, connectivity=connectivity)
    inside = lesions > 0
    component_voxels = np.bincount(components[predicted], minlength=1)[1:]
    lesion, component, overlap = meeting_pairs(lesions, components, inside, len(component_voxels))
    is_match = overlap >= min_overlap
    return Matching(
        reference=lesions,
        prediction=components,
        lesion=lesion[is_match],
        component=component[is_match],
        overlap=overlap[is_match],
        lesion_voxels=np.bincount(lesions[inside], minlength=1)[1:],
        component_voxels=component_voxels,
    )


def label_components(mask: ArrayLike, *, connectivity: int = 26) -> NDArray[np.int32]:
    """Find the connected components of a mask (x, y, z) and number them."""
    from scipy import ndimage

    check_word("connectivity", connectivity, CONNECTIVITIES)
    structure = ndimage.generate_binary_structure(3, CONNECTIVITIES[connectivity])
    return ndimage.label(np.asarray(mask), structure, output=np.int32)[0]


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


def meeting_pairs(
    a: NDArray[np.int32], b: NDArray[np.int32], inside: NDArray[np.bool_], n_b: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Find pairs of components that share voxels: their numbers less 1, and how many voxels."""
    first, second = a[inside].astype(np.intp), b[inside].astype(np.intp)
    both = second > 0
    # One number for each pair, so that equal pairs are counted at once.
    base = max(n_b, 1)
    keys, voxels = np.unique((first[both] - 1) * base + second[both] - 1, return_counts=True)
    return keys // base, keys % base, voxels


def _mask(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} must be a volume (x, y, z) of numbers, not {array.dtype} of shape "
            f"{array.shape}"
        )
    return zeros_and_ones(array, name)
