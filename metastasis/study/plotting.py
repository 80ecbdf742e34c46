"""Figures of segmentations: lesions in three planes, curves over thresholds, calibration."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.report.plane_figures import cube_around, draw_planes, finish_planes
from dmrifit.report.style import (
    NOT_CLINICAL,
    PALE,
    PANEL,
    SYNTHETIC,
    color_of,
    handle,
    head,
    legend_below,
    method_color,
    new_figure,
    shared_style,
)
from metastasis.segmentation.ensemble import CANDIDATE, CONFIRMED_LABEL
from metastasis.study.controls import CONTROLS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metastasis.scans.cases import Case

__all__ = ["place_to_show", "plot_calibration", "plot_curves", "plot_overlay"]

_REFERENCE, _CONFIRMED, _CANDIDATE = "#00d0a0", "#ff5d5d", "#ffb000"
_CONTROL_MARKS = dict(zip(CONTROLS, ("s", "o", "^", "D"), strict=True))
_WINDOW = (1.0, 99.8)  # percentiles of the brain
_FROC_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def plot_overlay(
    case: Case,
    labels: ArrayLike,
    *,
    confirmable: bool = False,
    center: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """Draw the lesions of a scan (x, y, z) in three planes, over the scan."""
    label_map = np.asarray(labels)
    if label_map.shape != case.shape:
        raise ValueError(
            f"labels of shape {label_map.shape} for {case.name}, whose shape is {case.shape}"
        )
    heading = title or case.name
    if center is None:
        middle, description = place_to_show(case, label_map)
        heading += f": {description}"
    else:
        middle = np.array(center, dtype=np.float64)
    outlines = {}
    if case.label is not None:
        outlines["reference"] = (case.label > 0, _REFERENCE)
    if confirmable:
        outlines["confirmed"] = (label_map == CONFIRMED_LABEL, _CONFIRMED)
        outlines["candidate"] = (label_map == CANDIDATE, _CANDIDATE)
    else:
        outlines["found"] = (label_map > 0, _CONFIRMED)
    dashes = dict.fromkeys(outlines, "solid") | {"reference": "dashed"}
    notice = NOT_CLINICAL
    if case.synthetic:
        notice = f"{SYNTHETIC}; {NOT_CLINICAL.lower()}"
    # The frame tells where a dark image ends.
    with shared_style({"axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(11.0, 4.4)
        field, window = _brain_cube(case), _window(case)
        for plane in draw_planes(figure, case.image, case.affine, middle, field, window=window):
            for name, (mask, color) in outlines.items():
                plane.outline(mask, colors=[color], linewidths=1.2, linestyles=dashes[name])
        entries = []
        for name, (_, color) in outlines.items():
            entries.append(handle(name, color=color, linewidth=2, linestyle=dashes[name]))
        finish_planes(figure, entries, heading, notice)
    return figure


def place_to_show(case: Case, labels: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Choose where to look at labels (x, y, z) of a scan, in mm, and say what is there."""
    from dmrifit.stats.lesion_matching import lesion_table

    reference = case.label
    wrong = "largest false positive"
    if reference is None:
        reference = np.zeros(case.shape, np.uint8)
        wrong = "largest lesion found"
    table = lesion_table(reference, labels > 0, case.affine)
    is_lesion = table["kind"] == "lesion"
    is_missed = is_lesion & ~table["found"].astype(bool)
    # Errors first: they are what a reader of the picture has to judge.
    choices = {"largest lesion missed": is_missed, wrong: ~is_lesion, "largest lesion": is_lesion}
    for description, is_chosen in choices.items():
        if is_chosen.any():
            rows = table[is_chosen].sort_values("volume_mL", ascending=False, kind="stable")
            return rows.iloc[0][["x", "y", "z"]].to_numpy(np.float64), description
    middle = (np.array(case.shape) - 1) / 2
    return case.affine[:3, :3] @ middle + case.affine[:3, 3], "nothing found"


