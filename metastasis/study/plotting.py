"""Figures of segmentations: lesions by patient, in three planes, over thresholds, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit.io.components import label_components
from dmrifit.report import style
from dmrifit.report.plane_figures import Outline, plot_planes
from dmrifit.report.slice_figures import robust_limits
from dmrifit.stats.lesion_matching import lesion_table
from metastasis.scans.cases import Case
from metastasis.segmentation.ensemble import BOTH_LABEL, CANDIDATE, MARKED_BY_BOTH
from metastasis.study.controls import CONTROLS

_WINDOW = (1.0, 99.8)  # percentiles of the brain
_FOUND_LABEL = "share of lesions found (strict)"
_FROC_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
#: Lesions below which a curve over thresholds is drawn as points: its steps are single lesions.
_FEW_LESIONS = 10
_ZOOMED_ML = 0.5  # volume below which the outlines of a lesion hide it
_ROWS = 30  # scans of a strip
_NAME = 26  # letters of the name of a scan
_FALSE = 8  # false findings of a scan that are drawn one by one
_DOT, _SMALL_DOT = 9.5, 5.5  # sizes of marks in points
_BAR_STEP = 2.0  # points between the intervals of two methods
#: Findings by shape, so that they are told apart without colors.
_FINDINGS: dict[str, dict[str, Any]] = {
    "found": {"marker": "o", "color": "#0072b2"},
    "found with others in one": {"marker": "P", "markerfacecolor": "#56b4e9", "color": "#0072b2"},
    "missed": {"marker": "o", "markerfacecolor": "white", "color": "#a8321a"},
    "false": {"marker": "x", "color": "#8c6d1f"},
}
_MARK: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 1.6}


def plot_overlay(
    case: Case, labels: ArrayLike, *, of_two_models: bool = False, title: str = ""
) -> style.Figure:
    """Draw the lesions of a scan (x, y, z) in three planes, over the scan."""
    label_map = np.asarray(labels)
    middle, description = place_to_show(case, label_map)
    heading = f"{title or case.name}: {description}"
    outlines = {}
    if case.label is not None:
        outlines["reference"] = Outline(style.REFERENCE, case.label > 0, dash="dashed")
    if of_two_models:
        outlines[MARKED_BY_BOTH] = Outline(style.FOUND, label_map == BOTH_LABEL)
        outlines["candidate"] = Outline(style.UNSURE, label_map == CANDIDATE)
    else:
        outlines["found"] = Outline(style.FOUND, label_map > 0)
    # What is small is hidden by its own outline.
    voxel = np.linalg.solve(case.affine, np.append(middle, 1.0))[:3]
    index = tuple(np.clip(np.rint(voxel).astype(int), 0, np.array(case.shape) - 1))
    sizes = []
    for mask in (label_map if case.label is None else case.label, label_map):
        numbers = label_components(mask > 0)
        sizes.append(np.sum(numbers == numbers[index]) if numbers[index] else 0)
    is_small = 0 < max(sizes) * voxel_volume(case.affine) / MM3_PER_ML < _ZOOMED_ML

    brain = case.image != 0 if case.brain is None else case.brain
    # Of an empty brain the whole image.
    brain = brain if brain.any() else ~brain
    look: dict[str, Any] = {"margin": 3, "inside": brain, "zoom": is_small}
    look["window"] = robust_limits(case.image[brain], _WINDOW)
    look["notice"] = style.figure_notice(case.synthetic)
    return plot_planes(case.image, case.affine, middle, outlines, heading, **look)


def place_to_show(case: Case, labels: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Choose where to look at labels (x, y, z) of a scan, in mm, and say what is there."""
    reference = case.label
    wrong = "largest false positive"
    if reference is None:
        reference = np.zeros(case.shape, np.uint8)
        wrong = "largest finding"
    table = lesion_table(reference, labels > 0, case.affine)
    is_lesion = table["kind"] == "lesion"
    is_missed = is_lesion & ~table["found"].astype(bool)
    # Errors first: they are what a reader of the picture has to judge.
    choices = {"largest missed lesion": is_missed, wrong: ~is_lesion, "largest lesion": is_lesion}
    for description, is_chosen in choices.items():
        if is_chosen.any():
            rows = table[is_chosen].sort_values("volume_mL", ascending=False, kind="stable")
            return rows.iloc[0][["x", "y", "z"]].to_numpy(np.float64), description
    middle = (np.array(case.shape) - 1) / 2
    return case.affine[:3, :3] @ middle + case.affine[:3, 3], "nothing found"


