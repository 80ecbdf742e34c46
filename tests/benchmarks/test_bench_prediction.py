"""Boards of real people, fits of real scans, both truths and intervals: controls, scores, stored results."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks.fitting import bench_people_fits as fits
from benchmarks.prediction import _people_controls as controls
from benchmarks.prediction import bench_meningiomas, bench_truths
from benchmarks.prediction import bench_people as people
from benchmarks.prediction import bench_uncertainty as bench
from dmrifit import MODELS, MapsToMaps, Protocol, compare, simulate_cohort

B = np.array([0.0, 10, 30, 60, 120, 200, 500, 800])
SOURCE = Protocol(B[[0, 1, 3, 5, 7]], 45)
TARGET = Protocol(np.tile(B, 2), np.repeat([45.0, 90.0], len(B)))


def synthetic(n_people=3, n_regions=4, seed=5):
    """Curves of invented people, each divided by its own b = 0, with two echo times and little noise."""
    rng = np.random.default_rng(seed)
    n = n_people * n_regions
    truth = np.column_stack(
        [np.ones(n), rng.uniform(0.1, 0.3, n), np.full(n, 15.0), rng.uniform(1, 2, n), np.full(n, -0.01)]
    )
    signals = MODELS["t2-ivim-relative"].signal(truth, TARGET) + rng.normal(scale=0.003, size=(n, len(TARGET)))
    patients = [f"P{i}" for i in range(n_people) for _ in range(n_regions)]
    return people.Curves(signals, TARGET, patients, [f"R{i % n_regions}" for i in range(n)]).divided(0.0)


def test_interpolation_goes_through_the_inputs_and_fits_return_the_curve_they_were_given():
    signals = np.exp(-SOURCE.b / 1000 * np.array([[0.8], [1.7]]))
    control = controls.Interpolation(source=SOURCE, target=TARGET, model="t2-ivim-relative")
    predicted = control.fit(signals, signals).predict(signals)
    np.testing.assert_allclose(predicted, np.exp(-TARGET.b / 1000 * np.array([[0.8], [1.7]])), rtol=1e-12)
    truth = np.array([[1.0, 0.2, 15.0, 1.3]])
    signals = MODELS["ivim"].signal(truth, Protocol(SOURCE.b))
    control = controls.InputFit(source=SOURCE, target=TARGET, model="t2-ivim-relative")
    predicted = control.fit(signals, signals).predict(signals)
    np.testing.assert_allclose(predicted, MODELS["ivim"].signal(truth, Protocol(TARGET.b)), rtol=2e-3)


def test_metrics_of_other_b_values_are_those_of_a_clinical_scan():
    b = np.array([0.0, 50, 100, 400, 900])
    signals = 7.0 * np.exp(-b / 1000 * np.array([[1.2], [0.7]]))
    source = Protocol(b)
    ours = controls.CurveMetricsToMaps("LR", source=source, target=source, model="ivim").clinical(signals)
    theirs = MapsToMaps("LR", source=source, target=source, model="ivim").clinical(signals)
    np.testing.assert_allclose(ours.features, theirs.features, atol=1e-5)
    np.testing.assert_allclose(ours.s0, theirs.s0, rtol=1e-5)


def test_every_echo_time_is_divided_by_its_own_value_and_skills_are_those_of_a_comparison():
    curves = synthetic().divided(30.0)
    np.testing.assert_array_equal(curves.signals[:, TARGET.b == 30], 1)
    source, target = people.parts(curves, (10.0, 60.0, 200.0, 800.0), 30.0)["other TE"]
    assert curves.protocol.b[source].tolist() == [10, 30, 60, 200, 800]
    unseen = np.setdiff1d(target, source)
    assert (curves.protocol.te[unseen] == 90).all()
    assert 30 not in curves.protocol.b[unseen]
    curves = synthetic()
    source, target = people.parts(curves, (10.0, 60.0, 200.0, 800.0), 0.0)["other b"]
    contestants = people.estimators(("LR",), TARGET.take(source), TARGET.take(target), "ivim")
    contestants = {name: contestants[name] for name in ("LR s2s", "ridge s2s", "interpolation s2s")}
    skills = people.skills_without(curves, contestants, source, target)
    evaluation = compare(contestants, curves.cohort("all", ["P0", "P1", "P2"]), train_mask="body", random_state=1)
    signals = evaluation.signals[evaluation.signals["contrast"] == "all unseen"]
    for name, values in skills.items():
        np.testing.assert_allclose(signals[signals["estimator"] == name]["skill"], values, rtol=1e-6)
    assert skills["LR s2s"].mean() > 0.5


@pytest.mark.parametrize(
    ("low", "t_low", "high", "verdict"),
    [
        (0.1, 0.05, 0.3, "better than the constant"),
        (0.1, -0.05, 0.3, "no evidence"),
        (-0.4, -0.5, -0.1, "worse than the constant"),
    ],
)
def test_a_verdict_needs_both_intervals(low, t_low, high, verdict):
    skill = {"mean": low, "low": low, "high": high, "t_low": t_low, "t_high": high}
    row = {"algorithm": "LR", "strategy": "s2s", "skill": skill, "pooled_skill": 0.1, "relative_error": 0.2}
    board = {"source_b": [10.0], "other b": [row]}
    assert f"| {verdict} |" in people.markdown({"kidneys": [board], "denominators": {"source_b": [10.0]}})


def test_a_table_of_ones_own_is_compared_by_one_command(tmp_path, run_script):
    curves = synthetic(n_regions=2)
    rows = [
        {"patient": patient, "region": region, "b": b, "te": te, "signal": 90 * signal}
        for patient, region, values in zip(curves.patients, curves.regions, curves.signals, strict=True)
        for b, te, signal in zip(TARGET.b, TARGET.te, values, strict=True)
        if b != 120 and (te == 45 or b in (0, 500))
    ]
    table, out = tmp_path / "regions.csv", tmp_path / "result.json"
    pd.DataFrame(rows).to_csv(table, index=False)
    words = ("--regions", table, "--source-b", "10,60,200,800", "--quick", "--out", out)
    assert "| **ridge s2s** |" in run_script("bench_people", *words)
    result = json.loads(out.read_text())
    head = next(row for row in result["kidneys"][0]["other b"] if row["algorithm"] == "ridge")
    assert set(head["by_person"]) == {"P0", "P1", "P2"}
    assert "goals" not in result


def test_halves_share_only_what_was_measured_once_and_a_spread_of_one_standard_error_has_the_ratio_one():
    protocol = Protocol([0, 500, 500, 500, 0, 500], [50, 50, 50, 50, 80, 80])
    first, second = fits.halves(protocol)
    assert first.tolist() == [0, 1, 3, 4, 5]
    assert second.tolist() == [0, 2, 4, 5]
    rng = np.random.default_rng(4)
    errors = rng.uniform(0.5, 2, (20000, 1))
    values = [10 + errors * rng.normal(size=errors.shape) for _ in range(2)]
    visits = [SimpleNamespace(names=("D",), parameters=one, standard_errors=errors) for one in values]
    labels = np.repeat([1, 2], 10000)
    row = fits.retest(visits, labels)[0]
    assert row["ratio_to_standard_error"] == pytest.approx(1, abs=0.03)
    medians = np.array([[np.median(v.parameters[labels == one]) for v in visits] for one in (1, 2)])
    wcv = medians.std(axis=1, ddof=1) / medians.mean(axis=1)
    assert row["wcv_regions"] == pytest.approx(np.sqrt((wcv**2).mean()), abs=1e-4)


def test_the_stored_result_is_as_physics_demands_and_its_picture_is_there():
    result = json.loads(fits.RESULT.read_text(encoding="utf-8"))
    assert result["leg"]["shape"] == [160, 160, 25, 42]
    assert len(result["leg"]["muscles"]) == 14
    assert all(goal["met"] for goal in result["goals"])
    assert all(row["largest_slice_median"] <= 0.01 for row in result["oil"])
    picture = fits.RESULT.with_name(result["picture"]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 50_000 < len(picture) < 300_000


def test_fits_to_walks_have_small_residuals_and_too_little_kurtosis():
    result = bench_truths.fit_biases(n_tissues=40, n_repeats=3)
    assert 0.01 < result["residual_percent"]["median"] < 0.3
    median = {(row["snr"], row["parameter"]): row["median_percent"] for row in result["biases"]}
    for snr in (None, 60.0, 30.0):
        assert abs(median[snr, "f"]) < 15
        assert -12 < median[snr, "Dt"] < 3
        assert abs(median[snr, "T2t"]) < 3
    assert -20 < median[None, "K"] < 0
    assert -30 < median[30.0, "K"] < median[None, "K"] - 3
    coverage = {(row["snr"], row["level"], row["parameter"]): row for row in result["coverage"]}
    assert coverage[60.0, 0.95, "K"]["fit without noise"] > 0.9 > coverage[60.0, 0.95, "K"]["truth"]


def test_ranks_of_algorithms_are_compared_between_the_truths():
    def scores(biases):
        rows = [
            {"cohort": "A", "strategy": "s2s", "algorithm": name, "abs_bias": bias}
            for name, bias in zip(("LR", "RFR", "ETR"), biases, strict=True)
        ]
        return pd.DataFrame(rows).assign(dispersion=0.3, pearson=0.5, pearson_truth=0.4)

    tables = {"formula": scores([0.1, 0.2, 0.3]), "walk": scores([0.2, 0.1, 0.3])}
    ranks = {row["score"]: row for row in bench_truths.rank_correlations(tables)}
    assert ranks["abs_bias"]["n_algorithms"] == 3
    assert ranks["abs_bias"]["rank_correlation"] == 0.5
    assert ranks["abs_bias"]["walk"] == pytest.approx({"LR": 0.2, "RFR": 0.1, "ETR": 0.3})
    assert ranks["pearson"]["rank_correlation"] is None


def test_a_second_draw_shares_the_signal_and_not_the_noise():
    cohort = simulate_cohort("cohort1", 2, shape=(16, 16, 3), random_state=0)
    sample = bench.drawn(cohort, "body", 1)
    column = bench.NAMES.index("T2t")
    errors = [maps[:, column] - sample.truth[:, column] for maps in (sample.maps, sample.repeated)]
    assert np.corrcoef(sample.maps[:, column], sample.repeated[:, column])[0, 1] > 0.5
    assert abs(np.corrcoef(errors)[0, 1]) < 0.3


def test_scores_are_means_over_patients_and_by_quintile():
    width = np.linspace(1, 2, 100)
    voxels = pd.DataFrame({"parameter": "K", "patient": ["a"] * 20 + ["b"] * 80, "low": 0.0})
    voxels = voxels.assign(high=width, predicted=0.5, reference=0.4, repeated=-1.0, truth=0.4)
    voxels.loc[:9, "reference"] = -1
    [row] = bench.scored(voxels, {"region": "body"})
    assert row["coverage"] == 0.75
    assert row["worst_patient"] == 0.5
    assert row["quintiles"] == [0.5, 1, 1, 1, 1]
    assert (row["coverage_repeated"], row["coverage_truth"]) == (0, 1)


@pytest.fixture(scope="module")
def synthetic_tumors(tmp_path_factory):
    """Ten synthetic patients whose MKT is a square of MD, whose MKI is noise, and whose images have a gain of their own."""
    rng = np.random.default_rng(611)
    rows = []
    for patient in range(10):
        md, fa = rng.uniform(0.5, 1.5, 80), rng.uniform(0, 0.5, 80)
        images = rng.uniform(0.5, 2, (2, 1)) * 100 * (1 + 0.1 * rng.normal(size=(2, 80)))
        columns = {"MD": md, "FA": fa, "MKT": (md - 2) ** 2, "MKI": rng.normal(size=80), "uFA": fa + 0.3 * md}
        rows.append(pd.DataFrame({"patient": f"p{patient}", **columns, "T1w": images[0], "FLAIR": images[1]}))
    folder = tmp_path_factory.mktemp("data") / "meningiomas"
    folder.mkdir()
    pd.concat(rows).to_csv(folder / "voxels.csv.gz", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMRIFIT_DATA", str(folder.parent))
        return bench_meningiomas.read()


def test_images_have_one_scale_in_all_patients(synthetic_tumors):
    images = synthetic_tumors.groupby("patient")[["T1w", "FLAIR", "T1w by patient", "FLAIR by patient"]].median()
    assert images.T1w.max() > 2 * images.T1w.min()
    np.testing.assert_allclose(images[["T1w by patient", "FLAIR by patient"]], 1, rtol=1e-12)


def test_tumor_maps_that_follow_from_the_inputs_are_predicted_and_noise_is_not(synthetic_tumors):
    rows = list(bench_meningiomas.left_out(synthetic_tumors, "MD, FA", bench_meningiomas.RIDGE, weigh="patients"))
    skill = pd.DataFrame(rows).pivot_table("skill", "patient", "target")
    assert len(skill) == 10
    assert skill[["MKT", "uFA"]].min().min() > 0.99
    assert abs(skill.MKI.mean()) < 0.1
    only_md = list(bench_meningiomas.left_out(synthetic_tumors, "MD", bench_meningiomas.RIDGE, weigh="voxels"))
    summary = bench_meningiomas.summarized(pd.DataFrame(rows + only_md))
    pooled = {row["target"]: row["pooled"] for row in summary if row["inputs"] == "MD"}
    lost = {row["target"]: row["minus_headline"]["mean"] for row in summary if row["inputs"] == "MD"}
    assert lost["uFA"] < -0.5 < -0.05 < lost["MKT"] <= 0
    assert pooled["MKT"] > 0.98
    # Without FA its part of µFA stays unknown.
    truth = synthetic_tumors
    unknown = np.abs(truth.FA - 0.25).sum() / np.abs(truth.uFA - truth.uFA.median()).sum()
    assert pooled["uFA"] == pytest.approx(1 - unknown, abs=0.03)
    shuffled = list(bench_meningiomas.left_out(synthetic_tumors, "MD", bench_meningiomas.SHUFFLED, weigh="patients"))
    assert pd.DataFrame(shuffled).skill.max() < 0.1


def test_a_patient_that_is_left_out_changes_no_prediction_of_its_own(synthetic_tumors):
    """The errors of a patient are the same by plain numpy, with its targets far away while the others are learned."""
    moved = synthetic_tumors.copy()
    own = moved.patient == "p3"
    moved.loc[own, "MKT"] += 50
    one, other = (
        {row["patient"]: row for row in bench_meningiomas.left_out(table, "MD", "LR", weigh="voxels") if row["target"] == "MKT"}
        for table in (synthetic_tumors, moved)
    )
    train = ~own
    X = np.stack([np.ones(len(moved)), moved.MD], axis=1)
    line = np.linalg.lstsq(X[train], moved.MKT[train], rcond=None)[0]
    for table, rows in ((synthetic_tumors, one), (moved, other)):
        error = np.abs(X[own] @ line - table.MKT[own]).sum()
        constant = np.abs(np.median(table.MKT[train]) - table.MKT[own]).sum()
        assert rows["p3"]["error"] == pytest.approx(error, rel=1e-9)
        assert rows["p3"]["constant_error"] == pytest.approx(constant, rel=2e-3)


def test_intervals_of_tumor_maps_cover_patients_that_were_left_out(synthetic_tumors):
    shares = pd.concat([bench_meningiomas.covered(synthetic_tumors, "MD, FA", f"p{i}") for i in range(3)])
    by_target = shares.groupby("target")[["covered", "width"]].mean()
    assert 0.8 < by_target.covered["MKI"] < 0.98
    assert by_target.width["MKT"] < 0.1
