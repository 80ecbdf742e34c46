"""What sections share: joined elements, gray controls, open tables of the first way of training."""

from dmrifit.report.html import html_note
from dmrifit.study.report.sections.elements import (
    capital,
    captioned,
    cohort_details,
    score_table,
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


def test_controls_are_gray_by_the_last_of_the_words(html_tables):
    rows = [["s2s", "LR", "1"], ["s2s", "constant", "2"], ["m2m", "shuffled", "3"]]
    html = html_tables(score_table(rows, ["strategy", "algorithm", "DI"]))
    assert html.faint == [("s2s", "constant"), ("m2m", "shuffled")]
    assert not html_tables(score_table(rows, ["constant", "DI", ""], n_words=1)).faint


def test_titles_name_training_and_conditions_and_only_the_first_training_is_open(make_evaluation):
    rows = [{"cohort": "A", "n_train": 3}, {"cohort": "A", "train_on": "other", "n_train": 7}]
    board = Board.of(make_evaluation(rows))
    table = score_table([["s2s", "LR"]], ["strategy", "algorithm"])
    first = cohort_details(board, "same", "A", table)
    assert "<details open><summary>A, trained on the other patients of the same cohort; " in first
    assert "N = 3" in first
    second = cohort_details(board, "other", "A", table, label="A: 1 patient")
    assert "<details><summary>A: 1 patient, trained on all patients of the other cohorts; " in second
    assert "N = 7" in second
    title = captioned(board, "A, s2s", "other", board.scores)
    assert title.startswith("A, s2s\ntrained on other cohorts; body → lesion, N = 3–7")


def test_only_the_first_letter_becomes_a_capital():
    assert capital("median of T2v") == "Median of T2v"
    assert capital("") == ""
