"""Mistakes of a network that its next training learns from, large and small ones alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metastasis.segmentation.sampling import mark_mistakes

_SURE = 0.1  # probability from which `mark_mistakes` marks
_MOST = 300.0  # voxels of one that are marked


def marked_evenly(
    label: NDArray[np.uint8], probability: NDArray[np.floating], seed: int
) -> NDArray[np.uint8]:
    """
    Mark what a network takes for lesions, of a large mistake a random part.

    Segments are drawn around marked voxels: a sinus would crowd out a hundred vessels.

    Shapes: `label` and `probability` (x, y, z); returns (x, y, z).
    """
    components, _ = ndimage.label(probability >= _SURE)
    sizes = np.maximum(np.bincount(components.ravel()), 1)
    is_kept = np.random.default_rng(seed).random(label.shape) * sizes[components] < _MOST
    return mark_mistakes(label, probability * is_kept)
