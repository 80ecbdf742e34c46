"""Scores by volume, distance, scan, rate and sensitivity, as readers and challenges ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.randomness import Seed
from dmrifit.io.components import check_affine, label_components
from dmrifit.stats.lesion_matching import Matching, ratio
from dmrifit.stats.patient_summary import summarize
from metastasis.segmentation.operating_points import COUNTS, summed_curve, threshold_curve
from metastasis.study.operating_curves import precision_at_sensitivity

#: Bounds in mm³ of the ranges of volume: balls of 4.6, 5.8 and 9.8 mm.
VOLUMES_MM3 = (50.0, 100.0, 500.0)
#: Distance in mm that a finding may reach beyond a lesion; at least two diagonals of a voxel's
#: face are allowed, so that a voxel of outline is no error.
TOLERANCE_MM = 2.0

#: Shares that counts by distance give.
SHARES = ("sensitivity", "precision", "f1")
_TRIALS = {"sensitivity": ["n_lesions"], "precision": ["n_found", "n_wrong"]}
#: Sensitivities at which methods are compared.
LEVELS = (0.85, 0.9, 0.95)
#: What a lesion can be in comparison with the prior scan.
STATUSES = ("new", "grown", "stable", "shrunk")

_THRESHOLDS = 1 / (1 + np.exp(-np.linspace(-7, 7, 29)))


#: Volume in mm³ from which a lesion is large; 3.4 mm across.
LARGE_MM3 = 20.0
#: Dice coefficient from which a paired lesion counts as found, among the small and the large ones.
MIN_DICE = 0.1

_INSTANCE = ("tp", "fp", "fn", "prec", "rec", "f1")
_LEAST_DICE = 1e-6
_UNPAIRED = 1 + 1e-6  # cost


def scan_scores(
    truth: NDArray[np.bool_],
    lesions: NDArray[np.int32],
    distance: NDArray[np.floating],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
) -> dict[str, float]:
    """
    Count by a strict rule of distance, which lets outlines differ, and score as BraTS-METS does.

    A finding that touches a lesion is right when most of its voxels lie within the tolerance of a
    lesion. Covering everything is still an error, and so is what runs off along a vessel.

    Shapes: `truth`, `lesions` (numbers), `distance` (to the nearest lesion, mm) and `mask`
    (x, y, z).
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    tolerance = max(TOLERANCE_MM, float(2 * np.hypot(*np.sort(edges)[1:])))
    matching = Matching.to_lesions(lesions, mask)
    n_components = len(matching.component_voxels)
    numbers = matching.prediction[mask & (distance <= tolerance)]
    is_near = 2 * np.bincount(numbers, minlength=n_components + 1)[1:] > matching.component_voxels
    return {
        "n_lesions": len(matching.lesion_voxels),
        "n_found": len(np.unique(matching.lesion[is_near[matching.component]])),
        "n_wrong": int((matching.false_positive | ~is_near).sum()),
        "marked_mL": float(np.count_nonzero(mask)) * voxel_volume(affine) / MM3_PER_ML,
        **mets_scores(truth, mask, affine),
    }


