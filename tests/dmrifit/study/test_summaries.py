"""Summaries of a comparison, by hand and by plain numpy and pandas; what is undefined is marked."""

import numpy as np
import pandas as pd
import pytest

from dmrifit import Cohort, Evaluation, Protocol, SignalToSignal, compare
from dmrifit.report.numerals import fixed
from dmrifit.study.summaries import (
    MEASURES,
    TEXTS,
    Board,
    headline,
    headline_notes,
    largest,
    size_summary,
    tissue,
)

FULL = Protocol([0, 50, 200, 500, 800])
SOURCE = FULL.take([0, 3])
UNSEEN = [1, 2, 4]
PATIENTS = np.repeat(list("abcdef"), 8)


@pytest.fixture(scope="module")
def signals():
    """Synthetic regions of six patients: bi-exponential curves with noise."""
    rng = np.random.default_rng(7)
    f, d = rng.uniform(0.05, 0.4, 48), rng.uniform(0.5, 2.5, 48)
    decay = f[:, None] * np.exp(-FULL.b * 0.03) + (1 - f)[:, None] * np.exp(-d[:, None] * FULL.b / 1000)
    return 100 * decay * rng.normal(1, 0.01, (48, 5))


@pytest.fixture(scope="module")
def noisy(signals):
    """The same curves as if they were free of noise, with noise of 2 on top of them."""
    rng = np.random.default_rng(8)
    return np.hypot(signals + rng.normal(0, 2, signals.shape), rng.normal(0, 2, signals.shape))


def compared(signals, **known):
    cohort = Cohort.from_signals(signals, FULL, PATIENTS, name="regions", synthetic=True, **known)
    options = {"source": SOURCE, "target": FULL, "model": "ivim"}
    estimators = {f"{name} s2s": SignalToSignal(name, **options) for name in ("LR", "constant")}
    return compare(estimators, cohort, random_state=0)


@pytest.fixture(scope="module")
def repeated(signals, noisy):
    return compared(noisy, sigma=2.0, noise_free=signals)


@pytest.fixture(scope="module")
def evaluation(signals):
    return compared(signals)


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
        training = np.concatenate([p.measured if kind == "signals" else p.reference for p in others])
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
    pooled = 1 - np.concatenate(list(answered.values())).sum() / np.concatenate(list(constant.values())).sum()
    np.testing.assert_allclose(scores["pooled_skill"], pooled, atol=1e-4)
    assert scores["skill_low"] < scores["skill"] < scores["skill_high"]
    assert (scores["n_patients"], scores["n_train"]) == (6, 5)


def test_a_constant_has_no_skill_and_its_correlation_is_marked(evaluation):
    for parameters, n in (("signals", 6), ("tissue", 18), ("f", 6)):
        scores = row(evaluation, "constant", parameters)
        assert (scores["skill"], scores["pooled_skill"]) == (0, 0)
        assert scores["n_undefined_pearson"] == n
    assert row(evaluation, "constant", "tissue")["pearson"] == 0
    assert row(evaluation, "constant", "tissue")["absolute_skill"] == 0
    perfect = row(evaluation, "perfect", "tissue")
    assert (perfect["skill"], perfect["absolute_skill"], perfect["n_undefined_pearson"]) == (1, 1, 0)
    assert row(evaluation, "shuffled", "signals")["skill"] < 0.1


def test_the_skill_of_a_copy_and_of_the_truth_of_signals_by_hand(evaluation, repeated, noisy, signals):
    _, constant = errors(evaluation, "signals")
    skills = []
    for patient in "abcdef":
        measured = evaluation.predictions["regions", patient].measured
        # Of b = 0 and 500, the nearest to 50, 200 and 800 are 0, 0 and 500.
        copied, unseen = measured[:, [0, 0, 3]], measured[:, UNSEEN]
        skills.append(1 - (np.abs(copied - unseen) / unseen).sum() / constant[patient].sum())
    np.testing.assert_allclose(row(evaluation, "copy", "signals")["skill"], np.mean(skills), atol=1e-4)
    _, constant = errors(repeated, "signals")
    skills = []
    for patient in "abcdef":
        rows = np.equal(PATIENTS, patient)
        # Images are divided by the 95th percentile of their own signals at b = 0.
        scale = np.percentile(noisy[rows, 0], 95)
        measured, true = noisy[rows][:, UNSEEN] / scale, signals[rows][:, UNSEEN] / scale
        skills.append(1 - (np.abs(true - measured) / measured).sum() / constant[patient].sum())
    np.testing.assert_allclose(row(repeated, "truth", "signals")["skill"], np.mean(skills), atol=1e-4)