def plot_strip(
    lesions: pd.DataFrame, cases: Sequence[str], methods: Sequence[str], *, small_ml: float
) -> style.Figure:
    """
    Draw what became of each lesion, a row for each scan: found, missed, or found with others.

    Lesions stand at the right of the line in the order of their volumes, false findings at its
    left. `lesions` is that table of a comparison, `cases` are the names of scans from the top.
    """
    rows = list(cases)[:_ROWS]
    marks = lesions.sort_values("volume_mL", ascending=False, kind="stable")
    is_lesion = marks["kind"] == "lesion"
    kinds = np.select(
        [~is_lesion, marks["distinct"].eq(True), marks["found"].eq(True)],
        ["false", "found", "found with others in one"],
        "missed",
    )
    place = marks.groupby(["method", "name", is_lesion]).cumcount() + 1
    marks = marks.assign(mark=kinds, x=np.where(is_lesion, place, -place))
    marks = marks[marks["name"].isin(rows)]
    marks["y"] = -marks["name"].map(rows.index)
    marks["size"] = np.where(marks["volume_mL"] < small_ml, _SMALL_DOT, _DOT)
    n_most = marks["x"].max() if len(marks) else 0
    n_false = -marks.loc[marks["method"].isin(methods), "x"].min() if len(marks) else 0
    # Enough room for the words above the line.
    room = max(4, min(_FALSE + 1, n_false)) + 0.6
    size, shape = (12.4, 1.35 + 0.26 * len(rows)), (1, len(methods))
    changes = {"axes.spines.left": False, "axes.spines.bottom": False}
    with style.drawing(size, shape, changes, sharey=True) as (figure, [axes]):
        labels = [style.shortened(name, _NAME) for name in rows]
        for ax, method in zip(axes, methods, strict=True):
            of_method = marks[marks["method"] == method]
            for i in range(len(rows)):
                ax.axhline(-i, color="#e4e8ed", linewidth=0.8, zorder=0)
            for mark in of_method[of_method["x"] >= -_FALSE].itertuples():
                look = {**_MARK, "zorder": 3, "clip_on": False, **_FINDINGS[mark.mark]}
                ax.plot(mark.x, mark.y, markersize=mark.size, **look)
            for y, n in of_method[of_method["x"] < -_FALSE].groupby("y").size().items():
                ax.text(-_FALSE - 1, y, f"+{n}", ha="center", va="center", fontsize=8)
            ax.axvline(0, color=style.INK, linewidth=1)
            ax.set(xlim=(-room, max(n_most, 6) + 0.7), ylim=(0.5 - len(rows), 0.5), xticks=[])
            ax.set_yticks(-np.arange(len(rows)), labels)
            ax.tick_params(length=0)
            ax.text(-0.4, 0.62, "← false findings", ha="right", fontsize=8.5, color=style.FAINT)
            ax.text(0.4, 0.62, "lesions, the largest first →", fontsize=8.5, color=style.FAINT)
            ax.set_title(method, pad=20)
        looks = {name: {**_MARK, "markersize": _DOT, **look} for name, look in _FINDINGS.items()}
        small = {"color": style.FAINT, "marker": "o", "markersize": _SMALL_DOT}
        looks[f"small mark: below {small_ml:g} mL"] = _MARK | small
        style.legend_below(figure, looks, len(looks))
    return figure


