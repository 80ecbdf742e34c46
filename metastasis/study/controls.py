"""Segmentations made without looking, which no method should fall short of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit._utils.counts import first_few
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.io.components import label_components
from dmrifit.io.grids import as_stored, cropped
from metastasis.scans.cases import Case

#: Rows that no method should fall short of.
CONTROLS = ("all positive", "empty", "another patient's lesions", "random blobs")


def control_segmentations(
    cases: Sequence[Case], *, random_state: RandomState = 0
) -> dict[str, list[NDArray[np.bool_]]]:
    """Make the masks of `CONTROLS` for each case, which do not look at its image."""
    # In RAS order, so that no control depends on the order of the axes in which scans are stored.
    truths = [case.upright(mask) for case, mask in zip(cases, reference_masks(cases), strict=True)]
    seed = Seed(random_state)
    lesions, masks = [], []
    for truth in truths:
        labels = label_components(truth)
        boxes = ndimage.find_objects(labels)
        lesions.append([labels[box] == number for number, box in enumerate(boxes, start=1)])
    for i, case in enumerate(cases):
        shape = truths[i].shape
        brain = np.ones(shape, bool) if case.brain is None else case.upright(case.brain)
        order = [*range(i + 1, len(cases)), *range(i)]
        donors = [j for j in order if cases[j].patient != case.patient]
        donor_mask = next((truths[j] for j in donors if truths[j].any()), np.zeros(shape, bool))
        # A stream for each case, so that leaving out a case changes no other.
        rng = seed.rng("random blobs", i)
        blobs = list(chain.from_iterable(lesions[j] for j in donors))
        # As many as another patient has, as the number of a case's own lesions would be a look at
        # it.
        model = donors[rng.integers(len(donors))] if donors else i
        copied = cropped(donor_mask, (0, 0, 0), shape)
        scattered = _random_blobs(blobs or lesions[i], len(lesions[model]), brain, rng)
        upright = (brain, np.zeros(shape, bool), copied, scattered)
        masks.append([as_stored(mask, case.affine) for mask in upright])
    controls = {name: [of_case[k] for of_case in masks] for k, name in enumerate(CONTROLS)}
    if len({case.patient for case in cases}) == 1:
        del controls["another patient's lesions"]
    return controls


def reference_masks(cases: Sequence[Case]) -> list[NDArray[np.bool_]]:
    """Give the reference lesions (x, y, z) of cases."""
    if not len(cases):
        raise ValueError("there are no cases to evaluate")
    missing = [case.name for case in cases if case.label is None]
    if missing:
        raise ValueError(f"cases without a label cannot be evaluated: {first_few(missing)}")
    return [np.asarray(case.label) > 0 for case in cases]


def _random_blobs(
    blobs: Sequence[NDArray[np.bool_]],
    number: int,
    brain: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Place lesions around random voxels of a brain; what lies beyond the image is cut."""
    mask = np.zeros(brain.shape, bool)
    brain_voxels = np.flatnonzero(brain)
    if not blobs or not len(brain_voxels):
        return mask
    for _ in range(number):
        blob = blobs[int(rng.integers(len(blobs)))]
        center = np.unravel_index(brain_voxels[rng.integers(len(brain_voxels))], brain.shape)
        voxels = np.argwhere(blob) + np.array(center) - np.array(blob.shape) // 2
        inside = ((voxels >= 0) & (voxels < brain.shape)).all(axis=1)
        mask[tuple(voxels[inside].T)] = True
    return mask
