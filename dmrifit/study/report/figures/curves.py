"""Curves: signal errors by contrast, learning curves, signal decays of a lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.report.style import (
    FAINT,
    INK,
    PANEL,
    add_axes,
    by_lines,
    color_of,
    dash_of,
    handle,
    head,
    marker_of,
    new_figure,
    plain_ticks,
    shared_style,
)
from dmrifit.study.report.figures.colors import algorithm_color

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_decays", "plot_learning_curve", "plot_signal_errors"]

_PERCENT = 100.0
_LEGEND_COLUMNS = 4
_INDICES = {"bias": "|BI| (%)", "dispersion": "DI (%)"}


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
    position = {(_word(row.te), row.b): i for i, row in enumerate(contrasts.itertuples())}
    with shared_style({"axes.grid": True}):
        colors = [handle(name, color=algorithm_color(name, algorithms), lw=1.6) for name in names]
        dashes = [
            handle(name, color=INK, linestyle=dash_of(name, strategies), lw=1.6)
            for name in strategies
        ]
        handles = by_lines((colors, dashes), _LEGEND_COLUMNS)
        below = 0.2 * -(-len(handles) // _LEGEND_COLUMNS) + 0.1
        figure = new_figure(PANEL[0], PANEL[1] + below)
        ax = add_axes(figure, 0.62, below + 0.72, PANEL[0] - 0.79, PANEL[1] - 1.4)
        for (strategy, algorithm), rows in table.groupby(["strategy", "algorithm"], sort=False):
            for te, shell in rows.groupby("te", dropna=False):
                x = np.array([position[_word(te), b] for b in shell["b"]])
                order = np.argsort(x)
                y = _PERCENT * shell["relative_error"].to_numpy()
                color, dash = algorithm_color(algorithm, algorithms), dash_of(strategy, strategies)
                ax.plot(x[order], y[order], color=color, linestyle=dash, marker=".", lw=1.4)
        labels = [f"{b:g}" for b in contrasts["b"]]
        ax.set_xticks(range(len(contrasts)), labels, rotation=90, fontsize=8.5)
        for te, rows in contrasts.groupby("te"):
            top_center = rows.index.to_numpy().mean(), 1.0
            ax.annotate(
                f"TE {te:g} ms", top_center, (0, 2), ax.get_xaxis_transform(), "offset points",
                ha="center", va="bottom", fontsize=8.5, color=FAINT,
            )  # fmt: skip
            if rows.index[0] > 0:
                ax.axvline(rows.index[0] - 0.5, color="#b9bec6", linewidth=0.8)
        ax.set(xlabel="b (s/mm²)", ylabel="mean |E| of the signal (%)", yscale="log")
        plain_ticks(ax.yaxis, (1, 2, 5))
        head(ax, title, lift=13)
        figure.legend(
            handles=handles, loc="lower left", ncols=_LEGEND_COLUMNS, fontsize=9, borderaxespad=0.3
        )
    return figure


def plot_learning_curve(
    scores: pd.DataFrame,
    title: str,
    *,
    algorithms: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    averaged: Sequence[str] | None = None,
    like: pd.DataFrame | None = None,
) -> Figure:
    """
    Draw bias and dispersion over training sizes: overall, by algorithm, by parameter.

    Means over parameters include those of `averaged`.
    """
    algorithms = list(dict.fromkeys(scores["algorithm"]) if algorithms is None else algorithms)
    metrics = list(dict.fromkeys(scores["metric"]) if metrics is None else metrics)
    algorithm_styles = {name: {"color": algorithm_color(name, algorithms)} for name in algorithms}
    metric_styles = {}
    for name in metrics:
        color, marker = color_of(name, metrics), marker_of(name, metrics)
        metric_styles[name] = {"color": color, "marker": marker}
    table = _by_patient(scores)
    # Figures that are compared have the axes of all their scores together.
    table_of_limits = table if like is None else _by_patient(like)
    sizes = sorted(table["n_train"].unique())
    rows_of_panels: list[tuple[list[str], Mapping[str, dict[str, Any]]]] = [([], {})]
    if len(set(table["algorithm"])) > 1:
        rows_of_panels.append((["algorithm"], algorithm_styles))
    if len(set(table["metric"])) > 1:
        rows_of_panels.append((["metric"], metric_styles))
    # Only what a row of panels shows is in its legend.
    entries: list[list[str]] = []
    for keys, styles in rows_of_panels:
        shown = set(table[keys[0]]) if keys else set()
        entries.append([name for name in styles if name in shown])
    # Inches: the axes of each row, and the lines of its legend above them.
    legends = [
        0.1 + 0.2 * -(-len(names) // _LEGEND_COLUMNS) if names else 0.0 for names in entries
    ]
    notes = 0.2 * title.count("\n")
    with shared_style({"axes.grid": True}):
        height = 0.75 + notes + sum(legends) + len(rows_of_panels) * 1.75
        figure = new_figure(PANEL[0], height)
        bottom = figure.get_figheight() - 0.35 - notes
        for i, (keys, styles) in enumerate(rows_of_panels):
            bottom -= legends[i] + 1.55
            drawn, limiting = table, table_of_limits
            if averaged is not None and "metric" not in keys:
                drawn = table[table["metric"].isin(averaged)]
                limiting = limiting[limiting["metric"].isin(averaged)]
            highest = _highest(limiting, keys)
            last = i == len(rows_of_panels) - 1
            for x, index in zip((0.58, 2.83), _INDICES, strict=True):
                ax = add_axes(figure, x, bottom, 1.5, 1.45)
                _draw_sizes(ax, drawn, index, keys, styles)
                ax.set(
                    ylim=(0, 1.06 * highest[index] or 1.0),
                    ylabel=_INDICES[index],
                    xlim=(0, sizes[-1] * 1.04),
                )
                ax.tick_params(labelsize=8.5)
                ax.set_xticks(sizes, _spread_labels(sizes) if last else [""] * len(sizes))
                if last:
                    ax.set_xlabel("N, training patients")
                if i == 0 and x < 1:
                    head(ax, title)
            handles = []
            for name in entries[i]:
                style = {"marker": ".", "lw": 1.6, "markersize": 5, **styles[name]}
                handles.append(handle(name, **style))
            if handles:
                figure.legend(
                    handles=by_lines([handles], _LEGEND_COLUMNS), ncols=_LEGEND_COLUMNS,
                    fontsize=8.5, columnspacing=1.0,
                    handlelength=1.5, loc="lower left", borderaxespad=0,
                    bbox_to_anchor=(0.5 / PANEL[0], (bottom + 1.5) / figure.get_figheight()),
                )  # fmt: skip
            bottom -= 0.15
    return figure


def plot_decays(decays: pd.DataFrame, title: str) -> Figure:
    """Draw measured and predicted signals against b, one color for each echo time."""
    measured = decays[decays["kind"] == "measured"]
    strategies = [label for label in dict.fromkeys(decays["kind"]) if label != "measured"]
    echoes = sorted(decays["te"].dropna().unique()) or [np.nan]
    with shared_style({"axes.grid": True}):
        figure = new_figure(PANEL[0], PANEL[1] + 0.2)
        ax = add_axes(figure, 0.62, 0.95, PANEL[0] - 0.79, PANEL[1] - 1.25)
        names = [_word(te) for te in echoes]
        for te, name in zip(echoes, names, strict=True):
            color = color_of(name, names)
            at = decays["te"].isna() if np.isnan(te) else decays["te"] == te
            for strategy in strategies:
                rows = decays[at & (decays["kind"] == strategy)].sort_values("b")
                dash = dash_of(strategy, strategies)
                ax.plot(rows["b"], rows["signal"], color=color, linestyle=dash, lw=1.5)
            rows = measured[at.loc[measured.index]]
            fill = np.where(rows["known"], color, "white")
            look: dict[str, Any] = {"facecolors": fill, "edgecolors": color, "linewidths": 1.3}
            ax.scatter(rows["b"], rows["signal"], s=30, zorder=3, **look)
        ax.set(xlabel="b (s/mm²)", ylabel="signal / patient's scale", yscale="log")
        plain_ticks(ax.yaxis, (1, 2, 3, 5))
        head(ax, title)
        colors = []
        for te, name in zip(echoes, names, strict=True):
            label = "one TE" if np.isnan(te) else f"TE {te:g} ms"
            colors.append(handle(label, color=color_of(name, names), lw=3))
        dot = partial(handle, linestyle="", marker="o", color=INK, markersize=5.5)
        points = [dot("input"), dot("measured", markerfacecolor="white")]
        lines = [
            handle(name, color=INK, linestyle=dash_of(name, strategies), lw=1.5)
            for name in strategies
        ]
        figure.legend(
            handles=by_lines((colors, [*points, *lines]), 4), loc="outside lower left", ncols=4,
            fontsize=8.5, columnspacing=1.0, handlelength=1.8,
        )  # fmt: skip
    return figure


def _word(te: float) -> str:
    return f"{te:g}"


def _by_patient(scores: pd.DataFrame) -> pd.DataFrame:
    """Average |BI| and DI over repeated draws, in percent."""
    scores = scores.assign(
        bias=_PERCENT * scores["bias"].abs(), dispersion=_PERCENT * scores["dispersion"]
    )
    keys = ["cohort", "strategy", "algorithm", "metric", "patient", "n_train"]
    return scores.groupby(keys, sort=False)[list(_INDICES)].mean().reset_index()


def _highest(table: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Find the largest mean that a row of panels has to show."""
    panel_keys = ["cohort", "strategy", "n_train"]
    means = table.groupby([*panel_keys, *keys], sort=False)[list(_INDICES)].mean()
    if not keys:
        # The band over patients may reach above the mean.
        patients = table.groupby([*panel_keys, "patient"], sort=False)[list(_INDICES)].mean()
        means = patients.groupby(panel_keys).quantile(0.75).combine(means, np.fmax)
    return means.max().fillna(0.0)


