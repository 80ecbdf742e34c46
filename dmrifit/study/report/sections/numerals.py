"""How the report writes numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dmrifit.stats.metrics import MapMetric

__all__ = [
    "correlation",
    "decimals",
    "headings",
    "metric_text",
    "metric_texts",
    "p_value",
    "percent",
    "plural",
]

NOTHING = "–"


def decimals(value: float, n: int) -> str:
    """Write a number with a fixed number of decimals."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:.{n}f}"
    # No negative zero.
    if not float(text):
        return f"{0:.{n}f}"
    return text.replace("-", "−")


def percent(value: float, digits: int = 1) -> str:
    """Write a fraction in percent; from 10 on with one decimal less."""
    # Below 9.95, because what is above is rounded to 10.
    if not abs(100 * value) < 9.95:
        digits = max(digits - 1, 0)
    return decimals(100 * value, digits)


def metric_text(metric: MapMetric, value: float) -> str:
    """Write a score in the unit and with the digits of its metric."""
    if metric.unit == "%":
        return percent(value, metric.digits)
    return decimals(value, metric.digits)


def metric_texts(
    metrics: Sequence[MapMetric], values: Mapping[str, Any] | Any, suffix: str = ""
) -> str:
    """Write the scores of one cell of a table, those of columns with a suffix."""
    return " / ".join(metric_text(m, values[f"{m.column}{suffix}"]) for m in metrics)


def headings(metrics: Sequence[MapMetric]) -> str:
    """Say what such a cell holds."""
    return " / ".join(metric.heading for metric in metrics)


def correlation(value: float) -> str:
    """Write a correlation."""
    return decimals(value, 2)


def p_value(value: float) -> str:
    """Write a p-value."""
    if not math.isfinite(value):
        return NOTHING
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def plural(n: int, noun: str) -> str:
    """Write a number with what it counts."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
