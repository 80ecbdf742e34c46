"""Page of a prediction: maps beside the width of their intervals, and voxels to distrust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.report.html import (
    html_figure,
    html_grid,
    html_join,
    html_note,
    html_table,
    png_bytes,
)
from dmrifit.report.quicklook import (
    TYPICALITY,
    formula,
    map_figure,
    map_panels,
    page_lead,
    planes_viewer,
    setting_words,
    shown_region,
    source_rows,
    value_cells,
    version_row,
)
from dmrifit.report.slice_figures import MapPanel, Slices, plot_codes, plot_pair
from dmrifit.report.verdict import html_lights, html_verdict, map_verdict
from dmrifit.report.viewer import Layer, viewer_page

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["interval_advice", "write_prediction_page"]


def write_prediction_page(
    maps: Mapping[str, NDArray],
    affine: NDArray[np.float64],
    sidecar: Mapping[str, Any],
    *,
    title: str,
    html: Path,
    background: NDArray | None = None,
    windows: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write the page of predicted maps (x, y, z); `windows` are color scales of a fit, by name."""
    inside = shown_region(maps)
    shown = inside
    # Slices of an empty mask could not be chosen.
    if not inside.any():
        shown = np.ones_like(inside)
    slices = Slices(shown, affine)
    intervals = sidecar.get("Intervals")
    pairs = []
    for panel in map_panels(maps, sidecar):
        panel = replace(panel, window=(windows or {}).get(panel.name))
        pairs.append(_pair(panel, maps, intervals))
    unlike = _unlike(maps, intervals)
    screen = [
        html_verdict(f"{map_verdict(sidecar)}. {_uncertainty(intervals)}"),
        html_lights([panel for panel, _ in pairs], inside, sidecar),
    ]
    if windows:
        screen.append(html_note("Maps have the colors of the fit in the same folder."))
    outlines = []
    if unlike is not None:
        outline = unlike.astype(np.uint8)
        outlines.append(Layer("unlike the training voxels", outline, "mask", shown=False))
    layers = [panel for pair in pairs for panel in pair if panel is not None]
    planes = planes_viewer(
        shown, layers, affine, sidecar, background=background, outlines=outlines, scan="input"
    )
    screen.append(planes)
    sections: list[tuple[str, Any]] = [("", html_join(screen))]
    if inside.any():
        sections.append(("Maps", _maps(pairs, unlike, slices, intervals)))
    sections.append(("Parameters", _parameters(pairs, inside, sidecar)))
    sections.append(("How they were made", html_table(_settings(sidecar))))
    heading = f"{title}, predicted maps of {sidecar['Model']['Name']}"
    lead = f"{page_lead('Predicted', sidecar)} {sidecar['Estimator'].get('TrainingData', '')}"
    html.write_text(viewer_page(heading, sections, lead=lead.rstrip()), encoding="utf-8")


def interval_advice(section: Mapping[str, Any]) -> list[str]:
    """Say in sentences what the intervals of a prediction promise, and where they may not hold."""
    sentences = [f"Intervals: {section['Guarantee']}."]
    wide = [name for name, entry in section["Parameters"].items() if not entry["Determined"]]
    if wide:
        shares = [100 * section["Parameters"][name]["MedianShareOfBounds"] for name in wide]
        spans = [f"{name} ({share:.0f} %)" for name, share in zip(wide, shares, strict=True)]
        sentences.append(
            "Not determined, because the interval spans most of the range that is searched: "
            f"{', '.join(spans)}."
        )
    if "Verdict" in section["Typicality"]:
        sentences.append(f"{section['Typicality']['Verdict']}.")
    return sentences


def _uncertainty(intervals: Mapping[str, Any] | None) -> str:
    """Say how sure the maps are, and of which parameters they say little."""
    if intervals is None:
        return (
            "Without intervals nothing is known of how sure they are: train the model with them "
            "(dmrifit train --coverage 0.9)."
        )
    text = f"{100 * intervals['Coverage']:.3g} % intervals stand beside the maps"
    wide = [name for name, entry in intervals["Parameters"].items() if not entry["Determined"]]
    if wide:
        text += f"; not determined: {', '.join(wide)}"
    return f"{text}."


