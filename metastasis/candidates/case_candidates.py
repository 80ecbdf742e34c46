"""Candidates of a case: those of a segmenter, compared with what it marks in the prior scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from metastasis.candidates.features import LEVELS, Candidates, ScanVolumes, find_candidates
from metastasis.candidates.scan_level import comparable
from metastasis.scans.network_inputs import Scan, brain_of, values_of
from metastasis.scans.prior_alignment import aligned_prior


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
    steps, sides = np.ones(3), 0
    level: dict[str, Any] = {"lesions": lesions}
    if isinstance(volume, nib.Nifti1Image):
        steps = np.asarray(nib.affines.voxel_sizes(volume.affine))
        axes, directions = nib.io_orientation(volume.affine).T
        sides = int(np.flatnonzero(axes == 0)[0])
        level["mirrored"] = tuple(np.flatnonzero(directions < 0))
    brain = brain_of(case)
    before = None
    # A prior of zeros is a missing one.
    if use_prior and prior is not None and np.any(values_of(prior)):
        before = aligned_prior(image, np.asarray(values_of(prior)), brain, steps)
    scan = ScanVolumes.scaled(image, brain, steps, before, sides)
    if before is not None and values.ndim == 3:
        earlier: Any = before
        if isinstance(volume, nib.Nifti1Image):
            earlier = nib.Nifti1Image(before, volume.affine)
        earlier_probability = probability_of(segmenter, (earlier, None, mask))
        if is_comparable:
            scaled = comparable(earlier_probability, brain, steps, **level)
            earlier_probability = earlier_probability if scaled is None else scaled
        scan = replace(scan, prior_probability=earlier_probability)
    scaled = comparable(probability, brain, steps, **level) if is_comparable else None
    return find_candidates(
        probability if scaled is None else scaled,
        scan,
        levels=tuple(levels),
        min_voxels=min_voxels,
        # Small pieces of a brain are not scaled, and what is marked in them may be large.
        limited=scaled is not None,
    )


def probability_of(segmenter: Any, case: Scan) -> NDArray[np.float32]:
    """Segment a case: (x, y, z)."""
    volume, prior, mask = case
    options = segmenter_options(segmenter, [prior], [mask])
    (probability,) = segmenter.predict_proba([volume], **options)
    return np.asarray(probability)


def segmenter_options(
    segmenter: Any, priors: Sequence[Any], masks: Sequence[Any]
) -> dict[str, Any]:
    """Give priors and masks to a segmenter, but none to a network that was told to have none."""
    options: dict[str, Any] = {}
    if any(mask is not None for mask in masks):
        options["masks"] = list(masks)
    uses_priors = getattr(segmenter, "prior", None) is not None
    if hasattr(segmenter, "prior_"):
        uses_priors = segmenter.prior_ is not None
    if uses_priors and any(prior is not None for prior in priors):
        options["priors"] = list(priors)
    return options
