"""Colors of the algorithms of a comparison: controls are gray."""

from __future__ import annotations

from collections.abc import Sequence

from dmrifit.predict.controls import CONSTANT, PERFECT, SHUFFLED, is_control
from dmrifit.report.style import color_of

__all__ = ["algorithm_color"]

_GRAYS = {CONSTANT: "#8a919b", SHUFFLED: "#b9bec6", PERFECT: "#4a5563"}


def algorithm_color(name: str, algorithms: Sequence[str]) -> str:
    """Choose the color of an algorithm, or the gray of a control."""
    for word in name.lower().split():
        if word in _GRAYS:
            return _GRAYS[word]
    learners = [algorithm for algorithm in algorithms if not is_control(algorithm)]
    return color_of(name, learners)
