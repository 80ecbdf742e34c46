"""Controls of a comparison: predictors to beat, and the perfect prediction."""

from __future__ import annotations

__all__ = ["CONSTANT", "CONTROLS", "PERFECT", "SHUFFLED", "is_control"]

#: A predictor that ignores its input and predicts the median of the training targets.
CONSTANT = "constant"

#: Linear regression trained on shuffled targets.
SHUFFLED = "shuffled"

#: The reference itself.
PERFECT = "perfect"

#: Compared with the algorithms of every strategy, because bias and dispersion alone do not reveal
#: a useless predictor.
CONTROLS = (CONSTANT, SHUFFLED, PERFECT)


def is_control(algorithm: str) -> bool:
    """Return whether an algorithm is a control."""
    return any(word in CONTROLS for word in algorithm.lower().split())
