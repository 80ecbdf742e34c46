"""Transfer from one cohort to another, and scores over the number of training patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dmrifit.predict.controls import is_control
from dmrifit.report.dot_plot import Panel, plot_dots
from dmrifit.report.page import Link, Note, Numbers, Picture
from dmrifit.report.style import PALETTE, dash_of, marker_of
from dmrifit.study.report.figures.colors import algorithm_color
from dmrifit.study.report.figures.curves import plot_sizes
from dmrifit.study.report.sections.elements import SKILL_ENDS, WHOM
from dmrifit.study.report.sections.scores import predictor_panels, predictor_rows
from dmrifit.study.skill_summary import size_summary
from dmrifit.study.summaries import Board, averaged, matching, unique

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["curves", "other_sites", "sizes_of"]

_REGIME_COLORS = {"same": "link", "other": "warn", "pooled": "faint"}


def other_sites(board: Board) -> Iterator[Any]:
    """Lay training on other cohorts beside training on the same, for every predictor."""
    if len(board.regimes) < 2:
        return
    rows = predictor_rows(board)
    rows = rows[~rows["algorithm"].map(is_control)]
    series = rows["train_on"].map(lambda name: f"trained on {WHOM.get(name, name)}")
    names = rows["cohort"] + ": " + rows["algorithm"] + " " + rows["strategy"]
    table = rows.assign(row=names, series=series).sort_values("row", kind="stable")
    styles = {}
    for i, train_on in enumerate(board.regimes):
        color = PALETTE[_REGIME_COLORS.get(train_on, "ink")].light
        name = f"trained on {WHOM.get(train_on, train_on)}"
        styles[name] = {"color": color, "marker": marker_of(name, [*"abc"[:i], name])}
    figure = plot_dots(table, predictor_panels(board), styles, "Tested cohort: predictor")
    alt = "Scores of every predictor by tested cohort and cohorts trained on"
    yield Picture(figure, alt, name="other_sites")
    if board.setting("resynthesize"):
        yield Note(
            "Protocols differ, so training images of other cohorts were computed for the "
            "tested protocol from the model fitted to theirs."
        )
    sizes = []
    for train_on in board.regimes:
        size = board.size(matching(board.scores, train_on=train_on))
        sizes.append(f"{WHOM.get(train_on, train_on)} {size}")
    yield Note(f"Training patients: {', '.join(sizes)}. Parameter by parameter:")
    yield Link("tables/parameters.csv", "All numbers: parameters.csv")


def sizes_of(board: Board) -> pd.DataFrame:
    """Summarize the learners by number of training patients, first way of training."""
    scores = averaged(matching(board.evaluation.scores, train_on=board.regimes[0]))
    return size_summary(scores[~scores["algorithm"].map(is_control)])


def curves(board: Board) -> Iterator[Any]:
    """Draw skill and dispersion of every predictor over the number of training patients."""
    if len(unique(board.evaluation.scores["n_train"])) < 2:
        return
    table = sizes_of(board)
    learning = table
    measure = board.skill_column
    table = table.assign(series=table["algorithm"] + " " + table["strategy"])
    panels = [
        Panel(measure, "skill of maps", ends=_ends(table[measure].dropna())),
        Panel("dispersion", "DI (%)", 100),
    ]
    looks: dict[str, Mapping[str, Any]] = {}
    for strategy, algorithm in dict.fromkeys(
        zip(table["strategy"], table["algorithm"], strict=True)
    ):
        looks[f"{algorithm} {strategy}"] = {
            "color": algorithm_color(algorithm, board.algorithms),
            "linestyle": dash_of(strategy, board.strategies),
        }
    shown = board.cohorts[:2]
    yield (f"Means over patients, draws and the parameters {', '.join(board.averaged_metrics)}.")
    figure = plot_sizes(table[table["cohort"].isin(shown)], panels, looks, width=12.4)
    yield Picture(figure, "Skill and dispersion over training patients", name="learning")
    yield Numbers("learning", learning)


def _ends(skill: pd.Series) -> tuple[float, float]:
    """Choose the ends of an axis: skill that went astray must not squeeze what lies above it."""
    if not len(skill):
        return 0.0, 1.0
    return max(float(skill.min()), SKILL_ENDS[0]) - 0.05, max(float(skill.max()), 0.0) + 0.05
