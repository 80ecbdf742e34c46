"""Page of a prediction: maps beside the width of their intervals, and voxels to distrust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.report import page, verdict
from dmrifit.report.quicklook import TYPICALITY, ShownMaps, map_figure
from dmrifit.report.slice_figures import MapPanel, Slices, plot_codes, plot_maps
from dmrifit.report.viewer import Layer

_TEXTS = page.Texts(__file__)


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
    shown = ShownMaps(maps, affine, sidecar)
    region = shown.region
    # Slices of an empty mask could not be chosen.
    if not region.any():
        region = np.ones_like(region)
    intervals = sidecar.get("Intervals")
    panels, widths = [], []
    for panel in shown.panels:
        panel = replace(panel, window=(windows or {}).get(panel.name))
        if intervals is not None:
            # Both are dim where nothing is determined.
            is_faint = not intervals["Parameters"][panel.name]["Determined"]
            panel = replace(panel, faint=is_faint)
            width = maps[f"{panel.name}_high"] - maps[f"{panel.name}_low"]
            name = f"{panel.name}, width of the {100 * intervals['Coverage']:.3g} % interval"
            widths.append(MapPanel(name, panel.unit, width, faint=is_faint))
        panels.append(panel)
    outlines = []
    if intervals is not None and "Verdict" in intervals["Typicality"]:
        # Missing values compare as false.
        unlike = shown.region & (maps[TYPICALITY] < intervals["Typicality"]["UnlikeBelow"])
        outline = unlike.astype(np.uint8)
        outlines.append(Layer("unlike the training voxels", outline, "mask", shown=False))
    layers, certainty = panels, _TEXTS["no_intervals"]
    if intervals is not None:
        layers = [panel for pair in zip(panels, widths, strict=True) for panel in pair]
        wide = ", ".join(panel.name for panel in panels if panel.faint)
        certainty = f"{100 * intervals['Coverage']:.3g} % intervals stand beside the maps"
        certainty += f"; not determined: {wide}." if wide else "."
    options: dict[str, Any] = {"background": background, "outlines": outlines, "scan": "input"}
    first_screen = [
        page.Lead(f"{verdict.map_verdict(sidecar)}. {certainty}"),
        verdict.parameter_lights(panels, shown.region, sidecar),
        page.Note("Maps have the colors of the fit in the same folder." if windows else ""),
        shown.planes(layers, region=region, **options),
    ]
    figures: Any = ()
    if shown.region.any():
        figures = _maps(panels, widths, outlines, Slices(region, affine), intervals)
    estimator = ["estimator", sidecar["Estimator"]["Class"]]
    scale = ["signals divided by", f"{sidecar['Scale']:.6g}"]
    sections = [
        page.Section("", *first_screen),
        page.Section("Maps", *figures),
        page.Section("Parameters", *_parameters(shown, panels, widths)),
        shown.settings([estimator, shown.formula], [scale]),
    ]
    heading = f"{title}, predicted maps of {sidecar['Model']['Name']}"
    lead = f"{shown.lead('Predicted')} {sidecar['Estimator'].get('TrainingData', '')}"
    html.write_text(page.Page(heading, sections, lead.rstrip()).html(), encoding="utf-8")


def interval_advice(section: Mapping[str, Any]) -> list[str]:
    """Say in sentences what the intervals of a prediction promise, and where they may not hold."""
    sentences = [f"Intervals: {section['Guarantee']}."]
    spans = [
        f"{name} ({100 * entry['MedianShareOfBounds']:.0f} %)"
        for name, entry in section["Parameters"].items()
        if not entry["Determined"]
    ]
    if spans:
        sentences.append(_TEXTS("wide", parameters=", ".join(spans)))
    if "Verdict" in section["Typicality"]:
        sentences.append(f"{section['Typicality']['Verdict']}.")
    return sentences


def _parameters(
    shown: ShownMaps, panels: Sequence[MapPanel], widths: Sequence[MapPanel]
) -> Iterator[Any]:
    """Tabulate the values of each parameter and what its intervals are worth."""
    intervals = shown.sidecar.get("Intervals")
    header = ["", "unit", "median", "quartiles"]
    rows = [shown.value_cells(panel) for panel in panels]
    if intervals is not None:
        yield page.Note(" ".join(interval_advice(intervals)))
        header += ["interval: median width", "held in training patients", "worst patient", ""]
        for row, width in zip(rows, widths, strict=True):
            entry = intervals["Parameters"][row[0]]
            row.append(shown.value_cells(width)[2])
            for key in ("TrainingCoverage", "WorstTrainingPatient"):
                row.append(f"{100 * entry[key]:.0f} %")
            row.append("" if entry["Determined"] else "not determined")
    faint = [panel.faint for panel in panels]
    yield page.Table(rows, header, numbers=range(2, 7), faint=faint)
    counts = shown.sidecar["Voxels"]
    voxels = counted(counts["InMask"], "voxel")
    text = _TEXTS("counts", voxels=voxels, with_signal=counts["WithSignal"])
    if counts["NegativeSignal"]:
        text += f" In {counted(counts['NegativeSignal'], 'voxel')} a predicted signal is negative."
    if intervals is not None:
        text += " " + _TEXTS("held", coverage=100 * intervals["Coverage"])
    yield page.Note(text)


def _maps(
    panels: Sequence[MapPanel],
    widths: Sequence[MapPanel],
    outlines: Sequence[Layer],
    slices: Slices,
    intervals: Mapping[str, Any] | None,
) -> Iterator[Any]:
    """Show slices of each map, beside the width of its interval."""
    if intervals is None:
        yield page.Grid(*(map_figure(slices, panel) for panel in panels))
        return
    for panel, width in zip(panels, widths, strict=True):
        caption = ""
        if panel.faint:
            share = intervals["Parameters"][panel.name]["MedianShareOfBounds"]
            caption = _TEXTS("undetermined", name=panel.name, share=100 * share)
        alt = f"Slices of {panel.label} and of the width of its interval"
        yield page.Picture(plot_maps(slices, [panel, width], histograms=False), alt, caption)
    for unlike in outlines:
        codes = {0: "like training voxels", 1: "unlike them"}
        figure = plot_codes(slices, unlike.values, codes, "Typicality")
        alt = "Slices of the voxels unlike those of training"
        yield page.Picture(figure, alt, f"{intervals['Typicality']['Verdict']}.")
