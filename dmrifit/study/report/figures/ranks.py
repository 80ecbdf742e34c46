"""Critical-difference diagrams: average ranks, and which algorithms cannot be told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dmrifit._optional import import_optional
from dmrifit.report.style import INK, PANEL, head, new_figure, shared_style
from dmrifit.study.report.figures.colors import algorithm_color

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["plot_critical_difference"]


def plot_critical_difference(
    ranks: pd.Series,
    p_values: pd.DataFrame,
    title: str,
    *,
    algorithms: Sequence[str] | None = None,
    alpha: float = 0.05,
) -> Figure:
    """
    Draw average ranks on a line; a bar joins those that no test tells apart.

    References
    ----------
    Demšar, Journal of Machine Learning Research 7:1–30, 2006.
    """
    posthocs = import_optional("scikit_posthocs")
    names = list(ranks.index) if algorithms is None else list(algorithms)
    # A pair that could not be tested, because all differences are 0, is not told apart.
    matrix = p_values.loc[list(ranks.index), list(ranks.index)].astype(float).fillna(1.0)
    values = matrix.to_numpy(copy=True)
    np.fill_diagonal(values, 1.0)
    matrix.loc[:, :] = np.minimum(values, values.T)
    with shared_style({"font.size": 9}):
        figure = new_figure(PANEL[0], 0.95 + 0.2 * len(ranks), layout="constrained")
        ax = figure.subplots()
        artists = posthocs.critical_difference_diagram(
            ranks,
            matrix,
            ax=ax,
            alpha=alpha,
            label_fmt_left="{label} {rank:.1f}",
            label_fmt_right="{rank:.1f} {label}",
            label_props={"size": 9},
            color_palette={name: algorithm_color(name, names) for name in ranks.index},
            crossbar_props={"color": INK, "linewidth": 2.5, "marker": None},
            text_h_margin=0.02,
        )
        _arrange(bar for bars in artists["crossbars"] for bar in bars)
        head(ax, title, lift=16)
    return figure


def _arrange(bars: Iterable[Line2D]) -> None:
    """Stack bars by their ends: the library stacks those of equal ends in the order of a set."""
    ends_of_levels: list[float] = []
    spans = {}
    for bar in bars:
        x = np.asarray(bar.get_xdata(), float)
        spans[bar] = float(x.min()), float(x.max())
    for bar, (low, high) in zip(spans, sorted(spans.values()), strict=True):
        free = [level for level, end in enumerate(ends_of_levels) if end < low]
        level = free[0] if free else len(ends_of_levels)
        ends_of_levels[level : level + 1] = [high]
        bar.set_data([low, high], [-level - 1, -level - 1])
