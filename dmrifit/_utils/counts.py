"""Numbers with what they count, in the singular or the plural, and lists of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import SupportsIndex


def counted(n: SupportsIndex, noun: str, plural: str = "") -> str:
    """Write a number with what it counts; `plural` where that is not the noun with an s."""
    return f"{n} {noun}" if n == 1 else f"{n} {plural or f'{noun}s'}"


def first_few(names: Sequence[object], most: int = 5) -> str:
    """List the first names, and say how many more there are."""
    text = ", ".join(map(str, names[:most]))
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def size_text(sizes: Iterable[object]) -> str:
    """Write the lengths of the axes of an array."""
    return " × ".join(map(str, sizes))


def percent(share: float | None) -> str:
    """Write a share in percent, below 1 % to one digit; never as none or all where it is not."""
    if share is None:
        return "n/a"
    for digits in range(int(share < 0.0095), 6):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0, 100) or share > 1:
            return f"{text} %"
    return f"{100 * share:.0f} %"
