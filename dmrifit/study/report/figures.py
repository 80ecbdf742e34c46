"""Figures of a report: signal errors, learning curves, decays, maps and joint histograms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit.io.components import label_components
from dmrifit.report import style
from dmrifit.report.dot_plot import Panel
from dmrifit.report.slice_figures import NO_VALUE_COLOR, Slices, robust_limits

if TYPE_CHECKING:
    import pandas as pd

    from dmrifit.study.predictions import PatientPredictions

_PERCENT = 100.0
# Two colors around white, distinct with every form of color blindness.
_ERROR_COLORMAP = "PuOr_r"
_LARGEST_ERROR = 1.0
_ERROR_QUANTILE = 0.95
_MARGIN = 0.8  # around a lesion, in its lengths
_TITLE: dict[str, Any] = {"x": 0.01, "ha": "left", "size": 9.5}
_UNIT: dict[str, Any] = {"size": 8, "weight": "normal", "loc": "left", "pad": 4}
_N_BINS = 40
_EDGES = (0.5, 99.5)  # percentiles at which the axes of joint histograms end


def plot_signal_errors(
    signals: pd.DataFrame, title: str, *, learners: Sequence[str]
) -> style.Figure:
    """Draw the relative error of predicted signals, contrast by contrast."""
    keys = ["strategy", "algorithm", "te", "b"]
    by_contrast = signals.groupby(keys, sort=False, dropna=False)
    table = by_contrast["relative_error"].mean().reset_index()
    strategies = list(dict.fromkeys(table["strategy"]))
    contrasts = table[["te", "b"]].drop_duplicates().sort_values(["te", "b"], ignore_index=True)
    table = table.merge(contrasts.reset_index(names="x")).sort_values("x", kind="stable")
    table = table.assign(series=table["algorithm"] + " " + table["strategy"])
    looks = series_looks(table, learners, strategies, "linestyle")
    width, height = style.PANEL
    with style.drawing((width, height + 0.6), (1, 1), style.GRID) as (figure, [[ax]]):
        for name, look in looks.items():
            for _, shell in table[table["series"] == name].groupby("te", dropna=False):
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
        style.legend_below(figure, looks, linewidth=1.6)
    return figure


def plot_sizes(
    table: pd.DataFrame,
    panels: Sequence[Panel],
    looks: Mapping[str, Mapping[str, Any]],
    *,
    width: float,
) -> style.Figure:
    """
    Draw scores over the number of training patients: a panel for each cohort and score.

    `table` has the columns cohort, n_train, series and those of the panels; where there is one
    series, its intervals are a band.
    """
    cohorts = list(dict.fromkeys(table["cohort"]))
    places = [(cohort, panel) for cohort in cohorts for panel in panels]
    size = width, 1.8 + 0.4 * (len(looks) > 1) + 0.04 * len(looks)
    with style.drawing(size, (1, len(places)), style.GRID | {"font.size": 9}) as (figure, [axes]):
        for ax, (cohort, panel) in zip(axes, places, strict=True):
            for name, look in looks.items():
                rows = table[(table["cohort"] == cohort) & (table["series"] == name)]
                y = panel.scale * rows[panel.column]
                ax.plot(rows["n_train"], y, **{"marker": ".", "lw": 1.5, **look})
                if len(looks) == 1:
                    ends = [panel.scale * rows[f"{panel.column}_{x}"] for x in ("low", "high")]
                    ax.fill_between(rows["n_train"], *ends, color=style.LINE, linewidth=0)
            if panel.ends:
                ax.set_ylim(*panel.ends)
            ax.set(xlabel="training patients", ylabel=panel.label)
            ax.set_xlim(0, table["n_train"].max() * 1.04)
            ax.locator_params(axis="x", integer=True)
            style.head(ax, cohort)
        if len(looks) > 1:
            style.legend_below(figure, looks, max(int(width / 1.2), 1), linewidth=1.6)
    return figure


def plot_decays(decays: pd.DataFrame, title: str) -> style.Figure:
    """Draw measured and predicted signals against b, one color for each echo time."""
    measured = decays[decays["kind"] == "measured"]
    strategies = [label for label in dict.fromkeys(decays["kind"]) if label != "measured"]
    echoes = sorted(decays["te"].dropna().unique()) or [np.nan]
    looks: dict[str, dict[str, Any]] = {}
    width, height = style.PANEL
    with style.drawing((width, height + 0.2), (1, 1), style.GRID) as (figure, [[ax]]):
        for te in echoes:
            color = style.color_of(te, echoes)
            at, name = decays["te"] == te, f"TE {te:g} ms"
            if np.isnan(te):
                at, name = decays["te"].isna(), "one TE"
            looks[name] = {"color": color, "linewidth": 3}
            for strategy in strategies:
                rows = decays[at & (decays["kind"] == strategy)].sort_values("b")
                dash = style.shape_of(strategy, strategies, "linestyle")
                ax.plot(rows["b"], rows["signal"], color=color, linestyle=dash, lw=1.5)
            rows = measured[at.loc[measured.index]]
            fill = np.where(rows["known"], color, "white")
            look: dict[str, Any] = {"facecolors": fill, "edgecolors": color, "linewidths": 1.3}
            ax.scatter(rows["b"], rows["signal"], s=30, zorder=3, **look)
        ax.set(xlabel="b (s/mm²)", ylabel="signal / patient's scale", yscale="log")
        style.plain_ticks(ax.yaxis, (1, 2, 3, 5))
        style.head(ax, title)
        dot = {"color": style.INK, "linestyle": "", "marker": "o", "markersize": 5.5}
        looks |= {"input": dot, "measured": dot | {"markerfacecolor": "white"}}
        for name in strategies:
            dash = style.shape_of(name, strategies, "linestyle")
            looks[name] = {"color": style.INK, "linestyle": dash, "linewidth": 1.5}
        style.legend_below(figure, looks, 4, columnspacing=1.0)
    return figure


def series_looks(
    table: pd.DataFrame,
    learners: Sequence[str],
    strategies: Sequence[str],
    kind: Literal["linestyle", "marker"],
) -> dict[str, dict[str, Any]]:
    """Give each series a color by algorithm, controls pale, and dashes or a shape by strategy."""
    return {
        row.series: {
            "color": style.method_color(row.algorithm, learners),
            kind: style.shape_of(row.strategy, strategies, kind),
        }
        for row in table.drop_duplicates("series").itertuples()
    }


@dataclass(frozen=True)
class MapRow:
    """
    Maps of one parameter in a patient: reference, predictions by name, and the truth if known.

    Shapes: each (n_voxels,).
    """

    name: str
    unit: str
    reference: NDArray
    predictions: Mapping[str, NDArray]
    truth: NDArray | None = None

    @property
    def maps(self) -> dict[str, NDArray]:
        """Maps by label, in the order in which they are drawn."""
        truth = {} if self.truth is None else {"truth": self.truth}
        return truth | {"reference": self.reference, **self.predictions}


def plot_lesion(
    patient: PatientPredictions,
    rows: Sequence[MapRow],
    title: str,
    *,
    width: float,
    n_columns: int = 1,
) -> style.Figure:
    """Draw maps and their relative errors in the middle of the largest group of scored voxels."""
    mask = np.zeros(patient.shape, bool)
    mask[tuple(patient.index.T)] = True
    labels = label_components(mask)
    largest = labels == np.bincount(labels[mask]).argmax()
    # With room around the largest group.
    slices = Slices(largest, patient.affine, n_slices=1, margin=_MARGIN)
    n_pictures = max(len(row.maps) + len(row.predictions) for row in rows)
    n_lines = -(-len(rows) // n_columns)
    # Inches: for each column of parameters two color bars and room between pictures.
    edge = (width / n_columns - 1.7) / n_pictures
    height = n_lines * (edge * min(slices.aspect, 1.3) + 0.5) + 0.4
    shape = n_lines, n_columns
    with style.drawing((width, height), shape, {"font.size": 8.5}) as (figure, axes):
        figure.suptitle(f"{title}\n{slices.labels[0]}".strip(), **_TITLE)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, row in zip(axes.flat, rows, strict=False):
            _draw_row(ax, patient, slices, row)
    return figure


def _draw_row(ax: style.Axes, patient: PatientPredictions, slices: Slices, row: MapRow) -> None:
    """Draw the maps of a parameter, its errors, and the two color bars."""
    errors = {}
    for name, predicted in row.predictions.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            label = f"E of {name}" if len(row.predictions) > 1 else "relative error E"
            errors[label] = (predicted - row.reference) / row.reference
    finite = np.concatenate([np.abs(e[np.isfinite(e)]) for e in errors.values()] or [[]])
    most = _LARGEST_ERROR
    if len(finite):
        most = min(float(np.quantile(finite, _ERROR_QUANTILE)), most) or most
    cm, colors = import_optional("matplotlib.cm"), import_optional("matplotlib.colors")
    of_maps = cm.ScalarMappable(colors.Normalize(*robust_limits(row.reference)), style.COLORMAP)
    of_errors = cm.ScalarMappable(colors.Normalize(-100 * most, 100 * most), _ERROR_COLORMAP)
    pictures = [_painted(patient, slices, values, of_maps) for values in row.maps.values()]
    pictures += [_painted(patient, slices, 100 * e, of_errors) for e in errors.values()]
    first, *labels = [*row.maps, *errors]
    slices.mosaic(ax, pictures, len(pictures), [f"{row.name}, {first}", *labels])
    look: dict[str, Any] = {"extend": "both", "pad": 0.01, "aspect": 12}
    # The bars stand beside the maps from right to left.
    if errors:
        ax.figure.colorbar(of_errors, ax=ax, **look).ax.set_title("E (%)", **_UNIT)
    ax.figure.colorbar(of_maps, ax=ax, **look).ax.set_title(row.unit, **_UNIT)


def plot_joint_histograms(
    voxels: pd.DataFrame, title: str, *, unit: str = "", log: bool = False
) -> style.Figure:
    """Count voxels by reference and prediction, one panel for each cohort and strategy."""
    colors = import_optional("matplotlib.colors")
    both = voxels[["reference", "predicted"]].to_numpy(float)
    usable = np.isfinite(both).all(axis=1)
    if log:
        usable &= (both > 0).all(axis=1)
    voxels, both = voxels[usable], both[usable]
    rows, columns = list(dict.fromkeys(voxels["cohort"])), list(dict.fromkeys(voxels["strategy"]))
    low, high = robust_limits(both, _EDGES)
    space = np.geomspace if log else np.linspace
    edges = space(low, high, _N_BINS + 1)
    # The largest count of all panels is known at last.
    norm, most = colors.LogNorm(1, 3), 2.0
    label = f" ({unit})" if unit else ""
    size, shape = (style.PANEL[0], 0.9 + 1.6 * len(rows)), (len(rows), len(columns))
    shared = {"sharex": True, "sharey": True}
    with style.drawing(size, shape, {"font.size": 9}, **shared) as (figure, axes):
        figure.suptitle(title, **_TITLE)
        mesh = None
        for ax, key in zip(axes.ravel(), itertools.product(rows, columns), strict=True):
            ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            if log:
                ax.set(xscale="log", yscale="log")
                for axis in (ax.xaxis, ax.yaxis):
                    style.plain_ticks(axis, (1, 3))
            else:
                ax.locator_params(nbins=3)
            ax.plot([low, high], [low, high], color=style.INK, lw=0.9, zorder=3)
            is_shown = (voxels[["cohort", "strategy"]] == list(key)).all(axis=1)
            if is_shown.any():
                # Voxels beyond the axes are counted at their ends, so that none is hidden; empty
                # bins stay white, as a logarithm has no color for them.
                pairs = np.clip(both[is_shown], low, high).T
                look = {"norm": norm, "cmap": style.COLORMAP, "cmin": 1, "rasterized": True}
                counts, _, _, mesh = ax.hist2d(*pairs, bins=edges, **look)
                most = max(most, np.nanmax(counts))
            ax.set_title(", ".join(key), size=8.5, weight="normal", pad=3, color=style.FAINT)
        for ax in axes[-1]:
            ax.set_xlabel(f"reference{label}")
        for ax in axes[:, 0]:
            ax.set_ylabel(f"predicted{label}")
        norm.vmax = most + 1
        if mesh is not None:
            bar = figure.colorbar(mesh, ax=axes, aspect=30)
            bar.ax.set_title("voxels", **_UNIT)
            style.plain_ticks(bar.ax.yaxis, (1, 3))
    return figure


def _painted(patient: PatientPredictions, slices: Slices, values: NDArray, scale: Any) -> NDArray:
    """Paint a map over the anatomy in the slice, (rows, columns, 4)."""
    (shown,) = slices.pictures(patient.volume(values.astype(float)))
    (scored,) = slices.pictures(patient.volume(np.ones(len(values))))
    inside = np.isfinite(scored)
    painted = np.ones((*shown.shape, 4))
    if patient.anatomy is not None:
        painted[..., :3] = slices.pictures(patient.anatomy)[0][..., None] / 255
    scale.cmap = scale.cmap.with_extremes(bad=NO_VALUE_COLOR)
    painted[inside] = scale.to_rgba(np.ma.masked_invalid(shown))[inside]
    return painted
