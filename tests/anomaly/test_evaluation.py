"""Tables of anomaly maps agree with what plain numpy counts; controls and undefined cases are what they should be."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from anomaly.cases import Case
from anomaly.controls import BRIGHTNESS, CONTROLS, control_maps
from anomaly.curves import CURVE_RATES, coverage_curve, curve_areas
from anomaly.evaluation import (
    AS_GIVEN,
    choose_by_loss,
    evaluate_detectors,
    format_summary,
    healthy_folds,
)
from anomaly.strata import ELSEWHERE, STRATA, strata_masks
from anomaly.thresholds import BestDiceThreshold, FixedThreshold, HealthyRateThreshold, OtsuThreshold, open_map
from dmrifit.lesions import lesion_scores, lesion_table

SHAPE = (18, 20, 16)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
GRID = np.ogrid[tuple(slice(n) for n in SHAPE)]


def ball(center, radius):
    return sum((axis - c) ** 2 for axis, c in zip(GRID, center, strict=True)) <= radius**2


def make_case(i, seed, *, lesion):
    """Give a synthetic case: a cortex around white matter, ventricles and nuclei, perhaps a lesion that grows."""
    rng = np.random.default_rng([seed, i, lesion])
    brain = ball((8.5, 9.5, 7.5), 7.6)
    tissue = np.where(brain, 1, 0)
    tissue[brain & ~ball((8.5, 9.5, 7.5), 6.4)] = 2
    tissue[ball((8, 12, 8), 1.5)] = 4
    tissue[ball((8, 7, 8), 1.8)] = 3
    center = rng.uniform(5, 11, 3)
    mask, later = ball(center, rng.uniform(2, 3)) & brain, ball(center + 1, 4) & brain
    return Case(
        f"{'lesion' if lesion else 'healthy'} {i}",
        rng.uniform(0.2, 0.6, (*SHAPE, 3)).astype(np.float32) * brain[..., None],
        brain,
        tissue=tissue,
        lesion=mask if lesion else None,
        followup=(mask | later) if lesion else None,
        affine=AFFINE,
        kind=("infiltrating", "cellular")[i % 2] if lesion else "",
        grade=("glioblastoma", "WHO II")[i % 2] if lesion else "",
        synthetic=True,
    )


def make_map(case, seed, strength):
    rng = np.random.default_rng([seed, *case.name.encode()])
    values = 2 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
    if case.lesion is not None:
        values = values + strength * case.lesion
    return np.where(case.brain, values, 0).astype(np.float32)


def cohort(seed, n=5, n_healthy=4):
    cases = [make_case(i, seed, lesion=True) for i in range(n)]
    healthy = [make_case(i, seed, lesion=False) for i in range(n_healthy)]
    maps = {name: [make_map(case, seed, s) for case in cases] for name, s in (("weak", 0.4), ("strong", 2.0))}
    free = {name: [make_map(case, seed + 1, 0) for case in healthy] for name in maps}
    return cases, maps, healthy, free


@pytest.fixture(scope="module")
def evaluated():
    cases, maps, healthy, free = cohort(31)
    return cases, maps, healthy, free, evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=free)


def row_of(table, **keys):
    chosen = table
    for key, value in keys.items():
        chosen = chosen[chosen[key] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


# Against plain numpy ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("seed", [32, 47])
def test_every_number_of_a_scan_is_what_plain_numpy_counts(seed):
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
        limit = 0.7 if row.rule == "fixed" else row_of(tables["thresholds"], method=row.method, rule=row.rule).threshold
        limit = best_split(values[inside]) if row.rule == "own" else limit
        found = inside & (values > limit)
        opened = ndimage.binary_opening(found, np.ones((3, 3, 3)))
        assert row.false_positive_rate == pytest.approx(found.sum() / inside.sum())
        assert row.false_positive_rate_opened == pytest.approx(opened.sum() / inside.sum())
        assert (row.empty, row.empty_opened) == (not found.any(), not opened.any())
        assert row.n_components_opened == ndimage.label(opened, np.ones((3, 3, 3)))[1]


def best_split(*values):
    return OtsuThreshold().fit([one.reshape(-1, 1, 1) for one in values]).threshold_


def test_the_summary_is_mean_and_deviation_over_patients(evaluated):
    *_, tables = evaluated
    scans = tables["scans"]
    for part in ("all", "infiltrating", "cellular"):
        row = row_of(tables["summary"], part=part, method="strong", rule="Otsu")
        own = scans[(scans["method"] == "strong") & (scans["rule"] == "Otsu")]
        own = own if part == "all" else own[own["kind"] == part]
        assert row["n_patients"] == len(own)
        for measure in ("auc", "average_precision", "dice", "dice_opened"):
            assert row[measure] == pytest.approx(own[measure].mean())
            assert row[f"{measure}_sd"] == pytest.approx(own[measure].std())
        assert row["gain"] == pytest.approx(own["dice_opened"].mean() / own["dice"].mean())
    healthy = tables["healthy"]
    own = healthy[(healthy["method"] == "strong") & (healthy["rule"] == "Otsu")]
    row = row_of(tables["summary"], part="all", method="strong", rule="Otsu")
    assert row["false_positive_rate"] == pytest.approx(own["false_positive_rate"].mean())
    assert row["empty_opened"] == pytest.approx(own["empty_opened"].mean())


def test_scans_of_a_patient_count_once():
    cases, maps, _, _ = cohort(33, 4)
    rules = {"fixed": FixedThreshold(0.7)}
    twice = [replace(cases[1], patient=cases[0].patient), *cases[2:]]
    tables = evaluate_detectors([cases[0], *twice], maps, rules=rules, controls=False)
    row = row_of(tables["summary"], part="all", method="strong")
    auc = tables["scans"].query("method == 'strong'")["auc"].to_numpy()
    assert row["n_patients"] == 3
    assert row["auc"] == pytest.approx(np.mean([auc[:2].mean(), auc[2], auc[3]]))


def test_lesions_are_matched_after_opening(evaluated):
    cases, maps, _, _, tables = evaluated
    threshold = row_of(tables["thresholds"], method="strong", rule="Otsu")["threshold"]
    found = [open_map((m > threshold) & case.scored) for m, case in zip(maps["strong"], cases, strict=True)]
    expected = lesion_scores(
        [lesion_table(case.lesion & case.scored, one, AFFINE) for case, one in zip(cases, found, strict=True)]
    )
    row = row_of(tables["lesion_scores"], method="strong", rule="Otsu")
    for key, value in expected.items():
        np.testing.assert_allclose(row[key], value, err_msg=key)
    lesions = tables["lesions"]
    own = lesions[(lesions["method"] == "strong") & (lesions["rule"] == "Otsu")]
    assert len(own) == expected["n_lesions"] + expected["n_false_positives"]
    assert set(own["kind"]) <= {"lesion", "false positive"}
    assert set(own["lesion_kind"]) == {"infiltrating", "cellular"}


# Rules and healthy scans --------------------------------------------------------------------------------------------


def test_rules_are_all_there_and_those_that_know_the_truth_are_marked(evaluated):
    _, _, _, _, tables = evaluated
    marked = tables["summary"].groupby("rule")["needs_truth"].unique().map(list).to_dict()
    assert marked == {
        "Otsu": [False], "Otsu, each scan": [False], "mean pool": [False], "mean pool, each scan": [False],
        "healthy rate": [False], "Youden": [True], "best Dice": [True], AS_GIVEN: [False],
    }  # fmt: skip
    best = row_of(tables["summary"], part="all", method="strong", rule="best Dice")["dice"]
    others = tables["summary"].query("part == 'all' and method == 'strong'")
    assert (others[~others["rule"].str.contains("each scan")]["dice"] <= best + 1e-12).all()


def test_the_mean_pool_knows_the_size_of_voxels(evaluated):
    cases, maps, _, _, tables = evaluated
    # 38.4 mm are 10 voxels of 4 mm (9.6, rounded).
    limits = []
    for values, case in zip(maps["strong"], cases, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(np.where(case.scored, values, 0), (10, 10, 10))
        limits.append(windows.mean(axis=(3, 4, 5)).max())
    row = row_of(tables["thresholds"], method="strong", rule="mean pool")
    assert row["threshold"] == pytest.approx(np.mean(limits), rel=1e-6)


def test_without_validation_each_half_of_the_healthy_has_the_threshold_of_the_other(evaluated):
    _, _, healthy, free, tables = evaluated
    fit = HealthyRateThreshold(0.01).fit
    masks = [case.scored for case in healthy]
    row = row_of(tables["thresholds"], method="weak", rule="healthy rate")
    assert row["threshold"] == fit(free["weak"], masks).threshold_
    own = tables["healthy"].query("method == 'weak' and rule == 'healthy rate'").sort_values("case")
    for i, rate in enumerate(own["false_positive_rate"]):
        others = [j for j in range(4) if j % 2 != i % 2]
        limit = fit([free["weak"][j] for j in others], [masks[j] for j in others]).threshold_
        assert rate == pytest.approx((free["weak"][i][masks[i]] > limit).mean())


def test_with_validation_the_threshold_is_theirs_alone():
    cases, maps, healthy, free = cohort(34)
    rules = {"rate": HealthyRateThreshold(0.05)}
    tables = evaluate_detectors(
        cases, maps, healthy=healthy[:1], healthy_maps={k: v[:1] for k, v in free.items()},
        validation=healthy[1:], validation_maps={k: v[1:] for k, v in free.items()}, rules=rules, controls=False,
    )  # fmt: skip
    limit = HealthyRateThreshold(0.05).fit(free["strong"][1:], [case.scored for case in healthy[1:]]).threshold_
    row = row_of(tables["thresholds"], method="strong")
    assert (row["threshold"], row["n_fitted"]) == (limit, 3)
    rate = (free["strong"][0][healthy[0].scored] > limit).mean()
    assert row_of(tables["healthy"], method="strong")["false_positive_rate"] == pytest.approx(rate)


def test_rules_may_be_for_some_methods_only_and_masks_are_taken_as_given():
    cases, maps, _, _ = cohort(35)
    maps["mask"] = [case.lesion for case in cases]
    rules = {
        "fixed": {"strong": FixedThreshold(1.0), "weak": FixedThreshold(0.1)},
        "best": {"weak": BestDiceThreshold()},
    }
    tables = evaluate_detectors(cases, maps, rules=rules, controls=False)
    used = tables["thresholds"][["method", "rule"]].apply(tuple, axis=1).tolist()
    assert used == [("weak", "fixed"), ("weak", "best"), ("strong", "fixed"), ("mask", AS_GIVEN)]
    row = row_of(tables["summary"], part="all", method="mask")
    assert row["dice"] == row["auc"] == row["average_precision"] == 1
    assert row["dice_opened"] < 1
    assert not len(tables["healthy"])
    assert np.isnan(row["false_positive_rate"])


def test_without_healthy_scans_rules_that_need_them_are_left_out():
    cases, maps, _, _ = cohort(35)
    tables = evaluate_detectors(cases, maps, controls=False, lesion_wise=False)
    assert "healthy rate" not in set(tables["summary"]["rule"])
    assert len(tables["summary"])
    assert not len(tables["curves"])
    assert not len(tables["areas"])
    assert not len(tables["lesions"])
    with pytest.raises(ValueError, match="'rate' needs healthy scans"):
        evaluate_detectors(cases, maps, rules={"rate": HealthyRateThreshold()})


# Controls and undefined cases ---------------------------------------------------------------------------------------


def test_controls_are_what_their_names_say(evaluated):
    cases, _, healthy, _, tables = evaluated
    summary = tables["summary"].query("part == 'all'").set_index(["method", "rule"])
    assert set(tables["summary"].loc[tables["summary"]["control"], "method"]) == set(CONTROLS)
    share = np.array([(case.lesion & case.scored).sum() / case.scored.sum() for case in cases])
    row = summary.loc["all positive", AS_GIVEN]
    assert row["dice"] == pytest.approx((2 * share / (1 + share)).mean())
    assert row["auc"] == 0.5
    assert row["average_precision"] == pytest.approx(share.mean())
    assert (row["false_positive_rate"], row["empty"]) == (1, 0)
    row = summary.loc["empty", AS_GIVEN]
    assert (row["dice"], row["dice_opened"], row["sensitivity"], row["auc"]) == (0, 0, 0, 0.5)
    assert (row["false_positive_rate"], row["empty"]) == (0, 1)
    assert summary.loc["brain mask", AS_GIVEN]["dice"] == summary.loc["all positive", AS_GIVEN]["dice"]
    assert summary.loc["another patient's lesion", AS_GIVEN]["sensitivity"] < 0.9
    # The untrained map goes through the rules as a learned one does.
    assert set(summary.loc[BRIGHTNESS].index) >= {"Otsu", "healthy rate", "best Dice"}
    made = control_maps(cases)
    np.testing.assert_allclose(
        made[BRIGHTNESS][0], np.where(cases[0].brain, 1 - cases[0].signal.mean(-1), 0), atol=1e-6
    )
    np.testing.assert_array_equal(made["another patient's lesion"][4], cases[0].lesion)
    assert not control_maps(healthy)["another patient's lesion"][0].any()
    alone = control_maps(cases[:1])["another patient's lesion"][0]
    assert not alone.any()


def test_cases_without_a_lesion_tell_of_false_positives_only():
    cases, maps, _, _ = cohort(36)
    without = evaluate_detectors(cases[:4], {k: v[:4] for k, v in maps.items()}, rules={"f": FixedThreshold(0.7)})
    free = [*cases[:4], replace(cases[4], lesion=None, followup=None)]
    # In a ventricle, which is not scored.
    hidden = np.zeros(SHAPE, bool)
    hidden[8, 7, 8] = True
    free.append(replace(cases[4], patient="other", name="other", lesion=hidden))
    extended = {k: [*v, v[4]] for k, v in maps.items()}
    tables = evaluate_detectors(free, extended, rules={"f": FixedThreshold(0.7)})
    own = tables["scans"].query("method == 'strong' and case >= 4")
    assert own[["auc", "average_precision", "dice", "dice_opened", "sensitivity", "precision"]].isna().all(axis=None)
    assert (own["n_found"] > 0).all()
    assert (own["n_lesion"] == 0).all()
    for column in ("auc", "dice", "dice_opened", "n_patients"):
        mine, theirs = (row_of(t["summary"], part="all", method="strong")[column] for t in (tables, without))
        assert mine == theirs
    assert row_of(tables["lesion_scores"], method="strong")["n_lesion_free"] == 2


def test_maps_that_are_the_same_everywhere_find_nothing_and_rank_nothing():
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


# Folds --------------------------------------------------------------------------------------------------------------


def test_folds_are_averaged_before_patients_and_their_spread_is_told():
    cases, maps, healthy, free = cohort(38)
    second = {name: [make_map(case, 99, 1.0) for case in cases] for name in maps}
    both = {name: [maps[name], second[name]] for name in maps}
    tables = evaluate_detectors(
        cases, both, healthy=healthy[:2], healthy_maps={k: [v[:2], v[:2]] for k, v in free.items()},
        validation=[healthy[2:3], healthy[3:]], validation_maps={k: [v[2:3], v[3:]] for k, v in free.items()},
        folds=["a", "b"], rules={"f": FixedThreshold(0.7), "r": HealthyRateThreshold(0.05)},
    )  # fmt: skip
    row = row_of(tables["summary"], part="all", method="weak", rule="f")
    singles = [
        evaluate_detectors(cases, {"weak": one["weak"]}, rules={"f": FixedThreshold(0.7)}, controls=False)["scans"]
        for one in (maps, second)
    ]
    auc = np.array([one["auc"] for one in singles])
    assert row["auc"] == pytest.approx(auc.mean())
    assert row["auc_sd"] == pytest.approx(auc.mean(axis=0).std(ddof=1))
    assert row["auc_sd_folds"] == pytest.approx(auc.mean(axis=1).std(ddof=1))
    assert row["n_patients"] == 5
    limits = tables["thresholds"].query("method == 'weak' and rule == 'r'").set_index("fold")["threshold"]
    for fold, i in (("a", 2), ("b", 3)):
        expected = HealthyRateThreshold(0.05).fit([free["weak"][i]], [healthy[i].scored]).threshold_
        assert limits[fold] == expected
    assert set(tables["curves"].query("method == 'weak'")["fold"]) == {"a", "b"}
    assert not tables["areas"]["method"].duplicated().any()


def test_healthy_folds_keep_patients_together_and_use_every_scan_once():
    cases = [make_case(i // 2, 1, lesion=False) for i in range(18)]
    folds = healthy_folds(cases, 7, random_state=3)
    assert len(folds) == 7
    assert sorted(i for _, held in folds for i in held) == list(range(18))
    for train, held in folds:
        assert sorted(train + held) == list(range(18))
        assert not {cases[i].patient for i in train} & {cases[i].patient for i in held}
    assert healthy_folds(cases, 7, random_state=3) == folds
    assert healthy_folds(cases, 7, random_state=4) != folds
    for wrong in (1, 10):
        with pytest.raises(ValueError, match="at most the number of patients, 9"):
            healthy_folds(cases, wrong)


def test_configurations_are_chosen_by_validation_loss():
    assert choose_by_loss({"a": [1.0, 3.0], "b": [1.5, 1.6], "c": [1.6, 1.5]}) == "b"
    for wrong in ({}, {"a": []}, {"a": [1], "b": [1, 2]}, {"a": [np.nan]}):
        with pytest.raises(ValueError, match="loss"):
            choose_by_loss(wrong)


# Where and how much -------------------------------------------------------------------------------------------------


def test_strata_cover_what_is_scored_and_lie_where_they_should():
    case = make_case(0, 1, lesion=True)
    masks = strata_masks(case)
    assert list(masks) == [*STRATA, ELSEWHERE]
    np.testing.assert_array_equal(np.logical_or.reduce(list(masks.values())), case.scored)
    assert not any((masks[name] & masks[ELSEWHERE]).any() for name in STRATA)
    assert masks["near cortex"][case.tissue == 2].all()
    assert masks["deep nuclei"][case.tissue == 4].all()
    # 5 mm are one voxel of 4 mm, and not the diagonal of two.
    for structure, name in ((2, "near cortex"), (4, "deep nuclei")):
        grown = ndimage.binary_dilation(case.tissue == structure)
        np.testing.assert_array_equal(masks[name], grown & case.scored)
    height = np.broadcast_to(GRID[2], SHAPE)
    assert height[masks["basal"]].max() < height[case.scored & ~masks["basal"]].min()
    flipped = replace(case, affine=np.diag([4, 4, -4, 1.0]))
    assert height[strata_masks(flipped)["basal"]].min() > 8
    plain = strata_masks(replace(case, tissue=None))
    assert not plain["deep nuclei"].any()
    assert (plain["near cortex"] & ~ndimage.binary_erosion(case.brain)).sum() > 100
    with pytest.raises(ValueError, match="near_mm"):
        strata_masks(case, near_mm=-1)


def test_figures_of_a_stratum_are_of_its_voxels(evaluated):
    cases, maps, healthy, free, tables = evaluated
    limit = row_of(tables["thresholds"], method="strong", rule="Otsu")["threshold"]
    for name in (*STRATA, ELSEWHERE):
        sensitivity, auc = [], []
        for values, case in zip(maps["strong"], cases, strict=True):
            part = strata_masks(case)[name]
            truth = case.lesion[part]
            if truth.any():
                sensitivity.append((values[part][truth] > limit).mean())
                if not truth.all():
                    auc.append(mann_whitney(values[part], truth))
        chosen = tables["strata"].query("method == 'strong' and rule == 'Otsu'")
        assert chosen["stratum"].tolist() == [*STRATA, ELSEWHERE]
        row = row_of(chosen, stratum=name)
        assert row["n_patients"] == len(sensitivity)
        if sensitivity:
            assert row["sensitivity"] == pytest.approx(np.mean(sensitivity))
            assert row["auc"] == pytest.approx(np.mean(auc))
        rates = [
            (values[strata_masks(case)[name]] > limit).mean()
            for values, case in zip(free["strong"], healthy, strict=True)
        ]
        assert row["false_positive_rate"] == pytest.approx(np.mean(rates))


@pytest.mark.parametrize("seed", [40, 41])
def test_the_curve_counts_false_positives_on_healthy_scans_only(seed):
    cases, maps, healthy, free = cohort(seed)
    masks = [case.scored for case in cases]
    quiet = [values[case.scored] for values, case in zip(free["strong"], healthy, strict=True)]
    lesions = [case.lesion.copy() for case in cases]
    lesions[0][8:10, 9, 14] = True  # a second lesion
    curve = coverage_curve(quiet, maps["strong"], lesions, masks)
    assert curve["rate"].tolist() == sorted(CURVE_RATES)
    for row in curve.iloc[::5].itertuples():
        assert row.realized <= row.rate + 1e-12
        assert row.realized == pytest.approx(np.mean([(one > row.threshold).mean() for one in quiet]))
        shares, voxels = [], []
        for values, lesion, mask in zip(maps["strong"], lesions, masks, strict=True):
            labels, n = ndimage.label(lesion & mask, np.ones((3, 3, 3)))
            above = values > row.threshold
            shares.append(np.mean([above[labels == k].mean() for k in range(1, n + 1)]))
            voxels.append(above[labels > 0].mean())
        assert row.coverage == pytest.approx(np.mean(shares))
        assert row.sensitivity == pytest.approx(np.mean(voxels))
    assert curve["coverage"].is_monotonic_increasing
    # What is flagged beside lesions does not count as false.
    raised = [np.where(lesion, values, 50) for values, lesion in zip(maps["strong"], lesions, strict=True)]
    assert coverage_curve(quiet, raised, lesions, masks)["coverage"].equals(curve["coverage"])
    with pytest.raises(ValueError, match="needs healthy scans, not 0"):
        coverage_curve([], maps["strong"], lesions, masks)


def test_areas_of_maps_that_know_nothing_and_all():
    rng = np.random.default_rng(2)
    masks, lesions = [np.ones((30, 30, 30), bool)] * 4, []
    for _ in range(4):
        lesion = np.zeros((30, 30, 30), bool)
        lesion[5:20, 5:20, 5:20] = True
        lesions.append(lesion)
    quiet = [rng.random(27000) for _ in range(4)]
    nothing = [rng.random((30, 30, 30)) for _ in range(4)]
    areas = curve_areas(coverage_curve(quiet, nothing, lesions, masks))
    assert areas["area"] == pytest.approx(0.15, abs=0.005)
    # The mean of the rate itself over its logarithm.
    assert areas["area_low"] == pytest.approx(0.009 / np.log(10), abs=0.001)
    known = [values + 5 * lesion for values, lesion in zip(nothing, lesions, strict=True)]
    areas = curve_areas(coverage_curve(quiet, known, lesions, masks))
    assert areas["area"] == pytest.approx(1, abs=1e-3)
    assert areas["area_low"] == 1


# What users read, and what they give wrongly ------------------------------------------------------------------------


def test_summaries_are_written_as_the_study_writes_them(evaluated):
    *_, tables = evaluated
    text = format_summary(tables)
    assert {"AUC", "Otsu", "best Dice", AS_GIVEN} <= set(text.columns)
    row = row_of(tables["summary"], part="all", method="strong", rule="Otsu")
    assert text.loc["strong", "Otsu"] == f"{row['dice']:.3f} / {row['dice_opened']:.3f}"
    one = format_summary(tables, rule="healthy rate", part="cellular")
    assert list(one.columns) == ["AUC", "AP", "Dice", "opened", "false positives", "empty"]
    assert set(one.index) == {"strong", "weak", *CONTROLS}
    for wrong in ({"rule": "no"}, {"part": "no"}):
        with pytest.raises(ValueError, match="must be one of"):
            format_summary(tables, **wrong)


def test_several_processes_give_the_same_tables(evaluated):
    cases, maps, healthy, free, tables = evaluated
    again = evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=free, n_jobs=2)
    for key, table in tables.items():
        assert table.equals(again[key]), key


def test_later_growth_is_looked_for_in_every_grade(evaluated):
    *_, tables = evaluated
    chosen = tables["followup"].query("method == 'strong' and rule == 'Otsu'")
    assert dict(zip(chosen["grade"], chosen["n_patients"], strict=True)) == {"glioblastoma": 3, "WHO II": 2}
    assert not tables["followup"]["needs_truth"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": []}, "no cases"),
        ({"maps": {}}, "no maps"),
        ({"maps": {"empty": None}}, "names of their own"),
        ({"n": 3}, "maps: 3 for 5 scans"),
        ({"nan": True}, "strong: maps: 1 values of lesion 0 are no finite numbers"),
        ({"shape": True}, "one of shape \\(17, 20, 16\\) for lesion 0"),
        ({"mixed": True}, "some maps are masks"),
        ({"healthy_maps": None}, "healthy and healthy_maps belong together"),
        ({"healthy_maps": {"weak": None}}, "healthy_maps are of \\['weak'\\]"),
        ({"validation": []}, "validation and validation_maps belong together"),
        ({"rules": {"x": 0.5}}, "rule 'x' must be a rule of anomaly.thresholds, not float"),
        ({"rules": {AS_GIVEN: OtsuThreshold()}}, "is the name for masks"),
        ({"rules": {"x": {"nobody": OtsuThreshold()}}}, "which are not among the methods"),
        ({"folds": ["a", "a"]}, "folds need names of their own"),
        ({"folds": ["a", "b", "c"]}, "2 entries for 3 folds|5 entries for 3 folds"),
        ({"opening": 0}, "size must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(change, message):
    cases, maps, healthy, free = cohort(50)
    if "n" in change:
        maps["strong"] = maps["strong"][: change.pop("n")]
    if change.pop("nan", False):
        maps["strong"][0][8, 9, 8] = np.nan
    if change.pop("shape", False):
        maps["strong"][0] = maps["strong"][0][1:]
    if change.pop("mixed", False):
        maps["strong"][0] = maps["strong"][0] > 0
    if "empty" in change.get("maps", {}):
        change["maps"] = {"empty": maps["weak"]}
        change["healthy_maps"] = {"empty": free["weak"]}
    given = {"cases": cases, "maps": maps, "healthy": healthy, "healthy_maps": free} | change
    with pytest.raises(ValueError, match=message):
        evaluate_detectors(given.pop("cases"), given.pop("maps"), **given)


def test_scans_that_may_not_meet_are_refused():
    cases, maps, healthy, free = cohort(51)
    with pytest.raises(ValueError, match="healthy scans that have lesions: lesion 0"):
        evaluate_detectors(cases, maps, healthy=cases[:1], healthy_maps={k: v[:1] for k, v in maps.items()})
    known = [replace(case, patient=cases[0].patient) for case in healthy]
    with pytest.raises(ValueError, match="healthy scans that are of patients among the cases"):
        evaluate_detectors(cases, maps, healthy=known, healthy_maps=free)
    with pytest.raises(ValueError, match="need healthy scans of different patients: healthy 0"):
        evaluate_detectors(
            cases, maps, healthy=healthy, healthy_maps=free, validation=healthy[:1],
            validation_maps={k: v[:1] for k, v in free.items()},
        )  # fmt: skip
    with pytest.raises(ValueError, match="none of 4 case\\(s\\) has a lesion"):
        evaluate_detectors(healthy, free)
    with pytest.raises(ValueError, match="no white or gray matter to score in lesion 0"):
        evaluate_detectors([replace(cases[0], tissue=np.full(SHAPE, 3)), *cases[1:]], maps)
    with pytest.raises(ValueError, match="windows in mm, and voxels differ"):
        evaluate_detectors([replace(cases[0], affine=np.eye(4)), *cases[1:]], maps)
    with pytest.raises(ValueError, match="needs healthy scans of two patients"):
        evaluate_detectors(cases, maps, healthy=healthy[:1], healthy_maps={k: v[:1] for k, v in free.items()})
