"""Figures of a comparison of placements with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dmrifit.report.style import FAINT, new_figure, shared_style
from placement.exchange.overlays import NOTICE, SYNTHETIC
from placement.study.evaluation import CONTROLS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_evaluation"]

_METHODS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4b9a", "#8c6d1f")
_PALE = "#a3aab3"  # controls


def plot_evaluation(tables: Mapping[str, pd.DataFrame], *, synthetic: bool = False) -> Figure:
    """Draw how placements compare with experts', as the study's figures do."""
    cases = tables["cases"]
    methods = list(dict.fromkeys(cases["method"]))
    ours = [name for name in methods[1:] if name not in CONTROLS]
    colors = dict.fromkeys(methods, _PALE) | dict(
        zip([methods[0], *ours], (FAINT, *_METHODS), strict=False)
    )
    raters = [name for name in methods if name != methods[0]]
    n = max(4, len(raters))
    with shared_style({}):
        figure = new_figure(3.3 * n, 7.0, "constrained")
        grid = figure.add_gridspec(2, n)
        parts = (("dice_fair", "Dice (all but one expert)"), ("f_tumor", "part that is tumor"))
        for column, (measure, label) in enumerate(parts):
            ax = figure.add_subplot(grid[0, column])
            for k, name in enumerate(methods):
                values = cases.loc[cases["method"] == name, measure].dropna().to_numpy()
                # Spread by rank within the column: repeatable, and equal values do not hide each
                # other.
                across = k + 0.5 * ((np.arange(len(values)) * 0.618) % 1 - 0.5)
                ax.plot(
                    across,
                    values,
                    "o",
                    markersize=3,
                    alpha=0.5,
                    color=colors[name],
                    markeredgewidth=0,
                )
                if len(values):
                    ax.plot(
                        [k - 0.3, k + 0.3], [values.mean()] * 2, color=colors[name], linewidth=2
                    )
            ax.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
            ax.set_ylim(-0.02, 1.02)
            ax.set_title(label)
        for column, (measure, label) in enumerate(
            (("dice_mean", "mean Dice"), ("volume", "volume, mL")), start=2
        ):
            ax = figure.add_subplot(grid[0, column])
            for name in (methods[0], *ours):
                rows = cases[cases["method"] == name]
                ax.plot(
                    rows["tumor_volume"],
                    rows[measure],
                    "o",
                    markersize=3,
                    alpha=0.6,
                    color=colors[name],
                    markeredgewidth=0,
                )
            ax.set(xlabel="tumor, mL")
            ax.set_title(label)
        limits = tables["bland_altman"]
        reach = cases["difference"].abs().max() * 1.05
        for column, name in enumerate(raters):
            ax = figure.add_subplot(grid[1, column])
            rows = cases[cases["method"] == name]
            ax.plot(
                rows["volume"] - rows["difference"] / 2,
                rows["difference"],
                "o",
                markersize=3.5,
                alpha=0.6,
                color=colors[name],
                markeredgewidth=0,
            )
            row = limits[
                (limits["method"] == name) & (limits["against"] == "mean of experts")
            ].iloc[0]
            for value, dash in ((row["bias"], "-"), (row["lower"], "--"), (row["upper"], "--")):
                if np.isfinite(value):
                    ax.axhline(value, color=colors[name], linestyle=dash, linewidth=1)
            if np.isfinite(reach):
                ax.set_ylim(-reach, reach)
            ax.set(
                xlabel="mean with experts, mL",
                ylabel="difference from experts, mL" if column == 0 else "",
            )
            bias, lower, upper = (
                round(float(row[key]), 1) + 0.0 for key in ("bias", "lower", "upper")
            )
            ax.set_title(f"{name}: {bias:.1f} mL ({lower:.1f} … {upper:.1f})", fontsize=9.5)
        note = f"{SYNTHETIC}. {NOTICE}" if synthetic else NOTICE
        figure.supxlabel(note, x=0.995, ha="right", fontsize=9, color=FAINT)
    return figure
