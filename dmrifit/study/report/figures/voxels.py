"""Voxels of a patient or cohort: maps side by side with their errors, joint histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit.io.components import label_components
from dmrifit.report import style
from dmrifit.report.slice_figures import NO_VALUE_COLOR, Slices, robust_limits

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dmrifit.study.predictions import PatientPredictions

# Two colors around white, distinct with every form of color blindness.
_ERROR_COLORMAP = "PuOr_r"
_LARGEST_ERROR = 1.0
_ERROR_QUANTILE = 0.95
_ROOM = 2.6  # side of a picture in lengths of the lesion
_N_BINS = 40
_EDGES = (0.005, 0.995)  # quantiles at which the axes of joint histograms end


@dataclass(frozen=True)
class MapRow:
    """
    Maps of one parameter in a patient: reference, predictions by name, and the truth if known.

    Shapes: each (n_voxels,).
    """

    name: str
    unit: str
    reference: NDArray
    predictions: Mapping[str, NDArray]
    truth: NDArray | None = None

    @property
    def maps(self) -> dict[str, NDArray]:
        """Maps by label, in the order in which they are drawn."""
        truth = {} if self.truth is None else {"truth": self.truth}
        return truth | {"reference": self.reference, **self.predictions}


def plot_lesion(
    patient: PatientPredictions,
    rows: Sequence[MapRow],
    title: str,
    *,
    width: float,
    n_columns: int = 1,
) -> Figure:
    """Draw maps and their relative errors where the largest group of scored voxels is largest."""
    mask = np.zeros(patient.shape, bool)
    mask[tuple(patient.index.T)] = True
    labels = label_components(mask)
    largest = labels == np.bincount(labels[mask]).argmax()
    # With room around the largest group.
    slices = Slices(largest, patient.affine, n_slices=1, fullest=True, room=_ROOM)
    n_pictures = max(len(row.maps) + len(row.predictions) for row in rows)
    n_lines = -(-len(rows) // n_columns)
    # Inches: for each column of parameters two color bars and room between pictures.
    room = (width - 0.2) / n_columns
    edge = (room - 1.25) / n_pictures - 0.06
    height = edge * min(slices.aspect, 1.3)
    line = height + 0.42
    with style.shared_style({"font.size": 8.5}):
        figure = style.new_figure(width, (0.5 if title else 0.0) + line * n_lines + 0.25)
        # One axes for all pictures, in inches: many axes take many times as long.
        sheet = style.add_axes(figure, 0, 0, *figure.get_size_inches())
        sheet.set_axis_off()
        for i, row in enumerate(rows):
            left = 0.1 + room * (i % n_columns)
            bottom = 0.25 + line * (n_lines - 1 - i // n_columns)
            _draw_row(figure, sheet, patient, slices, row, (left, bottom, edge, height))
        sheet.set(xlim=(0, width), ylim=(0, figure.get_figheight()), aspect="auto")
        sides = f"{slices.labels[0]}, {slices.sides[0]} at the left"
        sheet.text(0.1, 0.08, sides, size=8, color=style.FAINT)
        _write_title(figure, 0.1, title)
    return figure


def _draw_row(
    figure: Figure,
    sheet: Axes,
    patient: PatientPredictions,
    slices: Slices,
    row: MapRow,
    place: tuple[float, float, float, float],
) -> None:
    """Draw the maps of a parameter, its errors, and the two color bars."""
    left, bottom, edge, height = place
    errors = {}
    for name, predicted in row.predictions.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            label = f"E of {name}" if len(row.predictions) > 1 else "relative error E"
            errors[label] = (predicted - row.reference) / row.reference
    finite = np.concatenate([np.abs(e[np.isfinite(e)]) for e in errors.values()] or [[]])
    most = _LARGEST_ERROR
    if len(finite):
        most = min(float(np.quantile(finite, _ERROR_QUANTILE)), most) or most
    limits = robust_limits(row.reference)
    pictures = [(label, values, style.COLORMAP, limits) for label, values in row.maps.items()]
    pictures += [(name, e, _ERROR_COLORMAP, (-most, most)) for name, e in errors.items()]
    for i, (label, values, cmap, ends) in enumerate(pictures):
        x = left + i * (edge + 0.06)
        picture = _painted(patient, slices, values, cmap, ends)
        # What is higher than its place is made smaller about the middle.
        shrink = min(height / (edge * slices.aspect), 1.0)
        left_end, right_end = (x + edge / 2 * (1 + sign * shrink) for sign in (-1, 1))
        sheet.imshow(
            picture,
            origin="lower",
            interpolation="nearest",
            aspect="auto",
            extent=(left_end, right_end, bottom, bottom + height),
        )
        text = label if i else f"{row.name}, {label}"
        sheet.text(x + 0.02, bottom + height + 0.05, text, size=8.5, ha="left")
    x = left + len(pictures) * (edge + 0.06) + 0.04
    ends = -100 * most, 100 * most
    bars = [(limits, style.COLORMAP, row.unit)] + [(ends, _ERROR_COLORMAP, "E (%)")] * bool(errors)
    cm, colors = import_optional("matplotlib.cm"), import_optional("matplotlib.colors")
    for i, (limits, cmap, unit) in enumerate(bars):
        scale = cm.ScalarMappable(colors.Normalize(*limits), cmap)
        bar = style.color_bar(
            figure, scale, (x + 0.58 * i, bottom + 0.04, height - 0.24), unit, extend="both"
        )
        bar.ax.locator_params(nbins=4)


def plot_joint_histograms(
    voxels: pd.DataFrame, title: str, *, unit: str = "", log: bool = False
) -> Figure:
    """Count voxels by reference and prediction, one panel for each cohort and strategy."""
    colors = import_optional("matplotlib.colors")
    both = voxels[["reference", "predicted"]].to_numpy(float)
    usable = np.isfinite(both).all(axis=1)
    if log:
        usable &= (both > 0).all(axis=1)
    voxels, both = voxels[usable], both[usable]
    rows, columns = list(dict.fromkeys(voxels["cohort"])), list(dict.fromkeys(voxels["strategy"]))
    low, high = np.quantile(both, _EDGES) if len(both) else (0.0, 1.0)
    # All values are equal: axes need a width all the same.
    if not high > low:
        margin = 0.05 * abs(low) or 0.5
        low, high = low - margin, high + margin
    space = np.geomspace if log else np.linspace
    edges = space(low, high, _N_BINS + 1)
    counts = {}
    for key, pairs in voxels.groupby(["cohort", "strategy"], sort=False):
        # Voxels beyond the axes are counted at their ends, so that none is hidden.
        inside = np.clip(pairs[["reference", "predicted"]].to_numpy(float), low, high)
        counts[key] = np.histogram2d(inside[:, 0], inside[:, 1], bins=[edges, edges])[0]
    norm = colors.LogNorm(1, max((count.max() for count in counts.values()), default=2) + 1)
    label = f" ({unit})" if unit else ""
    # Inches: edge of a panel, room below it, gap beside it.
    edge, room, gap = 1.36, 0.34, 0.28
    with style.shared_style({"font.size": 9}):
        figure = style.new_figure(
            style.PANEL[0], 0.95 + (edge + room) * len(rows) - room + 0.2 * title.count("\n")
        )
        mesh = None
        for i, cohort in enumerate(rows):
            for j, strategy in enumerate(columns):
                bottom = 0.5 + (len(rows) - 1 - i) * (edge + room)
                ax = style.add_axes(figure, 0.62 + j * (edge + gap), bottom, edge, edge)
                ax.set(xlim=(low, high), ylim=(low, high))
                if log:
                    ax.set(xscale="log", yscale="log")
                    for axis in (ax.xaxis, ax.yaxis):
                        style.plain_ticks(axis, _few_steps(low, high))
                else:
                    ax.locator_params(nbins=3)
                ax.plot([low, high], [low, high], color=style.INK, lw=0.9, zorder=3)
                if (cohort, strategy) in counts:
                    count = counts[cohort, strategy].T
                    # Empty bins stay white; a logarithm has no color for them.
                    count = np.where(count > 0, count, np.nan)
                    look: dict[str, Any] = {"norm": norm, "cmap": style.COLORMAP}
                    mesh = ax.pcolormesh(edges, edges, count, rasterized=True, **look)
                panel = f"{cohort}, {strategy}"
                ax.set_title(panel, size=8.5, weight="normal", pad=3, color=style.FAINT)
                ax.tick_params(labelsize=8, labelbottom=i == len(rows) - 1, labelleft=j == 0)
                if i == len(rows) - 1:
                    ax.set_xlabel(f"reference{label}")
                if j == 0:
                    ax.set_ylabel(f"predicted{label}")
        if mesh is not None:
            left = 0.62 + len(columns) * (edge + gap)
            style.plain_ticks(
                style.color_bar(figure, mesh, (left, 0.5, edge), "voxels").ax.yaxis, (1, 3)
            )
        _write_title(figure, 0.1, title)
    return figure


def _write_title(figure: Figure, left: float, title: str) -> None:
    """Write a title, and the note below it, at a distance in inches from the left."""
    width, height = figure.get_size_inches()
    title, _, note = title.partition("\n")
    figure.text(left / width, 1 - 0.2 / height, title, size=11, weight="bold", va="center")
    figure.text(left / width, 1 - 0.4 / height, note, size=8.5, color=style.FAINT, va="center")


def _few_steps(low: float, high: float) -> tuple[int, ...]:
    """Choose ticks of a logarithmic axis: 1, 2, 5 … where there is room for them."""
    for steps, largest_range in (((1, 2, 5), 60), ((1, 3), 400)):
        if high / low < largest_range:
            return steps
    return (1,)


def _painted(
    patient: PatientPredictions,
    slices: Slices,
    values: NDArray,
    cmap: str,
    limits: tuple[float, float],
) -> NDArray:
    """Paint a map over the anatomy in the slice, (rows, columns, 4)."""
    matplotlib, colors = import_optional("matplotlib"), import_optional("matplotlib.colors")
    (shown,) = slices.pictures(patient.volume(values.astype(float)))
    (scored,) = slices.pictures(patient.volume(np.ones(len(values))))
    inside = np.isfinite(scored)
    painted = np.ones((*shown.shape, 4))
    if patient.anatomy is not None:
        painted[..., :3] = slices.pictures(patient.anatomy)[0][..., None] / 255
    shares = colors.Normalize(*limits)(np.clip(np.nan_to_num(shown), *limits))
    painted[inside] = matplotlib.colormaps[cmap](shares)[inside]
    painted[inside & ~np.isfinite(shown)] = colors.to_rgba(NO_VALUE_COLOR)
    return painted
