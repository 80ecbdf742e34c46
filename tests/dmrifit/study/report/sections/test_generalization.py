"""Learning curves and transfer between cohorts as a report tabulates them."""

import numpy as np
import pytest

from dmrifit.study.report.sections.generalization import learning_curves, transfer_tables
from dmrifit.study.summaries import Board


@pytest.fixture(scope="module")
def board(random_study):
    return Board.of(random_study.evaluation)


def learners(random_study, cohort, strategy):
    """Scores of the tissue but T2v, trained on the same cohort, of algorithms that learn."""
    table = random_study.evaluation.scores
    averaged = [name for name in random_study.tissue if name != "T2v"]
    table = table[(table["train_on"] == "same") & table["metric"].isin(averaged)]
    table = table[table["algorithm"].isin(["LR", "RFR"])]
    table = table[(table["cohort"] == cohort) & (table["strategy"] == strategy)]
    return table.assign(bias=table["bias"].abs())


def test_learning_curves_are_tabulated_as_means(board, random_study, html_tables, figures):
    header, rows = html_tables(learning_curves(board, figures)).table("As a table")
    assert header == ["cohort", "strategy", "algorithm", "N = 1", "N = 3"]
    assert [row[:3] for row in rows[:4]] == [
        ["A<1>", "s2s", "all"],
        ["A<1>", "s2s", "LR"],
        ["A<1>", "s2s", "RFR"],
        ["A<1>", "m2m", "all"],
    ]
    for cohort, strategy, algorithm, *cells in rows:
        scores = learners(random_study, cohort, strategy)
        if algorithm != "all":
            scores = scores[scores["algorithm"] == algorithm]
        for size, cell in zip((1, 3), cells, strict=True):
            means = scores.loc[scores["n_train"] == size, ["bias", "dispersion"]].mean()
            for number, mean in zip(random_study.numbers(cell), means, strict=True):
                random_study.check_percent(number, mean)


def test_learning_curves_are_drawn_as_tabulated(board, random_study, figures):
    learning_curves(board, figures)
    assert list(figures.figures) == [
        "learning_curve_A<1>_s2s",
        "learning_curve_A<1>_m2m",
        "learning_curve_B_s2s",
        "learning_curve_B_m2m",
    ]
    overall = figures.figures["learning_curve_B_m2m"].axes[0].lines[0]
    means = learners(random_study, "B", "m2m").groupby("n_train")["bias"].mean()
    np.testing.assert_allclose(overall.get_ydata(), 100 * means)


def test_a_size_that_an_algorithm_was_not_trained_with_is_a_dash(
    make_evaluation, html_tables, figures
):
    rows = []
    for algorithm, sizes in (("LR", (1, 2)), ("RFR", (2,))):
        for size in sizes:
            rows.append({"algorithm": algorithm, "n_train": size})
    html = learning_curves(Board.of(make_evaluation(rows)), figures)
    _, table = html_tables(html).table("As a table")
    assert table[2][2:] == ["RFR", "– / –", "10 / 20"]


def test_one_size_is_no_learning_curve(make_evaluation, figures):
    # A control at another size makes no curve.
    rows = [{"n_train": 2}, {"n_train": 1, "algorithm": "constant"}]
    html = learning_curves(Board.of(make_evaluation(rows)), figures)
    assert "One number of training patients was compared" in html
    assert not figures.figures


def test_the_transfer_matrix_is_that_of_the_scores(board, random_study, html_tables):
    html = html_tables(transfer_tables(board))
    for metric in ("Mean over tissue parameters", "S0", *random_study.tissue):
        title, table = next((title, table) for title, table in html.tables if title == metric)
        header, rows = table[0], table[1:]
        assert header[2:] == ["A<1> ← A<1>", "B ← B", "A<1> ← B", "B ← A<1>"]
        assert len(rows) == 2 * 5
        columns = [("A<1>", "same"), ("B", "same"), ("A<1>", "other"), ("B", "other")]
        averaged = [name for name in random_study.tissue if name != "T2v"]
        metrics = averaged if title.startswith("Mean") else [metric]
        for row in rows:
            for cell, (cohort, way) in zip(row[2:], columns, strict=True):
                scores = random_study.rows(way, cohort, row[0], row[1])
                random_study.check_scores(cell, random_study.means(scores, metrics))
    assert {algorithm for _, algorithm in html.faint} == {"constant", "shuffled", "perfect"}


def test_what_was_not_trained_that_way_is_a_dash(make_evaluation, html_tables):
    rows = [{}, {"cohort": "B"}, {"train_on": "other", "algorithm": "RFR"}]
    html = html_tables(transfer_tables(Board.of(make_evaluation(rows))))
    header, table = html.table("Mean over tissue parameters")
    assert header[2:] == ["A ← A", "B ← B", "A ← B"]
    assert table == [
        ["s2s", "LR", "10 / 20 / 0.50", "10 / 20 / 0.50", "– / – / –"],
        ["s2s", "RFR", "– / – / –", "– / – / –", "10 / 20 / 0.50"],
    ]


def test_many_cohorts_are_named_in_words(make_evaluation, html_tables):
    rows = []
    for cohort in "ABC":
        rows += [{"cohort": cohort, "train_on": way} for way in ("same", "other", "pooled")]
    html = html_tables(transfer_tables(Board.of(make_evaluation(rows))))
    header, _ = html.table("Mean over tissue parameters")
    assert header[2:5] == ["A ← the same cohort", "A ← other cohorts", "A ← all cohorts"]


def test_sizes_and_computed_images_are_told(make_evaluation):
    rows = [{}, {"cohort": "B"}, {"train_on": "pooled", "n_train": 7}]
    study = {"settings": {"resynthesize": True}}
    text = transfer_tables(Board.of(make_evaluation(rows, study=study)))
    assert "A ← both: N = 7" in text
    assert "were computed for the tested protocol" in text
    text = transfer_tables(Board.of(make_evaluation(rows)))
    assert "were computed for the tested protocol" not in text


def test_one_way_of_training_is_no_matrix(make_evaluation):
    single = transfer_tables(Board.of(make_evaluation([{}])))
    assert "One cohort was compared" in single
    two = transfer_tables(Board.of(make_evaluation([{}, {"cohort": "B"}])))
    assert "--train-on same,other,pooled" in two
    assert "<table" not in single + two