def test_what_inputs_and_reference_share_is_the_difference_of_two_scores(repeated):
    for algorithm in ("LR", "constant", "perfect"):
        tissue = row(repeated, algorithm, "tissue")
        for measure in ("skill", "pearson"):
            scores = repeated.scores[repeated.scores["algorithm"] == algorithm]
            scores = scores[~scores["metric"].isin(["S0", "T2v"])].fillna({f"{measure}_independent": 0.0})
            patients = scores.groupby("patient")[f"{measure}_independent"].mean()
            assert tissue[f"{measure}_independent"] == pytest.approx(patients.mean())
            shared = tissue[measure] - tissue[f"{measure}_independent"]
            assert tissue[f"{measure}_shared_noise"] == pytest.approx(shared)
            low, high = tissue[f"{measure}_shared_noise_low"], tissue[f"{measure}_shared_noise_high"]
            assert low <= shared + 1e-12
            assert high >= shared - 1e-12
    assert row(repeated, "perfect", "tissue")["skill_independent"] < 1
    # A repeat would be scored against itself, and unseen images share no noise with inputs.
    assert np.isnan(row(repeated, "repeat", "tissue")["skill_independent"])
    assert np.isnan(row(repeated, "LR", "signals")["skill_independent"])


def test_a_simulated_headline_is_given_twice_and_says_so(repeated, evaluation, tmp_path):
    table = headline(repeated.summary()).set_index("algorithm")
    tissue = row(repeated, "LR", "tissue")
    assert table.loc["LR", "map skill, independent"].startswith(f"{fixed(tissue['skill_independent'], 2)} [")
    assert table.loc["LR", "shared noise"] == fixed(tissue["skill_shared_noise"], 2)
    signed = headline(repeated.summary().assign(skill_shared_noise=-0.001, abs_bias=-0.0126))
    assert signed.loc[0, ["shared noise", "|BI| (%)"]].tolist() == ["0.00", "−1.3"]
    assert table.loc["constant", "r, independent"] == "0.00*"
    assert table.loc["repeat", ["map skill, independent", "shared noise", "r, independent"]].tolist() == ["–"] * 3
    notes = headline_notes(repeated.study, headline(repeated.summary()))
    assert any("fit with independent noise; the difference is called shared noise" in note for note in notes)
    repeated.write(tmp_path)
    again = Evaluation.read(tmp_path)
    assert again.summary().equals(repeated.summary())
    assert headline_notes(again.study, headline(again.summary())) == notes
    learners = table.reset_index().query("algorithm == 'LR'")
    of_controls = [note for note in notes if note not in headline_notes(again.study, learners)]
    assert of_controls == [TEXTS[name] for name in ("undefined", "no_zero", "controls")]
    # Nobody knows these curves without their noise.
    assert "shared noise" not in headline(evaluation.summary())
    notes = headline_notes(evaluation.study, headline(evaluation.summary()))
    assert "without noise, or the level of their noise, are not known" in " ".join(notes)
    assert set(evaluation.scores["algorithm"]).isdisjoint({"truth", "repeat"})


def test_the_summary_survives_files_and_the_order_of_rows(evaluation, tmp_path):
    summary = evaluation.summary()
    evaluation.write(tmp_path)
    assert Evaluation.read(tmp_path).summary().equals(summary)
    turned = Evaluation(evaluation.scores[::-1], evaluation.signals[::-1]).summary()
    options = {"by": ["algorithm", "parameters"], "ignore_index": True}
    assert turned.sort_values(**options).equals(summary.sort_values(**options))
    wide, narrow = evaluation.summary(0.99), evaluation.summary(0.5)
    learned = (summary["algorithm"] == "LR").to_numpy()
    for measure in MEASURES[:2]:
        spread = [(t[f"{measure}_high"] - t[f"{measure}_low"])[learned].dropna() for t in (wide, narrow)]
        assert (spread[0] > spread[1]).all()
    with pytest.raises(ValueError, match="level must be a number above 0 and below 1"):
        evaluation.summary(95)


def test_one_patient_has_no_interval_and_references_of_zero_are_counted(evaluation):
    first = evaluation.scores[evaluation.scores["patient"] == "a"].copy()
    first.loc[first["metric"] == "f", ["n_undefined", "skill"]] = [3, np.nan]
    alone = Evaluation(first, evaluation.signals.iloc[:0]).summary()
    assert alone.filter(regex="_low$|_high$").isna().all(axis=None)
    f = alone[(alone["parameters"] == "f") & (alone["algorithm"] == "LR")].iloc[0]
    assert (f["n_dropped"], np.isnan(f["skill"]), np.isfinite(f["absolute_skill"])) == (3, True, True)


