"""Dispersion against bias: one point for each parameter and algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import is_control
from dmrifit.report.style import (
    INK,
    PANEL,
    add_axes,
    by_lines,
    handle,
    head,
    marker_of,
    new_figure,
    shared_style,
)
from dmrifit.study.report.figures.colors import algorithm_color

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_bias_dispersion", "plot_legend"]

_THIN_MARKERS = ("P", "X", "*")  # of which a white edge leaves little
_PERCENT = 100.0
_LEGEND_COLUMNS = 4
_LIMIT_QUANTILE = 0.97  # one parameter that went astray must not squeeze all others


def plot_bias_dispersion(
    panels: Sequence[tuple[str, pd.DataFrame]],
    *,
    legend: bool = True,
    like: Sequence[tuple[str, pd.DataFrame]] | None = None,
) -> Figure:
    """Draw dispersion against bias, one panel for each part of a comparison."""
    import pandas as pd

    everything = pd.concat([rows for _, rows in like or panels], ignore_index=True)
    algorithms = list(dict.fromkeys(everything["algorithm"]))
    metrics = list(dict.fromkeys(everything["metric"]))
    limits = _limit(everything["bias"]), _limit(everything["dispersion"])
    columns = 1 if len(panels) == 1 else 2
    lines = -(-len(panels) // columns)
    with shared_style({"axes.grid": True}):
        legend_height = 0.0
        if legend:
            handles = by_lines(_handles(algorithms, metrics), _LEGEND_COLUMNS * columns)
            n_legend_lines = -(-len(handles) // (_LEGEND_COLUMNS * columns))
            legend_height = 0.2 * n_legend_lines + 0.1
        figure = new_figure(columns * PANEL[0], lines * PANEL[1] + legend_height)
        for i, (title, rows) in enumerate(panels):
            x = (i % columns) * PANEL[0] + 0.62
            y = legend_height + (lines - 1 - i // columns) * PANEL[1] + 0.5
            ax = add_axes(figure, x, y, PANEL[0] - 0.79, PANEL[1] - 1.0)
            _scatter(ax, rows, algorithms, metrics, limits)
            head(ax, title)
        if legend:
            look: dict[str, Any] = {"loc": "lower left", "fontsize": 9, "borderaxespad": 0.3}
            figure.legend(handles=handles, ncols=_LEGEND_COLUMNS * columns, **look)
    return figure


def plot_legend(algorithms: Sequence[str], metrics: Sequence[str]) -> Figure:
    """Draw the legend of `plot_bias_dispersion` alone."""
    with shared_style({"axes.grid": True}):
        handles = by_lines(_handles(algorithms, metrics), _LEGEND_COLUMNS)
        figure = new_figure(PANEL[0], 0.26 * -(-len(handles) // _LEGEND_COLUMNS) + 0.1)
        look: dict[str, Any] = {"loc": "center left", "fontsize": 9, "columnspacing": 1.2}
        figure.legend(handles=handles, ncols=_LEGEND_COLUMNS, **look)
    return figure


def _limit(values: pd.Series) -> float:
    finite = _PERCENT * values[np.isfinite(values)]
    if not len(finite):
        return 1.0
    limit, usual = float(finite.max()), float(finite.quantile(_LIMIT_QUANTILE))
    # A few far points would push all others into a corner.
    if not limit < 1.5 * usual:
        limit = usual
    return 1.08 * limit or 1.0


def _scatter(
    ax: Axes,
    rows: pd.DataFrame,
    algorithms: Sequence[str],
    metrics: Sequence[str],
    limits: tuple[float, float],
) -> None:
    for row in rows.to_dict("records"):
        x, y = _PERCENT * row["bias"], _PERCENT * row["dispersion"]
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        color = algorithm_color(row["algorithm"], algorithms)
        face, edge, linewidth = color, "white", 0.6
        if x > limits[0] or y > limits[1]:
            face, edge, linewidth = "white", color, 1.4
        marker = marker_of(row["metric"], metrics)
        ax.scatter(
            min(x, limits[0]),
            min(y, limits[1]),
            s=90 if marker in _THIN_MARKERS else 56,
            facecolor=face,
            edgecolor=edge,
            linewidth=linewidth,
            marker=marker,
            clip_on=False,
            zorder=2 if is_control(row["algorithm"]) else 3,
        )
    # Points at the limits stand whole inside the figure.
    ax.set(xlim=(0, 1.03 * limits[0]), ylim=(0, 1.03 * limits[1]))
    ax.set(xlabel="|BI|, bias (%)", ylabel="DI, dispersion (%)")


def _handles(algorithms: Sequence[str], metrics: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Make the entries of a legend: colors of algorithms, shapes of parameters."""
    point = partial(handle, linestyle="")
    colors, shapes = [], []
    for name in algorithms:
        color = algorithm_color(name, algorithms)
        colors.append(point(name, marker="o", markersize=9, color=color))
    for name in metrics:
        shapes.append(point(name, marker=marker_of(name, metrics), markersize=7, color=INK))
    return colors, shapes
