"""Dots with intervals: a row for each method or parameter, a panel for each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.report import style
from dmrifit.report.numerals import fixed

if TYPE_CHECKING:
    import pandas as pd

_ROW, _DOT, _NUMBER = 0.25, 0.04, 0.16  # inches of a row at least, of each dot, of a number
_MARGINS = 0.85  # for titles and labels of axes
_LEGEND_LINE = 0.2
_EDGE_QUANTILE = 0.97  # one control or interval that went astray must not squeeze all others
_LONGEST_NAME, _LONGEST_ENTRY = 30, 48  # letters of rows and of the legend
_BAND = 0.72  # share of a row's height that its dots take


@dataclass(frozen=True)
class Panel:
    """A score: the column of a table, its axis, and the ends of that axis."""

    column: str
    label: str
    scale: float = 1.0  # 100 where fractions are drawn in percent
    ends: tuple[float, float] | None = None  # by default those of the values
    title: str = ""
    digits: int | None = None  # of the numbers beside the dots; by default there are none
    table: pd.DataFrame | None = None  # by default that of all panels


def plot_dots(
    table: pd.DataFrame,
    panels: Sequence[Panel],
    styles: Mapping[str, Mapping[str, Any]],
    title: str = "",
    *,
    width: float = 12.4,
) -> style.Figure:
    """
    Draw a table with the columns row, series, those of panels and their ``_low`` and ``_high``.

    Values beyond the ends of an axis stand at its end, hollow; intervals end there in an arrow.
    By default an axis holds 0, all values but those of rows marked in a column `control`, and the
    percentiles 3 to 97 of all values and ends of intervals.
    """
    rows = list(dict.fromkeys(table["row"]))
    per_line = max(int(width / 1.6), 1)
    n_legend_lines = -(-len(styles) // per_line) if len(styles) > 1 else 0
    has_numbers = any(panel.digits is not None for panel in panels)
    height = max(_ROW, (_NUMBER if has_numbers else _DOT) * len(styles)) * len(rows)
    height += _MARGINS + _LEGEND_LINE * n_legend_lines
    shape, changes = (1, len(panels)), {"font.size": 9}
    with style.drawing((width, height), shape, changes) as (figure, [axes]):
        for i, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            # Rows run from top to bottom, with a pale line between them.
            ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=panel.label)
            names = [style.shortened(row, _LONGEST_NAME) if i == 0 else "" for row in rows]
            style.name_rows(ax, range(len(rows)), names)
            for place in range(1, len(rows)):
                ax.axhline(place - 0.5, color="#eef1f4", linewidth=0.8, zorder=0)
            _draw(ax, table if panel.table is None else panel.table, rows, panel, styles)
            if panel.title or i == 0:
                style.head(ax, panel.title or title)
        if n_legend_lines:
            dot = {"linestyle": "", "marker": "o", "markersize": 6}
            looks = {name: {**dot, **look} for name, look in styles.items()}
            style.legend_below(figure, looks, per_line, longest=_LONGEST_ENTRY)
    return figure


def _draw(
    ax: style.Axes,
    table: pd.DataFrame,
    rows: Sequence[str],
    panel: Panel,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    ends = panel.ends or _ends(table, panel)
    # With a margin, in which values are drawn where they are.
    low_end, high_end = np.array(ends) + 0.03 * np.ptp(ends) * np.array([-1, 1])
    place_of = {row: i for i, row in enumerate(rows)}
    for j, (name, look) in enumerate(styles.items()):
        values = table[table["series"] == name]
        offset = _BAND * ((j + 0.5) / len(styles) - 0.5)
        y = np.array([place_of[row] + offset for row in values["row"]], dtype=float)
        middle, low, high = _values(values, panel)
        drawn = np.clip(low, low_end, high_end), np.clip(high, low_end, high_end)
        color = look.get("color", style.INK)
        ax.hlines(y, *drawn, color=color, linewidth=1.0, alpha=0.6, zorder=2)
        tip: dict[str, Any] = {"markersize": 4, "color": color, "zorder": 5, "clip_on": False}
        for marker, end, is_cut in (
            ("<", low_end, (low < low_end) & (middle > low_end)),
            (">", high_end, (high > high_end) & (middle < high_end)),
        ):
            if is_cut.any():
                ax.plot(np.full(is_cut.sum(), end), y[is_cut], marker, **tip)
        beyond = (middle < low_end) | (middle > high_end)
        face = np.where(beyond, "white", look.get("markerfacecolor", color))
        shown = np.isfinite(middle)
        if shown.any():
            ax.scatter(
                np.clip(middle, low_end, high_end)[shown], y[shown], s=24, zorder=3,
                marker=look.get("marker", "o"), facecolors=face[shown], edgecolors=color,
                linewidths=0.9, clip_on=False,
            )  # fmt: skip
        if panel.digits is not None:
            at_end = ax.get_yaxis_transform()
            for place, value in zip(y[shown], middle[shown], strict=True):
                text = fixed(value, panel.digits)
                ax.text(1.04, place, text, transform=at_end, size=7.5, va="center")
    ax.set_xlim(low_end, high_end)
    if low_end <= 0 <= high_end:
        ax.axvline(0, color=style.FAINT, linewidth=1.0, zorder=1)


def _values(table: pd.DataFrame, panel: Panel) -> tuple[Any, Any, Any]:
    """Give values and the ends of their intervals; without one, both are the value."""
    middle = panel.scale * table[panel.column].to_numpy(float)
    ends = []
    for side in ("low", "high"):
        column = table.get(f"{panel.column}_{side}", table[panel.column])
        values = panel.scale * column.to_numpy(float)
        ends.append(np.where(np.isfinite(values), values, middle))
    return middle, *ends


def _ends(table: pd.DataFrame, panel: Panel) -> tuple[float, float]:
    """Choose the ends of an axis: 0, values but of controls, percentiles 3 to 97 are within."""
    middle, low, high = _values(table, panel)
    values = np.concatenate([middle, low, high])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    if "control" in table:
        middle = middle[~table["control"].to_numpy(bool)]
    shown = [0.0, *middle[np.isfinite(middle)]]
    lower, upper = np.quantile(values, [1 - _EDGE_QUANTILE, _EDGE_QUANTILE])
    lower, upper = float(min(lower, *shown)), float(max(upper, *shown))
    return lower, upper if upper > lower else lower + 1.0