def test_each_number_of_training_patients_is_summarized_alone(evaluation):
    tissue = evaluation.scores[evaluation.scores["metric"].isin(["f", "Dv", "Dt"])]
    fewer = tissue.assign(n_train=2, skill=tissue["skill"] - 1)
    table = size_summary(pd.concat([tissue, fewer])).set_index(["algorithm", "n_train"])
    full = row(evaluation, "LR", "tissue")
    for column in ("skill", "skill_low", "dispersion"):
        assert table.loc[("LR", 5), column] == full[column]
    assert table.loc[("LR", 2), "skill"] == pytest.approx(full["skill"] - 1)
    assert not len(size_summary(tissue.iloc[:0]))


def test_the_signal_without_weighting_is_no_property_of_the_tissue(make_evaluation):
    scores = make_evaluation([{"metric": "S0"}, {"metric": "Dt"}, {"metric": "K"}]).scores
    assert tissue(scores)["metric"].tolist() == ["Dt", "K"]
    assert tissue(scores.iloc[:1])["metric"].tolist() == ["S0"]


def test_the_largest_training_counts_patient_by_patient_and_way_by_way(make_evaluation):
    rows = []
    for patient, train_on, sizes in (("p1", "same", (1, 2)), ("p2", "same", (1, 3)), ("p1", "other", (4,))):
        for size in sizes:
            rows.append({"patient": patient, "train_on": train_on, "n_train": size})
    table = largest(make_evaluation(rows).scores)
    expected = [["p1", "same", 2], ["p2", "same", 3], ["p1", "other", 4]]
    assert table[["patient", "train_on", "n_train"]].to_numpy().tolist() == expected
    assert largest(make_evaluation().scores).empty


def test_signals_have_the_pooled_error_and_the_mean_correlation_within_contrasts(make_evaluation):
    signals = [
        {"contrast": "a", "relative_error": 0.1, "pearson": 0.8},
        {"contrast": "b", "relative_error": 0.3, "pearson": np.nan},
        {"contrast": "all unseen", "relative_error": 5.0, "pearson": 1.0},
        {"contrast": "a", "relative_error": 7.0, "pearson": 0.0, "n_train": 1},
    ]
    evaluation = make_evaluation([{}], signals)
    summary, csv = evaluation.summary().iloc[0], Board(evaluation).summary.iloc[0]
    assert summary[["relative_error", "pearson"]].tolist() == csv[["signal_error", "signal_pearson"]].tolist() == [5, 0.4]
    undefined = make_evaluation([{}], [row | {"pearson": np.nan} for row in signals]).summary().iloc[0]
    assert undefined[["pearson", "n_undefined_pearson"]].tolist() == [0, 1]


@pytest.mark.parametrize("suffix", ["", "_truth"])
def test_the_summary_of_a_whole_study_is_that_of_plain_means(random_study, suffix):
    summary = Board(random_study.evaluation).summary
    assert len(summary) == 2 * 2 * 2 * 5
    assert (summary["n_train"] == 3).all()
    assert (summary["n_patients"] == 4).all()
    keys = ["train_on", "cohort", "strategy", "algorithm"]
    columns = [f"{name}{suffix}" for name in ("abs_bias", "dispersion", "pearson")]
    averaged = [name for name in random_study.tissue if name != "T2v"]
    for row in summary.to_dict("records"):
        rows = random_study.rows(*(row[key] for key in keys))
        expected = random_study.means(rows, averaged, suffix)
        np.testing.assert_allclose([row[name] for name in columns], expected, rtol=1e-12)


def scored(algorithm, strategy, dispersion, **changes):
    return {"algorithm": algorithm, "strategy": strategy, "dispersion": dispersion, **changes}


def test_the_best_predictor_has_the_highest_mean_skill_over_cohorts(make_evaluation):
    rows = [scored("LR", "s2s", 0.1), scored("LR", "m2m", 0.2), scored("RFR", "s2s", 0.3)]
    rows += [scored("LR", "s2s", 0.1, cohort="B"), scored("RFR", "s2s", 0.4, cohort="B")]
    rows += [scored("constant", "s2s", 0.9), scored("constant", "s2s", 0.9, cohort="B")]
    evaluation = make_evaluation(rows)
    # One of one cohort alone does not take part, nor do controls.
    skill = [0.1, 0.9, 0.3, 0.5, 0.4, 1.0, 1.0]
    evaluation = Evaluation(evaluation.scores.assign(skill=skill), evaluation.signals)
    assert Board(evaluation).best == ("s2s", "RFR")
    assert Board(evaluation).skill_column == "skill"
    independent = evaluation.scores.assign(skill_independent=[0.5, 0.9, 0.1, 0.5, 0.1, 0.0, 0.0])
    board = Board(Evaluation(independent, evaluation.signals))
    assert board.skill_column == "skill_independent"
    assert board.best == ("s2s", "LR")
    for algorithm in ("constant", "LR"):  # controls alone, and undefined scores
        assert Board(make_evaluation([scored(algorithm, "s2s", 0.1)])).best is None
