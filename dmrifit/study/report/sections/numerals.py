"""How the report writes numbers."""

from __future__ import annotations

import math

__all__ = ["correlation", "decimals", "p_value", "percent", "plural"]

NOTHING = "–"


def decimals(value: float, n: int) -> str:
    """Write a number with a fixed number of decimals."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:.{n}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{n}f}"


def percent(value: float) -> str:
    """Write a fraction in percent."""
    return decimals(100 * value, 1 if abs(100 * value) < 9.95 else 0)


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
