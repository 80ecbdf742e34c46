"""The report of a comparison: one self-contained page beside its tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmrifit.io.atomic_files import FileSet
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.numerals import counted
from dmrifit.report.viewer import viewer_page
from dmrifit.study.comparison import Evaluation
from dmrifit.study.report.sections.conclusions import statistics_tables
from dmrifit.study.report.sections.generalization import learning_curves, transfer_tables
from dmrifit.study.report.sections.overview import (
    cohort_tables,
    headline_table,
    introduction,
    repeated_summary,
    summary_tables,
)
from dmrifit.study.report.sections.patients import (
    example_patients,
    joint_histograms,
    lesion_order,
)
from dmrifit.study.report.sections.provenance import origin, times
from dmrifit.study.report.sections.scores import (
    correlation_tables,
    parameter_tables,
    reference_table,
    scatter_figures,
    signal_scores,
    truth_tables,
)
from dmrifit.study.summaries import Board, summarize

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summarize", "write_report"]

PAGE = "report.html"
FIGURES = "figures"
TABLES = "tables"
VECTORS = "figures.pdf"
SUMMARY = "summary.csv"


def write_report(evaluation: Evaluation | Sequence[Evaluation], folder: str | Path) -> Path:
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
    Path
        The page, ``report.html``, which needs no other file and no network. Beside it stand
        ``scores.csv``, ``signals.csv``, ``summary.csv``, ``study.json``, in the folder ``figures``
        every figure as PNG and all of them as vectors (``figures.pdf``), in the folder ``tables``
        all tests.

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
    page = viewer_page(
        _title(board),
        _sections(board, evaluations, gallery, tables),
        lead=_lead(board),
        contents=True,
    )
    # The comparison itself, so that the report can be written again from its folder.
    evaluations[0].write(folder)
    _replace(folder / FIGURES, gallery.pictures | {VECTORS: gallery.vectors()})
    csv_files = {name: table.to_csv(index=False).encode() for name, table in tables.items()}
    _replace(folder / TABLES, csv_files)
    with FileSet(folder, [SUMMARY, PAGE], overwrite=True) as written:
        written.path(SUMMARY).write_text(board.summary.to_csv(index=False), encoding="utf-8")
        written.path(PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


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
    if not board.synthetic:
        return notice
    cohorts = f"Cohorts {', '.join(board.synthetic)}"
    if len(board.synthetic) == len(board.study.get("cohorts", {})):
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

    def tests() -> Any:
        body, statistics = statistics_tables(board, gallery)
        tables.update({f"{name}.csv": table for name, table in statistics.items()})
        return body

    sections: list[tuple[str, Callable[[], Any]]] = [
        ("", partial(introduction, board)),
        ("Skill", partial(headline_table, board)),
        ("Summary", partial(summary_tables, board)),
    ]
    if len(evaluations) > 1:
        sections.append(("The same in other comparisons", partial(repeated_summary, evaluations)))
    sections += [
        ("Cohorts", partial(cohort_tables, board)),
        ("Example patients", partial(example_patients, board, gallery)),
        ("Order of lesions", partial(lesion_order, board)),
        ("Bias and dispersion", partial(scatter_figures, board, gallery)),
        ("Learning curves", partial(learning_curves, board, gallery)),
        ("Predicted against reference", partial(joint_histograms, board, gallery)),
        ("Statistics", tests),
        ("Parameter by parameter", partial(parameter_tables, board)),
        ("Correlations", partial(correlation_tables, board)),
        ("Truth beside reference", partial(truth_tables, board)),
        ("What the reference is worth", partial(reference_table, board)),
        ("From one cohort to another", partial(transfer_tables, board)),
    ]
    if len(board.signals):
        sections.append(("Predicted signals", partial(signal_scores, board, gallery)))
    sections += [
        ("Time", partial(times, board)),
        ("How this was made", partial(origin, board, evaluations)),
    ]
    return [(heading, make()) for heading, make in sections]
