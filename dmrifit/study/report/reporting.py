"""The report of a comparison: one self-contained page beside its tables and figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dmrifit._utils.counts import counted
from dmrifit._utils.html_repr import html_summary
from dmrifit.io.tables import csv_text
from dmrifit.report.page import PAGE, Fold, Link, Numbers, Page, Section, notice_lead, write_files
from dmrifit.study.comparison import Evaluation
from dmrifit.study.report.sections import answer, overview, patients, scores
from dmrifit.study.summaries import Board, headline, headline_notes

__all__ = ["write_report"]
FIGURES = "figures"
TABLES = "tables"
VECTORS = "figures.pdf"
SUMMARY = "summary.csv"
# Before Python 3.12 only the class of this system can be derived from.
_Path: type[Path] = type(Path())


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
        the numbers of all figures and all tests. ``summary.csv`` has the rows ``tissue`` of
        `Evaluation.summary` (means over the tissue parameters), with the scores of the signals in
        the columns ``signal_…``.

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
    board = Board(evaluations[0])
    page, tables = _page(board, evaluations)
    html = page.html()
    # The comparison itself, so that the report can be written again from its folder.
    evaluations[0].write(folder)
    figures: dict[str, bytes | str] = {name: one.png for name, one in page.pictures.items()}
    # Of an earlier report no figure and no table is left.
    write_files(folder / FIGURES, figures | {VECTORS: page.vectors()}, replaced=("png", "pdf"))
    csv_files = {f"{name}.csv": csv_text(table, 7) for name, table in tables.items()}
    write_files(folder / TABLES, csv_files, replaced=("csv",))
    write_files(folder, {SUMMARY: csv_text(board.summary, 7), PAGE: html})
    table = headline(board.overview)
    frames = {"summary": board.summary, "headline": table} | tables
    sentences = [page.lead, *answer.verdict(board)]
    report = Report.of(folder / PAGE, page.title, sentences, frames)
    report.notes = tuple(headline_notes(board.study, table))
    return report


def _page(board: Board, evaluations: Sequence[Evaluation]) -> tuple[Page, dict[str, pd.DataFrame]]:
    """Make the page, in the order in which a reader asks, and the tables beside it."""
    title = f"Prediction of the advanced protocol: {counted(len(board.learners), 'algorithm')}"
    if len(board.strategies) > 1:
        title += f" in {len(board.strategies)} strategies"
    synthetic = [name in board.evaluation.synthetic for name in board.cohorts]
    lead = notice_lead(synthetic, "cohort")
    sections = [
        Section("", *answer.answer(board)),
        Section("Which algorithm", *scores.predictor_scores(board)),
        Section("Which parameter", *scores.parameter_scores(board)),
        Section("Other cohort", *answer.other_sites(board)),
        Section("How many patients", *answer.curves(board)),
        Section("Example patients", *patients.example_patients(board)),
        Section("Unseen signals", *scores.signal_scores(board)),
        Section("Comparisons side by side", *overview.repeated_summary(evaluations)),
    ]
    tests, statistics = answer.statistics_tables(board)
    tables = {one.name: one.table for section in sections for one in section.all(Numbers)}
    tables |= statistics
    links = [Link(f"{TABLES}/{name}.csv", f"{name}.csv") for name in tables]
    sections += [
        Section(
            "All tables",
            Fold("Skill with intervals", *overview.headline_table(board)),
            Fold("Evidence: tests between algorithms", *tests),
            Fold("Predicted against reference, voxel by voxel", *patients.joint_histograms(board)),
            Fold("Order of lesions", *patients.lesion_order(board)),
            Fold("What the reference is worth", *scores.reference_table(board)),
            Fold("Truth beside reference", *scores.truth_scores(board)),
            Fold(f"Files: {counted(len(tables), 'table')}", *links),
        ),
        Section("Methods", *overview.introduction(board), *overview.cohort_tables(board)),
        Section(
            "How this was made",
            *overview.origin(board, evaluations),
            Fold("Time", *overview.times(board)),
        ),
    ]
    return Page(title, sections, lead, contents=True), tables


class Report(_Path):  # type: ignore[misc, valid-type]
    """
    The page of a comparison: a path, with `title`, `sentences`, `frames` and `notes` to the table.

    Paths made of it, such as its parent, are plain ones.
    """

    title: str
    sentences: tuple[str, ...]
    frames: dict[str, pd.DataFrame]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, path: Path, title: str, sentences: Sequence[str], frames: Mapping[str, pd.DataFrame]
    ) -> Report:
        """Make a report of the path of its page, its first sentences and its tables by name."""
        report = cls(path)
        report.title, report.sentences = title, tuple(sentences)
        report.frames = dict(frames)
        return report

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """Make a plain path, as a parent or sibling of the page is no report."""
        return Path(*segments)

    @property
    def path(self) -> Path:
        """The page."""
        return Path(str(self))

    def frame(self, name: str) -> pd.DataFrame:
        """
        Give a table of the report.

        Parameters
        ----------
        name : str
            Such as "headline", "skill" or "parameters"; a wrong name lists all.

        Returns
        -------
        DataFrame
            A copy.

        Raises
        ------
        ValueError
            If the report has no table of that name.
        """
        if name not in self.frames:
            raise ValueError(f"no table {name!r} in {self}; choose from {', '.join(self.frames)}")
        return self.frames[name].copy()

    def markdown(self) -> str:
        """
        Write the first lines of the report: title, sentences, table of skill.

        Returns
        -------
        str
            Markdown, with a table.
        """
        table = self.frames["headline"]
        lines = [f"# {self.title}", "", *(f"{sentence}\n" for sentence in self.sentences)]
        for cells in (list(table), ["---"] * len(table.columns), *table.itertuples(index=False)):
            texts = (str(cell).replace("|", r"\|") for cell in cells)
            lines.append(f"| {' | '.join(texts)} |")
        lines += ["\n" + note.replace("*", r"\*") for note in self.notes]
        return "\n".join([*lines, "", f"[{self.name}]({self.name})", ""])

    def _repr_html_(self) -> str:
        table = self.frames["headline"]
        rows = table.itertuples(index=False)
        note = "; ".join([*self.sentences, *self.notes])
        return html_summary(self.title, list(table), rows, note=note, most_rows=None)
