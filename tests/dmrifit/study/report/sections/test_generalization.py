"""Transfer between cohorts, and scores over the number of training patients."""

import numpy as np
import pytest

from dmrifit.study.report.sections.generalization import curves, other_sites, sizes_of
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


def test_sizes_are_means_over_patients_and_parameters(board, random_study):
    table = sizes_of(board)
    assert len(table) == 2 * 2 * 2 * 2
    for row in table.to_dict("records"):
        scores = learners(random_study, row["cohort"], row["strategy"])
        scores = scores[scores["algorithm"] == row["algorithm"]]
        means = scores.loc[scores["n_train"] == row["n_train"], ["bias", "dispersion"]].mean()
        np.testing.assert_allclose([row["abs_bias"], row["dispersion"]], means)


def test_learning_curves_are_drawn_as_tabulated(board, read):
    html = read(curves(board))
    assert "tables/learning.csv" in html
    assert len(read.tables["learning"]) == 16
    (figure,) = read.figures.values()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A<1>"] * 2 + ["B"] * 2
    rows = read.tables["learning"].query("cohort == 'B' and strategy == 'm2m' and algorithm == 'RFR'")
    drawn = [line.get_ydata() for line in figure.axes[3].lines]
    assert len(drawn) == 4
    np.testing.assert_allclose(drawn[3], 100 * rows["dispersion"])


def test_a_size_that_an_algorithm_was_not_trained_with_has_no_point(make_evaluation, read):
    rows = []
    for algorithm, sizes in (("LR", (1, 2)), ("RFR", (2,))):
        for size in sizes:
            rows.append({"algorithm": algorithm, "n_train": size})
    read(curves(Board.of(make_evaluation(rows))))
    lines = read.figures["learning"].axes[1].lines
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2], [2]]


def test_ways_of_training_are_laid_beside_each_other_for_every_learner(board, random_study, read):
    html = read(other_sites(board))
    (figure,) = read.figures.values()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [
        f"{cohort}: {name} {strategy}"
        for cohort in ("A<1>", "B")
        for name in ("LR", "RFR")
        for strategy in ("m2m", "s2s")
    ]
    panel = next(axes for axes in figure.axes if axes.get_xlabel() == "DI (%)")
    row = labels.index("B: RFR s2s")
    points = np.concatenate([dots.get_offsets() for dots in panel.collections])
    values = [x for x, y in points if round(y) == row]
    averaged = [name for name in random_study.tissue if name != "T2v"]
    expected = []
    for train_on in ("same", "other"):
        scores = random_study.rows(train_on, "B", "s2s", "RFR")
        expected.append(100 * random_study.means(scores, averaged)[1])
    np.testing.assert_allclose(sorted(values), sorted(expected))
    assert "the same cohort N = 3, other cohorts N = 3" in html


def test_computed_images_are_told(make_evaluation, read):
    rows = [{}, {"cohort": "B"}, {"train_on": "pooled", "n_train": 7}]
    study = {"settings": {"resynthesize": True}}
    text = read(other_sites(Board.of(make_evaluation(rows, study=study))))
    assert "all cohorts N = 7" in text
    assert "were computed for the tested protocol" in text
    text = read(other_sites(Board.of(make_evaluation(rows))))
    assert "were computed for the tested protocol" not in text
