"""Maps and masks made without having learned anything, which no detector should fall short of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from anomaly.scans.cases import Case

#: The map of one minus the mean signal: what diffuses fast, wherever it is.
BRIGHTNESS = "1 − mean signal"
#: Rows that no detector should fall short of.
CONTROLS = ("all positive", "empty", "brain mask", "another patient's lesion", BRIGHTNESS)


def control_maps(
    cases: Sequence[Case], *, lesions_of: Sequence[Case] | None = None
) -> dict[str, list[NDArray]]:
    """Make the maps and masks (x, y, z) of all controls for each case."""
    sources = list(cases if lesions_of is None else lesions_of)
    maps: dict[str, list[NDArray]] = {name: [] for name in CONTROLS}
    for i, case in enumerate(cases):
        nothing = np.zeros(case.shape, dtype=bool)
        # Lesions are edematous and diffuse fast, so that signals alone, unlearned, find many.
        brightness = np.where(case.brain, 1 - case.signal.mean(axis=-1), 0).astype(np.float32)
        # The lesion of the next patient with one on a grid of this shape.
        first = (i + 1) % max(len(sources), 1)
        others = [s for s in sources[first:] + sources[:first] if s.patient != case.patient]
        lesions = [s.lesion for s in others if s.shape == case.shape and not s.healthy]
        lesion: Any = lesions[0] if lesions else nothing
        controls = (case.scored, nothing, case.brain, lesion, brightness)
        for name, values in zip(CONTROLS, controls, strict=True):
            maps[name].append(values)
    return maps
