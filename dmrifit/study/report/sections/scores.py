"""Scores by parameter: bias against dispersion, tables, truth beside reference, signals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import CONSTANT, PERFECT, is_control
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import (
    html_details,
    html_figure,
    html_grid,
    html_heading,
    html_lines,
    html_note,
    html_paragraph,
    html_table,
    png_bytes,
)
from dmrifit.report.numerals import fixed, percent
from dmrifit.stats.metrics import METRICS, MapMetric
from dmrifit.study.report.figures.curves import plot_signal_errors
from dmrifit.study.report.figures.scatter import plot_bias_dispersion, plot_legend
from dmrifit.study.report.sections.elements import (
    TRAINED,
    capital,
    captioned,
    cohort_details,
    headings,
    metric_texts,
    score_table,
    section,
)
from dmrifit.study.summaries import KEYS, Board, largest, matching, tissue, unique

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = [
    "correlation_tables",
    "parameter_tables",
    "reference_table",
    "scatter_figures",
    "signal_scores",
    "truth_tables",
]

_MEANING = {
    "S0": "signal without any weighting, relative to the patient's scale",
    "f": "vascular fraction",
    "Dv": "vascular diffusivity",
    "T2v": "vascular T2",
    "Dt": "tissue diffusivity",
    "D": "diffusivity",
    "ADC": "apparent diffusion coefficient",
    "K": "tissue kurtosis",
    "T2t": "tissue T2",
}


def _meaning(parameter: str, parameters: Sequence[str]) -> str:
    """Say what a parameter is; without relaxation times, f is weighted by them."""
    if parameter == "f" and "T2t" not in parameters:
        return "T2-weighted signal fraction of blood"
    return _MEANING.get(parameter, "")


@section
def scatter_figures(board: Board, gallery: Gallery) -> Iterator[Markup]:
    """Draw dispersion against bias: a panel for each strategy and cohort, and way of training."""
    scores = tissue(board.scores)
    # Its points would all lie in the corner.
    scores = scores[scores["algorithm"] != PERFECT]
    if not len(scores):
        yield html_paragraph("Only the perfect prediction was scored.")
        return
    scores = scores.assign(bias=scores["bias"].abs())
    by_point = scores.groupby([*KEYS, "metric"], sort=False)
    means = by_point[["bias", "dispersion"]].mean().reset_index()
    panels: dict[str, dict[str, tuple[str, pd.DataFrame]]] = {name: {} for name in board.regimes}
    for (train_on, cohort, strategy), rows in means.groupby(KEYS[:3], sort=False):
        conditions = matching(scores, train_on=train_on, cohort=cohort)
        title = captioned(board, f"{cohort}, {strategy}", train_on, conditions)
        panels[train_on][f"bias_dispersion_{cohort}, {strategy}_{train_on}"] = title, rows
    everything = [panel for of_regime in panels.values() for panel in of_regime.values()]
    yield html_paragraph(
        "Each point is the mean over patients for one parameter (shape) and one algorithm "
        "(color); the nearer to the lower left corner, the better. All panels have the same axes; "
        "hollow points lie beyond them. The perfect prediction would stand in the corner."
    )
    legend = plot_legend(unique(means["algorithm"]), unique(means["metric"]))
    yield html_figure(png_bytes(legend), "Legend: colors of algorithms, shapes of parameters")
    for train_on, of_regime in panels.items():
        grid = []
        for name, panel in of_regime.items():
            figure = plot_bias_dispersion([panel], legend=False, like=everything)
            alt = f"Dispersion index against bias index, {panel[0]}"
            grid.append(gallery.show(name, figure, alt))
        title = capital(TRAINED.get(train_on, train_on))
        if train_on == board.regimes[0]:
            yield html_heading(title)
            yield html_grid(grid)
        else:
            yield html_details(title, html_grid(grid))


@section
def parameter_tables(board: Board) -> Iterator[Markup]:
    """Tabulate the relative errors of every parameter."""
    metrics = [metric for metric in METRICS.values() if metric.table == "relative errors"]
    yield html_paragraph(f"Mean over patients of {_descriptions(metrics)}.")
    yield from _by_parameter(board, metrics, signals=False)


@section
def correlation_tables(board: Board) -> Iterator[Markup]:
    """Tabulate the correlation of every parameter."""
    metrics = [metric for metric in METRICS.values() if metric.table == "correlations"]
    text = (
        f"{_descriptions(metrics)} over the voxels of a patient, mean over patients. A constant "
        "prediction has none; it counts as 0 in the summary."
    )
    if len(board.signals):
        text += (
            " Those of the signals are over the voxels of a patient, mean over the unseen "
            "contrasts; pooled, all unseen contrasts of a patient together, which differ so "
            "much that r is high for any predictor."
        )
    yield html_paragraph(text)
    yield from _by_parameter(board, metrics, signals=len(board.signals) > 0)


def _descriptions(metrics: Sequence[MapMetric]) -> str:
    return " / ".join(metric.description or metric.heading for metric in metrics)


def _by_parameter(
    board: Board, metrics: Sequence[MapMetric], *, signals: bool
) -> Iterator[Markup]:
    """Tabulate metrics: a row for each algorithm, a column for each parameter."""
    metrics = [metric for metric in metrics if metric.column in board.scores.columns]
    columns = [metric.column for metric in metrics]
    # Here a constant has no correlation, where the summary counts it as 0.
    undefined = largest(board.evaluation.scores)[[metric.name for metric in metrics]].isna()
    scores = board.scores.copy()
    for metric in metrics:
        scores[metric.column] = scores[metric.column].mask(undefined[metric.name])
    for (train_on, cohort), block in scores.groupby(["train_on", "cohort"], sort=False):
        parameters = unique(block["metric"])
        means = block.groupby(["strategy", "algorithm", "metric"], sort=False)[columns].mean()
        header: list[Any] = ["strategy", "algorithm", *parameters]
        keys = {"train_on": train_on, "cohort": cohort}
        with_signals = signals and len(matching(board.signals, **keys)) > 0
        if with_signals:
            header += [html_lines("signals,", name) for name in ("mean", "worst", "pooled")]
        cells = []
        for strategy, algorithm in unique(zip(block["strategy"], block["algorithm"], strict=True)):
            line = [strategy, algorithm]
            for parameter in parameters:
                key = (strategy, algorithm, parameter)
                line.append(metric_texts(metrics, means.reindex([key]).iloc[0]))
            if with_signals:
                row = keys | {"strategy": strategy, "algorithm": algorithm}
                single, pooled = matching(board.signals, **row), matching(board.pooled, **row)
                worst = single.groupby("contrast")["pearson"].mean().min()
                numbers = single["pearson"].mean(), worst, pooled["pearson"].mean()
                line += [fixed(value, 2) for value in numbers]
            cells.append(line)
        yield cohort_details(board, train_on, cohort, score_table(cells, header))


@section
def truth_tables(board: Board) -> Iterator[Markup]:
    """Lay scores against the truth of synthetic patients beside those against the reference."""
    if not board.has_truth:
        yield html_paragraph(
            "No patient has a known truth: the fit to the full protocol is the only reference."
        )
        return
    metrics = board.summary_metrics
    yield html_paragraph(
        "Only simulation knows the truth. The reference itself, a fit to noisy images, is "
        "scored too: it is what the perfect prediction of the images would give. Predictors "
        "that return the mean can be nearer to the truth than a noisy reference, above all in "
        "T2v. Means over patients and the tissue parameters "
        f"{', '.join(board.averaged_metrics)}: {headings(metrics)}."
    )
    header: list[Any] = ["strategy", "algorithm", "against reference", "against truth"]
    suffixes = ["", "_truth"]
    for (train_on, cohort), rows in board.summary.groupby(["train_on", "cohort"], sort=False):
        if not rows["abs_bias_truth"].notna().any():
            continue
        cells = []
        for row in rows.to_dict("records"):
            texts = [metric_texts(metrics, row, suffix) for suffix in suffixes]
            cells.append([row["strategy"], row["algorithm"], *texts])
        yield cohort_details(board, train_on, cohort, score_table(cells, header))
    yield _truth_by_parameter(board)


def _truth_by_parameter(board: Board) -> Markup:
    """Tabulate each parameter: mean over learners of a strategy, and the reference itself."""
    scores = matching(board.scores, train_on=board.regimes[0])
    scores = scores[scores["bias_truth"].notna()]
    metrics = board.summary_metrics
    columns = [f"{metric.column}_truth" for metric in metrics]
    learners = scores[~scores["algorithm"].map(is_control)]
    blocks = {}
    for strategy in board.strategies:
        blocks[f"{strategy}, mean of algorithms"] = matching(learners, strategy=strategy)
    # What answers the measured images is the reference itself, in any strategy.
    blocks["the reference"] = matching(scores, algorithm=PERFECT, strategy=board.strategies[0])
    rows = []
    for cohort in board.cohorts:
        for name, block in blocks.items():
            means = block[block["cohort"] == cohort].groupby("metric")[columns].mean()
            if not len(means):
                continue
            line = [cohort, name]
            for parameter in board.metrics:
                values = means.reindex([parameter]).iloc[0]
                line.append(metric_texts(metrics, values, "_truth"))
            rows.append(line)
    header = ["cohort", "", *board.metrics]
    table = html_table(rows, header, numbers=range(2, len(header)))
    return html_details(
        f"Against truth, parameter by parameter: {headings(metrics)}", table, opened=True
    )


@section
def reference_table(board: Board) -> Iterator[Markup]:
    """Tabulate shares of voxels with a reference at a bound, without E, without prediction."""
    scores = board.scores
    first = matching(scores, estimator=scores["estimator"].iloc[0])
    first = first.drop_duplicates(["cohort", "patient", "metric"])
    rows = []
    for metric in unique(first["metric"]):
        # The reference is the same for all estimators; which voxels are predicted is not.
        reference = first[first["metric"] == metric]
        predicted = scores[scores["metric"] == metric]
        shares = []
        for cohort in board.cohorts:
            at_bound = reference.loc[reference["cohort"] == cohort, "at_bound"]
            shares.append(percent(at_bound.mean()))
        rows.append([
            metric,
            _meaning(metric, board.metrics),
            str(reference["unit"].iloc[0]).replace("signal", "relative") or "1",
            *shares,
            percent(reference["n_undefined"].sum() / max(reference["n_voxels"].sum(), 1)),
            percent(predicted["n_failed"].sum() / max(predicted["n_voxels"].sum(), 1)),
        ])  # fmt: skip
    header: list[Any] = ["parameter", "meaning", "unit"]
    header += [html_lines("at a bound (% of", f"voxels), {cohort}") for cohort in board.cohorts]
    header += [html_lines("E undefined", "(%)"), html_lines("not predicted", "(%)")]
    yield html_table(rows, header, numbers=range(3, len(header)))
    yield html_note(
        "A reference at a bound of the fit was set by the bound, not by the data. E is undefined "
        "where the reference is zero or was not fitted; such voxels are counted here and left out."
    )


@section
def signal_scores(board: Board, gallery: Gallery) -> Iterator[Markup]:
    """Show how well the unseen images are predicted."""
    signals = board.signals
    counts = signals.groupby("cohort", sort=False)["contrast"].nunique()
    unseen = ", ".join(f"{n} in {cohort}" for cohort, n in counts.items())
    yield html_paragraph(
        f"Only the contrasts that are not among the inputs count ({unseen}); the reference is the "
        "measured signal, noise included. Errors are over the voxels of a patient, then means "
        "over patients and contrasts; pooled, over all unseen contrasts of a patient together."
    )
    regime = board.regimes[0]
    # Of the controls, the constant alone tells how hard a contrast is to predict.
    is_shown = ~signals["algorithm"].map(is_control) | (signals["algorithm"] == CONSTANT)
    first = matching(signals, train_on=regime)
    grid = []
    for cohort in unique(first.loc[first["algorithm"] != PERFECT, "cohort"]):
        shown = matching(first[is_shown[first.index]], cohort=cohort)
        if not np.isfinite(shown["relative_error"]).any():
            continue
        title = captioned(board, cohort, regime, shown)
        figure = plot_signal_errors(shown, title, algorithms=board.algorithms)
        alt = f"Relative error of predicted signals by contrast, {cohort}"
        grid.append(gallery.show(f"signal_errors_{cohort}", figure, alt))
    if grid:
        yield html_grid(grid)
    errors = ("relative_error", "median_relative_error", "signed_relative_error")
    names = ("mean |E| (%)", "median |E| (%)", "mean E (%)")
    cells = []
    for (train_on, cohort, strategy, algorithm), rows in signals.groupby(KEYS, sort=False):
        by_contrast = rows.groupby("contrast", sort=False)["relative_error"].mean()
        worst = by_contrast.idxmax() if by_contrast.notna().any() else "–"
        keys = {"train_on": train_on, "cohort": cohort}
        pooled = matching(board.pooled, **keys, strategy=strategy, algorithm=algorithm)
        cells.append([
            cohort,
            train_on,
            strategy,
            algorithm,
            *(percent(rows[name].mean()) for name in errors),
            f"{percent(by_contrast.max())} ({worst})",
            *(percent(pooled[name].mean()) for name in errors),
            fixed(float(rows["n_undefined"].sum()), 0),
        ])  # fmt: skip
    header: list[Any] = ["cohort", "trained on", "strategy", "algorithm"]
    header += [html_lines(*name.split(" ", 1)) for name in names]
    header.append(html_lines("worst contrast,", "mean |E| (%)"))
    header += [html_lines("pooled,", name) for name in names]
    header.append(html_lines("E", "undefined"))
    yield html_details("All readings", score_table(cells, header, n_words=4))
