"""Figures of a report: pictures in the page, files beside it, one file of vectors."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dmrifit._optional import import_optional
from dmrifit.io.tables import csv_text
from dmrifit.report.html import html_figure, png_bytes

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from dmrifit.io.atomic_files import FileSet

__all__ = ["Gallery", "write_comparison"]

_DPI = 180
_SCREEN = 100  # CSS pixels for an inch


class Gallery:
    """Collect the figures of a report while its sections are made: PNG `pictures` by name."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self._figures: list[Figure] = []

    def show(self, name: str, figure: Figure, alt: str, caption: Any = "") -> Markup:
        """Take a figure in."""
        # Names of cohorts may hold what a file name cannot.
        name = re.sub(r"[^\w+-]+", "-", name)
        png = png_bytes(figure, dpi=_DPI)
        file = f"{name}.png"
        n = 2
        while file in self.pictures:
            file = f"{name}-{n}.png"
            n += 1
        self.pictures[file] = png
        self._figures.append(figure)
        return html_figure(png, alt, caption, width=round(figure.get_figwidth() * _SCREEN))

    def vectors(self) -> bytes:
        """Draw all figures into one PDF file."""
        pages = import_optional("matplotlib.backends.backend_pdf").PdfPages
        buffer = io.BytesIO()
        # Without date and program the same figures are the same bytes.
        metadata = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        with pages(buffer, metadata=metadata) as file:
            for figure in self._figures:
                file.savefig(figure)
        return buffer.getvalue()


def write_comparison(
    files: FileSet, tables: Mapping[str, pd.DataFrame], gallery: Gallery, pages: Mapping[str, str]
) -> None:
    """Write tables, the figures that the set of files names, and pages."""
    for kind, table in tables.items():
        files.path(f"{kind}.csv").write_text(csv_text(table), encoding="utf-8")
    for name, picture in gallery.pictures.items():
        if name in files.names:
            files.path(name).write_bytes(picture)
    for name, page in pages.items():
        files.path(name).write_text(page, encoding="utf-8")
