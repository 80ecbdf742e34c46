"""Means of a comparison over patients and parameters, by hand and by plain pandas."""

import numpy as np
import pandas as pd
import pytest

from dmrifit.study.comparison import Evaluation
from dmrifit.study.summaries import Board, largest, matching, summarize, tissue, unique


def test_values_are_listed_once_in_the_order_of_their_first_appearance():
    assert unique(["b", "a", "b", "c", "a"]) == ["b", "a", "c"]


def test_the_signal_without_weighting_is_no_property_of_the_tissue(make_evaluation):
    scores = make_evaluation([{"metric": "S0"}, {"metric": "Dt"}, {"metric": "K"}]).scores
    assert tissue(scores)["metric"].tolist() == ["Dt", "K"]
    assert tissue(scores.iloc[:1])["metric"].tolist() == ["S0"]


def test_the_largest_training_counts_patient_by_patient_and_way_by_way(make_evaluation):
    rows = []
    for patient, train_on, sizes in (
        ("p1", "same", (1, 2)),
        ("p2", "same", (1, 3)),
        ("p1", "other", (4,)),
    ):
        for size in sizes:
            rows.append({"patient": patient, "train_on": train_on, "n_train": size})
    table = largest(make_evaluation(rows).scores)
    assert table[["patient", "train_on", "n_train"]].to_numpy().tolist() == [
        ["p1", "same", 2],
        ["p2", "same", 3],
        ["p1", "other", 4],
    ]
    empty = make_evaluation().scores
    assert largest(empty) is empty


# Two patients with parameters of different signs; the means are easy to take by hand.
HAND = [
    {"patient": "p1", "metric": "Dt", "bias": 0.1, "dispersion": 0.2, "pearson": 0.5},
    {"patient": "p1", "metric": "T2v", "bias": -0.3, "dispersion": 0.4, "pearson": np.nan},
    {"patient": "p1", "metric": "S0", "bias": 9.0, "dispersion": 9.0, "pearson": 0.0},
    {"patient": "p2", "metric": "Dt", "bias": -0.5, "dispersion": 0.6, "pearson": -0.1},
    {"patient": "p2", "metric": "T2v", "bias": 0.7, "dispersion": 1.0, "pearson": 0.2},
]


def test_the_summary_by_hand(make_evaluation):
    row = summarize(make_evaluation(HAND)).iloc[0]
    # Without T2v and S0, |BI| of the patients: 0.1 and 0.5; DI: 0.2 and 0.6; r: 0.5 and −0.1.
    assert row["abs_bias"] == pytest.approx(0.3)
    assert row["dispersion"] == pytest.approx(0.4)
    assert row["pearson"] == pytest.approx(0.2)
    assert row["abs_bias_sd"] == pytest.approx(0.4 / 2**0.5)
    assert row["dispersion_sd"] == pytest.approx(0.4 / 2**0.5)
    assert (row["n_patients"], row["n_train"]) == (2, 3)
    assert np.isnan(row["abs_bias_truth"])
    assert np.isnan(row["pearson_truth"])


def test_a_patient_counts_once_however_many_parameters_it_has(make_evaluation):
    rows = [
        {"patient": "p1", "metric": "Dt", "dispersion": 0.2},
        {"patient": "p1", "metric": "K", "dispersion": 0.4},
        {"patient": "p2", "metric": "Dt", "dispersion": 0.9},
    ]
    row = summarize(make_evaluation(rows)).iloc[0]
    assert row["dispersion"] == pytest.approx((0.3 + 0.9) / 2)


def test_t2v_alone_is_its_own_mean(make_evaluation):
    row = summarize(make_evaluation([{"metric": "T2v"}])).iloc[0]
    assert row["dispersion"] == pytest.approx(0.2)


def test_signals_are_means_over_unseen_contrasts_without_the_pooled_row(make_evaluation):
    signals = [
        {"contrast": "a", "relative_error": 0.1, "pearson": 0.8},
        {"contrast": "b", "relative_error": 0.3, "pearson": np.nan},
        {"contrast": "all unseen", "relative_error": 5.0, "pearson": 1.0},
        {"contrast": "a", "relative_error": 7.0, "pearson": 0.0, "n_train": 1},
    ]
    row = summarize(make_evaluation([{}], signals)).iloc[0]
    assert row["signal_error"] == pytest.approx(0.2)
    assert row["signal_pearson"] == pytest.approx(0.4)


