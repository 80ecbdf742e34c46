"""What sections share: joined elements, captions, links to tables."""

import numpy as np
import pytest

from dmrifit.report.html import html_note
from dmrifit.stats.metrics import METRICS
from dmrifit.study.report.sections.elements import (
    capital,
    captioned,
    csv_link,
    metric_text,
    section,
)
from dmrifit.study.summaries import Board


def test_a_section_is_what_its_function_yields_in_order():
    @section
    def notes(first, last):
        """Write two notes."""
        yield html_note(first)
        yield html_note(last)

    assert notes("<a>", "b") == '<p class="note">&lt;a&gt;</p><p class="note">b</p>'
    assert notes.__doc__ == "Write two notes."


def test_captions_name_training_and_conditions(make_evaluation):
    rows = [{"cohort": "A", "n_train": 3}, {"cohort": "A", "train_on": "other", "n_train": 7}]
    board = Board.of(make_evaluation(rows))
    title = captioned(board, "A, s2s", "other", board.scores)
    assert title.startswith("A, s2s\ntrained on other cohorts; body → lesion, N = 3–7")


def test_tables_are_files_beside_the_page():
    assert csv_link("skill") == '<p><a href="./tables/skill.csv">All numbers: skill.csv</a></p>'


@pytest.mark.parametrize(
    ("name", "value", "text"), [("dispersion", 0.314, "31"), ("pearson", -0.25, "−0.25"), ("bias", np.nan, "–")]
)
def test_a_score_has_the_unit_and_digits_of_its_metric(name, value, text):
    assert metric_text(METRICS[name], value) == text


def test_only_the_first_letter_becomes_a_capital():
    assert capital("median of T2v") == "Median of T2v"
    assert capital("") == ""
