"""Figures of segmentations: lesions in three planes, curves over thresholds, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.report.plane_figures import draw_planes
from dmrifit.report.style import FAINT, PANEL, color_of, handle, head, new_figure, shared_style
from metastasis.segmentation.ensemble import CANDIDATE, CONFIRMED_LABEL
from metastasis.study.controls import CONTROLS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metastasis.scans.cases import Case

__all__ = ["place_to_show", "plot_calibration", "plot_curves", "plot_overlay"]

_REFERENCE, _CONFIRMED, _CANDIDATE = "#00d0a0", "#ff5d5d", "#ffb000"
_PALE = "#a3aab3"  # controls
_CONTROL_MARKS = dict(zip(CONTROLS, ("s", "o", "^", "D"), strict=True))
_SYNTHETIC = "synthetic, no person was scanned"
_WINDOW = (1.0, 99.8)  # percentiles of the brain


def plot_overlay(
    case: Case,
    labels: ArrayLike,
    *,
    confirmable: bool = False,
    center: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """
    Draw the lesions of a scan in three planes, over the scan.

    Shapes: `labels` (x, y, z).
    """
    found = np.asarray(labels)
    if found.shape != case.shape:
        raise ValueError(
            f"labels of shape {found.shape} for {case.name}, whose shape is {case.shape}"
        )
    middle, what = (
        place_to_show(case, found) if center is None else (np.array(center, dtype=np.float64), "")
    )
    outlines = {"found": (found > 0, _CONFIRMED)}
    if confirmable:
        outlines = {
            "confirmed": (found == CONFIRMED_LABEL, _CONFIRMED),
            "candidate": (found == CANDIDATE, _CANDIDATE),
        }
    if case.label is not None:
        outlines = {"reference": (case.label > 0, _REFERENCE)} | outlines
    with shared_style({"axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(11.0, 4.4)
        for plane in draw_planes(
            figure, case.image, case.affine, middle, _field(case), window=_window(case)
        ):
            for name, (mask, color) in outlines.items():
                style = "dashed" if name == "reference" else "solid"
                plane.outline(mask, colors=[color], linewidths=1.2, linestyles=style)
        entries = [
            handle(name, color=color, linewidth=2, linestyle="--" if name == "reference" else "-")
            for name, (_, color) in outlines.items()
        ]
        figure.legend(
            handles=entries,
            loc="lower left",
            bbox_to_anchor=(0.025, 0.0),
            ncol=len(entries),
            fontsize=9,
        )
        note = [_SYNTHETIC] * case.synthetic + ["not for clinical use"]
        figure.text(0.97, 0.035, "; ".join(note).capitalize(), ha="right", fontsize=9, color=FAINT)
        heading = (title or case.name) + (f": {what}" if what else "")
        figure.text(
            0.03, 0.95, heading, fontsize=11, fontweight="bold", va="center", parse_math=False
        )
    return figure


def place_to_show(case: Case, labels: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """
    Choose where to look at a scan.

    Shapes: `labels` (x, y, z).
    """
    from dmrifit.stats.lesion_matching import lesion_table

    reference = np.zeros(case.shape, np.uint8) if case.label is None else case.label
    table = lesion_table(reference, labels > 0, case.affine)
    is_lesion = table["kind"] == "lesion"
    wrong = "largest false positive" if case.label is not None else "largest lesion found"
    for rows, what in (
        (is_lesion & ~table["found"].astype(bool), "largest lesion missed"),
        (~is_lesion, wrong),
        (is_lesion, "largest lesion"),
    ):
        if rows.any():
            row = table[rows].sort_values("volume_mL", ascending=False, kind="stable").iloc[0]
            return row[["x", "y", "z"]].to_numpy(np.float64), what
    middle = (np.array(case.shape) - 1) / 2
    return case.affine[:3, :3] @ middle + case.affine[:3, 3], "nothing found"


def plot_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """
    Draw sensitivity over false positives per scan (FROC), and precision over sensitivity.

    Figures are strict: a component that covers several lesions, or far more than one, finds none
    and is wrong.
    """
    summary = tables["summary"]
    whole = summary[summary["part"] == "all"].set_index("method")
    names = [name for name in whole.index if not whole.loc[name, "control"]]
    with shared_style({}):
        figure = new_figure(2 * PANEL[0], PANEL[1] + 0.7)
        axes = [figure.add_axes((0.075 + 0.49 * k, 0.3, 0.41, 0.58)) for k in range(2)]
        for name in whole.index:
            color = color_of(name, names) if name in names else _PALE
            mark = _CONTROL_MARKS.get(name, "o")
            curve = tables["curves"][tables["curves"]["method"] == name]
            row = whole.loc[name]
            wrong = (row["n_false_positives"] + row["n_flagged"]) / row["n_scans"]
            if len(curve) > 1:
                all_wrong = curve["false_positives_per_scan"] + curve["flagged_per_scan"]
                axes[0].plot(all_wrong, curve["strict_sensitivity"], color=color, linewidth=1.5)
                axes[1].plot(
                    curve["strict_sensitivity"],
                    curve["strict_precision"],
                    color=color,
                    linewidth=1.5,
                )
            look: dict[str, Any] = {
                "marker": mark,
                "color": color,
                "markersize": 6,
                "linestyle": "none",
                "clip_on": False,
                "zorder": 3,
            }
            axes[0].plot(wrong, row["strict_sensitivity"], **look)
            axes[1].plot(row["strict_sensitivity"], row["strict_precision"], **look)
        _finish_curves(axes)
        entries = [
            handle(
                name,
                color=color_of(name, names) if name in names else _PALE,
                marker=_CONTROL_MARKS.get(name, "o"),
                linestyle="-" if (tables["curves"]["method"] == name).sum() > 1 else "none",
            )
            for name in whole.index
        ]
        legend = figure.legend(
            handles=entries, loc="lower left", bbox_to_anchor=(0.06, 0.0), ncol=3, fontsize=9
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def plot_calibration(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw how often predicted probabilities come true, of voxels and of components."""
    table = tables["calibration"]
    if not len(table):
        raise ValueError("no method gives probabilities, so there is nothing to calibrate")
    names = list(dict.fromkeys(table["method"]))
    with shared_style({}):
        figure = new_figure(2 * PANEL[0], PANEL[1] + 0.7)
        for column, level in enumerate(("voxel", "component")):
            ax = figure.add_axes((0.075 + 0.49 * column, 0.3, 0.41, 0.58))
            ax.plot([0, 1], [0, 1], color=_PALE, linewidth=1)
            for name in names:
                own = table[
                    (table["method"] == name) & (table["level"] == level) & (table["n"] > 0)
                ]
                color = color_of(name, names)
                ax.plot(own["probability"], own["observed"], color=color, linewidth=1.2)
                sizes = 12 + 10 * np.log10(own["n"].to_numpy(np.float64))
                ax.scatter(
                    own["probability"],
                    own["observed"],
                    s=sizes,
                    color=color,
                    clip_on=False,
                    zorder=3,
                )
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"mean probability of a {level}")
            ax.set_ylabel(
                "share that is lesion" if level == "voxel" else "share that hits a lesion"
            )
            head(ax, f"{level}s".capitalize())
        entries = [handle(name, color=color_of(name, names), marker="o") for name in names]
        entries.append(handle("perfectly calibrated", color=_PALE))
        legend = figure.legend(
            handles=entries, loc="lower left", bbox_to_anchor=(0.06, 0.0), ncol=3, fontsize=9
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _finish_curves(axes: Sequence[Axes]) -> None:
    froc, precision = axes
    froc.set_xscale("symlog", linthresh=1.0)
    highest = max(1.0, froc.get_xlim()[1])
    ticks = [0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    froc.set_xticks([tick for tick in ticks if tick <= highest], minor=False)
    froc.set_xticks([], minor=True)
    froc.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    froc.set(
        xlim=(0, highest),
        ylim=(0, 1.0),
        xlabel="wrong components per scan",
        ylabel="sensitivity (strict)",
    )
    head(froc, "FROC")
    precision.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="sensitivity (strict)", ylabel="precision (strict)"
    )
    head(precision, "Precision over sensitivity")
    for ax in axes:
        ax.grid(True)


def _field(case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the part of space to show: a cube around the brain."""
    inside = _inside(case)
    sides = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    ends = np.array(np.meshgrid(*[(side[0], side[-1]) for side in sides])).reshape(3, -1).T
    points = ends @ case.affine[:3, :3].T + case.affine[:3, 3]
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, np.full(3, (high - low).max() / 2 + 3)
    return middle - half, middle + half


def _window(case: Case) -> tuple[float, float]:
    low, high = np.percentile(case.image[_inside(case)], _WINDOW)
    return float(low), float(high)


def _inside(case: Case) -> NDArray[np.bool_]:
    inside = case.image != 0 if case.brain is None else case.brain
    return inside if inside.any() else np.ones(case.shape, bool)
