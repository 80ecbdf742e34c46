"""Learning curves, and transfer from one cohort to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import is_control
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import (
    html_details,
    html_grid,
    html_heading,
    html_join,
    html_lines,
    html_note,
    html_paragraph,
    html_table,
)
from dmrifit.study.report.figures.curves import plot_learning_curve
from dmrifit.study.report.sections.numerals import headings, metric_texts, percent, plural
from dmrifit.study.report.sections.overview import TRAINED
from dmrifit.study.summaries import WHOM, Board, tissue, unique

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["learning_curves", "transfer_tables"]


def learning_curves(board: Board, gallery: Gallery) -> Markup:
    """Draw bias and dispersion against the number of training patients."""
    regime = board.regimes[0]
    scores = tissue(board.evaluation.scores)
    scores = scores[(scores["train_on"] == regime) & ~scores["algorithm"].map(is_control)]
    sizes = sorted(scores["n_train"].unique())
    if len(sizes) < 2:
        return html_paragraph(
            "One number of training patients was compared. For curves, name several: dmrifit "
            "benchmark --sizes 1,2,3,5 or learning_curve(cohorts)."
        )
    repeats = int(scores["repeat"].max()) + 1
    text = (
        f"|BI| and DI over the number of training patients N, {TRAINED.get(regime, regime)}: "
        "overall (the gray band holds the middle half of the patients), by algorithm (mean over "
        "parameters) and by parameter (mean over algorithms). Means over patients and "
        f"{plural(repeats, 'draw')} of training patients. Each row has the same axes in all "
        "figures."
    )
    grid, cells = [], []
    for (cohort, strategy), rows in scores.groupby(["cohort", "strategy"], sort=False):
        note = f"trained on {WHOM.get(regime, regime)}; {board.conditions(rows)}"
        title = f"{cohort}, {strategy}\n{note}"
        figure = plot_learning_curve(
            rows, title, algorithms=board.algorithms, metrics=board.metrics, like=scores
        )
        grid.append(
            gallery.show(
                f"learning_curve_{cohort}_{strategy}", figure, f"Learning curves, {title}"
            )
        )
        rows = rows.assign(bias=rows["bias"].abs())
        for algorithm, scored in [("all", rows), *rows.groupby("algorithm", sort=False)]:
            means = scored.groupby("n_train")[["bias", "dispersion"]].mean()
            line = [cohort, strategy, algorithm]
            for bias, dispersion in means.reindex(sizes).to_numpy():
                line.append(f"{percent(bias)} / {percent(dispersion)}")
            cells.append(line)
    header = ["cohort", "strategy", "algorithm", *(f"N = {size:g}" for size in sizes)]
    table = html_table(cells, header, numbers=range(3, len(header)))
    return html_join(
        [
            html_paragraph(text),
            html_grid(grid),
            html_details("As a table: |BI| (%) / DI (%)", table, opened=False),
        ]
    )


def transfer_tables(board: Board) -> Markup:
    """Lay training against test, for the mean over parameters and for each of them."""
    if set(board.regimes) <= {"same"}:
        if len(board.cohorts) < 2:
            return html_paragraph("One cohort was compared, so there is no other to train on.")
        return html_paragraph(
            "Every predictor was trained on its own cohort. To train on the other cohorts too: "
            "dmrifit benchmark --train-on same,other,pooled, with --resynthesize where "
            "protocols differ, or "
            'compare(…, train_on=("same", "other", "pooled"), resynthesize=True).'
        )
    scores = board.scores
    metrics = board.summary_metrics
    absent = {metric.column: np.nan for metric in metrics}
    columns = unique(zip(scores["cohort"], scores["train_on"], strict=True))
    header = ["strategy", "algorithm"]
    header += [
        html_lines(f"{cohort} ←", _trained_on(board, cohort, regime)) for cohort, regime in columns
    ]

    def table(rows: pd.DataFrame) -> Markup:
        keys = ["strategy", "algorithm", "cohort", "train_on"]
        means = rows.groupby(keys, sort=False)[[metric.column for metric in metrics]].mean()
        cells, faint = [], []
        for i, (strategy, algorithm) in enumerate(
            unique(zip(rows["strategy"], rows["algorithm"], strict=True))
        ):
            line = [strategy, algorithm]
            for cohort, train_on in columns:
                key = (strategy, algorithm, cohort, train_on)
                values = means.loc[key] if key in means.index else absent
                line.append(metric_texts(metrics, values))
            cells.append(line)
            faint += [i] if is_control(algorithm) else []
        return html_table(cells, header, numbers=range(2, len(header)), faint=faint)

    intro = (
        f"{headings(metrics)}, mean over patients. Tested cohort ← cohorts trained on. "
        "Parameters can move in opposite directions when the scanner changes, and errors can "
        "cancel, so each has its own table below the mean."
    )
    parts: list[Any] = [html_paragraph(intro)]
    if board.setting("resynthesize"):
        parts.append(
            html_note(
                "Protocols differ, so training images of other cohorts were computed for the "
                "tested protocol from the model fitted to theirs."
            )
        )
    sizes = ", ".join(
        f"{cohort} ← {_trained_on(board, cohort, regime)}: "
        f"{board.size(scores[(scores['cohort'] == cohort) & (scores['train_on'] == regime)])}"
        for cohort, regime in columns
    )
    parts.append(html_note(f"{board.conditions(scores)}. Training patients: {sizes}."))
    parts += [html_heading("Mean over tissue parameters"), table(tissue(scores))]
    parts += [
        html_details(metric, table(scores[scores["metric"] == metric]))
        for metric in unique(scores["metric"])
    ]
    return html_join(parts)


def _trained_on(board: Board, cohort: str, regime: str) -> str:
    """Name the cohorts trained on if there are two in all, otherwise describe them."""
    if len(board.cohorts) > 2:
        return WHOM.get(regime, regime)
    other_cohorts = ", ".join(name for name in board.cohorts if name != cohort)
    return {"same": cohort, "other": other_cohorts, "pooled": "both"}.get(regime, regime)
