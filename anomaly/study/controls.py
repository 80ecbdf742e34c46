"""Maps and masks made without having learned anything, which no detector should fall short of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from anomaly.scans.cases import Case

__all__ = ["BRIGHTNESS", "CONTROLS", "control_maps"]

#: The map of one minus the mean signal: what diffuses fast, wherever it is.
BRIGHTNESS = "1 − mean signal"
#: Rows that no detector should fall short of.
CONTROLS = ("all positive", "empty", "brain mask", "another patient's lesion", BRIGHTNESS)


def control_maps(
    cases: Sequence[Case], *, lesions_of: Sequence[Case] | None = None
) -> dict[str, list[NDArray]]:
    """
    Look for lesions without having learned anything.

    Shapes: returns (x, y, z).
    """
    sources = list(cases if lesions_of is None else lesions_of)
    made: dict[str, list[NDArray]] = {name: [] for name in CONTROLS}
    for i, case in enumerate(cases):
        nothing = np.zeros(case.shape, dtype=bool)
        turned = [sources[(i + 1 + j) % len(sources)] for j in range(len(sources))]
        others = (
            one
            for one in turned
            if one.patient != case.patient and not one.healthy and one.shape == case.shape
        )
        other = next(others, None)
        borrowed = nothing if other is None or other.lesion is None else other.lesion
        dark = np.where(case.brain, 1 - case.signal.mean(axis=-1), 0).astype(np.float32)
        for name, values in zip(
            CONTROLS, (case.scored, nothing, case.brain, borrowed, dark), strict=True
        ):
            made[name].append(values)
    return made
