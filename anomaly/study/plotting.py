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
from dmrifit.report.style import (
    COLORMAP,
    FAINT,
    INK,
    PANEL,
    add_axes,
    color_of,
    handle,
    head,
    new_figure,
    plain_ticks,
    shared_style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from anomaly.scans.cases import Case

__all__ = [
    "map_limits",
    "plot_curves",
    "plot_densities",
    "plot_opening",
    "plot_panels",
    "plot_strata",
    "slice_to_show",
]

_SYNTHETIC = "synthetic, no person was scanned"
_LESION = "#ff3b3b"
_MASK = ("#5b6470", "#ffd166")  # what is not found, and what is
_TISSUE, _HEALTHY = "#0072b2", "#a3aab3"
_KINDS = {"": "#d55e00", "infiltrating": "#d55e00", "cellular": "#cc79a7"}
_OTHER_KIND = "#e69f00"
_PALE = "#a3aab3"  # controls
_CONTROL_MARKS = dict(zip(CONTROLS, ("s", "o", "^", "D", "P"), strict=True))
_RANGE = (1.0, 99.9)  # percentiles of all scored voxels, for scales
_BINS = 40
_SIGNAL = (0.0, 0.7)  # mean signals, black to white
_SLICE = 2.1  # inches
_BAR = 0.75  # inches
_PER_ROW = 3  # panels of densities


def map_limits(
    maps: Mapping[str, Sequence[ArrayLike]], cases: Sequence[Case]
) -> dict[str, tuple[float, float]]:
    """
    Find a scale for the maps of each method that is the same for all cases.

    Shapes: `maps` (x, y, z).
    """
    limits = {}
    for name, values in maps.items():
        inside = np.concatenate(_scores(values, cases, name))
        low, high = (0.0, 1.0) if inside.dtype == bool else np.percentile(inside, _RANGE).tolist()
        limits[name] = (low, high if high > low else low + 1.0)
    return limits


def slice_to_show(case: Case) -> int:
    """Choose the axial slice of a case to look at."""
    mask = case.brain if case.lesion is None or case.healthy else case.lesion
    return int(_upright(mask, case).sum(axis=(0, 1)).argmax())


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
    """
    Draw the maps of a case, what is above the thresholds, and what an opening leaves of that.

    Shapes: `maps` (x, y, z).
    """
    arrays = {name: np.asarray(values) for name, values in maps.items()}
    for name, values in arrays.items():
        if values.shape != case.shape:
            raise ValueError(
                f"{name}: a map of shape {values.shape} for {case.name}, whose shape is "
                f"{case.shape}"
            )
        if values.dtype != bool and (name not in thresholds or name not in limits):
            raise ValueError(
                f"{name} needs a threshold and a scale; give both (map_limits finds scales)"
            )
    if not arrays:
        raise ValueError("there is no map to draw")
    mean = case.signal.mean(axis=-1)
    height = _upright(mean, case).shape[2]
    at = slice_to_show(case) if number is None else number
    if not 0 <= at < height:
        raise ValueError(f"slice {number} of {case.name}, whose slices are 0 to {height - 1}")
    steps = np.abs(np.array(case.spacing)[_order(case)])
    shape = _upright(mean, case).shape
    tall = _SLICE * shape[1] * steps[1] / (shape[0] * steps[0])
    n, foot, top, left, gap = len(arrays), 0.55, 0.75, 0.35, 0.12
    width = left + 4 * _SLICE + 3 * gap + _BAR + left
    with shared_style({"axes.spines.top": True, "axes.spines.right": True, "font.size": 9}):
        figure = new_figure(width, foot + top + n * tall + (n - 1) * 0.35)
        for row, (name, values) in enumerate(arrays.items()):
            bottom = foot + (n - 1 - row) * (tall + 0.35)
            above = values if values.dtype == bool else values > thresholds[name]
            above = above & case.scored
            opened = open_map(above, opening) & case.scored
            x = left
            pictures: dict[str, tuple[NDArray, tuple[float, float], Any]] = {
                "mean signal": (mean, _SIGNAL, "gray"),
                name: (values, limits.get(name, (0.0, 1.0)), COLORMAP),
                _threshold_text(values, thresholds.get(name)): (above, (0.0, 1.0), _MASK),
                f"opened, {opening}³": (opened, (0.0, 1.0), _MASK),
            }
            for column, (heading, (picture, scale, colors)) in enumerate(pictures.items()):
                ax = add_axes(figure, x, bottom, _SLICE, tall)
                drawn = _draw_slice(ax, np.asarray(picture, np.float64), case, at, scale, colors)
                if case.lesion is not None:
                    _outline(ax, case.lesion, case, at)
                ax.set_title(heading, fontsize=9, fontweight="normal", parse_math=False)
                x += _SLICE
                if column == 1:
                    bar = add_axes(figure, x + 0.08, bottom + 0.08 * tall, 0.1, 0.84 * tall)
                    figure.colorbar(drawn, cax=bar).outline.set_linewidth(0.5)
                    bar.tick_params(labelsize=8, length=2)
                    x += _BAR - gap
                x += gap
        note = [_SYNTHETIC] * case.synthetic + ["not for clinical use"]
        high_up = figure.get_figheight()
        figure.text(
            1 - left / width,
            0.2 / high_up,
            "; ".join(note).capitalize(),
            ha="right",
            fontsize=8,
            color=FAINT,
        )
        if case.lesion is not None and not case.healthy:
            figure.legend(
                handles=[handle("lesion", color=_LESION, linewidth=1.5)],
                loc="lower left",
                bbox_to_anchor=(left / width, 0.02 / high_up),
                fontsize=8,
            )
        words = [
            title or case.name,
            *[part for part in (case.grade and f"grade {case.grade}", case.kind) if part],
        ]
        if not title and case.healthy:
            words.append("healthy")
        figure.text(
            left / width,
            1 - 0.25 / high_up,
            ", ".join(words),
            fontsize=11,
            fontweight="bold",
            va="center",
            parse_math=False,
        )
    return figure


def plot_densities(
    cases: Sequence[Case],
    maps: Mapping[str, Sequence[ArrayLike]],
    *,
    healthy: Sequence[Case] = (),
    healthy_maps: Mapping[str, Sequence[ArrayLike]] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """
    Draw densities of scores in healthy persons, and in patients outside and inside lesions.

    Shapes: `maps` (x, y, z).
    """
    graded = {name: values for name, values in maps.items() if np.asarray(values[0]).dtype != bool}
    if not graded:
        raise ValueError("there is no map with scores to draw")
    rows = -(-len(graded) // _PER_ROW)
    columns = min(len(graded), _PER_ROW)
    used: dict[str, str] = {}
    with shared_style({"font.size": 9}):
        wide, tall = 3.3, 2.5
        figure = new_figure(max(columns * wide + 0.3, 5.2), rows * tall + 0.6)
        for i, (name, values) in enumerate(graded.items()):
            ax = add_axes(
                figure,
                0.3 + (i % _PER_ROW) * wide,
                0.95 + (rows - 1 - i // _PER_ROW) * tall,
                wide - 0.3,
                tall - 0.9,
            )
            parts = _parts(values, cases, name)
            if healthy_maps is not None:
                parts = {
                    "healthy persons": np.concatenate(_scores(healthy_maps[name], healthy, name))
                } | parts
            low, high = np.percentile(np.concatenate(list(parts.values())), (0.1, 99.9))
            bins = np.linspace(low, high if high > low else low + 1, _BINS + 1)
            for label, inside in parts.items():
                color = _part_color(label)
                used[label] = color
                filled = label == "healthy persons"
                ax.hist(
                    inside,
                    bins=bins.tolist(),
                    density=True,
                    color=color,
                    histtype="stepfilled" if filled else "step",
                    linewidth=0 if filled else 1.5,
                    alpha=0.5 if filled else 1,
                )
            if thresholds is not None and np.isfinite(thresholds.get(name, np.nan)):
                ax.axvline(thresholds[name], color=INK, linewidth=1, linestyle=":")
                used["threshold"] = INK
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.set_xlim(bins[0], bins[-1])
            ax.set_title(name, parse_math=False, fontsize=10)
            if i // _PER_ROW == rows - 1 or i + _PER_ROW >= len(graded):
                ax.set_xlabel("score")
        entries = [
            handle(label, color=color, linewidth=2, linestyle=":" if label == "threshold" else "-")
            for label, color in used.items()
        ]
        figure.legend(
            handles=entries, loc="lower left", bbox_to_anchor=(0.02, 0.0), ncol=3, fontsize=8.5
        )
    return figure


def plot_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the coverage of lesions over the false-positive rate in healthy persons."""
    table = tables["curves"]
    if not len(table):
        raise ValueError("there are no curves; they need maps with scores, and healthy scans")
    methods, names = _methods(tables, table)
    with shared_style({}):
        lines = -(-len(methods) // 3)
        figure = new_figure(2 * PANEL[0], PANEL[1] + 0.22 * lines)
        share = (0.35 + 0.22 * lines) / figure.get_figheight()
        axes = [
            figure.add_axes((0.075 + 0.49 * k, 0.08 + share, 0.41, 0.84 - share)) for k in range(2)
        ]
        for name in methods:
            method_curve = (
                table[table["method"] == name].groupby("rate", as_index=False)[["coverage"]].mean()
            )
            color = color_of(name, names) if name in names else _PALE
            small = method_curve[method_curve["rate"] > 0]
            axes[0].plot(small["rate"], small["coverage"], color=color, linewidth=1.6)
            axes[1].plot(
                method_curve["rate"], method_curve["coverage"], color=color, linewidth=1.6
            )
        axes[1].plot([0, 1], [0, 1], color=_PALE, linewidth=1, linestyle=":")
        axes[0].set_xscale("log")
        plain_ticks(axes[0].xaxis, (1,))
        axes[0].set(xlim=(1e-4, 0.3))
        axes[1].set(xlim=(0, 0.3))
        for ax, title in zip(axes, ("Few false positives", "All that count"), strict=True):
            ax.set(
                ylim=(0, 1),
                xlabel="share of healthy voxels above the threshold",
                ylabel="share of lesions covered",
            )
            ax.grid(True)
            head(ax, title)
        _legend(figure, methods, names, marks=False)
    return figure


def plot_opening(
    tables: Mapping[str, pd.DataFrame], *, rules: Sequence[str] | None = None
) -> Figure:
    """Draw what opening makes of the Dice coefficients of each method."""
    summary = tables["summary"]
    whole = summary[summary["part"] == "all"]
    all_rules = list(dict.fromkeys(whole["rule"]))
    blind = whole[~whole["needs_truth"].astype(bool)]
    # A panel of controls alone tells nothing.
    learned = blind[~blind["control"].astype(bool)]
    panel_rules = list(dict.fromkeys(learned["rule"])) if rules is None else list(rules)
    if unknown := [rule for rule in panel_rules if rule not in all_rules]:
        raise ValueError(f"no rule {', '.join(unknown)}; there are {', '.join(all_rules)}")
    if not panel_rules:
        raise ValueError("all rules need lesions; name those to draw (rules=…)")
    _, names = _methods(tables, whole)
    columns = min(len(panel_rules), _PER_ROW)
    rows = -(-len(panel_rules) // _PER_ROW)
    per_rule = {rule: whole[whole["rule"] == rule].set_index("method") for rule in panel_rules}
    label = 0.2 + 0.075 * max(len(str(name)) for name in whole["method"])
    with shared_style({"font.size": 9}):
        lines = max(len(rule_table) for rule_table in per_rule.values())
        tall = 0.9 + 0.26 * lines
        figure = new_figure(columns * (2.3 + label) + 0.2, rows * tall + 0.35)
        for i, (rule, rule_table) in enumerate(per_rule.items()):
            x, y = i % _PER_ROW, rows - 1 - i // _PER_ROW
            ax = add_axes(
                figure, 0.05 + label + x * (2.3 + label), 0.75 + y * tall, 2.1, tall - 0.7
            )
            for k, (name, row) in enumerate(rule_table.iterrows()):
                color = color_of(str(name), names) if name in names else _PALE
                ax.plot([row["dice"], row["dice_opened"]], [-k, -k], color=color, linewidth=1.2)
                ax.plot(
                    row["dice"],
                    -k,
                    "o",
                    color=color,
                    markerfacecolor="white",
                    markersize=5,
                    clip_on=False,
                )
                ax.plot(row["dice_opened"], -k, "o", color=color, markersize=5, clip_on=False)
            ax.set_yticks([-k for k in range(len(rule_table))])
            for text in ax.set_yticklabels([str(name) for name in rule_table.index]):
                text.set_parse_math(False)
            ax.set(xlim=(0, 1), ylim=(0.6 - len(rule_table), 0.6), xlabel="Dice")
            ax.grid(True, axis="x")
            ax.set_title(rule, fontsize=10, parse_math=False)
        entries = [
            handle("raw", color=FAINT, marker="o", markerfacecolor="white", linestyle="none"),
            handle("opened", color=FAINT, marker="o", linestyle="none"),
        ]
        figure.legend(
            handles=entries, loc="lower left", bbox_to_anchor=(0.01, 0.0), ncol=2, fontsize=8.5
        )
    return figure


def plot_strata(tables: Mapping[str, pd.DataFrame], *, rule: str) -> Figure:
    """Draw where in the brain methods are better and worse."""
    table = tables["strata"]
    all_rules = list(dict.fromkeys(table["rule"]))
    if rule not in all_rules:
        raise ValueError(f"no rule {rule}; there are {', '.join(all_rules)}")
    rule_table = table[table["rule"] == rule]
    methods, names = _methods(tables, rule_table)
    strata = [stratum for stratum in (*STRATA, ELSEWHERE) if stratum in set(rule_table["stratum"])]
    with shared_style({}):
        lines = -(-len(methods) // 3)
        figure = new_figure(2 * PANEL[0], PANEL[1] + 0.22 * lines)
        share = (0.35 + 0.22 * lines) / figure.get_figheight()
        for k, (key, label) in enumerate(
            (("auc", "AUC"), ("sensitivity_opened", "sensitivity, opened"))
        ):
            ax = figure.add_axes((0.075 + 0.49 * k, 0.08 + share, 0.41, 0.84 - share))
            for j, name in enumerate(methods):
                values = (
                    rule_table[rule_table["method"] == name]
                    .set_index("stratum")[key]
                    .reindex(strata)
                )
                at = np.arange(len(strata)) + 0.5 * ((j + 0.5) / len(methods) - 0.5)
                color = color_of(name, names) if name in names else _PALE
                ax.plot(
                    at,
                    values,
                    linestyle="none",
                    marker=_CONTROL_MARKS.get(name, "o"),
                    color=color,
                    markersize=6,
                    clip_on=False,
                )
            ax.set_xticks(range(len(strata)), strata)
            ax.set(
                ylim=(0.4 if key == "auc" else 0, 1), ylabel=label, xlim=(-0.5, len(strata) - 0.5)
            )
            ax.grid(True, axis="y")
            head(ax, label if key == "auc" else f"Sensitivity by {rule}")
        _legend(figure, methods, names, marks=True)
    return figure


def _methods(
    tables: Mapping[str, pd.DataFrame], table: pd.DataFrame
) -> tuple[list[str], list[str]]:
    """Give the methods of a table, and those without controls, in the order of their colors."""
    everyone = list(dict.fromkeys(tables["summary"]["method"]))
    methods = set(table["method"])
    return [name for name in everyone if name in methods], [
        name for name in everyone if name not in CONTROLS
    ]


def _legend(figure: Figure, methods: Sequence[str], names: Sequence[str], *, marks: bool) -> None:
    entries = [
        handle(
            name,
            color=color_of(name, names) if name in names else _PALE,
            marker=_CONTROL_MARKS.get(name, "o") if marks else "",
            linestyle="none" if marks else "-",
            linewidth=2,
        )
        for name in methods
    ]
    legend = figure.legend(
        handles=entries, loc="lower left", bbox_to_anchor=(0.06, 0.0), ncol=3, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _scores(values: Sequence[ArrayLike], cases: Sequence[Case], name: str) -> list[NDArray]:
    """Take the scores of each case in white and gray matter."""
    if len(values) != len(cases):
        raise ValueError(f"{name}: {len(values)} maps for {len(cases)} cases; give one for each")
    scores = []
    for volume, case in zip(values, cases, strict=True):
        array = np.asarray(volume)
        if array.shape != case.shape:
            raise ValueError(
                f"{name}: a map of shape {array.shape} for {case.name}, whose shape is "
                f"{case.shape}"
            )
        scores.append(array[case.scored])
    return scores


def _parts(values: Sequence[ArrayLike], cases: Sequence[Case], name: str) -> dict[str, NDArray]:
    """Divide the scores of patients into those outside lesions and, by their kind, inside."""
    parts: dict[str, list[NDArray]] = {}
    for scores, case in zip(_scores(values, cases, name), cases, strict=True):
        lesion = np.zeros(case.shape, bool) if case.lesion is None else case.lesion
        inside = lesion[case.scored]
        parts.setdefault("patients, elsewhere", []).append(scores[~inside])
        parts.setdefault(f"lesions, {case.kind}" if case.kind else "lesions", []).append(
            scores[inside]
        )
    joined = {label: np.concatenate(some) for label, some in parts.items()}
    return {label: some for label, some in joined.items() if len(some)}


def _part_color(label: str) -> str:
    if label == "healthy persons":
        return _HEALTHY
    if label == "patients, elsewhere":
        return _TISSUE
    return _KINDS.get(label.partition(", ")[2], _OTHER_KIND)


def _threshold_text(values: NDArray, threshold: float | None) -> str:
    if values.dtype == bool or threshold is None or not np.isfinite(threshold):
        return "mask"
    return f"above {threshold:.3g}"


def _order(case: Case) -> list[int]:
    import nibabel as nib

    return [int(axis) for axis in np.argsort(nib.orientations.io_orientation(case.affine)[:, 0])]


def _upright(values: NDArray, case: Case) -> NDArray:
    """Turn a volume so that its axes point nearest to right, anterior and superior."""
    import nibabel as nib

    return np.asarray(
        nib.orientations.apply_orientation(values, nib.orientations.io_orientation(case.affine))
    )


def _draw_slice(
    ax: Axes, values: NDArray, case: Case, number: int, limits: tuple[float, float], colors: str
) -> Any:
    """Draw an axial slice in radiological convention, white outside the brain."""
    colors = (
        colors
        if isinstance(colors, str)
        else import_optional("matplotlib.colors").ListedColormap(colors)
    )
    picture = np.ma.masked_where(
        ~_upright(case.brain, case)[:, :, number], _upright(values, case)[:, :, number]
    )
    drawn = ax.imshow(
        picture.T,
        origin="lower",
        cmap=colors,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        aspect="auto",
    )
    ax.invert_xaxis()
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return drawn


def _outline(ax: Axes, mask: NDArray, case: Case, number: int) -> None:
    inside = _upright(mask, case)[:, :, number]
    if inside.any() and not inside.all():
        ax.contour(inside.T.astype(float), levels=[0.5], colors=[_LESION], linewidths=1.1)
