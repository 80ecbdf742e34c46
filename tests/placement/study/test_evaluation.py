"""Placements are compared with experts' by known truth, an independent reference, and with fair peers."""

import numpy as np
import pytest
from scipy.stats import f_oneway, friedmanchisquare, pearsonr, spearmanr, ttest_rel, wilcoxon
from statsmodels.stats.multitest import multipletests

from placement.box.voxel import Voxel
from placement.search.scene import Scene
from placement.simulate.gliomas import simulate_gliomas
from placement.study.evaluation import control_placements, evaluate_placements, format_summary

N = 10


@pytest.fixture(scope="module")
def study():
    return simulate_gliomas(N, spacing=4, random_state=1)


@pytest.fixture(scope="module")
def tables(study):
    scenes, experts = study
    network = experts.mean(axis=1)
    objective = experts[:, 0].copy()
    objective[:, :3] += 12
    objective[:, 3:6] = 23 + np.arange(N)[:, None] % 2
    boxes = {"network": network, "objective": objective}
    seconds = {"network": 0.01, "objective": np.full(N, 0.02)}
    return evaluate_placements(scenes, experts, boxes, folds=np.arange(N) % 5 + 1, seconds=seconds)


def cell(tables, method, measure, case):
    cases = tables["cases"]
    return cases[(cases["method"] == method) & (cases["case"] == case)][measure].item()


@pytest.mark.filterwarnings("ignore:.*reaches the border")
def test_measures_of_a_case_are_those_of_its_boxes():
    scene = Scene(np.ones((40, 40, 40), bool), np.diag([2.0, 2, 2, 1]))
    one, two = Voxel((40, 40, 40), (20, 20, 20)), Voxel((50, 40, 40), (20, 20, 20))
    far = Voxel((0, 40, 40), (20, 20, 20), (0, 0, 10))
    found = evaluate_placements([scene], [[one.as_array(), two.as_array()]], {"a": [one], "b": [far]}, controls=False)
    assert cell(found, "experts", "dice_mean", 0) == pytest.approx(0.5)
    assert cell(found, "a", "dice_closest", 0) == pytest.approx(1)
    assert cell(found, "a", "dice_mean", 0) == pytest.approx(0.75)
    assert cell(found, "a", "f_tumor", 0) == pytest.approx(1)
    assert cell(found, "a", "volume", 0) == pytest.approx(8)
    assert cell(found, "a", "difference", 0) == pytest.approx(0)
    assert cell(found, "b", "rotated_axes", 0) == cell(found, "b", "rotated_angles", 0) == 1
    assert 0.4 < cell(found, "b", "f_tumor", 0) < 0.6


@pytest.mark.filterwarnings("ignore:.*reaches the border")
def test_the_closest_of_two_is_never_compared_with_the_only_other():
    rng = np.random.default_rng(0)
    scene = Scene(np.ones((40, 40, 40), bool), np.diag([2.0, 2, 2, 1]))
    boxes = np.concatenate([40 + rng.normal(0, 4, (400, 3, 3)), np.full((400, 3, 3), 22.0), np.zeros((400, 3, 3))], 2)
    found = evaluate_placements([scene] * 400, boxes[:, :2], {"third": boxes[:, 2]}, controls=False)
    mean = found["cases"].groupby("method")[["dice_closest", "dice_fair"]].mean()
    # The method is one more expert: the closest of two flatters it, the fair Dice does not.
    assert mean.loc["third", "dice_closest"] > mean.loc["experts", "dice_closest"] + 0.05
    assert mean.loc["third", "dice_fair"] == pytest.approx(mean.loc["experts", "dice_fair"], abs=0.02)


def test_tests_of_variance_are_scipys_with_the_degrees_of_freedom_of_cases_and_groups(tables):
    cases = tables["cases"].pivot(index="case", columns="method", values="dice_mean")
    values = cases[["experts", "network", "objective"]].to_numpy()
    rows = tables["anova"].query("measure == 'dice_mean'").set_index("test")
    expected = f_oneway(*values.T)
    assert rows.loc["one-way ANOVA", "statistic"] == pytest.approx(expected[0], rel=1e-10)
    assert rows.loc["one-way ANOVA", "p"] == pytest.approx(expected[1], rel=1e-8)
    assert rows.loc["Friedman", "statistic"] == pytest.approx(friedmanchisquare(*values.T)[0])
    # By hand: sums of squares of methods, and of what neither cases nor methods explain.
    centered = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    between = N * ((values.mean(0) - values.mean()) ** 2).sum() / 2
    by_hand = between / ((centered**2).sum() / (2 * (N - 1)))
    assert rows.loc["repeated-measures ANOVA", "statistic"] == pytest.approx(by_hand)
    rows = tables["anova"].query("measure == 'volume'").set_index("test")
    np.testing.assert_array_equal(rows.loc["one-way ANOVA", ["df1", "df2"]], [2, 3 * N - 3])
    within = rows.loc["repeated-measures ANOVA", ["df1", "df2"]]
    np.testing.assert_array_equal(within, [2, 2 * (N - 1)])
    assert rows.loc["Friedman", "df1"] == 2


