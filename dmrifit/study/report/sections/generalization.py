"""Learning curves, and transfer from one cohort to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dmrifit.predict.controls import is_control
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import (
    html_details,
    html_grid,
    html_heading,
    html_lines,
    html_note,
    html_paragraph,
    html_table,
)
from dmrifit.report.numerals import counted, percent
from dmrifit.study.report.figures.curves import plot_learning_curve
from dmrifit.study.report.sections.elements import (
    TRAINED,
    WHOM,
    captioned,
    headings,
    metric_texts,
    score_table,
    section,
)
from dmrifit.study.summaries import Board, averaged, matching, tissue, unique

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["learning_curves", "transfer_tables"]


@section
def learning_curves(board: Board, gallery: Gallery) -> Iterator[Markup]:
    """Draw bias and dispersion against the number of training patients."""
    regime = board.regimes[0]
    scores = tissue(board.evaluation.scores)
    scores = scores[(scores["train_on"] == regime) & ~scores["algorithm"].map(is_control)]
    sizes = sorted(scores["n_train"].unique())
    if len(sizes) < 2:
        yield html_paragraph(
            "One number of training patients was compared. For curves, name several: dmrifit "
            "benchmark --sizes 1,2,3,5 or learning_curve(cohorts)."
        )
        return
    repeats = int(scores["repeat"].max()) + 1
    yield html_paragraph(
        f"|BI| and DI over the number of training patients N, {TRAINED.get(regime, regime)}: "
        "overall (the gray band holds the middle half of the patients), by algorithm (mean over "
        f"the parameters {', '.join(board.averaged_metrics)}, as overall) and by parameter (mean "
        "over algorithms). Means over patients and "
        f"{counted(repeats, 'draw')} of training patients. Each row has the same axes in all "
        "figures."
    )
    grid, cells = [], []
    for (cohort, strategy), rows in scores.groupby(["cohort", "strategy"], sort=False):
        title = captioned(board, f"{cohort}, {strategy}", regime, rows)
        figure = plot_learning_curve(
            rows,
            title,
            algorithms=board.algorithms,
            metrics=board.metrics,
            averaged=board.averaged_metrics,
            like=scores,
        )
        grid.append(
            gallery.show(
                f"learning_curve_{cohort}_{strategy}", figure, f"Learning curves, {title}"
            )
        )
        # Signed biases of different parameters would cancel.
        rows = averaged(rows.assign(bias=rows["bias"].abs()))
        for algorithm, scored in [("all", rows), *rows.groupby("algorithm", sort=False)]:
            means = scored.groupby("n_train")[["bias", "dispersion"]].mean()
            line = [cohort, strategy, algorithm]
            for bias, dispersion in means.reindex(sizes).to_numpy():
                line.append(f"{percent(bias)} / {percent(dispersion)}")
            cells.append(line)
    header = ["cohort", "strategy", "algorithm", *(f"N = {size:g}" for size in sizes)]
    yield html_grid(grid)
    table = html_table(cells, header, numbers=range(3, len(header)))
    yield html_details("As a table: |BI| (%) / DI (%)", table)


@section
def transfer_tables(board: Board) -> Iterator[Markup]:
    """Lay training against test, for the mean over parameters and for each of them."""
    if set(board.regimes) <= {"same"}:
        text = (
            "Every predictor was trained on its own cohort. To train on the other cohorts too: "
            "dmrifit benchmark --train-on same,other,pooled, with --resynthesize where "
            "protocols differ, or "
            'compare(…, train_on=("same", "other", "pooled"), resynthesize=True).'
        )
        if len(board.cohorts) < 2:
            text = "One cohort was compared, so there is no other to train on."
        yield html_paragraph(text)
        return
    scores = board.scores
    metrics = board.summary_metrics
    columns = unique(zip(scores["cohort"], scores["train_on"], strict=True))
    header = ["strategy", "algorithm"]
    header += [
        html_lines(f"{cohort} ←", _trained_on(board, cohort, regime)) for cohort, regime in columns
    ]

    def table(rows: pd.DataFrame) -> Markup:
        keys = ["strategy", "algorithm", "cohort", "train_on"]
        means = rows.groupby(keys, sort=False)[[metric.column for metric in metrics]].mean()
        cells = []
        for strategy, algorithm in unique(zip(rows["strategy"], rows["algorithm"], strict=True)):
            line = [strategy, algorithm]
            for cohort, train_on in columns:
                key = (strategy, algorithm, cohort, train_on)
                line.append(metric_texts(metrics, means.reindex([key]).iloc[0]))
            cells.append(line)
        return score_table(cells, header)

    yield html_paragraph(
        f"{headings(metrics)}, mean over patients. Tested cohort ← cohorts trained on. "
        "Parameters can move in opposite directions when the scanner changes, and errors can "
        "cancel, so each has its own table below the mean over "
        f"{', '.join(board.averaged_metrics)}."
    )
    if board.setting("resynthesize"):
        yield html_note(
            "Protocols differ, so training images of other cohorts were computed for the "
            "tested protocol from the model fitted to theirs."
        )
    sizes = []
    for cohort, regime in columns:
        size = board.size(matching(scores, cohort=cohort, train_on=regime))
        sizes.append(f"{cohort} ← {_trained_on(board, cohort, regime)}: {size}")
    yield html_note(f"{board.conditions(scores)}. Training patients: {', '.join(sizes)}.")
    yield html_heading("Mean over tissue parameters")
    yield table(averaged(scores))
    for metric in unique(scores["metric"]):
        yield html_details(metric, table(matching(scores, metric=metric)))


def _trained_on(board: Board, cohort: str, regime: str) -> str:
    """Name the cohorts trained on if there are two in all, otherwise describe them."""
    if len(board.cohorts) > 2:
        return WHOM.get(regime, regime)
    other_cohorts = ", ".join(name for name in board.cohorts if name != cohort)
    return {"same": cohort, "other": other_cohorts, "pooled": "both"}.get(regime, regime)
