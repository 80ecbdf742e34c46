"""Controls of a comparison: predictors to be beaten, and the best possible answer."""

from __future__ import annotations

__all__ = ["CONSTANT", "CONTROLS", "PERFECT", "SHUFFLED", "is_control"]

#: A predictor that ignores its input and answers with the median of the training targets.
CONSTANT = "constant"

#: Linear regression that is trained on targets of other voxels.
SHUFFLED = "shuffled"

#: The answer itself.
PERFECT = "perfect"

#: What stands beside the algorithms of every strategy: bias and dispersion alone are blind to a
#: useless predictor.
CONTROLS = (CONSTANT, SHUFFLED, PERFECT)


def is_control(algorithm: str) -> bool:
    """Tell whether an algorithm takes part as a control."""
    return any(word in CONTROLS for word in algorithm.lower().split())