def _draw_sizes(
    ax: Axes,
    table: pd.DataFrame,
    index: str,
    keys: list[str],
    look: Mapping[str, Mapping[str, Any]],
) -> None:
    if not keys:
        patients = table.groupby(["n_train", "patient"])[index].mean()
        by_size = patients.groupby("n_train")
        low, middle, high = by_size.quantile(0.25), by_size.mean(), by_size.quantile(0.75)
        ax.fill_between(middle.index, low, high, color="#d5dae1", linewidth=0)
        ax.plot(middle.index, middle, color=INK, marker="o", markersize=4, lw=1.8)
        return
    for name, rows in table.groupby(keys[0], sort=False):
        means = rows.groupby("n_train")[index].mean()
        ax.plot(means.index, means, **{"marker": ".", "markersize": 5, "lw": 1.4, **look[name]})


def _spread_labels(sizes: Sequence[int]) -> list[str]:
    """Leave out labels that would run into each other."""
    labels: list[str] = []
    last = -np.inf
    # Width of a label, as a share of the axis.
    room = 0.09 * max(sizes[-1], 1)
    for size in sizes:
        is_near_last = size != sizes[-1] and sizes[-1] - size < room
        if size - last < room or is_near_last:
            labels.append("")
            continue
        labels.append(f"{size:g}")
        last = size
    return labels
