"""What sections share: captions, scores, capitals."""

import numpy as np
import pytest

from dmrifit.stats.metrics import METRICS
from dmrifit.study.report.sections.elements import capital, captioned, metric_text
from dmrifit.study.summaries import Board


def test_captions_name_training_and_conditions(make_evaluation):
    rows = [{"cohort": "A", "n_train": 3}, {"cohort": "A", "train_on": "other", "n_train": 7}]
    board = Board(make_evaluation(rows))
    title = captioned(board, "A, s2s", "other", board.scores)
    assert title.startswith("A, s2s\ntrained on other cohorts; body → lesion, N = 3–7")


@pytest.mark.parametrize(
    ("name", "value", "text"), [("dispersion", 0.314, "31"), ("pearson", -0.25, "−0.25"), ("bias", np.nan, "–")]
)
def test_a_score_has_the_unit_and_digits_of_its_metric(name, value, text):
    assert metric_text(METRICS[name], value) == text


def test_only_the_first_letter_becomes_a_capital():
    assert capital("median of T2v") == "Median of T2v"
    assert capital("") == ""
