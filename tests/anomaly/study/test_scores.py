"""Scores of maps and of what rules make of them, scan by scan, against counts by hand and in plain numpy."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly.detectors.thresholds import FixedThreshold, HealthyRateThreshold, OtsuThreshold
from anomaly.scans.cases import Case
from anomaly.study.contestants import AS_GIVEN, Bench, Entry
from anomaly.study.evaluation import evaluate_detectors
from anomaly.study.scores import RATES, score_method

SHAPE = (2, 2, 3)


# By hand ------------------------------------------------------------------------------------------


def small_case(patient, lesion=None, followup=None):
    """Give a scan of 12 voxels of white matter; a lesion is a list of their numbers."""
    masks = {"lesion": lesion, "followup": followup}
    for key, numbers in masks.items():
        if numbers is not None:
            masks[key] = np.isin(np.arange(12), numbers).reshape(SHAPE)
    signal = np.full((*SHAPE, 1), 0.4, dtype=np.float32)
    tissue = np.ones(SHAPE, dtype=np.uint8)
    return Case(
        patient,
        signal,
        np.ones(SHAPE, dtype=bool),
        tissue=tissue,
        kind="infiltrating",
        grade="IV",
        **masks,
    )


def volume(*values):
    return np.array(values, dtype=np.float32).reshape(SHAPE)


@pytest.fixture
def bench():
    # Voxels 0, 1 and 2 are a row.
    cases = [small_case("p", lesion=[0, 1, 2, 3])]
    return Bench(cases, [small_case("h"), small_case("i")], 1, 26, 1, True)


@pytest.fixture
def entry():
    scores = volume(5, 3, 3, 1, 0, 0, 1, 2, 3, 4, 0, 0)
    quiet = [volume(*range(12)), volume(*[0] * 12)]
    return Entry("fold", "a", False, [scores], quiet, None, None)


def test_strata_are_scored_by_their_own_voxels(bench, entry, row_of):
    table = score_method(bench, entry, {"fixed": FixedThreshold(2.5)})["strata"]
    # The lowest of three slices: of voxels 0, 3, 6 and 9 the first two are lesion, the first and last are above.
    row = row_of(table, stratum="basal", healthy=False, patient="p")
    assert row["auc"] == pytest.approx(2.5 / 4)
    assert (row["dice_opened"], row["sensitivity"], row["sensitivity_opened"]) == (0.5, 0.5, 0.5)
    rates = row_of(table, stratum="basal", healthy=True, patient="h")
    assert rates[RATES[0]] == 0.75
    # There is no gray matter.
    assert np.isnan(row_of(table, stratum="near cortex", patient="h")[RATES[0]])


def test_masks_are_scored_as_they_are_and_have_no_curve(bench):
    mask = volume(1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1) > 0
    entry = Entry("fold", "a", True, [mask], [mask, ~mask], None, None)
    tables = score_method(bench, entry, {"fixed": FixedThreshold(2.5)})
    (row,) = tables["scans"].to_dict("records")
    assert row["rule"] == AS_GIVEN
    assert row["control"]
    assert (row["n_found"], row["precision"]) == (3, pytest.approx(2 / 3))
    assert np.isnan(row["threshold"])
    assert tables["healthy"]["n_found"].tolist() == [3, 9]
    assert not len(tables["curves"])


def test_lesions_and_components_of_a_scan_are_matched(bench, entry):
    tables = score_method(bench, entry, {"fixed": FixedThreshold(3.5)})
    # Above are voxel 0, of the lesion, and voxel 9, which touches none of it but voxel 0's row by a corner.
    (counts,) = tables["counts"].to_dict("records")
    assert counts["n_lesions"] == counts["n_found"] == 1
    assert counts["rule"] == "fixed"
    assert set(tables["lesions"]["lesion_kind"]) == {"infiltrating"}
    assert tables["lesions"]["kind"].iloc[0] == "lesion"


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
    assert row["overlap"].share_flagged == pytest.approx(3 / 4)
    assert row["overlap"].regions["n_voxels"].tolist() == [27]
    assert not len(tables["counts"])
    assert not len(tables["healthy"])


# Against plain numpy ------------------------------------------------------------------------------


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
    rules = {
        "otsu": OtsuThreshold(),
        "own": OtsuThreshold(scope="image"),
        "fixed": FixedThreshold(0.7),
    }
    tables = evaluate_detectors(
        cases, maps, healthy=healthy, healthy_maps=free, rules=rules, controls=False
    )
    assert len(tables["scans"]) == 3 * 2 * 3
    for row in tables["scans"].itertuples():
        case, values = cases[row.case], maps[row.method][row.case]
        inside = case.brain & (case.tissue != 3)
        truth = case.lesion & inside
        scores = values[inside].astype(np.float64)
        assert row.auc == pytest.approx(mann_whitney(scores, truth[inside]))
        assert row.average_precision == pytest.approx(precision_sum(scores, truth[inside]))
        everything = [
            one[other.scored] for one, other in zip(maps[row.method], cases, strict=True)
        ]
        limit = {"fixed": 0.7, "otsu": best_split(*everything), "own": best_split(values[inside])}[
            row.rule
        ]
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
        limit = (
            0.7
            if row.rule == "fixed"
            else row_of(tables["thresholds"], method=row.method, rule=row.rule).threshold
        )
        limit = best_split(values[inside]) if row.rule == "own" else limit
        found = inside & (values > limit)
        opened = ndimage.binary_opening(found, np.ones((3, 3, 3)))
        assert row.false_positive_rate == pytest.approx(found.sum() / inside.sum())
        assert row.false_positive_rate_opened == pytest.approx(opened.sum() / inside.sum())
        assert (row.empty, row.empty_opened) == (not found.any(), not opened.any())
        assert row.n_components_opened == ndimage.label(opened, np.ones((3, 3, 3)))[1]


def test_without_validation_each_half_of_the_healthy_has_the_threshold_of_the_other(evaluated, row_of):
    _, _, healthy, free, tables = evaluated
    fit = HealthyRateThreshold(0.01).fit
    masks = [case.scored for case in healthy]
    row = row_of(tables["thresholds"], method="weak", rule="healthy rate")
    assert row["threshold"] == fit(free["weak"], masks).threshold_
    own = (
        tables["healthy"].query("method == 'weak' and rule == 'healthy rate'").sort_values("case")
    )
    for i, rate in enumerate(own["false_positive_rate"]):
        others = [j for j in range(4) if j % 2 != i % 2]
        limit = fit([free["weak"][j] for j in others], [masks[j] for j in others]).threshold_
        assert rate == pytest.approx((free["weak"][i][masks[i]] > limit).mean())


def test_maps_that_are_the_same_everywhere_find_nothing_and_rank_nothing(cohort):
    cases, _, healthy, _ = cohort(37)
    flat = {"flat": [np.where(case.brain, 0.3, 0) for case in cases]}
    quiet = {"flat": [np.where(case.brain, 0.3, 0) for case in healthy]}
    rules = {"otsu": OtsuThreshold(), "rate": HealthyRateThreshold()}
    tables = evaluate_detectors(
        cases, flat, healthy=healthy, healthy_maps=quiet, rules=rules, controls=False
    )
    assert (tables["scans"]["auc"] == 0.5).all()
    np.testing.assert_allclose(
        tables["scans"]["average_precision"], tables["scans"].eval("n_lesion / n_scored")
    )
    assert (tables["scans"]["dice"] == 0).all()
    assert tables["scans"]["precision"].isna().all()
    assert tables["healthy"]["empty"].all()
    assert (tables["curves"]["coverage"] == 0).all()
