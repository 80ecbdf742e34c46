"""Tables of anomaly maps agree with what plain numpy counts; controls and undefined cases are what they should be."""

from dataclasses import replace

import numpy as np
import pytest

from anomaly.detectors.thresholds import FixedThreshold, open_map
from anomaly.study.controls import BRIGHTNESS, CONTROLS
from anomaly.study.evaluation import (
    AS_GIVEN,
    evaluate_detectors,
    format_summary,
    healthy_folds,
)
from dmrifit.stats.lesion_matching import lesion_scores, lesion_table

SHAPE = (18, 20, 16)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


# Against plain numpy ------------------------------------------------------------------------------------------------


def test_lesions_are_matched_after_opening(evaluated, row_of):
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


def test_rules_are_all_there_and_those_that_know_the_truth_are_marked(evaluated, row_of):
    _, _, _, _, tables = evaluated
    marked = tables["summary"].groupby("rule")["needs_truth"].unique().map(list).to_dict()
    assert marked == {
        "Otsu": [False], "Otsu, each scan": [False], "mean pool": [False], "mean pool, each scan": [False],
        "healthy rate": [False], "Youden": [True], "best Dice": [True], AS_GIVEN: [False],
    }  # fmt: skip
    best = row_of(tables["summary"], part="all", method="strong", rule="best Dice")["dice"]
    others = tables["summary"].query("part == 'all' and method == 'strong'")
    assert (others[~others["rule"].str.contains("each scan")]["dice"] <= best + 1e-12).all()


def test_the_mean_pool_knows_the_size_of_voxels(evaluated, row_of):
    cases, maps, _, _, tables = evaluated
    # 38.4 mm are 10 voxels of 4 mm (9.6, rounded).
    limits = []
    for values, case in zip(maps["strong"], cases, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(np.where(case.scored, values, 0), (10, 10, 10))
        limits.append(windows.mean(axis=(3, 4, 5)).max())
    row = row_of(tables["thresholds"], method="strong", rule="mean pool")
    assert row["threshold"] == pytest.approx(np.mean(limits), rel=1e-6)


# Controls and undefined cases ---------------------------------------------------------------------------------------


def test_controls_score_what_their_names_say(evaluated):
    cases, _, _, _, tables = evaluated
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


def test_cases_without_a_lesion_tell_of_false_positives_only(cohort, row_of):
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


# Folds --------------------------------------------------------------------------------------------------------------


def test_healthy_folds_keep_patients_together_and_use_every_scan_once(make_case):
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


# What users read, and what they give wrongly ------------------------------------------------------------------------


def test_summaries_are_written_as_the_study_writes_them(evaluated, row_of):
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
