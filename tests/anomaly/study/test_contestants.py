"""Who is compared on which scans by which rules, and what is refused before any work."""

from dataclasses import replace

import numpy as np
import pytest

from anomaly.detectors.thresholds import (
    BestDiceThreshold,
    FixedThreshold,
    HealthyRateThreshold,
    MeanPoolThreshold,
    OtsuThreshold,
)
from anomaly.study.contestants import (
    AS_GIVEN,
    Bench,
    checked_rules,
)
from anomaly.study.evaluation import evaluate_detectors

SHAPE = (18, 20, 16)


@pytest.fixture
def bench(cohort):
    cases, _, healthy, _ = cohort(50)
    return Bench(cases, healthy, 3, 26, 1, True)


def test_what_counts_is_matter_and_lesions_are_those_in_it(cohort):
    cases, _, healthy, _ = cohort(50)
    in_fluid = cases[0].lesion.copy()
    in_fluid[cases[0].tissue == 3] = True
    cases[0] = replace(cases[0], lesion=in_fluid, followup=None)
    cases[1] = replace(cases[1], lesion=None, followup=None)
    bench = Bench(cases, healthy, 3, 18, 2, False)
    assert bench.matching == {"connectivity": 18, "min_overlap": 2}
    matter = (cases[0].tissue == 1) | (cases[0].tissue == 2) | (cases[0].tissue == 4)
    np.testing.assert_array_equal(bench.scored[0], matter)
    np.testing.assert_array_equal(bench.lesions[0], in_fluid & matter)
    assert not bench.lesions[1].any()
    assert [
        len(scans) for scans in (bench.strata, bench.healthy_strata, bench.healthy_scored)
    ] == [
        5,
        4,
        4,
    ]


def test_the_spacing_is_that_of_all_scans_or_none(bench, cohort):
    assert bench.spacing == (4.0, 4.0, 4.0)
    cases, _, healthy, _ = cohort(50)
    healthy[2] = replace(healthy[2], affine=np.diag([4.0, 4.0, 4.1, 1.0]))
    assert Bench(cases, healthy, 3, 26, 1, True).spacing is None


def test_rules_are_new_ones_that_know_the_size_of_voxels():
    rules = {
        "pool": MeanPoolThreshold(9.6),
        "own": {"a": FixedThreshold(1.0)},
        "otsu": OtsuThreshold(),
    }
    checked = checked_rules(rules, ["a", "b"], (1.0, 2.0, 3.0), has_healthy=False)
    assert checked["a"]["pool"].spacing == (1.0, 2.0, 3.0)
    assert rules["pool"].spacing is None
    assert checked["a"]["otsu"] is not rules["otsu"]
    assert list(checked["a"]) == ["pool", "own", "otsu"]
    assert list(checked["b"]) == ["pool", "otsu"]
    assert checked["a"]["own"].value == 1.0
    with_spacing = checked_rules(
        {"pool": MeanPoolThreshold(9.6, spacing=2.4)}, ["a"], None, has_healthy=False
    )
    assert with_spacing["a"]["pool"].spacing == 2.4


def test_with_validation_the_threshold_is_theirs_alone(cohort, row_of):
    cases, maps, healthy, free = cohort(34)
    rules = {"rate": HealthyRateThreshold(0.05)}
    tables = evaluate_detectors(
        cases, maps, healthy=healthy[:1], healthy_maps={k: v[:1] for k, v in free.items()},
        validation=healthy[1:], validation_maps={k: v[1:] for k, v in free.items()}, rules=rules, controls=False,
    )  # fmt: skip
    limit = (
        HealthyRateThreshold(0.05)
        .fit(free["strong"][1:], [case.scored for case in healthy[1:]])
        .threshold_
    )
    row = row_of(tables["thresholds"], method="strong")
    assert (row["threshold"], row["n_fitted"]) == (limit, 3)
    rate = (free["strong"][0][healthy[0].scored] > limit).mean()
    assert row_of(tables["healthy"], method="strong")["false_positive_rate"] == pytest.approx(rate)


def test_rules_may_be_for_some_methods_only_and_masks_are_taken_as_given(cohort, row_of):
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


def test_without_healthy_scans_rules_that_need_them_are_left_out(cohort):
    cases, maps, _, _ = cohort(35)
    tables = evaluate_detectors(cases, maps, controls=False, lesion_wise=False)
    assert "healthy rate" not in set(tables["summary"]["rule"])
    assert len(tables["summary"])
    assert not len(tables["curves"])
    assert not len(tables["areas"])
    assert not len(tables["lesions"])
    with pytest.raises(ValueError, match="'rate' needs healthy scans"):
        evaluate_detectors(cases, maps, rules={"rate": HealthyRateThreshold()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": []}, "no cases"),
        ({"maps": {}}, "no maps"),
        ({"maps": {"empty": None}}, "names of their own"),
        ({"n": 3}, "maps: 3 for 5 scans"),
        ({"nan": True}, "strong: maps of lesion 0 has 1 non-finite value"),
        ({"shape": True}, "one of shape \\(17, 20, 16\\) for lesion 0"),
        ({"mixed": True}, "some maps are masks"),
        ({"healthy_maps": None}, "healthy and healthy_maps belong together"),
        ({"healthy_maps": {"weak": None}}, "healthy_maps are of \\['weak'\\]"),
        ({"validation": []}, "validation and validation_maps belong together"),
        ({"rules": {"x": 0.5}}, "rule 'x' must be a rule of anomaly.detectors.thresholds, not float"),
        ({"rules": {AS_GIVEN: OtsuThreshold()}}, "is the name for masks"),
        ({"rules": {"x": {"nobody": OtsuThreshold()}}}, "which are not among the methods"),
        ({"folds": ["a", "a"]}, "folds need names of their own"),
        ({"folds": ["a", "b", "c"]}, "2 entries for 3 folds|5 entries for 3 folds"),
        ({"opening": 0}, "size must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(change, message, cohort):
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


def test_scans_that_may_not_meet_are_refused(cohort):
    cases, maps, healthy, free = cohort(51)
    with pytest.raises(ValueError, match="healthy scans that have lesions: lesion 0"):
        evaluate_detectors(
            cases, maps, healthy=cases[:1], healthy_maps={k: v[:1] for k, v in maps.items()}
        )
    known = [replace(case, patient=cases[0].patient) for case in healthy]
    with pytest.raises(ValueError, match="healthy scans that are of patients among the cases"):
        evaluate_detectors(cases, maps, healthy=known, healthy_maps=free)
    with pytest.raises(ValueError, match="need healthy scans of different patients: healthy 0"):
        evaluate_detectors(
            cases, maps, healthy=healthy, healthy_maps=free, validation=healthy[:1],
            validation_maps={k: v[:1] for k, v in free.items()},
        )  # fmt: skip
    with pytest.raises(ValueError, match="none of 4 cases has a lesion"):
        evaluate_detectors(healthy, free)
    with pytest.raises(ValueError, match="no white or gray matter to score in lesion 0"):
        evaluate_detectors([replace(cases[0], tissue=np.full(SHAPE, 3)), *cases[1:]], maps)
    with pytest.raises(ValueError, match="windows in mm, and voxels differ"):
        evaluate_detectors([replace(cases[0], affine=np.eye(4)), *cases[1:]], maps)
    with pytest.raises(ValueError, match="needs healthy scans of two patients"):
        evaluate_detectors(
            cases, maps, healthy=healthy[:1], healthy_maps={k: v[:1] for k, v in free.items()}
        )
