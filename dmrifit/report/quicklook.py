"""Maps of an image for readers: the quick-look page of a fit, and what notebooks show."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.counts import counted, percent
from dmrifit._utils.html_repr import InlinePage, html_summary
from dmrifit.engine.design.precision import rounded
from dmrifit.engine.fit_maps import OUTSIDE, unpack_bits
from dmrifit.engine.formulas.model_formula import AMPLITUDE_UNIT
from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.engine.protocol import shells_text
from dmrifit.engine.results import draw_curve
from dmrifit.io.bids_derivatives import MONOTONIC, NO_INTERVALS
from dmrifit.io.nifti import load_image
from dmrifit.report import page, slice_figures, style, verdict
from dmrifit.report.numerals import significant
from dmrifit.report.slice_figures import MapPanel, Slices, plot_codes, plot_maps
from dmrifit.report.viewer import Layer, html_viewer
from dmrifit.report.voxel_records import VoxelRecords, VoxelSignals, short_unit

_TEXTS = page.Texts(__file__)
#: The layer of the measurements of lowest b.
SCAN = "scan"
#: Percent at which colors can be read and the scan below them is seen.
OPACITY = 60
#: Width of the signals of a voxel beside a map.
_CURVE_INCHES = 4.4
#: Name of the map that says how like the training voxels a voxel is.
TYPICALITY = "typicality"
#: Bytes of the picture, so that with its text (a third more than bytes) it stays below 300 kB.
MAX_PICTURE_BYTES = 200_000
_RESOLUTIONS = (110, 90, 70, 55, 40, 30)  # pixels per inch, tried in this order
#: What pages call settings that are no option of a command.
_SETTINGS = {"Region": "region", "Scale": "scale", "Command": "command (replaces these files)"}


class ShownMaps:
    """
    Maps (x, y, z) of an image as pages show them, with what their sidecar says.

    `panels` are all parameters, `free_panels` those that are not fixed.
    """

    def __init__(
        self, maps: Mapping[str, NDArray], affine: NDArray[np.float64], sidecar: Mapping[str, Any]
    ) -> None:
        self.maps, self.affine, self.sidecar = maps, affine, sidecar
        self.entries: Mapping[str, Any] = sidecar.get("Parameters", {})
        doubts: Any = [None] * len(self.entries)
        # Bit k of the map "doubt" is set where parameter k is in doubt.
        if "doubt" in maps:
            doubts = np.moveaxis(unpack_bits(maps["doubt"], len(self.entries)), -1, 0)
        self.panels = [
            _panel(name, entry, maps[name], doubted)
            for (name, entry), doubted in zip(self.entries.items(), doubts, strict=True)
        ]
        self.free_panels = [p for p in self.panels if "Fixed" not in self.entries[p.name]]

    @cached_property
    def region(self) -> NDArray[np.bool_]:
        """The voxels (x, y, z) that were fitted or predicted, also where that failed."""
        if "status" in self.maps:
            return self.maps["status"] != OUTSIDE
        first = next(iter(self.maps.values()))
        region = np.zeros(first.shape[:3], bool)
        for name, values in self.maps.items():
            # Typicality is NaN outside the mask, where other maps are 0.
            if name != TYPICALITY:
                has_value = (values != 0) | np.isnan(values)
                region |= has_value.reshape(*region.shape, -1).any(axis=-1)
        return region

    def rows(self) -> Iterator[dict[str, Any]]:
        """Summarize each parameter in a row of a table, with its doubts where it was fitted."""
        shares = self.sidecar.get("Doubt", {}).get("Share", {})
        for panel in self.panels:
            row = {"name": panel.name, "unit": panel.unit, "median": "–", "quartiles": "– – –"}
            if quartiles := panel.summary(self.region):
                low, row["median"], high = map(significant, quartiles)
                row["quartiles"] = f"{low} – {high}"
            entry = self.entries[panel.name]
            row["interval"] = entry.get("Interval", "–")
            row["lower"], row["upper"] = bound_cells(entry)
            error = entry.get("StandardError")
            row["error"] = "–" if error is None else significant(error, 2)
            if shares:
                row["believed"] = verdict.believed_median(entry)
                row["doubt"] = percent(shares[panel.name])
            yield row

    def planes(
        self,
        panels: Sequence[MapPanel],
        *,
        region: NDArray[np.bool_] | None = None,
        background: NDArray | None = None,
        signals: VoxelSignals | None = None,
        outlines: Sequence[Layer] = (),
        scan: str = SCAN,
        instead: str = "The pictures below show slices of the same maps.",
    ) -> Any:
        """
        Show maps in three planes: the scan below, the parameter least in doubt above it.

        Without the scan, the first amplitude is below. `instead` is read where no script runs.
        Shapes: `region` and `background` (x, y, z).
        """
        region = self.region if region is None else region
        layers = []
        if background is not None:
            layers.append(Layer(scan, background, "image", AMPLITUDE_UNIT))
        for panel in panels:
            values = np.where(region, panel.values, np.nan)
            layers.append(Layer(panel.layer, values, "map", panel.unit, panel.window))
        # An amplitude looks like the scan, so that the reader sees where the colors lie.
        images = [layer.name for layer in layers if layer.unit == AMPLITUDE_UNIT]
        colored = [panel for panel in panels if panel.unit != AMPLITUDE_UNIT]
        overlay = ""
        if images and colored:
            names = [p.layer for p in colored if not p.faint] or [p.layer for p in colored]
            overlay = verdict.least_doubted(names, self.sidecar)
        for panel in panels:
            if panel.doubted is not None and panel.doubted.any():
                layers.append(Layer(panel.layer, panel.doubted, "doubt"))
        records, start = None, None
        if signals is not None:
            records = VoxelRecords(self.maps, self.sidecar, signals)
            start = (self.affine @ [*records.start, 1])[:3]
        return html_viewer(
            [*layers, *outlines],
            self.affine,
            region=region,
            image=images[0] if images else panels[0].layer,
            overlay=overlay,
            start=start,
            opacity=OPACITY,
            records=records,
            label="Maps",
            instead=page.Note(instead),
        )

    def first_screen(self, **options: Any) -> Iterator[Any]:
        """Answer what was fitted and what can be read of it; show the maps (x, y, z) in planes."""
        measured, fitted = self.sidecar["Protocol"], self.sidecar["FittedProtocol"]
        answer = verdict.map_verdict(self.sidecar, doubts=False)
        title = "Measurements" if fitted == measured else "Measurements after averaging"
        yield page.Lead(f"{answer}. {title}: {_contrasts(fitted)}.")
        yield verdict.parameter_lights(self.panels, self.region, self.sidecar)
        if self.free_panels:
            yield self.planes(self.free_panels, **options)

    def settings(self, before: Sequence[Any], after: Sequence[Any]) -> page.Section:
        """Tabulate the rows `before`, what was read, the rows `after`, settings and versions."""
        sources = [
            [role.lower(), f"{source['Name']} (SHA-256 {source['SHA256'][:16]}…)"]
            for role, source in self.sidecar["Sources"].items()
        ]
        # ``AverageDirections`` becomes ``--average-directions``; what was decided is no option.
        settings = []
        for key, value in self.sidecar["Settings"].items():
            name = _SETTINGS.get(key, "-" + re.sub("(?=[A-Z])", "-", key).lower())
            if value is not None and key != "Choice":
                settings.append([name, value])
        names = self.sidecar["Versions"].items()
        versions = ["versions", ", ".join(f"{name} {number}" for name, number in names)]
        table = page.Table([*before, *sources, *after, *settings, versions])
        return page.Section("How they were made", table)

    @property
    def formula(self) -> list[Any]:
        """The row of a table with the formula of the model."""
        model = self.sidecar["Model"]
        if "Source" in model:
            return ["model", page.Code(model["Source"])]
        return ["model", f"S = {model['Expression']}"]


def _panel(
    name: str, entry: Mapping[str, Any], values: NDArray, doubted: NDArray | None
) -> MapPanel:
    bounds = (-np.inf, np.inf)
    # Bounds of an amplitude are multiples of each voxel's signal: they have no place on a common
    # axis.
    if "BoundsUnits" not in entry and "Bounds" in entry:
        low, high = entry["Bounds"]
        # An upper bound that differs between voxels has none either.
        high = None if "UpperBoundRule" in entry else high
        bounds = (-np.inf if low is None else low, np.inf if high is None else high)
    return MapPanel(
        name,
        short_unit(entry["Units"]),
        values,
        bounds,
        tuple(entry.get("ShareAtBounds", {"Lower": 0.0, "Upper": 0.0}).values()),
        window=color_window(entry),
        doubted=doubted,
        quartiles=tuple(entry.get("Quartiles", ())),
    )


def color_window(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Give the ends of the colors of a map; None where no voxel with signal has a value."""
    if "Window" not in entry:
        return None
    # A map of one value needs a range, too.
    return slice_figures.robust_limits(np.array(entry["Window"], float), (0, 100))


