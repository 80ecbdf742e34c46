"""What several sections share: words, links to tables, titles with their conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

from dmrifit.report.html import html_join, html_link
from dmrifit.report.numerals import fixed, percent
from dmrifit.stats.metrics import MapMetric
from dmrifit.study.summaries import Board

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = [
    "SIGNALS",
    "SKILL_ENDS",
    "TABLES",
    "TRAINED",
    "WHOM",
    "capital",
    "captioned",
    "csv_link",
    "metric_text",
    "section",
]

#: Folder of the tables beside a report.
TABLES = "tables"
#: Name of the images that are not among the inputs.
SIGNALS = "unseen signals"
#: Skill is drawn so far: below, a predictor is worse than guessing, by how much is of no use.
SKILL_ENDS = (-1.0, 1.0)
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


def csv_link(name: str) -> Markup:
    """Point to a table beside the page."""
    return html_link(f"{TABLES}/{name}.csv", f"All numbers: {name}.csv")


def captioned(board: Board, title: str, train_on: str, rows: pd.DataFrame) -> str:
    """Write the conditions of the scores of a figure below its title."""
    return f"{title}\ntrained on {WHOM.get(train_on, train_on)}; {board.conditions(rows)}"


def capital(text: str) -> str:
    """Begin with a capital letter; `str.capitalize` would make the others small."""
    return text[:1].upper() + text[1:]
