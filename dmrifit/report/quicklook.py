"""Maps of an image for readers: the quick-look page of a fit, and what notebooks show."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted
from dmrifit._utils.html_repr import InlinePage, html_summary
from dmrifit.engine.fit_maps import OUTSIDE, unpack_bits
from dmrifit.io.bids_derivatives import MONOTONIC
from dmrifit.report.page import (
    Code,
    Grid,
    Lead,
    Note,
    Page,
    Picture,
    Section,
    Table,
    Texts,
    png_bytes,
)
from dmrifit.report.slice_figures import (
    COUNT_COLORS,
    MapPanel,
    Slices,
    plot_codes,
    plot_maps,
    plot_overview,
)
from dmrifit.report.verdict import (
    fit_sentences,
    least_doubted,
    map_verdict,
    parameter_lights,
    percent,
    plain_number,
    prose,
)
from dmrifit.report.viewer import Layer, html_viewer
from dmrifit.report.voxel_records import VoxelRecords, VoxelSignals, short_unit

_TEXTS = Texts(__file__)
AMPLITUDE_UNIT = short_unit("arbitrary")
#: The layer of the measurements of lowest b.
SCAN = "scan"
#: From more b-values than this, only the range is given.
_MOST_VALUES = 12
#: Percent at which colors can be read and the scan below them is seen.
OPACITY = 60
#: Name of the map that says how like the training voxels a voxel is.
TYPICALITY = "typicality"
#: Bytes of the picture, so that with its text (a third more than bytes) it stays below 300 kB.
MAX_PICTURE_BYTES = 200_000
_RESOLUTIONS = (110, 90, 70, 55, 40, 30)  # pixels per inch, tried in this order


def write_quicklook(
    maps: Mapping[str, NDArray],
    affine: NDArray[np.float64],
    sidecar: Mapping[str, Any],
    *,
    title: str,
    png: Path,
    html: Path,
    background: NDArray | None = None,
    signals: VoxelSignals | None = None,
) -> None:
    """Write the quick-look page of a fit, from maps (x, y, z), and its picture."""
    slices = Slices(shown_region(maps), affine)
    panels = map_panels(maps, sidecar)
    free_panels = fitted_panels(panels, sidecar)
    heading = f"{title}, model {sidecar['Model']['Name']}"
    png.write_bytes(png_bytes(plot_maps(slices, free_panels, title=heading), dpi=150))
    screen = first_screen(maps, affine, sidecar, background=background, signals=signals)
    model = [["model", formula(sidecar["Model"])], ["", sidecar["Model"]["FormulaUnits"]]]
    measured = [["measurements", _contrasts(sidecar["Protocol"])]]
    if sidecar["FittedProtocol"] != sidecar["Protocol"]:
        measured.append(["fitted after averaging", _contrasts(sidecar["FittedProtocol"])])
    sections = [
        Section("", *screen),
        Section("Parameters", *_summary(slices, panels, sidecar)),
        Section("Maps", *_figures(maps, slices, free_panels, sidecar)),
        Section("How they were made", settings_table(sidecar, model, measured)),
    ]
    page = Page(heading, sections, page_lead("Fitted", sidecar))
    html.write_text(page.html(), encoding="utf-8")


def first_screen(
    maps: Mapping[str, NDArray],
    affine: NDArray[np.float64],
    sidecar: Mapping[str, Any],
    *,
    background: NDArray | None = None,
    signals: VoxelSignals | None = None,
) -> list[Any]:
    """Answer what was fitted and what can be read of it; show maps (x, y, z) and signals."""
    region = shown_region(maps)
    panels = map_panels(maps, sidecar)
    free_panels = fitted_panels(panels, sidecar)
    protocol = _contrasts(sidecar["FittedProtocol"])
    answer = Lead(f"{map_verdict(sidecar)}. Measurements: {protocol}.")
    parts: list[Any] = [answer, parameter_lights(panels, region, sidecar)]
    if free_panels:
        records = None
        if signals is not None:
            records = VoxelRecords(maps, sidecar, signals)
        viewer = planes_viewer(
            region, free_panels, affine, sidecar, background=background, records=records
        )
        parts.append(viewer)
    return parts


def page_lead(verb: str, sidecar: Mapping[str, Any]) -> str:
    """Write the line below the title."""
    return _TEXTS("lead", verb=verb, version=sidecar["Versions"]["dmrifit"])


def shown_region(maps: Mapping[str, NDArray]) -> NDArray[np.bool_]:
    """Find the voxels (x, y, z) that were fitted or predicted, also where that failed."""
    if "status" in maps:
        return maps["status"] != OUTSIDE
    first = next(iter(maps.values()))
    region = np.zeros(first.shape[:3], bool)
    for name, values in maps.items():
        # Of voxels outside the mask it is not known, so that it is no zero there.
        if name == TYPICALITY:
            continue
        has_value = (values != 0) | np.isnan(values)
        region |= has_value.reshape(*region.shape, -1).any(axis=-1)
    return region


def map_panels(maps: Mapping[str, NDArray], sidecar: Mapping[str, Any]) -> list[MapPanel]:
    """Make the panels of all parameters from their maps (x, y, z)."""
    panels = []
    for name, entry in sidecar.get("Parameters", {}).items():
        bounds = (None, None)
        # Bounds of an amplitude are multiples of each voxel's signal: they have no place on a
        # common axis.
        if "BoundsUnits" not in entry:
            bounds = entry.get("Bounds", bounds)
        panel = MapPanel(
            name,
            short_unit(entry["Units"]),
            maps[name],
            (
                -np.inf if bounds[0] is None else bounds[0],
                np.inf if bounds[1] is None else bounds[1],
            ),
            tuple(entry.get("ShareAtBounds", {"Lower": 0.0, "Upper": 0.0}).values()),
            quartiles=tuple(entry.get("Quartiles", ())),
        )
        panels.append(panel)
    if "doubt" not in maps:
        return panels
    doubts = unpack_bits(maps["doubt"], len(panels))
    return [replace(panel, doubted=doubts[..., j]) for j, panel in enumerate(panels)]


def fitted_panels(panels: Sequence[MapPanel], sidecar: Mapping[str, Any]) -> list[MapPanel]:
    """Leave out maps of one value, at which a parameter was fixed: they show nothing."""
    entries = sidecar.get("Parameters", {})
    return [panel for panel in panels if "Fixed" not in entries[panel.name]]


def value_cells(panel: MapPanel, mask: NDArray[np.bool_]) -> list[str]:
    """Write the cells of a table that summarize a map: name, unit, median, quartiles."""
    quartiles = panel.summary(mask)
    if not quartiles:
        return [panel.name, panel.unit, "–", "– – –"]
    low, median, high = map(plain_number, quartiles)
    return [panel.name, panel.unit, median, f"{low} – {high}"]


def _summary(slices: Slices, panels: list[MapPanel], sidecar: Mapping[str, Any]) -> Iterator[Any]:
    """Tabulate the values of each parameter and how many stand at its bounds."""
    for sentence in prose(fit_sentences(sidecar), sidecar):
        yield Note(sentence)
    rows = []
    for panel in panels:
        entry = sidecar["Parameters"][panel.name]
        error = "–"
        if entry["StandardError"] is not None:
            error = f"{entry['StandardError']:.2g}"
        cells = [*value_cells(panel, slices.mask), error, entry.get("Interval", "–")]
        cells += _bound_cells(entry)
        rows.append([*cells, percent(sidecar["Doubt"]["Share"][panel.name])])
    header = ["", "unit", "median", "quartiles", "std. error", "95 % interval"]
    header += ["at lower bound", "at upper bound", "in doubt"]
    yield Table(rows, header, numbers=range(2, len(header)))
    counts = sidecar["Status"]["Voxels"]
    outcomes = ", ".join(f"{n} {code}" for code, n in counts.items() if n)
    text = _TEXTS(
        "summary",
        voxels=counted(sum(counts.values()), "voxel"),
        outcomes=outcomes,
        disagree=100 * sidecar["Doubt"]["StartsDisagree"],
    )
    if any("BoundsUnits" in entry for entry in sidecar["Parameters"].values()):
        text += " Bounds of S0 are multiples of the largest signal of the voxel (× max)."
    for name, entry in sidecar["Parameters"].items():
        if "Meaning" in entry:
            text += f" {name} is the {entry['Meaning']}."
    yield Note(text)


def _bound_cells(entry: Mapping[str, Any]) -> list[str]:
    """Write how many voxels stand at the lower and at the upper bound of a parameter."""
    if "Fixed" in entry:
        value = entry["Fixed"]
        # S0 may be fixed at what was measured in each voxel.
        return [f"fixed: {value}" if isinstance(value, str) else f"fixed at {value:g}", ""]
    unit = ""
    if "BoundsUnits" in entry:
        unit = " × max"
    cells = []
    for bound, share in zip(entry["Bounds"], entry["ShareAtBounds"].values(), strict=True):
        if bound is None:
            cells.append("no bound")
        else:
            cells.append(f"{100 * share:.3g} % at {bound:g}{unit}")
    if "UpperBoundRule" in entry:
        cells[1] += f" or {MONOTONIC}"
    return cells


def planes_viewer(
    region: NDArray[np.bool_],
    panels: Sequence[MapPanel],
    affine: NDArray[np.float64],
    sidecar: Mapping[str, Any],
    *,
    background: NDArray | None = None,
    records: VoxelRecords | None = None,
    outlines: Sequence[Layer] = (),
    scan: str = SCAN,
) -> Any:
    """
    Show all maps in three planes: the scan below, the parameter least in doubt above it.

    Without the scan, the first amplitude is below. Shapes: `region` and `background` (x, y, z).
    """
    layers = []
    if background is not None:
        layers.append(Layer(scan, background, "image", AMPLITUDE_UNIT))
    for panel in panels:
        values = np.where(region, panel.values, np.nan)
        layers.append(Layer(panel.layer, values, "map", panel.unit, panel.window))
    for panel in panels:
        if panel.doubted is not None and panel.doubted.any():
            layers.append(Layer(panel.layer, panel.doubted, "doubt"))
    # An amplitude looks like the scan, so that the reader sees where the colors lie.
    images = [layer.name for layer in layers if layer.kind == "image"]
    images += [panel.layer for panel in panels if panel.unit == AMPLITUDE_UNIT]
    parameters = [panel for panel in panels if panel.unit != AMPLITUDE_UNIT]
    names = [panel.layer for panel in parameters]
    overlay = ""
    if images and parameters:
        determined = [panel.layer for panel in parameters if not panel.faint]
        overlay = least_doubted(determined or names, sidecar)
    start = None
    if records is not None:
        start = (affine @ [*records.start, 1])[:3]
    return html_viewer(
        [*layers, *outlines],
        affine,
        region=region,
        image=(images or names)[0],
        overlay=overlay,
        start=start,
        opacity=OPACITY,
        records=records,
        label="Maps",
        instead=Note("The pictures below show slices of the same maps."),
    )


def map_figure(slices: Slices, panel: MapPanel) -> Picture:
    """Draw slices and histogram of a map."""
    return Picture(plot_maps(slices, [panel]), f"Slices and histogram of {panel.label}")


def _figures(
    maps: Mapping[str, NDArray], slices: Slices, panels: list[MapPanel], sidecar: Mapping[str, Any]
) -> Iterator[Any]:
    """Show the map of each parameter, how the fits ended, and which are in doubt."""
    yield Note(_TEXTS("maps", side=slices.sides[0]))
    figures = [map_figure(slices, panel) for panel in panels]
    codes = {int(code): meaning for code, meaning in sidecar["Status"]["Codes"].items()}
    # What was not fitted is left white.
    codes.pop(OUTSIDE, None)
    status = plot_codes(slices, maps["status"], codes, "Status")
    figures.append(Picture(status, "Status of each voxel"))
    if maps["doubt"].any():
        n_doubts = unpack_bits(maps["doubt"], len(sidecar["Parameters"])).sum(axis=-1)
        most = len(COUNT_COLORS) - 1
        n_doubts = np.minimum(n_doubts, most).astype(np.uint8)
        counts = {n: counted(n, "parameter") for n in range(most)}
        counts[most] = f"{most} parameters or more"
        figure = plot_codes(slices, n_doubts, counts, "In doubt", colors=COUNT_COLORS)
        figures.append(Picture(figure, "Number of parameters in doubt"))
    yield Grid(*figures)


def settings_table(
    sidecar: Mapping[str, Any], before: Sequence[Any], after: Sequence[Any]
) -> Table:
    """Tabulate what was read, the settings and the versions, around further rows."""
    sources = [
        [role.lower(), f"{source['Name']} (SHA-256 {source['SHA256'][:16]}…)"]
        for role, source in sidecar["Sources"].items()
    ]
    # ``AverageDirections`` becomes ``average directions``.
    settings = [
        [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower(), "none" if value is None else value]
        for key, value in sidecar["Settings"].items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in sidecar["Versions"].items())
    return Table([*before, *sources, *after, *settings, ["versions", versions]])


def formula(model: Mapping[str, str]) -> str | Code:
    """Write the formula of a model."""
    if "Source" in model:
        return Code(model["Source"])
    return f"S = {model['Expression']}"


def _contrasts(protocol: Mapping[str, Any]) -> str:
    """Write the b-values and echo times of a protocol."""
    # Scanners write b-values such as 799.6, which nobody would read as another shell.
    b = sorted({round(value) for value in protocol["b"]})
    listed = ", ".join(map(str, b))
    if len(b) > _MOST_VALUES:
        listed = f"{b[0]} … {b[-1]} ({len(b)} values)"
    text = f"{len(protocol['b'])} with b = {listed} s/mm²"
    if protocol["te"] is not None:
        te = ", ".join(f"{value:g}" for value in sorted(set(protocol["te"])))
        text += f"; TE = {te} ms"
    return text


def map_summary(
    maps: Mapping[str, NDArray],
    affine: NDArray[np.float64],
    sidecar: Mapping[str, Any],
    *,
    title: str,
    advice: Sequence[str] = (),
) -> str:
    """Write verdict, table and slices of maps (x, y, z) as HTML; no slices without matplotlib."""
    region = shown_region(maps)
    panels = map_panels(maps, sidecar)
    header = ["", "unit", "median", "quartiles"]
    rows: list[list[str | None]] = [[*value_cells(panel, region)] for panel in panels]
    if "Doubt" in sidecar:
        header += ["95 % interval", "in doubt"]
        for panel, row in zip(panels, rows, strict=True):
            entry = sidecar["Parameters"][panel.name]
            if "Fixed" in entry:
                row += ["fixed", None]
            else:
                share = sidecar["Doubt"]["Share"][panel.name]
                row += [entry.get("Interval", "–"), percent(share)]
    heading = f"{title}: {map_verdict(sidecar)}"
    page = html_summary(heading, header, rows, note=" ".join(advice))
    drawn = fitted_panels(panels, sidecar)
    if not (drawn and region.any()) or find_spec("matplotlib") is None:
        return page
    return page + _picture(Slices(region, affine, n_slices=3), drawn)


def map_viewer(
    maps: Mapping[str, NDArray],
    affine: NDArray[np.float64],
    sidecar: Mapping[str, Any],
    *,
    title: str,
    background: NDArray | None = None,
    signals: VoxelSignals | None = None,
) -> InlinePage:
    """Make the page of the viewer that goes through maps (x, y, z) in three planes."""
    panels = fitted_panels(map_panels(maps, sidecar), sidecar)
    if not panels:
        raise ValueError("there is no map to view: no parameter was fitted or predicted")
    region = shown_region(maps)
    if "Status" in sidecar:
        screen = first_screen(maps, affine, sidecar, background=background, signals=signals)
    else:
        viewer = planes_viewer(region, panels, affine, sidecar, background=background)
        screen = [Lead(map_verdict(sidecar)), viewer]
    return InlinePage(Page(title, [Section("", *screen)]).html())


def _picture(slices: Slices, panels: Sequence[MapPanel]) -> str:
    """Draw as many pixels as the room for the picture allows: noise does not compress."""
    figure = plot_overview(slices, panels)
    for resolution in _RESOLUTIONS:
        picture = png_bytes(figure, dpi=resolution)
        if len(picture) <= MAX_PICTURE_BYTES:
            break
    data = base64.b64encode(picture).decode("ascii")
    names = escape(", ".join(panel.name for panel in panels))
    source = f"data:image/png;base64,{data}"
    return f'\n<img src="{source}" alt="Slices of {names}" style="max-width: 100%">'
