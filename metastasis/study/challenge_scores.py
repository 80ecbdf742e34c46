"""Scores of lesions by the rule of the BraTS-METS challenge: pairs one to one by Dice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from dmrifit._utils.affines import voxel_volume
from dmrifit.io.components import Matching, check_affine, match_components

__all__ = ["mets_scores"]

#: Volume in mm³ from which a lesion is large; 3.4 mm across.
LARGE_MM3 = 20.0
#: Dice coefficient from which a paired lesion counts as found, among the small and the large ones.
MIN_DICE = 0.1
#: Lesions that are counted: all, which any overlap finds, and the large and the small ones.
PARTS = ("all", "large", "small")

_LEAST_DICE = 1e-6
_UNPAIRED = 1 + 1e-6  # cost


def mets_scores(
    reference: ArrayLike, prediction: ArrayLike, affine: ArrayLike | None = None
) -> dict[str, float]:
    """
    Score the lesions of a scan as the official scorer of BraTS-METS does.

    Lesions and findings (26-connected components) are paired one to one, so that the sum of the
    Dice coefficients of the pairs is largest. Findings that have no partner are false positives,
    of all lesions, of the large and of the small ones alike.

    Parameters
    ----------
    reference : array_like of shape (x, y, z)
        1 in enhancing lesions (label 3 of the challenge) and 0 elsewhere.
    prediction : array_like of shape (x, y, z)
        1 where lesions are predicted and 0 elsewhere.
    affine : array_like of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm; by default voxels of 1 mm.

    Returns
    -------
    dict of str to float
        Of ``all``, ``large`` (at least `LARGE_MM3`) and ``small`` lesions ``…_instance_tp``,
        ``fp``, ``fn``, ``prec``, ``rec`` and ``f1``. Of all lesions any pair is a true positive;
        of large and small ones its Dice coefficient must reach `MIN_DICE`. NaN where the scorer
        has NaN: without large (small) lesions, and where nothing is to be divided by.
        ``lesionwise_dsc_mean`` is the mean Dice coefficient over large lesions, 0 for those
        without a partner and for each false positive.

    Raises
    ------
    ValueError
        If shapes differ or have not three axes, or a value is not 0 or 1.

    References
    ----------
    Moawad et al., arXiv:2306.00838, 2023; brats-evaluation 0.0.10, configuration mets.
    """
    matched = match_components(reference, prediction)
    volumes = matched.lesion_voxels * voxel_volume(check_affine(affine))
    dice = dice_pairs(matched)
    n_false = len(matched.component_voxels) - int((dice > 0).sum())
    is_large = volumes >= LARGE_MM3
    scores = _counted("all", dice > 0, n_false)
    # The scorer divides by nothing for all lesions together, but not for large or small ones.
    n_lesions, n_components = len(volumes), len(matched.component_voxels)
    for key, n in (("rec", n_lesions), ("prec", n_components), ("f1", n_lesions + n_components)):
        if not n:
            scores[f"all_instance_{key}"] = np.nan
    for part, inside in (("large", is_large), ("small", ~is_large)):
        part_scores = _counted(part, dice[inside] >= MIN_DICE, n_false)
        if not inside.any():
            part_scores = dict.fromkeys(part_scores, np.nan)
        scores |= part_scores
    scores["lesionwise_dsc_mean"] = np.nan
    if is_large.any():
        n = int(is_large.sum()) + n_false
        scores["lesionwise_dsc_mean"] = float(dice[is_large].sum()) / n
    return scores


def dice_pairs(matched: Matching) -> NDArray[np.float64]:
    """Pair lesions and components one to one; give the Dice coefficient (n_lesions,), 0 alone."""
    sizes = matched.lesion_voxels[matched.lesion] + matched.component_voxels[matched.component]
    overlap = 2 * matched.overlap / sizes
    cost = np.full((len(matched.lesion_voxels), len(matched.component_voxels)), _UNPAIRED)
    is_pair = overlap >= _LEAST_DICE
    cost[matched.lesion[is_pair], matched.component[is_pair]] = 1 - overlap[is_pair]
    lesion, component = linear_sum_assignment(cost)
    dice = np.zeros(len(matched.lesion_voxels))
    paired_cost = cost[lesion, component]
    dice[lesion] = np.where(paired_cost < 1, 1 - paired_cost, 0)
    return dice


def _counted(part: str, found: NDArray[np.bool_], n_false: int) -> dict[str, Any]:
    """Count hits, and give rates that are 0 where there is nothing to divide by."""
    n_hits, n_missed = int(found.sum()), int((~found).sum())
    rates = {
        "prec": n_hits / max(n_hits + n_false, 1),
        "rec": n_hits / max(n_hits + n_missed, 1),
        "f1": 2 * n_hits / max(2 * n_hits + n_false + n_missed, 1),
    }
    counts = {"tp": float(n_hits), "fp": float(n_false), "fn": float(n_missed)}
    return {f"{part}_instance_{key}": value for key, value in (counts | rates).items()}
