"""Probabilities of a network made comparable between scans by what most of a brain reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit, logit

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


def comparable(
    probability: NDArray[np.floating],
    brain: NDArray[np.bool_],
    steps: Any = (1.0, 1.0, 1.0),
    *,
    lesions: NDArray[np.bool_] | None = None,
    mirrored: tuple[int, ...] = (),
) -> NDArray[np.float32] | None:
    """
    Scale the logits of a scan to the median and spread of its largest ones in blocks of 12 mm.

    Networks are surer in one brain than in another: one marked 80 % of implants at 0.56 in one
    person, another one at 0.005 in the next. Metastases fill few blocks, so that the largest
    logit of most blocks is that of tissue, vessels and dura, and needs no label. The median of
    the blocks becomes 0.018, a block as far above it as the upper quartile 0.12, twice 0.5. Small
    pieces of a brain tell no level: None. Blocks are counted from the edge of the brain, along
    `mirrored` axes from their end, so that flipped images give the same. In training,
    voxels of `lesions` are left out.

    Shapes: `probability`, `brain` and `lesions` (x, y, z), `steps` (3,) in mm; returns (x, y, z).
    """
    is_even = brain if lesions is None else brain & ~lesions
    peaks = block_peaks(probability, is_even, steps, mirrored)
    if len(peaks) < _LEAST_BLOCKS:
        return None
    level, upper = np.quantile(peaks, _SHARES)
    slope = np.float32(_SLOPE / max(upper - level, _LEAST_SPREAD))
    scaled = expit(slope * (_logits(probability) - np.float32(level)) + np.float32(_LEVEL))
    return np.where(brain, scaled, 0).astype(np.float32)


def block_peaks(
    probability: NDArray[np.floating],
    brain: NDArray[np.bool_],
    steps: Any,
    mirrored: tuple[int, ...] = (),
) -> NDArray[np.float64]:
    """Give the largest logit of each block that is brain for the most part."""
    if not brain.any():
        return np.empty(0)
    # Blocks start at a set distance from the brain, so that empty slices around it change nothing.
    (window,) = ndimage.find_objects(brain.astype(np.uint8))
    probability = np.flip(probability[window], mirrored)
    brain = np.flip(brain[window], mirrored)
    edges = [max(1, round(_BLOCK_MM / step)) for step in steps]
    index = np.zeros(brain.shape, dtype=np.int32)
    n_blocks = 1
    for axis, edge in enumerate(edges):
        margin = round(_MARGIN_MM / steps[axis])
        numbers = (np.arange(brain.shape[axis], dtype=np.int32) + margin) // edge
        shape = [-1 if a == axis else 1 for a in range(3)]
        index = index * (numbers[-1] + 1) + numbers.reshape(shape)
        n_blocks *= int(numbers[-1]) + 1
    volumes = np.bincount(index[brain], minlength=n_blocks)
    full = np.flatnonzero(volumes >= _LEAST_BRAIN * np.prod(edges))
    values = _logits(np.where(brain, probability, 0))
    return np.asarray(ndimage.maximum(values, index, full), dtype=np.float64)


def _logits(probability: NDArray[np.floating]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = logit(
        np.clip(probability.astype(np.float32), _CERTAIN, 1 - _CERTAIN)
    )
    return logits
