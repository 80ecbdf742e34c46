"""Scores of one method: of its maps, of their masks by each rule, against follow-up scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly.detectors.thresholds import ThresholdRule, limits_left_out, open_map, rate_limits
from anomaly.scans.cases import Case
from anomaly.study.contestants import AS_GIVEN, WHOLE, Bench, Entry
from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.checks import check_number
from dmrifit.io.case_tables import checked_mask
from dmrifit.io.components import check_affine, label_components
from dmrifit.stats.lesion_matching import lesion_counts, lesion_table, ratio
from dmrifit.stats.metrics import dice
from dmrifit.stats.patient_summary import joined

#: Columns of false-positive rates, raw and opened.
RATES = ("false_positive_rate", "false_positive_rate_opened")

#: Rate of false positives up to which the area under a curve is taken.
FULL_RATE = 0.3
#: Range of low rates over which a second area is taken, along the logarithm of the rate.
LOW_RATES = (1e-3, 1e-2)
#: Rates at which curves are read.
CURVE_RATES = (
    *(1e-4, 2e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3, 0.01, 0.015, 0.02, 0.03, 0.04),
    *(0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.24, 0.26, 0.28, FULL_RATE),
)

_ROW_KINDS = ("scans", "healthy", "thresholds", "counts", "strata", "followup")


@dataclass(frozen=True, eq=False)
class _Decision:
    """The masks of a rule for the maps of a method, and its thresholds of all and of each scan."""

    rule: str
    needs_truth: bool
    masks: list[NDArray[np.bool_]]
    healthy: list[NDArray[np.bool_]] | None
    threshold: float = np.nan
    n_fitted: int = 0
    limits: list[float] | None = None


def score_method(
    bench: Bench, entry: Entry, rules: Mapping[str, ThresholdRule]
) -> dict[str, pd.DataFrame]:
    """
    Score the maps of a method under each rule; returns one table for each kind of row.

    Kinds are those of `_ROW_KINDS`, and "lesions" and "curves".
    """
    keys = {"fold": entry.fold, "method": entry.method, "control": entry.control}
    # The order of voxels does not depend on the rule.
    rankings = [
        {name: _ranking(values, lesion, region) for name, region in regions.items()}
        for values, lesion, regions in zip(entry.maps, bench.lesions, bench.regions, strict=True)
    ]
    rows: dict[str, list[Any]] = {key: [] for key in _ROW_KINDS}

    def add(kind: str, region: str, row: dict[str, Any]) -> None:
        """Add a row of a whole scan to those of its kind, of a stratum to those of strata."""
        if region == WHOLE:
            rows[kind].append(row)
        else:
            rows["strata"].append(row | {"stratum": region, "healthy": kind == "healthy"})

    lesion_tables = []
    edge = bench.edge(entry.method)
    matching = {"connectivity": bench.connectivity, "min_overlap": bench.min_overlap}
    for decision in _decisions(bench, entry, rules):
        rule_keys = keys | {"rule": decision.rule, "needs_truth": decision.needs_truth}
        limits = {"threshold": decision.threshold, "n_fitted": decision.n_fitted}
        rows["thresholds"].append(rule_keys | limits)
        for i, marked in enumerate(decision.masks):
            case, lesion = bench.cases[i], bench.lesions[i]
            columns = rule_keys | _case_columns(i, case)
            # Opened first: a cube may reach beyond the scored voxels.
            opened = open_map(marked, edge) & bench.scored[i]
            limit = np.nan if decision.limits is None else decision.limits[i]
            for name, region in bench.regions[i].items():
                row = columns | rankings[i][name]
                overlaps = _overlaps(marked & region, opened & region, lesion & region)
                add("scans", name, {**row, "threshold": limit, **overlaps})
            # Masks that used the truth say nothing about lesions found or followed up.
            if decision.needs_truth:
                continue
            if bench.lesion_wise:
                table = lesion_table(lesion, opened, case.affine, **matching)
                counts = {"patient": case.patient, **lesion_counts(table)}
                rows["counts"].append(rule_keys | counts)
                # What the table notes about its own scan would be wrong for all scans joined.
                table.attrs = {}
                # The table has a column "kind" already: lesion or false positive.
                own = {key.replace("kind", "lesion_kind"): value for key, value in columns.items()}
                lesion_tables.append(table.assign(**own))
            if case.followup is not None and case.lesion is not None:
                where: dict[str, Any] = {"brain": bench.scored[i], "affine": case.affine}
                where["connectivity"] = bench.connectivity
                overlap = overlap_with_followup(opened, case.lesion, case.followup, **where)
                rows["followup"].append({**rule_keys, "grade": case.grade, **vars(overlap)})
        for i, marked in enumerate(decision.healthy or ()):
            opened = open_map(marked, edge) & bench.healthy_scored[i]
            n_components = label_components(opened, connectivity=bench.connectivity).max()
            for name, region in bench.healthy_regions[i].items():
                row = rule_keys | _case_columns(i, bench.healthy[i], ("name", "patient"))
                row |= _false_positives(marked, opened, region)
                add("healthy", name, {**row, "n_components_opened": int(n_components)})
    tables = {key: pd.DataFrame(values) for key, values in rows.items()}
    tables["lesions"] = joined(lesion_tables)
    tables["curves"] = tables["areas"] = pd.DataFrame()
    if entry.healthy and not entry.is_mask:
        masks = zip(entry.healthy, bench.healthy_scored, strict=True)
        scored = [values[mask] for values, mask in masks]
        curve = coverage_curve(scored, entry.maps, bench.lesions, connectivity=bench.connectivity)
        tables["curves"] = curve.assign(**keys)
        tables["areas"] = pd.DataFrame([keys | curve_areas(curve)])
    return tables


def _case_columns(
    i: int, case: Case, columns: Sequence[str] = ("name", "patient", "kind", "grade")
) -> dict[str, Any]:
    return {"case": i, **{column: getattr(case, column) for column in columns}}


def _false_positives(
    raw: NDArray[np.bool_], opened: NDArray[np.bool_], region: NDArray[np.bool_]
) -> dict[str, float]:
    """Count what is marked in a region of a healthy scan, before and after opening."""
    counts: dict[str, float] = {"n_scored": int(np.count_nonzero(region))}
    for ending, marked in (("", raw), ("_opened", opened)):
        n_found = int(np.count_nonzero(marked & region))
        counts[f"n_found{ending}"] = n_found
        # An empty stratum has no rate.
        counts[f"false_positive_rate{ending}"] = float(ratio(n_found, counts["n_scored"]))
        counts[f"empty{ending}"] = not n_found
    return counts


def _decisions(
    bench: Bench, entry: Entry, rules: Mapping[str, ThresholdRule]
) -> Iterator[_Decision]:
    """Apply each rule; maps that are masks need none."""
    if entry.is_mask:
        yield _Decision(AS_GIVEN, False, entry.maps, entry.healthy)
        return
    for name, rule in rules.items():
        free: list[NDArray[np.bool_]] | None = None
        if rule.needs_healthy:
            fitted, masks = entry.validation, entry.validation_masks
            if fitted is None:
                fitted, masks = entry.healthy, bench.healthy_scored
                if fitted is None:
                    continue
                # A threshold may not be judged on the scans that it was chosen from.
                patients = [case.patient for case in bench.healthy]
                limits_by_scan = limits_left_out(rule, fitted, masks, patients)
                if limits_by_scan is None:
                    raise ValueError(
                        f"{rule!r} needs healthy scans of more patients, or validation scans, to "
                        "count its false positives"
                    )
                scans = zip(fitted, masks, limits_by_scan, strict=True)
                free = [(values > limit) & mask for values, mask, limit in scans]
            rule.fit(fitted, masks)
            n_fitted = len(fitted)
        else:
            rule.fit(entry.maps, bench.scored, bench.lesions if rule.needs_truth else None)
            n_fitted = len(entry.maps)
        each = getattr(rule, "scope", "dataset") == "image"
        # A threshold by the lesions of its own scan has no meaning for another scan.
        if entry.healthy is not None and free is None and not (each and rule.needs_truth):
            free = rule.apply(entry.healthy, bench.healthy_scored)
        limits = rule.limits(entry.maps, bench.scored)
        marked = rule.apply(entry.maps, bench.scored)
        threshold = float(rule.threshold_)
        yield _Decision(name, rule.needs_truth, marked, free, threshold, n_fitted, limits)


def _ranking(
    values: NDArray[Any], lesion: NDArray[np.bool_], region: NDArray[np.bool_]
) -> dict[str, float]:
    """Score a map as an order of the voxels of a region; NaN where there is nothing to find."""
    truth, scores = lesion[region], values[region].astype(float)
    ranking: dict[str, float] = {"n_scored": truth.size, "n_lesion": int(np.count_nonzero(truth))}
    ranking |= {"auc": np.nan, "average_precision": np.nan}
    if truth.any():
        ranking["average_precision"] = float(average_precision_score(truth, scores))
        if not truth.all():
            ranking["auc"] = float(roc_auc_score(truth, scores))
    return ranking


def _overlaps(
    raw: NDArray[np.bool_], opened: NDArray[np.bool_], lesion: NDArray[np.bool_]
) -> dict[str, float]:
    """Compare the mask of a lesion with what is marked, before and after opening."""
    overlaps: dict[str, float] = {}
    n_lesion = int(np.count_nonzero(lesion))
    for ending, marked in (("", raw), ("_opened", opened)):
        n_marked, n_both = int(np.count_nonzero(marked)), int(np.count_nonzero(marked & lesion))
        # Without a lesion, or without a mark, quotients are not defined and enter no mean.
        n_relevant = n_lesion and n_marked
        overlaps[f"n_found{ending}"] = n_marked
        overlaps[f"dice{ending}"] = 2 * n_both / (n_marked + n_lesion) if n_lesion else np.nan
        overlaps[f"sensitivity{ending}"] = n_both / n_lesion if n_lesion else np.nan
        overlaps[f"precision{ending}"] = n_both / n_marked if n_relevant else np.nan
    return overlaps


def coverage_curve(
    healthy: Sequence[NDArray[Any]],
    scores: Sequence[NDArray[Any]],
    lesions: Sequence[NDArray[np.bool_]],
    *,
    rates: Sequence[float] = CURVE_RATES,
    connectivity: int = 26,
) -> pd.DataFrame:
    """
    Compute the coverage of lesions (x, y, z) over the false-positive rate of healthy scans.

    One scan at least has a lesion.

    False positives are counted on healthy scans only, because voxels around a lesion may belong to
    it (Bertoldo et al., arXiv:2401.01984, 2024); coverage is per region (Bergmann et al., Int J
    Comput Vis 129:1038–1059, 2021).
    """
    steps = np.unique(np.asarray(rates, dtype=np.float64))
    limits, realized = rate_limits(healthy, steps)
    coverages, sensitivities, hits = [], [], []
    for values, inside in zip(scores, lesions, strict=True):
        if not inside.any():
            continue
        labels = label_components(inside, connectivity=connectivity)[inside]
        is_above = values[inside][:, None] > limits
        numbers = range(1, labels.max() + 1)
        shares = np.stack([is_above[labels == number].mean(axis=0) for number in numbers])
        coverages.append(shares.mean(axis=0))
        sensitivities.append(is_above.mean(axis=0))
        hits.append(shares > 0)
    columns: dict[str, Any] = {"rate": steps, "realized": realized, "threshold": limits}
    columns["coverage"] = np.mean(coverages, axis=0)
    columns["sensitivity"] = np.mean(sensitivities, axis=0)
    columns["lesion_sensitivity"] = np.concatenate(hits).mean(axis=0)
    return pd.DataFrame(columns)


def curve_areas(curve: pd.DataFrame) -> dict[str, float]:
    """Compute areas under a curve of `coverage_curve`."""
    rate = curve["rate"].to_numpy()
    coverage = curve["coverage"].to_numpy()
    is_counted = rate <= FULL_RATE
    from_origin = np.append(0.0, coverage[is_counted]), np.append(0.0, rate[is_counted])
    area_low = float("nan")
    is_low = (rate >= LOW_RATES[0]) & (rate <= LOW_RATES[1])
    if is_low.sum() > 1:
        # On a linear axis the highest rates would decide the area.
        logarithms = np.log(rate[is_low])
        area_low = float(np.trapezoid(coverage[is_low], logarithms) / np.ptp(logarithms))
    return {"area": float(np.trapezoid(*from_origin) / FULL_RATE), "area_low": area_low}


@dataclass(frozen=True, eq=False)
class FollowupOverlap:
    """
    What `overlap_with_followup` found in a patient.

    Attributes
    ----------
    regions : DataFrame
        A row for each region outside the structural lesion: ``number``, ``n_voxels``,
        ``volume_mL``, ``n_later`` (voxels in the later growth), ``share_later``, ``colocated``,
        ``chance`` (see `overlap_with_followup`).
    mismatch, colocated : bool
        Whether there is a region, and whether one lies in the later growth.
    grown : bool
        Whether the later lesion extends beyond the structural one at all.
    chance : float
        How probable at least one region in the growth would be, were each somewhere else in the
        brain; NaN without a region.
    share_flagged : float
        Share of the growth that lies in a region of `min_voxels` or more; smaller components that
        the map has flagged do not count. NaN without growth.
    share_expected : float
        Share of the brain outside the structural lesion (and its margin) that lies in such
        regions: what `share_flagged` would be by chance.
    dice_growth : float
        Between the regions and the growth; NaN when both are empty.
    """

    regions: pd.DataFrame
    mismatch: bool
    colocated: bool
    grown: bool
    chance: float
    share_flagged: float
    share_expected: float
    dice_growth: float


def overlap_with_followup(
    anomaly: ArrayLike,
    structural: ArrayLike,
    followup: ArrayLike,
    *,
    brain: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    margin_mm: float = 0.0,
    min_voxels: int = 27,
    min_overlap: int = 1,
    connectivity: int = 26,
) -> FollowupOverlap:
    """
    Tell whether regions that only the anomaly map flags belong to later lesions.

    A mismatch is a region of the map's mask without the structural lesion (and a margin around
    it): a connected component of `min_voxels` or more. The growth is the later lesion without the
    structural one. A region co-locates when it shares `min_overlap` voxels or more with the
    growth.

    Parameters
    ----------
    anomaly : array_like of bool, shape (x, y, z)
        Anomalous voxels, after opening.
    structural : array_like of bool, shape (x, y, z)
        The lesion as it was segmented on structural images of the same day.
    followup : array_like of bool, shape (x, y, z)
        The lesion at a later scan, on this grid.
    brain : array_like of bool, shape (x, y, z), optional
        Where regions may lie; by default everywhere.
    affine : array_like of shape (4, 4), optional
        From voxel indices to mm; by default voxels of 1 mm.
    margin_mm : float, default=0.0
        Distance from the structural lesion in mm up to which nothing counts as a mismatch: borders
        are drawn differently by everyone.
    min_voxels : int, default=27
        What is smaller is no region; a cube of 3³ is the least that an opening leaves.
    min_overlap : int, default=1
        Voxels in the growth that make a region co-locate.
    connectivity : {26, 18, 6}, default=26
        Of components.

    Returns
    -------
    FollowupOverlap
        Regions and what holds for the patient. ``chance`` of a region is the share of all places
        in the brain outside the structural lesion, to which its center could be moved, where it
        would co-locate: of large regions and large growth nearly all.

    Raises
    ------
    ValueError
        If shapes differ, values are not 0 and 1, or a parameter is not possible.

    References
    ----------
    Weninger et al., Sci Rep, 2023 (counts of patients; chance is not considered there).
    """
    lesion = checked_mask(structural, "structural")
    if lesion.ndim != 3:
        raise ValueError(f"structural must be a volume (x, y, z), not of shape {lesion.shape}")
    masks = {"brain": np.ones(lesion.shape, dtype=bool)}
    for name, values in (("anomaly", anomaly), ("followup", followup), ("brain", brain)):
        if values is not None:
            masks[name] = checked_mask(values, name, lesion.shape)
    check_number("margin_mm", margin_mm)
    check_number("min_voxels", min_voxels, least=1)
    check_number("min_overlap", min_overlap, least=1)
    matrix = check_affine(affine)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    excluded = lesion
    if margin_mm > 0 and lesion.any():
        excluded = ndimage.distance_transform_edt(~lesion, sampling=spacing) <= margin_mm
    # What both masks cover was seen already; only what the structural scan missed is news.
    outside = masks["brain"] & ~excluded
    growth = masks["followup"] & outside
    labels = label_components(masks["anomaly"] & outside, connectivity=connectivity)
    sizes = np.bincount(labels.ravel())
    n_later = np.bincount(labels[growth], minlength=len(sizes))
    numbers = 1 + np.flatnonzero(sizes[1:] >= min_voxels)
    boxes = ndimage.find_objects(labels)
    shapes = [labels[boxes[number - 1]] == number for number in numbers]
    chances = [_chance(shape, growth, outside, min_overlap) for shape in shapes]
    voxel_volume_ml = voxel_volume(matrix) / MM3_PER_ML
    regions = pd.DataFrame(
        {
            "number": numbers,
            "n_voxels": sizes[numbers],
            "volume_mL": sizes[numbers] * voxel_volume_ml,
            "n_later": n_later[numbers],
            "share_later": n_later[numbers] / sizes[numbers],
            "colocated": n_later[numbers] >= min_overlap,
            "chance": np.array(chances, dtype=np.float64),
        }
    )
    flagged = np.isin(labels, numbers)
    # As if regions were placed independently: that at least one of them co-locates.
    chance = float(1 - np.prod(1 - regions["chance"])) if len(numbers) else float("nan")
    n_growth = np.sum(growth)
    return FollowupOverlap(
        regions=regions,
        mismatch=bool(len(numbers)),
        colocated=bool(regions["colocated"].any()),
        grown=bool(n_growth),
        chance=chance,
        share_flagged=float(ratio(np.sum(flagged & growth), n_growth)),
        share_expected=float(ratio(np.sum(flagged), np.sum(outside))),
        dice_growth=dice(flagged, growth),
    )


def _chance(
    region: NDArray[np.bool_],
    growth: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    min_overlap: int,
) -> float:
    """Give the share of centers at which a region would overlap the growth."""
    from scipy.signal import fftconvolve

    if not growth.any():
        return 0.0
    # Only around the growth can there be any overlap.
    box = ndimage.find_objects(growth.astype(np.uint8))[0]
    mirrored = region[::-1, ::-1, ::-1].astype(np.float64)
    # Each value is the overlap of the region with its last corner there.
    overlap = fftconvolve(growth[box].astype(np.float64), mirrored)
    # Half a voxel of room for the rounding of the Fourier transform.
    last_corners = np.argwhere(overlap > min_overlap - 0.5) + [side.start for side in box]
    shape = np.array(region.shape)
    centers = last_corners - shape + 1 + shape // 2
    centers = centers[((centers >= 0) & (centers < outside.shape)).all(axis=1)]
    return float(np.count_nonzero(outside[tuple(centers.T)]) / np.count_nonzero(outside))
