"""Summaries are means over the scans of patients, then over folds and patients, by hand and by plain numpy."""


import numpy as np
import pandas as pd
import pytest

from anomaly.detectors.thresholds import FixedThreshold, HealthyRateThreshold
from anomaly.study.evaluation import evaluate_detectors
from anomaly.study.followup import overlap_with_followup
from anomaly.study.scores import RATES
from anomaly.study.summaries import (
    KEYS,
    area_summary,
    followup_summary,
    lesion_summary,
    scan_summary,
    strata_summary,
)

MEASURES = (
    "auc",
    "average_precision",
    "dice",
    "dice_opened",
    "sensitivity",
    "sensitivity_opened",
    "precision",
    "precision_opened",
)
KEY = {"method": "a", "control": False, "rule": "r", "needs_truth": False}


# By hand ------------------------------------------------------------------------------------------


def scans_table(*rows):
    """Make the table of scans of one method: fold, patient, kind, lesion voxels and one value for all measures."""
    records = []
    for fold, patient, kind, n_lesion, value in rows:
        measures = dict.fromkeys(MEASURES, value) | {"dice_opened": 2 * value}
        records.append(
            {
                **KEY,
                "fold": fold,
                "patient": patient,
                "kind": kind,
                "n_lesion": n_lesion,
                **measures,
            }
        )
    return pd.DataFrame(records)


def healthy_table(*rows):
    records = []
    for fold, patient, rate in rows:
        rates = {RATES[0]: rate, RATES[1]: rate / 2, "empty": rate == 0, "empty_opened": True}
        records.append({**KEY, "fold": fold, "patient": patient, **rates})
    return pd.DataFrame(records)


def test_scans_count_by_patient_and_fold():
    # Patient p has two scans in the first fold, of mean 0.2; q has one in each fold.
    scans = scans_table(
        ("f", "p", "x", 5, 0.1), ("f", "p", "x", 5, 0.3), ("g", "p", "x", 5, 0.4),
        ("f", "q", "x", 5, 0.6), ("g", "q", "x", 5, 0.8), ("g", "r", "x", 0, np.nan),
    )  # fmt: skip
    healthy = healthy_table(
        ("f", "h", 0.02), ("f", "h", 0.0), ("g", "h", 0.05), ("f", "i", 0.0), ("g", "i", 0.0)
    )
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


def test_kinds_are_parts_where_there_are_several():
    scans = scans_table(("f", "p", "x", 5, 0.1), ("f", "q", "y", 5, 0.5), ("f", "r", "", 5, 0.9))
    summary = scan_summary(scans, healthy_table()).set_index("part")
    assert summary["dice"].to_dict() == pytest.approx({"all": 0.5, "x": 0.1, "y": 0.5})
    assert summary["n_patients"].to_dict() == {"all": 3, "x": 1, "y": 1}
    assert summary[[*RATES, "empty"]].isna().all(axis=None)
    single = scan_summary(scans_table(("f", "p", "x", 5, 0.1)), healthy_table())
    assert single["part"].tolist() == ["all"]


def test_strata_are_those_of_patients_with_lesions_there():
    measures = ("auc", "dice_opened", "sensitivity", "sensitivity_opened")
    rows = []
    sensitivities = (
        ("p", "basal", 0.2),
        ("p", "rest", 0.5),
        ("q", "basal", 0.6),
        ("q", "rest", np.nan),
    )
    for patient, stratum, value in sensitivities:
        rows.append({**KEY, "fold": "f", "patient": patient, "stratum": stratum, "healthy": False})
        rows[-1] |= dict.fromkeys(measures, value)
    for patient, stratum, value in (("h", "basal", 0.1), ("h", "rest", 0.3), ("h", "none", 0.0)):
        rows.append({**KEY, "fold": "f", "patient": patient, "stratum": stratum, "healthy": True})
        rows[-1] |= dict.fromkeys(RATES, value)
    table = strata_summary(pd.DataFrame(rows))
    assert table["stratum"].tolist() == ["basal", "rest", "none"]
    assert table["n_patients"].tolist() == [2, 1, 0]
    np.testing.assert_allclose(table["sensitivity"], [0.4, 0.5, np.nan])
    np.testing.assert_allclose(table[RATES[0]], [0.1, 0.3, 0])
    without = strata_summary(pd.DataFrame(rows[:4]))
    assert without["stratum"].tolist() == ["basal", "rest"]
    assert without[list(RATES)].isna().all(axis=None)


