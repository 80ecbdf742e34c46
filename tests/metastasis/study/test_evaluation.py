"""Tables of segmentations add up, and no control wins what counts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from dmrifit.io.components import drop_small, label_components
from dmrifit.stats.lesion_matching import lesion_scores, lesion_table
from metastasis import evaluate_segmentations, segment_scores
from metastasis.scans.cases import Case
from metastasis.segmentation.ensemble import merge_segmentations
from metastasis.study.controls import CONTROLS
from metastasis.study.evaluation import HEADLINES, SEGMENT_COUNTS, format_summary

SHAPE = (40, 38, 36)
AFFINE = np.diag([1.5, 1.5, 1.5, 1])


def ball(center, radius):
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) <= radius**2


def make_case(i):
    """Give a synthetic case: three lesions, or none in every fourth; every third has no prior."""
    rng = np.random.default_rng([3, i])
    label = np.zeros(SHAPE, bool)
    for corner in ((0, 0, 0), (16, 0, 12), (16, 14, 0)) if i % 4 != 3 else ():
        label |= ball(np.array(corner) + rng.integers(6, 14, 3), rng.uniform(1.3, 3.5))
    image = rng.normal(size=SHAPE).astype(np.float32)
    rows = pd.DataFrame({"number": [1, 2, 3], "status": ["new", "grown", "new"]}) if label.any() else None
    patient, prior = f"p{i if i > 3 else i // 2}", None if i % 3 == 0 else image
    volumes = {"label": label.astype(np.uint8), "prior": prior, "brain": ball((20, 19, 18), 25)}
    return Case(patient, image, **volumes, affine=AFFINE, synthetic=True, name=f"case {i}", lesions=rows)


def probability(case, i, *, wrong):
    """Shift lesions by a voxel, doubt the last, or every one of some scans, and invent some."""
    rng = np.random.default_rng([4, i])
    values = np.full(SHAPE, 0.05, np.float32)
    numbers = np.roll(label_components(case.label), 1, axis=i % 3)
    values[numbers > 0] = 0.9
    values[numbers == 3] = 0.6 if wrong else 0.2
    if i == 2:
        values[numbers == 1] = 0.2
    for level in [0.95, *[0.7] * (wrong - 1)] if wrong else ():
        values[ball(rng.integers(3, 33, 3), 1)] = level
    return values


@pytest.fixture(scope="module")
def cases():
    return [make_case(i) for i in range(8)]


@pytest.fixture(scope="module")
def predictions(cases):
    sure = [probability(case, i, wrong=0) for i, case in enumerate(cases)]
    loose = [probability(case, i, wrong=4) for i, case in enumerate(cases)]
    both = [merge_segmentations(b >= 0.5, a >= 0.5) for a, b in zip(sure, loose, strict=True)]
    return {"sure": sure, "loose": loose, "both": both, "mask": [one >= 0.8 for one in sure]}


@pytest.fixture(scope="module")
def tables(cases, predictions):
    return evaluate_segmentations(cases, predictions, families={"line": ["sure", "loose"]}, segment=9, n_bootstrap=200)


def row(tables, method, part="all"):
    summary = tables["summary"]
    return summary[(summary["part"] == part) & (summary["method"] == method)].iloc[0]


def test_the_summary_is_the_score_of_all_tables_and_parts_add_up(cases, predictions, tables):
    masks = [values >= 0.5 for values in predictions["loose"]]
    expected = lesion_scores(lesion_table(c.label, m, c.affine) for c, m in zip(cases, masks, strict=True))
    found = row(tables, "loose")
    assert {key: found[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    segments = segment_scores([c.label for c in cases], masks, segment=9, masks=[c.brain for c in cases])
    assert {key: found[f"segment_{key}"] for key in segments} == pytest.approx(segments)
    lesions = tables["lesions"].query("method == 'loose' and kind == 'lesion'")
    assert lesions["found"].mean() == pytest.approx(found["sensitivity"])
    assert lesions["dice"][lesions["found"]].mean() == pytest.approx(found["mDSC"])
    scans = tables["scans"]
    assert len(scans) == 8 * (5 + len(CONTROLS))
    for method in ("sure", "both, marked by both", *CONTROLS):
        parts = [row(tables, method, part) for part in ("with prior", "without prior")]
        for key in ("n_scans", "n_lesions", "n_found", "n_false_positives", "segment_n_positive"):
            assert parts[0][key] + parts[1][key] == row(tables, method)[key]
    assert row(tables, "sure", "without prior")["n_scans"] == 3
    assert row(tables, "sure")["n_lesion_free"] == 2


def test_no_score_depends_on_how_scans_are_stored(cases, predictions, tables):
    axes = {"affine": np.diag([-1.5, 1.5, 1.5, 1])}
    turned = [replace(c, **axes, image=c.image[::-1], label=c.label[::-1], brain=c.brain[::-1]) for c in cases]
    masks = {name: [values[::-1] for values in volumes] for name, volumes in predictions.items()}
    again = evaluate_segmentations(turned, masks, segment=9, n_bootstrap=0)
    pd.testing.assert_frame_equal(again["scans"], tables["scans"])


def test_the_prediction_of_everything_wins_no_headline(tables):
    summary = tables["summary"].query("part == 'all'").set_index("method")
    everything = summary.loc["all positive"]
    assert everything["sensitivity"] == 1  # what plain overlap gives it
    assert everything["n_false_positives"] == 2  # in the scans without lesions only
    for name in HEADLINES:
        ours, control = summary.loc["sure", name], everything[name]
        assert control < 0.05 < 0.5 < ours, name
        assert summary[name].idxmax() not in CONTROLS, name
        assert not summary.loc[list(CONTROLS[2:]), name].max() > ours / 2, name
    assert np.isnan(summary.loc["empty", "mDSC"])
    assert everything["n_bridged"] == everything["n_lesions"]
    assert everything["specificity"] == 0
    assert everything["segment_specificity"] == 0


def test_an_ensemble_is_scored_as_union_and_as_what_both_mark(cases, predictions, tables):
    union, sure = row(tables, "both"), row(tables, "both, marked by both")
    assert sure["n_false_positives"] == row(tables, "sure")["n_false_positives"] == 0
    assert union["n_false_positives"] > 10
    found = tables["ensemble"].set_index("method").loc["both"]
    assert found["false_candidates"] == union["n_false_positives"]
    assert found["false_candidates_per_scan"] == found["false_candidates"] / 8
    assert found["false_candidates_per_patient"] == found["false_candidates"] / 6
    assert found["both_precision"] == sure["precision"] == 1
    assert found["further_true"] == union["n_found"] - sure["n_found"]


def test_candidates_by_hand():
    label = np.zeros((12, 12, 12), int)
    label[1, 1, 1] = label[5, 5, 5] = label[9, 9, 9] = 1
    ensemble = np.zeros_like(label)
    ensemble[1, 1, 1], ensemble[5, 5, 5], ensemble[9, 1, 1], ensemble[1, 9, 1] = 2, 1, 1, 2
    scans = [Case("p", label.astype(np.float32), label=label) for _ in range(2)]
    options = {"controls": False, "n_bootstrap": 0}
    (scores,) = evaluate_segmentations(scans, {"a": [ensemble, 0 * label]}, **options)["ensemble"].to_dict("records")
    assert scores["sensitivity"] == pytest.approx(2 / 6)
    assert scores["both_sensitivity"] == pytest.approx(1 / 6)
    assert scores["both_precision"] == scores["further_true_per_scan"] == scores["precision"] == 0.5
    assert scores["false_candidates_per_patient"] == scores["further_true"] == 1
    # Of an ensemble the row stands where both models mark nothing.
    tables = evaluate_segmentations(scans, {"a": [ensemble == 1, 0 * label]}, threshold={"a": None}, **options)
    assert row(tables, "a")["n_found"] == tables["ensemble"]["further_true"].item() == 1
    assert row(tables, "a, marked by both")["n_found"] == tables["ensemble"]["both_sensitivity"].item() == 0


def test_intervals_hold_their_value_and_shrink_with_patients(cases, tables):
    intervals = tables["intervals"].dropna()
    assert (intervals["low"] <= intervals["value"] + 1e-12).all()
    assert (intervals["value"] <= intervals["high"] + 1e-12).all()
    whole = row(tables, "loose")
    one = tables["intervals"].query("part == 'all' and method == 'loose'").set_index("measure")
    for measure in ("sensitivity", "lesion_dice", "false_positives_per_scan"):
        assert one.loc[measure, "value"] == pytest.approx(whole[measure])
        assert one.loc[measure, "low"] < one.loc[measure, "high"]
    loose = [probability(case, i, wrong=4) for i, case in enumerate(cases)]
    again = evaluate_segmentations(cases, {"loose": loose}, n_bootstrap=200, segment=9)["intervals"]
    same = again.query("part == 'all' and method == 'loose'").set_index("measure")
    pd.testing.assert_frame_equal(one, same)


def scan(patient, *voxels, **properties):
    """Give a scan of 6³ voxels with a lesion in each of some voxels."""
    label = np.zeros((6, 6, 6), np.uint8)
    for voxel in voxels:
        label[voxel] = 1
    return Case(patient, label.astype(np.float32), label=label, **properties)


def test_intervals_of_a_sensitivity_are_binomial_and_those_of_none_and_of_all_have_a_width():
    n = 12
    scans = [scan(f"p{i}", (2, 2, 2)) for i in range(n)]
    # Every other patient's lesion is found.
    masks = [(case.label > 0) & (i % 2 == 0) for i, case in enumerate(scans)]
    intervals = evaluate_segmentations(scans, {"a": masks}, controls=False, n_bootstrap=4000)["intervals"]
    row = intervals[intervals["measure"] == "sensitivity"].iloc[0]
    # Of 12 patients the tails of 2.5 % shrink to 1.08 % (Hesterberg 2015).
    np.testing.assert_allclose(row[["low", "high"]].astype(float), binom.ppf((0.0108, 0.9892), n, 0.5) / n)
    scans = [scan(f"p{i}", (2, 2, 2)) for i in range(n)]
    lesions = [case.label > 0 for case in scans]
    found = {"none": [np.roll(lesion, 2, axis=0) for lesion in lesions], "all": lesions}
    tables = evaluate_segmentations(scans, found, controls=False, n_bootstrap=50)
    intervals = tables["intervals"].query("part == 'all'").set_index(["method", "measure"])
    # Wilson (1927): 0 of n reach up to z²/(n + z²).
    reach = 1.959964**2 / (n + 1.959964**2)
    for measure in ("strict_sensitivity", "strict_precision", "sensitivity", "precision"):
        bounds = intervals[["low", "high"]]
        np.testing.assert_allclose(bounds.loc[("none", measure)], (0, reach), atol=1e-6)
        np.testing.assert_allclose(bounds.loc[("all", measure)], (1 - reach, 1), atol=1e-6)


def test_no_interval_depends_on_the_order_of_scans_and_a_single_patient_has_none(cases, predictions, tables):
    options = {"segment": 9, "n_bootstrap": 200, "controls": False}
    order = [5, 0, 7, 3, 1, 6, 2, 4]
    loose = {"loose": [predictions["loose"][i] for i in order]}
    shuffled = evaluate_segmentations([cases[i] for i in order], loose, **options)
    for name, key, columns in (("froc", "method", ["sensitivity", "strict_sensitivity"]), ("areas", "name", ["froc"])):
        first, second = (table[name][table[name][key] == "loose"].reset_index(drop=True) for table in (tables, shuffled))
        for column in columns:
            ends = [f"{column}_low", f"{column}_high"]
            pd.testing.assert_frame_equal(first[[column, *ends]], second[[column, *ends]], check_exact=True)
            assert first.dropna(subset=ends)[column].between(*(first[end].dropna() for end in ends)).all()
            assert (first[ends[1]] - first[ends[0]]).max() > 0.05
    of_one = [replace(case, patient="p") for case in cases]
    single = evaluate_segmentations(of_one, {"loose": predictions["loose"]}, **options)
    for name in ("froc", "areas"):
        assert single[name].filter(regex="_(low|high)$").isna().all(axis=None)
    points = tables["froc"].query("method == 'loose'")["strict_sensitivity"]
    assert single["froc"]["strict_sensitivity"].tolist() == points.tolist()
    assert single["intervals"][["low", "high"]].isna().all(axis=None)


def test_the_overlap_of_voxels_by_hand():
    two, none = scan("p", (1, 1, 1), (1, 1, 2)), scan("q")
    one_of_two = np.zeros((6, 6, 6), bool)
    one_of_two[1, 1, 1] = True
    predictions = {"a": [one_of_two, none.label > 0], "b": [one_of_two, one_of_two]}
    table = evaluate_segmentations([two, none], predictions, controls=False, n_bootstrap=0)["scans"]
    dice = {name: rows["voxel_dice"].tolist() for name, rows in table.groupby("method")}
    assert dice["a"] == pytest.approx([2 / 3, np.nan], nan_ok=True)
    assert dice["b"] == pytest.approx([2 / 3, 0])


def test_controls_lose_small_findings_where_the_number_is_for_all():
    scans = [scan("p", (1, 1, 1)), scan("q", (4, 4, 4))]
    masks = {"a": [case.label > 0 for case in scans]}
    for least, n_wrong in ((2, 0), ({"a": 2}, 2)):
        summary = evaluate_segmentations(scans, masks, min_voxels=least, n_bootstrap=0)["summary"]
        by_method = summary[summary["part"] == "all"].set_index("method")
        assert by_method.loc["a", "n_found"] == 0
        assert by_method.loc[CONTROLS[2], "n_false_positives"] == n_wrong
    # Among scans of one patient there are no lesions of another, beside ensembles, too.
    tables = evaluate_segmentations(scans[:1], {"a": [2 * masks["a"][0].astype(np.uint8)]}, n_bootstrap=0)
    assert list(tables["ensemble"]["method"]) == ["a", *CONTROLS[:2], CONTROLS[3]]


def test_status_curves_calibration_and_areas_are_there(tables):
    status = tables["status"].query("method == 'sure'").set_index("status")["n"]
    assert dict(status) == {"new": 12, "grown": 6}
    assert set(tables["curves"]["method"]) == {"sure", "loose", *CONTROLS}
    assert set(tables["calibration"]["method"]) == {"sure", "loose"}
    assert tables["calibration"]["error"].between(0, 1).all()
    areas = tables["areas"].set_index("name")
    # Plainly, everything is nearly perfect; strictly it is nothing.
    assert areas.loc["all positive", "area_plain"] > 0.85
    assert areas.loc[list(CONTROLS), ["area", "froc"]].max().max() < 0.1 < areas.loc["loose", "area"]
    ensembles = tables["ensemble"].set_index("method")
    assert ensembles.loc["all positive", "both_sensitivity"] == 1
    assert ensembles.loc["all positive", "both_strict_precision"] == 0
    assert ensembles.loc["both", "both_strict_precision"] == 1
    assert ensembles["control"].to_dict() == {"both": False, **dict.fromkeys(CONTROLS, True)}
    assert areas.loc["sure", "area"] > areas.loc["loose", "area"]
    assert areas.loc["line", "kind"] == "family"
    assert areas.loc["sure", "froc"] > areas.loc["loose", "froc"]


def test_thresholds_are_those_of_each_method(cases, predictions):
    graded = {key: predictions[key] for key in ("sure", "loose")}
    high = evaluate_segmentations(cases, graded, threshold={"loose": 0.8}, controls=False, n_bootstrap=0)
    assert row(high, "loose")["n_false_positives"] == 8  # the certain ones among 32
    assert row(high, "sure")["n_false_positives"] == 0
    assert len(high["intervals"]) == len(high["ensemble"]) == 0
    assert set(high["summary"]["method"]) == {"sure", "loose"}


def test_small_findings_are_left_out_of_all_tables(cases, predictions):
    options = {"segment": 9, "n_bootstrap": 0, "controls": False, "thresholds": [0.5, 0.8]}
    graded = {key: predictions[key] for key in ("loose", "both", "mask")}
    # Balls of radius 1 have 7 voxels.
    found = evaluate_segmentations(cases, graded, min_voxels=8, **options)
    masks = {"loose": [drop_small(one >= 0.5, 8) for one in graded["loose"]]}
    masks["both"] = [one * drop_small(one, 8) for one in graded["both"]]
    masks["mask"] = [drop_small(one, 8) for one in graded["mask"]]
    expected = evaluate_segmentations(cases, masks, **options)
    for name in ("scans", "lesions", "summary", "status", "ensemble"):
        pd.testing.assert_frame_equal(found[name], expected[name])
    every = evaluate_segmentations(cases, graded, **options)
    assert row(found, "loose")["n_false_positives"] < row(every, "loose")["n_false_positives"]
    at = found["curves"].query("method == 'loose' and threshold == .5").iloc[0]
    assert at["n_false_positives"] == row(found, "loose")["n_false_positives"]
    with pytest.raises(ValueError, match="min_voxels must be a whole number"):
        evaluate_segmentations(cases, graded, min_voxels=0.5, **options)


def test_the_summary_is_written_for_each_part(tables):
    text = format_summary(tables, part="with prior")
    assert text.loc["sure", "precision"] == "1.000"
    assert text.loc["empty", "precision"] == "–"
    # Marking everything touches lesions, but strictly each finding is wrong.
    assert text.loc["all positive", ["n_false_positives", "wrong_per_scan"]].tolist() == ["1", "1.00"]
    with pytest.raises(ValueError, match="'some'"):
        format_summary(tables, part="some")


def test_segments_are_counted_as_by_hand_and_by_a_plain_loop():
    label, found = np.zeros((20, 20, 10)), np.zeros((20, 20, 10))
    # The first and the last of 3 × 3 × 2 segments of 8, those at the ends cut.
    label[0, 0, 0] = label[19, 19, 9] = 1
    found[7, 7, 7] = found[8, 0, 0] = 0.5
    scores = segment_scores([label], [found], segment=8)
    assert (scores["n_positive"], scores["n_negative"]) == (2, 16)
    assert scores["sensitivity"] == scores["precision"] == 0.5
    assert scores["specificity"] == pytest.approx(15 / 16)
    mask = np.zeros((20, 20, 10))
    mask[:8, :8] = 1
    inside = segment_scores([label], [found], segment=8, masks=[mask])
    # Those of the mask, and the lesion outside it.
    assert (inside["n_positive"], inside["n_negative"]) == (2, 1)
    label, found = np.random.default_rng(2).random((2, 13, 17, 11)) > 0.98
    counts = np.zeros((2, 2), int)
    for place in np.ndindex(3, 4, 3):
        tile = tuple(slice(5 * i, 5 * i + 5) for i in place)
        counts[int(label[tile].any()), int(found[tile].any())] += 1
    scores = segment_scores([label], [found], segment=5)
    assert scores["true_negatives"] == counts[0, 0]
    assert scores["true_positives"] == counts[1, 1]
    assert scores["precision"] == pytest.approx(counts[1, 1] / counts[:, 1].sum())


def test_scans_are_counted_with_their_masks_and_voxels_that_reach_the_threshold():
    label, answer, mask = np.zeros((3, 6, 6, 6))
    label[0, 0, 0] = answer[0, 0, 0] = answer[4, 4, 4] = 1
    mask[:3] = 1
    empty = np.zeros((6, 6, 6))
    scores = segment_scores([label, empty], [answer, answer], segment=3, masks=[None, mask])
    # Eight segments of the first scan, four of the second: the other four are outside of its mask.
    assert [scores[key] for key in SEGMENT_COUNTS] == [1, 11, 1, 6 + 3]
    assert scores["specificity"] == pytest.approx(9 / 11)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["sensitivity"] == 1
    label, probability = np.zeros((4, 4, 4)), np.full((4, 4, 4), 0.3)
    for threshold, n in ((0.3, 0), (0.31, 8)):
        scores = segment_scores([label], [probability], segment=2, threshold=threshold)
        assert scores["true_negatives"] == n
