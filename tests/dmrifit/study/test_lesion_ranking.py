"""Orders of lesions: by a prediction, by ADC and by the truth, beside scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from dmrifit.study.predictions import PatientPredictions
from dmrifit.study.report.sections.patients import lesion_ranking

B = np.array([0.0, 500.0, 1000.0, 0.0])
TE = np.array([70.0, 70.0, 70.0, 100.0])
NAMES = "S0", "K", "T2t"


def patient(name, adc, true, predicted, **changes):
    """A lesion of three voxels, whose medians are the numbers given."""
    around = np.array([[0.9], [1.0], [1.3]])
    measured = np.exp(-B * adc * around / 1000) * np.where(TE > 70, 0.2, 1.0)
    values = {
        "cohort": "A", "patient": name, "index": np.zeros((3, 3), int), "shape": (3, 1, 1), "affine": np.eye(4),
        "names": NAMES, "units": ("", "", "ms"), "labels": ("a", "b", "c", "d"), "b": B, "te": TE,
        "seen": np.array([True, True, True, False]), "reference": np.ones((3, 3)),
        "truth": np.column_stack([np.ones(3), true * around, 60 * np.ones(3)]), "measured": measured,
        "maps": {"LR s2s": np.column_stack([np.ones(3), predicted * around, np.arange(3) + predicted])}, "signals": {},
    }  # fmt: skip
    return PatientPredictions(**values | changes)


@pytest.fixture
def lesions():
    rng = np.random.default_rng(5)
    adc = rng.uniform(0.5, 2, 12)
    truth = 2 - adc + rng.normal(0, 0.3, 12)
    return adc, truth, truth + rng.normal(0, 0.1, 12)


@pytest.fixture
def evaluation(make_evaluation, lesions):
    predictions = {("A", f"p{i}"): patient(f"p{i}", *values) for i, values in enumerate(np.transpose(lesions))}
    return make_evaluation([{}], predictions=predictions)


def test_orders_are_compared_as_scipy_and_loops_do(evaluation, lesions):
    adc, truth, predicted = lesions
    row = lesion_ranking(evaluation).query("parameter == 'K'").iloc[0]
    assert row[["cohort", "parameter", "estimator", "n_lesions"]].tolist() == ["A", "K", "LR s2s", 12]
    assert row["rho_predicted"] == pytest.approx(stats.spearmanr(predicted, truth)[0])
    # K falls where ADC rises, so the order of ADC is turned round.
    assert row["rho_adc"] == pytest.approx(-stats.spearmanr(adc, truth)[0])
    assert row["rho_predicted_adc"] == pytest.approx(stats.spearmanr(predicted, -adc)[0])
    assert row["gain"] == pytest.approx(row["rho_predicted"] - row["rho_adc"])
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    pairs = [(i, j) for i in range(12) for j in range(i)]
    changed = [(i, j) for i, j in pairs if (predicted[i] < predicted[j]) != (-adc[i] < -adc[j])]
    right = [(i, j) for i, j in changed if (predicted[i] < predicted[j]) == (truth[i] < truth[j])]
    assert row["reordered"] == pytest.approx(len(changed) / len(pairs))
    assert row["reordered_rightly"] == pytest.approx(len(right) / len(changed))


def test_the_order_of_adc_itself_changes_nothing_and_a_constant_truth_has_no_order(make_evaluation, lesions):
    adc, truth, _ = lesions
    predictions = {("A", f"p{i}"): patient(f"p{i}", adc[i], truth[i], 9 - adc[i]) for i in range(12)}
    table = lesion_ranking(make_evaluation([{}], predictions=predictions)).set_index("parameter")
    k, t2t = table.loc["K"], table.loc["T2t"]
    assert (k["gain"], k["gain_low"], k["gain_high"], k["reordered"]) == (0, 0, 0, 0)
    assert k["rho_predicted_adc"] == pytest.approx(1)
    assert np.isnan(k["reordered_rightly"])
    assert (t2t["rho_predicted"], t2t["rho_adc"]) == (0, 0)


def test_few_lesions_and_those_without_truth_prediction_or_adc_have_no_order(make_evaluation, lesions):
    known = {("A", f"p{i}"): patient(f"p{i}", *values) for i, values in enumerate(np.transpose(lesions)[:5])}
    unknown = {("B", f"q{i}"): patient(f"q{i}", *values, truth=None) for i, values in enumerate(np.transpose(lesions))}
    table = lesion_ranking(make_evaluation([{}], predictions=known | unknown))
    assert len(table) == 0
    assert "gain" in table
    predictions = {("A", f"p{i}"): patient(f"p{i}", *values) for i, values in enumerate(np.transpose(lesions))}
    predictions["A", "p0"].maps["LR s2s"][:] = np.nan
    predictions["A", "p1"].seen[1:] = False
    assert lesion_ranking(make_evaluation([{}], predictions=predictions))["n_lesions"].tolist() == [10, 10]
