"""Controls of a comparison: predictors to beat, and the perfect prediction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmrifit.cohort.scaling import echo_times
from dmrifit.engine.protocol import MS_PER_UM2_PER_S_PER_MM2, Protocol

#: A predictor that ignores its input and predicts the median of the training targets.
CONSTANT = "constant"

#: Linear regression trained on shuffled targets.
SHUFFLED = "shuffled"

#: What was measured already: the nearest source contrast, or the nearest clinical map.
COPY = "copy"

#: The reference itself.
PERFECT = "perfect"

#: Signals of a synthetic patient without noise, and the true parameters.
TRUTH = "truth"

#: Signals of a synthetic patient with noise drawn again, and the fit to them.
REPEAT = "repeat"

#: Compared with the algorithms of every strategy, because bias and dispersion alone do not reveal
#: a useless predictor.
CONTROLS = (CONSTANT, SHUFFLED, COPY, PERFECT, TRUTH, REPEAT)

#: Controls that a useful predictor is better than.
TO_BEAT = (CONSTANT, SHUFFLED, COPY)

#: Controls that need the signals of synthetic patients before noise was added.
OF_NOISE_FREE = (TRUTH, REPEAT)

#: Controls that answer without training.
UNTRAINED = (COPY, PERFECT, TRUTH, REPEAT)

# Typical of tissue; they only weigh distances in b against distances in echo time.
_DIFFUSIVITY = 1.0  # µm²/ms
_T2 = 70.0  # ms


def is_control(algorithm: str) -> bool:
    """Return whether an algorithm is a control."""
    return any(word in CONTROLS for word in algorithm.lower().split())


def nearest_contrasts(source: Protocol, target: Protocol) -> NDArray[np.intp]:
    """
    Find the source contrast that is nearest to each target contrast.

    The distance is the difference of the logarithms of the signals that tissue of 1 µm²/ms and a
    T2 of 70 ms would have, b and echo time added up; of equal ones the first is taken.

    Shapes: returns (n_target,).
    """
    b_unit = MS_PER_UM2_PER_S_PER_MM2 * _DIFFUSIVITY
    in_b = np.abs(target.b[:, None] - source.b) * b_unit
    in_te = np.abs(echo_times(target)[:, None] - echo_times(source)) / _T2
    return np.asarray((in_b + in_te).argmin(axis=1))
