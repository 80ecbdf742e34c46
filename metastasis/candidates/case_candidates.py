"""Candidates of a case: those of a segmenter, compared with what it marks in the prior scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit, logit

from metastasis.candidates.features import LEVELS, Candidates, ScanVolumes, find_candidates
from metastasis.scans.local_level import local_level
from metastasis.scans.network_inputs import Scan, brain_of, steps_of, values_of
from metastasis.segmentation.ensemble import probability_of

_BLOCK_MM = 12.0
_MARGIN_MM = 6.0  # of the first block before the brain, as in the scans of training
_LEAST_BRAIN = 0.5  # of a block
_LEAST_BLOCKS = 100  # of some 600 in a brain; fewer tell nothing of a scan
#: Shares of the blocks that are lower than the level of a scan, and than one spread above it.
_SHARES = (0.5, 0.75)
#: Logit of the level of a scan, and logits in a spread.
_LEVEL, _SLOPE = -4.0, 2.0
_LEAST_SPREAD = 0.5  # logits
_CERTAIN = 1e-6

#: Rounds: smoothing of both scans in mm, and of the sums that each place is moved by; at first
#: all places are moved together, by an affine transformation.
_ROUNDS: tuple[tuple[float, float | None], ...] = (
    *[(2.0, None)] * 6,
    *[(1.0, None)] * 6,
    (1.0, 10.0),
)
_GRID = 2.0  # mm between the places that are moved
_BORDER = 4.0  # mm: the border of the brain is that of a mask, and the same in both
_FURTHEST = 5.0  # mm along each axis
_AROUND = 5.0  # mm; what is left of a coil's field would pull places along
_BRIGHTEST = 2.0  # local levels; vessels enhance more on one day than on another
_OUTLIER = 1.5  # robust standard deviations at which a difference counts half
_RIDGE = 0.05  # of the sums, where the scan is so even that no place can be told from another


def case_candidates(
    segmenter: Any,
    case: Scan,
    *,
    levels: Sequence[float] = LEVELS,
    min_voxels: int = 4,
    use_prior: bool = True,
    is_comparable: bool = False,
    lesions: NDArray[np.bool_] | None = None,
) -> Candidates:
    """
    Find the candidates of a case on the grid of the network, with the features of its prior.

    Images are in RAS order, as `case_on_network_grid` gives them.

    The prior is moved onto the scan in each place, and segmented as if it were a scan: what was
    taken for a metastasis before is none that is new. A segmenter of several channels segments no
    prior. Where `is_comparable`, probabilities are scaled to those of most of the brain; in
    training by what lies outside `lesions`.
    """
    volume, prior, mask = case
    probability = probability_of(segmenter, case)
    values = np.asarray(values_of(volume))
    # The first channel is the post-contrast image.
    image = values if values.ndim == 3 else values[..., 0]
    steps = steps_of(volume)
    brain = brain_of(case)
    before = None
    # A prior of zeros is a missing one.
    if use_prior and prior is not None and np.any(values_of(prior)):
        before = aligned_prior(image, np.asarray(values_of(prior)), brain, steps)
    scan = ScanVolumes.scaled(image, brain, steps, before)
    if before is not None and values.ndim == 3:
        earlier: Any = before
        if isinstance(volume, nib.Nifti1Image):
            earlier = nib.Nifti1Image(before, volume.affine)
        earlier_probability = probability_of(segmenter, (earlier, None, mask))
        if is_comparable:
            scaled = comparable_probability(earlier_probability, brain, steps, lesions=lesions)
            earlier_probability = earlier_probability if scaled is None else scaled
        scan = replace(scan, prior_probability=earlier_probability)
    scaled = None
    if is_comparable:
        scaled = comparable_probability(probability, brain, steps, lesions=lesions)
    return find_candidates(
        probability if scaled is None else scaled,
        scan,
        levels=tuple(levels),
        min_voxels=min_voxels,
        # Small pieces of a brain are not scaled, and what is marked in them may be large.
        limited=scaled is not None,
    )


# Probabilities that are comparable between scans ------------------------------------------------


def comparable_probability(
    probability: NDArray[np.floating],
    brain: NDArray[np.bool_],
    steps: Any = (1.0, 1.0, 1.0),
    *,
    lesions: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32] | None:
    """
    Scale the logits of a scan to the median and spread of its largest ones in blocks of 12 mm.

    Networks are surer in one brain than in another: one marked 80 % of implants at 0.56 in one
    person, another one at 0.005 in the next. Metastases fill few blocks, so that the largest
    logit of most blocks is that of tissue, vessels and dura, and needs no label. The median of
    the blocks becomes 0.018, a block as far above it as the upper quartile 0.12, twice 0.5. Small
    pieces of a brain tell no level: None. In training, voxels of `lesions` are left out.

    Shapes: `probability`, `brain` and `lesions` (x, y, z), `steps` (3,) in mm; returns (x, y, z).
    """
    is_unlabeled = brain if lesions is None else brain & ~lesions
    peaks = block_peaks(probability, is_unlabeled, steps)
    if len(peaks) < _LEAST_BLOCKS:
        return None
    level, upper = np.quantile(peaks, _SHARES)
    slope = np.float32(_SLOPE / max(upper - level, _LEAST_SPREAD))
    scaled = expit(slope * (_logits(probability) - np.float32(level)) + np.float32(_LEVEL))
    return np.where(brain, scaled, 0).astype(np.float32)


def block_peaks(
    probability: NDArray[np.floating], brain: NDArray[np.bool_], steps: Any
) -> NDArray[np.float64]:
    """Give the largest logit of each block that is brain for the most part."""
    if not brain.any():
        return np.empty(0)
    # Blocks start at a set distance from the brain, so that empty slices around it change nothing.
    (window,) = ndimage.find_objects(brain.astype(np.uint8))
    probability, brain = probability[window], brain[window]
    edges = [max(1, round(_BLOCK_MM / step)) for step in steps]
    numbers: list[Any] = [
        (np.arange(n) + round(_MARGIN_MM / step)) // edge
        for n, step, edge in zip(brain.shape, steps, edges, strict=True)
    ]
    n_blocks = [int(of_axis[-1]) + 1 for of_axis in numbers]
    index: Any = np.ravel_multi_index(np.ix_(*numbers), n_blocks)
    full = np.flatnonzero(np.bincount(index[brain]) >= _LEAST_BRAIN * np.prod(edges))
    values = _logits(np.where(brain, probability, 0))
    return np.asarray(ndimage.maximum(values, index, full), dtype=np.float64)


def _logits(probability: NDArray[np.floating]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = logit(
        np.clip(probability.astype(np.float32), _CERTAIN, 1 - _CERTAIN)
    )
    return logits


# Local alignment of a prior, for what registration has left over --------------------------------


def aligned_prior(
    image: NDArray[Any], prior: NDArray[Any], brain: NDArray[np.bool_], steps: Any
) -> NDArray[np.float32]:
    """
    Move each place of a prior by some millimeters to where it looks like the scan.

    Differences of both scans, in local levels, are taken for small moves along their gradient:
    first of the whole, then in windows. What does not agree, such as a new metastasis, counts
    little.

    Shapes: `image`, `prior` and `brain` (x, y, z), `steps` (3,) in mm; returns (x, y, z).

    References
    ----------
    Lucas and Kanade, Proc 7th IJCAI:674–679, 1981, with Cauchy's weights.
    """
    steps = np.asarray(steps, dtype=np.float64)
    depth = ndimage.distance_transform_edt(brain, sampling=steps)
    moves = _moves(
        _relative(image, brain, steps), _relative(prior, brain, steps), depth > _BORDER, steps
    )
    places = np.indices(image.shape, dtype=np.float32)
    at = places / _strides(image.shape, steps)[:, None, None, None]
    for axis, move in enumerate(moves):
        places[axis] += ndimage.map_coordinates(move, at, order=1, mode="nearest") / steps[axis]
    # Lines between voxels would flatten small metastases that lie between them.
    values = np.asarray(prior, dtype=np.float32)
    moved = ndimage.map_coordinates(values, places, order=3, mode="nearest")
    return np.maximum(moved, 0) * brain


def _relative(
    values: NDArray[Any], brain: NDArray[np.bool_], steps: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Divide a scan by its local levels, cut it off at 2 of them, and subtract its local mean."""
    values = np.asarray(values, dtype=np.float32)
    levels = np.clip(values / local_level(values, brain, steps), 0, _BRIGHTEST) * brain
    sums, shares = (
        ndimage.gaussian_filter(part.astype(np.float32), _AROUND / steps, truncate=3)
        for part in (levels, brain)
    )
    return (levels - sums / np.maximum(shares, 1e-3)) * brain


