"""The report of a comparison: one self-contained page beside its tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmrifit._utils.counts import counted
from dmrifit.io.tables import csv_text
from dmrifit.report.page import PAGE, Fold, Link, Numbers, Page, Section, write_files
from dmrifit.study.comparison import Evaluation
from dmrifit.study.report.report_files import Report
from dmrifit.study.report.sections.answer import answer, verdict
from dmrifit.study.report.sections.conclusions import statistics_tables
from dmrifit.study.report.sections.generalization import curves, other_sites
from dmrifit.study.report.sections.overview import (
    cohort_tables,
    headline_table,
    introduction,
    repeated_summary,
)
from dmrifit.study.report.sections.patients import example_patients, joint_histograms, lesion_order
from dmrifit.study.report.sections.provenance import origin, times
from dmrifit.study.report.sections.scores import (
    parameter_scores,
    predictor_scores,
    reference_table,
    signal_scores,
    truth_scores,
)
from dmrifit.study.summaries import Board, summarize

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summarize", "write_report"]

FIGURES = "figures"
TABLES = "tables"
VECTORS = "figures.pdf"
SUMMARY = "summary.csv"


def write_report(evaluation: Evaluation | Sequence[Evaluation], folder: str | Path) -> Report:
    """
    Write the report of a comparison, or of several of the same question.

    Parameters
    ----------
    evaluation : Evaluation or sequence of Evaluation
        The comparison. Of several, which differ in seed, training region or difficulty of the
        cohorts, the first is shown in full, the others in a table beside it.
    folder : path
        Made if needed; the files of an earlier report are replaced.

    Returns
    -------
    Report
        The path of the page, ``report.html``, which needs no other file and no network, with
        ``frame(name)`` for its tables and ``markdown()`` for its first lines. Beside it stand
        ``scores.csv``, ``signals.csv``, ``summary.csv``, ``study.json``, in the folder ``figures``
        every figure as PNG and all of them as vectors (``figures.pdf``), in the folder ``tables``
        the numbers of all figures and all tests.

    Raises
    ------
    ImportError
        If the extra ``report`` is not installed.
    ValueError
        If a comparison has no score.
    """
    evaluations = [evaluation] if isinstance(evaluation, Evaluation) else list(evaluation)
    if not evaluations or not all(len(comparison.scores) for comparison in evaluations):
        raise ValueError("the comparison has no score to report; compare at least one estimator")
    folder = Path(folder)
    board = Board.of(evaluations[0])
    page, tables = _page(board, evaluations)
    html = page.html()
    # The comparison itself, so that the report can be written again from its folder.
    evaluations[0].write(folder)
    figures: dict[str, bytes | str] = {name: one.png for name, one in page.pictures.items()}
    # Of an earlier report no figure and no table is left.
    write_files(folder / FIGURES, figures | {VECTORS: page.vectors()}, replaced=("png", "pdf"))
    csv_files = {f"{name}.csv": csv_text(table) for name, table in tables.items()}
    write_files(folder / TABLES, csv_files, replaced=("csv",))
    write_files(folder, {SUMMARY: csv_text(board.summary), PAGE: html})
    frames = {"summary": board.summary, "headline": board.evaluation.headline()} | tables
    sentences = [page.lead, *verdict(board)]
    return Report.of(folder / PAGE, page.title, sentences, frames)


def _title(board: Board) -> str:
    algorithms = counted(len(board.learners), "algorithm")
    title = f"Prediction of the advanced protocol: {algorithms}"
    if len(board.strategies) > 1:
        title += f" in {len(board.strategies)} strategies"
    return title


def _lead(board: Board) -> str:
    notice = "Research software, not a medical device."
    if not board.evaluation.synthetic:
        return notice
    cohorts = f"Cohorts {', '.join(board.evaluation.synthetic)}"
    if len(board.evaluation.synthetic) == len(board.study.get("cohorts", {})):
        cohorts = "All cohorts"
    return (
        f"{notice} Synthetic data. {cohorts} were simulated; no person was scanned, and no number "
        "here is a clinical result."
    )


def _page(board: Board, evaluations: Sequence[Evaluation]) -> tuple[Page, dict[str, pd.DataFrame]]:
    """Make the page, in the order in which a reader asks, and the tables beside it."""
    sections = [
        Section("", *answer(board)),
        Section("Which algorithm", *predictor_scores(board)),
        Section("Which parameter", *parameter_scores(board)),
        Section("Other site", *other_sites(board)),
        Section("How many patients", *curves(board)),
        Section("Example patients", *example_patients(board)),
        Section("Unseen signals", *signal_scores(board)),
        Section("Other comparisons", *repeated_summary(evaluations)),
    ]
    tests, statistics = statistics_tables(board)
    tables = {one.name: one.table for section in sections for one in section.all(Numbers)}
    tables |= statistics
    links = [Link(f"{TABLES}/{name}.csv", f"{name}.csv") for name in tables]
    sections += [
        Section(
            "All tables",
            Fold("Skill with intervals", *headline_table(board)),
            Fold("Evidence: tests between algorithms", *tests),
            Fold("Predicted against reference, voxel by voxel", *joint_histograms(board)),
            Fold("Order of lesions", *lesion_order(board)),
            Fold("What the reference is worth", *reference_table(board)),
            Fold("Truth beside reference", *truth_scores(board)),
            Fold(f"Files: {counted(len(tables), 'table')}", *links),
        ),
        Section("Methods", *introduction(board), *cohort_tables(board)),
        Section("How this was made", *origin(board, evaluations), Fold("Time", *times(board))),
    ]
    return Page(_title(board), sections, _lead(board), contents=True), tables
