"""Scores parameter by parameter: tables equal to plain means, figures of what was scored."""

import numpy as np
import pytest

from dmrifit.study.report.sections.scores import (
    correlation_tables,
    parameter_tables,
    reference_table,
    scatter_figures,
    signal_scores,
    truth_tables,
)
from dmrifit.study.summaries import Board

CONTROLS = {"constant", "shuffled", "perfect"}


@pytest.fixture(scope="module")
def board(random_study):
    return Board.of(random_study.evaluation)


def check_by_parameter(html, random_study, columns, fraction):
    header, rows = html.table("B, trained on the other patients of the same cohort")
    assert header[:9] == ["strategy", "algorithm", "S0", *random_study.tissue]
    assert len(rows) == 2 * 5
    for row in rows:
        scores = random_study.rows("same", "B", row[0], row[1])
        means = scores.assign(bias=scores["bias"].abs()).groupby("metric")[columns].mean()
        for name, cell in zip(header[2:9], row[2:9], strict=True):
            for text, value in zip(cell.split(" / "), means.loc[name], strict=True):
                if np.isnan(value):
                    assert text == "–"
                elif fraction:
                    random_study.check_percent(*random_study.numbers(text), value)
                else:
                    assert random_study.numbers(text) == [pytest.approx(value, abs=0.0051)]


def test_indices_of_every_parameter_are_means_over_patients(board, random_study, html_tables):
    html = html_tables(parameter_tables(board))
    check_by_parameter(
        html, random_study, ["bias", "dispersion", "median_abs_error"], fraction=True
    )
    assert len(html.tables) == 2 * 2
    assert {algorithm for _, algorithm in html.faint} == CONTROLS


def test_correlations_of_every_parameter_are_means_over_patients(board, random_study, html_tables):
    html = html_tables(correlation_tables(board))
    check_by_parameter(html, random_study, ["pearson", "spearman"], fraction=False)
    header, rows = html.table("A<1>, trained on all patients of the other cohorts")
    assert header[9:] == ["signals, mean", "signals, worst", "signals, pooled"]
    signals = random_study.evaluation.signals
    signals = signals[
        (signals["n_train"] == 3)
        & (signals["cohort"] == "A<1>")
        & (signals["train_on"] == "other")
    ]
    for row in rows:
        table = signals[(signals["strategy"] == row[0]) & (signals["algorithm"] == row[1])]
        pooled = table["contrast"] == "all unseen"
        worst = table[~pooled].groupby("contrast")["pearson"].mean().min()
        expected = (table[~pooled]["pearson"].mean(), worst, table[pooled]["pearson"].mean())
        for text, value in zip(row[9:], expected, strict=True):
            assert random_study.numbers(text) == [pytest.approx(value, abs=0.0051)]


def test_without_signals_correlations_have_no_columns_of_signals(make_evaluation, html_tables):
    board = Board.of(make_evaluation([{"metric": "Dt"}]))
    header, rows = html_tables(correlation_tables(board)).tables[0][1]
    assert header == ["strategy", "algorithm", "Dt"]
    assert rows == ["s2s", "LR", "0.50 / 0.40"]


def test_truth_stands_beside_reference(board, random_study, html_tables):
    header, rows = html_tables(truth_tables(board)).table("A<1>, trained on the other patients")
    assert header[2:] == ["against reference", "against truth"]
    assert len(rows) == 2 * 5
    partly = [name for name in random_study.tissue if name != "T2v"]
    columns = [(partly, ""), (partly, "_truth")]
    for row in rows:
        scores = random_study.rows("same", "A<1>", row[0], row[1])
        for cell, (metrics, suffix) in zip(row[2:], columns, strict=True):
            random_study.check_scores(cell, random_study.means(scores, metrics, suffix))


def test_each_parameter_is_laid_against_the_truth_for_learners_and_for_the_reference(
    board, random_study, html_tables
):
    header, rows = html_tables(truth_tables(board)).table("Against truth, parameter by parameter")
    assert header == ["cohort", "", *random_study.tissue]
    names = ["s2s, mean of algorithms", "m2m, mean of algorithms", "the reference"]
    assert [row[1] for row in rows] == names * 2
    for row, algorithms in ((rows[0], ["LR", "RFR"]), (rows[2], ["perfect"])):
        for metric, cell in zip(random_study.tissue, row[2:], strict=True):
            scores = [random_study.rows("same", "A<1>", "s2s", name) for name in algorithms]
            means = [random_study.means(table, [metric], "_truth") for table in scores]
            random_study.check_scores(cell, np.mean(means, axis=0))


def test_patients_without_a_truth_are_said_to_have_none(make_evaluation):
    html = truth_tables(Board.of(make_evaluation([{}])))
    assert "No patient has a known truth" in html
    assert "<table" not in html


def test_shares_at_a_bound_are_those_of_the_reference(board, random_study, html_tables):
    header, *rows = html_tables(reference_table(board)).tables[0][1]
    assert header[3:5] == ["at a bound (% of voxels), A<1>", "at a bound (% of voxels), B"]
    assert [row[0] for row in rows] == ["S0", *random_study.tissue]
    scores = random_study.evaluation.scores
    for row in rows:
        for cell, cohort in zip(row[3:5], ("A<1>", "B"), strict=True):
            table = scores[(scores["cohort"] == cohort) & (scores["metric"] == row[0])]
            shares = table.drop_duplicates("patient")["at_bound"]
            random_study.check_percent(*random_study.numbers(cell), shares.mean())