def write_quicklook(
    shown: ShownMaps,
    *,
    title: str,
    png: Path,
    html: Path,
    background: NDArray | None = None,
    signals: VoxelSignals | None = None,
) -> None:
    """Write the quick-look page of a fit and its picture; `background` (x, y, z)."""
    sidecar = shown.sidecar
    slices = Slices(shown.region, shown.affine)
    heading = f"{title}, model {sidecar['Model']['Name']}"
    figure = plot_maps(slices, shown.free_panels, title=heading)
    picture = page.png_bytes(figure, dpi=150)
    png.write_bytes(picture)
    labels = ", ".join(panel.label for panel in shown.free_panels)
    measured: list[Any] = [["measurements", _contrasts(sidecar["Protocol"])]]
    if sidecar["FittedProtocol"] != sidecar["Protocol"]:
        measured.append(["fitted after averaging", _contrasts(sidecar["FittedProtocol"])])
    measured += verdict.noise_lines(sidecar["Settings"] | sidecar.get("Noise", {}))
    sections = [
        page.Section("", *shown.first_screen(background=background, signals=signals)),
        page.Section("Parameters", *_summary(shown)),
        page.Section(
            "Maps",
            page.Note(_TEXTS("maps", side=slices.sides[0])),
            page.Note(_TEXTS["bars"]),
            page.Picture(picture, f"Slices and histograms of {labels}"),
            _codes(shown, slices),
        ),
        shown.settings([shown.formula, ["", sidecar["Model"]["FormulaUnits"]]], measured),
    ]
    lead = _TEXTS("lead", verb="Fitted", **sidecar["Versions"])
    html.write_text(page.Page(heading, sections, lead).html(), encoding="utf-8")