def recall_by_volume(lesions: pd.DataFrame, n_bootstrap: int, seed: int) -> pd.DataFrame:
    """
    Give the share of lesions that are found in ranges of volume, with intervals over patients.

    `lesions` has the rows of `lesion_table` with ``patient`` and ``method``.
    """
    reference = lesions[lesions["kind"] == "lesion"]
    volume = reference["volume_mL"].to_numpy(np.float64) * MM3_PER_ML
    # The smallest edge belongs to the range above it, in spite of rounding.
    ranges = np.searchsorted(np.array(VOLUMES_MM3) * (1 - 1e-9), volume, side="right")
    edges = np.array([0.0, *VOLUMES_MM3, np.inf])
    counts = reference.assign(from_mm3=edges[ranges], n=1, n_found=reference["found"])
    keys, columns = ["method", "from_mm3"], ["n", "n_found"]
    draws: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": Seed(seed).sequence("volume")}
    draws["score"] = lambda sums: {**sums, "recall": ratio(sums["n_found"], sums["n"])}
    table = summarize(counts, keys, columns, trials={"recall": ["n"]}, **draws)
    table = table.rename(columns={"recall_low": "low", "recall_high": "high"}).set_index(keys)
    # Ranges without a lesion have a row, too.
    every = pd.MultiIndex.from_product([reference["method"].unique(), edges[:-1]], names=keys)
    table = table.reindex(every, columns=["n_patients", *columns, "recall", "low", "high"])
    whole = ["n_patients", *columns]
    table[whole] = table[whole].fillna(0).astype(int)
    table.insert(0, "below_mm3", np.tile(edges[1:], len(table) // len(edges[1:])))
    return table.reset_index()


def distance_table(scans: pd.DataFrame, n_bootstrap: int, seed: int) -> pd.DataFrame:
    """
    Sum the counts by distance over scans, with intervals of their shares over patients.

    ``sensitivity``, ``precision`` and ``f1`` of each method, and ``…_low`` and ``…_high``.
    """
    columns = ["n_lesions", "n_found", "n_wrong"]
    draws: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": Seed(seed).sequence("distance")}
    table = summarize(scans, ["method"], columns, _by_distance, trials=_TRIALS, **draws)
    shares = [f"{share}{end}" for share in SHARES for end in ("", "_low", "_high")]
    return table.reindex(columns=["method", *columns, *shares]).astype(dict.fromkeys(columns, int))


def _by_distance(counts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    n_lesions, n_found, n_wrong = (counts[key] for key in ("n_lesions", "n_found", "n_wrong"))
    f1 = ratio(2 * n_found, n_found + n_wrong + n_lesions)
    shares = (ratio(n_found, n_lesions), ratio(n_found, n_found + n_wrong), f1)
    return {**counts, **dict(zip(SHARES, shares, strict=True))}


def challenge_table(scans: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of BraTS-METS over the scans in which they are defined."""
    columns = [key for key in scans.columns if "_instance_" in key or key.startswith("lesionwise")]
    return scans.groupby("method", sort=False)[columns].mean().reset_index()


def lesion_free_table(scans: pd.DataFrame) -> pd.DataFrame:
    """List the scans without lesions by name, with what each method marks in them."""
    empty = scans[scans["n_lesions"] == 0]
    table = empty[["name", "patient", "method", "n_wrong", "marked_mL"]]
    return table.rename(columns={"n_wrong": "n_findings"}).reset_index(drop=True)


def matched_table(
    truths: Sequence[NDArray[np.bool_]],
    probabilities: Sequence[NDArray[Any]],
    parts: Mapping[str, Sequence[int]],
    statuses: Sequence[Mapping[int, str]],
    *,
    min_voxels: int = 1,
) -> pd.DataFrame:
    """
    Read false positives where the threshold gives a sensitivity, over some of the scans.

    `parts` are the indices of scans by name, `statuses` a mapping from the lesions' numbers for
    each scan. A row for each part and sensitivity of `LEVELS`, by the published rule:
    ``threshold``, ``false_positives_per_scan``, ``precision``; ``flagged_per_scan``,
    ``strict_sensitivity`` and ``strict_precision`` at that threshold, as at low ones findings
    merge into few that touch many lesions; and by status the share of lesions whose highest
    probability reaches the threshold. NaN where no threshold gives the sensitivity; straight lines
    between thresholds.

    Shapes: `truths` and `probabilities` (x, y, z).
    """
    curve_options: dict[str, Any] = {"thresholds": _THRESHOLDS, "min_voxels": min_voxels}
    curves, peaks = [], []
    for truth, values, status in zip(truths, probabilities, statuses, strict=True):
        curves.append(threshold_curve([truth], [values], **curve_options))
        labels = label_components(truth)
        lesion_numbers = np.arange(1, labels.max(initial=0) + 1)
        highest = ndimage.maximum(values, labels, lesion_numbers) if len(lesion_numbers) else []
        names = [status.get(number, "") for number in lesion_numbers.tolist()]
        peaks.append(pd.DataFrame({"peak": np.asarray(highest, np.float64), "status": names}))
    rows = []
    for part, scan_indices in parts.items():
        curve = summed_curve([curves[i] for i in scan_indices]).drop(columns=[*COUNTS])
        lesions = pd.concat([peaks[i] for i in scan_indices], ignore_index=True)
        for level in LEVELS:
            point = precision_at_sensitivity(curve, level)
            row: dict[str, Any] = {"part": part, **point, "sensitivity": level}
            is_found = lesions["peak"] >= point["threshold"]
            shares = is_found.groupby(lesions["status"]).mean()
            if np.isnan(point["threshold"]):
                shares = shares.head(0)
            row |= {status: float(shares.get(status, np.nan)) for status in STATUSES}
            rows.append(row)
    return pd.DataFrame(rows)


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
        Of ``all``, ``large`` (at least 20 mm³) and ``small`` lesions ``…_instance_tp``, ``fp``,
        ``fn``, ``prec``, ``rec`` and ``f1``. Of all lesions any pair is a true positive; of large
        and small ones its Dice coefficient must reach 0.1. NaN where the scorer has NaN: without
        large (small) lesions, and where nothing is to be divided by.
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
    matched = Matching.of(reference, prediction)
    volumes = matched.lesion_voxels * voxel_volume(check_affine(affine))
    # Pairs one to one; 0 is the Dice coefficient of a lesion without a partner.
    sizes = matched.lesion_voxels[matched.lesion] + matched.component_voxels[matched.component]
    overlap = 2 * matched.overlap / sizes
    cost = np.full((len(matched.lesion_voxels), len(matched.component_voxels)), _UNPAIRED)
    is_pair = overlap >= _LEAST_DICE
    cost[matched.lesion[is_pair], matched.component[is_pair]] = 1 - overlap[is_pair]
    lesion, component = linear_sum_assignment(cost)
    dice = np.zeros(len(volumes))
    paired_cost = cost[lesion, component]
    dice[lesion] = np.where(paired_cost < 1, 1 - paired_cost, 0)
    n_false = len(matched.component_voxels) - int((dice > 0).sum())
    is_large = volumes >= LARGE_MM3
    found = {"all": dice > 0, "large": dice[is_large] >= MIN_DICE}
    found["small"] = dice[~is_large] >= MIN_DICE
    scores: dict[str, float] = {}
    for part, is_found in found.items():
        n, n_hits = len(is_found), int(is_found.sum())
        counts = np.array([n_hits, n_false, n - n_hits], dtype=np.float64)
        rates = ratio([n_hits, n_hits, 2 * n_hits], [n_hits + n_false, n, n_hits + n_false + n])
        # The scorer divides by nothing for all lesions together, but not for large or small ones.
        if part != "all" and n:
            rates = np.nan_to_num(rates)
        elif part != "all":
            counts[:] = rates[:] = np.nan
        for key, value in zip(_INSTANCE, (*counts, *rates), strict=True):
            scores[f"{part}_instance_{key}"] = float(value)
    scores["lesionwise_dsc_mean"] = np.nan
    if is_large.any():
        scores["lesionwise_dsc_mean"] = float(dice[is_large].sum() / (is_large.sum() + n_false))
    return scores
