"""Quick-look pages of a fit or a prediction: maps, histograms, shares at bounds, settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.fit_maps import DOUBTS, OUTSIDE
from dmrifit.io.bids_derivatives import MONOTONIC
from dmrifit.report.html import html_code, html_figure, html_grid, html_note, html_table, png_bytes
from dmrifit.report.slice_figures import MapPanel, Slices, plot_codes, plot_panel, plot_panels
from dmrifit.report.viewer import Layer, html_viewer, viewer_page

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["write_prediction_page", "write_quicklook"]

AMPLITUDE_UNIT = "a.u."


def write_quicklook(
    maps: Mapping[str, NDArray],
    affine: NDArray[np.float64],
    described: Mapping[str, Any],
    *,
    title: str,
    png: Path,
    html: Path,
) -> None:
    """
    Write the quick-look page of a fit and its picture.

    Shapes: `maps` (x, y, z).
    """
    slices = Slices(maps["status"] != OUTSIDE, affine)
    panels = [_panel(name, maps[name], entry) for name, entry in described["Parameters"].items()]
    drawn = [panel for panel in panels if "Fixed" not in described["Parameters"][panel.name]]
    heading = f"{title}, model {described['Model']['Name']}"
    png.write_bytes(png_bytes(plot_panels(slices, drawn, heading), dpi=150))
    html.write_text(
        viewer_page(
            heading,
            [
                ("Parameters", _summary(maps, slices, panels, described)),
                *([("Three planes", _planes(slices, drawn, affine))] if drawn else []),
                ("Maps", _figures(maps, slices, drawn, described)),
                ("How they were made", _settings(described)),
            ],
            lead=(
                f"Fitted by dmrifit {described['Versions']['dmrifit']}. "
                "Research software, not a medical device."
            ),
        ),
        encoding="utf-8",
    )


def write_prediction_page(
    maps: Mapping[str, NDArray],
    affine: NDArray[np.float64],
    described: Mapping[str, Any],
    *,
    title: str,
    html: Path,
) -> None:
    """
    Write the page of a prediction.

    Shapes: `maps` (x, y, z).
    """
    inside = np.any([(values != 0) | np.isnan(values) for values in maps.values()], axis=0)
    units = {name: entry["Units"] for name, entry in described["Parameters"].items()}
    panels = [
        MapPanel(
            name,
            ""
            if units[name] == "1"
            else AMPLITUDE_UNIT
            if "arbitrary" in units[name]
            else units[name],
            values,
        )
        for name, values in maps.items()
    ]
    slices = Slices(inside if inside.any() else np.ones_like(inside), affine)
    rows, figures = [], []
    for panel in panels:
        values = panel.values[inside]
        values = values[np.isfinite(values)]
        quartiles = (
            [f"{q:.3g}" for q in np.percentile(values, (50, 25, 75))] if len(values) else ["–"] * 3
        )
        rows.append([panel.name, panel.unit, quartiles[0], f"{quartiles[1]} – {quartiles[2]}"])
        if inside.any():
            figures.append(
                html_figure(
                    png_bytes(plot_panel(slices, panel)), f"Slices and histogram of {panel.label}"
                )
            )
    counts = described["Voxels"]
    text = (
        f"{counts['InMask']} voxels, {counts['WithSignal']} of them with signal in every "
        "measurement. A trained model predicted these maps from images of another protocol; they "
        "are no fit to measurements of it."
    )
    if counts["NegativeSignal"]:
        text += f" In {counts['NegativeSignal']} voxels a predicted signal is negative."
    estimator = described["Estimator"]
    made = [
        ["estimator", estimator["Class"]],
        ["model", _formula(described["Model"])],
        *(
            [role.lower(), f"{source['Name']} (SHA-256 {source['SHA256'][:16]}…)"]
            for role, source in described["Sources"].items()
        ),
        ["signals divided by", f"{described['Scale']:.6g}"],
        *([_words(key), value] for key, value in described["Settings"].items()),
        [
            "versions",
            ", ".join(f"{name} {number}" for name, number in described["Versions"].items()),
        ],
    ]
    table = html_table(rows, ["", "unit", "median", "quartiles"], numbers=(2, 3))
    page = viewer_page(
        f"{title}, predicted maps of {described['Model']['Name']}",
        [
            ("Parameters", table + html_note(text)),
            ("Three planes", _planes(slices, panels, affine)),
            *([("Maps", html_grid(figures))] if figures else []),
            ("How they were made", html_table(made)),
        ],
        lead=(
            f"Predicted by dmrifit {described['Versions']['dmrifit']}. "
            "Research software, not a medical device."
        ),
    )
    html.write_text(page, encoding="utf-8")


def _panel(name: str, values: NDArray, entry: Mapping[str, Any]) -> MapPanel:
    amplitude = "BoundsUnits" in entry
    # Bounds of an amplitude are multiples of each voxel's signal: they have no place on a common
    # axis.
    low, high = (None, None) if amplitude else entry["Bounds"]
    shares = entry.get("ShareAtBounds", {"Lower": 0.0, "Upper": 0.0})
    return MapPanel(
        name,
        AMPLITUDE_UNIT if amplitude else "" if entry["Units"] == "1" else entry["Units"],
        values,
        (-np.inf if low is None else low, np.inf if high is None else high),
        (shares["Lower"], shares["Upper"]),
    )


def _summary(
    maps: Mapping[str, NDArray],
    slices: Slices,
    panels: list[MapPanel],
    described: Mapping[str, Any],
) -> Markup:
    """Tabulate the values of each parameter and how many stand at its bounds."""
    rows = []
    for panel in panels:
        entry = described["Parameters"][panel.name]
        values = panel.values[slices.mask]
        values = values[np.isfinite(values)]
        errors = maps[f"{panel.name}_se"][slices.mask]
        errors = errors[np.isfinite(errors)]
        quartiles = (
            [f"{q:.3g}" for q in np.percentile(values, (50, 25, 75))] if len(values) else ["–"] * 3
        )
        unit = " × max" if "BoundsUnits" in entry else ""
        if "Fixed" in entry:
            ends = [f"fixed at {entry['Fixed']:g}", ""]
        else:
            ends = [
                "no bound" if bound is None else f"{100 * share:.3g} % at {bound:g}{unit}"
                for bound, share in zip(
                    entry["Bounds"], entry["ShareAtBounds"].values(), strict=True
                )
            ]
            if "UpperBoundRule" in entry:
                ends[1] += f" or {MONOTONIC}"
        error = f"{np.median(errors):.2g}" if len(errors) else "–"
        rows.append(
            [
                panel.name,
                panel.unit,
                quartiles[0],
                f"{quartiles[1]} – {quartiles[2]}",
                error,
                *ends,
            ]
        )
    header = ["", "unit", "median", "quartiles", "std. error", "at lower bound", "at upper bound"]
    counts = described["Status"]["Voxels"]
    text = (
        f"{sum(counts.values())} voxels: "
        + ", ".join(f"{n} {code}" for code, n in counts.items() if n)
        + "."
    )
    text += " The standard error is the median over voxels."
    doubts = described["Doubt"]["Share"]
    text += (
        f" In {100 * doubts['starts disagree']:.3g} % of the fitted voxels starts disagree: other "
        f"parameters fit about as well. {100 * doubts['ill-conditioned']:.3g} % are "
        "ill-conditioned: their parameters cannot be told apart."
    )
    if any("BoundsUnits" in entry for entry in described["Parameters"].values()):
        text += " Bounds of S0 are multiples of the largest signal of the voxel (× max)."
    return html_table(rows, header, numbers=(2, 3, 4, 5, 6)) + html_note(text)


def _planes(slices: Slices, panels: list[MapPanel], affine: NDArray[np.float64]) -> Markup:
    """Show all maps in three planes: the first amplitude below, another parameter above it."""
    layers = [
        Layer(one.name, np.where(slices.mask, one.values, np.nan), "map", one.unit)
        for one in panels
    ]
    amplitudes = [one.name for one in panels if one.unit == AMPLITUDE_UNIT]
    others = [one.name for one in panels if one.unit != AMPLITUDE_UNIT]
    below = (amplitudes or others)[0]
    above = others[0] if amplitudes and others else ""
    note = html_note("The pictures below show slices of the same maps.")
    return html_viewer(
        layers, affine, region=slices.mask, image=below, overlay=above, label="Maps", instead=note
    )


def _figures(
    maps: Mapping[str, NDArray],
    slices: Slices,
    panels: list[MapPanel],
    described: Mapping[str, Any],
) -> Markup:
    codes = {
        int(code): meaning
        for code, meaning in described["Status"]["Codes"].items()
        if int(code) != OUTSIDE
    }
    note = html_note(
        f"Slices through the middle of the mask, {slices.sides[0]} at the left. Colors span "
        "percentiles 2 to 98; gray voxels could not be fitted. In the histograms the thin line "
        "is the median, dashed lines are bounds, and the first and last bar hold what lies "
        "outside."
    )
    figures = [
        html_figure(png_bytes(plot_panel(slices, panel)), f"Slices and histogram of {panel.label}")
        for panel in panels
    ]
    figures.append(
        html_figure(
            png_bytes(plot_codes(slices, maps["status"], codes, "Status")), "Status of each voxel"
        )
    )
    if maps["doubt"].any():
        doubts = {0: "no doubt", **DOUBTS, sum(DOUBTS): "both"}
        figures.append(
            html_figure(
                png_bytes(plot_codes(slices, maps["doubt"], doubts, "Doubt")), "Fits in doubt"
            )
        )
    return note + html_grid(figures)


def _settings(described: Mapping[str, Any]) -> Markup:
    protocol, fitted = described["Protocol"], described["FittedProtocol"]
    rows = [
        ["model", _formula(described["Model"])],
        ["", described["Model"]["FormulaUnits"]],
        *(
            [role.lower(), f"{source['Name']} (SHA-256 {source['SHA256'][:16]}…)"]
            for role, source in described["Sources"].items()
        ),
        ["measurements", _contrasts(protocol)],
    ]
    if fitted != protocol:
        rows.append(["fitted after averaging", _contrasts(fitted)])
    words = {None: "none"}
    rows += [
        [_words(key), words.get(value, value)] for key, value in described["Settings"].items()
    ]
    rows.append(
        [
            "versions",
            ", ".join(f"{name} {number}" for name, number in described["Versions"].items()),
        ]
    )
    return html_table(rows)


def _formula(model: Mapping[str, str]) -> str | Markup:
    return html_code(model["Source"]) if "Source" in model else f"S = {model['Expression']}"


def _contrasts(protocol: Mapping[str, Any]) -> str:
    b = sorted({round(value) for value in protocol["b"]})
    text = f"{len(protocol['b'])} with b = " + (
        ", ".join(map(str, b)) if len(b) <= 12 else f"{b[0]} … {b[-1]} ({len(b)} values)"
    )
    text += " s/mm²"
    if protocol["te"] is not None:
        text += "; TE = " + ", ".join(f"{te:g}" for te in sorted(set(protocol["te"]))) + " ms"
    return text


def _words(key: str) -> str:
    """Turn ``AverageDirections`` into ``average directions``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()