@pytest.mark.parametrize("suffix", ["", "_truth"])
def test_the_summary_of_a_whole_study_is_that_of_plain_means(random_study, suffix):
    summary = summarize(random_study.evaluation)
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


def test_a_constant_has_a_correlation_of_zero(random_study):
    summary = summarize(random_study.evaluation)
    constant = summary["algorithm"] == "constant"
    assert (summary.loc[constant, ["pearson", "pearson_truth"]] == 0).all().all()
    assert (summary.loc[~constant, "pearson"] != 0).all()


# What the sections of a report see ---------------------------------------------------------------


def test_a_board_knows_its_algorithms_cohorts_and_ways_of_training(random_study):
    board = Board(random_study.evaluation)
    assert board.algorithms == ["LR", "RFR", "constant", "shuffled", "perfect"]
    assert board.learners == ["LR", "RFR"]
    assert board.strategies == ["s2s", "m2m"]
    assert board.metrics == random_study.tissue
    assert board.cohorts == board.evaluation.synthetic == ["A<1>", "B"]
    assert board.regimes == ["same", "other"]
    assert board.has_truth
    assert set(board.scores["n_train"]) == {3}


def test_a_board_has_the_signals_of_single_contrasts_alone(random_study):
    board = Board(random_study.evaluation)
    assert set(board.signals["contrast"]) == {"S_b500_TE70", "S_b0_TE90", "S_b500_TE90"}
    assert set(board.signals["n_train"]) == {3}


def test_a_comparison_without_signals_and_truth_has_a_board_too(make_evaluation):
    board = Board(make_evaluation(HAND))
    assert not board.has_truth
    assert board.evaluation.synthetic == []
    assert len(board.signals) == 0
    assert board.scores["abs_bias"].tolist() == [0.1, 0.3, 9.0, 0.5, 0.7]
    assert board.setting("seed") is None
    assert board.setting("n_repeats", 1) == 1


def test_sizes_of_training_are_one_number_or_a_range(make_evaluation):
    board = Board(make_evaluation(HAND))
    assert board.size(board.scores) == "N = 3"
    assert board.size(board.scores.assign(n_train=[14, 15, 15, 15, 14])) == "N = 14–15"
    assert board.size(board.scores.iloc[:0]) == "N = 0"


def test_conditions_name_regions_size_and_seed(make_evaluation):
    board = Board(make_evaluation(HAND))
    assert board.conditions(board.scores) == "body → lesion, N = 3"
    settings = {"train_mask": "lesion", "score_mask": "body", "seed": 0}
    board = Board(make_evaluation(HAND, study={"settings": settings}))
    assert board.conditions(board.scores) == "lesion → body, N = 3, seed 0"


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


def test_scores_without_skill_are_ranked_by_dispersion_first_way_of_training(make_evaluation):
    rows = [scored("LR", "s2s", 0.3), scored("RFR", "s2s", 0.2)]
    rows += [scored("constant", "s2s", 0.0), scored("LR", "s2s", 0.0, train_on="other")]
    assert Board(make_evaluation(rows)).best == ("s2s", "RFR")


def test_controls_alone_and_undefined_scores_have_no_best(make_evaluation):
    assert Board(make_evaluation([scored("constant", "s2s", 0.1)])).best is None
    assert Board(make_evaluation([scored("LR", "s2s", np.nan)])).best is None


def test_skill_has_a_row_for_every_parameter(make_evaluation):
    rows = [scored("LR", "s2s", 0.1, metric=name) for name in ("S0", "Dt", "K")]
    board = Board(make_evaluation(rows))
    assert board.skill["parameters"].tolist() == ["tissue", "S0", "Dt", "K"]
    assert board.mean_rows == "tissue"


def test_matching_rows_agree_in_all_columns_and_an_empty_table_needs_none():
    table = pd.DataFrame({"cohort": ["A", "A", "B"], "strategy": ["s2s", "m2m", "s2s"]})
    assert matching(table, cohort="A", strategy="s2s").index.tolist() == [0]
    assert matching(table, strategy="s2s").index.tolist() == [0, 2]
    assert len(matching(pd.DataFrame(), cohort="A")) == 0
