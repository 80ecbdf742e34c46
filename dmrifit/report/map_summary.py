"""What a notebook shows of the maps of an image: a verdict, a table, slices, the viewer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.html_repr import InlinePage, html_summary
from dmrifit.report.page import Lead, Page, Section, png_bytes
from dmrifit.report.quicklook import (
    first_screen,
    fitted_panels,
    map_panels,
    planes_viewer,
    shown_region,
    value_cells,
)
from dmrifit.report.slice_figures import MapPanel, Slices, plot_overview
from dmrifit.report.verdict import map_verdict, percent
from dmrifit.report.voxel_records import VoxelSignals

__all__ = ["map_summary", "map_verdict", "map_viewer"]

#: Bytes of the picture, so that with its text (a third more than bytes) it stays below 300 kB.
MAX_PICTURE_BYTES = 200_000

_RESOLUTIONS = (110, 90, 70, 55, 40, 30)  # pixels per inch, tried in this order


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
    rows = [_row(panel, region, sidecar) for panel in panels]
    header = ["", "unit", "median", "quartiles"]
    if "Doubt" in sidecar:
        header += ["95 % interval", "in doubt"]
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


def _row(
    panel: MapPanel, region: NDArray[np.bool_], sidecar: Mapping[str, Any]
) -> list[str | None]:
    cells: list[str | None] = [*value_cells(panel, region)]
    if "Doubt" not in sidecar:
        return cells
    entry = sidecar["Parameters"][panel.name]
    if "Fixed" in entry:
        return [*cells, "fixed", None]
    share = sidecar["Doubt"]["Share"][panel.name]
    return [*cells, entry.get("Interval", "–"), percent(share)]


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
