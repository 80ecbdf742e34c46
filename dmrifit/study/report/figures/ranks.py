"""Critical-difference diagrams: average ranks, and which algorithms cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dmrifit._optional import import_optional
from dmrifit.report.style import INK, PANEL, head, new_figure, shared_style
from dmrifit.study.report.figures.colors import algorithm_color

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

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
    matrix = p_values.loc[list(ranks.index), list(ranks.index)].astype(float).copy()
    # A pair that could not be tested, because all differences are 0, is not told apart.
    matrix = matrix.fillna(1.0)
    np.fill_diagonal(values := matrix.to_numpy(copy=True), 1.0)
    matrix.loc[:, :] = np.minimum(values, values.T)
    with shared_style({"font.size": 9}):
        figure = new_figure(PANEL[0], 0.95 + 0.2 * len(ranks), layout="constrained")
        ax = figure.subplots()
        posthocs.critical_difference_diagram(
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
        head(ax, title, lift=16)
    return figure
