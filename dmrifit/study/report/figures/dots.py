"""Dots with intervals: a row for each predictor or parameter, a panel for each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import is_control
from dmrifit.report.numerals import fixed
from dmrifit.report.style import (
    FAINT,
    INK,
    add_axes,
    handle,
    head,
    new_figure,
    shared_style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "plot_bars", "plot_dots"]

_ROW = 0.25  # inches
_HEAD, _FOOT = 0.35, 0.5
_GAP = 0.25
_LEGEND_LINE = 0.2
_EDGE_QUANTILE = 0.97  # one control or interval that went astray must not squeeze all others
_LONGEST_NAME = 30  # letters
_BAND = 0.72  # share of a row's height that its dots take


@dataclass(frozen=True)
class Panel:
    """A score: the column of a table, its axis, and the ends of that axis."""

    column: str
    label: str
    scale: float = 1.0  # 100 where fractions are drawn in percent
    ends: tuple[float, float] | None = None  # by default those of the values


def plot_dots(
    table: pd.DataFrame,
    panels: Sequence[Panel],
    styles: Mapping[str, Mapping[str, Any]],
    title: str,
    *,
    width: float = 12.4,
) -> Figure:
    """
    Draw a table with the columns row, series, those of panels and their ``_low`` and ``_high``.

    Values beyond the ends of an axis stand at its end, hollow.
    """
    rows = list(dict.fromkeys(table["row"]))
    left = _room(rows)
    per_line = max(int((width - left) / 1.45), 1)
    n_legend_lines = -(-len(styles) // per_line) if len(styles) > 1 else 0
    foot = _FOOT + _LEGEND_LINE * n_legend_lines
    height = _ROW * len(rows)
    with shared_style({"font.size": 9}):
        figure = new_figure(width, (_HEAD if title else 0.1) + height + foot)
        edge = (width - left - 0.1 - _GAP * (len(panels) - 1)) / len(panels)
        for i, panel in enumerate(panels):
            ax = add_axes(figure, left + i * (edge + _GAP), foot, edge, height)
            _frame(ax, rows, panel, labels=i == 0)
            _draw(ax, table, rows, panel, styles)
            if i == 0 and title:
                head(ax, title)
        if n_legend_lines:
            dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
            handles = [
                handle(_shortened(name), **{**dot, **look}) for name, look in styles.items()
            ]
            figure.legend(
                handles=handles, loc="lower left", ncols=per_line, fontsize=8.5, borderaxespad=0.2
            )
    return figure


def plot_bars(
    tables: Mapping[str, pd.DataFrame], panel: Panel, colors: Mapping[str, str], *, width: float
) -> Figure:
    """
    Draw bars from zero with intervals: a panel a table, the series of a row side by side.

    Where an interval goes beyond the axis, it ends in an arrow.
    """
    first = next(iter(tables.values()))
    rows, series = list(dict.fromkeys(first["row"])), list(colors)
    height = (0.11 + 0.13 * len(series)) * len(rows)
    left = _room(rows)
    foot = _FOOT + _LEGEND_LINE * (len(series) > 1)
    edge = (width - left) / len(tables) - 0.42
    with shared_style({"font.size": 9}):
        figure = new_figure(width, _HEAD + height + foot)
        for i, (title, table) in enumerate(tables.items()):
            ax = add_axes(figure, left + i * (edge + 0.42), foot, edge, height)
            _frame(ax, rows, panel, labels=i == 0)
            _draw_bars(ax, table, rows, panel, colors)
            head(ax, title)
        if len(series) > 1:
            figure.legend(
                handles=[handle(name, color=color, lw=5) for name, color in colors.items()],
                loc="lower left", ncols=len(series), fontsize=8.5, borderaxespad=0.2,
            )  # fmt: skip
    return figure


def _draw_bars(
    ax: Axes,
    table: pd.DataFrame,
    rows: Sequence[str],
    panel: Panel,
    colors: Mapping[str, str],
) -> None:
    low_end, high_end = panel.ends or _ends(table, panel)
    ax.set_xlim(low_end, high_end)
    thick = 0.8 / len(colors)
    for j, (name, color) in enumerate(colors.items()):
        values = table[table["series"] == name].set_index("row").reindex(rows)
        y = np.arange(len(rows)) + (j - (len(colors) - 1) / 2) * thick
        middle, low, high = _values(values, panel)
        ax.barh(y, np.clip(middle, low_end, high_end), 0.85 * thick, color=color, zorder=2)
        ends = np.clip(low, low_end, high_end), np.clip(high, low_end, high_end)
        ax.hlines(y, *ends, color=INK, linewidth=1.1, zorder=3)
        for marker, end, is_cut in (
            ("<", low_end, low < low_end),
            (">", high_end, high > high_end),
        ):
            tips = np.full(np.count_nonzero(is_cut), end)
            ax.scatter(tips, y[is_cut], s=14, marker=marker, color=INK, zorder=5, clip_on=False)
        for place, value in zip(y, middle, strict=True):
            if np.isfinite(value):
                at_end = ax.get_yaxis_transform()
                text = fixed(value, 2)
                ax.text(1.02, place, text, transform=at_end, size=7.5, va="center")
    ax.axvline(0, color=INK, linewidth=1.2, zorder=4)


def _room(rows: Sequence[str]) -> float:
    """Measure the inches that the names of rows need at the left."""
    return 0.25 + 0.075 * max((len(_shortened(row)) for row in rows), default=0)


def _shortened(name: str) -> str:
    """Cut a name of a user's that would leave no room for what it names."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _frame(ax: Axes, rows: Sequence[str], panel: Panel, *, labels: bool) -> None:
    """Set rows from top to bottom, with a pale line for each."""
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=panel.label)
    names = [_shortened(row) if labels else "" for row in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    for place in range(1, len(rows)):
        ax.axhline(place - 0.5, color="#eef1f4", linewidth=0.8, zorder=0)


def _draw(
    ax: Axes,
    table: pd.DataFrame,
    rows: Sequence[str],
    panel: Panel,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    low_end, high_end = panel.ends or _ends(table, panel)
    place_of = {row: i for i, row in enumerate(rows)}
    for j, (name, look) in enumerate(styles.items()):
        values = table[table["series"] == name]
        offset = _BAND * ((j + 0.5) / len(styles) - 0.5)
        y = np.array([place_of[row] + offset for row in values["row"]], dtype=float)
        middle, low, high = _values(values, panel)
        ends = np.clip(low, low_end, high_end), np.clip(high, low_end, high_end)
        color = look.get("color", INK)
        ax.hlines(y, *ends, color=color, linewidth=1.0, alpha=0.6, zorder=2)
        beyond = (middle < low_end) | (middle > high_end)
        face = np.where(beyond, "white", color)
        shown = np.isfinite(middle)
        if shown.any():
            ax.scatter(
                np.clip(middle, low_end, high_end)[shown], y[shown], s=24, zorder=3,
                marker=look.get("marker", "o"), facecolors=face[shown], edgecolors=color,
                linewidths=0.9, clip_on=False,
            )  # fmt: skip
    margin = 0.03 * (high_end - low_end)
    ax.set_xlim(low_end - margin, high_end + margin)
    if low_end <= 0 <= high_end:
        ax.axvline(0, color=FAINT, linewidth=1.0, zorder=1)


def _values(table: pd.DataFrame, panel: Panel) -> tuple[Any, Any, Any]:
    """Give values and the ends of their intervals; without one, both are the value."""
    middle = panel.scale * table[panel.column].to_numpy(float)
    ends = []
    for side in ("low", "high"):
        name = f"{panel.column}_{side}"
        values = middle
        if name in table:
            values = panel.scale * table[name].to_numpy(float)
        ends.append(np.where(np.isfinite(values), values, middle))
    return middle, *ends


def _ends(table: pd.DataFrame, panel: Panel) -> tuple[float, float]:
    """Choose the ends of an axis: from zero, past what is no control, and nearly all the rest."""
    middle, low, high = _values(table, panel)
    values = np.concatenate([middle, low, high])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    lower, upper = np.quantile(values, [1 - _EDGE_QUANTILE, _EDGE_QUANTILE])
    learned = middle
    if "algorithm" in table:
        learned = middle[~table["algorithm"].map(is_control).to_numpy(bool)]
    learned = learned[np.isfinite(learned)]
    lower, upper = min(lower, *learned, 0.0), max(upper, *learned, 0.0)
    lower, upper = float(lower), float(upper)
    if lower == upper:
        return lower, lower + 1.0
    return lower, upper