def test_areas_are_means_over_folds():
    rates = np.array([0.001, 0.01, 0.3])
    curves = []
    for fold, level in (("f", 0.2), ("g", 0.6)):
        curves.append(
            pd.DataFrame(
                {"rate": rates, "coverage": level, "fold": fold, "method": "a", "control": False}
            )
        )
    (row,) = area_summary(pd.concat(curves)).to_dict("records")
    # From 0 at the rate 0 to the level at 0.001, then the same up to 0.3.
    share = (0.3 - 0.001 / 2) / 0.3
    assert row == {
        "method": "a",
        "control": False,
        "area": pytest.approx(0.4 * share),
        "area_low": pytest.approx(0.4),
    }
    assert not len(area_summary(pd.DataFrame()))


def test_lesions_of_all_scans_are_counted_together():
    from dmrifit.stats.lesion_matching import lesion_counts, lesion_table

    label, prediction = np.zeros((2, 8, 8, 8), dtype=bool)
    label[1, 1, 1] = label[5, 5, 5] = prediction[1, 1, 1] = prediction[1, 6, 6] = prediction[
        6, 1, 1
    ] = True
    counts = lesion_counts(lesion_table(label, prediction)).assign(fold="f", patient="p", **KEY)
    (row,) = lesion_summary(pd.concat([counts, counts])).to_dict("records")
    assert {key: row[key] for key in KEYS} == KEY
    assert (row["n_scans"], row["n_lesions"], row["n_found"], row["n_false_positives"]) == (
        2,
        4,
        2,
        4,
    )
    assert (row["sensitivity"], row["precision"]) == (pytest.approx(0.5), pytest.approx(1 / 3))
    assert list(lesion_summary(pd.DataFrame()).columns) == KEYS


def test_mismatches_are_counted_by_grade_and_folds_are_told():
    lesion, later, region = np.zeros((3, 12, 12, 12), dtype=bool)
    lesion[:3, :3, :3] = later[:3, :3, :3] = later[6:9, :3, :3] = region[6:9, :3, :3] = True
    hit, miss = (
        overlap_with_followup(mask, lesion, later) for mask in (region, region[::-1, ::-1])
    )
    rows = [
        {**KEY, "fold": fold, "grade": grade, "overlap": overlap}
        for fold, grade, overlap in (("f", "IV", hit), ("f", "III", miss), ("g", "IV", miss))
    ]
    table = followup_summary(pd.DataFrame(rows)).set_index("grade")
    assert table["n_patients"].to_dict() == {"IV": 2, "III": 1}
    assert table["n_mismatch"].to_dict() == {"IV": 2, "III": 1}
    assert table["n_colocated"].to_dict() == {"IV": 1, "III": 0}
    assert table["n_folds"].tolist() == [2, 2]
    assert table["n_grown"].to_dict() == {"IV": 2, "III": 1}
    assert table.loc["IV", "expected"] == pytest.approx(hit.chance + miss.chance)
    assert table.loc["IV", "share_flagged"] == pytest.approx((hit.share_flagged + 0) / 2)
    assert not len(followup_summary(pd.DataFrame()))


def test_without_growth_there_is_no_share_of_it_and_no_mismatch_is_expected_without_regions():
    lesion, region = np.zeros((2, 12, 12, 12), dtype=bool)
    lesion[:3, :3, :3] = region[6:9, :3, :3] = True
    stable = overlap_with_followup(region, lesion, lesion)
    quiet = overlap_with_followup(lesion, lesion, lesion)
    rows = [{**KEY, "fold": "f", "grade": "II", "overlap": overlap} for overlap in (stable, quiet)]
    (row,) = followup_summary(pd.DataFrame(rows)).to_dict("records")
    counts = ("n_patients", "n_grown", "n_mismatch", "n_colocated")
    assert [row[name] for name in counts] == [2, 0, 1, 0]
    assert row["expected"] == 0
    assert np.isnan([row["share_flagged"], row["share_expected"]]).all()


# Of whole comparisons -----------------------------------------------------------------------------


def test_folds_are_averaged_before_patients_and_their_spread_is_told(cohort, make_map, row_of):
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
        evaluate_detectors(
            cases, {"weak": one["weak"]}, rules={"f": FixedThreshold(0.7)}, controls=False
        )["scans"]
        for one in (maps, second)
    ]
    auc = np.array([one["auc"] for one in singles])
    assert row["auc"] == pytest.approx(auc.mean())
    assert row["auc_sd"] == pytest.approx(auc.mean(axis=0).std(ddof=1))
    assert row["auc_sd_folds"] == pytest.approx(auc.mean(axis=1).std(ddof=1))
    assert row["n_patients"] == 5
    limits = (
        tables["thresholds"]
        .query("method == 'weak' and rule == 'r'")
        .set_index("fold")["threshold"]
    )
    for fold, i in (("a", 2), ("b", 3)):
        expected = (
            HealthyRateThreshold(0.05).fit([free["weak"][i]], [healthy[i].scored]).threshold_
        )
        assert limits[fold] == expected
    assert set(tables["curves"].query("method == 'weak'")["fold"]) == {"a", "b"}
    assert not tables["areas"]["method"].duplicated().any()