def _summary(shown: ShownMaps) -> Iterator[Any]:
    """Tabulate the values of each parameter and how many stand at its bounds."""
    sidecar = shown.sidecar
    for sentence in verdict.prose(verdict.fit_sentences(sidecar), sidecar):
        yield page.Note(sentence)
    yield page.Table(shown.rows(), _TEXTS["parameters"])
    counts = sidecar["Status"]["Voxels"]
    text = _TEXTS(
        "summary",
        n_voxels=sum(counts.values()),
        outcomes=", ".join(f"{n} {code}" for code, n in counts.items() if n),
        disagree=percent(sidecar["Doubt"]["StartsDisagree"]),
    )
    for name, entry in shown.entries.items():
        if "Meaning" in entry:
            text += f" {name} is the {entry['Meaning']}."
    yield page.Note(text)
    if sentence := verdict.precision_sentence(sidecar):
        yield page.Note(*verdict.prose([sentence], sidecar))


def bound_cells(entry: Mapping[str, Any]) -> list[str]:
    """Write how many voxels stand at the lower and at the upper bound of a parameter."""
    if "Fixed" in entry:
        held = entry["Fixed"]
        # S0 may be fixed at what was measured in each voxel.
        return [f"fixed: {held}" if isinstance(held, str) else f"fixed at {rounded(held, 6)}", ""]
    if "Bounds" not in entry:
        return ["–", "–"]
    unit = "× the largest signal" if "BoundsUnits" in entry else short_unit(entry["Units"])
    bounds = [
        "" if bound is None else f"{rounded(bound, 6)} {unit if bound else ''}".rstrip()
        for bound in entry["Bounds"]
    ]
    if "UpperBoundRule" in entry:
        smaller_of = f"the smaller of {bounds[1]} and " if bounds[1] else ""
        bounds[1] = smaller_of + MONOTONIC
    cells = zip(bounds, entry["ShareAtBounds"].values(), strict=True)
    return [f"{percent(share)} at {end}" if end else "no bound" for end, share in cells]


