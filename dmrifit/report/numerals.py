"""How pages write numbers: digits, a true minus sign, percent."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from typing import Any

from dmrifit._utils.counts import counted

NOTHING = "–"
_LARGEST_PLAIN = 1e6
_SMALLEST_PLAIN = 1e-4


def fixed(value: float, digits: int) -> str:
    """Write a number with a fixed number of decimals."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    # No negative zero.
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def significant(value: float, digits: int = 3) -> str:
    """Write a number with significant digits, without an exponent where it is a common size."""
    if not math.isfinite(value):
        return NOTHING
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded and not _SMALLEST_PLAIN <= abs(rounded) < _LARGEST_PLAIN:
        return f"{rounded:.{digits - 1}e}".replace("-", "−")
    n_decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0) if rounded else 0
    return fixed(rounded, n_decimals)


def percent(value: float, digits: int = 1) -> str:
    """Write a fraction in percent, without the sign %; from 10 on with one decimal less."""
    # Below 9.95, because what is above is rounded to 10.
    digits = digits if abs(100 * value) < 9.95 else max(digits - 1, 0)
    # Never as none or all where it is not, as `counts.percent`.
    while 0 < value < 1 and digits < 5 and float(f"{100 * value:.{digits}f}") in (0, 100):
        digits += 1
    return fixed(100 * value, digits)


def p_value(value: float) -> str:
    """Write a p-value."""
    if not math.isfinite(value):
        return NOTHING
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


class _Wording(string.Formatter):
    def get_field(self, name: str, args: Any, row: Mapping[str, Any]) -> tuple[Any, str]:
        """Take a value and the ends of its interval, name_low and name_high; NaN without them."""
        ends = [row.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
        return [row[name], *ends], name

    def format_field(self, values: Any, spec: str) -> str:
        kind, value = spec[-1:], values[0]
        if spec.startswith("n "):
            return counted(round(value), spec[2:])
        if kind not in _KINDS:
            return str(value) if spec in ("", "w") else format(value, spec)
        write, digits = _KINDS[kind], int(spec[1:-1] or 1)
        if kind in "iP" and math.isfinite(values[1]):
            return "{} ({} to {})".format(*(write(x, digits) for x in values))
        return write(value, digits)


_KINDS = {
    "f": fixed,
    "s": significant,
    "%": percent,
    "i": fixed,
    "P": percent,
    "p": lambda p, _: p_value(p),
}


def wording(text: str, row: Mapping[str, Any]) -> str:
    """
    Write the values of a record into a text, each by its format.

    ``{x:.2f}`` has two decimals, ``{x:.2s}`` two significant digits; ``{x:.1%}`` is in percent,
    ``{x:.1p}`` a p-value; ``{x:.2i}`` has its interval behind it, from x_low to x_high, and
    ``{x:.1P}`` is so in percent; ``{x:n scan}`` is a number of scans.
    """
    return _Wording().vformat(text, (), row)
