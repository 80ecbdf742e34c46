"""Figures of anomaly maps: score densities, thresholded maps, curves, hard places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from anomaly.detectors.thresholds import open_map
from anomaly.study.contestants import CONTROLS, ELSEWHERE, STRATA
from dmrifit._optional import import_optional
from dmrifit.io.grids import upright_edges
from dmrifit.report import style
from dmrifit.report.dot_plot import Panel, plot_dots
from dmrifit.report.slice_figures import robust_limits

if TYPE_CHECKING:
    from anomaly.scans.cases import Case

_MASK = ("#5b6470", "#ffd166")  # outside and inside a mask
_HEALTHY, _ELSEWHERE = "healthy persons", "patients, elsewhere"
_COLORS = {
    **{_HEALTHY: "#a3aab3", _ELSEWHERE: "#0072b2"},
    **dict.fromkeys(("lesions", "lesions, infiltrating"), "#d55e00"),
    "lesions, cellular": "#cc79a7",
}
_OTHER_KIND = "#e69f00"
_RANGE = (1.0, 99.9)  # percentiles of all scored voxels, for scales
_EXAMPLE_RANGE = (5.0, 99.8)
_DENSITY_RANGE = (0.1, 99.9)
_BINS = 40
_SIGNAL = (0.0, 0.7)  # mean signals, black to white
_PER_ROW = 3  # panels of densities
_LONGEST = 36  # characters of the title of a panel
# Sizes of panels of maps, in inches.
_SLICE, _EXAMPLE = 2.1, 3.55  # inches, widths of slices


def map_limits(
    maps: Mapping[str, Sequence[ArrayLike]], cases: Sequence[Case]
) -> dict[str, tuple[float, float]]:
    """Find a scale for the maps (x, y, z) of each method that is the same for all cases."""
    limits = {}
    for name, values in maps.items():
        scores = np.concatenate(_scores(values, cases))
        limits[name] = (0.0, 1.0) if scores.dtype == bool else robust_limits(scores, _RANGE)
    return limits


def slice_to_show(case: Case) -> int:
    """Choose the axial slice with most lesion, or else with most brain."""
    mask = case.brain if case.lesion is None or case.healthy else case.lesion
    return int(case.upright(mask).sum(axis=(0, 1)).argmax())


class _Slice:
    """An axial slice of a case in radiological view; by default the one to show."""

    def __init__(self, ax: style.Axes, case: Case, number: int | None = None) -> None:
        self.ax, self.case = ax, case
        self.number = slice_to_show(case) if number is None else number
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)

    def cut(self, volume: NDArray) -> NDArray:
        """Cut the slice (rows, columns) out of a volume (x, y, z)."""
        return self.case.upright(volume)[:, :, self.number].T

    def draw(self, values: NDArray, limits: tuple[float, float], colors: Any, **look: Any) -> Any:
        """Draw a volume (x, y, z), nothing outside the brain."""
        picture = np.ma.masked_where(~self.cut(self.case.brain), self.cut(values).astype(float))
        across, up, _ = upright_edges(self.case.affine)
        look |= {"origin": "lower", "interpolation": "nearest", "aspect": up / across}
        image = self.ax.imshow(picture, cmap=colors, vmin=limits[0], vmax=limits[1], **look)
        n_rows, n_columns = picture.shape
        self.ax.set(xlim=(n_columns - 0.5, -0.5), ylim=(-0.5, n_rows - 0.5), yticks=[])
        self.ax.set_xticks([n_columns - 1, 0], ["R", "L"], fontsize=8)
        return image

    def outline(self, mask: NDArray | None, **look: Any) -> Any:
        """Draw the outline of a mask (x, y, z), by default in the color of references."""
        # matplotlib warns of a level that is not there.
        if mask is None or np.ptp(inside := self.cut(mask).astype(float)) == 0:
            return None
        look = {"colors": [style.REFERENCE], "linewidths": 1.1, **look}
        return self.ax.contour(inside, levels=[0.5], **look)


def _short(name: str) -> str:
    """Cut off lines that are wider than a panel, which would have no room left for its map."""
    return "\n".join(style.shortened(line, _LONGEST) for line in name.split("\n"))


def _aspect(case: Case) -> float:
    """Give the height of an axial slice divided by its width."""
    across, up, _ = upright_edges(case.affine) * case.upright(case.brain).shape
    return float(up / across)


def plot_panels(
    case: Case,
    maps: Mapping[str, ArrayLike],
    thresholds: Mapping[str, float],
    limits: Mapping[str, tuple[float, float]],
    *,
    opening: Mapping[str, int] | None = None,
    number: int | None = None,
    title: str = "",
) -> style.Figure:
    """Draw maps (x, y, z) of a case, and their masks above the thresholds and after opening."""
    mask_colors = import_optional("matplotlib.colors").ListedColormap(_MASK)
    size = 4 * _SLICE + 1.2, 0.9 + len(maps) * (_SLICE * _aspect(case) + 0.35)
    changes = style.FRAMED | {"font.size": 9}
    with style.drawing(size, (len(maps), 4), changes) as (figure, rows):
        for axes, (name, volume) in zip(rows, maps.items(), strict=True):
            values = np.asarray(volume)
            mask, mask_title = values, "mask"
            if values.dtype != bool:
                mask = values > thresholds[name]
                if np.isfinite(thresholds[name]):
                    mask_title = f"above {thresholds[name]:.3g}"
            edge = (opening or {}).get(name, 3)
            opened = open_map(mask & case.scored, edge) & case.scored
            panels: list[tuple[str, NDArray, tuple[float, float], Any]] = [
                ("mean signal", case.signal.mean(axis=-1), _SIGNAL, "gray"),
                (name, values, limits.get(name, (0.0, 1.0)), style.COLORMAP),
                (mask_title, mask & case.scored, (0.0, 1.0), mask_colors),
                (f"opened, {edge}³", opened, (0.0, 1.0), mask_colors),
            ]
            images = []
            for ax, (heading, *panel) in zip(axes, panels, strict=True):
                drawing = _Slice(ax, case, number)
                images.append(drawing.draw(*panel))
                drawing.outline(case.lesion)
                ax.set_title(_short(heading), fontsize=9, fontweight="normal")
            figure.colorbar(images[1], ax=axes[1], shrink=0.84).outline.set_visible(False)
        style.note_below(figure, style.figure_notice(case.synthetic), 8)
        if case.lesion is not None and not case.healthy:
            style.legend_below(figure, {"lesion": {"color": style.REFERENCE}}, linewidth=1.5)
        grade = f"grade {case.grade}" if case.grade else ""
        health = "healthy" if case.healthy and not title else ""
        heading = ", ".join(filter(None, [title or case.name, grade, case.kind, health]))
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def plot_examples(
    examples: Mapping[str, tuple[Case, NDArray | None, NDArray]], method: str
) -> style.Figure:
    """
    Draw scans by their headings: a map (x, y, z) or None over the anatomy, and what is marked.

    All maps have one scale; scores below its middle leave the anatomy visible.
    """
    effects = import_optional("matplotlib.patheffects")
    # A dark line around a bright one, which is seen on anything.
    shadow = [effects.withStroke(linewidth=3, foreground=style.INK)]
    scored = [values[case.scored] for case, values, _ in examples.values() if values is not None]
    low, high = robust_limits(np.concatenate([*scored, []]), _EXAMPLE_RANGE)
    height = min(_EXAMPLE * _aspect(next(iter(examples.values()))[0]), 4.4)
    size, shape = (3 * _EXAMPLE + 1.5, height + 1.05), (1, len(examples))
    with style.drawing(size, shape, style.FRAMED) as (figure, [axes]):
        for ax, (heading, (case, values, marked)) in zip(axes, examples.items(), strict=True):
            drawing = _Slice(ax, case)
            drawing.draw(case.signal.mean(axis=-1), _SIGNAL, "gray")
            if values is not None:
                scores = np.where(case.brain, values, low)
                share = np.clip((drawing.cut(scores) - low) / (high - low), 0, 1)
                # Below the middle of the scale the anatomy is what there is to see.
                opacity = np.clip(2 * share - 0.6, 0, 0.9)
                image = drawing.draw(scores, (low, high), style.COLORMAP, alpha=opacity)
                if ax is axes[0]:
                    bar = figure.colorbar(image, ax=axes, shrink=0.84, label="score")
                    bar.outline.set_visible(False)
            drawing.outline(case.lesion, linewidths=1.8)
            # Above the reference, which would hide it where both agree.
            lines = drawing.outline(marked, colors=[style.FOUND], linestyles="dashed")
            if lines is not None:
                lines.set(path_effects=shadow)
            ax.set_title(_short(heading), fontsize=10)
        looks: dict[str, Any] = {"reference lesion": {"color": style.REFERENCE}}
        found = {"color": style.FOUND, "linestyle": "--", "path_effects": shadow}
        looks[f"marked by {method}"] = found
        style.legend_below(figure, looks, linewidth=2)
        is_synthetic = any(case.synthetic for case, _, _ in examples.values())
        style.note_below(figure, style.figure_notice(is_synthetic))
        # Titles of two lines take their room once they have been drawn.
        figure.draw_without_rendering()
    return figure


def plot_densities(
    cases: Sequence[Case],
    maps: Mapping[str, Sequence[ArrayLike]],
    *,
    healthy: Sequence[Case] = (),
    healthy_maps: Mapping[str, Sequence[ArrayLike]] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> style.Figure:
    """Draw densities of scores (x, y, z): healthy persons, patients outside and inside lesions."""
    graded = {name: values for name, values in maps.items() if np.asarray(values[0]).dtype != bool}
    n_rows = -(-len(graded) // _PER_ROW)
    n_columns = min(len(graded), _PER_ROW)
    looks: dict[str, Any] = {}
    size = max(3.9 * n_columns, 5.2), 2.6 * n_rows + 0.6
    with style.drawing(size, (n_rows, n_columns), {"font.size": 9}) as (figure, axes):
        for ax in axes.flat[len(graded) :]:
            ax.remove()
        for i, (ax, (name, values)) in enumerate(zip(axes.flat, graded.items(), strict=False)):
            scores = _scores_by_region(values, cases)
            if healthy_maps:
                healthy_scores = np.concatenate(_scores(healthy_maps[name], healthy))
                scores = {_HEALTHY: healthy_scores} | scores
            ends = robust_limits(np.concatenate(list(scores.values())), _DENSITY_RANGE)
            bins = np.linspace(*ends, _BINS + 1).tolist()
            for region, of_region in scores.items():
                look: dict[str, Any] = {"histtype": "step", "linewidth": 1.5}
                if region == _HEALTHY:
                    look = {"histtype": "stepfilled", "linewidth": 0, "alpha": 0.5}
                looks[region] = {"color": _COLORS.get(region, _OTHER_KIND)}
                ax.hist(of_region, bins=bins, density=True, **looks[region], **look)
            if thresholds is not None and np.isfinite(thresholds.get(name, np.nan)):
                looks["threshold"] = {"color": style.INK, "linestyle": ":"}
                ax.axvline(thresholds[name], linewidth=1, **looks["threshold"])
            ax.set(xlim=(bins[0], bins[-1]))
            ax.set_title(_short(name), fontsize=10)
            # Panels of the last row, and those above its empty end, have nothing below them.
            if i + _PER_ROW >= len(graded):
                ax.set_xlabel("score (higher is less like healthy)")
            if i % _PER_ROW == 0:
                ax.set_ylabel("density of voxels")
        style.legend_below(figure, looks, linewidth=2)
    return figure


def plot_curves(tables: Mapping[str, pd.DataFrame]) -> style.Figure:
    """Draw the coverage of lesions over the false-positive rate in healthy persons."""
    # Rows are false-positive rates, columns methods.
    coverage = tables["curves"].pivot_table("coverage", "rate", "method", dropna=False)
    looks = style.method_looks(tables["summary"]["method"].unique(), CONTROLS)
    # Lines have no marks, and masks have no curve.
    colors = {name: {"color": look["color"]} for name, look in looks.items() if name in coverage}
    size = style.pair_size(len(colors))
    with style.drawing(size, (1, 2), style.GRID) as (figure, [[low_rates, all_rates]]):
        for ax, title in ((low_rates, "Few false positives"), (all_rates, "All that count")):
            for name, color in colors.items():
                ax.plot(coverage.index, coverage[name], linewidth=1.6, **color)
            # The area under a curve is counted up to this rate, too (`FULL_RATE`).
            ax.set(xlim=(0, 0.3), ylim=(0, 1), ylabel="share of lesions covered")
            ax.set_xlabel("share of healthy voxels above the threshold")
            style.head(ax, title)
        low_rates.set(xscale="log", xlim=(1e-4, 0.3))
        style.plain_ticks(low_rates.xaxis, (1,))
        # Scores at random cover as much of lesions as of healthy brains.
        all_rates.plot([0, 1], [0, 1], color=style.PALE, linewidth=1, linestyle=":")
        style.legend_below(figure, colors, linewidth=2)
    return figure


def plot_opening(tables: Mapping[str, pd.DataFrame]) -> style.Figure:
    """Draw the Dice coefficients of each method by rule, before and after opening."""
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
        "above the threshold": {"color": style.FAINT, "markerfacecolor": "white"},
        "after opening": {"color": _COLORS[_ELSEWHERE]},
    }
    return plot_dots(table[table["rule"].isin(rules)], panels, styles)


def plot_strata(tables: Mapping[str, pd.DataFrame], *, rule: str) -> style.Figure:
    """Draw where in the brain methods are better and worse."""
    table = tables["strata"][tables["strata"]["rule"] == rule]
    table = table.assign(row=table["stratum"], series=table["method"])
    order = (*STRATA, ELSEWHERE).index
    table = table.sort_values("row", key=lambda names: names.map(order), kind="stable")
    title = f"Sensitivity by {rule}"
    panels = [
        Panel("auc", "AUC", ends=(0.4, 1), title="AUC"),
        Panel("sensitivity_opened", "sensitivity, opened", ends=(0, 1), title=title),
    ]
    looks = style.method_looks(tables["summary"]["method"].unique(), CONTROLS)
    looks = {name: look for name, look in looks.items() if name in set(table["method"])}
    return plot_dots(table, panels, looks, width=2 * style.PANEL[0])


def _scores(values: Sequence[ArrayLike], cases: Sequence[Case]) -> list[NDArray]:
    """Take the scores of each case in white and gray matter."""
    return [np.asarray(volume)[case.scored] for volume, case in zip(values, cases, strict=True)]


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