def value_lines(sidecar: Mapping[str, Any]) -> Iterator[str]:
    """Say in lines which parameters stand at their bounds, and their intervals or medians."""
    intervals, medians = [], []
    widths = sidecar.get("Intervals", {}).get("Parameters", {})
    for parameter, entry in sidecar.get("Parameters", {}).items():
        # None of a fixed parameter.
        shares_at_ends = entry.get("ShareAtBounds", {}).items()
        cells = zip(shares_at_ends, bound_cells(entry), strict=False)
        shares = [f"{cell} ({end.lower()})" for (end, share), cell in cells if share]
        if shares:
            yield f"{parameter}, voxels with signal at its bounds: {', '.join(shares)}"
        if "Interval" in entry:
            meaning = f" ({entry['Meaning']})" if "Meaning" in entry else ""
            intervals.append(f"{parameter}{meaning} {entry['Interval']}")
        elif "Quartiles" in entry and "Status" not in sidecar:
            unit = short_unit(entry["Units"])
            text = verdict.believed_median(entry, entry["Quartiles"][1], unit=unit)
            if widths.get(parameter, {}).get("Determined", True):
                medians.append(f"{parameter} {text}")
    if intervals:
        yield f"95 % intervals, with doubts (medians of their ends): {'; '.join(intervals)}"
    elif medians:
        yield f"medians: {'; '.join(medians)}"


def _codes(shown: ShownMaps, slices: Slices) -> page.Grid:
    """Show how the fits ended, and which are in doubt."""
    codes = {int(code): text for code, text in shown.sidecar["Status"]["Codes"].items()}
    # Voxels outside the mask are left white.
    codes.pop(OUTSIDE, None)
    status = plot_codes(slices, shown.maps["status"], codes, "Status")
    figures = [page.Picture(status, "Status of each voxel")]
    if shown.maps["doubt"].any():
        n_doubts = unpack_bits(shown.maps["doubt"], len(shown.entries)).sum(axis=-1)
        colors = slice_figures.COUNT_COLORS
        most = len(colors) - 1
        counts = {n: counted(n, "parameter") for n in range(most)}
        counts[most] = f"{most} parameters or more"
        n_doubts = np.minimum(n_doubts, most).astype(np.uint8)
        figure = plot_codes(slices, n_doubts, counts, "In doubt", colors=colors)
        figures.append(page.Picture(figure, "Number of parameters in doubt"))
    return page.Grid(*figures)


def _contrasts(protocol: Mapping[str, Any]) -> str:
    """Write the b-values and echo times of a protocol."""
    text = f"{len(protocol['b'])} with b = {shells_text(np.array(protocol['b']))} s/mm²"
    if protocol["te"] is not None:
        te = ", ".join(f"{value:g}" for value in sorted(set(protocol["te"])))
        text += f"; TE = {te} ms"
    return text


def map_summary(shown: ShownMaps, *, title: str, advice: Sequence[str] = ()) -> str:
    """Write verdict, table and slices of maps as HTML; no slices without matplotlib."""
    rows, columns = list(shown.rows()), _TEXTS["values"]
    if "Doubt" in shown.sidecar:
        columns = _TEXTS["fitted_values"]
        for row in rows:
            if "Fixed" in shown.entries[row["name"]]:
                row |= {"interval": "fixed", "doubt": "–"}
    table = page.Table(rows, columns)
    heading = f"{title}: {verdict.map_verdict(shown.sidecar)}"
    summary = html_summary(heading, table.header, table.parts[0], note=" ".join(advice))
    panels = shown.free_panels
    if not (panels and shown.region.any()) or find_spec("matplotlib") is None:
        return summary
    slices = Slices(shown.region, shown.affine, n_slices=3)
    figure = plot_maps(slices, panels, histograms=False)
    # As many pixels as the room for the picture allows: noise does not compress.
    for resolution in _RESOLUTIONS:
        picture = page.Picture(page.png_bytes(figure, dpi=resolution), "")
        if len(picture.png) <= MAX_PICTURE_BYTES:
            break
    source = f"data:image/png;base64,{picture.data}"
    names = escape(", ".join(panel.name for panel in panels))
    return f'{summary}\n<img src="{source}" alt="Slices of {names}" style="max-width: 100%">'


