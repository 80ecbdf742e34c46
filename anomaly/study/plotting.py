"""Figures of anomaly maps: score densities, thresholded maps, curves, hard places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.detectors.thresholds import open_map
from anomaly.study.controls import CONTROLS
from anomaly.study.strata import ELSEWHERE, STRATA
from dmrifit._optional import import_optional
from dmrifit.io.grids import upright, upright_edges
from dmrifit.report.dot_plot import Panel, plot_dots
from dmrifit.report.style import (
    COLORMAP,
    FAINT,
    FOUND,
    INK,
    PALE,
    PANEL,
    REFERENCE,
    add_axes,
    color_bar,
    figure_notice,
    handle,
    head,
    legend_below,
    method_color,
    new_figure,
    panel_row,
    plain_ticks,
    shared_style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from anomaly.scans.cases import Case

_MASK = ("#5b6470", "#ffd166")  # outside and inside a mask
_HEALTHY, _ELSEWHERE = "healthy persons", "patients, elsewhere"
_COLORS = {_HEALTHY: "#a3aab3", _ELSEWHERE: "#0072b2", "threshold": INK}
_KIND_COLORS = {"": "#d55e00", "infiltrating": "#d55e00", "cellular": "#cc79a7"}
_OTHER_KIND = "#e69f00"
_CONTROL_MARKS = dict(zip(CONTROLS, ("s", "o", "^", "D", "P"), strict=True))
_RANGE = (1.0, 99.9)  # percentiles of all scored voxels, for scales
_EXAMPLE_RANGE = (5.0, 99.8)
_DENSITY_RANGE = (0.1, 99.9)
_BINS = 40
_SIGNAL = (0.0, 0.7)  # mean signals, black to white
_PER_ROW = 3  # panels of densities
# Sizes of panels of maps, in inches.
_SLICE, _BAR, _GAP, _SIDE, _FOOT, _TOP, _BETWEEN_ROWS = 2.1, 0.75, 0.12, 0.35, 0.55, 0.75, 0.35


def map_limits(
    maps: Mapping[str, Sequence[ArrayLike]], cases: Sequence[Case]
) -> dict[str, tuple[float, float]]:
    """Find a scale for the maps (x, y, z) of each method that is the same for all cases."""
    limits = {}
    for name, values in maps.items():
        scores = np.concatenate(_scores(values, cases))
        if scores.dtype == bool:
            limits[name] = (0.0, 1.0)
            continue
        low, high = np.percentile(scores, _RANGE).tolist()
        limits[name] = (low, high if high > low else low + 1.0)
    return limits


def slice_to_show(case: Case) -> int:
    """Choose the axial slice with most lesion, or else with most brain."""
    mask = case.brain if case.lesion is None or case.healthy else case.lesion
    return int(upright(mask, case.affine).sum(axis=(0, 1)).argmax())


def plot_panels(
    case: Case,
    maps: Mapping[str, ArrayLike],
    thresholds: Mapping[str, float],
    limits: Mapping[str, tuple[float, float]],
    *,
    opening: int = 3,
    number: int | None = None,
    title: str = "",
) -> Figure:
    """Draw maps (x, y, z) of a case, and their masks above the thresholds and after opening."""
    arrays = {name: np.asarray(values) for name, values in maps.items()}
    mean = case.signal.mean(axis=-1)
    shape = upright(mean, case.affine).shape
    if number is None:
        number = slice_to_show(case)
    steps = upright_edges(case.affine)
    row_height = _SLICE * shape[1] * steps[1] / (shape[0] * steps[0])
    n = len(arrays)
    width = 2 * _SIDE + 4 * _SLICE + 3 * _GAP + _BAR
    height = _FOOT + _TOP + n * row_height + (n - 1) * _BETWEEN_ROWS
    with shared_style({"axes.spines.top": True, "axes.spines.right": True, "font.size": 9}):
        figure = new_figure(width, height)
        for row, (name, values) in enumerate(arrays.items()):
            bottom = _FOOT + (n - 1 - row) * (row_height + _BETWEEN_ROWS)
            mask = case.scored & (values if values.dtype == bool else values > thresholds[name])
            opened = open_map(mask, opening) & case.scored
            mask_title = "mask"
            if values.dtype != bool and np.isfinite(thresholds[name]):
                mask_title = f"above {thresholds[name]:.3g}"
            panels: dict[str, tuple[NDArray, tuple[float, float], Any]] = {
                "mean signal": (mean, _SIGNAL, "gray"),
                name: (values, limits.get(name, (0.0, 1.0)), COLORMAP),
                mask_title: (mask, (0.0, 1.0), _MASK),
                f"opened, {opening}³": (opened, (0.0, 1.0), _MASK),
            }
            left = _SIDE
            for heading, (picture, scale, colors) in panels.items():
                ax = add_axes(figure, left, bottom, _SLICE, row_height)
                picture = np.asarray(picture, np.float64)
                image = _draw_slice(ax, picture, case, number, scale, colors)
                if case.lesion is not None:
                    _outline(ax, case.lesion, case, number)
                ax.set_title(heading, fontsize=9, fontweight="normal")
                left += _SLICE
                if heading == name:
                    place = left + 0.08, bottom + 0.08 * row_height, 0.84 * row_height
                    color_bar(figure, image, place)
                    # The room of the bar holds the gap.
                    left += _BAR - _GAP
                left += _GAP
        _frame_panels(figure, case, title)
    return figure


def _frame_panels(figure: Figure, case: Case, title: str) -> None:
    """Write heading, notice and legend around the panels of a case."""
    width, height = figure.get_size_inches()
    notice = figure_notice(case.synthetic)
    figure.text(1 - _SIDE / width, 0.2 / height, notice, ha="right", fontsize=8, color=FAINT)
    if case.lesion is not None and not case.healthy:
        legend_below(figure, [handle("lesion", color=REFERENCE, linewidth=1.5)])
    words = [title or case.name]
    if case.grade:
        words.append(f"grade {case.grade}")
    if case.kind:
        words.append(case.kind)
    if not title and case.healthy:
        words.append("healthy")
    heading = ", ".join(words)
    x, y = _SIDE / width, 1 - 0.25 / height
    figure.text(x, y, heading, fontsize=11, fontweight="bold", va="center")


def plot_examples(
    examples: Mapping[str, tuple[Case, NDArray | None, NDArray]], method: str
) -> Figure:
    """
    Draw scans by their headings: a map (x, y, z) or None over the anatomy, and what is marked.

    All maps have one scale; scores below its middle leave the anatomy visible.
    """
    scored = [values[case.scored] for case, values, _ in examples.values() if values is not None]
    low, high = 0.0, 1.0
    if scored:
        low, high = np.percentile(np.concatenate(scored), _EXAMPLE_RANGE).tolist()
    case = next(iter(examples.values()))[0]
    shape, steps = upright(case.brain, case.affine).shape, upright_edges(case.affine)
    wide = 3.55
    tall = min(wide * shape[1] * steps[1] / (shape[0] * steps[0]), 4.4)
    with shared_style({"axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(3 * wide + 1.5, tall + 1.05)
        for column, (heading, (example, values, marked)) in enumerate(examples.items()):
            ax = add_axes(figure, 0.1 + column * (wide + 0.1), 0.55, wide, tall)
            number = slice_to_show(example)
            mean = example.signal.mean(axis=-1)
            _draw_slice(ax, mean, example, number, _SIGNAL, "gray")
            image = None
            if values is not None:
                image = _draw_over(ax, values, example, number, (low, high))
            _outline(ax, marked, example, number, color=FOUND)
            if example.lesion is not None:
                _outline(ax, example.lesion, example, number, linewidth=1.8)
            ax.set_title(heading, fontsize=10)
            if image is not None and column == 0:
                place = 0.1 + 3 * (wide + 0.1) + 0.1, 0.75, tall - 0.4
                color_bar(figure, image, place, "score")
        entries = [
            handle("reference lesion", color=REFERENCE, linewidth=2),
            handle(f"marked by {method}", color=FOUND, linewidth=2, linestyle="--"),
        ]
        entries[1].set_path_effects(_shadow())
        legend_below(figure, entries)
        notice = figure_notice(any(example.synthetic for example, _, _ in examples.values()))
        figure.text(0.99, 0.03, notice, ha="right", fontsize=9, color=FAINT)
    return figure


def _draw_over(
    ax: Axes, values: NDArray, case: Case, number: int, scale: tuple[float, float]
) -> Any:
    """Draw a map over the anatomy, more and more opaque with its score."""
    low, high = scale
    scores = upright(np.where(case.brain, values, low), case.affine)[:, :, number].T
    share = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
    # Below the middle of the scale the anatomy is what there is to see.
    opacity = np.clip(2 * share - 0.6, 0, 0.9)
    return ax.imshow(
        scores, cmap=COLORMAP, vmin=low, vmax=high, alpha=opacity, origin="lower",
        interpolation="nearest", aspect="auto",
    )  # fmt: skip


def _shadow() -> list[Any]:
    """Give a dark line around a bright one, which is seen on anything."""
    effects = import_optional("matplotlib.patheffects")
    return [effects.withStroke(linewidth=3, foreground=INK)]


def plot_densities(
    cases: Sequence[Case],
    maps: Mapping[str, Sequence[ArrayLike]],
    *,
    healthy: Sequence[Case] = (),
    healthy_maps: Mapping[str, Sequence[ArrayLike]] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """Draw densities of scores (x, y, z): healthy persons, patients outside and inside lesions."""
    graded = {name: values for name, values in maps.items() if np.asarray(values[0]).dtype != bool}
    n_rows = -(-len(graded) // _PER_ROW)
    n_columns = min(len(graded), _PER_ROW)
    legend_colors: dict[str, str] = {}
    with shared_style({"font.size": 9}):
        wide, tall = 3.9, 2.6
        figure = new_figure(max(n_columns * wide + 0.3, 5.2), n_rows * tall + 0.6)
        for i, (name, values) in enumerate(graded.items()):
            row, column = divmod(i, _PER_ROW)
            bottom = 0.95 + (n_rows - 1 - row) * tall
            ax = add_axes(figure, 0.8 + column * wide, bottom, wide - 0.8, tall - 0.9)
            scores = _scores_by_region(values, cases)
            if healthy_maps is not None:
                healthy_scores = np.concatenate(_scores(healthy_maps[name], healthy))
                scores = {_HEALTHY: healthy_scores} | scores
            legend_colors |= _draw_densities(ax, scores)
            if thresholds is not None and np.isfinite(thresholds.get(name, np.nan)):
                ax.axvline(thresholds[name], color=INK, linewidth=1, linestyle=":")
                legend_colors["threshold"] = INK
            ax.set_title(name, fontsize=10)
            # Panels of the last row, and those above its empty end, have nothing below them.
            if i + _PER_ROW >= len(graded):
                ax.set_xlabel("score (higher is less like healthy)")
            if column == 0:
                ax.set_ylabel("density of voxels")
        entries = []
        for label, color in legend_colors.items():
            dash = ":" if label == "threshold" else "-"
            entries.append(handle(label, color=color, linewidth=2, linestyle=dash))
        legend_below(figure, entries)
    return figure


def _draw_densities(ax: Axes, scores: Mapping[str, NDArray]) -> dict[str, str]:
    """Draw the histograms of regions with one scale; give the color of each region."""
    low, high = np.percentile(np.concatenate(list(scores.values())), _DENSITY_RANGE)
    bins = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    colors = {}
    for region, values in scores.items():
        kind = region.partition(", ")[2]
        colors[region] = _COLORS.get(region, _KIND_COLORS.get(kind, _OTHER_KIND))
        look: dict[str, Any] = {"histtype": "step", "linewidth": 1.5}
        if region == _HEALTHY:
            look = {"histtype": "stepfilled", "linewidth": 0, "alpha": 0.5}
        ax.hist(values, bins=bins.tolist(), density=True, color=colors[region], **look)
    ax.set_xlim(bins[0], bins[-1])
    return colors


def plot_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the coverage of lesions over the false-positive rate in healthy persons."""
    table = tables["curves"]
    methods, detectors = _methods(tables, table)
    with shared_style({}):
        figure, (few, all_rates) = panel_row(2, len(methods))
        for name in methods:
            method_curves = table[table["method"] == name]
            curve = method_curves.groupby("rate", as_index=False)[["coverage"]].mean()
            look: dict[str, Any] = {"color": method_color(name, detectors), "linewidth": 1.6}
            # A rate of 0 has no place on a logarithmic axis.
            positive = curve[curve["rate"] > 0]
            few.plot(positive["rate"], positive["coverage"], **look)
            all_rates.plot(curve["rate"], curve["coverage"], **look)
        all_rates.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle=":")
        few.set(xscale="log", xlim=(1e-4, 0.3))
        plain_ticks(few.xaxis, (1,))
        all_rates.set(xlim=(0, 0.3))
        label = "share of healthy voxels above the threshold"
        for ax, title in ((few, "Few false positives"), (all_rates, "All that count")):
            ax.set(ylim=(0, 1), xlabel=label, ylabel="share of lesions covered")
            ax.grid(True)
            head(ax, title)
        colors = {name: method_color(name, detectors) for name in methods}
        legend_below(figure, [handle(name, color=colors[name], lw=2) for name in methods])
    return figure


