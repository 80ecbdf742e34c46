"""How pages write numbers: digits, a true minus sign, percent."""

from __future__ import annotations

import math

__all__ = ["fixed", "p_value", "percent", "significant"]

NOTHING = "–"
_LARGEST_PLAIN = 1e6
_SMALLEST_PLAIN = 1e-4


def fixed(value: float, digits: int) -> str:
    """Write a number with a fixed number of decimals."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    # No negative zero.
    if not float(text):
        return f"{0:.{digits}f}"
    return text.replace("-", "−")


def significant(value: float, digits: int = 3) -> str:
    """Write a number with significant digits, without an exponent where it is a common size."""
    if not math.isfinite(value):
        return NOTHING
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded and not _SMALLEST_PLAIN <= abs(rounded) < _LARGEST_PLAIN:
        return f"{rounded:.{digits - 1}e}".replace("-", "−")
    n_decimals = 0
    if rounded:
        n_decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
    return fixed(rounded, n_decimals)


def percent(value: float, digits: int = 1) -> str:
    """Write a fraction in percent; from 10 on with one decimal less."""
    # Below 9.95, because what is above is rounded to 10.
    if not abs(100 * value) < 9.95:
        digits = max(digits - 1, 0)
    return fixed(100 * value, digits)


def p_value(value: float) -> str:
    """Write a p-value."""
    if not math.isfinite(value):
        return NOTHING
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
