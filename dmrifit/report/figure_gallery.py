"""Figures of a report: pictures in the page, files beside it, one file of vectors."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from dmrifit._optional import import_optional
from dmrifit.report.html import html_figure, png_bytes

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["Gallery"]

_DPI = 180
_SCREEN = 100  # CSS pixels for an inch


class Gallery:
    """
    Collect the figures of a report while its sections are made.

    Attributes
    ----------
    pictures : dict of str to bytes
        PNG files by name.
    """

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self._figures: list[Figure] = []

    def show(self, name: str, figure: Figure, alt: str, caption: Any = "") -> Markup:
        """Take a figure in."""
        name = re.sub(r"[^\w+-]+", "-", name)
        png = png_bytes(figure, dpi=_DPI)
        file, n = f"{name}.png", 2
        while file in self.pictures:
            file, n = f"{name}-{n}.png", n + 1
        self.pictures[file] = png
        self._figures.append(figure)
        return html_figure(png, alt, caption, width=round(figure.get_figwidth() * _SCREEN))

    def vectors(self) -> bytes:
        """Draw all figures into one PDF file."""
        pages = import_optional("matplotlib.backends.backend_pdf").PdfPages
        buffer = io.BytesIO()
        with pages(
            buffer, metadata={"CreationDate": None, "Creator": None, "Producer": None}
        ) as file:
            for figure in self._figures:
                file.savefig(figure)
        return buffer.getvalue()
