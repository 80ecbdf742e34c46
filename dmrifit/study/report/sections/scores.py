"""Scores of predictors, parameters, truth, unseen signals and reference, in words and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dmrifit.predict.controls import CONSTANT, PERFECT, is_control
from dmrifit.report.dot_plot import Panel, plot_dots
from dmrifit.report.numerals import percent, wording
from dmrifit.report.page import Grid, Note, Numbers, Picture, Table, Texts
from dmrifit.report.style import FAINT, GOOD, LINK, PALE, WARN
from dmrifit.stats.metrics import METRICS, MapMetric
from dmrifit.study.report.figures import plot_signal_errors, series_looks
from dmrifit.study.summaries import KEYS, SKILL_NAMES, Board, matching, summary_metrics, unique

#: Name of the images that are not among the inputs.
SIGNALS = "unseen signals"
#: Ends of axes of skill: how much worse than the constant a predictor is below −1 is of no use.
SKILL_ENDS = (-1.0, 1.0)

_TEXTS = Texts(__file__)
_DIAMOND = {"color": WARN, "marker": "D"}
_STYLES: dict[str, dict[str, Any]] = {
    "algorithm": {"color": LINK},
    "algorithm, independent noise": _DIAMOND,
    "control": {"color": PALE},
    "control, independent noise": _DIAMOND | {"color": PALE},
}


def training_words(train_on: str, kind: str = "trained") -> str:
    """Put a way of training in words: how ("trained"), or on whom ("whom")."""
    return str(_TEXTS[kind].get(train_on, train_on))


def metric_format(metric: MapMetric) -> str:
    """Give the format of scores in the unit and with the digits of their metric."""
    return f".{metric.digits}{'%' if metric.unit == '%' else 'f'}"


def metric_text(metric: MapMetric, value: float) -> str:
    """Write a score in the unit and with the digits of its metric."""
    return wording(f"{{score:{metric_format(metric)}}}", {"score": value})


def independent(rows: pd.DataFrame) -> pd.DataFrame:
    """Take skill and correlation with independent noise, and no other score."""
    rows = rows[rows["skill_independent"].notna()]
    scores = rows.filter(like="_independent")
    scores.columns = scores.columns.str.replace("_independent", "")
    return rows.select_dtypes(exclude="number").join(scores)


def predictor_panels(board: Board, skill_column: str) -> list[Panel]:
    """List the scores of a predictor that are drawn beside each other."""
    panels = [Panel(skill_column, SKILL_NAMES[skill_column], ends=SKILL_ENDS)]
    if len(board.signals):
        panels.insert(0, Panel("signal_skill", "signal skill", ends=SKILL_ENDS))
    return [*panels, *map(_metric_panel, summary_metrics())]


def predictor_scores(board: Board) -> Iterator[Any]:
    """Draw the scores of every algorithm and control, a figure for each cohort."""
    rows = matching(board.summary, train_on=board.regimes[0])
    rows = rows.assign(control=rows["algorithm"].map(is_control))
    rows["row"] = rows["algorithm"] + " " + rows["strategy"]
    rows["series"] = np.where(rows["control"], "control", "algorithm")
    second = independent(rows)
    table = pd.concat([rows, second.assign(series=second["series"] + ", independent noise")])
    styles = {name: look for name, look in _STYLES.items() if (table["series"] == name).any()}
    panels = predictor_panels(board, "skill")
    table = table.sort_values(["control", "skill"], ascending=[True, False])
    yield from _by_cohort(board, "by_predictor", table, panels, styles)
    yield Note(_TEXTS("predictors", metrics=", ".join(board.averaged_metrics)))
    yield Numbers("skill", board.overview)


def _by_cohort(
    board: Board,
    name: str,
    table: pd.DataFrame,
    panels: Sequence[Panel],
    looks: Mapping[str, Mapping[str, Any]],
) -> Iterator[Picture]:
    """Draw scores of the first way of training, a figure for each cohort."""
    for cohort in board.cohorts:
        title = f"{cohort}, {training_words(board.regimes[0])}"
        figure = plot_dots(matching(table, cohort=cohort), panels, looks, title)
        yield _TEXTS.picture(name, figure, cohort=cohort)


def _metric_panel(metric: MapMetric) -> Panel:
    return Panel(metric.column, metric.heading, 100 if metric.unit == "%" else 1)


def parameter_table(board: Board) -> pd.DataFrame:
    """Tabulate every score by predictor and parameter, with intervals where there are any."""
    columns = [metric.column for metric in METRICS.values()]
    rows = board.skill[~board.skill["parameters"].isin(["signals", "tissue"])]
    others = [name for name in columns if name not in rows.columns]
    means = board.scores.groupby([*KEYS, "metric"], sort=False)[others].mean()
    return rows.join(means.rename_axis(index={"metric": "parameters"}), on=[*KEYS, "parameters"])


def parameter_scores(board: Board) -> Iterator[Any]:
    """Draw the scores of every parameter, a dot for each predictor and the constant in gray."""
    table = parameter_table(board)
    shown = matching(table, train_on=board.regimes[0])
    is_shown = ~shown["algorithm"].map(is_control) | (shown["algorithm"] == CONSTANT)
    shown = shown[is_shown].assign(
        row=shown["parameters"],
        series=shown["algorithm"] + " " + shown["strategy"],
        control=shown["algorithm"].map(is_control),
    )
    panels = [Panel(board.skill_column, SKILL_NAMES[board.skill_column], ends=SKILL_ENDS)]
    panels += map(_metric_panel, METRICS.values())
    # A color for each algorithm and a shape for each strategy.
    looks = series_looks(shown, board.learners, board.strategies, "marker")
    yield from _by_cohort(board, "by_parameter", shown, panels, looks)
    if board.skill_column != "skill":
        yield Note(_TEXTS["first_panel"])
    if board.parameters != board.averaged_metrics:
        yield Note(_TEXTS["left_out"])
    yield Numbers("parameters", table)


def truth_scores(board: Board) -> Iterator[Any]:
    """Lay scores against the truth of synthetic patients beside those against the reference."""
    if not board.has_truth:
        return
    metrics = summary_metrics()
    summary = matching(board.summary, train_on=board.regimes[0])
    names = summary["cohort"] + ": " + summary["algorithm"] + " " + summary["strategy"]
    parts = []
    reference, truth = "against the reference", "against the truth"
    for series, suffix in ((reference, ""), (truth, "_truth")):
        values = {m.column: summary[f"{m.column}{suffix}"] for m in metrics}
        parts.append(summary[["algorithm"]].assign(row=names, series=series, **values))
    table = pd.concat(parts).assign(control=lambda rows: rows["algorithm"].map(is_control))
    panels = list(map(_metric_panel, metrics))
    styles = {reference: {"color": FAINT}, truth: {"color": GOOD, "marker": "D"}}
    figure = plot_dots(table, panels, styles, "Synthetic patients: truth and reference")
    yield _TEXTS["truth_explained"]
    yield _TEXTS.picture("truth", figure)


def reference_table(board: Board) -> Iterator[Any]:
    """Tabulate shares of voxels with a reference at a bound, without E, without prediction."""
    first = matching(board.scores, estimator=board.scores["estimator"].iloc[0])
    first = first.drop_duplicates(["cohort", "patient", "metric"])
    rows = []
    for metric in unique(first["metric"]):
        # The reference is the same for all estimators; which voxels are predicted is not.
        reference = matching(first, metric=metric)
        predicted = matching(board.scores, metric=metric)
        at_bound = reference.groupby("cohort")["at_bound"].mean().reindex(board.cohorts)
        meaning = _TEXTS["meaning"].get(metric, "")
        # Without relaxation times, f is weighted by them.
        if metric == "f" and not {"T2t", "dR2"} & set(board.metrics):
            meaning = "T2-weighted signal fraction of perfusion"
        unit = str(reference["unit"].iloc[0]).replace("signal", "relative") or "1"
        # As at a bound, each patient counts as much.
        undefined = (reference["n_undefined"] / reference["n_voxels"]).mean()
        failed = (predicted["n_failed"] / predicted["n_voxels"]).mean()
        shares = [*at_bound, undefined, failed]
        rows.append([metric, meaning, unit, *map(percent, shares)])
    kinds = [*(f"at a bound, {name}" for name in board.cohorts), "E undefined", "not predicted"]
    headings = [f"{kind}\n(% of voxels,\nmean over patients)" for kind in kinds]
    header = ["parameter", "meaning", "unit", *headings]
    yield Table(rows, header, numbers=range(3, len(header)))
    yield Note(_TEXTS["reference"])


def signal_scores(board: Board) -> Iterator[Any]:
    """Draw how well the unseen images are predicted."""
    signals = board.signals
    if signals.empty:
        return
    means = ["relative_error", "median_relative_error", "signed_relative_error", "pearson"]
    by_contrast = signals.groupby([*KEYS, "contrast"], sort=False)[means].mean()
    counts = signals.groupby("cohort", sort=False)["contrast"].nunique()
    unseen = ", ".join(f"{n} in {cohort}" for cohort, n in counts.items())
    yield _TEXTS("signals", unseen=unseen)
    regime = board.regimes[0]
    # Of the controls, the constant alone tells how hard a contrast is to predict.
    is_shown = ~signals["algorithm"].map(is_control) | (signals["algorithm"] == CONSTANT)
    first = matching(signals, train_on=regime)
    grid = []
    for cohort in unique(first.loc[first["algorithm"] != PERFECT, "cohort"]):
        shown = matching(first[is_shown[first.index]], cohort=cohort)
        if not np.isfinite(shown["relative_error"]).any():
            continue
        title = f"{cohort}\ntrained on {training_words(regime, 'whom')}; {board.conditions(shown)}"
        figure = plot_signal_errors(shown, title, learners=board.learners)
        grid.append(_TEXTS.picture("signal_errors", figure, cohort=cohort))
    if grid:
        yield Grid(*grid)
    yield Numbers("signals_by_contrast", by_contrast.reset_index())
