"""Curves: signal errors by contrast, learning curves, signal decays of a lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.predict.controls import is_control
from dmrifit.report import style
from dmrifit.report.dot_plot import Panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PERCENT = 100.0
_BAND = style.PALETTE["line"].light


def plot_signal_errors(
    signals: pd.DataFrame, title: str, *, algorithms: Sequence[str] | None = None
) -> Figure:
    """Draw the relative error of predicted signals, contrast by contrast."""
    keys = ["strategy", "algorithm", "te", "b"]
    by_contrast = signals.groupby(keys, sort=False, dropna=False)
    table = by_contrast["relative_error"].mean().reset_index()
    algorithms = algorithms or list(dict.fromkeys(table["algorithm"]))
    strategies = list(dict.fromkeys(table["strategy"]))
    contrasts = table[["te", "b"]].drop_duplicates().sort_values(["te", "b"], ignore_index=True)
    table = table.merge(contrasts.reset_index(names="x")).sort_values("x", kind="stable")
    looks = {}
    with style.shared_style({"axes.grid": True}):
        figure = style.new_figure(style.PANEL[0], style.PANEL[1] + 0.6, layout="constrained")
        ax = figure.subplots()
        for (algorithm, strategy), rows in table.groupby(["algorithm", "strategy"], sort=False):
            look = {
                "color": algorithm_color(algorithm, algorithms),
                "linestyle": style.dash_of(strategy, strategies),
            }
            looks[f"{algorithm} {strategy}"] = look
            for _, shell in rows.groupby("te", dropna=False):
                ax.plot(shell["x"], _PERCENT * shell["relative_error"], marker=".", lw=1.4, **look)
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
        entries = [style.handle(name, lw=1.6, **look) for name, look in looks.items()]
        style.legend_below(figure, entries)
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
    places = [(cohort, panel) for cohort in cohorts for panel in panels]
    with style.shared_style({"axes.grid": True, "font.size": 9}):
        figure = style.new_figure(width, 2.2 + 0.04 * len(looks), layout="constrained")
        axes = figure.subplots(1, len(places), squeeze=False)[0]
        for ax, (cohort, panel) in zip(axes, places, strict=True):
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
            ax.set(
                xlim=(0, table["n_train"].max() * 1.04),
                xlabel="training patients",
                ylabel=panel.label,
            )
            ax.locator_params(axis="x", integer=True)
            style.head(ax, cohort)
        if len(looks) > 1:
            entries = [style.handle(name, lw=1.6, **look) for name, look in looks.items()]
            style.legend_below(figure, entries, max(int(width / 1.2), 1))
    return figure


def plot_decays(decays: pd.DataFrame, title: str) -> Figure:
    """Draw measured and predicted signals against b, one color for each echo time."""
    measured = decays[decays["kind"] == "measured"]
    strategies = [label for label in dict.fromkeys(decays["kind"]) if label != "measured"]
    echoes = sorted(decays["te"].dropna().unique()) or [np.nan]
    with style.shared_style({"axes.grid": True}):
        figure = style.new_figure(style.PANEL[0], style.PANEL[1] + 0.2, layout="constrained")
        ax = figure.subplots()
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
        style.legend_below(figure, [*colors, *points, *lines], 4, columnspacing=1.0)
    return figure


def algorithm_color(name: str, algorithms: Sequence[str]) -> str:
    """Choose the color of an algorithm; controls are pale."""
    return style.method_color(name, [word for word in algorithms if not is_control(word)])
