"""The boards of real people: their controls, denominators, and a table of one's own."""

import json

import numpy as np
import pandas as pd

from benchmarks.prediction import _people_controls as controls
from benchmarks.prediction import bench_people as people
from dmrifit import MODELS, MapsToMaps, Protocol, compare

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


def test_interpolation_goes_through_the_inputs_and_follows_one_exponential():
    signals = np.exp(-SOURCE.b / 1000 * np.array([[0.8], [1.7]]))
    control = controls.Interpolation(source=SOURCE, target=TARGET, model="t2-ivim-relative")
    predicted = control.fit(signals, signals).predict(signals)
    np.testing.assert_allclose(predicted, np.exp(-TARGET.b / 1000 * np.array([[0.8], [1.7]])), rtol=1e-12)


def test_the_fit_of_the_inputs_returns_the_curve_it_was_given():
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


def test_every_echo_time_is_divided_by_its_own_value():
    curves = synthetic().divided(30.0)
    np.testing.assert_array_equal(curves.signals[:, TARGET.b == 30], 1)
    source, target = people.parts(curves, (10.0, 60.0, 200.0, 800.0), 30.0)["other TE"]
    assert curves.protocol.b[source].tolist() == [10, 30, 60, 200, 800]
    unseen = np.setdiff1d(target, source)
    assert (curves.protocol.te[unseen] == 90).all()
    assert 30 not in curves.protocol.b[unseen]


def test_skills_of_the_denominators_are_those_of_a_comparison():
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