def plot_opening(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the Dice coefficients of each method by rule, before and after opening."""
    import pandas as pd

    summary = tables["summary"]
    blind = summary[(summary["part"] == "all") & ~summary["needs_truth"].astype(bool)]
    # A rule that only controls follow tells nothing.
    rules = dict.fromkeys(blind.loc[~blind["control"].astype(bool), "rule"])
    before = blind.assign(row=blind["method"], series="above the threshold")
    after = before.assign(series="after opening", dice=before["dice_opened"])
    table = pd.concat([before, after])
    panels = []
    for rule in rules:
        rows = table[table["rule"] == rule]
        title = rule.replace(", ", "\n")
        panels.append(Panel("dice", "Dice (1 is perfect)", ends=(0, 1), title=title, table=rows))
    styles = {
        "above the threshold": {"color": FAINT, "markerfacecolor": "white"},
        "after opening": {"color": _COLORS[_ELSEWHERE]},
    }
    return plot_dots(table[table["rule"].isin(rules)], panels, styles)


def plot_strata(tables: Mapping[str, pd.DataFrame], *, rule: str) -> Figure:
    """Draw where in the brain methods are better and worse."""
    table = tables["strata"][tables["strata"]["rule"] == rule]
    methods, detectors = _methods(tables, table)
    order = {stratum: i for i, stratum in enumerate((*STRATA, ELSEWHERE))}
    table = table.assign(row=table["stratum"], series=table["method"])
    table = table.sort_values("row", key=lambda names: names.map(order), kind="stable")
    looks = {}
    for name in methods:
        mark = _CONTROL_MARKS.get(name, "o")
        looks[name] = {"marker": mark, "color": method_color(name, detectors)}
    title = f"Sensitivity by {rule}"
    panels = [
        Panel("auc", "AUC", ends=(0.4, 1), title="AUC"),
        Panel("sensitivity_opened", "sensitivity, opened", ends=(0, 1), title=title),
    ]
    return plot_dots(table, panels, looks, width=2 * PANEL[0])


def _methods(
    tables: Mapping[str, pd.DataFrame], table: pd.DataFrame
) -> tuple[list[str], list[str]]:
    """Give the methods of a table, and all but controls in the order of their colors."""
    all_methods = list(dict.fromkeys(tables["summary"]["method"]))
    methods = [name for name in all_methods if name in set(table["method"])]
    return methods, [name for name in all_methods if name not in CONTROLS]


def _scores(values: Sequence[ArrayLike], cases: Sequence[Case]) -> list[NDArray]:
    """Take the scores of each case in white and gray matter."""
    volumes = zip(values, cases, strict=True)
    return [np.asarray(volume)[case.scored] for volume, case in volumes]


def _scores_by_region(values: Sequence[ArrayLike], cases: Sequence[Case]) -> dict[str, NDArray]:
    """Divide the scores of patients into those outside lesions and, by their kind, inside."""
    scores: dict[str, list[NDArray]] = {}
    for case_scores, case in zip(_scores(values, cases), cases, strict=True):
        lesion = np.zeros(case.shape, bool) if case.lesion is None else case.lesion
        inside = lesion[case.scored]
        region = f"lesions, {case.kind}" if case.kind else "lesions"
        scores.setdefault(_ELSEWHERE, []).append(case_scores[~inside])
        scores.setdefault(region, []).append(case_scores[inside])
    joined = {region: np.concatenate(arrays) for region, arrays in scores.items()}
    return {region: array for region, array in joined.items() if len(array)}


def _draw_slice(
    ax: Axes,
    values: NDArray,
    case: Case,
    number: int,
    limits: tuple[float, float],
    colors: str | tuple[str, ...],
) -> Any:
    """Draw an axial slice in radiological convention, white outside the brain."""
    colormap: Any = colors
    if not isinstance(colors, str):
        colormap = import_optional("matplotlib.colors").ListedColormap(colors)
    outside = ~upright(case.brain, case.affine)[:, :, number]
    picture = np.ma.masked_where(outside, upright(values, case.affine)[:, :, number])
    look: dict[str, Any] = {"origin": "lower", "interpolation": "nearest", "aspect": "auto"}
    image = ax.imshow(picture.T, cmap=colormap, vmin=limits[0], vmax=limits[1], **look)
    ax.invert_xaxis()
    # What is drawn over the slice must not turn it back.
    ax.autoscale(False)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _outline(
    ax: Axes,
    mask: NDArray,
    case: Case,
    number: int,
    *,
    color: str = REFERENCE,
    linewidth: float = 1.1,
) -> None:
    inside = upright(mask, case.affine)[:, :, number]
    # matplotlib warns of a level that is not there.
    if not inside.any() or inside.all():
        return
    dashes = "dashed" if color == FOUND else "solid"
    look: dict[str, Any] = {"colors": [color], "linewidths": linewidth, "linestyles": dashes}
    lines = ax.contour(inside.T.astype(float), levels=[0.5], **look)
    if color == FOUND:
        lines.set(path_effects=_shadow())
