"""Scores by volume, distance, scan, rate and sensitivity, as readers and challenges ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.randomness import seed_for
from dmrifit.io.components import label_components, match_to_lesions
from metastasis.segmentation.operating_points import threshold_curve
from metastasis.study.challenge_scores import mets_scores
from metastasis.study.operating_curves import (
    FROC_RATES,
    precision_at_sensitivity,
    summed_curve,
)
from metastasis.study.patient_samples import patient_draws, percentile_interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LEVELS",
    "SHARES",
    "STATUSES",
    "TOLERANCE_MM",
    "challenge_table",
    "distance_counts",
    "distance_table",
    "froc_table",
    "lesion_free_table",
    "matched_table",
    "recall_by_volume",
    "scan_scores",
]

#: Bounds in mm³ of the ranges of volume: balls of 4.6, 5.8 and 9.8 mm.
VOLUMES_MM3 = (50.0, 100.0, 500.0)
#: Distance in mm that a finding may reach beyond a lesion; at least two diagonals of a voxel's
#: face are allowed, so that a voxel of outline is no error.
TOLERANCE_MM = 2.0

#: Shares that counts by distance give.
SHARES = ("sensitivity", "precision", "f1")
#: Sensitivities at which methods are compared.
LEVELS = (0.85, 0.9, 0.95)
#: What a lesion can be in comparison with the prior scan.
STATUSES = ("new", "grown", "stable", "shrunk")

_THRESHOLDS = 1 / (1 + np.exp(-np.linspace(-7, 7, 29)))


def distance_counts(
    lesions: NDArray[np.int32],
    distance: NDArray[np.floating],
    prediction: NDArray[np.bool_],
    tolerance: float,
    **options: int,
) -> dict[str, int]:
    """
    Count lesions and findings by a strict rule of distance, for which outlines may differ.

    A finding that touches a lesion is right when most of its voxels lie within the tolerance of a
    lesion. Covering everything is still an error, and so is what runs off along a vessel.

    Shapes: `lesions` (numbers), `distance` (to the nearest lesion, mm) and `prediction` (x, y, z).
    """
    matching = match_to_lesions(lesions, prediction, **options)
    n_components = len(matching.component_voxels)
    near = np.bincount(
        matching.prediction[(distance <= tolerance) & prediction], minlength=n_components + 1
    )[1:]
    is_near = 2 * near > matching.component_voxels
    hits = matching.lesion[is_near[matching.component]]
    return {
        "n_lesions": len(matching.lesion_voxels),
        "n_found": len(np.unique(hits)),
        "n_wrong": int((matching.false_positive | ~is_near).sum()),
    }


def scan_scores(
    truth: NDArray[np.bool_],
    lesions: NDArray[np.int32],
    distance: NDArray[np.floating],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    **options: int,
) -> dict[str, float]:
    """Count by distance and score by the rule of BraTS-METS; shapes: volumes (x, y, z)."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    tolerance = max(TOLERANCE_MM, float(2 * np.hypot(*np.sort(edges)[1:])))
    counts = distance_counts(lesions, distance, mask, tolerance, **options)
    marked = float(np.count_nonzero(mask)) * voxel_volume(affine) / MM3_PER_ML
    return {**counts, "marked_mL": marked, **mets_scores(truth, mask, affine)}


def recall_by_volume(lesions: pd.DataFrame, *, n_bootstrap: int, seed: int) -> pd.DataFrame:
    """
    Give the share of lesions that are found in ranges of volume, with intervals over patients.

    `lesions` has the rows of `lesion_table` with ``patient`` and ``method``.
    """
    import pandas as pd

    reference = lesions[lesions["kind"] == "lesion"]
    volume = reference["volume_mL"].to_numpy(np.float64) * MM3_PER_ML
    # The smallest edge belongs to the range above it, in spite of rounding.
    ranges = np.searchsorted(np.array(VOLUMES_MM3) * (1 - 1e-9), volume, side="right")
    edges = [0.0, *VOLUMES_MM3, np.inf]
    rows = []
    for method in dict.fromkeys(reference["method"]):
        for k in range(len(edges) - 1):
            group = reference[(reference["method"] == method).to_numpy() & (ranges == k)]
            counts = group.groupby("patient")["found"].agg(["size", "sum"]).to_numpy(np.float64)
            row = {"method": method, "from_mm3": edges[k], "below_mm3": edges[k + 1]}
            row |= {"n_patients": len(counts), "n": len(group)}
            row |= {"n_found": int(group["found"].sum()), "recall": np.nan}
            row |= {"low": np.nan, "high": np.nan}
            if len(group):
                row["recall"] = row["n_found"] / len(group)
                row["low"], row["high"] = _interval(
                    counts, n_bootstrap, seed_for(seed, "volume", k)
                )
            rows.append(row)
    return pd.DataFrame(rows)


def _interval(counts: NDArray[np.float64], n_bootstrap: int, seed: Any) -> tuple[float, float]:
    """Give percentiles 2.5 and 97.5 of the share over samples of patients (n_patients, 2)."""
    sizes, hits = (patient_draws(len(counts), n_bootstrap, seed) @ counts).T
    # Samples of patients without any lesion, or finding, have no share.
    return percentile_interval(hits[sizes > 0] / sizes[sizes > 0])


