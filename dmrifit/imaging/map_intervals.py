"""Intervals around the predicted maps of an image, and how typical its voxels are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.kernels.layout import UNDETERMINED_SHARE
from dmrifit.engine.models import Parameter
from dmrifit.predict.novelty import NOVEL

if TYPE_CHECKING:
    from dmrifit.predict.conformal import ConformalIntervals

#: Name of the map of `ConformalIntervals.typicality`.
TYPICALITY = "typicality"


def interval_map_names(parameters: Sequence[Parameter]) -> list[str]:
    """List the maps that intervals add to those of the parameters."""
    ends = [f"{parameter.name}_{end}" for parameter in parameters for end in ("low", "high")]
    return [*ends, TYPICALITY]


class MapIntervals:
    """The ends of intervals and the typicality of voxels, filled slab by slab."""

    def __init__(
        self,
        intervals: ConformalIntervals,
        parameters: Sequence[Parameter],
        grid: tuple[int, int, int],
    ) -> None:
        self._intervals = intervals
        self._parameters = tuple(parameters)
        self.maps = {
            name: np.zeros(grid, np.float32) for name in interval_map_names(self._parameters)
        }
        # Outside 0 would say that a voxel is unlike the training voxels.
        self.maps[TYPICALITY].fill(np.nan)

    def add(
        self,
        scaled: NDArray,
        predicted: NDArray,
        unit: float,
        slab: slice,
        inside: NDArray[np.bool_],
    ) -> None:
        """Compute the intervals of a slab from its scaled measurements and predicted maps."""
        ends = self._intervals.intervals_of(scaled, predicted)
        for i, parameter in enumerate(self._parameters):
            scale = unit if parameter.is_amplitude else 1.0
            for side, end in enumerate(("low", "high")):
                self.maps[f"{parameter.name}_{end}"][:, :, slab][inside] = ends[:, i, side] * scale
        self.maps[TYPICALITY][:, :, slab][inside] = self._intervals.typicality(scaled)

    def describe(self, files: Mapping[str, str], region: NDArray[np.bool_]) -> dict[str, Any]:
        """Describe the intervals in a region (x, y, z) for the JSON file beside the maps."""
        intervals = self._intervals
        coverage = intervals.calibration_.groupby("parameter")["coverage"].agg(["mean", "min"])
        entries = {}
        for parameter in self._parameters:
            name = parameter.name
            width = (self.maps[f"{name}_high"] - self.maps[f"{name}_low"])[region]
            width = width[np.isfinite(width)]
            box = parameter.high - parameter.low
            share = None
            # Bounds of an amplitude are multiples of each voxel's signal.
            if len(width) and np.isfinite(box) and not parameter.is_amplitude:
                share = round(float(np.median(width)) / box, 4)
            entries[name] = {
                "Files": [files[f"{name}_low"], files[f"{name}_high"]],
                "TrainingCoverage": round(float(coverage.loc[name, "mean"]), 4),
                "WorstTrainingPatient": round(float(coverage.loc[name, "min"]), 4),
                "MedianShareOfBounds": share,
                "Determined": share is None or share < UNDETERMINED_SHARE,
            }
        return {
            "Description": "Intervals that are meant to hold the reference, one for each voxel",
            "Coverage": intervals.coverage,
            "Guarantee": intervals.guarantee(),
            "Parameters": entries,
            "Typicality": self._describe_typicality(files, region),
        }

    def _describe_typicality(
        self, files: Mapping[str, str], region: NDArray[np.bool_]
    ) -> dict[str, Any]:
        typicality = self.maps[TYPICALITY][region]
        typicality = typicality[np.isfinite(typicality)]
        section: dict[str, Any] = {"File": files[TYPICALITY], "UnlikeBelow": NOVEL}
        novelty = self._intervals.novelty_
        if novelty is not None and len(typicality):
            share = float(np.mean(typicality < NOVEL))
            section["ShareUnlike"] = round(share, 4)
            section["TrainingShares"] = [round(float(x), 4) for x in np.sort(novelty.shares)]
            section["Verdict"] = novelty.describe(share)
        return section
