"""Scores of predictors and parameters: tables equal to plain means, figures of what was scored."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from dmrifit.study.report.sections import scores as sections
from dmrifit.study.summaries import Board, matching


@pytest.fixture(scope="module")
def board(random_study):
    return Board(random_study.evaluation)


def dots(axes):
    """Values and rows of the dots of a panel."""
    clouds = [cloud for cloud in axes.collections if isinstance(cloud, PathCollection)]
    return np.concatenate([cloud.get_offsets() for cloud in clouds])


def test_every_parameter_is_tabulated_with_all_scores_as_means_over_patients(board, random_study, read):
    read(sections.parameter_scores(board))
    table = read.tables["parameters"]
    assert len(table) == 2 * 2 * 2 * 5 * 7
    keys = {"train_on": "other", "cohort": "B", "strategy": "m2m", "algorithm": "LR"}
    rows = matching(table, **keys).set_index("parameters")
    scores = random_study.rows("other", "B", "m2m", "LR")
    means = scores.assign(bias=scores["bias"].abs()).groupby("metric").mean(numeric_only=True)
    for column in ("abs_bias", "dispersion", "median_abs_error", "pearson", "spearman"):
        np.testing.assert_allclose(rows[column], means.loc[rows.index, column.removeprefix("abs_")])
    # Of four patients there is no interval.
    assert rows["abs_bias_low"].isna().all()


def test_parameters_are_drawn_for_each_cohort_with_the_constant(board, read):
    read(sections.parameter_scores(board))
    assert list(read.figures) == ["parameters_A-1-", "parameters_B"]
    panel = next(axes for axes in read.figures["parameters_B"].axes if axes.get_xlabel() == "DI (%)")
    rows = matching(read.tables["parameters"], train_on="same", cohort="B", parameters="S0")
    drawn = rows[rows["algorithm"].isin(["LR", "RFR", "constant"])]["dispersion"]
    values = [x for x, y in dots(panel) if abs(y) < 0.5]
    np.testing.assert_allclose(sorted(values), np.clip(sorted(100 * drawn), None, max(values)))


def test_independent_noise_is_drawn_with_its_own_interval_and_where_it_is_scored(make_evaluation, read):
    scores = [{"skill": i / 9, "skill_independent": i / 20, "pearson_independent": i / 50} for i in range(6)]
    board = Board(make_evaluation([score | {"patient": f"p{i}"} for i, score in enumerate(scores)]))
    read(sections.predictor_scores(board))
    panels = {"map skill": ["skill", "skill_independent"], "r": ["pearson", "pearson_independent"]}
    for axes in read.figures["predictors_A"].axes:
        lines = [line.get_segments() for line in axes.collections if isinstance(line, LineCollection)]
        drawn = [segment[:, 0] for segments in lines for segment in segments if len(segment)]
        names = panels.get(axes.get_xlabel(), ["abs_bias" if "BI" in axes.get_xlabel() else "dispersion"])
        ends = [board.summary[[f"{name}_low", f"{name}_high"]].iloc[0] for name in names]
        np.testing.assert_allclose(drawn, np.array(ends) * (1 if len(names) > 1 else 100))


def test_truth_stands_beside_reference(board, random_study, read):
    read(sections.truth_scores(board))
    figure = read.figures["truth"]
    panel = next(axes for axes in figure.axes if axes.get_xlabel() == "r")
    partly = [name for name in random_study.tissue if name != "T2v"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    row = labels.index("B: RFR m2m")
    scores = random_study.rows("same", "B", "m2m", "RFR")
    expected = [random_study.means(scores, partly, suffix)[2] for suffix in ("", "_truth")]
    values = [x for x, y in dots(panel) if round(y) == row]
    np.testing.assert_allclose(sorted(values), sorted(expected), atol=1e-9)


def test_shares_at_a_bound_are_those_of_the_reference(board, random_study, html_tables):
    header, *rows = html_tables(sections.reference_table(board)).tables[0][1]
    assert header[3:5] == [f"at a bound, {name} (% of voxels, mean over patients)" for name in ("A<1>", "B")]
    assert [row[0] for row in rows] == ["S0", *random_study.tissue]
    scores = random_study.evaluation.scores
    for row in rows:
        for cell, cohort in zip(row[3:5], ("A<1>", "B"), strict=True):
            table = scores[(scores["cohort"] == cohort) & (scores["metric"] == row[0])]
            shares = table.drop_duplicates("patient")["at_bound"]
            random_study.check_percent(*random_study.numbers(cell), shares.mean())


def test_voxels_without_a_reference_or_a_prediction_are_counted_by_hand(make_evaluation, html_tables):
    rows = [
        {"patient": "p1", "n_voxels": 10, "n_undefined": 3, "n_failed": 2},
        {"patient": "p2", "n_voxels": 30, "n_undefined": 3, "n_failed": 0},
        {"patient": "p1", "algorithm": "RFR", "n_voxels": 10, "n_undefined": 3, "n_failed": 10},
        {"patient": "p2", "algorithm": "RFR", "n_voxels": 30, "n_undefined": 3, "n_failed": 12},
    ]
    _, row = html_tables(sections.reference_table(Board(make_evaluation(rows)))).tables[0][1]
    # Means over patients: undefined in 3 of 10 and 3 of 30; not predicted in 2 and 10 of 10, 0 and 12 of 30.
    assert row == ["Dt", "tissue diffusivity", "µm²/ms", "0.0", "20", "40"]


def test_signal_errors_are_means_over_patients(board, random_study, read):
    read(sections.signal_scores(board))
    assert list(read.figures) == ["signal_errors_A-1-", "signal_errors_B"]
    table = read.tables["signals_by_contrast"]
    assert len(table) == 2 * 2 * 2 * 5 * 3
    signals = random_study.evaluation.signals
    signals = signals[signals["n_train"] == 3]
    row = table.iloc[7]
    keys = ["train_on", "cohort", "strategy", "algorithm", "contrast"]
    scores = matching(signals, **{key: row[key] for key in keys})
    assert len(scores) == 4
    for name in ("relative_error", "median_relative_error", "signed_relative_error"):
        assert row[name] == pytest.approx(scores[name].mean())