def _pair(
    panel: MapPanel, maps: Mapping[str, NDArray], intervals: Mapping[str, Any] | None
) -> tuple[MapPanel, MapPanel | None]:
    """Put the width of its interval beside a map; dim both where nothing is determined."""
    if intervals is None:
        return panel, None
    is_faint = not intervals["Parameters"][panel.name]["Determined"]
    width = maps[f"{panel.name}_high"] - maps[f"{panel.name}_low"]
    name = f"{panel.name}, width of the {100 * intervals['Coverage']:.3g} % interval"
    return replace(panel, faint=is_faint), MapPanel(name, panel.unit, width, faint=is_faint)


def _unlike(
    maps: Mapping[str, NDArray], intervals: Mapping[str, Any] | None
) -> NDArray[np.bool_] | None:
    """Find the voxels unlike those of training; None where it is not known."""
    if intervals is None or "Verdict" not in intervals["Typicality"]:
        return None
    inside = shown_region(maps)
    # Missing values compare as false.
    return inside & (maps[TYPICALITY] < intervals["Typicality"]["UnlikeBelow"])


def _parameters(
    pairs: Sequence[tuple[MapPanel, MapPanel | None]],
    inside: NDArray[np.bool_],
    sidecar: Mapping[str, Any],
) -> Markup:
    """Tabulate the values of each parameter and what its intervals are worth."""
    intervals = sidecar.get("Intervals")
    header = ["", "unit", "median", "quartiles"]
    if intervals is not None:
        header += ["interval: median width", "held in training patients", "worst patient"]
        header.append("")
    rows, faint = [], []
    for i, (panel, width) in enumerate(pairs):
        row = value_cells(panel, inside)
        if width is not None:
            entry = sidecar["Intervals"]["Parameters"][panel.name]
            row.append(value_cells(width, inside)[2])
            for key in ("TrainingCoverage", "WorstTrainingPatient"):
                row.append(f"{100 * entry[key]:.0f} %")
            row.append("" if entry["Determined"] else "not determined")
            if not entry["Determined"]:
                faint.append(i)
        rows.append(row)
    parts: list[Any] = []
    if intervals is not None:
        parts.append(html_note(" ".join(interval_advice(intervals))))
    parts.append(html_table(rows, header, numbers=(2, 3, 4, 5, 6), faint=faint))
    text = _counts(sidecar["Voxels"])
    if intervals is not None:
        text += (
            f" An interval is to hold {100 * intervals['Coverage']:.3g} % of what a fit to the "
            "images of the other protocol would give, noise included; the share it did hold is "
            "from training patients left out in turn."
        )
    return html_join([*parts, html_note(text)])


def _counts(counts: Mapping[str, int]) -> str:
    text = (
        f"{counted(counts['InMask'], 'voxel')}, {counts['WithSignal']} of them with signal in "
        "every measurement. A trained model predicted these maps from images of another protocol; "
        "they are no fit to measurements of it."
    )
    if counts["NegativeSignal"]:
        text += f" In {counted(counts['NegativeSignal'], 'voxel')} a predicted signal is negative."
    return text


def _maps(
    pairs: Sequence[tuple[MapPanel, MapPanel | None]],
    unlike: NDArray[np.bool_] | None,
    slices: Slices,
    intervals: Mapping[str, Any] | None,
) -> Markup:
    """Show slices of each map, beside the width of its interval."""
    if intervals is None:
        return html_grid(map_figure(slices, panel) for panel, _ in pairs)
    figures = []
    for panel, width in pairs:
        if width is None:
            continue
        caption = ""
        if panel.faint:
            share = intervals["Parameters"][panel.name]["MedianShareOfBounds"]
            caption = (
                f"{panel.name} is not determined: in the typical voxel the interval spans "
                f"{100 * share:.0f} % of the range that is searched."
            )
        picture = png_bytes(plot_pair(slices, panel, width))
        alt = f"Slices of {panel.label} and of the width of its interval"
        figures.append(html_figure(picture, alt, caption))
    if unlike is not None:
        codes = {0: "like training voxels", 1: "unlike them"}
        picture = png_bytes(plot_codes(slices, unlike.astype(np.uint8), codes, "Typicality"))
        alt = "Slices of the voxels unlike those of training"
        figures.append(html_figure(picture, alt, f"{intervals['Typicality']['Verdict']}."))
    return html_join(figures)


def _settings(sidecar: Mapping[str, Any]) -> list[list[Any]]:
    rows = [
        ["estimator", sidecar["Estimator"]["Class"]],
        ["model", formula(sidecar["Model"])],
        *source_rows(sidecar),
        ["signals divided by", f"{sidecar['Scale']:.6g}"],
    ]
    for key, value in sidecar["Settings"].items():
        rows.append([setting_words(key), value])
    return [*rows, version_row(sidecar)]
