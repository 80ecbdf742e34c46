"""The first sections of a report: question, data, summary and cohorts."""

import numpy as np
import pytest

from dmrifit.study.report.sections.overview import (
    cohort_tables,
    introduction,
    repeated_summary,
    summary_tables,
)
from dmrifit.study.summaries import Board, summarize

CONTROLS = {"constant", "shuffled", "perfect"}


@pytest.fixture(scope="module")
def board(random_study):
    return Board.of(random_study.evaluation)


# Introduction ------------------------------------------------------------------------------------


def test_the_introduction_counts_patients_and_calls_synthetic_ones_so(make_evaluation):
    rows = [{"patient": "p1"}, {"patient": "p2"}, {"cohort": "B", "patient": "q1"}]
    study = {"cohorts": {"A": {"synthetic": False}, "B": {"synthetic": True}}}
    text = introduction(Board.of(make_evaluation(rows, study=study)))
    assert "2 patients of A and 1 synthetic patient of B" in text


def test_the_introduction_tells_regions_voxels_draws_and_seed(make_evaluation):
    settings = {"max_voxels": 250, "train_mask": "lesion", "score_mask": "body"}
    study = {"settings": settings | {"seed": 7, "n_repeats": 3}}
    text = introduction(Board.of(make_evaluation([{}], study=study)))
    assert "at most 250 voxels of the lesion of each training patient" in text
    assert "every voxel of the body of the held-out one" in text
    assert "3 draws, seed 7." in text
    plain = introduction(Board.of(make_evaluation([{}])))
    assert "all voxels of the body" in plain
    assert "1 draw." in plain


def test_the_introduction_names_learners_strategies_and_ways_of_training(make_evaluation):
    rows = [
        {"n_train": 3},
        {"algorithm": "constant"},
        {"strategy": "own", "algorithm": "mine"},
        {"train_on": "other", "n_train": 9},
    ]
    text = introduction(Board.of(make_evaluation(rows)))
    assert "Algorithms: LR, mine." in text
    assert "signals to signals (s2s" in text
    assert "Trained on the other patients of the same cohort (N = 3)" in text
    assert "trained on all patients of the other cohorts (N = 9)" in text


# Summary -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train_on", "words"),
    [
        ("same", "the other patients of the same cohort"),
        ("other", "all patients of the other cohorts"),
    ],
)
@pytest.mark.parametrize("cohort", ["A<1>", "B"])
def test_the_summary_is_that_of_the_scores(
    board, random_study, html_tables, cohort, train_on, words
):
    page = summary_tables(board)
    html = html_tables(page)
    header, rows = html.table(f"{cohort}: 4 patients, trained on {words}; body → lesion, N = 3")
    assert header[:5] == ["strategy", "algorithm", "|BI| (%)", "DI (%)", "r"]
    assert header[5] == "signals, mean |E| (%)"
    assert "T2v is not among them" in page
    assert len(rows) == 2 * 5
    summary = summarize(random_study.evaluation)
    summary = summary[(summary["cohort"] == cohort) & (summary["train_on"] == train_on)]
    partly = [name for name in random_study.tissue if name != "T2v"]
    for row, expected in zip(rows, summary.to_dict("records"), strict=True):
        scores = random_study.rows(train_on, cohort, row[0], row[1])
        bias, dispersion, r = random_study.means(scores, partly)
        (bias_mean, bias_sd), (mean, sd) = map(random_study.numbers, row[2:4])
        random_study.check_percent(bias_mean, bias)
        random_study.check_percent(mean, dispersion)
        assert random_study.numbers(row[4]) == [pytest.approx(r, abs=0.0051)]
        patients = scores[scores["metric"].isin(partly)].groupby("patient")
        deviation = np.std(patients["dispersion"].mean(), ddof=1)
        random_study.check_percent(sd, deviation)
        random_study.check_percent(bias_sd, expected["abs_bias_sd"])
        random_study.check_percent(*random_study.numbers(row[5]), expected["signal_error"])


def test_controls_are_gray_and_explained(board, html_tables, make_evaluation):
    html = summary_tables(board)
    assert {algorithm for _, algorithm in html_tables(html).faint} == CONTROLS
    assert "perfect answers what was measured" in html
    alone = summary_tables(Board.of(make_evaluation([{}])))
    assert "Controls, in gray" not in alone


def test_the_smallest_dispersions_stand_at_the_top(make_evaluation, html_tables):
    dispersions = [("LR", "s2s", 0.3), ("RFR", "m2m", 0.2), ("LR", "m2m", 0.5)]
    dispersions += [("perfect", "s2s", 0.0), ("constant", "m2m", 0.11), ("constant", "s2s", 0.12)]
    rows = []
    for patient in map(str, range(6)):
        for algorithm, strategy, dispersion in dispersions:
            keys = {"patient": patient, "algorithm": algorithm, "strategy": strategy}
            rows.append(keys | {"dispersion": dispersion})
        rows.append(
            {"patient": patient, "cohort": "B", "train_on": "other", "dispersion": np.nan}
        )
    two_draws = {"settings": {"n_repeats": 2}}
    board = Board.of(make_evaluation(rows, study=two_draws))
    _, *table = html_tables(summary_tables(board)).tables[0][1]
    assert table == [
        ["A", "the same cohort", "RFR m2m", "20", "10", "0.50", "constant m2m", "11", "10"],
        ["B", "other cohorts", *"–" * 7],
    ]