def test_a_summary_holds_means_sample_deviations_and_medians_of_each_part(tables):
    cases = tables["cases"].query("method == 'objective'")
    first = cases["fold"] == 1
    parts = {"all": cases, "fold 1": cases[first], "other folds": cases[~first]}
    summary = tables["summary"].query("method == 'objective'").set_index(["part", "measure"])
    for part, rows in parts.items():
        for measure in ("dice_mean", "volume", "difference"):
            values = rows[measure].to_numpy()
            row = summary.loc[part, measure]
            assert row["n"] == len(values) > 1
            spread = np.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1))
            measured = row[["mean", "sd", "median"]].astype(float)
            np.testing.assert_allclose(measured, [values.mean(), spread, np.median(values)])
    control = tables["summary"].query("method == 'centroid box' and measure == 'difference' and part == 'all'")
    assert control["mean"].astype(str).tolist() == ["0.0"]
    assert (tables["summary"].query("method == 'single experts' and part == 'all'")["n"] == 2 * N).all()
    assert "±" in format_summary(tables, part="other folds").loc["experts", "f_tumor"]
    with pytest.raises(ValueError, match="fold 1"):
        format_summary(tables, part="fold 9")


def test_paired_tests_are_scipys_with_the_correction_of_statsmodels(tables):
    wide = tables["cases"].pivot(index="case", columns="method", values="volume")
    rows = tables["paired"].query("measure == 'volume'")
    pairs = [("experts", "network"), ("experts", "objective"), ("network", "objective")]
    assert list(zip(rows["a"], rows["b"], strict=True)) == pairs
    tested = rows[rows["t"].notna()]
    assert len(tested) >= 2
    for _, row in tested.iterrows():
        a, b = wide[row["a"]], wide[row["b"]]
        assert row["difference"] == pytest.approx((a - b).mean())
        assert (row["t"], row["t_p"]) == pytest.approx(tuple(ttest_rel(a, b)))
        signed = wilcoxon(a, b, method="exact")
        assert row["wilcoxon_p"] == pytest.approx(signed.pvalue)
    corrected = multipletests(tested["wilcoxon_p"], method="holm")[1]
    np.testing.assert_allclose(tested["holm_p"], corrected)


def test_correlations_with_the_volume_are_scipys_and_the_slope_of_agreement_is_over_the_mean(tables, study):
    cases = tables["cases"].query("method == 'objective'")
    rows = tables["correlations"].query("method == 'objective'").set_index("measure")
    for measure, values in (("dice_mean", cases["dice_mean"]), ("absolute_difference", np.abs(cases["difference"]))):
        row = rows.loc[measure]
        pearson = pearsonr(cases["tumor_volume"], values)
        spearman = spearmanr(cases["tumor_volume"], values)
        assert (row["pearson"], row["p"]) == pytest.approx(tuple(pearson))
        assert (row["spearman"], row["spearman_p"]) == pytest.approx(tuple(spearman))
        interval = pearson.confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    _, experts = study
    volumes = tables["cases"].pivot(index="case", columns="method", values="volume")["objective"]
    first = experts[:, 0, 3:6].prod(-1) / 1000
    slope, _ = np.polyfit((volumes + first) / 2, volumes - first, 1)
    row = tables["bland_altman"].query("method == 'objective' and against == 'expert 1'").iloc[0]
    assert row["slope"] == pytest.approx(slope)
    assert row["bias"] == pytest.approx((volumes - first).mean())


def test_differences_are_those_of_the_method_from_the_mean_of_experts():
    tumor = np.zeros((40, 40, 40), bool)
    tumor[5:35, 5:35, 5:35] = True
    scene = Scene(tumor, np.diag([2.0, 2, 2, 1]))
    sides = ((20, 20, 20), (20, 20, 30))
    experts = [[Voxel((39, 39, 39), size).as_array() for size in sides]]
    placements = {"a": [Voxel((39, 39, 39), (25, 24, 20))]}
    tables = evaluate_placements([scene], experts, placements, controls=False)
    assert cell(tables, "a", "difference", 0) == pytest.approx(12 - 10)
    assert cell(tables, "experts", "difference", 0) == pytest.approx(8 - 12)
    # One expert is left out in turn: the closest of the other one.
    dice = [2 * 8 / (8 + 12), 2 * 8 / (12 + 12)]
    assert cell(tables, "a", "dice_fair", 0) == pytest.approx(np.mean(dice))
    assert cell(tables, "a", "dice_closest", 0) == pytest.approx(dice[0])


