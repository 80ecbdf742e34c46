"""The report of a comparison: one self-contained page beside its tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmrifit._utils.counts import counted
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.tables import csv_text
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import html_details, html_join, html_link
from dmrifit.report.viewer import viewer_page
from dmrifit.study.comparison import Evaluation
from dmrifit.study.report.report_files import Report
from dmrifit.study.report.sections.answer import answer, verdict
from dmrifit.study.report.sections.conclusions import statistics_tables
from dmrifit.study.report.sections.elements import TABLES
from dmrifit.study.report.sections.generalization import curves, other_sites
from dmrifit.study.report.sections.overview import (
    cohort_tables,
    headline_table,
    introduction,
    repeated_summary,
)
from dmrifit.study.report.sections.patients import (
    example_patients,
    joint_histograms,
    lesion_order,
)
from dmrifit.study.report.sections.provenance import origin, times
from dmrifit.study.report.sections.scores import (
    parameter_scores,
    predictor_scores,
    reference_table,
    signal_scores,
    truth_scores,
)
from dmrifit.study.summaries import Board, summarize, unique

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summarize", "write_report"]

PAGE = "report.html"
FIGURES = "figures"
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
    gallery = Gallery()
    tables: dict[str, pd.DataFrame] = {}
    title, lead = _title(board), _lead(board)
    page = viewer_page(
        title, _sections(board, evaluations, gallery, tables), lead=lead, contents=True
    )
    # The comparison itself, so that the report can be written again from its folder.
    evaluations[0].write(folder)
    _replace(folder / FIGURES, gallery.pictures | {VECTORS: gallery.vectors()})
    csv_files = {f"{name}.csv": csv_text(table).encode() for name, table in tables.items()}
    _replace(folder / TABLES, csv_files)
    with FileSet(folder, [SUMMARY, PAGE], overwrite=True) as written:
        written.path(SUMMARY).write_text(csv_text(board.summary), encoding="utf-8")
        written.path(PAGE).write_text(page, encoding="utf-8")
    frames = {"summary": board.summary, "headline": board.evaluation.headline()} | tables
    return Report.of(folder / PAGE, title, [lead, *verdict(board)], frames)


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a folder of the report, and remove those of an earlier report."""
    earlier = sorted(
        path.name for path in folder.glob("*") if path.suffix in (".png", ".csv", ".pdf")
    )
    # No empty folder is made.
    if not (files or earlier):
        return
    with FileSet(folder, list(dict.fromkeys([*files, *earlier])), overwrite=True) as written:
        for name, content in files.items():
            written.path(name).write_bytes(content)


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


def _sections(
    board: Board,
    evaluations: Sequence[Evaluation],
    gallery: Gallery,
    tables: dict[str, pd.DataFrame],
) -> list[tuple[str, Any]]:
    """Make all sections, in the order in which a reader asks."""
    sections = [
        ("", answer(board, gallery)),
        ("Which algorithm", predictor_scores(board, gallery, tables)),
        ("Which parameter", parameter_scores(board, gallery, tables)),
    ]
    if len(board.regimes) > 1:
        sections.append(("Other site", other_sites(board, gallery)))
    if len(unique(board.evaluation.scores["n_train"])) > 1:
        sections.append(("How many patients", curves(board, gallery, tables)))
    sections.append(("Example patients", example_patients(board, gallery)))
    if len(board.signals):
        sections.append(("Unseen signals", signal_scores(board, gallery, tables)))
    if len(evaluations) > 1:
        sections.append(("Other comparisons", repeated_summary(evaluations)))
    made = html_join([origin(board, evaluations), html_details("Time", times(board))])
    return [
        *sections,
        ("All tables", _all_tables(board, gallery, tables)),
        ("Methods", html_join([introduction(board), cohort_tables(board)])),
        ("How this was made", made),
    ]


def _all_tables(board: Board, gallery: Gallery, tables: dict[str, pd.DataFrame]) -> Any:
    """Fold what stands behind the figures; list the files of all numbers."""
    tests, statistics = statistics_tables(board, gallery)
    tables.update(statistics)
    folds = [
        ("Skill with intervals", headline_table(board)),
        ("Evidence: tests between algorithms", tests),
        ("Predicted against reference, voxel by voxel", joint_histograms(board, gallery)),
        ("Order of lesions", lesion_order(board)),
        ("What the reference is worth", reference_table(board)),
    ]
    if board.has_truth:
        folds.append(("Truth beside reference", truth_scores(board, gallery)))
    links = html_join(html_link(f"{TABLES}/{name}.csv", f"{name}.csv") for name in tables)
    folds.append((f"Files: {counted(len(tables), 'table')}", links))
    return html_join(html_details(title, body) for title, body in folds)
