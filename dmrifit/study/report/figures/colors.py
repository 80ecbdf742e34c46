"""Colors of the algorithms of a comparison: controls are gray."""

from __future__ import annotations

from collections.abc import Sequence

from dmrifit.predict.controls import CONSTANT, COPY, PERFECT, REPEAT, SHUFFLED, TRUTH, is_control
from dmrifit.report.style import color_of

__all__ = ["algorithm_color"]

_GRAYS = {
    CONSTANT: "#8a919b",
    SHUFFLED: "#b9bec6",
    COPY: "#a2a8b0",
    PERFECT: "#4a5563",
    TRUTH: "#5d6773",
    REPEAT: "#737c87",
}


def algorithm_color(name: str, algorithms: Sequence[str]) -> str:
    """Choose the color of an algorithm, or the gray of a control."""
    for word in name.lower().split():
        if word in _GRAYS:
            return _GRAYS[word]
    learners = [algorithm for algorithm in algorithms if not is_control(algorithm)]
    return color_of(name, learners)
