"""Figures of a comparison, and the look that all figures share. They are drawn without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit._optional import import_optional

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "is_control",
    "new_figure",
    "plot_bias_dispersion",
    "plot_legend",
    "plot_signal_errors",
    "shared_style",
]

#: Distinct with every form of color blindness (Okabe and Ito); the control is gray.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4b9a", "#8c6d1f")
_CONTROL_COLOR = "#8a919b"
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">")
_THIN_MARKERS = ("P", "X", "*")  # of which a white edge leaves little
_DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)))
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#4a5563",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e8ed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": "#1d2530",
    "axes.labelcolor": "#1d2530",
    "xtick.color": "#4a5563",
    "ytick.color": "#4a5563",
    "legend.frameon": False,
    "savefig.facecolor": "white",
}
_PERCENT = 100.0
_PANEL = (4.4, 3.7)  # inches; on a telephone the letters are still readable
_LEGEND_COLUMNS = 4
_LIMIT_QUANTILE = 0.97  # one parameter that went astray must not squeeze all others


def plot_bias_dispersion(
    panels: Sequence[tuple[str, pd.DataFrame]],
    *,
    legend: bool = True,
    like: Sequence[tuple[str, pd.DataFrame]] | None = None,
) -> Figure:
    """
    Draw dispersion against bias, one panel for each part of a comparison.

    Parameters
    ----------
    panels : sequence of (str, DataFrame)
        Title of each panel, with a second line if wanted, and its rows:
        ``algorithm``, ``metric``, ``bias`` (the mean of abs(BI)) and
        ``dispersion`` (the mean of DI), both as fractions.
    legend : bool, default=True
        Whether algorithms (colors) and parameters (shapes) are explained in the figure.
    like : sequence of (str, DataFrame), optional
        Panels of other figures that this one shall be comparable with: it gets their axes and colors.

    Returns
    -------
    Figure
        All panels have the same axes, in percent; points beyond them stand at the edge, hollow.
    """
    import pandas as pd

    everything = pd.concat([rows for _, rows in like or panels], ignore_index=True)
    algorithms = list(dict.fromkeys(everything["algorithm"]))
    metrics = list(dict.fromkeys(everything["metric"]))
    limits = _limit(everything["bias"]), _limit(everything["dispersion"])
    columns = 1 if len(panels) == 1 else 2
    lines = -(-len(panels) // columns)
    with shared_style({"axes.grid": True}):
        figure = new_figure(columns * _PANEL[0], lines * _PANEL[1] + (0.9 if legend else 0), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for ax, (title, rows) in zip(axes, panels, strict=False):
            _scatter(ax, rows, algorithms, metrics, limits)
            title, _, note = title.partition("\n")
            ax.set_title(title, pad=18 if note else 6)
            ax.text(0, 1.02, note, transform=ax.transAxes, fontsize=8.5, color="#4a5563", va="bottom")
            ax.tick_params(labelbottom=True, labelleft=True)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        if legend:
            handles = _by_lines(_handles(algorithms, metrics), _LEGEND_COLUMNS * columns)
            figure.legend(handles=handles, loc="outside lower left", ncols=_LEGEND_COLUMNS * columns, fontsize=9)
    return figure


def plot_legend(algorithms: Sequence[str], metrics: Sequence[str]) -> Figure:
    """
    Draw the legend of `plot_bias_dispersion` alone.

    Parameters
    ----------
    algorithms, metrics : sequence of str
        In the order of the tables.

    Returns
    -------
    Figure
        Colors stand for algorithms, shapes for parameters.
    """
    with shared_style({"axes.grid": True}):
        handles = _by_lines(_handles(algorithms, metrics), _LEGEND_COLUMNS)
        figure = new_figure(_PANEL[0], 0.26 * -(-len(handles) // _LEGEND_COLUMNS) + 0.1)
        figure.legend(handles=handles, loc="center left", ncols=_LEGEND_COLUMNS, fontsize=9, columnspacing=1.2)
    return figure


def plot_signal_errors(signals: pd.DataFrame, title: str) -> Figure:
    """
    Draw the relative error of predicted signals, contrast by contrast.

    Parameters
    ----------
    signals : DataFrame
        Rows of ``Evaluation.signals`` of one cohort.
    title : str
        Heading, with a second line if wanted.

    Returns
    -------
    Figure
        The mean over patients, in percent; one line for each estimator, echo times side by side.
    """
    means = signals.groupby(["strategy", "algorithm", "te", "b"], sort=False, dropna=False)["relative_error"].mean()
    table = means.reset_index()
    algorithms = list(dict.fromkeys(table["algorithm"]))
    strategies = list(dict.fromkeys(table["strategy"]))
    contrasts = table[["te", "b"]].drop_duplicates().sort_values(["te", "b"]).reset_index(drop=True)
    position = {(row.te, row.b): i for i, row in enumerate(contrasts.itertuples())}
    with shared_style({"axes.grid": True}):
        figure = new_figure(*_PANEL, layout="constrained")
        ax = figure.subplots()
        for (strategy, algorithm), rows in table.groupby(["strategy", "algorithm"], sort=False):
            dash = _DASHES[strategies.index(strategy) % len(_DASHES)]
            for _, part in rows.groupby("te", dropna=False):
                x = [position[te, b] for te, b in zip(part["te"], part["b"], strict=True)]
                order = np.argsort(x)
                y = _PERCENT * part["relative_error"].to_numpy()
                ax.plot(
                    np.array(x)[order],
                    y[order],
                    color=_color(algorithm, algorithms),
                    linestyle=dash,
                    marker=".",
                    lw=1.4,
                )
        ax.set_xticks(range(len(contrasts)), [f"{b:g}" for b in contrasts["b"]], rotation=90, fontsize=8.5)
        for te, rows in contrasts.groupby("te"):
            ax.text(
                rows.index.to_numpy().mean(),
                1.0,
                f"TE {te:g} ms",
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8.5,
                color="#4a5563",
            )
            if rows.index[0] > 0:
                ax.axvline(rows.index[0] - 0.5, color="#b9bec6", linewidth=0.8)
        ax.set(xlabel="b (s/mm²)", ylabel="mean relative error (%)", yscale="log")
        ticker = import_optional("matplotlib.ticker")
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        title, _, note = title.partition("\n")
        ax.set_title(title, pad=28 if note else 16)
        ax.text(0, 1.09, note, transform=ax.transAxes, fontsize=8.5, color="#4a5563", va="bottom")
        colors = [_line(_color(name, algorithms), "-", name) for name in algorithms]
        dashes = [_line("#1d2530", _DASHES[i % len(_DASHES)], name) for i, name in enumerate(strategies)]
        handles = _by_lines((colors, dashes), _LEGEND_COLUMNS)
        figure.legend(handles=handles, loc="outside lower left", ncols=_LEGEND_COLUMNS, fontsize=9)
    return figure


def shared_style(changes: Mapping[str, Any]) -> AbstractContextManager[None]:
    """
    Draw with fonts, lines and colors that all figures share.

    Parameters
    ----------
    changes : mapping of str to object
        Settings of matplotlib that differ for this figure.

    Returns
    -------
    context manager
        Inside, matplotlib's settings are these; after it, what they were.
    """
    return import_optional("matplotlib").rc_context(_STYLE | dict(changes))


def new_figure(width: float, height: float, layout: str | None = None) -> Figure:
    """
    Make an empty figure that belongs to the caller: no window is opened and no global state touched.

    Parameters
    ----------
    width, height : float
        Inches.
    layout : str, optional
        How matplotlib arranges the parts.

    Returns
    -------
    Figure
        The figure.
    """
    return import_optional("matplotlib.figure").Figure(figsize=(width, height), layout=layout)


def _limit(values: pd.Series) -> float:
    finite = _PERCENT * values[np.isfinite(values)]
    if not len(finite):
        return 1.0
    largest, usual = float(finite.max()), float(finite.quantile(_LIMIT_QUANTILE))
    return 1.08 * (largest if largest < 1.5 * usual else usual) or 1.0


def _scatter(
    ax: Axes, rows: pd.DataFrame, algorithms: Sequence[str], metrics: Sequence[str], limits: tuple[float, float]
) -> None:
    for row in rows.to_dict("records"):
        x, y = _PERCENT * row["bias"], _PERCENT * row["dispersion"]
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        color = _color(row["algorithm"], algorithms)
        beyond = x > limits[0] or y > limits[1]
        marker = _MARKERS[metrics.index(row["metric"]) % len(_MARKERS)]
        ax.scatter(
            min(x, limits[0]),
            min(y, limits[1]),
            s=90 if marker in _THIN_MARKERS else 56,
            facecolor="white" if beyond else color,
            edgecolor=color if beyond else "white",
            linewidth=1.4 if beyond else 0.6,
            marker=marker,
            clip_on=False,
            zorder=2 if is_control(row["algorithm"]) else 3,
        )
    ax.set(xlim=(0, limits[0]), ylim=(0, limits[1]), xlabel="|BI|, bias (%)", ylabel="DI, dispersion (%)")


def is_control(algorithm: str) -> bool:
    """
    Tell whether an algorithm is there to be beaten.

    Parameters
    ----------
    algorithm : str
        Its name.

    Returns
    -------
    bool
        Whether it is a constant predictor.
    """
    return "constant" in algorithm.lower()


def _color(algorithm: str, algorithms: Sequence[str]) -> str:
    if is_control(algorithm):
        return _CONTROL_COLOR
    learners = [name for name in algorithms if not is_control(name)]
    return _COLORS[learners.index(algorithm) % len(_COLORS)]


def _handles(algorithms: Sequence[str], metrics: Sequence[str]) -> tuple[list[Any], list[Any]]:
    line = import_optional("matplotlib.lines").Line2D
    colors = [
        line([], [], linestyle="", marker="o", markersize=9, color=_color(name, algorithms), label=name)
        for name in algorithms
    ]
    shapes = [
        line([], [], linestyle="", marker=_MARKERS[i % len(_MARKERS)], markersize=7, color="#1d2530", label=name)
        for i, name in enumerate(metrics)
    ]
    return colors, shapes


def _by_lines(groups: Sequence[Sequence[Any]], n_columns: int) -> list[Any]:
    """Order handles so that a legend, which fills columns, reads line by line and each group begins a line."""
    empty = import_optional("matplotlib.lines").Line2D([], [], linestyle="", label=" ")
    padded = [handle for group in groups for handle in (*group, *[empty] * (-len(group) % n_columns))]
    return [handle for i in range(n_columns) for handle in padded[i::n_columns]]


def _line(color: str, dash: Any, label: str) -> Any:
    return import_optional("matplotlib.lines").Line2D([], [], color=color, linestyle=dash, lw=1.6, label=label)
