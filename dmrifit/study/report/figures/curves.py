"""Curves: signal errors by contrast, learning curves, signal decays of a lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import CONSTANT, COPY, PERFECT, REPEAT, SHUFFLED, TRUTH, is_control
from dmrifit.report import style
from dmrifit.report.dot_plot import Panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PERCENT = 100.0
_LEGEND_COLUMNS = 4
_BAND = style.PALETTE["line"].light
_GRAYS = {
    CONSTANT: "#8a919b",
    SHUFFLED: "#b9bec6",
    COPY: "#a2a8b0",
    PERFECT: "#4a5563",
    TRUTH: "#5d6773",
    REPEAT: "#737c87",
}


def plot_signal_errors(
    signals: pd.DataFrame, title: str, *, algorithms: Sequence[str] | None = None
) -> Figure:
    """Draw the relative error of predicted signals, contrast by contrast."""
    keys = ["strategy", "algorithm", "te", "b"]
    by_contrast = signals.groupby(keys, sort=False, dropna=False)
    table = by_contrast["relative_error"].mean().reset_index()
    names = list(dict.fromkeys(table["algorithm"]))
    algorithms = names if algorithms is None else algorithms
    strategies = list(dict.fromkeys(table["strategy"]))
    contrasts = table[["te", "b"]].drop_duplicates().sort_values(["te", "b"], ignore_index=True)
    # NaN, for a protocol without echo times, is not equal to itself.
    position = {(f"{row.te:g}", row.b): i for i, row in enumerate(contrasts.itertuples())}
    with style.shared_style({"axes.grid": True}):
        colors = [
            style.handle(name, color=algorithm_color(name, algorithms), lw=1.6) for name in names
        ]
        dashes = [
            style.handle(name, color=style.INK, linestyle=style.dash_of(name, strategies), lw=1.6)
            for name in strategies
        ]
        handles = style.by_lines((colors, dashes), _LEGEND_COLUMNS)
        below = 0.2 * -(-len(handles) // _LEGEND_COLUMNS) + 0.1
        figure = style.new_figure(style.PANEL[0], style.PANEL[1] + below)
        ax = style.add_axes(
            figure, 0.62, below + 0.72, style.PANEL[0] - 0.79, style.PANEL[1] - 1.4
        )
        for (strategy, algorithm), rows in table.groupby(["strategy", "algorithm"], sort=False):
            for te, shell in rows.groupby("te", dropna=False):
                x = np.array([position[f"{te:g}", b] for b in shell["b"]])
                order = np.argsort(x)
                y = _PERCENT * shell["relative_error"].to_numpy()
                color = algorithm_color(algorithm, algorithms)
                dash = style.dash_of(strategy, strategies)
                ax.plot(x[order], y[order], color=color, linestyle=dash, marker=".", lw=1.4)
        labels = [f"{b:g}" for b in contrasts["b"]]
        ax.set_xticks(range(len(contrasts)), labels, rotation=90, fontsize=8.5)
        for te, rows in contrasts.groupby("te"):
            top_center = rows.index.to_numpy().mean(), 1.0
            ax.annotate(
                f"TE {te:g} ms", top_center, (0, 2), ax.get_xaxis_transform(), "offset points",
                ha="center", va="bottom", fontsize=8.5, color=style.FAINT,
            )  # fmt: skip
            if rows.index[0] > 0:
                ax.axvline(rows.index[0] - 0.5, color=style.PALE, linewidth=0.8)
        ax.set(xlabel="b (s/mm²)", ylabel="mean |E| of the signal (%)", yscale="log")
        style.plain_ticks(ax.yaxis, (1, 2, 5))
        style.head(ax, title, lift=13)
        style.legend_below(figure, handles, _LEGEND_COLUMNS)
    return figure


def plot_sizes(
    table: pd.DataFrame,
    panels: Sequence[Panel],
    looks: Mapping[str, Mapping[str, Any]],
    *,
    width: float,
) -> Figure:
    """
    Draw scores over the number of training patients: a panel for each cohort and score.

    `table` has the columns cohort, n_train, series and those of the panels; where there is one
    series, its intervals are a band.
    """
    cohorts = list(dict.fromkeys(table["cohort"]))
    sizes = sorted(table["n_train"].unique())
    n_columns = max(int(width / 1.2), 1)
    n_legend_lines = -(-len(looks) // n_columns) if len(looks) > 1 else 0
    foot = 0.48 + 0.2 * n_legend_lines
    # Room for numbers such as −0.25 and the label of their axis.
    gap = 0.76
    edge = (width - 0.1) / (len(panels) * len(cohorts)) - gap
    with style.shared_style({"axes.grid": True, "font.size": 9}):
        figure = style.new_figure(width, foot + 1.7)
        places = [(cohort, panel) for cohort in cohorts for panel in panels]
        for i, (cohort, panel) in enumerate(places):
            ax = style.add_axes(figure, gap - 0.02 + i * (edge + gap), foot, edge, 1.4)
            for name, look in looks.items():
                rows = table[(table["cohort"] == cohort) & (table["series"] == name)]
                y = panel.scale * rows[panel.column]
                ax.plot(rows["n_train"], y, **{"marker": ".", "lw": 1.5, **look})
                if len(looks) == 1:
                    low, high = (
                        panel.scale * rows[f"{panel.column}_{x}"] for x in ("low", "high")
                    )
                    ax.fill_between(rows["n_train"], low, high, color=_BAND, linewidth=0)
            if panel.ends:
                ax.set_ylim(*panel.ends)
            ax.set(xlim=(0, sizes[-1] * 1.04), xlabel="training patients", ylabel=panel.label)
            ax.set_xticks(sizes, _spread_labels(sizes))
            style.head(ax, cohort)
        if n_legend_lines:
            entries = [style.handle(name, lw=1.6, **look) for name, look in looks.items()]
            style.legend_below(figure, entries, n_columns)
    return figure


def plot_decays(decays: pd.DataFrame, title: str) -> Figure:
    """Draw measured and predicted signals against b, one color for each echo time."""
    measured = decays[decays["kind"] == "measured"]
    strategies = [label for label in dict.fromkeys(decays["kind"]) if label != "measured"]
    echoes = sorted(decays["te"].dropna().unique()) or [np.nan]
    with style.shared_style({"axes.grid": True}):
        figure = style.new_figure(style.PANEL[0], style.PANEL[1] + 0.2)
        ax = style.add_axes(figure, 0.62, 0.95, style.PANEL[0] - 0.79, style.PANEL[1] - 1.25)
        names = [f"{te:g}" for te in echoes]
        for te, name in zip(echoes, names, strict=True):
            color = style.color_of(name, names)
            at = decays["te"].isna() if np.isnan(te) else decays["te"] == te
            for strategy in strategies:
                rows = decays[at & (decays["kind"] == strategy)].sort_values("b")
                dash = style.dash_of(strategy, strategies)
                ax.plot(rows["b"], rows["signal"], color=color, linestyle=dash, lw=1.5)
            rows = measured[at.loc[measured.index]]
            fill = np.where(rows["known"], color, "white")
            look: dict[str, Any] = {"facecolors": fill, "edgecolors": color, "linewidths": 1.3}
            ax.scatter(rows["b"], rows["signal"], s=30, zorder=3, **look)
        ax.set(xlabel="b (s/mm²)", ylabel="signal / patient's scale", yscale="log")
        style.plain_ticks(ax.yaxis, (1, 2, 3, 5))
        style.head(ax, title)
        colors = [
            style.handle(
                "one TE" if np.isnan(te) else f"TE {te:g} ms",
                color=style.color_of(name, names),
                lw=3,
            )
            for te, name in zip(echoes, names, strict=True)
        ]
        dot = partial(style.handle, linestyle="", marker="o", color=style.INK, markersize=5.5)
        points = [dot("input"), dot("measured", markerfacecolor="white")]
        lines = [
            style.handle(name, color=style.INK, linestyle=style.dash_of(name, strategies), lw=1.5)
            for name in strategies
        ]
        figure.legend(
            handles=style.by_lines((colors, [*points, *lines]), 4), loc="outside lower left",
            ncols=4, fontsize=8.5, columnspacing=1.0, handlelength=1.8,
        )  # fmt: skip
    return figure


def _spread_labels(sizes: Sequence[int]) -> list[str]:
    """Leave out labels that would run into each other."""
    labels: list[str] = []
    # Width of a label, as a share of the axis; the largest size always has one.
    room, labeled = 0.09 * max(sizes[-1], 1), np.inf
    for size in reversed(sizes):
        is_free = labeled - size >= room
        labels.append(f"{size:g}" if is_free else "")
        labeled = size if is_free else labeled
    return labels[::-1]


def algorithm_color(name: str, algorithms: Sequence[str]) -> str:
    """Choose the color of an algorithm, or the gray of a control."""
    grays = [_GRAYS[word] for word in name.lower().split() if word in _GRAYS]
    if grays:
        return grays[0]
    return style.color_of(
        name, [algorithm for algorithm in algorithms if not is_control(algorithm)]
    )