def test_random_boxes_are_centered_in_the_tumor_and_controls_repeatable_and_of_sizes_of_experts(study):
    tumor = np.zeros((30, 30, 30), bool)
    tumor[4:8, 4:8, 4:8] = tumor[22:26, 20:26, 22:26] = True
    scene = Scene(tumor, np.diag([2.0, 2, 2, 1]))
    experts = np.tile([30.0, 30, 30, 20, 20, 20, 0, 0, 0], (40, 1, 1))
    boxes = control_placements([scene] * 40, experts)["random box"]
    index = np.rint(boxes[:, :3] / 2).astype(int)
    assert tumor[tuple(index.T)].all()
    assert len(np.unique(index, axis=0)) > 20
    scenes, experts = study
    first, again = (control_placements(scenes, experts, random_state=2) for _ in range(2))
    for name, boxes in first.items():
        np.testing.assert_array_equal(boxes, again[name])
    np.testing.assert_allclose(first["centroid box"][:, :3], [scene.centroid for scene in scenes])
    np.testing.assert_allclose(first["centroid box"][:, 3:6].prod(-1), experts[..., 3:6].prod(-1).mean())
    sides = experts[..., 3:6].reshape(N, -1, 3)
    for i, box in enumerate(first["random box"]):
        assert (np.delete(sides, i, axis=0) == box[3:6]).all(-1).any()


def test_every_form_of_icc_is_given_for_every_pair_and_bland_altman_too(tables):
    forms = tables["icc"].groupby(["method", "against"]).size()
    assert (forms == 3).all()
    assert ("expert 1", "expert 2") in forms.index
    assert ("network", "expert 2") in forms.index
    assert (tables["icc"]["low"] <= tables["icc"]["high"]).all()
    pair = tables["bland_altman"].query("method == 'expert 1' and against == 'expert 2'")
    means = tables["cases"].query("method == 'experts'")["difference"]
    assert pair["bias"].item() == pytest.approx(means.mean())
    assert pair["upper"].item() == pytest.approx(means.mean() + 1.96 * means.std())


def test_a_missing_expert_or_placement_leaves_the_rest(study):
    scenes, experts = study
    gaps = experts.copy()
    gaps[0, 1] = np.nan
    placed = experts[:, 0].copy()
    placed[3] = np.nan
    found = evaluate_placements(scenes, gaps, {"a": placed}, controls=False)
    assert np.isnan(cell(found, "experts", "dice_mean", 0))
    assert cell(found, "a", "dice_closest", 0) == pytest.approx(1)
    assert np.isnan(cell(found, "a", "f_tumor", 3))
    assert (found["paired"].query("measure == 'f_tumor'")["n"] == N - 1).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_cases_give_tables_with_reasons_and_no_warnings(study, n):
    scenes, experts = (one[:n] for one in study)
    tables = evaluate_placements(scenes, experts, {"a": experts[:, 0], "b": experts[:, 1] + 0.5})
    assert (tables["cases"]["method"] == "a").sum() == n
    for name in ("icc", "anova", "paired"):
        value = tables[name]["value" if name == "icc" else "statistic" if name == "anova" else "t"]
        assert (tables[name].loc[value.isna(), "reason"] != "").all()


def test_groups_that_are_alike_in_every_case_have_no_test_within_cases(study):
    scenes, experts = study
    same = np.repeat(experts[:, :1], 2, axis=1)
    tables = evaluate_placements(scenes, same, {"a": same[:, 0], "b": same[:, 0]}, controls=False)
    table = tables["anova"].set_index(["measure", "test"]).loc["f_tumor"]
    assert table.loc["one-way ANOVA", "statistic"] == pytest.approx(0, abs=1e-9)
    for test in ("repeated-measures ANOVA", "Friedman"):
        assert np.isnan(table.loc[test, "statistic"])
        assert table.loc[test, "reason"] == "the groups are alike in every case"


def test_what_rounding_leaves_of_a_spread_is_not_printed(study):
    scenes, experts = study
    text = format_summary(evaluate_placements(scenes, experts, {"a": experts[:, 0]}))
    shown = text.loc["centroid box", "volume"][-6:], text.loc["single experts", "difference"]
    assert shown == ("± 0.00", "–")
    assert not text.stack().str.contains("e-").any()
