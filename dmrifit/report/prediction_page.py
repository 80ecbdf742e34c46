"""Page of a prediction: maps beside the width of their intervals, and voxels to distrust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit.report.page import Grid, Lead, Note, Page, Picture, Section, Table, Texts
from dmrifit.report.quicklook import (
    TYPICALITY,
    formula,
    map_figure,
    map_panels,
    page_lead,
    planes_viewer,
    settings_table,
    shown_region,
    value_cells,
)
from dmrifit.report.slice_figures import MapPanel, Slices, plot_codes, plot_maps
from dmrifit.report.verdict import map_verdict, parameter_lights
from dmrifit.report.viewer import Layer

_TEXTS = Texts(__file__)


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
    unlike = None
    if intervals is not None and "Verdict" in intervals["Typicality"]:
        # Missing values compare as false.
        unlike = inside & (maps[TYPICALITY] < intervals["Typicality"]["UnlikeBelow"])
    note = "Maps have the colors of the fit in the same folder." if windows else ""
    outlines = []
    if unlike is not None:
        outline = unlike.astype(np.uint8)
        outlines.append(Layer("unlike the training voxels", outline, "mask", shown=False))
    layers = [panel for pair in pairs for panel in pair if panel is not None]
    planes = planes_viewer(
        shown, layers, affine, sidecar, background=background, outlines=outlines, scan="input"
    )
    certainty = _TEXTS["no_intervals"]
    if intervals is not None:
        certainty = f"{100 * intervals['Coverage']:.3g} % intervals stand beside the maps"
        entries = intervals["Parameters"].items()
        wide = [name for name, entry in entries if not entry["Determined"]]
        if wide:
            certainty += f"; not determined: {', '.join(wide)}"
        certainty += "."
    answer = Lead(f"{map_verdict(sidecar)}. {certainty}")
    parameters = parameter_lights([panel for panel, _ in pairs], inside, sidecar)
    shown_maps = _maps(pairs, unlike, slices, intervals) if inside.any() else ()
    estimator = [["estimator", sidecar["Estimator"]["Class"]]]
    estimator.append(["model", formula(sidecar["Model"])])
    scale = [["signals divided by", f"{sidecar['Scale']:.6g}"]]
    sections = [
        Section("", answer, parameters, Note(note), planes),
        Section("Maps", *shown_maps),
        Section("Parameters", *_parameters(pairs, inside, sidecar)),
        Section("How they were made", settings_table(sidecar, estimator, scale)),
    ]
    heading = f"{title}, predicted maps of {sidecar['Model']['Name']}"
    lead = f"{page_lead('Predicted', sidecar)} {sidecar['Estimator'].get('TrainingData', '')}"
    html.write_text(Page(heading, sections, lead.rstrip()).html(), encoding="utf-8")


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


def _parameters(
    pairs: Sequence[tuple[MapPanel, MapPanel | None]],
    inside: NDArray[np.bool_],
    sidecar: Mapping[str, Any],
) -> Iterator[Any]:
    """Tabulate the values of each parameter and what its intervals are worth."""
    intervals = sidecar.get("Intervals")
    header = ["", "unit", "median", "quartiles"]
    if intervals is not None:
        header += ["interval: median width", "held in training patients", "worst patient", ""]
    rows, faint = [], []
    for panel, width in pairs:
        row = value_cells(panel, inside)
        if width is not None:
            entry = sidecar["Intervals"]["Parameters"][panel.name]
            row.append(value_cells(width, inside)[2])
            for key in ("TrainingCoverage", "WorstTrainingPatient"):
                row.append(f"{100 * entry[key]:.0f} %")
            row.append("" if entry["Determined"] else "not determined")
        faint.append(width is not None and panel.faint)
        rows.append(row)
    if intervals is not None:
        yield Note(" ".join(interval_advice(intervals)))
    yield Table(rows, header, numbers=range(2, 7), faint=faint)
    counts = sidecar["Voxels"]
    voxels = counted(counts["InMask"], "voxel")
    text = _TEXTS("counts", voxels=voxels, with_signal=counts["WithSignal"])
    if counts["NegativeSignal"]:
        text += f" In {counted(counts['NegativeSignal'], 'voxel')} a predicted signal is negative."
    if intervals is not None:
        text += " " + _TEXTS("held", coverage=100 * intervals["Coverage"])
    yield Note(text)


def _maps(
    pairs: Sequence[tuple[MapPanel, MapPanel | None]],
    unlike: NDArray[np.bool_] | None,
    slices: Slices,
    intervals: Mapping[str, Any] | None,
) -> Iterator[Any]:
    """Show slices of each map, beside the width of its interval."""
    if intervals is None:
        yield Grid(*(map_figure(slices, panel) for panel, _ in pairs))
        return
    for panel, width in pairs:
        if width is None:
            continue
        caption = ""
        if panel.faint:
            share = intervals["Parameters"][panel.name]["MedianShareOfBounds"]
            caption = _TEXTS("undetermined", name=panel.name, share=100 * share)
        alt = f"Slices of {panel.label} and of the width of its interval"
        yield Picture(plot_maps(slices, [panel, width], histograms=False), alt, caption)
    if unlike is not None:
        codes = {0: "like training voxels", 1: "unlike them"}
        figure = plot_codes(slices, unlike.astype(np.uint8), codes, "Typicality")
        alt = "Slices of the voxels unlike those of training"
        yield Picture(figure, alt, f"{intervals['Typicality']['Verdict']}.")