def _strides(shape: tuple[int, ...], steps: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give the voxels (3,) between neighbors of the places that are moved, two or more an axis."""
    most = np.maximum(np.array(shape) // 2, 1)
    return np.clip(np.round(_GRID / steps), 1, most).astype(np.int64)


def _moves(
    image: NDArray[np.float32],
    prior: NDArray[np.float32],
    inside: NDArray[np.bool_],
    steps: NDArray[np.float64],
) -> NDArray[np.float64]:
    """
    Register a prior with a scan: where the content of each place of the scan is in the prior.

    Returns displacements in mm, (3, ...), at every `_strides` voxels.
    """
    strides = _strides(image.shape, steps)
    coarse = tuple(slice(None, None, int(stride)) for stride in strides)
    inside = inside[coarse]
    moves = np.zeros((3, *inside.shape))
    # A single slice has no gradient across it, and stays where it is.
    if not inside.any() or 1 in image.shape:
        return moves
    places = np.indices(inside.shape) * strides[:, None, None, None]
    for blur, window in _ROUNDS:
        fixed, moving = (ndimage.gaussian_filter(v, blur / steps) for v in (image, prior))
        gradients = np.stack([slope[coarse] for slope in np.gradient(fixed, *steps)], axis=-1)
        at = places + moves / steps[:, None, None, None]
        residual = fixed[coarse] - ndimage.map_coordinates(moving, at, order=1, mode="nearest")
        # A robust SD: the median absolute deviation of a normal distribution is 1 / 1.4826 SD.
        sd = 1.4826 * np.median(np.abs(residual[inside])) + 1e-6
        weights = inside / (1 + (residual / (_OUTLIER * sd)) ** 2)
        if window is None:
            further = _affine_displacements(places, gradients, residual, weights)
        else:
            sds = window / (steps * strides)
            further = _local_displacements(sds, gradients, residual, weights)
        moves = np.clip(moves + further, -_FURTHEST, _FURTHEST)
    return moves


def _affine_displacements(
    places: NDArray[Any], gradients: NDArray[Any], residual: NDArray[Any], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """Solve for the affine transformation of all places that explains the residuals: (3, ...)."""
    centered = (places - places.mean(axis=(1, 2, 3), keepdims=True)) / max(places.shape)
    basis = np.stack([np.ones(residual.shape), *centered], axis=-1)
    # Four coefficients for each of three directions: a shift, and factors of the coordinates.
    jacobian = (gradients[..., None] * basis[..., None, :]).reshape(-1, 12)
    weighted = jacobian.T * weights.ravel()
    coefficients = np.linalg.lstsq(weighted @ jacobian, weighted @ residual.ravel())[0]
    return np.moveaxis(basis @ coefficients.reshape(3, 4).T, -1, 0)


def _local_displacements(
    sds: NDArray[Any], gradients: NDArray[Any], residual: NDArray[Any], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """
    Solve for the displacement of each place that explains the residuals around it: (3, ...).

    `sds` (3,) are the standard deviations of the Gaussian window, in places.
    """
    weighted = gradients * weights[..., None]
    # Normal equations of least squares, summed over the window of each place.
    matrices = weighted[..., None] * gradients[..., None, :]
    matrices = ndimage.gaussian_filter(matrices, (*sds, 0, 0))
    right_sides = ndimage.gaussian_filter(weighted * residual[..., None], (*sds, 0))
    ridge = _RIDGE * np.trace(matrices, axis1=-2, axis2=-1) + 1e-9
    matrices += ridge[..., None, None] * np.eye(3)
    return np.moveaxis(np.linalg.solve(matrices, right_sides[..., None])[..., 0], -1, 0)