def distance_table(scans: pd.DataFrame, *, n_bootstrap: int, seed: int) -> pd.DataFrame:
    """
    Sum the counts by distance over scans, with intervals of their shares over patients.

    ``sensitivity``, ``precision`` and ``f1`` of each method, and ``…_low`` and ``…_high``.
    """
    import pandas as pd

    names = ["n_lesions", "n_found", "n_wrong"]
    rows = []
    for method, group in scans.groupby("method", sort=False):
        counts = group.groupby("patient")[names].sum().astype(np.float64)
        row: dict[str, Any] = {"method": method, **group[names].sum()}
        found, marked = counts["n_found"], counts["n_found"] + counts["n_wrong"]
        shares = (
            (counts["n_lesions"], found),
            (marked, found),
            (marked + counts["n_lesions"], 2 * found),
        )
        for key, (sizes, hits) in zip(SHARES, shares, strict=True):
            # 0 / 0 is NaN where there is nothing to divide by.
            row[key] = hits.sum() / sizes.sum() if sizes.sum() else np.nan
            pairs = np.column_stack([sizes, hits])
            limits = _interval(pairs, n_bootstrap, seed_for(seed, "distance", key))
            row[f"{key}_low"], row[f"{key}_high"] = limits
        rows.append(row)
    return pd.DataFrame(rows)


def challenge_table(scans: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of BraTS-METS over the scans in which they are defined."""
    columns = [key for key in scans.columns if "_instance_" in key or key.startswith("lesionwise")]
    return scans.groupby("method", sort=False)[columns].mean().reset_index()


def lesion_free_table(scans: pd.DataFrame) -> pd.DataFrame:
    """List the scans without lesions by name, with what each method marks in them."""
    empty = scans[scans["n_lesions"] == 0]
    table = empty[["name", "patient", "method", "n_wrong", "marked_mL"]]
    return table.rename(columns={"n_wrong": "n_findings"}).reset_index(drop=True)


def froc_table(
    curves: Mapping[str, pd.DataFrame],
    samples: Mapping[str, NDArray[np.float64]],
    *,
    rates: Sequence[float] = FROC_RATES,
) -> pd.DataFrame:
    """
    Read curves at rates of false positives per scan: the best sensitivity and its threshold.

    `samples` are those of `froc_samples` by method, for the intervals over patients in ``…_low``
    and ``…_high``: NaN where no threshold reaches the rate, and of a single patient.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    keys = ("sensitivity", "strict_sensitivity")
    limits = [f"{key}_{end}" for key in keys for end in ("low", "high")]
    for method, curve in curves.items():
        wrong = curve["false_positives_per_scan"] + curve["flagged_per_scan"]
        for number, rate in enumerate(rates):
            row: dict[str, Any] = {"method": method, "rate": rate, "threshold": np.nan}
            row |= dict.fromkeys([*keys, *limits], np.nan)
            reached = curve[(wrong <= rate) & curve["strict_sensitivity"].notna()]
            if len(reached):
                best = reached.loc[reached["strict_sensitivity"].idxmax()]
                row |= {key: float(best[key]) for key in ("threshold", *keys)}
                plain, strict = samples[method][:, number].T
                ends = [*percentile_interval(plain), *percentile_interval(strict)]
                row |= dict(zip(limits, ends, strict=True))
            rows.append(row)
    return pd.DataFrame(rows, columns=["method", "rate", "threshold", *keys, *limits])


def matched_table(
    truths: Sequence[NDArray[np.bool_]],
    probabilities: Sequence[NDArray[Any]],
    parts: Mapping[str, Sequence[int]],
    statuses: Sequence[Mapping[int, str]],
    **options: int,
) -> pd.DataFrame:
    """
    Read false positives where the threshold gives a sensitivity, over some of the scans.

    `parts` are the numbers of scans by name, `statuses` those of lesions by number. A row for each
    part and sensitivity of `LEVELS`: ``threshold``, ``false_positives_per_scan``, ``precision``,
    and by status the share of lesions whose highest probability reaches the threshold. NaN where
    no threshold gives the sensitivity; straight lines between thresholds.

    Shapes: `truths` and `probabilities` (x, y, z).
    """
    import pandas as pd

    pairs = zip(truths, probabilities, strict=True)
    curves = [
        threshold_curve([truth], [values], thresholds=_THRESHOLDS, **options)
        for truth, values in pairs
    ]
    peaks = [
        _peaks(*scan, options.get("connectivity", 26))
        for scan in zip(truths, probabilities, statuses, strict=True)
    ]
    rows = []
    for part, numbers in parts.items():
        curve = summed_curve([curves[i] for i in numbers])
        lesions = pd.concat([peaks[i] for i in numbers], ignore_index=True)
        for level in LEVELS:
            point = precision_at_sensitivity(curve, level)
            row: dict[str, Any] = {"part": part, "sensitivity": level}
            for key in ("threshold", "false_positives_per_scan", "precision"):
                row[key] = point[key]
            for status in STATUSES:
                peak = lesions.loc[lesions["status"] == status, "peak"].to_numpy(np.float64)
                is_known = len(peak) > 0 and np.isfinite(point["threshold"])
                row[status] = (
                    float((peak >= point["threshold"]).mean()) if is_known else float("nan")
                )
            rows.append(row)
    return pd.DataFrame(rows)


def _peaks(
    truth: NDArray[np.bool_], values: NDArray[Any], status: Mapping[int, str], connectivity: int
) -> pd.DataFrame:
    """Give the highest probability in each lesion, and its status."""
    import pandas as pd
    from scipy import ndimage

    labels = label_components(truth, connectivity=connectivity)
    numbers = np.arange(1, labels.max(initial=0) + 1)
    peaks = ndimage.maximum(values, labels, numbers) if len(numbers) else []
    words = [status.get(number, "") for number in numbers.tolist()]
    return pd.DataFrame({"peak": np.asarray(peaks, np.float64), "status": words})