def test_voxels_without_a_reference_or_a_prediction_are_counted_by_hand(
    make_evaluation, html_tables
):
    rows = [
        {"patient": "p1", "n_voxels": 10, "n_undefined": 1, "n_failed": 2},
        {"patient": "p2", "n_voxels": 30, "n_undefined": 3, "n_failed": 0},
        {"patient": "p1", "algorithm": "RFR", "n_voxels": 10, "n_undefined": 1, "n_failed": 10},
        {"patient": "p2", "algorithm": "RFR", "n_voxels": 30, "n_undefined": 3, "n_failed": 12},
    ]
    _, row = html_tables(reference_table(Board.of(make_evaluation(rows)))).tables[0][1]
    # Undefined for the first estimator: 4 of 40; not predicted by all of them: 24 of 80.
    assert row == ["Dt", "tissue diffusivity", "µm²/ms", "0.0", "10", "30"]


def test_amplitudes_are_relative_and_plain_numbers_have_the_unit_one(make_evaluation, html_tables):
    rows = [{"metric": "S0", "unit": "signal"}, {"metric": "f", "unit": ""}, {"metric": "own"}]
    table = html_tables(reference_table(Board.of(make_evaluation(rows)))).tables[0][1][1:]
    assert [row[2] for row in table] == ["relative", "1", "µm²/ms"]
    assert table[2][1] == ""


def test_signal_errors_are_means_over_patients_and_contrasts(
    board, random_study, html_tables, figures
):
    html = html_tables(signal_scores(board, figures))
    _, rows = html.table("All readings")
    signals = random_study.evaluation.signals
    signals = signals[signals["n_train"] == 3]
    assert len(rows) == 2 * 2 * 2 * 5
    names = ["relative_error", "median_relative_error", "signed_relative_error"]
    for row in rows:
        table = signals
        for key, value in zip(("cohort", "train_on", "strategy", "algorithm"), row, strict=False):
            table = table[table[key] == value]
        pooled = table["contrast"] == "all unseen"
        for name, single, together in zip(names, row[4:7], row[8:11], strict=True):
            random_study.check_percent(
                *random_study.numbers(single), table.loc[~pooled, name].mean()
            )
            random_study.check_percent(
                *random_study.numbers(together), table.loc[pooled, name].mean()
            )
        contrasts = table[~pooled].groupby("contrast")["relative_error"].mean()
        percent, _, contrast = row[7].partition(" (")
        assert contrast == f"{contrasts.idxmax()})"
        random_study.check_percent(*random_study.numbers(percent), contrasts.max())


def test_errors_of_signals_are_drawn_for_each_cohort_without_useless_controls(board, figures):
    signal_scores(board, figures)
    assert list(figures.figures) == ["signal_errors_A<1>", "signal_errors_B"]
    legend = [
        text.get_text() for text in figures.figures["signal_errors_B"].legends[0].get_texts()
    ]
    names = {text for text in legend if text.strip()}
    assert names == {"LR", "RFR", "constant", "s2s", "m2m"}


def test_signals_without_a_usable_error_are_dashes_and_not_drawn(
    make_evaluation, html_tables, figures
):
    board = Board.of(make_evaluation([{}], [{"relative_error": np.nan, "n_undefined": 100}]))
    html = html_tables(signal_scores(board, figures))
    assert not figures.figures
    _, rows = html.table("All readings")
    assert (rows[0][4], rows[0][7], rows[0][11]) == ("–", "– (–)", "100")


def test_scatters_are_means_over_patients_in_a_panel_for_each_strategy_cohort_and_way(
    board, random_study, figures
):
    scatter_figures(board, figures)
    names = []
    for train_on in ("same", "other"):
        for cohort in ("A<1>", "B"):
            names += [
                f"bias_dispersion_{cohort}, {strategy}_{train_on}" for strategy in ("s2s", "m2m")
            ]
    assert list(figures.figures) == names
    (axes,) = figures.figures["bias_dispersion_B, m2m_other"].axes
    # All algorithms but the perfect one, and all parameters but S0.
    points = [dots.get_offsets()[0] for dots in axes.collections]
    assert len(points) == 4 * 6
    scores = random_study.rows("other", "B", "m2m", "LR")
    scores = scores[scores["metric"] == "f"]
    expected = (100 * scores["bias"].abs().mean(), 100 * scores["dispersion"].mean())
    np.testing.assert_allclose(points[0], expected)
    limits = {figure.axes[0].get_xlim() for figure in figures.figures.values()}
    assert len(limits) == 1
    texts = [text.get_text() for text in axes.texts]
    assert "trained on other cohorts; body → lesion, N = 3, seed 0" in texts


def test_the_perfect_prediction_alone_has_no_scatter(make_evaluation, figures):
    html = scatter_figures(Board.of(make_evaluation([{"algorithm": "perfect"}])), figures)
    assert "Only the perfect prediction was scored" in html
    assert not figures.figures
