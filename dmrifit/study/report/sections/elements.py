"""What several sections share: tables with controls in gray, titles with their conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from dmrifit.predict.controls import is_control
from dmrifit.report.html import html_details, html_join, html_table
from dmrifit.report.numerals import fixed, percent
from dmrifit.stats.metrics import MapMetric
from dmrifit.study.summaries import Board, matching

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = [
    "TRAINED",
    "WHOM",
    "capital",
    "captioned",
    "cohort_details",
    "headings",
    "metric_text",
    "metric_texts",
    "score_table",
    "section",
]

#: Training patients in words, by way of training.
WHOM = {"same": "the same cohort", "other": "other cohorts", "pooled": "all cohorts"}
#: Ways of training in words.
TRAINED = {
    "same": "trained on the other patients of the same cohort",
    "other": "trained on all patients of the other cohorts",
    "pooled": "trained on the other patients of all cohorts",
}


def section(make: Callable[..., Iterator[Any]]) -> Callable[..., Markup]:
    """Join what a function yields: the elements of a section, from top to bottom."""

    @wraps(make)
    def joined(*arguments: Any) -> Markup:
        return html_join(make(*arguments))

    return joined


def metric_text(metric: MapMetric, value: float) -> str:
    """Write a score in the unit and with the digits of its metric."""
    if metric.unit == "%":
        return percent(value, metric.digits)
    return fixed(value, metric.digits)


def metric_texts(
    metrics: Sequence[MapMetric], values: Mapping[str, Any] | Any, suffix: str = ""
) -> str:
    """Write the scores of one cell of a table, those of columns with a suffix."""
    return " / ".join(metric_text(m, values[f"{m.column}{suffix}"]) for m in metrics)


def headings(metrics: Sequence[MapMetric]) -> str:
    """Say what such a cell holds."""
    return " / ".join(metric.heading for metric in metrics)


def score_table(
    rows: Sequence[Sequence[Any]], header: Sequence[Any], *, n_words: int = 2
) -> Markup:
    """Make a table of scores; the last of the words in a row names the algorithm."""
    faint = [i for i, row in enumerate(rows) if is_control(row[n_words - 1])]
    return html_table(rows, header, numbers=range(n_words, len(header)), faint=faint)


def cohort_details(
    board: Board, train_on: str, cohort: str, table: Markup, *, label: str = ""
) -> Markup:
    """Put a table under the title of its cohort; those of the first way of training are open."""
    conditions = board.conditions(matching(board.scores, train_on=train_on, cohort=cohort))
    title = f"{label or cohort}, {TRAINED.get(train_on, train_on)}; {conditions}"
    return html_details(title, table, opened=train_on == board.regimes[0])


def captioned(board: Board, title: str, train_on: str, rows: pd.DataFrame) -> str:
    """Write the conditions of the scores of a figure below its title."""
    return f"{title}\ntrained on {WHOM.get(train_on, train_on)}; {board.conditions(rows)}"


def capital(text: str) -> str:
    """Begin with a capital letter; `str.capitalize` would make the others small."""
    return text[:1].upper() + text[1:]
