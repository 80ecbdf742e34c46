"""Checks of parameters: numbers, counts and words that estimators and functions take."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["check_number", "check_word", "real_numbers"]


def check_number(
    name: str,
    value: Any,
    *,
    least: float = 0.0,
    most: float = np.inf,
    below: float = np.inf,
    whole: bool = False,
) -> None:
    """Refuse a parameter that is not a number, too small or too large."""
    number_types = int | np.integer if whole else int | float | np.integer | np.floating
    # For Python a bool is an int.
    is_number = isinstance(value, number_types) and not isinstance(value, bool)
    if not is_number or not (least <= value <= most and value < below):
        limits = f"from {least:g} to {most:g}" if most < np.inf else f"of at least {least:g}"
        if below < np.inf:
            limits += f" and below {below:g}"
        noun = "whole number" if whole else "number"
        raise ValueError(f"{name} must be a {noun} {limits}, not {value!r}")


def check_word(name: str, value: Any, known: Iterable[Any]) -> None:
    """Refuse a parameter that is not among the known words."""
    words = tuple(known)
    # True equals 1, but must not pass for it.
    is_bool = isinstance(value, bool | np.bool_)
    comparable = [word for word in words if isinstance(word, bool) == is_bool]
    if not isinstance(value, Hashable) or value not in comparable:
        raise ValueError(f"{name} must be one of {', '.join(map(str, words))}, not {value!r}")


def real_numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Turn an argument into an array of real numbers."""
    if np.iscomplexobj(values):
        raise ValueError(
            f"{name} must be real numbers, not {np.asarray(values).dtype}; take the magnitude of "
            "complex ones"
        )
    return np.asarray(values, dtype=np.float64)
