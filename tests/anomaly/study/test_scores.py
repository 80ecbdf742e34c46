"""Scores of maps and of what rules make of them, scan by scan, against counts by hand and in plain numpy."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly.detectors.thresholds import FixedThreshold, HealthyRateThreshold, OtsuThreshold
from anomaly.scans.cases import Case
from anomaly.study.contestants import Bench, Entry
from anomaly.study.evaluation import evaluate_detectors
from anomaly.study.scores import (
    CURVE_RATES,
    FULL_RATE,
    LOW_RATES,
    RATES,
    coverage_curve,
    curve_areas,
    overlap_with_followup,
    score_method,
)

SHAPE = (2, 2, 3)


def small_case(patient, lesion=None, followup=None):
    """Give a scan of 12 voxels of white matter; a lesion is a list of their numbers."""
    masks = {"lesion": lesion, "followup": followup}
    for key, numbers in masks.items():
        if numbers is not None:
            masks[key] = np.isin(np.arange(12), numbers).reshape(SHAPE)
    signal = np.full((*SHAPE, 1), 0.4, dtype=np.float32)
    tissue = np.ones(SHAPE, dtype=np.uint8)
    return Case(patient, signal, np.ones(SHAPE, dtype=bool), tissue=tissue, kind="infiltrating", grade="IV", **masks)


def volume(*values):
    return np.array(values, dtype=np.float32).reshape(SHAPE)


def test_strata_are_scored_by_their_own_voxels(row_of):
    scores = volume(5, 3, 3, 1, 0, 0, 1, 2, 3, 4, 0, 0)
    quiet = [volume(*range(12)), volume(*[0] * 12)]
    entry = Entry("fold", "a", False, [scores, scores], quiet, None, None)
    cases = [small_case("p", lesion=[0, 1, 2, 3]), small_case("q", lesion=[0, 3, 6, 9])]
    bench = Bench(cases, [small_case("h"), small_case("i")], 1, 26, 1, True)
    table = score_method(bench, entry, {"fixed": FixedThreshold(2.5)})["strata"]
    # The lowest of three slices: of voxels 0, 3, 6 and 9 the first two are lesion, the first and last are above.
    row = row_of(table, stratum="basal", healthy=False, patient="p")
    assert row["auc"] == pytest.approx(2.5 / 4)
    assert (row["dice_opened"], row["sensitivity"], row["sensitivity_opened"]) == (0.5, 0.5, 0.5)
    # The lesion of the other fills the stratum, where nothing is left to rank it above.
    full = row_of(table, stratum="basal", healthy=False, patient="q")
    assert (full["average_precision"], np.isnan(full["auc"])) == (1, True)
    rates = row_of(table, stratum="basal", healthy=True, patient="h")
    assert rates[RATES[0]] == 0.75
    # There is no gray matter.
    assert np.isnan(row_of(table, stratum="near cortex", patient="h")[RATES[0]])


def test_later_growth_is_compared_with_what_was_opened():
    lesion, later, scores = np.zeros((3, 8, 8, 8), dtype=np.float32)
    lesion[:3, :3, :3] = later[:3, :3, :3] = later[4:, :3, :3] = 1
    # A cube in the growth, and a sheet of 32 voxels that an opening removes.
    scores[4:7, :3, :3] = scores[:, 4:, 7] = 5
    signal = np.full((8, 8, 8, 1), 0.4, dtype=np.float32)
    case = Case("p", signal, np.ones((8, 8, 8)), lesion=lesion, followup=later, grade="IV")
    bench = Bench([case], [], 3, 26, 1, False)
    entry = Entry("fold", "a", False, [scores], None, None, None)
    tables = score_method(bench, entry, {"fixed": FixedThreshold(1.0)})
    (row,) = tables["followup"].to_dict("records")
    assert row["grade"] == "IV"
    assert row["share_flagged"] == pytest.approx(3 / 4)
    assert row["regions"]["n_voxels"].tolist() == [27]
    assert not len(tables["counts"])
    assert not len(tables["healthy"])


def mann_whitney(scores, truth):
    """AUC as the share of pairs in order, ties half."""
    above, below = scores[truth][:, None], scores[~truth][None]
    return (above > below).mean() + 0.5 * (above == below).mean()


def precision_sum(scores, truth):
    """Average precision: precision at each distinct score, weighted by the recall that it adds."""
    total, last = 0.0, 0.0
    for step in np.unique(scores)[::-1]:
        above = scores >= step
        recall = above[truth].mean()
        total += truth[above].mean() * (recall - last)
        last = recall
    return total


def best_split(*values):
    return OtsuThreshold().fit([one.reshape(-1, 1, 1) for one in values]).threshold_


@pytest.mark.parametrize("seed", [32, 47])
def test_every_number_of_a_scan_is_what_plain_numpy_counts(seed, cohort, row_of):
    cases, maps, healthy, free = cohort(seed, 3, 2)
    maps["strong"][0] = np.round(maps["strong"][0], 1)  # ties
    rules = {"otsu": OtsuThreshold(), "own": OtsuThreshold(scope="image"), "fixed": FixedThreshold(0.7)}
    tables = evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=free, rules=rules, controls=False)
    assert len(tables["scans"]) == 3 * 2 * 3
    for row in tables["scans"].itertuples():
        case, values = cases[row.case], maps[row.method][row.case]
        inside = case.brain & (case.tissue != 3)
        truth = case.lesion & inside
        scores = values[inside].astype(np.float64)
        assert row.auc == pytest.approx(mann_whitney(scores, truth[inside]))
        assert row.average_precision == pytest.approx(precision_sum(scores, truth[inside]))
        everything = [one[other.scored] for one, other in zip(maps[row.method], cases, strict=True)]
        limit = {"fixed": 0.7, "otsu": best_split(*everything), "own": best_split(values[inside])}[row.rule]
        assert row.threshold == pytest.approx(limit)
        found = inside & (values > row.threshold)
        opened = ndimage.binary_opening(found, np.ones((3, 3, 3)))
        for ending, mask in (("", found), ("_opened", opened)):
            both, n_found, n_truth = (mask & truth).sum(), mask.sum(), truth.sum()
            assert getattr(row, f"n_found{ending}") == n_found
            assert getattr(row, f"dice{ending}") == pytest.approx(2 * both / (n_found + n_truth))
            assert getattr(row, f"sensitivity{ending}") == pytest.approx(both / n_truth)
            if n_found:
                assert getattr(row, f"precision{ending}") == pytest.approx(both / n_found)
        assert (row.n_scored, row.n_lesion) == (inside.sum(), truth.sum())
    for row in tables["healthy"].itertuples():
        values, inside = free[row.method][row.case], healthy[row.case].scored
        limit = 0.7
        if row.rule != "fixed":
            limit = row_of(tables["thresholds"], method=row.method, rule=row.rule).threshold
        limit = best_split(values[inside]) if row.rule == "own" else limit
        found = inside & (values > limit)
        opened = ndimage.binary_opening(found, np.ones((3, 3, 3)))
        assert row.false_positive_rate == pytest.approx(found.sum() / inside.sum())
        assert row.false_positive_rate_opened == pytest.approx(opened.sum() / inside.sum())
        assert (row.empty, row.empty_opened) == (not found.any(), not opened.any())
        assert row.n_components_opened == ndimage.label(opened, np.ones((3, 3, 3)))[1]


def test_without_validation_each_healthy_patient_has_the_threshold_of_the_others(evaluated, row_of):
    _, _, healthy, free, tables = evaluated
    fit = HealthyRateThreshold(0.01).fit
    masks = [case.scored for case in healthy]
    row = row_of(tables["thresholds"], method="weak", rule="healthy rate")
    assert row["threshold"] == fit(free["weak"], masks).threshold_
    own = tables["healthy"].query("method == 'weak' and rule == 'healthy rate'").sort_values("case")
    for i, rate in enumerate(own["false_positive_rate"]):
        others = [j for j in range(4) if j != i]
        limit = fit([free["weak"][j] for j in others], [masks[j] for j in others]).threshold_
        assert rate == pytest.approx((free["weak"][i][masks[i]] > limit).mean())


def test_equal_maps_rank_nothing_and_scans_without_a_lesion_that_counts_change_nothing(cohort):
    cases, _, healthy, _ = cohort(37)
    flat = {"flat": [np.where(case.brain, 0.3, 0) for case in cases]}
    quiet = {"flat": [np.where(case.brain, 0.3, 0) for case in healthy]}
    rules = {"otsu": OtsuThreshold(), "rate": HealthyRateThreshold()}
    tables = evaluate_detectors(cases, flat, healthy=healthy, healthy_maps=quiet, rules=rules, controls=False)
    assert (tables["scans"]["auc"] == 0.5).all()
    np.testing.assert_allclose(tables["scans"]["average_precision"], tables["scans"].eval("n_lesion / n_scored"))
    assert (tables["scans"]["dice"] == 0).all()
    assert tables["scans"]["precision"].isna().all()
    assert tables["healthy"]["empty"].all()
    assert (tables["curves"]["coverage"] == 0).all()
    healthy = [np.arange(10.0)]
    lesion, scores = row_volume(1, 1, 0, 0) > 0, row_volume(9.5, 0, 0, 0)
    alone = coverage_curve(healthy, [scores], [lesion])
    extended = coverage_curve(healthy, [scores] * 2, [lesion, 0 * lesion > 0])
    pd.testing.assert_frame_equal(extended, alone)


def row_volume(*values):
    """Give voxels in a row."""
    return np.array(values).reshape(-1, 1, 1)


def test_curves_of_ten_voxels_and_areas_of_triangles_and_trapezes_by_hand():
    # A healthy scan with the scores 0 to 9: at a rate of .1, one of ten may be above.
    healthy = [np.arange(10.0)]
    scores = row_volume(8.5, 7.5, 0, 9.5, 20.0, 6.5, 5.5, 0, 0, 0)
    lesion = row_volume(1, 1, 0, 1, 0, 1, 0, 0, 0, 0) > 0
    curve = coverage_curve(healthy, [scores], [lesion], rates=[0.3, 0.1, 0.2, 0.25, 0])
    assert curve["rate"].tolist() == [0, 0.1, 0.2, 0.25, 0.3]
    assert curve["realized"].tolist() == pytest.approx([0, 0.1, 0.2, 0.2, 0.3])
    assert curve["threshold"].tolist() == [9, 8, 7, 7, 6]
    # Of lesions of 2, 1 and 1 voxels; the mean is over lesions, and not over voxels.
    assert curve["coverage"].tolist() == pytest.approx([1 / 3, 0.5, 2 / 3, 2 / 3, 1])
    assert curve["sensitivity"].tolist() == pytest.approx([1 / 4, 2 / 4, 3 / 4, 3 / 4, 1])
    assert curve["lesion_sensitivity"].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert (FULL_RATE, LOW_RATES) == (0.3, (1e-3, 1e-2))
    # From 0 at the rate 0 to .6 at .1, then to .8 at .3.
    areas = areas_of([0.1, 0.3], [0.6, 0.8])
    assert areas["area"] == pytest.approx((0.1 * 0.6 / 2 + 0.2 * (0.6 + 0.8) / 2) / 0.3)
    # Below two rates between .001 and .01 there is no low area.
    assert np.isnan(areas["area_low"])
    # What lies beyond .3 does not count.
    assert areas_of([0.1, 0.3, 1.0], [0.6, 0.8, 1.0])["area"] == areas["area"]
    # Halves of the decade on the logarithm, with the means .3 and .5.
    assert areas_of([5e-4, 1e-3, 10**-2.5, 1e-2, 0.3], [0.1, 0.2, 0.4, 0.6, 1.0])["area_low"] == pytest.approx(0.4)
    assert areas_of([1e-3, 2e-3, 1e-2], [0.7, 0.7, 0.7])["area_low"] == pytest.approx(0.7)


def test_components_join_at_corners_where_asked():
    lesion = np.zeros((2, 2, 3), dtype=bool)
    lesion[0, 0, :2] = lesion[1, 1, 2] = True
    scores = np.where(lesion, 1.0, 0)
    scores[1, 1, 2] = 3.0
    shares = []
    for connectivity in (26, 6):
        (row,) = coverage_curve(
            [np.array([1.0, 2.0])], [scores], [lesion], rates=[0], connectivity=connectivity
        ).itertuples()
        shares.append((row.coverage, row.lesion_sensitivity))
    # One lesion of three voxels, or two of which one is covered.
    assert shares == [(pytest.approx(1 / 3), 1), (0.5, 0.5)]


@pytest.mark.parametrize("seed", [40, 41])
def test_the_curve_counts_false_positives_on_healthy_scans_only(seed, cohort):
    cases, maps, healthy, free = cohort(seed)
    quiet = [values[case.scored] for values, case in zip(free["strong"], healthy, strict=True)]
    lesions = [case.lesion & case.scored for case in cases]
    lesions[0][8:10, 9, 14] = True  # a second lesion
    curve = coverage_curve(quiet, maps["strong"], lesions)
    assert curve["rate"].tolist() == sorted(CURVE_RATES)
    for row in curve.iloc[::5].itertuples():
        assert row.realized <= row.rate + 1e-12
        assert row.realized == pytest.approx(np.mean([(one > row.threshold).mean() for one in quiet]))
        shares, voxels = [], []
        for values, lesion in zip(maps["strong"], lesions, strict=True):
            labels, n = ndimage.label(lesion, np.ones((3, 3, 3)))
            above = values > row.threshold
            shares.append(np.mean([above[labels == k].mean() for k in range(1, n + 1)]))
            voxels.append(above[labels > 0].mean())
        assert row.coverage == pytest.approx(np.mean(shares))
        assert row.sensitivity == pytest.approx(np.mean(voxels))
    assert curve["coverage"].is_monotonic_increasing
    # What is flagged beside lesions does not count as false.
    raised = [np.where(lesion, values, 50) for values, lesion in zip(maps["strong"], lesions, strict=True)]
    assert coverage_curve(quiet, raised, lesions)["coverage"].equals(curve["coverage"])


def areas_of(rates, coverage):
    return curve_areas(pd.DataFrame({"rate": rates, "coverage": coverage}))


WIDE = (20, 16, 14)


def box(*ranges):
    mask = np.zeros(WIDE, bool)
    mask[tuple(slice(*one) for one in ranges)] = True
    return mask


STRUCTURAL = box((2, 7), (2, 7), (2, 7))
LATER = box((2, 11), (2, 7), (2, 7))  # grows by 4 along the first axis
AHEAD = box((7, 10), (3, 6), (3, 6))
BESIDE = box((14, 18), (10, 14), (8, 11))


def test_regions_where_the_lesion_grows_are_told_from_others_and_without_them_nothing_is_co_located():
    found = overlap_with_followup(STRUCTURAL | AHEAD | BESIDE, STRUCTURAL, LATER, affine=np.diag([2, 2, 2, 1]))
    assert (found.mismatch, found.colocated, found.grown) == (True, True, True)
    regions = found.regions
    assert regions["n_voxels"].tolist() == [27, 48]
    assert regions["volume_mL"].tolist() == pytest.approx([0.216, 0.384])
    assert regions["n_later"].tolist() == [27, 0]
    assert regions["share_later"].tolist() == [1, 0]
    assert regions["colocated"].tolist() == [True, False]
    assert found.share_flagged == 27 / 100
    assert found.share_expected == 75 / (20 * 16 * 14 - 125)
    assert found.dice_growth == pytest.approx(2 * 27 / (75 + 100))
    plain = overlap_with_followup(STRUCTURAL, STRUCTURAL, LATER)
    assert (plain.mismatch, plain.colocated, plain.grown) == (False, False, True)
    assert np.isnan(plain.chance)
    assert plain.share_flagged == 0
    stable = overlap_with_followup(STRUCTURAL | AHEAD, STRUCTURAL, STRUCTURAL)
    assert (stable.mismatch, stable.colocated, stable.grown, stable.chance) == (True, False, False, 0)
    assert np.isnan(stable.share_flagged)
    empty = overlap_with_followup(0 * STRUCTURAL, 0 * STRUCTURAL, 0 * STRUCTURAL)
    assert (empty.mismatch, empty.grown) == (False, False)
    assert np.isnan(empty.dice_growth)


def test_small_regions_borders_and_slight_overlaps_count_where_asked():
    speck = STRUCTURAL | box((7, 9), (3, 5), (3, 5))
    # 8 of 100 voxels of the growth, and of the voxels without the structural lesion.
    small = overlap_with_followup(speck, STRUCTURAL, LATER)
    assert (small.mismatch, small.share_flagged, small.share_expected) == (False, 0, 0)
    large = overlap_with_followup(speck, STRUCTURAL, LATER, min_voxels=8)
    assert (large.colocated, large.share_flagged) == (True, 8 / 100)
    assert large.share_expected == 8 / (20 * 16 * 14 - 125)
    # What lies along the border is drawn differently by everyone.
    margin = {"margin_mm": 4, "affine": np.diag([2, 2, 2, 1])}
    assert not overlap_with_followup(STRUCTURAL | AHEAD, STRUCTURAL, LATER, **margin).mismatch
    kept = overlap_with_followup(STRUCTURAL | AHEAD, STRUCTURAL, LATER, **margin, min_voxels=9)
    assert kept.regions["n_voxels"].tolist() == [9]
    edge = box((10, 14), (3, 6), (3, 6))  # nine voxels in the growth
    assert overlap_with_followup(edge, STRUCTURAL, LATER, min_overlap=9).colocated
    assert not overlap_with_followup(edge, STRUCTURAL, LATER, min_overlap=10).colocated
    assert not overlap_with_followup(edge, STRUCTURAL, LATER, brain=box((0, 10), (0, 16), (0, 14))).mismatch


@pytest.mark.parametrize("seed", [6, 23])
@pytest.mark.parametrize("min_overlap", [1, 4])
def test_chance_is_the_share_of_places_where_a_region_would_co_locate(seed, min_overlap):
    rng = np.random.default_rng(seed)
    brain = ndimage.binary_dilation(rng.random(WIDE) < 0.1, iterations=2)
    later = STRUCTURAL | ndimage.binary_dilation(rng.random(WIDE) < 0.003, iterations=2)
    flagged = ndimage.binary_dilation(rng.random(WIDE) < 0.004, iterations=1)
    found = overlap_with_followup(
        flagged, STRUCTURAL, later, brain=brain, min_voxels=3, min_overlap=min_overlap, connectivity=6
    )
    place = brain & ~STRUCTURAL
    growth = later & place
    labels, n = ndimage.label(flagged & place)
    sizes = [(labels == k).sum() for k in range(1, n + 1)]
    assert len(found.regions) == sum(size >= 3 for size in sizes) > 0
    for row in found.regions.itertuples():
        voxels = np.argwhere(labels == row.number)
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        offsets = voxels - (low + (high - low + 1) // 2)
        hits = 0
        for center in np.argwhere(place):
            moved = center + offsets
            moved = moved[((moved >= 0) & (moved < WIDE)).all(axis=1)]
            hits += growth[tuple(moved.T)].sum() >= min_overlap
        assert row.chance == pytest.approx(hits / place.sum())
        assert row.n_later == growth[labels == row.number].sum()
    assert found.chance == pytest.approx(1 - np.prod(1 - found.regions["chance"]))