def plot_curves(tables: Mapping[str, pd.DataFrame]) -> style.Figure:
    """Draw strict sensitivity over wrong components per scan, and precision over sensitivity."""
    from matplotlib.transforms import ScaledTranslation

    summary = tables["summary"]
    scores = summary[summary["part"] == "all"].set_index("method")
    wrong_per_scan = (scores["n_false_positives"] + scores["n_flagged"]) / scores["n_scans"]
    looks = style.method_looks(list(scores.index), CONTROLS)
    is_few = scores["n_lesions"].max() < _FEW_LESIONS
    entries = {}
    size = style.pair_size(len(scores))
    with style.drawing(size, (1, 2), style.GRID) as (figure, [[froc, precision]]):
        for number, (name, look) in enumerate(looks.items()):
            row, color = scores.loc[name], look["color"]
            point = {**look, "markersize": 6, "ls": "none", "clip_on": False, "zorder": 3}
            froc.plot(wrong_per_scan[name], row["strict_sensitivity"], **point)
            precision.plot(row["strict_sensitivity"], row["strict_precision"], **point)
            curve = tables["curves"].query("method == @name")
            # The marks of controls and masks are points without a curve.
            has_curve = len(curve) > 1
            dash = "-" if has_curve and not is_few else "none"
            entries[name] = {"linestyle": dash, **look}
            if not has_curve:
                continue
            wrong = curve["false_positives_per_scan"] + curve["flagged_per_scan"]
            sensitivity = curve["strict_sensitivity"]
            _draw_hull(froc, wrong, sensitivity, color, is_few)
            _draw_hull(precision, -sensitivity, curve["strict_precision"], color, is_few)
            # Bars beyond the curve would only stretch the axis, and those of two methods stand
            # beside each other.
            bars = tables["froc"].query("method == @name and rate <= @wrong.max()")
            ends = bars["strict_sensitivity_low"], bars["strict_sensitivity_high"]
            shift = ScaledTranslation(_BAR_STEP * number / 72, 0, figure.dpi_scale_trans)
            froc.vlines(bars["rate"], *ends, color, linewidth=1, transform=froc.transData + shift)
        # False positives range from 0, which a logarithm lacks, to hundreds.
        froc.set_xscale("symlog", linthresh=1.0)
        highest = max(1.0, froc.get_xlim()[1])
        froc.set_xticks([tick for tick in _FROC_TICKS if tick <= highest], minor=False)
        froc.set_xticks([], minor=True)
        froc.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        label = "wrong findings per scan (even up to 1, then logarithmic)"
        froc.set(xlim=(0, highest), ylim=(0, 1), xlabel=label, ylabel=_FOUND_LABEL)
        style.head(froc, "Lesions found over wrong findings")
        precision.set(xlim=(0, 1), ylim=(0, 1), xlabel=_FOUND_LABEL)
        precision.set_ylabel("share of findings that are right")
        style.head(precision, "Right findings over lesions found")
        style.legend_below(figure, entries)
    return figure


def _draw_hull(ax: style.Axes, cost: pd.Series, gain: pd.Series, color: str, is_few: bool) -> None:
    """
    Draw the points of thresholds, and the line of the best gain at each cost or less.

    A negative cost is a sensitivity, of which less is easier to reach.
    """
    ax.plot(cost.abs(), gain, ".", color=color, markersize=4, alpha=0.7)
    if is_few:
        return
    # Groups are sorted by their cost.
    best = gain.groupby(cost).max().dropna().cummax()
    ax.plot(np.abs(best.index), best, drawstyle="steps-post", color=color, linewidth=1.5)


def plot_calibration(tables: Mapping[str, pd.DataFrame]) -> style.Figure:
    """Draw how often predicted probabilities come true, of voxels and of components."""
    table = tables["calibration"]
    methods = list(dict.fromkeys(table["method"]))
    axis_labels = {"voxel": "share that is lesion", "component": "share that hits a lesion"}
    colors = {name: style.color_of(name, methods) for name in methods}
    with style.drawing(style.pair_size(len(methods) + 1), (1, 2), {}) as (figure, [panels]):
        for ax, (level, axis_label) in zip(panels, axis_labels.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=style.PALE, linewidth=1)
            filled_bins = table[(table["level"] == level) & (table["n"] > 0)]
            for name, bins in filled_bins.groupby("method", sort=False):
                x, y, color = bins["probability"], bins["observed"], colors[str(name)]
                ax.plot(x, y, color=color, linewidth=1.2)
                # Numbers of voxels span six powers of ten.
                sizes = 12 + 10 * np.log10(bins["n"].to_numpy(np.float64))
                ax.scatter(x, y, s=sizes, color=color, clip_on=False, zorder=3)
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"mean probability of a {level}")
            ax.set_ylabel(axis_label)
            style.head(ax, f"{level}s".capitalize())
        looks = {name: {"color": color, "marker": "o"} for name, color in colors.items()}
        looks["perfectly calibrated"] = {"color": style.PALE}
        style.legend_below(figure, looks)
    return figure