def single_map_figure(
    shown: ShownMaps, name: str | None, signals: VoxelSignals | None, voxel: Any, title: str
) -> style.Figure:
    """Draw a map, and beside it the signals and the curve of a voxel where there are signals."""
    panels = {panel.name: panel for panel in shown.panels}
    determined = [n for n, p in panels.items() if p.unit != AMPLITUDE_UNIT] or list(panels)
    name = verdict.least_doubted(determined, shown.sidecar) if name is None else name
    if name not in panels:
        raise KeyError(f"there is no parameter {name!r}; there are {', '.join(panels)}")
    slices = Slices(shown.region, shown.affine)
    if signals is None:
        return plot_maps(slices, [panels[name]], title=title)
    voxel = VoxelRecords(shown.maps, shown.sidecar, signals).start if voxel is None else voxel
    row = signals.rows[voxel]
    place = ", ".join(f"{x:.0f}" for x in (shown.affine @ [*voxel, 1])[:3])
    if not row:
        raise ValueError(f"the voxel at {place} mm has no signals; choose one that was fitted")
    figure = plot_maps(slices, [panels[name]], title=title, beside=_CURVE_INCHES)
    left = figure.get_figwidth() - _CURVE_INCHES
    axes = style.add_axes(figure, left + 1.05, 0.7, _CURVE_INCHES - 1.25, 3)
    described = shown.sidecar["Model"]
    parameters = tuple(Parameter(p.name, p.unit, -np.inf, np.inf) for p in shown.panels)
    formula, source = described.get("Expression", ""), described.get("Source", "")
    model = SignalModel(described["Name"], parameters, formula, source=source)
    values = np.array([panel.values[voxel] for panel in shown.panels])
    doubt = unpack_bits(shown.maps["doubt"][voxel], len(values))
    draw_curve(axes, signals.protocol, signals.values[row - 1], model, values, doubt)
    axes.set_title(f"voxel at {place} mm")
    return figure


def thumbnails(sidecar: Path) -> dict[str, tuple[str, str]]:
    """Draw a slice of each map of a fit but amplitudes; give captions and PNGs in base64."""
    described = json.loads(sidecar.read_text(encoding="utf-8"))
    entries = described["Parameters"]
    free = [name for name, entry in entries.items() if not {"BoundsUnits", "Fixed"} & entry.keys()]
    status = load_image(sidecar.with_name(described["Status"]["File"]))
    region = np.asarray(status.dataobj) != OUTSIDE
    slices = Slices(region, status.affine, n_slices=1)
    pictures = {}
    for name in free or entries:
        values = np.asarray(load_image(sidecar.with_name(entries[name]["File"])).dataobj)
        low, high = color_window(entries[name]) or slice_figures.robust_limits(values[region])
        buffer = io.BytesIO()
        picture = slices.pictures(np.where(region, values, np.nan))[0]
        options = {"vmin": low, "vmax": high, "cmap": style.COLORMAP, "origin": "lower"}
        import_optional("matplotlib.image").imsave(buffer, picture, format="png", **options)
        unit = short_unit(entries[name]["Units"])
        caption = f"{name}, {significant(low)} to {significant(high)} {unit}".rstrip()
        pictures[name] = caption, base64.b64encode(buffer.getvalue()).decode()
    return pictures


def map_viewer(
    shown: ShownMaps,
    title: str,
    background: NDArray | None = None,
    signals: VoxelSignals | None = None,
) -> InlinePage:
    """Make the page of the viewer that goes through maps (x, y, z) in three planes."""
    if not shown.free_panels:
        raise ValueError("there is no map to view: no parameter was fitted or predicted")
    options: dict[str, Any] = {"background": background, "instead": ""}
    if "Status" in shown.sidecar:
        screen = list(shown.first_screen(signals=signals, **options))
    else:
        viewer = shown.planes(shown.free_panels, **options)
        screen = [page.Lead(verdict.map_verdict(shown.sidecar)), viewer]
    return InlinePage(page.Page(title, [page.Section("", *screen)]).html())


