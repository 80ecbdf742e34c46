"""Scores by parameter: bias against dispersion, tables, truth beside reference, signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import CONSTANT, PERFECT, is_control
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import (
    html_details,
    html_figure,
    html_grid,
    html_heading,
    html_join,
    html_lines,
    html_note,
    html_paragraph,
    html_table,
    png_bytes,
)
from dmrifit.stats.metrics import METRICS, MapMetric
from dmrifit.study.report.figures.curves import plot_signal_errors
from dmrifit.study.report.figures.scatter import plot_bias_dispersion, plot_legend
from dmrifit.study.report.sections.numerals import (
    correlation,
    decimals,
    headings,
    metric_texts,
    percent,
)
from dmrifit.study.report.sections.overview import TRAINED
from dmrifit.study.summaries import KEYS, WHOM, Board, largest, tissue, unique

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


def scatter_figures(board: Board, gallery: Gallery) -> Markup:
    """Draw dispersion against bias: a panel for each strategy and cohort, and way of training."""
    scores = tissue(board.scores)
    scores = scores[scores["algorithm"] != PERFECT]
    if not len(scores):
        return html_paragraph("Only the perfect prediction was scored.")
    scores = scores.assign(bias=scores["bias"].abs())
    means = (
        scores.groupby([*KEYS, "metric"], sort=False)[["bias", "dispersion"]].mean().reset_index()
    )
    panels = []
    for (train_on, cohort, strategy), rows in means.groupby(
        ["train_on", "cohort", "strategy"], sort=False
    ):
        scored = _of(scores, train_on, cohort)
        note = f"trained on {WHOM.get(train_on, train_on)}; {board.conditions(scored)}"
        panels.append((train_on, f"{cohort}, {strategy}\n{note}", rows))
    everything = [(title, rows) for _, title, rows in panels]
    legend = plot_legend(unique(means["algorithm"]), unique(means["metric"]))
    parts: list[Any] = [
        html_paragraph(
            "Each point is the mean over patients for one parameter (shape) and one algorithm "
            "(color); the nearer to the lower left corner, the better. All panels have the same "
            "axes; hollow points lie beyond them. The perfect prediction would stand in the "
            "corner."
        ),
        html_figure(png_bytes(legend), "Legend: colors of algorithms, shapes of parameters"),
    ]
    for train_on in board.regimes:
        grid = [
            gallery.show(
                f"bias_dispersion_{title.partition(chr(10))[0]}_{train_on}",
                plot_bias_dispersion([(title, rows)], legend=False, like=everything),
                f"Dispersion index against bias index, {title}",
            )
            for regime, title, rows in panels
            if regime == train_on
        ]
        title = _capital(TRAINED.get(train_on, train_on))
        if train_on == board.regimes[0]:
            parts += [html_heading(title), html_grid(grid)]
        else:
            parts.append(html_details(title, html_grid(grid)))
    return html_join(parts)


def parameter_tables(board: Board) -> Markup:
    """Tabulate the relative errors of every parameter."""
    metrics = [metric for metric in METRICS.values() if metric.table == "relative errors"]
    text = f"Mean over patients of {_descriptions(metrics)}."
    return html_join([html_paragraph(text), *_by_parameter(board, metrics)])


def correlation_tables(board: Board) -> Markup:
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
    return html_join([html_paragraph(text), *_by_parameter(board, metrics, signals=True)])


def _descriptions(metrics: Sequence[MapMetric]) -> str:
    return " / ".join(metric.description or metric.heading for metric in metrics)


def _by_parameter(
    board: Board, metrics: Sequence[MapMetric], *, signals: bool = False
) -> list[Markup]:
    """Tabulate metrics: a row for each algorithm, a column for each parameter."""
    metrics = [metric for metric in metrics if metric.column in board.scores.columns]
    columns = [metric.column for metric in metrics]
    absent = dict.fromkeys(columns, np.nan)
    parts = []
    # Here a constant has no correlation, where the summary counts it as 0.
    undefined = largest(board.evaluation.scores)[[metric.name for metric in metrics]].isna()
    scores = board.scores.copy()
    for metric in metrics:
        scores[metric.column] = scores[metric.column].mask(undefined[metric.name])
    for (train_on, cohort), block in scores.groupby(["train_on", "cohort"], sort=False):
        parameters = unique(block["metric"])
        means = block.groupby(["strategy", "algorithm", "metric"], sort=False)[columns].mean()
        header: list[Any] = ["strategy", "algorithm", *parameters]
        single, pooled = (_of(table, train_on, cohort) for table in (board.signals, board.pooled))
        with_signals = signals and len(single) > 0
        if with_signals:
            header += [html_lines("signals,", name) for name in ("mean", "worst", "pooled")]
        cells, faint = [], []
        for i, (strategy, algorithm) in enumerate(
            unique(zip(block["strategy"], block["algorithm"], strict=True))
        ):
            line = [strategy, algorithm]
            for parameter in parameters:
                key = (strategy, algorithm, parameter)
                values = means.loc[key] if key in means.index else absent
                line.append(metric_texts(metrics, values))
            if with_signals:
                own = single[(single["strategy"] == strategy) & (single["algorithm"] == algorithm)]
                together = pooled[
                    (pooled["strategy"] == strategy) & (pooled["algorithm"] == algorithm)
                ]
                contrasts = own.groupby("contrast")["pearson"].mean()
                line += [
                    correlation(x)
                    for x in (own["pearson"].mean(), contrasts.min(), together["pearson"].mean())
                ]
            cells.append(line)
            faint += [i] if is_control(algorithm) else []
        title = f"{cohort}, {TRAINED.get(train_on, train_on)}; {board.conditions(block)}"
        table = html_table(cells, header, numbers=range(2, len(header)), faint=faint)
        parts.append(html_details(title, table, opened=train_on == board.regimes[0]))
    return parts


def truth_tables(board: Board) -> Markup:
    """Lay scores against the truth of synthetic patients beside those against the reference."""
    if not board.has_truth:
        return html_paragraph(
            "No patient has a known truth: the fit to the full protocol is the only reference."
        )
    metrics = board.summary_metrics
    text = (
        "Only simulation knows the truth. The reference itself, a fit to noisy images, is "
        "scored too: it is what the perfect prediction of the images would give. Predictors "
        "that return the mean can be nearer to the truth than a noisy reference, above all in "
        f"T2v. Means over patients and tissue parameters: {headings(metrics)}."
    )
    header: list[Any] = ["strategy", "algorithm", "against reference", "against truth"]
    suffixes = ["", "_truth"]
    if "T2v" in board.metrics and len(board.metrics) > 1:
        header += [html_lines(name, "without T2v") for name in header[2:]]
        suffixes += ["_without_T2v", "_truth_without_T2v"]
    parts: list[Any] = [html_paragraph(text)]
    for (train_on, cohort), rows in board.summary.groupby(["train_on", "cohort"], sort=False):
        if not rows["abs_bias_truth"].notna().any():
            continue
        cells, faint = [], []
        for i, row in enumerate(rows.to_dict("records")):
            line = [row["strategy"], row["algorithm"]]
            line += [metric_texts(metrics, row, suffix) for suffix in suffixes]
            cells.append(line)
            faint += [i] if is_control(row["algorithm"]) else []
        conditions = board.conditions(_of(board.scores, train_on, cohort))
        title = f"{cohort}, {TRAINED.get(train_on, train_on)}; {conditions}"
        parts.append(
            html_details(
                title,
                html_table(cells, header, numbers=range(2, len(header)), faint=faint),
                opened=train_on == board.regimes[0],
            )
        )
    return html_join([*parts, _truth_by_parameter(board)])


def _truth_by_parameter(board: Board) -> Markup:
    """Tabulate each parameter: mean over learners of a strategy, and the reference itself."""
    scores = board.scores[
        (board.scores["train_on"] == board.regimes[0]) & board.scores["bias_truth"].notna()
    ]
    metrics = board.summary_metrics
    columns = [f"{metric.column}_truth" for metric in metrics]
    absent = dict.fromkeys(columns, np.nan)
    learners = scores[~scores["algorithm"].map(is_control)]
    perfect = scores[
        (scores["algorithm"] == PERFECT) & (scores["strategy"] == board.strategies[0])
    ]
    rows = []
    for cohort in board.cohorts:
        for name, block in (
            *(
                (f"{strategy}, mean of algorithms", learners[learners["strategy"] == strategy])
                for strategy in board.strategies
            ),
            ("the reference", perfect),
        ):
            means = block[block["cohort"] == cohort].groupby("metric")[columns].mean()
            if not len(means):
                continue
            line = [cohort, name]
            for parameter in board.metrics:
                values = means.loc[parameter] if parameter in means.index else absent
                line.append(metric_texts(metrics, values, "_truth"))
            rows.append(line)
    header = ["cohort", "", *board.metrics]
    table = html_table(rows, header, numbers=range(2, len(header)))
    return html_details(
        f"Against truth, parameter by parameter: {headings(metrics)}", table, opened=True
    )


def reference_table(board: Board) -> Markup:
    """Tabulate shares of voxels with a reference at a bound, without E, without prediction."""
    scores = board.scores
    first = scores[scores["estimator"] == scores["estimator"].iloc[0]].drop_duplicates(
        ["cohort", "patient", "metric"]
    )
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
            _MEANING.get(metric, ""),
            str(reference["unit"].iloc[0]).replace("signal", "relative") or "1",
            *shares,
            percent(reference["n_undefined"].sum() / max(reference["n_voxels"].sum(), 1)),
            percent(predicted["n_failed"].sum() / max(predicted["n_voxels"].sum(), 1)),
        ])  # fmt: skip
    header: list[Any] = ["parameter", "meaning", "unit"]
    header += [html_lines("at a bound (% of", f"voxels), {cohort}") for cohort in board.cohorts]
    header += [html_lines("E undefined", "(%)"), html_lines("not predicted", "(%)")]
    table = html_table(rows, header, numbers=range(3, len(header)))
    note = (
        "A reference at a bound of the fit was set by the bound, not by the data. E is "
        "undefined where the reference is zero or was not fitted; such voxels are counted here "
        "and left out."
    )
    return html_join([table, html_note(note)])


def signal_scores(board: Board, gallery: Gallery) -> Markup:
    """Show how well the unseen images are predicted."""
    signals = board.signals
    errors = ("relative_error", "median_relative_error", "signed_relative_error")
    cells, faint = [], []
    for i, ((train_on, cohort, strategy, algorithm), rows) in enumerate(
        signals.groupby(KEYS, sort=False)
    ):
        contrasts = rows.groupby("contrast", sort=False)[["relative_error", "pearson"]].mean()
        worst = (
            contrasts["relative_error"].idxmax()
            if contrasts["relative_error"].notna().any()
            else "–"
        )
        together = _of(board.pooled, train_on, cohort)
        together = together[
            (together["strategy"] == strategy) & (together["algorithm"] == algorithm)
        ]
        cells.append([
            cohort,
            train_on,
            strategy,
            algorithm,
            *(percent(rows[name].mean()) for name in errors),
            f"{percent(contrasts['relative_error'].max())} ({worst})",
            *(percent(together[name].mean()) for name in errors),
            decimals(float(rows["n_undefined"].sum()), 0),
        ])  # fmt: skip
        faint += [i] if is_control(algorithm) else []
    header: list[Any] = ["cohort", "trained on", "strategy", "algorithm"]
    header += [
        html_lines("mean", "|E| (%)"),
        html_lines("median", "|E| (%)"),
        html_lines("mean", "E (%)"),
    ]
    header += [html_lines("worst contrast,", "mean |E| (%)")]
    header += [
        html_lines("pooled,", name) for name in ("mean |E| (%)", "median |E| (%)", "mean E (%)")
    ]
    header += [html_lines("E", "undefined")]
    counts = signals.groupby("cohort", sort=False)["contrast"].nunique()
    unseen = ", ".join(f"{n} in {cohort}" for cohort, n in counts.items())
    grid = []
    first = signals[(signals["train_on"] == board.regimes[0]) & (signals["algorithm"] != PERFECT)]
    for cohort in unique(first["cohort"]):
        shown = first[first["cohort"] == cohort]
        shown = shown[~shown["algorithm"].map(is_control) | (shown["algorithm"] == CONSTANT)]
        if not np.isfinite(shown["relative_error"]).any():
            continue
        note = f"trained on {WHOM.get(board.regimes[0], board.regimes[0])}"
        title = f"{cohort}\n{note}; {board.conditions(shown)}"
        figure = plot_signal_errors(shown, title, algorithms=board.algorithms)
        grid.append(
            gallery.show(
                f"signal_errors_{cohort}",
                figure,
                f"Relative error of predicted signals by contrast, {cohort}",
            )
        )
    text = (
        f"Only the contrasts that are not among the inputs count ({unseen}); the reference is "
        "the measured signal, noise included. Errors are over the voxels of a patient, then "
        "means over patients and contrasts; pooled, over all unseen contrasts of a patient "
        "together."
    )
    table = html_table(cells, header, numbers=range(4, len(header)), faint=faint)
    return html_join(
        [
            html_paragraph(text),
            html_grid(grid) if grid else "",
            html_details("All readings", table),
        ]
    )


def _of(table: pd.DataFrame, train_on: str, cohort: str) -> pd.DataFrame:
    # A table without rows may lack its columns.
    if not len(table):
        return table
    return table[(table["train_on"] == train_on) & (table["cohort"] == cohort)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
