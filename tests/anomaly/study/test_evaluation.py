"""Tables of anomaly maps agree with what plain numpy counts; controls and undefined cases are what they should be."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from anomaly.detectors.thresholds import FixedThreshold, HealthyRateThreshold, open_map
from anomaly.study.contestants import BRIGHTNESS, CONTROLS
from anomaly.study.evaluation import (
    AS_GIVEN,
    KEYS,
    area_summary,
    evaluate_detectors,
    followup_summary,
    format_summary,
    healthy_folds,
    scan_summary,
    strata_summary,
)
from anomaly.study.scores import RATES, curve_areas, overlap_with_followup
from dmrifit.stats.lesion_matching import lesion_scores, lesion_table

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def test_lesions_are_matched_after_opening(evaluated, row_of):
    cases, maps, _, _, tables = evaluated
    threshold = row_of(tables["thresholds"], method="strong", rule="Otsu")["threshold"]
    scans = zip(maps["strong"], cases, strict=True)
    found = [(case, open_map((scores > threshold) & case.scored)) for scores, case in scans]
    expected = lesion_scores([lesion_table(case.lesion & case.scored, opened, AFFINE) for case, opened in found])
    row = row_of(tables["lesion_scores"], method="strong", rule="Otsu")
    for key, value in expected.items():
        np.testing.assert_allclose(row[key], value, err_msg=key)
    lesions = tables["lesions"]
    own = lesions[(lesions["method"] == "strong") & (lesions["rule"] == "Otsu")]
    assert len(own) == expected["n_lesions"] + expected["n_false_positives"]
    assert set(own["kind"]) <= {"lesion", "false positive"}
    assert set(own["lesion_kind"]) == {"infiltrating", "cellular"}


def test_rules_are_all_there_and_those_that_know_the_truth_are_marked(evaluated, row_of):
    _, _, _, _, tables = evaluated
    marked = tables["summary"].groupby("needs_truth")["rule"].unique().map(set)
    assert marked[True] == {"Youden", "best Dice"}
    others = {"Otsu", "Otsu, each scan", "mean pool", "mean pool, each scan", "healthy rate", AS_GIVEN}
    assert marked[False] == others
    best = row_of(tables["summary"], part="all", method="strong", rule="best Dice")["dice"]
    others = tables["summary"].query("part == 'all' and method == 'strong'")
    assert (others[~others["rule"].str.contains("each scan")]["dice"] <= best + 1e-12).all()


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
    # In a ventricle, which is not scored.
    hidden = replace(cases[4], patient="other", name="other", lesion=cases[4].tissue == 3)
    free = [*cases[:4], replace(cases[4], lesion=None, followup=None), hidden]
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


def test_healthy_folds_keep_patients_together_and_use_every_scan_once(cohort):
    cases = 2 * cohort(1, 0, 9)[2]
    folds = healthy_folds(cases, 7, random_state=3)
    assert len(folds) == 7
    assert sorted(i for _, held in folds for i in held) == list(range(18))
    for train, held in folds:
        assert sorted(train + held) == list(range(18))
        assert not {cases[i].patient for i in train} & {cases[i].patient for i in held}
    assert healthy_folds(cases, 7, random_state=3) == folds
    assert healthy_folds(cases, 7, random_state=4) != folds
    for wrong in (1, 10):
        with pytest.raises(ValueError, match="a whole number from 2 to 9"):
            healthy_folds(cases, wrong)


def test_summaries_are_written_as_the_study_writes_them(evaluated, row_of):
    *_, tables = evaluated
    text = format_summary(tables)
    assert {"AUC", "Otsu", "best Dice", AS_GIVEN} <= set(text.columns)
    row = row_of(tables["summary"], part="all", method="strong", rule="Otsu")
    assert text.loc["strong", "Otsu"] == f"{row['dice']:.3f} / {row['dice_opened']:.3f}"
    one = format_summary(tables, rule="healthy rate", part="cellular")
    assert {"AUC", "opened by", "healthy: false positives, opened, %", "healthy: nothing marked, opened, %"} < {*one.columns}
    assert set(one.index) == {"strong", "weak", *CONTROLS}
    for wrong in ({"rule": "no"}, {"part": "no"}):
        with pytest.raises(ValueError, match="must be one of"):
            format_summary(tables, **wrong)


def test_several_processes_give_the_same_tables(evaluated):
    cases, maps, healthy, free, tables = evaluated
    again = evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=free, n_jobs=2)
    for key, table in tables.items():
        assert table.equals(again[key]), key


MEASURES = [f"{name}{ending}" for name in ("dice", "sensitivity", "precision") for ending in ("", "_opened")]
MEASURES += ["auc", "average_precision"]
KEY = {"method": "a", "control": False, "rule": "r", "needs_truth": False}


def table_of(*columns, rows):
    """Make a table of one method."""
    return pd.DataFrame([{**KEY, **dict(zip(columns, row, strict=True))} for row in rows])


def scans_table(*rows):
    """Make the table of scans: fold, patient, kind, lesion voxels and one value for all measures."""
    table = table_of("fold", "patient", "kind", "n_lesion", "dice", rows=rows)
    return table.assign(**{name: table["dice"] for name in MEASURES} | {"dice_opened": 2 * table["dice"]})


def healthy_table(*rows):
    table = table_of("fold", "patient", RATES[0], rows=rows)
    return table.assign(**{RATES[1]: table[RATES[0]] / 2, "empty": table[RATES[0]] == 0, "empty_opened": True})


def test_scans_count_by_patient_and_fold():
    # Patient p has two scans in the first fold, of mean 0.2; q has one in each fold.
    scans = scans_table(
        ("f", "p", "x", 5, 0.1), ("f", "p", "x", 5, 0.3), ("g", "p", "x", 5, 0.4),
        ("f", "q", "x", 5, 0.6), ("g", "q", "x", 5, 0.8), ("g", "r", "x", 0, np.nan),
    )  # fmt: skip
    healthy = healthy_table(("f", "h", 0.02), ("f", "h", 0.0), ("g", "h", 0.05), ("f", "i", 0.0), ("g", "i", 0.0))
    (row,) = scan_summary(scans, healthy).to_dict("records")
    assert {key: row[key] for key in KEYS} == KEY
    assert (row["part"], row["n_patients"]) == ("all", 2)
    # p: the mean of 0.2 and 0.4; q: of 0.6 and 0.8.
    assert row["auc"] == pytest.approx((0.3 + 0.7) / 2)
    assert row["auc_sd"] == pytest.approx(0.4 / 2**0.5)
    # Of folds: 0.2 and 0.6, 0.4 and 0.8.
    assert row["auc_sd_folds"] == pytest.approx(0.2 / 2**0.5)
    assert row["gain"] == pytest.approx(2)
    assert row[RATES[0]] == pytest.approx(((0.01 + 0.05) / 2 + 0) / 2)
    assert row[RATES[1]] == pytest.approx(row[RATES[0]] / 2)
    assert row["empty"] == pytest.approx((0.5 + 0) / 4 + 1 / 2)
    assert row["empty_opened"] == 1


def test_kinds_are_parts_where_there_are_several_and_strata_are_those_of_patients_with_lesions_there():
    scans = scans_table(("f", "p", "x", 5, 0.1), ("f", "q", "y", 5, 0.5), ("f", "r", "", 5, 0.9))
    summary = scan_summary(scans, pd.DataFrame()).set_index("part")
    assert summary["dice"].to_dict() == pytest.approx({"all": 0.5, "x": 0.1, "y": 0.5})
    assert summary["n_patients"].to_dict() == {"all": 3, "x": 1, "y": 1}
    assert summary[[*RATES, "empty"]].isna().all(axis=None)
    single = scan_summary(scans_table(("f", "p", "x", 5, 0.1)), pd.DataFrame())
    assert single["part"].tolist() == ["all"]
    rows = [("p", "basal", 0.2), ("p", "rest", 0.5), ("q", "basal", 0.6), ("q", "rest", np.nan)]
    lesions = table_of("patient", "stratum", "auc", rows=rows).assign(fold="f", healthy=False)
    lesions = lesions.assign(**{name: lesions["auc"] for name in ("dice_opened", "sensitivity", "sensitivity_opened")})
    rows = [("h", "basal", 0.1), ("h", "rest", 0.3), ("h", "none", 0.0)]
    healthy = table_of("patient", "stratum", RATES[0], rows=rows).assign(fold="f", healthy=True)
    healthy = healthy.assign(**{name: healthy[RATES[0]] for name in RATES})
    table = strata_summary(pd.concat([lesions, healthy], ignore_index=True))
    assert table["stratum"].tolist() == ["basal", "rest", "none"]
    assert table["n_patients"].tolist() == [2, 1, 0]
    np.testing.assert_allclose(table["sensitivity"], [0.4, 0.5, np.nan])
    np.testing.assert_allclose(table[RATES[0]], [0.1, 0.3, 0])
    without = strata_summary(lesions)
    assert without["stratum"].tolist() == ["basal", "rest"]
    assert without[list(RATES)].isna().all(axis=None)


def test_areas_are_means_over_folds():
    rates = np.array([0.001, 0.01, 0.3])
    curves = {fold: pd.DataFrame({"rate": rates, "coverage": level}) for fold, level in (("f", 0.2), ("g", 0.6))}
    rows = [{"fold": fold, "method": "a", "control": False, **curve_areas(curve)} for fold, curve in curves.items()]
    (row,) = area_summary(pd.DataFrame(rows)).to_dict("records")
    # From 0 at the rate 0 to the level at 0.001, then the same up to 0.3.
    share = (0.3 - 0.001 / 2) / 0.3
    assert row == {"method": "a", "control": False, "area": pytest.approx(0.4 * share), "area_low": pytest.approx(0.4)}
    assert not len(area_summary(pd.DataFrame()))


def test_mismatches_are_counted_by_grade_and_folds_are_told():
    lesion, later, region = np.zeros((3, 12, 12, 12), dtype=bool)
    lesion[:3, :3, :3] = later[:3, :3, :3] = later[6:9, :3, :3] = region[6:9, :3, :3] = True
    hit, miss = (overlap_with_followup(mask, lesion, later) for mask in (region, region[::-1, ::-1]))
    stable = overlap_with_followup(region, lesion, lesion)
    quiet = overlap_with_followup(lesion, lesion, lesion)
    rows = [("f", "IV", hit), ("f", "III", miss), ("g", "IV", miss), ("f", "II", stable), ("f", "II", quiet)]
    table = pd.DataFrame([{**KEY, "fold": fold, "grade": grade, **vars(overlap)} for fold, grade, overlap in rows])
    table = followup_summary(table).set_index("grade")
    # Without growth there is no share of it, and without regions no mismatch is expected.
    assert table.loc["II", ["n_patients", "n_grown", "n_mismatch", "n_colocated", "expected"]].tolist() == [2, 0, 1, 0, 0]
    assert table.loc["II", ["share_flagged", "share_expected"]].isna().all()
    table = table.drop(index="II")
    assert table["n_patients"].to_dict() == {"IV": 2, "III": 1}
    assert table["n_mismatch"].to_dict() == {"IV": 2, "III": 1}
    assert table["n_colocated"].to_dict() == {"IV": 1, "III": 0}
    assert table["n_folds"].tolist() == [2, 2]
    assert table["n_grown"].to_dict() == {"IV": 2, "III": 1}
    assert table.loc["IV", "expected"] == pytest.approx(hit.chance + miss.chance)
    assert table.loc["IV", "share_flagged"] == pytest.approx((hit.share_flagged + 0) / 2)
    assert not len(followup_summary(pd.DataFrame()))


def test_folds_are_averaged_before_patients_and_their_spread_is_told(cohort, row_of):
    cases, maps, healthy, free = cohort(38)
    second = {"weak": maps["strong"], "strong": maps["weak"]}
    both = {name: [maps[name], second[name]] for name in maps}
    tables = evaluate_detectors(
        cases, both, healthy=healthy[:2], healthy_maps={k: [v[:2], v[:2]] for k, v in free.items()},
        validation=[healthy[2:3], healthy[3:]], validation_maps={k: [v[2:3], v[3:]] for k, v in free.items()},
        folds=["a", "b"], rules={"f": FixedThreshold(0.7), "r": HealthyRateThreshold(0.05)},
    )  # fmt: skip
    row = row_of(tables["summary"], part="all", method="weak", rule="f")
    # The other method's maps are those of the other fold.
    strong = row_of(tables["summary"], part="all", method="strong", rule="f")
    assert row["auc"] == pytest.approx(strong["auc"])
    assert row["auc_sd"] == pytest.approx(strong["auc_sd"])
    assert row["auc_sd_folds"] > 0
    limits = tables["thresholds"].query("method == 'weak' and rule == 'r'").set_index("fold")["threshold"]
    for fold, i in (("a", 2), ("b", 3)):
        # With validation the threshold is theirs alone.
        assert limits[fold] == HealthyRateThreshold(0.05).fit([free["weak"][i]], [healthy[i].scored]).threshold_
        rate = (free["weak"][0][healthy[0].scored] > limits[fold]).mean()
        row = row_of(tables["healthy"], method="weak", rule="r", fold=fold, case=0)
        assert row["false_positive_rate"] == pytest.approx(rate)
    assert set(tables["thresholds"].query("method == 'weak' and rule == 'r'")["n_fitted"]) == {1}
    assert set(tables["curves"].query("method == 'weak'")["fold"]) == {"a", "b"}
    assert not tables["areas"]["method"].duplicated().any()
