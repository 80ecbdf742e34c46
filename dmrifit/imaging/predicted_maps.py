"""Predicted maps of an image, intervals around them, and how typical its voxels are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.kernels.layout import UNDETERMINED_SHARE
from dmrifit.engine.models import SignalModel
from dmrifit.predict.novelty import NOVEL

if TYPE_CHECKING:
    from dmrifit.predict.conformal import ConformalIntervals
    from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

#: Name of the map of `ConformalIntervals.typicality`.
TYPICALITY = "typicality"


def predicted_map_names(model: SignalModel | None, *, with_intervals: bool) -> list[str]:
    """List the maps of a prediction: parameters, and with intervals their ends and typicality."""
    if model is None:
        return []
    names = list(model.names)
    if with_intervals:
        names += [f"{name}_{end}" for name in model.names for end in ("low", "high")]
        names.append(TYPICALITY)
    return names


class PredictedMaps:
    """The maps of a prediction and the counts of its voxels, filled slab by slab."""

    def __init__(
        self,
        estimator: SignalToSignal | MapsToMaps,
        model: SignalModel | None,
        grid: tuple[int, int, int],
        *,
        signals: bool,
        intervals: ConformalIntervals | None,
    ) -> None:
        self.parameters = () if model is None else tuple(model.parameters)
        names = predicted_map_names(model, with_intervals=intervals is not None)
        self.maps: dict[str, NDArray] = {name: np.zeros(grid, np.float32) for name in names}
        if TYPICALITY in self.maps:
            # Outside 0 would say that a voxel is unlike the training voxels.
            self.maps[TYPICALITY].fill(np.nan)
        if signals:
            assert estimator.target is not None
            self.maps["signals"] = np.zeros((*grid, len(estimator.target)), np.float32)
        self.region = np.zeros(grid, bool)
        self.counts = {"InMask": 0, "WithSignal": 0, "NegativeSignal": 0}
        self._estimator: Any = estimator
        self._intervals = intervals if model is not None else None

    def add(
        self,
        rows: NDArray,
        unit: float,
        noise: float | NDArray | None,
        slab: slice,
        inside: NDArray[np.bool_],
    ) -> None:
        """Predict the voxels of a slab from their measurements, divided by the patient's scale."""
        # The estimator was trained on signals in multiples of the patient's scale.
        scaled = rows / unit
        options = {} if noise is None else {"sigma": noise / unit}
        columns: dict[str, NDArray] = {}
        fits_signals = hasattr(self._estimator, "maps_of")
        if "signals" in self.maps or fits_signals:
            predicted = np.asarray(self._estimator.predict(scaled))
            self.counts["NegativeSignal"] += int((predicted < 0).any(axis=1).sum())
        if "signals" in self.maps:
            columns["signals"] = predicted * unit
        if self.parameters:
            # Maps are fitted to the predicted signals where the estimator predicts signals.
            if fits_signals:
                maps = self._estimator.maps_of(predicted, **options)
            else:
                maps = np.asarray(self._estimator.predict_maps(scaled, **options))
            ends = None
            if self._intervals is not None:
                ends = self._intervals.intervals_of(scaled, maps)
                columns[TYPICALITY] = self._intervals.typicality(scaled)
            for j, parameter in enumerate(self.parameters):
                gain = unit if parameter.is_amplitude else 1.0
                columns[parameter.name] = maps[:, j] * gain
                if ends is not None:
                    columns[f"{parameter.name}_low"] = ends[:, j, 0] * gain
                    columns[f"{parameter.name}_high"] = ends[:, j, 1] * gain
        for name, column in columns.items():
            self.maps[name][:, :, slab][inside] = column
        self.region[:, :, slab] |= inside
        self.counts["InMask"] += len(rows)
        self.counts["WithSignal"] += int(np.isfinite(rows).all(axis=1).sum())

    def describe_intervals(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Describe the intervals for the JSON file beside the maps; nothing without intervals."""
        intervals = self._intervals
        if intervals is None:
            return {}
        coverage = intervals.calibration_.groupby("parameter")["coverage"].agg(["mean", "min"])
        entries = {}
        for parameter in self.parameters:
            name = parameter.name
            width = (self.maps[f"{name}_high"] - self.maps[f"{name}_low"])[self.region]
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
        section: dict[str, Any] = {"File": files[TYPICALITY], "UnlikeBelow": NOVEL}
        typicality = self.maps[TYPICALITY][self.region]
        typicality = typicality[np.isfinite(typicality)]
        novelty = intervals.novelty_
        if novelty is not None and len(typicality):
            share_unlike = float(np.mean(typicality < NOVEL))
            section["ShareUnlike"] = round(share_unlike, 4)
            section["TrainingShares"] = [round(float(x), 4) for x in np.sort(novelty.shares)]
            section["Verdict"] = novelty.describe(share_unlike)
        description = {
            "Description": "Intervals that are meant to hold the reference, one for each voxel",
            "Coverage": intervals.coverage,
            "Guarantee": intervals.guarantee(),
            "Parameters": entries,
            "Typicality": section,
        }
        return {"Intervals": description}
