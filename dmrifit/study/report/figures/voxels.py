"""Voxels of a patient or cohort: maps side by side with their errors, joint histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit.report.slice_figures import NO_VALUE_COLOR, Slices, robust_limits
from dmrifit.report.style import (
    COLORMAP,
    FAINT,
    INK,
    PANEL,
    add_axes,
    new_figure,
    plain_ticks,
    shared_style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_joint_histograms", "plot_map_comparison"]

# Two colors around white, distinct with every form of color blindness.
_ERROR_COLORMAP = "PuOr_r"
_LARGEST_ERROR = 1.0
_ERROR_QUANTILE = 0.95
_N_BINS = 40
_EDGES = (0.005, 0.995)  # quantiles at which the axes of joint histograms end


def plot_map_comparison(
    voxels: pd.DataFrame,
    affine: NDArray[np.float64],
    title: str,
    *,
    unit: str = "",
    reference: str = "reference",
    predictions: Sequence[str] = ("s2s", "m2m"),
) -> Figure:
    """Show the fullest slice of several maps of a quantity, and relative errors of predictions."""
    names = [name for name in voxels.columns if name not in ("i", "j", "k")]
    volumes, upright = _upright(
        {name: voxels[name].to_numpy(float) for name in names}, voxels, affine
    )
    slices = Slices(~np.isnan(volumes.pop("inside")), upright, n_slices=1, fullest=True)
    errors = {}
    for name in predictions:
        with np.errstate(divide="ignore", invalid="ignore"):
            errors[name] = (volumes[name] - volumes[reference]) / volumes[reference]
    most = _LARGEST_ERROR
    magnitudes = [np.abs(error[np.isfinite(error)]) for error in errors.values()]
    if any(map(len, magnitudes)):
        most = min(float(np.quantile(np.concatenate(magnitudes), _ERROR_QUANTILE)), most)
    low, high = robust_limits(volumes[reference])

    # Inches, the room without margins and color bar.
    room, gap = 3.62, 0.08
    width = min((room - gap * (len(names) - 1)) / len(names), 1.35)
    height = width * min(max(slices.aspect, 0.35), 1.6)
    with shared_style({"font.size": 9}):
        figure = new_figure(PANEL[0], 2 * height + 1.32)
        top = figure.get_figheight() - 0.72
        # One axes for all pictures, in inches: ten axes take three times as long.
        sheet = add_axes(figure, 0, 0, PANEL[0], figure.get_figheight())
        sheet.set_axis_off()
        if errors and len(names) > len(errors):
            words = "E = (prediction\n− reference)\n/ reference"
            sheet.text(0.12, top - 1.5 * height - 0.3, words, size=8, color=FAINT, va="center")
        for column, name in enumerate(names):
            left = 0.12 + column * (width + gap)
            pictures = [(name, volumes[name], COLORMAP, (low, high))]
            if name in errors:
                pictures.append((f"E of {name}", errors[name], _ERROR_COLORMAP, (-most, most)))
            for line, (label, volume, cmap, limits) in enumerate(pictures):
                upper = top - line * (height + 0.3)
                extent = left, left + width, upper - height, upper
                _paint(sheet, extent, slices, volume, cmap, limits)
                sheet.text(left + width / 2, upper + 0.05, label, size=9, ha="center")
        sheet.set(xlim=(0, PANEL[0]), ylim=(0, figure.get_figheight()), aspect="auto")
        right = 0.12 + len(names) * (width + gap) + 0.02
        _bar(figure, (right, top - height), height, (low, high), COLORMAP, unit)
        if errors:
            place, limits = (right, top - 2 * height - 0.3), (-100 * most, 100 * most)
            _bar(figure, place, height, limits, _ERROR_COLORMAP, "%")
        sides = f"{slices.labels[0]}, {slices.sides[0]} at the left"
        figure.text(0.12 / PANEL[0], 0.1 / figure.get_figheight(), sides, size=8, color=FAINT)
        _write_title(figure, 0.12, title)
    return figure


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
    with shared_style({"font.size": 9}):
        figure = new_figure(
            PANEL[0], 0.95 + (edge + room) * len(rows) - room + 0.2 * title.count("\n")
        )
        mesh = None
        for i, cohort in enumerate(rows):
            for j, strategy in enumerate(columns):
                bottom = 0.5 + (len(rows) - 1 - i) * (edge + room)
                ax = add_axes(figure, 0.62 + j * (edge + gap), bottom, edge, edge)
                ax.set(xlim=(low, high), ylim=(low, high))
                if log:
                    ax.set(xscale="log", yscale="log")
                    for axis in (ax.xaxis, ax.yaxis):
                        plain_ticks(axis, _few_steps(low, high))
                else:
                    ax.locator_params(nbins=3)
                ax.plot([low, high], [low, high], color=INK, lw=0.9, zorder=3)
                if (cohort, strategy) in counts:
                    count = counts[cohort, strategy].T
                    # Empty bins stay white; a logarithm has no color for them.
                    count = np.where(count > 0, count, np.nan)
                    look: dict[str, Any] = {"norm": norm, "cmap": COLORMAP, "rasterized": True}
                    mesh = ax.pcolormesh(edges, edges, count, **look)
                panel = f"{cohort}, {strategy}"
                ax.set_title(panel, size=8.5, weight="normal", pad=3, color=FAINT)
                ax.tick_params(labelsize=8, labelbottom=i == len(rows) - 1, labelleft=j == 0)
                if i == len(rows) - 1:
                    ax.set_xlabel(f"reference{label}")
                if j == 0:
                    ax.set_ylabel(f"predicted{label}")
        if mesh is not None:
            left = 0.62 + len(columns) * (edge + gap)
            bar = figure.colorbar(mesh, cax=add_axes(figure, left, 0.5, 0.1, edge))
            bar.ax.set_title("voxels", size=8, weight="normal", loc="left", pad=4)
            bar.outline.set_visible(False)
            plain_ticks(bar.ax.yaxis, (1, 3))
            bar.ax.tick_params(labelsize=8)
        _write_title(figure, 0.1, title)
    return figure


def _write_title(figure: Figure, left: float, title: str) -> None:
    """Write a title, and the note below it, at a distance in inches from the left."""
    width, height = figure.get_size_inches()
    title, _, note = title.partition("\n")
    figure.text(left / width, 1 - 0.2 / height, title, size=11, weight="bold", va="center")
    figure.text(left / width, 1 - 0.4 / height, note, size=8.5, color=FAINT, va="center")


def _few_steps(low: float, high: float) -> tuple[int, ...]:
    """Choose ticks of a logarithmic axis: 1, 2, 5 … where there is room for them."""
    for steps, largest_range in (((1, 2, 5), 60), ((1, 3), 400)):
        if high / low < largest_range:
            return steps
    return (1,)


def _upright(
    columns: dict[str, NDArray[np.float64]], voxels: pd.DataFrame, affine: NDArray[np.float64]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Put columns into volumes around the voxels, with axes in RAS+ order."""
    import nibabel as nib

    index = voxels[["i", "j", "k"]].to_numpy(int)
    # Only the box around the voxels, as the rest of the image is empty.
    first = index.min(axis=0)
    shape = tuple(index.max(axis=0) - first + 1)
    where = tuple((index - first).T)
    origin = np.array(affine, dtype=float)
    origin[:3, 3] += affine[:3, :3] @ first
    turned = nib.orientations.io_orientation(origin)
    volumes = {}
    for name, values in {**columns, "inside": np.ones(len(index))}.items():
        volume = np.full(shape, np.nan)
        volume[where] = values
        volumes[name] = nib.orientations.apply_orientation(volume, turned)
    return volumes, origin @ nib.orientations.inv_ornt_aff(turned, shape)


