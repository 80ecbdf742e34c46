"""Numbers with what they count, in the singular or the plural."""

from __future__ import annotations

__all__ = ["counted"]


def counted(n: int, noun: str, plural: str = "") -> str:
    """Write a number with what it counts; `plural` where that is not the noun with an s."""
    return f"{n} {noun}" if n == 1 else f"{n} {plural or f'{noun}s'}"