def plot_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw strict sensitivity over wrong components per scan, and precision over sensitivity."""
    summary = tables["summary"]
    scores = summary[summary["part"] == "all"].set_index("method")
    curves = tables["curves"]
    methods = [name for name in scores.index if not scores.loc[name, "control"]]
    with shared_style({}):
        figure, (froc, precision) = _two_panels()
        entries = []
        for name, row in scores.iterrows():
            color = method_color(str(name), methods)
            mark = _CONTROL_MARKS.get(str(name), "o")
            curve = curves[curves["method"] == name]
            # The marks of controls and masks are points without a curve.
            has_curve = len(curve) > 1
            if has_curve:
                wrong = curve["false_positives_per_scan"] + curve["flagged_per_scan"]
                sensitivity = curve["strict_sensitivity"]
                froc.plot(wrong, sensitivity, color=color, linewidth=1.5)
                precision.plot(sensitivity, curve["strict_precision"], color=color, linewidth=1.5)
            look: dict[str, Any] = {
                "marker": mark,
                "color": color,
                "markersize": 6,
                "linestyle": "none",
                "clip_on": False,
                "zorder": 3,
            }
            n_wrong = row["n_false_positives"] + row["n_flagged"]
            froc.plot(n_wrong / row["n_scans"], row["strict_sensitivity"], **look)
            precision.plot(row["strict_sensitivity"], row["strict_precision"], **look)
            dash = "-" if has_curve else "none"
            entries.append(handle(str(name), color=color, marker=mark, linestyle=dash))
        _finish_froc(froc)
        precision.set(
            xlim=(0, 1), ylim=(0, 1), xlabel="sensitivity (strict)", ylabel="precision (strict)"
        )
        head(precision, "Precision over sensitivity")
        froc.grid(True)
        precision.grid(True)
        legend_below(figure, entries)
    return figure


def plot_calibration(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw how often predicted probabilities come true, of voxels and of components."""
    table = tables["calibration"]
    if not len(table):
        raise ValueError("no method gives probabilities, so there is nothing to calibrate")
    methods = list(dict.fromkeys(table["method"]))
    axis_labels = {"voxel": "share that is lesion", "component": "share that hits a lesion"}
    with shared_style({}):
        figure, panels = _two_panels()
        for ax, (level, axis_label) in zip(panels, axis_labels.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=PALE, linewidth=1)
            filled_bins = table[(table["level"] == level) & (table["n"] > 0)]
            for name in methods:
                bins = filled_bins[filled_bins["method"] == name]
                x, y = bins["probability"], bins["observed"]
                color = color_of(name, methods)
                ax.plot(x, y, color=color, linewidth=1.2)
                # Numbers of voxels span six powers of ten.
                sizes = 12 + 10 * np.log10(bins["n"].to_numpy(np.float64))
                ax.scatter(x, y, s=sizes, color=color, clip_on=False, zorder=3)
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"mean probability of a {level}")
            ax.set_ylabel(axis_label)
            head(ax, f"{level}s".capitalize())
        entries = [handle(name, color=color_of(name, methods), marker="o") for name in methods]
        entries.append(handle("perfectly calibrated", color=PALE))
        legend_below(figure, entries)
    return figure


def _two_panels() -> tuple[Figure, list[Axes]]:
    """Make a figure of two panels side by side, with room for a legend below."""
    figure = new_figure(2 * PANEL[0], PANEL[1] + 0.7)
    return figure, [figure.add_axes((left, 0.3, 0.41, 0.58)) for left in (0.075, 0.075 + 0.49)]


def _finish_froc(ax: Axes) -> None:
    # False positives range from 0, which a logarithm lacks, to hundreds.
    ax.set_xscale("symlog", linthresh=1.0)
    highest = max(1.0, ax.get_xlim()[1])
    ax.set_xticks([tick for tick in _FROC_TICKS if tick <= highest], minor=False)
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set(
        xlim=(0, highest),
        ylim=(0, 1.0),
        xlabel="wrong components per scan",
        ylabel="sensitivity (strict)",
    )
    head(ax, "FROC")


def _brain_cube(case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the corners of the cube around the brain that is shown."""
    voxels = np.argwhere(_brain(case))
    corners = itertools.product(*zip(voxels.min(axis=0), voxels.max(axis=0), strict=True))
    points = np.array(list(corners)) @ case.affine[:3, :3].T + case.affine[:3, 3]
    return cube_around(points, margin=3)


def _window(case: Case) -> tuple[float, float]:
    low, high = np.percentile(case.image[_brain(case)], _WINDOW)
    return float(low), float(high)


def _brain(case: Case) -> NDArray[np.bool_]:
    """Give the brain, or else what is not 0, or else the whole image."""
    brain = case.image != 0 if case.brain is None else case.brain
    return brain if brain.any() else np.ones(case.shape, bool)