@pytest.mark.parametrize(("n_patients", "n_repeats"), [(6, 1), (5, 2)])
def test_one_seed_or_few_patients_name_no_best_predictor(make_evaluation, n_patients, n_repeats):
    rows = [{"patient": str(i)} for i in range(n_patients)]
    study = {"settings": {"n_repeats": n_repeats}}
    assert "smallest dispersion" not in summary_tables(Board.of(make_evaluation(rows, study=study)))


def test_without_t2v_and_signals_the_summary_has_no_columns_of_them(make_evaluation, html_tables):
    html = summary_tables(Board.of(make_evaluation([{"metric": "Dt"}])))
    assert "T2v" not in html
    header, rows = html_tables(html).table("A: 1 patient,")
    assert header == ["strategy", "algorithm", "|BI| (%)", "DI (%)", "r"]
    assert rows == [["s2s", "LR", "10 ± –", "20 ± –", "0.50"]]


def test_several_comparisons_are_laid_beside_each_other(make_evaluation, html_tables):
    first = make_evaluation(
        [
            {"algorithm": "LR", "dispersion": 0.2},
            {"algorithm": "RFR", "dispersion": 0.4},
            {"algorithm": "constant", "dispersion": 0.9},
            {"train_on": "other", "dispersion": 0.9},
        ],
        study={"cohorts": {"A": {"simulation": {"difficulty": "easy"}}}},
    )
    second = make_evaluation(
        [{"n_train": 1}], study={"settings": {"train_mask": "lesion", "seed": 7}}
    )
    _, *rows = html_tables(repeated_summary([first, second])).tables[0][1]
    # Between two algorithms of 0.2 and 0.4 the standard deviation is 0.14.
    assert rows == [
        ["body → lesion, N = 3", "A", "easy", "s2s", "10 ± 0.0", "30 ± 14", "0.50"],
        ["lesion → lesion, N = 1, seed 7", "A", "–", "s2s", "10 ± –", "20 ± –", "0.50"],
    ]


# Cohorts -----------------------------------------------------------------------------------------


def described(**changes):
    """Describe a cohort as a comparison does."""
    counts = ((5, 50), (20, 100), (9, 70))
    patients = {
        f"p{i}": {"lesion": lesion, "body": body} for i, (lesion, body) in enumerate(counts)
    }
    protocol = {"b": [0.0, 500.0, 0.0, 500.0], "te": [70.0, 70.0, 90.0, 90.0]}
    return {"protocol": protocol, "patients": patients} | changes


def unseen(b, te, cohort="A"):
    return {"cohort": cohort, "contrast": f"{b} {te}", "b": b, "te": te}


def test_cohorts_are_tabulated_with_their_counts_and_protocols(make_evaluation, html_tables):
    study = {"cohorts": {"A": described(synthetic=True)}}
    signals = [unseen(500.0, 70.0), unseen(0.0, 90.0), unseen(500.0, 90.0)]
    board = Board.of(make_evaluation([{}], signals, study))
    header, row = html_tables(cohort_tables(board)).tables[0][1]
    assert header[3:5] == ["lesion voxels, median (range)", "body voxels, median (range)"]
    cells = ["A", "synthetic", "3", "9 (5–20)", "70 (50–100)", "0, 500", "70, 90", "4"]
    assert row == [*cells, "b 0 at TE 70"]


def test_clinical_inputs_are_listed_by_echo_time(make_evaluation, html_tables):
    study = {"cohorts": {"A": described()}}
    board = Board.of(make_evaluation([{}], [unseen(500.0, 90.0)], study))
    row = html_tables(cohort_tables(board)).tables[0][1][1]
    assert (row[1], row[8]) == ("measured", "b 0, 500 at TE 70; b 0 at TE 90")


def test_a_protocol_without_echo_times_has_dashes(make_evaluation, html_tables):
    study = {"cohorts": {"A": described(protocol={"b": [0.0, 500.0, 900.0], "te": None})}}
    board = Board.of(make_evaluation([{}], [unseen(900.0, np.nan)], study))
    row = html_tables(cohort_tables(board)).tables[0][1][1]
    assert row[5:] == ["0, 500, 900", "–", "3", "b 0, 500"]
    board = Board.of(make_evaluation([{}], study=study))
    assert html_tables(cohort_tables(board)).tables[0][1][1][8] == "–"


def test_patients_that_were_not_scored_are_named(make_evaluation):
    study = {"cohorts": {"A": described(skipped={"p1": "no lesion voxel"})}}
    html = cohort_tables(Board.of(make_evaluation([{}], study=study)))
    assert "Not scored in A: p1: no lesion voxel." in html


def test_simulations_are_laid_beside_each_other(make_evaluation, html_tables):
    first = {"snr": 40.0, "shape": [48, 48, 8], "artifacts": None, "own_word": True}
    first["patients"] = {"p0": {"tumor_site": "liver", "gain": 1.25}}
    second = {"snr": 30.0, "shape": [48, 48, 8], "artifacts": None, "own_word": True}
    cohorts = {"A": described(simulation=first), "B": described(simulation=second)}
    html = html_tables(cohort_tables(Board.of(make_evaluation([{}], study={"cohorts": cohorts}))))
    _, rows = html.table("How the synthetic patients were made")
    assert rows == [
        ["signal-to-noise ratio in the liver, lowest b, shortest TE", "40", "30"],
        ["voxels of the image", "48, 48, 8", "48, 48, 8"],
        ["own word", "True", "True"],
    ]
    header, rows = html.table("Each patient")
    assert header == ["cohort", "patient", "tumor site", "gain"]
    assert rows == [["A", "p0", "liver", "1.25"]]


def test_a_comparison_may_not_know_its_cohorts(make_evaluation):
    html = cohort_tables(Board.of(make_evaluation([{}])))
    assert "does not say which cohorts" in html