def write_prediction_page(
    shown: ShownMaps,
    *,
    title: str,
    html: Path,
    background: NDArray | None = None,
    windows: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write the page of predicted maps; `windows` are color scales of a fit, by name."""
    sidecar, maps, region = shown.sidecar, shown.maps, shown.region
    # Slices of an empty mask could not be chosen.
    if not region.any():
        region = np.ones_like(region)
    panels = [
        replace(panel, window=(windows or {}).get(panel.name, panel.window))
        for panel in shown.panels
    ]
    layers, certainty = panels, NO_INTERVALS
    widths: list[MapPanel] = []
    median_widths: dict[str, float] = {}
    outlines: list[Layer] = []
    intervals = sidecar.get("Intervals")
    if intervals is not None:
        coverage, layers = f"{100 * intervals['Coverage']:.3g} %", []
        # Both are dim where nothing is determined.
        determined = {name: entry["Determined"] for name, entry in intervals["Parameters"].items()}
        panels = [replace(panel, faint=not determined[panel.name]) for panel in panels]
        for panel in panels:
            width = maps[f"{panel.name}_high"] - maps[f"{panel.name}_low"]
            name = f"{panel.name}, width of the {coverage} interval"
            widths.append(MapPanel(name, panel.unit, width, faint=panel.faint))
            median_widths[panel.name] = (widths[-1].summary(shown.region) or [0, np.nan])[1]
            layers += [panel, widths[-1]]
        wide = ", ".join(panel.name for panel in panels if panel.faint)
        certainty = f"Intervals beside the maps: {intervals['Guarantee']}"
        certainty += f"; not determined: {wide}." if wide else "."
        if "Verdict" in intervals["Typicality"]:
            # Missing values compare as false.
            unlike = shown.region & (maps[TYPICALITY] < intervals["Typicality"]["UnlikeBelow"])
            outline = unlike.astype(np.uint8)
            outlines.append(Layer("unlike the training voxels", outline, "mask", shown=False))
    options: dict[str, Any] = {"background": background, "outlines": outlines, "scan": "input"}
    first_screen = [
        page.Lead(f"{verdict.map_verdict(sidecar)}. {certainty}"),
        verdict.parameter_lights(panels, shown.region, sidecar, median_widths),
        page.Note("Maps have the colors of the fit in the same folder." if windows else ""),
        shown.planes(layers, region=region, **options),
    ]
    figures: Any = ()
    if shown.region.any():
        figures = _maps(panels, widths, outlines, Slices(region, shown.affine), intervals)
    estimator = [["estimator", "{Class}, {Regressor}".format(**sidecar["Estimator"])]]
    if trained := sidecar["Estimator"].get("TrainedOn"):
        names = ", ".join(trained["Cohorts"])
        estimator.append(["trained on", _TEXTS("trained", names=names, **trained)])
    scale = ["signals divided by", f"{sidecar['Scale']:.6g}"]
    sections = [
        page.Section("", *first_screen),
        page.Section("Maps", *figures),
        page.Section("Parameters", *_parameters(shown, median_widths)),
        shown.settings([*estimator, shown.formula], [scale]),
    ]
    heading = f"{title}, predicted maps of {sidecar['Model']['Name']}"
    lead = _TEXTS("lead", verb="Predicted", **sidecar["Versions"])
    lead = f"{lead} {sidecar['Estimator'].get('TrainingData', '')}".rstrip()
    html.write_text(page.Page(heading, sections, lead).html(), encoding="utf-8")


def interval_advice(section: Mapping[str, Any]) -> list[str]:
    """Say in sentences what the intervals of a prediction promise, and where they may not hold."""
    shares = {name: x["WorstTrainingPatient"] for name, x in section["Parameters"].items()}
    worst = min(shares, key=lambda name: shares[name])
    sentences = [_TEXTS("promise", share=shares[worst], worst=worst, **section)]
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


def _parameters(shown: ShownMaps, median_widths: Mapping[str, float]) -> Iterator[Any]:
    """Tabulate the values of each parameter and what its intervals are worth."""
    intervals = shown.sidecar.get("Intervals")
    rows, columns = list(shown.rows()), _TEXTS["values"] + _TEXTS["at_bounds"]
    if intervals is not None:
        yield page.Note(" ".join(interval_advice(intervals)))
        columns += _TEXTS["intervals"]
        for row in rows:
            entry = intervals["Parameters"][row["name"]]
            remark = "" if entry["Determined"] else "not determined"
            # Those that are not determined are faint, as controls are.
            row |= entry | {"remark": remark, "control": not entry["Determined"]}
            row["width"] = significant(median_widths[row["name"]])
    yield page.Table(rows, columns)
    text = _TEXTS("counts", **shown.sidecar["Voxels"])
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
        figures = [plot_maps(slices, [panel]) for panel in panels]
        labels = [f"Slices and histogram of {panel.label}" for panel in panels]
        yield page.Grid(*map(page.Picture, figures, labels))
        yield page.Note(_TEXTS["bars"])
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
