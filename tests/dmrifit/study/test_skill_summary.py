"""Summaries: skill over the best constant, by plain numpy; what is undefined is marked."""

import numpy as np
import pytest

from dmrifit import Cohort, Evaluation, Protocol, SignalToSignal, compare
from dmrifit.study.report.sections.overview import headline_table
from dmrifit.study.skill_summary import MEASURES, headline
from dmrifit.study.summaries import Board

FULL = Protocol([0, 50, 200, 500, 800])
SOURCE = FULL.take([0, 3])
UNSEEN = [1, 2, 4]
PATIENTS = np.repeat(list("abcdef"), 8)


@pytest.fixture(scope="module")
def signals():
    """Synthetic regions of six patients: bi-exponential curves with noise."""
    rng = np.random.default_rng(7)
    f, d = rng.uniform(0.05, 0.4, 48), rng.uniform(0.5, 2.5, 48)
    decay = f[:, None] * np.exp(-FULL.b * 0.03) + (1 - f)[:, None] * np.exp(
        -d[:, None] * FULL.b / 1000
    )
    return 100 * decay * rng.normal(1, 0.01, (48, 5))


@pytest.fixture(scope="module")
def evaluation(signals):
    cohort = Cohort.from_signals(signals, FULL, PATIENTS, name="regions", synthetic=True)
    estimator = SignalToSignal("LR", source=SOURCE, target=FULL, model="ivim")
    return compare({"LR s2s": estimator}, cohort, random_state=0)


def row(evaluation, algorithm, parameters):
    table = evaluation.summary()
    table = table[(table["algorithm"] == algorithm) & (table["parameters"] == parameters)]
    assert len(table) == 1
    return table.iloc[0]


def best_constant(values, sizes):
    """Try every value."""
    costs = [(np.abs(value - values) / sizes).sum() for value in values]
    return values[int(np.argmin(costs))]


def errors(evaluation, kind):
    """Errors of LR and of the constant by patient, from predictions and plain loops."""
    predictions = {patient: evaluation.predictions["regions", patient] for patient in "abcdef"}
    answered, constant = {}, {}
    for patient, held_out in predictions.items():
        others = [p for name, p in predictions.items() if name != patient]
        truth = held_out.measured if kind == "signals" else held_out.reference
        training = np.concatenate(
            [p.measured if kind == "signals" else p.reference for p in others]
        )
        answer = (held_out.signals if kind == "signals" else held_out.maps)["LR s2s"]
        columns = UNSEEN if kind == "signals" else [held_out.names.index(kind)]
        lr, best = [], []
        for j in columns:
            size, sizes = np.abs(truth[:, j]), np.abs(training[:, j])
            lr.append(np.abs(answer[:, j] - truth[:, j]) / size)
            best.append(np.abs(best_constant(training[:, j], sizes) - truth[:, j]) / size)
        answered[patient], constant[patient] = np.concatenate(lr), np.concatenate(best)
    return answered, constant


@pytest.mark.parametrize("kind", ["signals", "f"])
def test_skill_is_one_minus_a_ratio_of_errors(evaluation, kind):
    answered, constant = errors(evaluation, kind)
    scores = row(evaluation, "LR", kind)
    by_patient = [1 - answered[p].mean() / constant[p].mean() for p in "abcdef"]
    np.testing.assert_allclose(scores["skill"], np.mean(by_patient), atol=1e-4)
    pooled = (
        1
        - np.concatenate(list(answered.values())).sum()
        / np.concatenate(list(constant.values())).sum()
    )
    np.testing.assert_allclose(scores["pooled_skill"], pooled, atol=1e-4)
    assert scores["skill_low"] < scores["skill"] < scores["skill_high"]
    assert (scores["n_patients"], scores["n_train"]) == (6, 5)


def test_a_constant_has_no_skill_and_its_correlation_is_marked(evaluation):
    for parameters, n in (("signals", 0), ("tissue", 18), ("f", 6)):
        scores = row(evaluation, "constant", parameters)
        assert (scores["skill"], scores["pooled_skill"]) == (0, 0)
        assert scores["n_undefined_pearson"] == n
    assert row(evaluation, "constant", "tissue")["pearson"] == 0
    assert row(evaluation, "constant", "tissue")["absolute_skill"] == 0
    perfect = row(evaluation, "perfect", "tissue")
    assert (perfect["skill"], perfect["absolute_skill"], perfect["n_undefined_pearson"]) == (
        1,
        1,
        0,
    )
    assert row(evaluation, "shuffled", "signals")["skill"] < 0.1


def test_the_headline_writes_intervals_and_marks_undefined_correlations(evaluation):
    summary = evaluation.summary()
    table = headline(summary).set_index("algorithm")
    assert list(table.index) == ["LR", "constant", "shuffled", "perfect"]
    signals = row(evaluation, "LR", "signals")
    low, high = signals["skill_low"], signals["skill_high"]
    assert table.loc["LR", "signal skill"] == f"{signals['skill']:.2f} [{low:.2f}, {high:.2f}]"
    assert table.loc["constant", ["map skill", "r"]].tolist() == ["0.00 [0.00, 0.00]", "0.00*"]
    assert table.loc["perfect", "r"] == "1.00"
    assert list(headline(summary[summary["parameters"] == "f"])["signal skill"]) == ["–"] * 4
    page = evaluation._repr_html_()
    assert table.loc["LR", "signal skill"] in page
    assert table.loc["LR", "signal skill"] in headline_table(Board.of(evaluation))


def test_the_summary_survives_files_and_the_order_of_rows(evaluation, tmp_path):
    summary = evaluation.summary()
    evaluation.write(tmp_path)
    assert Evaluation.read(tmp_path).summary().equals(summary)
    turned = Evaluation(evaluation.scores[::-1], evaluation.signals[::-1])
    keys = ["algorithm", "parameters"]
    assert (
        turned.summary()
        .sort_values(keys, ignore_index=True)
        .equals(summary.sort_values(keys, ignore_index=True))
    )
    wide, narrow = evaluation.summary(0.99), evaluation.summary(0.5)
    learned = (summary["algorithm"] == "LR").to_numpy()
    for measure in MEASURES[:2]:
        spread = [
            (t[f"{measure}_high"] - t[f"{measure}_low"])[learned].dropna() for t in (wide, narrow)
        ]
        assert (spread[0] > spread[1]).all()
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        evaluation.summary(95)


def test_one_patient_has_no_interval_and_references_of_zero_are_counted(evaluation):
    first = evaluation.scores[evaluation.scores["patient"] == "a"].copy()
    first.loc[first["metric"] == "f", ["n_undefined", "skill"]] = [3, np.nan]
    alone = Evaluation(first, evaluation.signals.iloc[:0]).summary()
    assert alone.filter(regex="_low$|_high$").isna().all(axis=None)
    f = alone[(alone["parameters"] == "f") & (alone["algorithm"] == "LR")].iloc[0]
    assert f["n_dropped"] == 3
    assert np.isnan(f["skill"])
    assert np.isfinite(f["absolute_skill"])