def _paint(
    ax: Axes,
    extent: tuple[float, float, float, float],
    slices: Slices,
    volume: NDArray[np.float64],
    cmap: str,
    limits: tuple[float, float],
) -> None:
    """Draw one slice into a place of the axes, with the proportions of its voxels."""
    matplotlib, colors = import_optional("matplotlib"), import_optional("matplotlib.colors")
    (cut,), (inside,) = slices.pictures(volume), slices.pictures(slices.mask)
    shares = colors.Normalize(*limits)(np.clip(np.nan_to_num(cut), *limits))
    painted = matplotlib.colormaps[cmap](shares)
    painted[~np.isfinite(cut)] = colors.to_rgba(NO_VALUE_COLOR)
    painted[~inside] = 0
    left, right, bottom, top = extent
    # What is higher or wider than its place is made smaller about the middle.
    shrink = (right - left) * slices.aspect / (top - bottom)
    across, up = 0.5 * (right - left) / max(shrink, 1.0), 0.5 * (top - bottom) * min(shrink, 1.0)
    x, y = (left + right) / 2, (bottom + top) / 2
    extent = (x - across, x + across, y - up, y + up)
    ax.imshow(painted, origin="lower", interpolation="nearest", extent=extent, aspect="auto")


def _bar(
    figure: Figure,
    place: tuple[float, float],
    height: float,
    limits: tuple[float, float],
    cmap: str,
    unit: str,
) -> None:
    cm, colors = import_optional("matplotlib.cm"), import_optional("matplotlib.colors")
    scale: Any = cm.ScalarMappable(colors.Normalize(*limits), cmap)
    bar = figure.colorbar(scale, cax=add_axes(figure, *place, 0.1, height), extend="both")
    bar.ax.set_title(unit or " ", size=8, weight="normal", loc="left", pad=4)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.ax.locator_params(nbins=4)
